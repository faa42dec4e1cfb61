"""A checkpoint read and written part by part: its model is built without weights, and parts get theirs for a while."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ..core.anatomy import Anatomy
from ..core.checkpoint import configuration
from ..core.families import family_of, older_names_of
from ..core.surgery import tied
from ..files.atomic import reason, write_json
from ..files.checkpoints import json_object, matching, readable, said_of
from ..files.older_names import add_older_names

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = ("tokenizer*", "vocab.*", "*.model")  # any of these says that a folder has one


class Folder:
    """A checkpoint in safetensors. A part is a decoder layer, by its number, or all outside the layers, None.

    Raises:
        ValueError: what `configuration` and `readable` refuse; a file that is missing or damaged; weights that are not
            those that the configuration asks for.
    """

    def __init__(self, source: Path) -> None:
        config = configuration(source)
        if "text_config" in json_object(source / "config.json") and config.get_text_config() is config:
            raise ValueError(
                f"{source} is multimodal; take its text model out first: amp.save(*amp.load(SOURCE), FOLDER)."
            )
        self.source, self.family = source, family_of(config)
        files = _files(source)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        generation: GenerationConfig | None = None
        try:
            if any(path for pattern in TOKENIZER for path in source.glob(pattern)):
                self.tokenizer = AutoTokenizer.from_pretrained(source, config=config, trust_remote_code=False)
            stored = {key: (tensor, path) for path in files for key, tensor in blank(path).items()}
            if (source / "generation_config.json").is_file():
                generation = GenerationConfig.from_pretrained(source)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # of a broken tokenizer.json anything
            raise ValueError(f"Could not load {str(source)!r}: {said_of(error)}.") from error
        # Which part each stored tensor belongs to.
        numbered = re.compile(rf"(?:^|\.){self.family.layers.rpartition('.')[2]}\.(\d+)\.")
        self.parts: dict[int | None, dict[str, Path]] = {}
        for key, (_, path) in stored.items():
            found = numbered.search(key)
            self.parts.setdefault(int(found[1]) if found else None, {})[key] = path
        with torch.device("meta"):
            kind = type(AutoModelForCausalLM.from_config(config))
        shapes = {key: tensor for key, (tensor, _) in stored.items()}
        whole = matching(
            source,
            lambda: kind.from_pretrained(
                None, config=config, state_dict=shapes, dtype="auto", device_map="meta", output_loading_info=True
            ),
        )
        self.model = _without_weights(whole.config, whole.dtype)
        if not tied(whole) and tied(self.model):  # both are stored: transformers ties them only if they are equal
            with self.present(None):
                whole.config.tie_word_embeddings = tied(self.model)
            self.model = _without_weights(whole.config, whole.dtype)
        if generation is not None:
            self.model.generation_config = generation
        self.anatomy = Anatomy.of(self.model)

    def part_of(self, name: str) -> int | None:
        """The part that a tensor belongs to, by the name that the model has for it."""
        inside = f"{self.family.layers}."
        return int(name.removeprefix(inside).partition(".")[0]) if name.startswith(inside) else None

    def parameters(self) -> Iterator[Tensor]:
        """All parameters in the model's order, each with its weights until the next one is asked for."""
        names = [name for name, _ in self.model.named_parameters()]
        for part, inside in groupby(names, self.part_of):
            with self.present(part) as tensors:
                yield from (tensors[name] for name in inside)

    @contextmanager
    def present(self, part: int | None) -> Iterator[dict[str, Tensor]]:
        """Give a part its weights for a while, mapped from the files and read where they are touched."""
        names = [name for name in self.model.state_dict() if self.part_of(name) == part]
        owners = {name: self.model.get_submodule(name.rpartition(".")[0]) for name in names}
        before = {name: getattr(owner, name.rpartition(".")[2]) for name, owner in owners.items()}
        try:
            self._read(part)
            if part is None:  # a tied weight is stored once
                self.model.tie_weights(missing_keys={n for n in names if self.model.get_parameter_or_buffer(n).is_meta})
            tensors = {name: self.model.get_parameter_or_buffer(name).detach() for name in names}
            lost = [name for name, tensor in tensors.items() if tensor.is_meta]
            if lost:
                raise ValueError(f"The weights of {lost[0]} and {len(lost) - 1} more were not found in their files.")
            yield tensors
        finally:
            for name, owner in owners.items():
                setattr(owner, name.rpartition(".")[2], before[name])

    def _read(self, part: int | None) -> None:
        keys = self.parts.get(part, {})
        try:
            with ExitStack() as opened:
                slices: dict[str, Any] = {}
                for path in sorted(set(keys.values())):
                    file = opened.enter_context(safe_open(path, framework="pt"))
                    slices |= {key: file.get_slice(key) for key, where in keys.items() if where == path}
                load_into(self.model, slices)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"Could not read the weights of {str(self.source)!r}: {reason(error)}.") from error


def load_into(model: PreTrainedModel, stored: dict[str, Any]) -> None:
    """Let transformers give a model these stored tensors, and leave its other weights as they are.

    Only transformers knows what a stored name is called inside, and how the experts of a layer become one tensor. Its
    public `from_pretrained(None, config=…, state_dict=…)` builds the whole model anew each time and fills what is not
    given with random numbers; accelerate's loaders expect the names inside. So this one place uses what is private.

    Raises:
        ValueError: this version of transformers has nothing of that name.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.modeling_utils import LoadStateDictConfig

        load = type(model)._load_pretrained_model
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"transformers {transformers.__version__} no longer loads single layers in the way that prune_folder uses; "
            "prune in memory (load, score, plan, prune, save), or install the version named in constraints.txt."
        ) from error
    load(
        model, stored, None, LoadStateDictConfig(dtype=model.dtype, weight_mapping=get_model_conversion_mapping(model))
    )


def blank(path: Path) -> dict[str, Tensor]:
    """Names, shapes and dtypes of what a file holds, as tensors without data; only its header is read."""
    with safe_open(path, framework="pt") as file:
        return {key: torch.empty_like(file.get_tensor(key), device="meta") for key in file.keys()}


def _files(source: Path) -> list[Path]:
    """The files with the weights of a checkpoint."""
    readable(source)
    if (source / WEIGHTS).is_file():
        return [source / WEIGHTS]
    if not (source / INDEX).is_file():
        raise ValueError(f"{source} holds neither {WEIGHTS} nor {INDEX}.")
    names = sorted(set(json_object(source / INDEX)["weight_map"].values()))
    missing = [name for name in names if not (source / name).is_file()]
    if missing:
        raise ValueError(f"{source / missing[0]} is missing ({len(missing)} of {len(names)} files are); fetch it.")
    return [source / name for name in names]


def _without_weights(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model with parameters on "meta" and real buffers: no file holds what is computed from the configuration."""
    with init_empty_weights(include_buffers=False), _NothingAllocated():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()  # or a shared weight would count twice
    return model.eval()


class _NothingAllocated(TorchFunctionMode):
    """`torch.empty`, by which weights are made, takes no memory, not even for the moment before they are given up."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        where = {"device": "meta"} if function is torch.empty else {}
        return function(*args, **(kwargs or {}) | where)


class Shards:
    """A stock checkpoint of so many files and an index, written part by part into a folder that nobody reads yet."""

    def __init__(self, small: PreTrainedModel, folder: Path, count: int) -> None:
        self.small, self.folder, self.count = small, folder, count
        self.where: dict[str, str] = {}  # the file of each tensor
        self.written, self.total = 0, 0  # files, bytes

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Write a part, with the names that the small model has for its tensors."""
        self.written += 1
        shard = self.folder / f"model-{self.written:05}-of-{self.count:05}.safetensors"
        self.small.save_pretrained(self.folder / "part", state_dict=tensors)  # under the names that are stored
        (self.folder / "part" / WEIGHTS).replace(shard)
        stored = blank(shard)
        self.where |= dict.fromkeys(stored, shard.name)
        self.total += sum(tensor.nbytes for tensor in stored.values())

    def finish(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Write all else. What makes it a model for a reader, config.json, is moved to its place last."""
        index = {"metadata": {"total_size": self.total}, "weight_map": self.where}
        write_json(self.folder / INDEX, index, indent=2, sort_keys=True)
        part = self.folder / "part"
        if tokenizer is not None:
            tokenizer.init_kwargs.pop("auto_map", None)  # code that does not come along
            tokenizer.save_pretrained(part)
        add_older_names(part, older_names_of(self.small.config))
        for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(self.folder / path.name)
        part.rmdir()


@contextmanager
def without_bars() -> Iterator[None]:
    """Silence transformers' own bar for every load and save: here there are two for each layer."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
