"""GGUF files, in which llama.cpp keeps models: what one holds, and how precisely, before transformers reads it."""

from collections import Counter
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from .atomic import reason

ENDING = ".gguf"


def precision(path: Path) -> str:
    """How a GGUF file stores its weights, for a record: the kinds, the commonest first, and the bits of a weight.

    Raises:
        ValueError: no whole GGUF file, a part of one, or what is no model: an adapter, or a vocabulary alone.
    """
    seen = path.stat()
    return _read(path, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> str:
    """Read once as long as size and time of change are the same: the vocabulary takes a second."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer")}
    except Exception as error:  # of numpy and of the reader, whatever is missing or twisted
        raise ValueError(
            f"{path} is no whole GGUF file ({reason(error)}): cut off, damaged or something else; fetch it again."
        ) from error
    kind, parts = str(fields.get("general.type", "model")), int(fields.get("split.count", 1) or 1)
    if kind != "model":
        merge = "; merge it into its model (llama-export-lora) and give that" if kind == "adapter" else ""
        raise ValueError(f"{path} holds no model: it is of type {kind!r}{merge}.")
    if parts > 1:
        raise ValueError(f"{path} is one of {parts} parts; join them first (llama-gguf-split --merge).")
    count, stored = Counter[str](), 0
    for tensor in reader.tensors:
        count[tensor.tensor_type.name] += prod(map(int, tensor.shape))
        stored += int(tensor.n_bytes)
    if not any(tensor.name.endswith(".weight") and ".0." in tensor.name for tensor in reader.tensors):
        raise ValueError(f"{path} holds no layers of a model, only a vocabulary or a part; give the file of the model.")
    kinds = ", ".join(name for name, _ in count.most_common())
    return f"GGUF ({kinds}; {8 * stored / count.total():.2f} bits a weight) made float32"


def plain(model: Any, path: Path) -> None:
    """Take away what calls a model quantised: transformers has made float32 of a GGUF file, and would not save it."""
    del model.config.quantization_config
    model.config.made_from = precision(path)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)


def only_one(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds one and no configuration of another model.

    Raises:
        ValueError: it holds several.
    """
    found = sorted(folder.glob(f"*{ENDING}"))
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} GGUF files; name one, such as {found[0]}.")
    return found[0] if found else None
