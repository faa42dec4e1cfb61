"""Load and save stock Hugging Face checkpoints; nothing half-written is ever left where a model is expected."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .data import DATA, sha256

MODELS = DATA / "models"
EMBEDDED = ("tiny-llama", "tiny-llama-gqa", "tiny-phi")
SUMS = "SHA256.json"


def load(
    name: str | Path,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode and its tokenizer.

    Args:
        name: an embedded model ("tiny-llama", "tiny-llama-gqa", "tiny-phi"), a local folder, or a hub id "owner/name".
        device: "cpu", "cuda", …; the first GPU if there is one, by default.
        dtype: as stored in the checkpoint by default.

    Raises:
        ValueError: no such model, an embedded file whose SHA-256 is wrong, or weights that do not match the
            configuration.
    """
    where = _where(str(name))
    if where.parent == MODELS:
        verify(where)
    options = dict(revision=revision, trust_remote_code=trust_remote_code)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            where if where.is_dir() else name,
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(where if where.is_dir() else name, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise ValueError(f"Could not load {str(name)!r}: {reason}.") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"The weights of {str(name)!r} do not match its configuration; compare their shapes with head_dim, the "
            "head counts, intermediate_size and vocab_size in config.json."
        ) from error
    wrong = [
        f"{len(value)} {kind.replace('_', ' ')}, such as {min(map(str, value))}"
        for kind, value in report.items()
        if value
    ]
    if wrong:
        raise ValueError(f"The weights of {str(name)!r} do not match its configuration: {'; '.join(wrong)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def _where(name: str) -> Path:
    """The folder a name stands for; a hub id is returned as it is, and is no folder."""
    if name in EMBEDDED:
        return MODELS / name
    path = Path(name)
    if not path.is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(
            f"Unknown model {name!r}: the embedded ones are {', '.join(EMBEDDED)}; otherwise give a local folder or "
            "a hub id of the form owner/name."
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{name} is a folder without config.json, so no model.")
    return path


def verify(folder: Path) -> None:
    """Compare a folder's files with the SHA-256 sums stored beside them.

    Raises:
        ValueError: a file is missing or differs.
    """
    for file, expected in json.loads((folder / SUMS).read_text()).items():
        path = folder / file
        if not path.is_file() or sha256(path) != expected:
            raise ValueError(f"{path} is missing or damaged (SHA-256 differs from {SUMS}); fetch it again.")


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    overwrite: bool = False,
) -> Path:
    """Write a stock checkpoint (safetensors): beside the target first, then moved, so a kill leaves no half model.

    Raises:
        ValueError: the folder holds something and `overwrite` is not set, or is a file.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise ValueError(f"{folder} is not empty; choose another folder or say overwrite=True.")
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        model.save_pretrained(beside)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        if folder.exists():
            shutil.rmtree(folder)
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder
