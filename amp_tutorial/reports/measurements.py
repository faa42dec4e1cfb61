"""What the sweeps `results.yaml` and `leaderboard.yaml` call: one model made smaller in one way, and measured.

Each of the two functions leaves one record. What a `check_…` beside it refuses is refused before anything is executed.
"""

import copy
import random
import time
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import amp_tutorial as amp

from ..core.checkpoint import configuration
from ..core.sums import Batch
from ..files import DATA
from ..files.checkpoints import located, sha256
from ..files.texts import CORPORA, fingerprint, perplexity_text, text_source, texts
from ..measure.tasks import known_tasks, task_names
from ..runs.execute import RECORD
from ..runs.identity import several
from .standings import NAME
from .systems import RECOVERED, SYSTEMS, Kept, applies

LENGTH = 128  # tokens of the text for which operations and cache are counted


@dataclass(frozen=True)
class What:
    """One way to treat a model for `results`. Without a criterion nothing is pruned."""

    criterion: str | None = None
    parts: str = "both"
    recovery: bool = False
    ablation: bool = False  # prune at the ratio that heads alone can give, not at the one asked for
    once: bool = False  # nothing in it depends on a seed


WHATS: dict[str, What] = {
    "dense": What(once=True),
    "amp": What("amp"),
    "magnitude": What("magnitude", once=True),  # weights only, no draw
    "random": What("random"),
    "reversed": What("reversed"),
    "amp-recovered": What("amp", recovery=True),
    "dense-recovered": What(recovery=True),  # the control: the same training without any pruning
    "ablation-both": What("amp", ablation=True),
    "ablation-heads": What("amp", "heads", ablation=True),
    "ablation-neurons": What("amp", "neurons", ablation=True),
}


@lru_cache(maxsize=1)
def _loaded(model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A dense model, which the next run in this process most likely wants too; nothing changes it."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return amp.load(model)


def treatment(
    *,
    model: str = "tiny-llama",
    what: str = "dense",
    seed: int = 0,  # of the calibration draw, the random scores and the recovery
    ratio: float = 0.30,  # of all parameters
    limit: int = 200,  # items of each task; 0 takes all
    calibration: int = 64,  # texts
    samples: int = 512,  # rows of recovery
    epochs: int = 2,
    rate: float = 1e-3,  # above the paper's 3e-4, as there are dozens of steps here and thousands there
    out: str = "out",
) -> None:
    """One record of `results`: a model, one of `WHATS`, a seed."""
    torch.manual_seed(seed)  # whatever ran in this process before
    dense, tokenizer = _loaded(model)
    sizes = dict(ratio=ratio, limit=limit or None, calibration=calibration, samples=samples, epochs=epochs, rate=rate)
    record = amp.Record("results", dict(model=model, what=what, seed=seed, **sizes, **vars(WHATS[what])))
    with record.stage("prune"):
        small = treated(dense, tokenizer, WHATS[what], ratio, calibration, seed)
    record.metric("removed", 1 - small.num_parameters() / dense.num_parameters(), unit="of all parameters")
    if WHATS[what].recovery:
        config = amp.RecoveryConfig(samples=samples, epochs=epochs, learning_rate=rate, seed=seed)
        small = _recovered(small, tokenizer, "tinyworld", config, record)
    record.perplexity(amp.perplexity(small, tokenizer))
    record.metric("parameters", small.num_parameters())
    record.accuracy(amp.accuracy(small, tokenizer, limit=limit or None))
    record.write(Path(out) / RECORD)


def check_treatment(*, model: str, what: str, seed: int, ratio: float, limit: int, **_: Any) -> None:
    """Refuse what `treatment` can't do.

    Raises:
        ValueError: an unknown model or treatment, or a number out of range.
    """
    if what not in WHATS:
        raise ValueError(f"Unknown treatment {what!r}; choose from {', '.join(WHATS)}.")
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} must lie between 0 and 1, both excluded.")
    if limit < 0 or limit % 4:
        raise ValueError(f"limit={limit} must be a multiple of 4, as items come in groups of four, or 0 for all.")
    configuration(model)


def treated(
    dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: What, ratio: float, calibration: int, seed: int
) -> PreTrainedModel:
    """The model of a treatment before any recovery."""
    if what.criterion is None:
        return dense
    share = min(ratio, ablation_ratio(dense)) if what.ablation else ratio
    scores = amp.score(dense, amp.calibration(tokenizer, samples=calibration, seed=seed), what.criterion, seed=seed)
    return amp.prune(dense, amp.plan(dense, scores, pruning_ratio=share, parts=what.parts)).model


def ablation_ratio(dense: PreTrainedModel) -> float:
    """The largest share of all parameters that heads alone can give up: all KV groups but one in every layer."""
    anatomy = amp.Anatomy.of(dense)
    return (anatomy.groups - 1) * anatomy.group_cost * anatomy.layers / dense.num_parameters()


def system(
    *,
    model: str = "tiny-llama",
    system: str = "dense",
    ratio: float = 0.0,
    seed: int = 0,
    calibration_text: str = "tinyworld",  # several with commas: as many windows of each
    recovery_text: str = "",  # of LoRA; "": the calibration text
    heldout_text: str = "tinyworld",  # for perplexity; of several the first one is "perplexity", the others "NAME/…"
    local_copies: str = "",  # folder with copies of corpora of the hub
    tasks: str = "tiny",  # or none, or names with commas
    task_folder: str = "",  # of their files, where they are not lm-eval's own
    items: int = 100,  # of each task; 0 takes all
    windows: int = 100,  # of held-out text; 0 takes all
    window: int = 256,  # tokens
    batch: int = 32,  # windows at once
    dtype: str = "float32",  # of measuring
    made_in: str = "float32",  # dtype of products while something is made; sums, weights and streams stay float32
    calibration: int = 64,  # windows
    length: int = 128,  # of each, in tokens
    samples: int = 256,  # rows of LoRA recovery
    epochs: int = 2,
    rate: float = 1e-3,  # as in `treatment`
    rows_at_once: int = 0,  # of a step of LoRA; 0: all
    kept_scores: str = "",  # folder where scores stay for other ratios; then the time of pruning is not recorded
    out: str = "out",
) -> None:
    """One record of `leaderboard`: a model, one of `SYSTEMS`, a ratio, a seed. No path of this machine is in it."""
    torch.manual_seed(seed)  # whatever ran in this process before
    (dense, tokenizer), how = _loaded(model), SYSTEMS[system]
    heldout, sources = several("heldout_text", heldout_text), several("calibration_text", calibration_text)
    weights = sha256(*sorted(located(model).glob("*.safetensors")))
    measured: dict[str, Any] = dict(model_sha256=weights, heldout=_said(heldout), windows=windows or None)
    measured |= dict(heldout_sha256=_hash(heldout, "validation", local_copies))
    measured |= dict(items=(items or None) if tasks != "none" else 0)
    if tasks == "tiny":
        measured["tasks_sha256"] = sha256(*sorted((DATA / "tasks").glob("*.jsonl")))
    elif tasks != "none":
        measured["tasks"] = tasks
    # What is as it was before it could be said otherwise is left out, so that earlier records are comparable.
    measured |= {
        name: value for name, value, was in (("window", window, 256), ("dtype", dtype, "float32")) if value != was
    }
    made: dict[str, Any] = {}
    if how.cuts != "nothing":
        made |= dict(text=_said(sources), calibration=calibration)
        made |= {
            name: value
            for name, value, was in (("length", length, LENGTH), ("dtype", made_in, "float32"))
            if value != was
        }
        made |= dict(text_sha256=_hash(sources, "calibration", local_copies))
    healing = several("recovery_text", recovery_text or calibration_text)
    if how.recovery:
        made |= dict(samples=samples, epochs=epochs, rate=rate)
        made |= dict(recovery_sha256=_hash(healing, "recovery", local_copies))
    named = dict(model=Path(model).name, system=system, label=how.label, cuts=how.cuts, ratio=ratio, seed=seed)
    record = amp.Record(NAME, named | dict(measured=measured, made=made))
    batches = _drawn(tokenizer, sources, local_copies, calibration, length, seed)
    if kept_scores:
        batches = Kept(batches, Path(kept_scores), weights if made_in == "float32" else f"{weights} in {made_in}")
    started = time.perf_counter()
    fast = torch.autocast(dense.device.type, torch.bfloat16, enabled=made_in == "bfloat16")
    with fast:
        small = how.function(dense, tokenizer, batches, ratio, seed)
    if not kept_scores:
        record.metric("pruning seconds", time.perf_counter() - started, unit="s")
    if how.recovery:
        config = amp.RecoveryConfig(
            samples=samples, epochs=epochs, learning_rate=rate, seed=seed, rows_at_once=rows_at_once or None
        )
        with fast:
            small = _recovered(small, tokenizer, text_source(healing[0], local_copies), config, record)
    if how.kept:
        kept, whole = how.kept(dense, ratio), dense.num_parameters()
        record.metric("parameters removed", 1 - kept / whole, unit=f"of the dense model's {whole}")
    else:
        for name, before, now in zip(("parameters", "operations", "cache"), _costs(dense), _costs(small), strict=True):
            record.metric(f"{name} removed", 1 - now / before, unit=f"of the dense model's {before}")
    if dtype != str(small.dtype).removeprefix("torch."):
        small = copy.deepcopy(small).to(getattr(torch, dtype))  # a copy: the dense model stays for the next run
    for text in heldout:
        source, join = perplexity_text(text, local_copies)
        found = amp.perplexity(small, tokenizer, source, window, limit=windows or None, batch_size=batch, join=join)
        record.perplexity(found, "" if text == heldout[0] else f"{Path(text).stem}/")
    if tasks != "none":
        record.accuracy(amp.accuracy(small, tokenizer, tasks, items or None, folder=task_folder))
    record.write(Path(out) / RECORD)


def check_system(
    *,
    model: str,
    system: str,
    ratio: float,
    calibration_text: str,
    heldout_text: str,
    tasks: str,
    local_copies: str = "",
    recovery_text: str = "",
    dtype: str = "float32",
    made_in: str = "float32",
    **numbers: Any,
) -> None:
    """Refuse what `system` can't do.

    Raises:
        ValueError: an unknown model, system or task, a number out of range, a system that is not for this model or
            ratio, a text that is not to be had, or held-out text among the calibration text.
    """
    if system not in SYSTEMS:
        raise ValueError(f"Unknown system {system!r}; choose from {', '.join(SYSTEMS)}.")
    how = SYSTEMS[system]
    if not 0 < ratio < 1 and how.cuts != "nothing":
        raise ValueError(f"ratio={ratio} must lie between 0 and 1, both excluded.")
    if how.recovery and ratio not in RECOVERED:
        raise ValueError(f"{system} is measured at ratio={' or '.join(map(str, RECOVERED))} only.")
    if tasks not in ("tiny", "none"):
        known_tasks(task_names(tasks), numbers.get("task_folder", ""))
    if numbers["items"] < 0 or (tasks == "tiny" and numbers["items"] % 4) or numbers["windows"] < 0:
        raise ValueError("items must be a multiple of 4 and windows at least 0; 0 takes all.")
    if numbers["calibration"] < 2 or numbers["samples"] < 1:
        raise ValueError("calibration must be at least 2, and samples at least 1.")
    check_measured(model, dtype=dtype, made_in=made_in)
    if not applies(how, str(configuration(model).model_type)):
        raise ValueError(f"{system} turns the residual stream, which {model} does not allow.")
    for made, split in ((calibration_text, "calibration"), (recovery_text if how.recovery else "", "recovery")):
        if shared := _shared(made, split, heldout_text, local_copies):
            raise ValueError(f"{shared} texts of heldout_text are in {split}_text too; hold out a text that is not.")


def check_measured(model: str, **dtypes: str) -> None:
    """Refuse a model that is no folder, by which a record could not say what it is of, or unknown; and other types."""
    for name, dtype in dtypes.items():
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"{name}={dtype!r} must be 'float32' or 'bfloat16'.")
    if not located(model).is_dir():
        raise ValueError(f"{model} is not a folder: fetch the model into one, so that a record can say what it is of.")
    configuration(model)


def _said(names: list[str]) -> str:
    return ",".join(Path(name).name for name in names)


def _drawn(
    tokenizer: PreTrainedTokenizerBase, names: list[str], local_copies: str, samples: int, length: int, seed: int
) -> list[Batch]:
    """Calibration text of one source, or as many windows of each of several, whose batches are mixed."""
    sources = [text_source(name, local_copies) for name in names]
    if len(sources) == 1:
        return list(amp.calibration(tokenizer, sources[0], samples=samples, length=length, seed=seed))
    each = [
        amp.calibration(tokenizer, one, samples=samples // len(sources), length=length, batch_size=4, seed=seed)
        for one in sources
    ]
    mixed = [batch for batches in each for batch in batches]
    return random.Random(seed).sample(mixed, len(mixed))


@cache
def _shared(made_text: str, split: str, heldout_text: str, local_copies: str) -> int:
    """Texts that something is made from and measured on."""
    # The splits of the tiny world have one short sentence in common.
    if not made_text or (made_text, heldout_text) == ("tinyworld", "tinyworld"):
        return 0
    made, held = (
        {text for name in several("_text", names) for text in texts(text_source(name, local_copies), of)}
        for names, of in ((made_text, split), (heldout_text, "validation"))
    )
    return len(made & held)


def _recovered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    config: amp.RecoveryConfig,
    record: amp.Record,
) -> PreTrainedModel:
    found = amp.recover(model, tokenizer, source, config=config, progress=False)
    record.metric("trainable", found.trainable, unit="parameters")
    record.metric("recovery seconds", found.seconds, unit="s")
    record.metric("recovery tokens", found.tokens, unit="tokens")
    record.notes["recovery loss"] = [round(step["loss"], 4) for step in found.history]
    return found.model


def _costs(model: PreTrainedModel) -> tuple[float, float, float]:
    """Parameters, multiply-adds of a prompt, and bytes of its cache."""
    return model.num_parameters(), amp.flops(model, LENGTH).prefill, amp.kv_cache_bytes(model, LENGTH)


def _hash(names: list[str], split: str, local_copies: str) -> str:
    """SHA-256 of a text's file, of a corpus its rows; of several texts of those hashes."""
    if len(names) > 1:
        return sha256_of("".join(_hash([name], split, local_copies) for name in names).encode()).hexdigest()
    source = text_source(names[0], local_copies)
    if names[0] in CORPORA:
        return fingerprint(source, split)
    return sha256(DATA / "world" / f"{split}.jsonl" if source == "tinyworld" else Path(source))
