"""What a sweep would do, without doing it: each run, and what it is expected to need."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .execute import Job, finished


def forecast(jobs: Iterable[Job], out: Path, here: bool = True) -> tuple[int, int]:
    """Print one line for each run; how many are to run, and how many are finished.

    Args:
        jobs: the runs; those with the same id are printed once.
        out: the folder of runs; it need not exist, and nothing is written.
        here: the runs are to be executed on this machine, so its budget is compared with what they need.
    """
    seen: set[str] = set()
    there, seconds = 0, 0.0
    for job in jobs:
        if job.id in seen:
            continue
        seen.add(job.id)
        text = "finished"
        if finished(out, job.id) is not None:
            there += 1
        else:
            text, time = cost(job.parameters, here)
            seconds += time
        print(f"{job.name} ({job.id}): {text}")
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
        return f"its needs are not known, its notebook has no parameter {error.args[0]}", 0.0


def _duration(seconds: float) -> str:
    from .requirements import duration

    return duration(seconds)
