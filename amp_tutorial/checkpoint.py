"""Load and save stock Hugging Face checkpoints; nothing half-written is ever left where a model is expected."""

import json
import shutil
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

from .data import DATA, sha256
from .families import FAMILIES, family_of

MODELS = DATA / "models"
EMBEDDED = ("tiny-llama", "tiny-llama-gqa", "tiny-phi")
SUMS = "SHA256.json"
OLDER_NAMES = {  # by model type: what transformers 4 called a setting, where it was not called so in most families
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
}


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
    where = _where(str(name))
    if where.parent == MODELS:
        verify(where)
    configuration(name, revision, trust_remote_code)  # refuses what cannot be pruned, before any weight is read
    if where.is_dir():
        _readable(where)
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
        raise ValueError(f"Could not load {str(name)!r}: {_reason(error)}.") from error
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


def configuration(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model, without its weights.

    Args:
        name: as for `load`.

    Raises:
        ValueError: no such model, or one that cannot be pruned here: an encoder, an encoder-decoder, a quantised
            checkpoint, or one whose code comes with it and not with transformers.
    """
    where = _where(str(name))
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
        raise ValueError(f"Could not load {str(name)!r}: {_reason(error)}.") from error
    # Not every decoder has a row in FAMILIES: those without can still be measured.
    if config.is_encoder_decoder or getattr(config, "quantization_config", None):
        family_of(config)  # says why not
    named, decoders = config.architectures or [], set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if named and kind not in FAMILIES and not decoders & set(named) and not trust_remote_code:
        raise ValueError(
            f"{str(name)!r} is a {named[0]} ({kind}), no decoder that predicts a next token; only such are pruned here."
        )
    return config


def _reason(error: Exception) -> str:
    """The first line of a library's message, without its full stop."""
    return str(error).strip().splitlines()[0].rstrip(".:")


def _readable(folder: Path) -> None:
    """Refuse a folder with pickles alone, which can run code when they are read."""
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has its weights only as pickles ({pickles[0]}), which are never read here: if you trust them, "
            "convert once with AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False)"
            ".save_pretrained(other), and AutoTokenizer likewise."
        )


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
    max_shard_size: str | int | None = None,
) -> Path:
    """Write a stock checkpoint (safetensors): beside the target first, then moved, so a kill leaves no half model.

    Args:
        overwrite: replace what the folder holds. Never the folder that the model or the tokenizer was loaded from.
        max_shard_size: as in transformers ("5GB", or bytes): larger models are split over files, with an index.

    Raises:
        ValueError: the folder holds something and `overwrite` is not set, is a file, or holds the source; or the
            generation configuration contradicts itself.
        OSError: the files cannot be written, because the disk is full for example. The partial output is removed.
    """
    folder = Path(folder)
    _not_the_source(folder, model, tokenizer)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise ValueError(f"{folder} is not empty; choose another folder or say overwrite=True.")
    try:
        if model.generation_config is not None:
            model.generation_config.validate(strict=True)
    except ValueError as error:
        raise ValueError(
            "transformers does not save this model's generation_config, because sampling settings such as temperature "
            "stand in it with do_sample=False; say model.generation_config.do_sample = True."
        ) from error
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        model.save_pretrained(beside, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        add_older_names(beside)
        if folder.exists():
            shutil.rmtree(folder)
        beside.replace(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Could not write {folder}: {_reason(error)}; the partial output is removed, what was there is untouched."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _not_the_source(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    for source in {model.name_or_path, getattr(tokenizer, "name_or_path", "")} - {"", None}:
        if Path(source).is_dir() and Path(source).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{folder} is or holds the folder this model was loaded from, which is never overwritten; choose "
                "another folder."
            )


def add_older_names(folder: Path) -> None:
    """Say in a saved folder once more, under the names of transformers 4, what transformers 5 has renamed.

    Readers that only know the old names take a default without a word: another rotary base, and so other logits.
    transformers 5 reads both names. Nothing is lost.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(older_names(config) | config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("tokenizer_class") == "TokenizersBackend":  # the same class, by the name that both lines know
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(settings.get("extra_special_tokens"), list):
            settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def older_names(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that had other names in transformers 4, under those names."""
    rope = config.get("rope_parameters") or {}
    main = rope.get("full_attention", rope)  # families with two kinds of attention keep a set for each
    older = {
        "rope_theta": main.get("rope_theta"),
        "partial_rotary_factor": main.get("partial_rotary_factor"),
        "rope_local_base_freq": (rope.get("sliding_attention") or {}).get("rope_theta"),
        "num_local_experts": config.get("num_local_experts"),
        "torch_dtype": config.get("dtype"),
    }
    if main.get("rope_type", "default") != "default":
        older["rope_scaling"] = {k: v for k, v in main.items() if k not in ("rope_theta", "partial_rotary_factor")}
    own = OLDER_NAMES.get(config.get("model_type", ""), {})
    return {own.get(name, name): value for name, value in older.items() if value is not None}
