"""What the sweeps `results.yaml` and `leaderboard.yaml` call: one model made smaller in one way, and measured.

Each of the two functions leaves one record. What a `check_…` beside it refuses is refused before anything is executed.
"""

import time
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import amp_tutorial as amp

from ..core.checkpoint import configuration
from ..files.checkpoints import located, sha256
from ..files.paths import DATA
from ..files.texts import texts
from ..runs.execute import RECORD
from .standings import NAME
from .systems import RECOVERED, SYSTEMS, applies

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
    calibration_text: str = "tinyworld",  # of calibration and recovery
    heldout_text: str = "tinyworld",  # for perplexity
    tasks: str = "tiny",  # or none
    items: int = 100,  # of each task; 0 takes all
    windows: int = 100,  # of held-out text; 0 takes all
    calibration: int = 64,  # texts
    samples: int = 256,  # rows of LoRA recovery
    epochs: int = 2,
    rate: float = 1e-3,  # as in `treatment`
    out: str = "out",
) -> None:
    """One record of `leaderboard`: a model, one of `SYSTEMS`, a ratio, a seed. No path of this machine is in it."""
    torch.manual_seed(seed)  # whatever ran in this process before
    (dense, tokenizer), how = _loaded(model), SYSTEMS[system]
    weights = sha256(*sorted(located(model).glob("*.safetensors")))
    measured: dict[str, Any] = dict(model_sha256=weights, heldout=Path(heldout_text).name, windows=windows or None)
    measured |= dict(heldout_sha256=_hash(heldout_text, "validation"), items=(items or None) if tasks == "tiny" else 0)
    if tasks == "tiny":
        measured["tasks_sha256"] = sha256(*sorted((DATA / "tasks").glob("*.jsonl")))
    made: dict[str, Any] = {}
    if how.cuts != "nothing":
        made |= dict(text=Path(calibration_text).name, calibration=calibration)
        made |= dict(text_sha256=_hash(calibration_text, "calibration"))
    if how.recovery:
        made |= dict(samples=samples, epochs=epochs, rate=rate, recovery_sha256=_hash(calibration_text, "recovery"))
    named = dict(model=Path(model).name, system=system, label=how.label, cuts=how.cuts, ratio=ratio, seed=seed)
    record = amp.Record(NAME, named | dict(measured=measured, made=made))
    batches = amp.calibration(tokenizer, calibration_text, samples=calibration, seed=seed)
    started = time.perf_counter()
    small = how.function(dense, tokenizer, batches, ratio, seed)
    record.metric("pruning seconds", time.perf_counter() - started, unit="s")
    if how.recovery:
        config = amp.RecoveryConfig(samples=samples, epochs=epochs, learning_rate=rate, seed=seed)
        small = _recovered(small, tokenizer, calibration_text, config, record)
    if how.kept:
        kept, whole = how.kept(dense, ratio), dense.num_parameters()
        record.metric("parameters removed", 1 - kept / whole, unit=f"of the dense model's {whole}")
    else:
        for name, before, now in zip(("parameters", "operations", "cache"), _costs(dense), _costs(small), strict=True):
            record.metric(f"{name} removed", 1 - now / before, unit=f"of the dense model's {before}")
    record.perplexity(amp.perplexity(small, tokenizer, heldout_text, limit=windows or None))
    if tasks == "tiny":
        record.accuracy(amp.accuracy(small, tokenizer, limit=items or None))
    record.write(Path(out) / RECORD)


def check_system(
    *, model: str, system: str, ratio: float, calibration_text: str, heldout_text: str, tasks: str, **numbers: Any
) -> None:
    """Refuse what `system` can't do.

    Raises:
        ValueError: an unknown model, system or choice of tasks, a number out of range, a system that is not for this
            model or ratio, or held-out text among the calibration text.
    """
    if system not in SYSTEMS:
        raise ValueError(f"Unknown system {system!r}; choose from {', '.join(SYSTEMS)}.")
    how = SYSTEMS[system]
    if not 0 < ratio < 1 and how.cuts != "nothing":
        raise ValueError(f"ratio={ratio} must lie between 0 and 1, both excluded.")
    if how.recovery and ratio != RECOVERED:
        raise ValueError(f"{system} is measured at ratio={RECOVERED} only.")
    if tasks not in ("tiny", "none"):
        raise ValueError(f"tasks={tasks!r} must be 'tiny' or 'none'.")
    if numbers["items"] < 0 or numbers["items"] % 4 or numbers["windows"] < 0:
        raise ValueError("items must be a multiple of 4 and windows at least 0; 0 takes all.")
    if numbers["calibration"] < 2 or numbers["samples"] < 1:
        raise ValueError("calibration must be at least 2, and samples at least 1.")
    if not located(model).is_dir():
        raise ValueError(f"{model} is not a folder: fetch the model into one, so that a record can say what it is of.")
    if not applies(how, str(configuration(model).model_type)):
        raise ValueError(f"{system} turns the residual stream, which {model} does not allow.")
    if shared := _shared(calibration_text, heldout_text):
        raise ValueError(f"{shared} texts of heldout_text are in calibration_text too; hold out a text that is not.")


@cache
def _shared(calibration_text: str, heldout_text: str) -> int:
    found = set(texts(calibration_text, "calibration")) & set(texts(heldout_text, "validation"))
    # The splits of the tiny world have one short sentence in common.
    return 0 if (calibration_text, heldout_text) == ("tinyworld", "tinyworld") else len(found)


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
    """Parameters, multiply-accumulates of a prompt, and bytes of its cache."""
    return model.num_parameters(), amp.flops(model, LENGTH).prefill, amp.kv_cache_bytes(model, LENGTH)


def _hash(source: str, split: str) -> str:
    return sha256(DATA / "world" / f"{split}.jsonl" if source == "tinyworld" else Path(source))
