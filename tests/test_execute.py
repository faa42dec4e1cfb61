"""One run, strictly: what counts, what is kept of a failure, and what dies with whom."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest
from filelock import FileLock
from helpers import RECORD, small

from amp_tutorial.files import ROOT
from amp_tutorial.runs import execute, notebooks, package_code
from amp_tutorial.runs import record as records
from amp_tutorial.runs.parameters import checked, parameters_of

# Leaves the ids of its kernel and of a process that the kernel started, at once, and then never ends.
SLOW = """import os, pathlib, subprocess
below = subprocess.Popen(["sleep", "600"])
pathlib.Path(word + "~").write_text(f"{os.getpid()} {below.pid}")
pathlib.Path(word + "~").rename(word)
below.wait()"""
# PR_GET_PDEATHSIG: which signal the system sends when papermill's process has ended.
DIES_WITH_PARENT = """import ctypes, sys
signal = ctypes.c_int()
assert sys.platform != "linux" or (ctypes.CDLL(None).prctl(2, ctypes.byref(signal)), signal.value) == (0, 9)"""
WITHIN = 300.0  # seconds; a generous limit for what takes one


def job(notebook: Path, **given: object) -> execute.Job:
    return execute.job(notebook, checked(parameters_of(notebook), given, "test"))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended may stay listed until its new parent asks for it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left(out: Path) -> list[str]:
    """What is in the folder of runs, but for locks."""
    return sorted(path.name for path in out.iterdir() if path.name != ".locks")


def test_a_finished_run_is_one_folder_and_is_not_run_again(tmp_path: Path) -> None:
    run = job(small(tmp_path / "n.ipynb", "y = x", RECORD), x=3)
    outcome = execute.execute(run, tmp_path / "out")
    assert (outcome.status, outcome.error) == ("ok", "")
    assert left(tmp_path / "out") == [run.id]
    assert sorted(path.name for path in Path(outcome.folder).iterdir()) == ["notebook.ipynb", "record.json"]
    record = records.read(Path(outcome.folder) / "record.json")
    assert record["identity"] == run.id and record["metrics"]["perplexity"]["value"] == 3
    assert record["notebook_sha256"] and record["status"] == "ok"
    before = (Path(outcome.folder) / "record.json").stat().st_mtime_ns
    assert execute.execute(run, tmp_path / "out").status == "finished"
    assert (Path(outcome.folder) / "record.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("cells", "error", "cell"),
    [
        (("y = 1", "1 / 0", RECORD), "ZeroDivisionError: division by zero", "cell-1: 1 / 0"),
        (("y = 1",), "it left no records", ""),
        ((RECORD, 'r.write(out + "/records/second.json")'), "it left 2 records", ""),
        ((RECORD.replace('json")', 'json", "running")'),), "its record says running", ""),
        ((RECORD, 'open(out + "/record.json", "w").write("{")'), "cannot be read as JSON", ""),
        ((RECORD, 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)', "z"), "its kernel died", "cell-1: import"),
        (("raise SystemExit(0)", RECORD), "SystemExit: 0", "cell-0: raise"),  # papermill takes it for success
    ],
    ids=["an error", "no record", "two records", "unfinished", "torn", "dead kernel", "exit"],
)  # fmt: skip
def test_what_does_not_count_is_kept_with_its_failure_on_top(
    tmp_path: Path, cells: tuple[str, ...], error: str, cell: str
) -> None:
    run = job(small(tmp_path / "n.ipynb", *cells))
    outcome = execute.execute(run, tmp_path / "out")
    assert outcome.status == "failed" and error in outcome.error and outcome.cell.startswith(cell)
    assert execute.finished(tmp_path / "out", run.id) is None and left(tmp_path / "out") == ["failed"]
    kept = Path(outcome.folder)
    assert kept == tmp_path / "out" / "failed" / run.id
    top = nbformat.read(kept / "notebook.ipynb", as_version=4).cells[0].source
    assert top.startswith("# This run failed") and outcome.error in top
    assert (cell.partition(": ")[2] in top) if cell else True
    if "JSON" not in error:
        record = records.read(kept / "record.json")
        assert record["status"] == "failed" and record["error"]["message"] == outcome.error


def test_after_a_mend_of_the_package_the_old_number_is_not_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "package" / "core" / "scale.py"
    module.parent.mkdir(parents=True)
    module.write_text("SCALE = 2\n", encoding="utf-8")
    monkeypatch.setattr(package_code, "PACKAGE", tmp_path / "package")
    read = f"import runpy\nx = runpy.run_path({str(module)!r})['SCALE'] * x"
    notebook, out = small(tmp_path / "n.ipynb", read, RECORD), tmp_path / "out"
    first = execute.execute(job(notebook), out)
    module.write_text("SCALE = 2  # a comment\n", encoding="utf-8")
    assert execute.execute(job(notebook), out).status == "finished"
    module.write_text("SCALE = 3  # a mend\n", encoding="utf-8")
    second = execute.execute(job(notebook), out)
    assert (first.status, second.status) == ("ok", "ok")
    values = [records.read(Path(o.folder) / "record.json")["metrics"]["perplexity"]["value"] for o in (first, second)]
    assert values == [2, 3] and len(left(out)) == 2, "the earlier result is kept beside it"
    codes = {records.read(Path(o.folder) / "record.json")["notes"]["package code sha256"] for o in (first, second)}
    assert len(codes) == 2


def test_code_that_changes_under_a_run_spoils_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "package" / "core" / "scale.py"
    module.parent.mkdir(parents=True)
    module.write_text("SCALE = 2\n", encoding="utf-8")
    monkeypatch.setattr(package_code, "PACKAGE", tmp_path / "package")
    pull = f"import pathlib\npathlib.Path({str(module)!r}).write_text('SCALE = 3\\n')"
    run = job(small(tmp_path / "n.ipynb", pull, RECORD))
    outcome = execute.execute(run, tmp_path / "out")
    assert outcome.status == "failed" and "its numbers may be of either code: " in outcome.error
    outcome = execute.execute(run, tmp_path / "out")  # the job was made before the change
    assert outcome.status == "failed" and outcome.error.startswith("not started: this package's code")
    assert left(tmp_path / "out") == ["failed"]


def test_a_time_limit_is_a_failure_that_names_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid, given = tmp_path / "pid", []

    def until_it_runs(self: subprocess.Popen[str], input: str, timeout: float) -> None:
        """The limit ends just when the cell has begun, on a machine of any speed."""
        assert self.stdin
        with self.stdin as stdin:
            stdin.write(input)
        until(pid.exists)
        given.append(timeout)
        raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", until_it_runs)
    outcome = execute.execute(job(small(tmp_path / "n.ipynb", SLOW, RECORD), word=str(pid)), tmp_path / "out", limit=8)
    assert outcome.status == "failed" and outcome.error == "stopped after 8 seconds, the limit" and given == [8]
    assert outcome.cell.startswith("cell-0: import os")
    until(lambda: not any(alive(int(p)) for p in pid.read_text().split()))


def test_a_run_that_another_process_holds_is_busy(tmp_path: Path) -> None:
    run = job(small(tmp_path / "n.ipynb", RECORD))
    with FileLock(execute.writable(tmp_path / "out") / ".locks" / f"{run.id}.lock"):
        assert execute.execute(run, tmp_path / "out").status == "busy"
    assert left(tmp_path / "out") == []


def test_a_corrupted_record_is_set_aside_and_run_again(tmp_path: Path) -> None:
    run = job(small(tmp_path / "n.ipynb", RECORD))
    there = execute.writable(tmp_path / "out") / run.id
    there.mkdir()
    (there / "record.json").write_text("{torn", encoding="utf-8")
    (sentence,) = execute.corrupt(tmp_path / "out")
    assert run.id in sentence
    assert execute.execute(run, tmp_path / "out").status == "ok"
    assert (tmp_path / "out" / "corrupt" / f"{run.id}-1" / "record.json").read_text() == "{torn"


def test_a_full_disk_is_a_failure_and_leaves_other_records_intact(tmp_path: Path) -> None:
    first = execute.execute(job(small(tmp_path / "n.ipynb", RECORD)), tmp_path / "out")
    before = (Path(first.folder) / "record.json").read_bytes()
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\nimport signal\n"
    full += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"  # the write itself fails, as on a full disk
    outcome = execute.execute(job(small(tmp_path / "m.ipynb", full, RECORD)), tmp_path / "out")
    assert outcome.status == "failed" and "Could not write" in outcome.error
    assert (Path(first.folder) / "record.json").read_bytes() == before


def test_a_disk_too_full_for_the_notebook_is_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    run = job(small(tmp_path / "n.ipynb", RECORD))
    outcome = execute.execute(run, tmp_path / "out")
    assert outcome.status == "failed" and "No space left" in outcome.error
    assert execute.finished(tmp_path / "out", run.id) is None and left(tmp_path / "out") == []


@pytest.mark.parametrize("victim", ["asker", "child", "nobody"])
def test_kernel_and_child_end_with_who_asked_for_them(tmp_path: Path, victim: str) -> None:
    """SIGKILL leaves nobody time to tidy up: what is below must notice by itself. Ctrl-C does."""
    pid, out = tmp_path / "pid", tmp_path / "out"
    run = job(small(tmp_path / "n.ipynb", SLOW, RECORD), word=str(pid))
    code = (
        "import json, sys\nfrom amp_tutorial.runs import execute\n"
        "print(execute.execute(execute.Job(**json.loads(sys.argv[1])), sys.argv[2]).error)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    asker = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(vars(run)), str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # of KeyboardInterrupt
        text=True,
        start_new_session=True,  # as of a terminal: Ctrl-C is for all of it
    )
    until(pid.exists)
    (child,) = psutil.Process(asker.pid).children()
    kernel, below = map(int, pid.read_text().split())
    if victim == "nobody":
        os.killpg(asker.pid, signal.SIGINT)
    else:
        os.kill(asker.pid if victim == "asker" else child.pid, signal.SIGKILL)
    said, _ = asker.communicate(timeout=WITHIN)
    until(lambda: not alive(child.pid) and not alive(kernel))
    assert execute.finished(out, run.id) is None
    if victim == "child":
        os.kill(below, signal.SIGKILL)  # nobody was left to end it
        assert "the process was killed (signal 9)" in said and left(out) == ["failed"]
        return
    until(lambda: not alive(below))
    assert left(out) == ([] if victim == "nobody" else [f".{run.id}.{asker.pid}.part"])
    execute.clean(out)
    assert left(out) == [], "nobody holds it, so it goes"


# What a run is strict about beyond papermill


def test_a_lesson_s_record_goes_where_every_run_has_it_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "{x}{y"  # papermill would fill that in
    folder.mkdir()
    cell = RECORD.replace("dict(x=x, word=word)", "dict(x=x, out=out)").replace("/record.json", "/records/lesson.json")
    run = job(small(folder / "n.ipynb", DIES_WITH_PARENT, "from pathlib import Path\nPath('beside.txt').touch()", cell))
    there = Path(execute.execute(run, folder / "out").folder)
    assert sorted(path.name for path in there.iterdir()) == ["beside.txt", "notebook.ipynb", "record.json"]
    assert records.read(there / "record.json")["parameters"]["out"] == str(there), "not where it was written"
    there.rename(folder / "out" / "0123456789abcdef")
    assert execute.finished(folder / "out", "0123456789abcdef") is None, "a copy under another name is another run"


def test_again_replaces_a_result_only_by_a_result(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    run = job(small(tmp_path / "n.ipynb", f"assert not __import__('os').path.exists({str(switch)!r})", RECORD))
    first = execute.execute(run, tmp_path / "out")
    before = (Path(first.folder) / "record.json").read_bytes()
    switch.touch()
    assert execute.execute(run, tmp_path / "out", again=True).status == "failed"
    assert (Path(first.folder) / "record.json").read_bytes() == before
    switch.unlink()
    assert execute.execute(run, tmp_path / "out", again=True).status == "ok"
    assert (tmp_path / "out" / "replaced" / f"{run.id}-1" / "record.json").read_bytes() == before
    assert not any((tmp_path / "out" / "failed").iterdir()), "the failure is over"


def test_a_notebook_that_cannot_be_written_is_a_failure_that_says_so(tmp_path: Path) -> None:
    """Papermill's own write fails, as on a full disk; what is kept of the failure would not fit either."""
    run = job(small(tmp_path / "n.ipynb", "print('x' * 100_000)", RECORD))
    code = (
        "import json, resource, sys\nfrom amp_tutorial.runs import execute\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "print(json.dumps(vars(execute.execute(execute.Job(**json.loads(sys.argv[1])), sys.argv[2]))))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, json.dumps(vars(run)), str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    outcome = execute.Outcome(**json.loads(said.splitlines()[-1]))
    assert outcome.status == "failed" and "File too large" in outcome.error
    assert execute.finished(tmp_path / "out", run.id) is None


def test_a_cell_that_was_skipped_was_not_completed(tmp_path: Path) -> None:
    notebook = small(tmp_path / "n.ipynb", RECORD, "z = 1", "  ", "# only a comment")
    nb = nbformat.read(notebook, as_version=4)
    nb.cells[2].metadata["tags"] = ["skip-execution"]
    nbformat.write(nb, notebook)
    outcome = execute.execute(job(notebook), tmp_path / "out")
    assert outcome.status == "failed" and "not executed to its end" in outcome.error
    assert outcome.cell == "cell-1: z = 1"


def test_a_torn_notebook_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "notebook.ipynb").write_text('{"cells": [', encoding="utf-8")
    assert notebooks._read(tmp_path / "notebook.ipynb") is None
