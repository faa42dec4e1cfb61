"""Measure the course's results: `python -m amp_tutorial.reports.results [--models …] [--seeds 3] [--out data/results]`.

Every run leaves one record, `<model>-<what>-<seed>.json`, as soon as it is done; a run whose record is there and was
made with the same settings, weights and data is skipped, so an interrupted command goes on where it stopped. Then
`summary.md` and `picture.png` are written from the records, and with `--readme docs/results.md` picture
and the main table replace what stands between the two result markers of that file.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import amp_tutorial as amp

from ..runs import collection
from . import summary
from .style import marked


@dataclass(frozen=True)
class What:
    """One way to treat a model. Without a criterion nothing is pruned."""

    criterion: str | None = None
    parts: str = "both"
    recovery: bool = False
    ablation: bool = False  # prune at the ratio that heads alone can give, not at the one asked for
    once: bool = False  # nothing in it depends on a seed


WHATS = {
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


@dataclass(frozen=True)
class Settings:
    """What all runs share."""

    ratio: float = 0.30  # of all parameters
    limit: int | None = 200  # items of each task
    calibration: int = 64  # texts
    samples: int = 512  # rows of recovery
    epochs: int = 2
    rate: float = 1e-3  # above the paper's 3e-4, as there are dozens of steps here and thousands there


@dataclass(frozen=True)
class Run:
    """One record: a model, a treatment and a seed (of the calibration draw, the random scores and the recovery)."""

    model: str
    what: str
    seed: int
    settings: Settings

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(model=self.model, what=self.what, seed=self.seed, **vars(self.settings), **vars(WHATS[self.what]))

    def path(self, out: Path) -> Path:
        return out / f"{Path(self.model).name}-{self.what}-{self.seed}.json"

    def done(self, out: Path) -> dict[str, Any] | None:
        """The finished record, if it was made with these settings, weights and data."""
        found = collection.find(out, self.path(out).name)
        marks = ("status", "parameters", "model_sha256", "data_sha256")
        now = _marks(self.model) | {"parameters": self.parameters}
        return found if found is not None and all(found.get(key) == now[key] for key in marks) else None


@cache
def _marks(model: str) -> dict[str, Any]:
    """What a record made now would say about the weights and the data."""
    return amp.Record("results", dict(model=model)).data("ok")


def runs_of(model: str, seeds: int, settings: Settings) -> list[Run]:
    return [Run(model, what, seed, settings) for what, w in WHATS.items() for seed in range(1 if w.once else seeds)]


class Bench:
    """One dense model, loaded once, and the runs on it."""

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = amp.load(name)

    @cached_property
    def ablation_ratio(self) -> float:
        """The largest share of all parameters that heads alone can give up: all KV groups but one in every layer."""
        anatomy = amp.Anatomy.of(self.model)
        return (anatomy.groups - 1) * anatomy.group_cost * anatomy.layers / self.model.num_parameters()

    def pruned(self, run: Run) -> PreTrainedModel:
        """The model of this run before any recovery."""
        what, s = WHATS[run.what], run.settings
        if what.criterion is None:
            return self.model
        ratio = min(s.ratio, self.ablation_ratio) if what.ablation else s.ratio
        batches = amp.calibration(self.tokenizer, samples=s.calibration, seed=run.seed)
        scores = amp.score(self.model, batches, what.criterion, seed=run.seed)
        return amp.prune(self.model, amp.plan(self.model, scores, pruning_ratio=ratio, parts=what.parts)).model

    def do(self, run: Run, out: Path) -> None:
        record = amp.Record("results", run.parameters)
        model = self.pruned(run)
        removed = 1 - model.num_parameters() / self.model.num_parameters()
        record.metric("removed", removed, unit="of all parameters")
        if WHATS[run.what].recovery:
            s = run.settings
            recovery = amp.recover(
                model,
                self.tokenizer,
                config=amp.RecoveryConfig(samples=s.samples, epochs=s.epochs, learning_rate=s.rate, seed=run.seed),
                progress=False,
            )
            model = recovery.model
            record.metric("trainable", recovery.trainable, unit="parameters")
            record.metric("recovery seconds", recovery.seconds, unit="s")
            record.metric("recovery tokens", recovery.tokens, unit="tokens")
            record.notes["recovery loss"] = [round(step["loss"], 4) for step in recovery.history]
        measure(model, self.tokenizer, record, run.settings.limit)
        record.write(run.path(out))


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: amp.Record, limit: int | None) -> None:
    """Perplexity, the tasks and their mean, with 95 % intervals over windows and items, into the record."""
    record.perplexity(amp.perplexity(model, tokenizer))
    record.metric("parameters", model.num_parameters())
    record.accuracy(amp.accuracy(model, tokenizer, limit=limit))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the course's results, one record per run.")
    parser.add_argument("--models", nargs="+", default=list(amp.EMBEDDED), metavar="MODEL")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of everything that has a seed (default 3)")
    parser.add_argument("--ratio", type=float, default=Settings.ratio, help="of all parameters to remove (0.30)")
    parser.add_argument(
        "--limit", type=int, default=Settings.limit, help="items of each task, a multiple of 4 (200); 0 takes all"
    )
    parser.add_argument("--samples", type=int, default=Settings.samples, help="rows of recovery (512)")
    parser.add_argument("--rate", type=float, default=Settings.rate, help="learning rate of recovery (0.001)")
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--readme", type=Path, help="file whose marked part is replaced by picture and table")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.limit < 0 or options.limit % 4:
        parser.error("--seeds must be at least 1, and --limit a multiple of 4 (or 0 for all items)")
    if options.readme:
        try:
            marked(options.readme, summary.BEGIN, summary.END)  # before any work
        except ValueError as error:
            parser.error(str(error))
    settings = Settings(ratio=options.ratio, limit=options.limit or None, samples=options.samples, rate=options.rate)
    _quiet()
    todo = [r for m in options.models for r in runs_of(m, options.seeds, settings) if r.done(options.out) is None]
    bench: tuple[str, Bench] | None = None
    for run in (progress := tqdm(todo, desc="results", unit="run")):
        progress.set_postfix_str(f"{run.model} {run.what} {run.seed}")
        try:
            if bench is None or bench[0] != run.model:
                bench = run.model, Bench(run.model)
            bench[1].do(run, options.out)
        except ValueError as error:
            progress.close()
            print(f"{run.model}, {run.what}, seed {run.seed}: {error}", file=sys.stderr)
            return 1
    others = [m for m in amp.EMBEDDED if m not in options.models]
    found: dict[str, list[dict[str, Any]]] = {}
    for model in sorted([*options.models, *others], key=[*amp.EMBEDDED, *options.models].index):
        records = [r.done(options.out) for r in runs_of(model, options.seeds, settings)]
        if complete := [r for r in records if r is not None]:
            if len(complete) == len(records):  # of the models not asked for, those that were measured before
                found[Path(model).name] = complete
    shared = vars(settings) | {"seeds": options.seeds}
    table = summary.write(found, shared, options.out)
    if options.readme:
        summary.into_readme(options.readme, summary.summarise(found, shared), options.out)
    print(table)
    return 0


def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(4, os.cpu_count() or 1)))


if __name__ == "__main__":
    sys.exit(main())
