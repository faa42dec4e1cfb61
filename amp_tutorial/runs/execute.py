"""Execute one run, strictly, into a folder that is whole or not there.

    OUT/ID/record.json, notebook.ipynb     finished: put there by one rename (of a function without a notebook)
    OUT/failed/ID/…                        its last failure, with the failing cell on top, or failure.txt
    OUT/corrupt/ID-1/…, OUT/replaced/…     what stood in the way of a new result: kept, and counted no more
    OUT/.ID.PID.part/…                     under way; what a dead process left is removed by the next sweep
    OUT/.locks/ID.lock                     held by the process that executes; a lock vanishes with its process

A run counts if every code cell was completed, or the function returned, and the record left is valid and says ok.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat
from filelock import FileLock, Timeout

from ..files.atomic import expanded, write_json, write_text
from . import record as records
from .child_process import NOTEBOOK
from .functions import call, is_function
from .identity import absolute, code_of, data_of, id_of, parts
from .notebooks import FAILURE_CELL, Ended, execute_notebook
from .parameters import FOLDERS

RECORD, FAILURE = "record.json", "failure.txt"
CHANGED = "this package's code or the notebook was changed since; the same command runs it as it is now"
GONE = (
    "{} is no longer there (a drive that was unmounted?); once it is, the same command goes on, and keeps what it holds"
)
WRITTEN: set[Path] = set()  # folders of runs that this process found or made


@dataclass(frozen=True)
class Job:
    """One run: plain data, so that it can be sent to another machine that shares the disk."""

    notebook: str  # its path; or a function, as package.module:function
    parameters: dict[str, Any]  # all of them
    id: str
    name: str
    code: Mapping[str, Any] = field(default_factory=dict)  # what the name was made by; see `identity.code_of`

    def __post_init__(self) -> None:
        """Local paths count from here on, not from the folder in which the run will be executed."""
        if not is_function(self.notebook):
            object.__setattr__(self, "notebook", str(Path(self.notebook).resolve()))
        object.__setattr__(self, "parameters", absolute(self.parameters))


@dataclass(frozen=True)
class Outcome:
    """What became of a run: "ok", "failed", "finished" (it was there already) or "busy" (another process runs it)."""

    id: str
    status: str
    seconds: float = 0.0
    error: str = ""
    cell: str = ""  # of the error: id and first line
    folder: str = ""


def job(notebook: Path | str, parameters: Mapping[str, Any], name: str = "") -> Job:
    """The run of a notebook or function with these parameters (all of them)."""
    made = parts(notebook, parameters)
    return Job(str(notebook), dict(parameters), id_of(made), name or Path(notebook).stem, made["code"])


def refuse(job: Job) -> None:
    """Refuse what a notebook of the course or a function cannot be asked, before any work.

    Raises:
        ValueError: what it is, after the name of the run; see `parameter_values.refuse`.
    """
    if is_function(job.notebook) or Path(job.notebook).parent in FOLDERS:  # in other notebooks names may mean anything
        from .parameter_values import refuse  # only now: it takes torch along

        try:
            refuse(job.notebook, job.parameters)
        except ValueError as error:
            raise ValueError(f"{job.name}: {error}") from error


def finished(out: str | Path, run: str) -> dict[str, Any] | None:
    """The record of a finished run; None if there is none that is whole, says ok and is of this run."""
    try:
        record = records.read(Path(out) / run / RECORD)
    except ValueError:
        return None
    return record if record["status"] == "ok" and record.get("identity") in (None, run) else None


def corrupt(out: str | Path) -> Iterator[str]:
    """A sentence for each folder of a run whose record is not whole."""
    for path in sorted(Path(out).glob("*/" + RECORD)):
        try:
            records.read(path)
        except ValueError as error:
            yield str(error)


def clean(out: str | Path) -> None:
    """Remove what dead processes left half-written: nobody holds its lock."""
    for part in Path(out).glob(".*.part"):
        lock = FileLock(Path(out) / ".locks" / f"{part.name.split('.')[1]}.lock")
        with suppress(Timeout, OSError), lock.acquire(timeout=0):
            shutil.rmtree(part, ignore_errors=True)


def writable(out: str | Path) -> Path:
    """The folder of runs, made if need be.

    Raises:
        ValueError: nothing can be written there.
    """
    out = expanded(out).absolute()
    if out in WRITTEN and not (out / ".locks").is_dir():  # made anew, it would hide what the drive will bring back
        raise ValueError(GONE.format(out))
    try:
        (out / ".locks").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ValueError(f"Cannot write into {out}: {error.strerror}; name another folder with --out.") from error
    WRITTEN.add(out)
    return out


def could_write(out: str | Path) -> None:
    """Refuse a folder of runs that could not be made or written into, without making it.

    Raises:
        ValueError: no name of a folder, something else in its place, or nothing can be written there.
    """
    if not str(out).strip():
        raise ValueError("--out is empty; name a folder, or leave it out.")
    there = expanded(out).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written" if there.is_dir() else "is no folder"
        raise ValueError(f"Cannot write into {out}: {there} {why}; name another folder with --out.")


def execute(
    job: Job,
    out: str | Path,
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
    progress: bool = False,
    again: bool = False,
    told: Callable[[str, float], None] | None = None,
) -> Outcome:
    """Run a job unless it is finished or under way elsewhere. Whatever befalls it is in the outcome.

    Args:
        limit: seconds after which the run is stopped, and has failed.
        environment: variables beside those of this process.
        progress: show papermill's progress over cells.
        again: run it even if it is finished; the earlier result is kept in OUT/replaced.
        told: called with the name and the seconds of each stage of a notebook, as soon as that is over.
    """
    started = time.monotonic()
    try:
        out = writable(out)
        part = out / f".{job.id}.{os.getpid()}.part"
        with FileLock(out / ".locks" / f"{job.id}.lock").acquire(timeout=0):
            if not again and finished(out, job.id):
                return Outcome(job.id, "finished", folder=str(out / job.id))
            try:
                outcome = _run(job, out, part, limit, environment or {}, progress, told)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except Timeout:
        return Outcome(job.id, "busy")
    except Exception as error:  # the disk is full, the notebook is gone; a sweep goes on with its other runs
        outcome = Outcome(job.id, "failed", error=str(error) or type(error).__name__)
    return replace(outcome, seconds=round(time.monotonic() - started, 1))


def _run(
    job: Job,
    out: Path,
    part: Path,
    limit: float | None,
    environment: Mapping[str, str],
    progress: bool,
    told: Callable[[str, float], None] | None,
) -> Outcome:
    code = code_of(job.notebook, job.parameters)  # refuses what is no notebook before any work
    if code != (job.code or code):
        return Outcome(job.id, "failed", error=f"not started: {CHANGED}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    given = job.parameters | ({"out": str(part)} if "out" in job.parameters else {})
    if is_function(job.notebook):
        ended = call(job.notebook, part, given, limit, environment)
    else:
        ended = execute_notebook(Path(job.notebook), part, given, limit, environment, progress, told=told)
    if not (out / ".locks").is_dir():
        return Outcome(job.id, "failed", error=GONE.format(out))
    error, record = ended.error, None
    try:
        record = _only_record(part)
        if not error and record["status"] != "ok":
            error = f"its record says {record['status']}; the last cell must finish it"
    except ValueError as wrong:
        error = error or str(wrong)
    if not error and code_of(job.notebook, job.parameters) != code:
        error = f"its numbers may be of either code: {CHANGED}"
    final = out / job.id if not error else out / "failed" / job.id
    try:
        if error:
            failure = dict(status="failed", error=dict(cell=ended.place, message=error))
            record = (record or records.Record(job.name, job.parameters).data("running")) | failure
        assert record is not None
        if "out" in record["parameters"]:
            record["parameters"]["out"] = str(
                final.relative_to(Path.cwd()) if final.is_relative_to(Path.cwd()) else final
            )
        hashes = {name: value for name, value in data_of(job.parameters).items() if len(value) == 64}
        record |= dict(identity=job.id, notebook_sha256=code.get("notebook", code.get("function")))
        if record["schema"] == 2:
            record |= dict(data=hashes, notes=record["notes"] | {"package code sha256": code["package"]})
        if error:
            _keep_failure(part, job.notebook, record, ended, error)
        else:
            records.check(record, str(final / RECORD))
            write_json(part / RECORD, record)
        _publish(part, final, again=not error and finished(out, job.id) is not None)
    except (OSError, ValueError) as lost:
        error = f"{error}; and it could not be kept: {lost}" if error else f"it could not be kept: {lost}"
        return Outcome(job.id, "failed", error=error, cell=ended.place)
    if not error:
        shutil.rmtree(out / "failed" / job.id, ignore_errors=True)
        return Outcome(job.id, "ok", folder=str(final))
    return Outcome(job.id, "failed", error=error, cell=ended.place, folder=str(final))


def _publish(part: Path, final: Path, again: bool) -> None:
    """Move a folder to its place at once. A failure there gives way; a result, even a corrupted one, is set aside."""
    final.parent.mkdir(exist_ok=True)
    if final.parent.name == "failed":
        shutil.rmtree(final, ignore_errors=True)
    elif final.exists():
        shelf = final.parent / ("replaced" if again else "corrupt")
        shelf.mkdir(exist_ok=True)
        number = next(n for n in range(1, 1 << 30) if not (shelf / f"{final.name}-{n}").exists())
        final.rename(shelf / f"{final.name}-{number}")
    part.rename(final)


def _only_record(folder: Path) -> dict[str, Any]:
    """The one record that a run left, put where it belongs.

    Raises:
        ValueError: none, more than one, or one that is not valid.
    """
    found = [path for path in (folder / RECORD, *folder.glob("records/*.json")) if path.is_file()]
    if len(found) != 1:
        raise ValueError(f"it left {len(found) or 'no'} records; a run writes one, {RECORD} in the folder `out`")
    record = records.read(found[0])
    found[0].replace(folder / RECORD)
    if found[0].parent != folder and not any(found[0].parent.iterdir()):
        found[0].parent.rmdir()
    return record


def _keep_failure(folder: Path, original: str, record: Mapping[str, Any], ended: Ended, error: str) -> None:
    """Put the failing cell and what was said on top of the notebook, and the record beside it; of a function a text."""
    write_json(folder / RECORD, dict(record))
    if is_function(original):
        text = [f"{original} failed", error, ended.at, ended.log]
        write_text(folder / FAILURE, "\n\n".join(filter(None, text)) + "\n")
        return
    nb = ended.notebook or nbformat.read(original, as_version=4)
    parts = ["# This run failed", error]
    parts += [f"Its cell:\n\n```python\n{ended.cell.source}\n```"] if ended.cell is not None else []
    parts += [f"The last that was said:\n\n```text\n{ended.log}\n```"] if ended.log else []
    nb.cells.insert(0, nbformat.v4.new_markdown_cell("\n\n".join(parts), id=FAILURE_CELL))
    nbformat.write(nb, folder / NOTEBOOK)
