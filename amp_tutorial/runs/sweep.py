"""Execute a grid of runs: what is finished is skipped, so that the same command goes on after any interruption.

A run's folder appears in one piece when the run is finished, and its lock vanishes with the process that holds it.
So several sweeps can share a folder, on one machine or on several, and each may be killed at any time.
"""

import argparse
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..files.atomic import expanded
from .execute import Job, Outcome, clean, could_write, finished, job, refuse, writable
from .grid import Grid, read
from .workers import Cluster, Local, Workers

OUT = "out/runs"
AHEAD = 2  # runs handed to the workers for each that they can execute, so that none waits for work
POLL = 2.0  # seconds until a run that another process executes is looked at again
WORD = 300.0  # seconds after which a sweep without a terminal says that it is still at work


@dataclass
class Summary:
    """What became of the runs of a sweep."""

    out: Path
    ok: int = 0  # executed by this sweep
    failed: int = 0
    finished: int = 0  # were there, or came from another sweep
    seconds: float = 0.0  # that those executed took, one after the other
    unkept: int = 0  # of the finished ones: whose model is asked for now, and was not kept then

    @property
    def done(self) -> int:
        return self.ok + self.failed + self.finished

    @property
    def status(self) -> int:
        """The exit status: 1 if a run failed, or a model that is asked for is not there; else 0."""
        return int(self.failed > 0 or self.unkept > 0)

    def __str__(self) -> str:
        text = f"{self.done} runs: {self.ok} executed, {self.finished} were finished"
        text += f", {self.failed} failed" + (f"; see {self.out / 'failed'}." if self.failed else ".")
        if self.unkept:
            text += (
                f" The models of {self.unkept} finished runs were not kept then: give another --out, or take their "
                "folders away, to make and keep them."
            )
        return text


def sweep(
    grid: Grid,
    out: str | Path = OUT,
    jobs: int | None = None,
    scheduler: str | None = None,
    shard: tuple[int, int] = (1, 1),
    limit: float | None = None,
    yes: bool = False,
    dry_run: bool = False,
) -> Summary:
    """Execute what is not finished of a grid, here or on a Dask cluster.

    Args:
        grid: the runs; those with the same id are executed once.
        out: the folder of runs.
        jobs: runs at the same time on this machine; default one for each GPU, or one.
        scheduler: address of a Dask scheduler; its workers execute the runs.
        shard: (i, n): only the i-th of n parts. Parts are disjoint, complete, and the same on every machine.
        limit: seconds for one run.
        yes: more than 10,000 runs are meant.
        dry_run: only print what would run, and what it is expected to need.

    Raises:
        ValueError: a mistake in the input or on the cluster, before anything is executed.
        ConnectionError: the cluster's scheduler is gone.
    """
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"The shard {shard[0]}/{shard[1]} does not exist; write 1/{max(shard[1], 1)} for the first.")
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be at least 1, not {jobs}.")
    if scheduler is not None and not scheduler.strip():
        raise ValueError("--scheduler is empty; give an address such as tcp://HOST:8786, or leave it out to run here.")
    if jobs is not None and scheduler is not None:
        raise ValueError("--jobs is for runs on this machine; on a cluster its workers say how many run at once.")
    if limit is not None and not 0 < limit < float("inf"):
        raise ValueError(f"--limit must be more than 0 seconds and a finite number, not {limit}.")
    address = re.fullmatch(r"(tcp|tls|ws|wss|ucx)://[^/\s:]+(?::(\d+))?", (scheduler or "").strip())
    if scheduler is not None and (address is None or int(address[2] or 0) > 65535):
        raise ValueError(f"--scheduler {scheduler[:80]} is no address; give one such as tcp://HOST:8786.")
    could_write(out)
    out, grid = expanded(out).absolute(), grid.confirmed(yes)
    total = 0
    for run in _jobs(grid, shard):  # finds a model or a text that is missing before any work
        refuse(run)
        total += 1
    if dry_run:
        return Summary(out, finished=forecast(_jobs(grid, shard), out, here=scheduler is None)[1])
    summary = Summary(out)
    workers: Workers = Cluster(scheduler, out, limit) if scheduler else Local(out, limit, jobs)
    try:
        clean(writable(out))
        with tqdm(total=total, unit="run", smoothing=0, disable=None) as bar:
            _execute(_jobs(grid, shard), workers, summary, bar)
    finally:
        workers.close()
    return summary


def records_of(grid: Grid, out: str | Path) -> Iterator[tuple[Job, dict[str, Any] | None]]:
    """Each run of a grid with its record, as a sweep of that grid left it in `out`; None if it is not finished."""
    for run in _jobs(grid, (1, 1)):
        yield run, finished(out, run.id)


def _jobs(grid: Grid, shard: tuple[int, int]) -> Iterator[Job]:
    for point in grid:
        run = job(point.notebook, point.effective, point.name)
        if int(run.id, 16) % shard[1] == shard[0] - 1:
            yield run


def _execute(todo: Iterator[Job], workers: Workers, summary: Summary, bar: Any) -> None:
    """Keep the workers busy until nothing is left. Kept: runs in flight, and the ids of those that failed."""
    flying: dict[str, str] = {}
    waiting: deque[tuple[float, Job]] = deque()  # busy elsewhere; when to look again
    failed: set[str] = set()
    told, began = False, time.monotonic()
    last = began
    while True:
        while len(flying) < AHEAD * workers.slots:
            again = bool(waiting) and waiting[0][0] <= time.monotonic()
            run = waiting.popleft()[1] if again else next(todo, None)
            if run is None:
                break
            if run.id in flying or run.id in failed:  # it stands twice in the grid
                _skip(bar, -1, 0)
            elif finished(summary.out, run.id) is not None:
                summary.finished += 1
                kept = (summary.out / run.id / "model").is_dir()
                summary.unkept += bool(run.parameters.get("keep_model")) and not kept
                _skip(bar, 0, 1)
            else:
                if (folder := summary.out / run.id).exists():
                    corrupt = summary.out / "corrupt"
                    bar.write(f"{folder} does not hold a valid record: it is kept in {corrupt}, and run again.")
                workers.submit(run)
                flying[run.id] = run.name
        if not flying and not waiting:
            return
        if not flying:
            if not told:
                bar.write(f"Other processes execute what is left ({len(waiting)}); waiting for them.")
            told = True
            time.sleep(max(0.0, waiting[0][0] - time.monotonic()))
        elif (found := workers.take(POLL)) is not None:
            run, outcome = found
            del flying[run.id]
            if outcome.status == "busy":
                waiting.append((time.monotonic() + POLL, run))
                continue
            if outcome.status == "failed":
                failed.add(run.id)
            _count(run, outcome, summary, bar)
            last = time.monotonic()
        elif bar.disable and time.monotonic() - last >= WORD:
            last = time.monotonic()
            bar.write(_still(list(flying.values())[: workers.slots], summary, bar.total, last - began))


def _still(names: list[str], summary: Summary, total: int, seconds: float) -> str:
    """Where there is no terminal: what is running, and how long the rest may take if it takes what is over took."""
    executed, rest = summary.ok + summary.failed, ""
    if executed:
        whole = summary.seconds / executed * (total - summary.done) / len(names)
        under_way = seconds - summary.seconds / len(names)  # of those that are running
        rest = f", roughly {tqdm.format_interval(max(0.0, whole - under_way))} left"
    so_far = f"{summary.done} of {total} runs are over after {tqdm.format_interval(seconds)}"
    return f"{so_far}, now at {', '.join(names)}{rest}"


def _skip(bar: Any, total: int, done: int) -> None:
    """Change what the progress shows without counting it as work, from which it takes the time left."""
    if not bar.disable:
        bar.total, bar.initial, bar.n = bar.total + total, bar.initial + done, bar.n + done
        bar.refresh()


def _count(run: Job, outcome: Outcome, summary: Summary, bar: Any) -> None:
    setattr(summary, outcome.status, getattr(summary, outcome.status) + 1)
    summary.seconds += outcome.seconds
    text = f"{outcome.status} {run.name} ({run.id}, {outcome.seconds:.0f} s)"
    if outcome.status == "failed":
        cell = f" in the cell {outcome.cell}" if outcome.cell else ""
        text += f"{cell}: {outcome.error}" + (f" See {outcome.folder}." if outcome.folder else "")
    bar.write(text)
    bar.update()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `amp-tutorial sweep` takes."""
    parser.add_argument("grid", metavar="GRID.yaml", help="blocks of notebook, preset, fixed and grid")
    parser.add_argument("--out", default=OUT, help=f"the folder of runs; default {OUT}")
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="the same in every run"
    )
    parser.add_argument("--jobs", type=int, help="runs at the same time on this machine (one for each GPU, or one)")
    parser.add_argument("--scheduler", metavar="tcp://…", help="run on the workers of this Dask scheduler")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="i/n", help="only the i-th of n parts")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="a run that takes longer has failed")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and what it needs; write nothing")
    parser.add_argument("--yes", action="store_true", help="more than 10,000 runs are meant")


def _shard(text: str) -> tuple[int, int]:
    index, slash, of = text.partition("/")
    if not (slash and text.isascii() and index.isdecimal() and of.isdecimal() and len(of) <= 9):
        raise argparse.ArgumentTypeError(f"{text!r} must be two numbers such as 1/4, for the first of four")
    return int(index), int(of)


def command(options: argparse.Namespace) -> int:
    """`amp-tutorial sweep`; the exit status.

    Raises:
        ValueError: a mistake in the input, in one sentence.
    """
    grid = read(options.grid, options.yes, options.parameter)
    try:
        summary = sweep(
            grid,
            options.out,
            options.jobs,
            options.scheduler,
            options.shard,
            options.limit,
            options.yes,
            options.dry_run,
        )
    except ConnectionError as error:
        print(error, file=sys.stderr)
        return 1
    if not options.dry_run:
        print(summary)
    return summary.status


def forecast(jobs: Iterable[Job], out: Path, here: bool = True) -> tuple[int, int]:
    """Print one line for each run; how many are to run, and how many are finished.

    Args:
        jobs: the runs; those with the same id are printed once.
        out: the folder of runs; it need not exist, and nothing is written.
        here: the runs are to be executed on this machine, so its budget is compared with what they need.
    """
    seen: set[str] = set()
    there, seconds = 0, 0.0
    for run in jobs:
        if run.id in seen:
            continue
        seen.add(run.id)
        text = "finished"
        if finished(out, run.id) is not None:
            there += 1
        else:
            text, time = cost(run.parameters, here)
            seconds += time
        print(f"{run.name} ({run.id}): {text}")
    total = f", roughly {_duration(seconds)} one after the other" if seconds else ""
    left = len(seen) - there
    print(f"{left} to run{total}, {there} finished. This was a dry run: nothing was executed or written.")
    return left, there


def cost(parameters: Mapping[str, Any], here: bool = True) -> tuple[str, float]:
    """What a run is expected to need, in words, and its seconds; of a notebook without a model nothing is known."""
    if "model" not in parameters:
        return "to run", 0.0
    from . import requirements as needs  # only now: it takes torch along

    try:
        found = needs.needs_of(dict(parameters))
        text = f"{needs.size(found.peak)} of memory, {needs.size(found.disk)} of disk, "
        text += f"{needs.size(found.download)} to download, " if found.download else "nothing to download, "
        text += f"roughly {needs.duration(found.seconds)} on {found.speed.of or 'this machine'}"
        try:
            if here:
                found.check(needs.has(parameters))
        except ValueError as error:
            text += f". Not on this machine: {error}"
        return text, found.seconds
    except (ValueError, OSError) as error:
        return f"its needs are not known: {error}", 0.0
    except KeyError as error:
        return f"its needs are not known, it has no parameter {error.args[0]}", 0.0


def _duration(seconds: float) -> str:
    from .requirements import duration

    return duration(seconds)
