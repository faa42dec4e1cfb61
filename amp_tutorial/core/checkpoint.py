"""Load and save stock Hugging Face checkpoints; whatever cannot be pruned here is refused before a weight is read."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..files.atomic import expanded, new_folder
from ..files.checkpoints import (
    CHECKPOINT,
    MismatchError,
    a_decoder,
    check_generation,
    decoder,
    decoder_config,
    located,
    looked_through,
    missing,
    pretrained,
    readable,
    said_of,
    understood,
    usable,
    without_code,
)
from ..files.downloads import asked_once
from ..files.gguf_files import plain
from ..files.older_names import add_older_names
from .families import FAMILIES, family_of, older_names_of


@asked_once
def load(
    name: str | Path,
    device: str | int | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode and its tokenizer.

    Args:
        name: an embedded model ("tiny-llama", "tiny-llama-gqa", "tiny-phi"), "smollm2-135m" (see `fetch`), a local
            folder, a GGUF file (4-bit weights are made float32; `config.made_from` says so), or a hub id "owner/name".
            Of a multimodal model the text model is taken out, with a warning that says so.
        device: "cpu", "cuda", …; the first GPU if there is one, by default.
        dtype: or its name; as stored in the checkpoint by default.

    Raises:
        ValueError: what `configuration` and `readable` refuse, a device that is not here, or weights that do not match.
    """
    readable(where := located(name))
    device = usable(device)
    config = configuration(name, revision, trust_remote_code)  # refuses what cannot be pruned, before a weight is read
    source, gguf = pretrained(where)
    options = dict(revision=revision, trust_remote_code=trust_remote_code, **gguf)
    try:
        model = decoder(name, source, config, dtype=dtype or "auto", **options)
        if gguf:
            plain(model, where)
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, **options)
        for stored in () if trust_remote_code else (vars(model.config), tokenizer.init_kwargs):
            stored.pop("auto_map", None)
    except (MismatchError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(f"Could not load {str(name)!r}: {said_of(error)}.{missing(name)}") from error
    return model.to(device).eval(), tokenizer


def without_weights(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a configuration on the meta device: shapes alone, whatever its size."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **({} if dtype is None else {"dtype": dtype}))
    model.tie_weights()  # transformers 5.0 does not, and a shared weight would count twice
    return model.eval()


@asked_once
def configuration(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model, without its weights.

    Args:
        name: as for `load`.

    Raises:
        ValueError: no such model, or one that cannot be pruned here: an encoder, an encoder-decoder, a quantised
            checkpoint, or one whose code comes with it and not with transformers.
    """
    source, gguf = pretrained(looked_through(located(name)))
    try:
        stored = {} if gguf else PreTrainedConfig.get_config_dict(source, revision=revision)[0]
        known = stored.get("model_type", "") in FAMILIES or trust_remote_code
        if not known:
            without_code(stored)
        config = decoder_config(source, stored, revision=revision, trust_remote_code=trust_remote_code, **gguf)
        understood(config)
        if not trust_remote_code:
            vars(config).pop("auto_map", None)  # what is saved is stock code's
    except Exception as error:
        raise ValueError(f"Could not load {str(name)!r}: {said_of(error)}.{missing(name)}") from error
    # Not every decoder has a row in FAMILIES: those without can still be measured.
    if config.is_encoder_decoder or getattr(config, "quantization_config", None):
        family_of(config)  # says why not
    if not known:
        a_decoder(name, config)
    return config


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    overwrite: bool = False,
    max_shard_size: str | int | None = None,
) -> Path:
    """Write a stock checkpoint (safetensors): beside the target first, then moved, so a kill leaves no half model.

    Args:
        folder: `~` is the home folder.
        overwrite: replace the checkpoint that the folder holds (`CHECKPOINT` lists its files); any other file there is
            a refusal. Never the folder that the model or the tokenizer was loaded from, as far as their `name_or_path`
            tells: `load` writes the whole path there; a relative one of others is taken from the working folder of now.
        max_shard_size: as in transformers ("5GB", or bytes): larger models are split over files, with an index.

    Raises:
        ValueError: the folder holds something and `overwrite` is not set, or something else than a checkpoint; it is a
            file, a mount point or the working folder, holds the source, or is being written by another process; or the
            generation configuration contradicts itself.
        OSError: the files cannot be written, because the disk is full for example. The partial output is removed.
    """
    check_generation(model)
    sources = [model.name_or_path, getattr(tokenizer, "name_or_path", "")]
    with new_folder(folder, sources, overwrite, CHECKPOINT) as beside:
        model.save_pretrained(beside, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        add_older_names(beside, older_names_of(model.config))
    return expanded(folder)
