"""Where a checkpoint lies, of which files it consists, whose weights it has, and whether it may be read or written."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .downloads import KNOWN, home, place_of, sha256
from .gguf_files import ENDING, only_one, precision
from .paths import DATA

MODELS = DATA / "models"
EMBEDDED = ("tiny-llama", "tiny-llama-gqa", "tiny-phi")
SUMS = "SHA256.json"
CHECKPOINT = (  # the files that a checkpoint consists of, and that another one may replace
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "*.bpe.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)


def located(name: str | Path) -> Path:
    """The folder or GGUF file a name stands for; a hub id is returned as it is, and is neither."""
    name = str(name)
    if name in EMBEDDED:
        return MODELS / name
    path = place_of(name) if name in KNOWN else Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        if (file := only_one(path)) is None:
            raise ValueError(f"{name} is a folder without config.json, so no model.")
        return file
    there = path.is_dir() or (path.suffix == ENDING and path.is_file())
    if not there and name not in KNOWN and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(
            f"Unknown model {name!r}: the embedded ones are {', '.join(EMBEDDED)}, and {', '.join(KNOWN)} can be "
            "fetched; otherwise give a local folder, a GGUF file, or a hub id of the form owner/name."
        )
    return path


def pretrained(where: Path) -> tuple[str, dict[str, str]]:
    """How `from_pretrained` is asked for a model: where it is, and the file if that is a GGUF file.

    Raises:
        ValueError: a GGUF file that holds no whole model.
    """
    if where.suffix == ENDING and where.is_file():
        precision(where)  # refuses it
        return str(where.resolve().parent), {"gguf_file": where.name}
    return (str(where.resolve()) if where.is_dir() else where.as_posix()), {}  # whole, so that `save` knows it anywhere


def tokenizer_source(name: str | Path) -> tuple[str, dict[str, str]]:
    """The same of a tokenizer, which can lie alone, or under a name that is no model's here."""
    try:
        return pretrained(located(name))
    except ValueError:
        return str(name), {}


def made_from(where: Path) -> str | None:
    """What the weights of a folder or GGUF file were, if they were made of something coarser; None if not, as far as
    its configuration says."""
    if where.suffix == ENDING:
        return precision(where)
    path = where / "config.json"
    said = json.loads(path.read_text(encoding="utf-8")).get("made_from") if path.is_file() else None
    return None if said is None else str(said)


def missing(name: str | Path) -> str:
    """What else to do about a model that is not there."""
    return f" Where there is a network, this fetches it: amp-tutorial fetch {name}." if str(name) in KNOWN else ""


def readable(folder: Path) -> None:
    """Refuse a model that came with its sums and is damaged, and one in pickles alone, which can run code when read."""
    if folder.parent == MODELS or (folder.parent == home() and (folder / SUMS).is_file()):
        verify(folder)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has its weights only as pickles ({pickles[0]}), which are never read here: if you trust them, "
            "convert once with AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False)"
            ".save_pretrained(other), and AutoTokenizer likewise."
        )


def verify(folder: Path) -> None:
    """Compare a folder's files with the SHA-256 sums stored beside them.

    Raises:
        ValueError: a file is missing or differs.
    """
    for file, expected in json.loads((folder / SUMS).read_text()).items():
        path = folder / file
        if not path.is_file() or sha256(path) != expected:
            raise ValueError(f"{path} is missing or damaged (SHA-256 differs from {SUMS}); fetch it again.")


class MismatchError(ValueError):
    """The weights are not those that the configuration asks for."""


def matching(name: str | Path, load: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
    """What a `from_pretrained` with `output_loading_info=True` loads, if it is all and only what it should be.

    Raises:
        MismatchError: weights are missing, unexpected, or of another shape.
    """
    try:
        model, report = load()
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise MismatchError(
            f"The weights of {str(name)!r} do not match its configuration; compare their shapes with head_dim, the "
            "head counts, intermediate_size and vocab_size in config.json."
        ) from error
    wrong = [
        f"{len(names)} {kind.replace('_', ' ')}, such as {min(map(str, names))}"
        for kind, names in report.items()
        if names
    ]
    if wrong:
        raise MismatchError(f"The weights of {str(name)!r} do not match its configuration: {'; '.join(wrong)}.")
    return model


def fingerprint(model: Any) -> str:
    """A cheap hash of a model: its parameters' shapes in order, and the signs of some 256 values of each.

    Rounding keeps signs, so copies in float32, bfloat16 and float16 have the same. Training turns some of them; a
    change that turns none of those looked at goes unseen: it finds mix-ups, not tampering. "" where some weights are
    not in memory.
    """
    return hash_of(model.parameters())


def hash_of(parameters: Iterable[Any]) -> str:
    """`fingerprint` of parameters of which each is looked at once, in turn."""
    digest = hashlib.sha256()
    for parameter in parameters:
        if parameter.is_meta:
            return ""
        values = parameter.detach().flatten()
        signs = values[:: values.numel() // 256 | 1].signbit()  # an odd step meets more than one column
        digest.update(f"{tuple(parameter.shape)}".encode() + signs.cpu().numpy().tobytes())
    return digest.hexdigest()


def check_generation(model: Any) -> None:
    """Refuse a generation configuration that transformers would refuse after the weights are written.

    What has one right answer is mended: a token of the number -1 is none, and a model without such a configuration gets
    the one that transformers derives when it loads a checkpoint that has none.

    Raises:
        ValueError: it contradicts itself, with the reason of transformers.
    """
    from transformers import GenerationConfig

    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    if (model.generation_config.pad_token_id or 0) < 0:
        model.generation_config.pad_token_id = None
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        said = str(error).partition("- ")[2] or str(error)
        how = "set it right in model.generation_config, or in generation_config.json"
        if "do_sample" in said:
            how = "say model.generation_config.do_sample = True, or do_sample: true in generation_config.json"
        raise ValueError(
            f"transformers does not save this model's generation_config: {said.splitlines()[0].rstrip('.')}; {how}."
        ) from error


def wrapping(model: Any) -> str:
    """What to do with a model that stands around the one to prune, or has another head; "" for a plain one."""
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        return "This model is compiled: give the one inside, model._orig_mod, and compile what comes out."
    if not hasattr(model, "config"):
        inside = "give the one inside, model.module" if hasattr(model, "module") else "load one with amp.load"
        return f"A {kind} is no model of transformers: {inside}."
    if hasattr(model, "merge_and_unload"):
        return f"A {kind} holds adapters beside the weights; merge them first: model = model.merge_and_unload()."
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        return f"A {kind} does not predict a next token; load it with AutoModelForCausalLM, or by amp.load."
    if hasattr(head, "base_layer"):
        return f"The output head is a {type(head).__name__}, not a plain nn.Linear; merge adapters first."
    return ""
