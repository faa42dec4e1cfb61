"""Prune a checkpoint larger than memory: score, cut and save it layer by layer from its memory-mapped files.

The model is built without weights. One decoder layer at a time gets them, and gives them up again. What is computed is
what `score`, `plan`, `prune` and `save` compute, in the same order, so the result is theirs bit for bit (on the CPU).
"""

import json
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from .checkpoint import MODELS, _readable, _reason, _where, add_older_names, configuration, verify
from .criteria import named
from .data import calibration
from .families import Anatomy, family_of
from .plans import Plan, plan
from .scores import Batch, Scores, score
from .stock import smaller_config
from .surgery import cuts_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = ("tokenizer*", "vocab.*", "*.model")  # any of these says that a folder has one


def prune_folder(
    source: str | Path,
    target: str | Path,
    remove: float | None = None,
    *,
    batches: Iterable[Batch] | None = None,
    text: str | Path | Sequence[str] = "tinyworld",
    criterion: str = "amp",
    average: str = "tokens",
    seed: int = 0,
    progress: bool = True,
    **widths: Any,
) -> Plan:
    """Prune the checkpoint in `source` into a new folder `target`, with never more than a few layers in memory.

    The tensors written are those that `load`, `score`, `plan`, `prune` and `save` give on the CPU; each layer is one
    file, with an index. Memory holds at most three decoder layers, what is outside the layers (embeddings), and one
    hidden state for every calibration token (measured: `benchmarks/larger_than_memory.py`). Everything is written
    beside the target and moved at the end; after an interruption the same command starts again.

    Args:
        source: a local folder with safetensors (one file, or several with an index), or an embedded model.
        target: a folder that is empty or not there.
        remove: as in `plan`, like all of `widths`: of, parts, heads, neurons, unit, combine, align, nearest.
        batches: calibration batches as in `score`; by default drawn from `text` by `calibration`.
        text: see `data.texts`.
        criterion, average, seed: as in `score`.
        progress: show a bar over layers.

    Returns:
        The plan that was carried out.

    Raises:
        ValueError: before any work: no checkpoint there, only pickles, a missing or damaged file, quantised weights,
            weights that do not match the configuration, a target that is not empty or is the source, or what `score`
            and `plan` refuse.
        OSError: the result could not be written, because the disk is full for instance. Nothing of it is left then.
    """
    name, source, target = source, _where(str(source)), Path(target)
    if not source.is_dir():
        raise ValueError(f"{name} is no local folder; fetch it first: hf download {name} --local-dir FOLDER.")
    if target.resolve() == source.resolve():
        raise ValueError(f"The target {target} is the source itself; choose another folder.")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{target} is not empty; choose another folder.")
    with _without_bars():
        folder = Folder(source)
        # The widths do not depend on the scores, so everything that can be refused is refused by a plan at random.
        small = _small(folder, plan(folder.model, score(folder.model, [], "random"), remove, **widths))
        if batches is None and named(criterion).sees_data:
            if folder.tokenizer is None:
                raise ValueError(f"{source} has no tokenizer to read the text with; give batches=… instead.")
            batches = calibration(folder.tokenizer, text, seed=seed)
        scores = score_folder(folder, list(batches or ()), criterion, average, seed, progress)
        chosen = plan(folder.model, scores, remove, **widths)
        _write(folder, small, chosen, target, progress)
    return chosen


class Folder:
    """A checkpoint in safetensors, and its model without weights: every part gets them for a while only."""

    def __init__(self, source: Path) -> None:
        config = configuration(source)
        self.family = family_of(config)
        files = _files(source)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        try:
            if any(path for pattern in TOKENIZER for path in source.glob(pattern)):
                self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            blank = {key: (tensor, path) for path in files for key, tensor in _blank(path).items()}
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"Could not load {str(source)!r}: {_reason(error)}.") from error
        self.model = _matching(config, {key: tensor for key, (tensor, _) in blank.items()}, source)
        if (source / "generation_config.json").is_file():
            self.model.generation_config = GenerationConfig.from_pretrained(source)
        self.anatomy = Anatomy.of(self.model)
        self.loading = LoadStateDictConfig(
            dtype=self.model.dtype, weight_mapping=get_model_conversion_mapping(self.model)
        )
        # Which part each stored tensor belongs to: the number of its layer, or None outside the layers.
        numbered = re.compile(rf"(?:^|\.){self.family.layers.rpartition('.')[2]}\.(\d+)\.")
        self.parts: dict[int | None, dict[str, Path]] = {}
        for key, (_, path) in blank.items():
            found = numbered.search(key)
            self.parts.setdefault(int(found[1]) if found else None, {})[key] = path

    def names(self, part: int | None) -> list[str]:
        """What the model itself calls the tensors of a layer, or of all that is outside the layers (None)."""
        inside = f"{self.family.layers}." + ("" if part is None else f"{part}.")
        return [name for name in self.model.state_dict() if name.startswith(inside) == (part is not None)]

    @contextmanager
    def present(self, part: int | None) -> Iterator[dict[str, Tensor]]:
        """Give a part its weights for a while, mapped from the files and read where they are touched."""
        names = self.names(part)
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
        """Let transformers load these tensors alone: it knows stored names, fused experts and dtypes."""
        keys, opened = self.parts.get(part, {}), []
        slices: dict[str, Any] = {}
        try:
            for path in sorted(set(keys.values())):
                file = safe_open(path, framework="pt")
                opened.append(file.__enter__())
                slices |= {key: file.get_slice(key) for key, where in keys.items() if where == path}
            type(self.model)._load_pretrained_model(self.model, slices, None, self.loading)
        finally:
            for file in opened:
                file.__exit__(None, None, None)


def score_folder(
    folder: Folder, batches: Sequence[Batch], criterion: str, average: str, seed: int, progress: bool
) -> Scores:
    """The scores that `score` gives, from one layer after the other.

    For each layer `score` runs the model's own forward, in which all other layers are skipped. So masks, positions and
    whatever else a family hands its layers come from its own code, and each sum is made by `score`, in its order.
    """
    chosen, layers = named(criterion), range(folder.anatomy.layers)
    if not chosen.sees_data and chosen.static is None:
        return score(folder.model, [], criterion, average, seed)
    heads, neurons, relay = [], [], _Relay(folder)
    with folder.present(None):
        for i in tqdm(layers, desc="Scored", unit="layer", disable=not progress):
            with folder.present(i):
                if chosen.static is not None:
                    found = Scores([], [], criterion, average, tokens=0, prompts=0, seed=seed)
                    heads.append(chosen.static(folder.anatomy.head_weights(i)))
                    neurons.append(chosen.static(folder.anatomy.neuron_weights(i)))
                    continue
                with relay.only(i):
                    found = score(folder.model, batches, criterion, average, seed)
                heads.append(found.heads[i])
                neurons.append(found.neurons[i])
    return replace(found, heads=heads, neurons=neurons)


class _Relay:
    """Hands the hidden states of every batch from one layer to the next, while all the others are skipped."""

    def __init__(self, folder: Folder) -> None:
        self.layers = list(folder.model.get_submodule(folder.family.layers).children())
        self.hidden: deque[Tensor] = deque()  # (batch, length, hidden) of each batch, in order
        self.in_tuple = False  # some families' layers return a tuple; the first one run tells

    @contextmanager
    def only(self, i: int) -> Iterator[None]:
        """While it lasts the model runs layer i alone, on what layer i - 1 gave for the same batch."""

        def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
            return (hidden_states,) if self.in_tuple else hidden_states

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            given = self.hidden.popleft() if i else hidden_states
            output = type(layer).forward(layer, given, *args, **kwargs)
            self.in_tuple = isinstance(output, tuple)
            self.hidden.append(output[0] if self.in_tuple else output)
            return output

        layer: nn.Module = self.layers[i]
        try:
            for other in self.layers:
                other.forward = run if other is layer else skip
            yield
        finally:
            for other in self.layers:
                del other.forward  # the class's own is seen again


def _small(folder: Folder, plan: Plan) -> PreTrainedModel:
    """The cut model without weights: what a stock configuration makes of the plan's widths."""
    with torch.device("meta"):
        config = smaller_config(folder.anatomy, plan)
        small: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=folder.model.dtype)
    if small.state_dict().keys() != folder.model.state_dict().keys():
        raise ValueError(f"{type(small).__name__} does not hold the same weights as {type(folder.model).__name__}.")
    small.generation_config = folder.model.generation_config
    try:
        small.generation_config.validate(strict=True)
    except ValueError as error:
        raise ValueError(
            "transformers does not save this model's generation_config, because sampling settings such as temperature "
            "stand in it with do_sample=False; say do_sample: true in generation_config.json."
        ) from error
    return small


def _write(folder: Folder, small: PreTrainedModel, plan: Plan, target: Path, progress: bool) -> None:
    """Cut and save part by part, beside the target; config.json comes after all weights, and then the folder's name."""
    beside = target.with_name(f".{target.name}.part")
    parts = [*range(folder.anatomy.layers), None]
    where: dict[str, str] = {}  # the file of each tensor
    total = 0  # bytes
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for number, part in enumerate(tqdm(parts, desc="Written", unit="part", disable=not progress), start=1):
            shard = beside / f"model-{number:05}-of-{len(parts):05}.safetensors"
            with folder.present(part) as tensors:
                cuts = {} if part is None else cuts_of(folder.anatomy, plan, part)
                for name, (axis, kept) in cuts.items():
                    tensors[name] = tensors[name].index_select(axis, kept)
                small.save_pretrained(beside / "part", state_dict=tensors)  # under the names that are stored
            (beside / "part" / WEIGHTS).replace(shard)
            stored = _blank(shard)
            where |= dict.fromkeys(stored, shard.name)
            total += sum(tensor.nbytes for tensor in stored.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (beside / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if folder.tokenizer is not None:
            folder.tokenizer.save_pretrained(beside / "part")
        add_older_names(beside / "part")
        for path in (beside / "part").iterdir():
            path.replace(beside / path.name)
        (beside / "part").rmdir()
        if target.is_dir():
            target.rmdir()
        beside.replace(target)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Could not write {target}: {_reason(error)}; the partial output is removed, the source is untouched."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _files(source: Path) -> list[Path]:
    """The files with the weights of a checkpoint."""
    if source.parent == MODELS:
        verify(source)
    _readable(source)
    if (source / WEIGHTS).is_file():
        return [source / WEIGHTS]
    if not (source / INDEX).is_file():
        raise ValueError(f"{source} holds neither {WEIGHTS} nor {INDEX}.")
    try:
        names = sorted(set(json.loads((source / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source / INDEX} is no index of safetensors; fetch it again.") from error
    missing = [name for name in names if not (source / name).is_file()]
    if missing:
        raise ValueError(f"{source / missing[0]} is missing ({len(missing)} of {len(names)} files are); fetch it.")
    return [source / name for name in names]


def _blank(path: Path) -> dict[str, Tensor]:
    """Names, shapes and dtypes of what a file holds, as tensors without data; only its header is read."""
    with safe_open(path, framework="pt") as file:
        return {key: torch.empty_like(file.get_tensor(key), device="meta") for key in file.keys()}


def _matching(config: PreTrainedConfig, stored: dict[str, Tensor], source: Path) -> PreTrainedModel:
    """The model without weights, if those stored are the ones that its configuration asks for.

    Raises:
        ValueError: some are missing, unexpected, or of another shape.
    """
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    try:
        found, report = kind.from_pretrained(
            None, config=config, state_dict=stored, dtype="auto", device_map="meta", output_loading_info=True
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"The weights of {str(source)!r} do not match its configuration; compare their shapes with head_dim, the "
            "head counts, intermediate_size and vocab_size in config.json."
        ) from error
    wrong = [
        f"{len(names)} {what.replace('_', ' ')}, such as {min(map(str, names))}"
        for what, names in report.items()
        if names
    ]
    if wrong:
        raise ValueError(f"The weights of {str(source)!r} do not match its configuration: {'; '.join(wrong)}.")
    # No file holds what is computed from the configuration, such as rotary frequencies: only parameters are left out.
    with init_empty_weights(include_buffers=False), _NothingAllocated():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(found.config, dtype=found.dtype)
    model.tie_weights()  # or a shared weight would count twice
    return model.eval()


class _NothingAllocated(TorchFunctionMode):
    """`torch.empty`, by which weights are made, takes no memory, not even for the moment before they are given up."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        where = {"device": "meta"} if function is torch.empty else {}
        return function(*args, **(kwargs or {}) | where)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence transformers' own bar for every load and save: here there are two for each layer."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
