"""Save stock Hugging Face checkpoints; nothing half-written is ever left where a model is expected."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoint import reason

OLDER_NAMES = {  # by model type: what transformers 4 called a setting, where it was not called so in most families
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
}


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
        ValueError: the folder holds something and `overwrite` is not set, is a file, holds the source, or is being
            written by another process; or the generation configuration contradicts itself.
        OSError: the files cannot be written, because the disk is full for example. The partial output is removed.
    """
    check_generation(model)
    sources = [model.name_or_path, getattr(tokenizer, "name_or_path", "")]
    with new_folder(Path(folder), sources, overwrite) as beside:
        model.save_pretrained(beside, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        add_older_names(beside)
    return Path(folder)


@contextmanager
def new_folder(target: Path, sources: Iterable[str | Path], overwrite: bool) -> Iterator[Path]:
    """A folder `.NAME.part` beside the target, to write into; without an error it takes the target's place at the end.

    A kill leaves that folder, which the next run for the same target removes. With `overwrite` what is there is moved
    aside to `.NAME.old` before and removed after; a kill between the two moves leaves both whole, and the next run
    puts the old one back. A target that is a link stays one: what it points to is written.

    Raises:
        ValueError: before any work: the target is or holds a source, is not empty and `overwrite` is not set, is a
            file, or is being written by another process.
        OSError: it could not be written. The partial output is removed, and what was there is as it was.
    """
    shown, target = target, target.resolve()
    for source in {str(source) for source in sources if source}:
        if Path(source).is_dir() and Path(source).resolve().is_relative_to(target):
            raise ValueError(
                f"{shown} is or holds the folder this model was loaded from, which is never overwritten; choose "
                "another folder."
            )
    beside, old = (target.with_name(f".{target.name}.{what}") for what in ("part", "old"))
    try:
        with _alone(target, shown):
            if old.is_dir() and not target.exists():  # killed between the two moves
                old.replace(target)
            if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
                raise ValueError(f"{shown} is not empty; choose another folder or say overwrite=True.")
            for left in (beside, old):
                shutil.rmtree(left, ignore_errors=True)
            try:
                beside.mkdir()
                yield beside
                _exchange(beside, target, old, overwrite)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Could not write {shown}: {reason(error)}; the partial output is removed, what was there is untouched."
        ) from error


def _exchange(new: Path, target: Path, old: Path, overwrite: bool) -> None:
    """Put the new folder where the old one was. The old one is removed last."""
    if target.is_dir():
        if overwrite:
            target.replace(old)
        else:
            target.rmdir()  # still empty, or this is an error
    try:
        new.replace(target)
    except BaseException:
        if old.is_dir():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone(target: Path, shown: Path) -> Iterator[None]:
    """Keep other processes from the same target; the system lifts the lock of one that was killed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    try:
        lock = FileLock(path).acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"{shown} is being written by another process; wait for it, or choose another folder."
        ) from error
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes it when it is released
                path.unlink()


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
