"""Save stock Hugging Face checkpoints; nothing half-written is ever left where a model is expected."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files.atomic import expanded, new_folder
from ..files.older_names import add_older_names

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
            tells: `load` writes the whole path there, while a relative one of other makers is taken from the working
            folder of now.
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
        add_older_names(beside)
    return expanded(folder)


def check_generation(model: PreTrainedModel) -> None:
    """Refuse a generation configuration that transformers would refuse after the weights are written.

    Raises:
        ValueError: it contradicts itself.
    """
    try:
        if model.generation_config is not None:
            model.generation_config.validate(strict=True)
    except ValueError as error:
        raise ValueError(
            "transformers does not save this model's generation_config, because sampling settings such as temperature "
            "stand in it with do_sample=False; say model.generation_config.do_sample = True, or do_sample: true in "
            "generation_config.json."
        ) from error
