"""Find and load stock Hugging Face checkpoints; whatever cannot be pruned here is refused before a weight is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..files.paths import DATA
from .data import sha256
from .families import FAMILIES, family_of

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
        ValueError: what `configuration` refuses, an embedded file whose SHA-256 is wrong, a folder without safetensors,
            or weights that do not match the configuration.
    """
    where = located(name)
    readable(where)
    configuration(name, revision, trust_remote_code)  # refuses what cannot be pruned, before any weight is read
    source = where if where.is_dir() else name
    options = dict(revision=revision, trust_remote_code=trust_remote_code)
    try:
        model = matching(
            name,
            lambda: AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **options
            ),
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except MismatchError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"Could not load {str(name)!r}: {reason(error)}.") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def tokenizer_of(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by its name, or by where it was loaded from.

    Raises:
        ValueError: there is none.
    """
    where = MODELS / name if str(name) in EMBEDDED else name
    try:
        return AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise ValueError(f"No tokenizer was found in {str(name)!r} ({reason(error)}); give tokenizer=….") from error


def without_weights(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a configuration on the meta device: shapes alone, whatever its size."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **({} if dtype is None else {"dtype": dtype}))
    model.tie_weights()  # transformers 5.0 does not, and a shared weight would count twice
    return model.eval()


class MismatchError(ValueError):
    """The weights are not those that the configuration asks for."""


def matching(name: str | Path, load: Callable[[], tuple[PreTrainedModel, dict[str, Any]]]) -> PreTrainedModel:
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


def configuration(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model, without its weights.

    Args:
        name: as for `load`.

    Raises:
        ValueError: no such model, or one that cannot be pruned here: an encoder, an encoder-decoder, a quantised
            checkpoint, or one whose code comes with it and not with transformers.
    """
    where = located(name)
    source = where if where.is_dir() else name
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        kind = stored.get("model_type", "")
        if "auto_map" in stored and kind not in FAMILIES and not trust_remote_code:
            code = ", ".join(sorted({str(value).split("--")[-1] for value in stored["auto_map"].values()}))
            raise ValueError(
                f"it brings code of its own ({code}; auto_map in its config.json), which is never run here, and only "
                "architectures that transformers itself has can be pruned"
            )
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"Could not load {str(name)!r}: {reason(error)}.") from error
    # Not every decoder has a row in FAMILIES: those without can still be measured.
    if config.is_encoder_decoder or getattr(config, "quantization_config", None):
        family_of(config)  # says why not
    named, decoders = config.architectures or [], set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if named and kind not in FAMILIES and not decoders & set(named) and not trust_remote_code:
        raise ValueError(
            f"{str(name)!r} is a {named[0]} ({kind}), no decoder that predicts a next token; only such are pruned here."
        )
    return config


def reason(error: Exception) -> str:
    """The first line of a library's message, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def readable(folder: Path) -> None:
    """Refuse an embedded model that is damaged, and a folder with pickles alone, which can run code when read."""
    if folder.parent == MODELS:
        verify(folder)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has its weights only as pickles ({pickles[0]}), which are never read here: if you trust them, "
            "convert once with AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False)"
            ".save_pretrained(other), and AutoTokenizer likewise."
        )


def located(name: str | Path) -> Path:
    """The folder a name stands for; a hub id is returned as it is, and is no folder."""
    name = str(name)
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
