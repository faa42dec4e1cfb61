"""The one way to execute a notebook: in a process and a folder of its own, with a word on how it ended.

A notebook has come to a good end only if every code cell was completed. papermill takes some others for a success, such
as one that left by SystemExit, and calls the cell that a dead kernel was at completed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import nbformat
import psutil
from nbformat import NotebookNode

from ..files import ROOT, STATIC
from .child_process import DEAD, NOTEBOOK
from .record import STAGES

PROCESS = Path(__file__).with_name("child_process.py")
LAST = 20  # lines of what was said that are kept
FAILURE_CELL = "failure"  # the id of what is put on top of a notebook that failed
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Ended:
    """How an execution ended: with an error, or with none ("") if every code cell was completed."""

    error: str = ""
    cell: NotebookNode | None = None  # which was not completed, if that is known
    log: str = ""  # the last that was said
    notebook: NotebookNode | None = None  # as far as it was executed
    at: str = ""  # where it stopped, if not in a cell

    @property
    def place(self) -> str:
        """The cell's id, the heading above it and its first line, or where else it stopped."""
        if self.at or self.cell is None:
            return self.at
        headings = [""]
        for cell in self.notebook.cells if self.notebook is not None else ():
            if cell.get("id") == self.cell.get("id"):
                break
            if cell.cell_type == "markdown" and cell.get("id") != FAILURE_CELL:
                headings += re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)
        under = f" under “{headings[-1]}”" if headings[-1] else ""
        return f"{self.cell.get('id', '')}{under}: {_first_line(self.cell.source).rstrip(':')}"


def execute_notebook(
    notebook: Path,
    folder: Path,
    parameters: Mapping[str, Any] | None = None,
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
    progress: bool = False,
    output: Path | None = None,
    told: Callable[[str, float], None] | None = None,
) -> Ended:
    """Execute a notebook in a folder, and keep it as far as it was executed, also if it fails.

    Its kernel is this Python, imports this package, draws no sliders, and ends when this process ends.

    Args:
        parameters: what papermill puts behind the cell tagged "parameters".
        limit: seconds after which it is stopped.
        environment: variables beside those of this process.
        progress: show papermill's progress over cells.
        output: where it is kept; notebook.ipynb in the folder if nothing is said.
        told: called with the name and the seconds of each stage of its record, as soon as that is over.
    """
    output = output or folder / NOTEBOOK
    asked = dict(notebook=str(notebook), output=str(output), parameters=dict(parameters or {}), progress=progress)
    with _stages(told) as variable:
        stopped, error, log = _execute(asked, folder, limit, {**(environment or {}), **variable})
    nb = _read(output)
    if nb is None:
        return Ended(error or "it left no notebook", None, log)
    cell, why = _not_completed(nb, well=not error)
    return Ended(error if stopped else why or error, cell, log, nb)


@contextmanager
def _stages(told: Callable[[str, float], None] | None) -> Iterator[dict[str, str]]:
    """Follow the stages that a run's record tells of, by the environment variable that is given."""
    if told is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder, open(path := Path(folder) / "stages", "w+", encoding="utf-8") as file:
        over = Event()

        def follow() -> None:
            while True:
                last = over.wait(0.5)
                for line in file.readlines():
                    stage = json.loads(line)
                    told(stage["name"], stage["seconds"])
                if last:
                    return

        thread = Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield {STAGES: str(path)}
        finally:
            over.set()
            thread.join()


def _execute(
    asked: Mapping[str, Any], folder: Path, limit: float | None, environment: Mapping[str, str]
) -> tuple[bool, str, str]:
    """Whether it was stopped, and not by itself; papermill's error; the last that was said."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:  # not on a disk that may be full
        child = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS)],  # -P: what lies beside it hides no library
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=None if asked["progress"] else log,
            env={**os.environ, **own_environment(), **environment},
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends that one
        )
        try:
            child.communicate(json.dumps({**asked, "parent": os.getpid()}), timeout=limit)
        except subprocess.TimeoutExpired:
            return True, f"stopped after {limit:g} seconds, the limit", ""
        finally:
            end(child)
        said = last_lines(log)
    tail = "\n".join(said)
    if child.returncode == DEAD:
        return True, "its kernel died: killed, or crashed, perhaps because memory ran out", tail
    if child.returncode < 0:
        return True, f"the process was killed (signal {-child.returncode})", tail
    return False, (said or ["papermill failed and said nothing"])[-1] if child.returncode else "", tail


def own_environment() -> dict[str, str]:
    """What a process has in its environment, so that it is this Python and imports this package."""
    search = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    # The kernel is to be this Python, whatever a user has installed under the name python3.
    return {STATIC: "1", "PYTHONPATH": search, "JUPYTER_PREFER_ENV_PATH": "1"}


def end(child: subprocess.Popen[str]) -> None:
    """End a process, if it has not ended, and all those below it."""
    if child.poll() is None:
        below = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()


def last_lines(log: Any) -> list[str]:
    """The last lines of a file, from where it stands."""
    log.seek(0)
    return [line.rstrip() for line in log if line.strip()][-LAST:]


def _read(path: Path) -> NotebookNode | None:
    """A notebook; None if it is not there or torn."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception:  # whatever half a notebook makes nbformat say
        return None


def _not_completed(nb: NotebookNode, well: bool) -> tuple[NotebookNode | None, str]:
    """The cell that was not completed, and why; (None, "") if all were.

    Args:
        well: papermill came to a good end. Otherwise, where no cell has an error, the last one begun is where it
            stopped; papermill calls that one and all after it completed.
    """
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in code:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return cell, _first_line(COLOUR.sub("", f"{output.ename}: {output.evalue}").strip())
    if not well:
        begun = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
        return (begun[-1] if begun else None), ""
    for cell in code:
        if cell.execution_count is None or cell.metadata.get("papermill", {}).get("status") != "completed":
            return cell, "this cell was not executed to its end"
    return None, ""


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")
