"""Every system side by side: `python -m amp_tutorial.reports.leaderboard [--ratios 0.2 0.3 0.5] [--seeds 3] …`.

Each run leaves one record, `<model>-<system>-<ratio>-<seed>.json`, as soon as it is done; a record made with the same
settings, weights and texts is not made again, so an interrupted command goes on where it stopped. A run that fails is
reported at the end, and the others go on. The tables and the picture are written by `boards.py` from the records alone;
`standings.py` says how a system from outside becomes one.

The defaults are what `data/leaderboard` holds. On a model folder and texts of your own, without the tiny tasks:

    python -m amp_tutorial.reports.leaderboard --models my-model --text calibration.jsonl --heldout test.jsonl \\
        --tasks none --out out/leaderboard
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

import amp_tutorial as amp

from ..core.checkpoint import configuration
from ..core.data import texts
from ..files.checkpoints import located, sha256
from ..files.paths import DATA
from ..runs import collection
from . import boards, standings
from .results import _quiet
from .style import marked
from .systems import RECOVERED, SYSTEMS, applies

LENGTH = 128  # tokens of the text for which operations and cache are counted


@dataclass(frozen=True)
class Settings:
    """What all runs share."""

    text: str = "tinyworld"
    heldout: str = "tinyworld"
    tasks: bool = True
    items: int | None = 100  # of each task
    windows: int | None = 100  # of held-out text
    calibration: int = 64  # texts
    samples: int = 256  # rows of LoRA recovery
    epochs: int = 2
    rate: float = 1e-3  # as in `results.py`


@dataclass(frozen=True)
class Run:
    model: str
    system: str
    ratio: float
    seed: int

    @property
    def file(self) -> str:
        return f"{Path(self.model).name}-{self.system}-{self.ratio:g}-{self.seed}.json"

    def parameters(self, settings: Settings) -> dict[str, Any]:
        """All that a finished record must agree with to be kept; of files the name and the SHA-256, no path."""
        s, system, files = settings, SYSTEMS[self.system], sorted(located(self.model).glob("*.safetensors"))
        measured = dict(model_sha256=_sum(*files), heldout=Path(s.heldout).name, windows=s.windows)
        measured |= dict(heldout_sha256=_hash(s.heldout, "validation"), items=s.items if s.tasks else 0)
        if s.tasks:
            measured["tasks_sha256"] = _sum(*sorted((DATA / "tasks").glob("*.jsonl")))
        made = {} if system.cuts == "nothing" else dict(text=Path(s.text).name, calibration=s.calibration)
        if made:
            made |= dict(text_sha256=_hash(s.text, "calibration"))
        if system.recovery:
            made |= dict(samples=s.samples, epochs=s.epochs, rate=s.rate, recovery_sha256=_hash(s.text, "recovery"))
        named = dict(model=Path(self.model).name, system=self.system, label=system.label, cuts=system.cuts)
        return named | dict(ratio=self.ratio, seed=self.seed, measured=measured, made=made)


@cache
def _sum(*files: Path) -> str:
    return sha256(*files)


def _hash(source: str, split: str) -> str:
    return _sum(DATA / "world" / f"{split}.jsonl" if source == "tinyworld" else Path(source))


def done(run: Run, settings: Settings, out: Path) -> bool:
    """Whether the record is there, finished, and made with these settings, weights and texts."""
    found = collection.find(out, run.file)
    return found is not None and found.get("status") == "ok" and found.get("parameters") == run.parameters(settings)


def runs_of(model: str, systems: Sequence[str], ratios: Sequence[float], seeds: int) -> list[Run]:
    """Dense first, then seed by seed, so that a command cut short has every system before a second seed."""
    kind, found = str(configuration(model).model_type), [Run(model, "dense", 0.0, 0)]
    for seed in range(seeds):
        for ratio in ratios:
            for name in systems:
                s = SYSTEMS[name]
                asked = name != "dense" and applies(s, kind) and not (seed and s.once)
                if asked and (not s.recovery or ratio == RECOVERED):
                    found.append(Run(model, name, ratio, seed))
    return found


class Bench:
    """One dense model, loaded once, and the runs on it."""

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = amp.load(name)

    def do(self, run: Run, s: Settings, out: Path) -> None:
        record, system = amp.Record(standings.NAME, run.parameters(s)), SYSTEMS[run.system]
        batches = amp.calibration(self.tokenizer, s.text, samples=s.calibration, seed=run.seed)
        started = time.perf_counter()
        model = system.function(self.model, self.tokenizer, batches, run.ratio, run.seed)
        record.metric("pruning seconds", time.perf_counter() - started, unit="s")
        if system.recovery:
            recovery = amp.recover(
                model,
                self.tokenizer,
                s.text,
                config=amp.RecoveryConfig(samples=s.samples, epochs=s.epochs, learning_rate=s.rate, seed=run.seed),
                progress=False,
            )
            model = recovery.model
            record.metric("recovery seconds", recovery.seconds, unit="s")
            record.metric("recovery tokens", recovery.tokens, unit="tokens")
        if system.kept:
            kept, whole = system.kept(self.model, run.ratio), self.model.num_parameters()
            record.metric("parameters removed", 1 - kept / whole, unit=f"of the dense model's {whole}")
        else:
            self._costs(model, record)
        record.perplexity(amp.perplexity(model, self.tokenizer, s.heldout, limit=s.windows))
        if s.tasks:
            record.accuracy(amp.accuracy(model, self.tokenizer, limit=s.items))
        record.write(out / run.file)

    def _costs(self, model: PreTrainedModel, record: amp.Record) -> None:
        costs = [
            (m.num_parameters(), amp.flops(m, LENGTH).prefill, amp.kv_cache_bytes(m, LENGTH))
            for m in (self.model, model)
        ]
        for name, dense, now in zip(("parameters", "operations", "cache"), *costs, strict=True):
            record.metric(f"{name} removed", 1 - now / dense, unit=f"of the dense model's {dense}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run systems × ratios × models × seeds, one record per run.")
    d = Settings()
    parser.add_argument("--models", nargs="+", default=list(amp.EMBEDDED), metavar="MODEL")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.3, 0.5], help="of all parameters to remove")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of everything that has a seed (3)")
    parser.add_argument("--out", type=Path, default=Path("data/leaderboard"))
    parser.add_argument("--text", default=d.text, help="calibration and recovery: 'tinyworld' or a file")
    parser.add_argument("--heldout", default=d.heldout, help="perplexity: 'tinyworld' (validation) or another file")
    parser.add_argument("--tasks", choices=("all", "none"), default="all", help="the tiny tasks, or perplexity only")
    parser.add_argument("--items", type=int, default=d.items, help="of each task, a multiple of 4 (100); 0 takes all")
    parser.add_argument("--windows", type=int, default=d.windows, help="of held-out text (100); 0 takes all")
    parser.add_argument("--calibration", type=int, default=d.calibration, help="calibration texts (64)")
    parser.add_argument("--samples", type=int, default=d.samples, help="rows of recovery (256)")
    parser.add_argument("--readme", type=Path, help="file whose marked part is replaced by picture and tables")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and write nothing")
    o = parser.parse_args(arguments)
    try:
        settings, runs = _checked(o)
    except ValueError as error:
        parser.error(str(error))
    todo = [run for run in runs if not done(run, settings, o.out)]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished.")
    if o.dry_run:
        print(*(run.file for run in todo), sep="\n")
        return 0
    failed = work(todo, settings, o.out)
    records = standings.read(o.out)
    if any(record["parameters"]["system"] == "dense" for record in records):
        print(boards.write(records, o.out))
        if o.readme:
            boards.into_readme(o.readme, o.out)
    for run, reason in failed:
        print(f"Failed: {run.file}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def work(todo: Sequence[Run], settings: Settings, out: Path) -> list[tuple[Run, str]]:
    """Make each run; the runs that failed, with the reason."""
    _quiet()
    failed, bench, loaded = [], None, ""
    for run in (progress := tqdm(todo, desc="leaderboard", unit="run")):
        progress.set_postfix_str(run.file)
        try:
            if bench is None or loaded != run.model:
                bench, loaded = Bench(run.model), run.model
            bench.do(run, settings, out)
        except Exception as error:  # whatever befalls one run, the others go on
            failed.append((run, f"{type(error).__name__}: {error}"))
    return failed


def _checked(o: argparse.Namespace) -> tuple[Settings, list[Run]]:
    """What was asked for, refused before any work where it cannot be.

    Raises:
        ValueError: counts or ratios out of range, unknown models or texts, held-out text among the calibration text, or
            a README without its markers, or a record from outside that lacks something.
    """
    if o.seeds < 1 or o.calibration < 2 or o.samples < 1 or min(o.items, o.windows) < 0 or o.items % 4:
        raise ValueError(
            "--seeds and --samples must be at least 1, --calibration 2, --windows 0, --items a multiple of 4 (0: all)."
        )
    if not all(0 < ratio < 1 for ratio in o.ratios):
        raise ValueError(f"--ratios {o.ratios} must all lie between 0 and 1, both excluded.")
    names = [Path(model).name for model in o.models]
    if len(set(names)) < len(names):
        raise ValueError(f"Two of the models {names} have one name, and so would their records; rename a folder.")
    if hub := [model for model in o.models if not located(model).is_dir()]:
        raise ValueError(f"{hub[0]} is no folder: fetch the model into one, so that a record can say what it is of.")
    shared = set(texts(o.text, "calibration")) & set(texts(o.heldout, "validation"))
    if shared and (o.text, o.heldout) != ("tinyworld", "tinyworld"):  # its splits have one short sentence in common
        raise ValueError(f"{len(shared)} texts of --heldout are in --text too; hold out a text that is not.")
    standings.read(o.out)
    if o.readme:
        marked(o.readme, boards.BEGIN, boards.END)
    settings = Settings(
        o.text, o.heldout, o.tasks == "all", o.items or None, o.windows or None, o.calibration, o.samples
    )
    return settings, [r for m in o.models for r in runs_of(m, o.systems, sorted(set(o.ratios)), o.seeds)]


if __name__ == "__main__":
    sys.exit(main())
