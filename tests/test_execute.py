"""One run, strictly: what counts, what is kept of a failure, and what dies with whom."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import nbformat
import psutil
import pytest
from filelock import FileLock
from helpers import RECORD, small
from hypothesis import given
from hypothesis import strategies as st

from amp_tutorial.files import NOTEBOOKS, ROOT
from amp_tutorial.runs import execute, identity, notebooks, package_code, parameters
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


# The name of a run: the same for the same run, wherever its files lie and whatever is cached; another for another.

TEXTS = 'model = "tiny-llama"\nmy_text = "tinyworld"\nshare = 0.5\nout = "out"'


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return small(tmp_path / "n.ipynb", "y = share", parameters=TEXTS)


def name(notebook: Path, **given: Any) -> str:
    return execute.job(notebook, checked(parameters_of(notebook), given, "p")).id


@given(st.floats(0, 1), st.floats(0, 1))
def test_runs_have_one_name_exactly_if_their_values_are_equal(a: float, b: float) -> None:
    lesson = sorted(NOTEBOOKS.glob("0*.ipynb"))[0]
    assert (name(lesson, ratio=a) == name(lesson, ratio=b)) == (a == b)


def test_a_whole_number_is_the_same_number(notebook: Path) -> None:
    assert name(notebook, share=1) == name(notebook, share=1.0)


def test_a_local_path_is_the_same_file_from_the_root_on(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("one", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    jobs = [execute.job(notebook, {"my_text": text}) for text in ("mine.txt", "./mine.txt", str(tmp_path / "mine.txt"))]
    assert len({job.id for job in jobs}) == 1
    assert {job.parameters["my_text"] for job in jobs} == {str(tmp_path / "mine.txt")}, "a run has a folder of its own"
    assert execute.Job("n.ipynb", {}, "0", "n").notebook == str(tmp_path / "n.ipynb")


def test_each_of_several_texts_counts_by_its_content_and_a_folder_of_scores_not_at_all(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, text in (("one.txt", "1"), ("two.txt", "2"), ("three.txt", "1")):
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "two.txt").write_text("2", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    listed = execute.job(notebook, {"my_text": "one.txt, tinyworld,two.txt"})
    places = [str(tmp_path / "one.txt"), "tinyworld", str(tmp_path / "two.txt")]
    assert listed.parameters["my_text"] == ",".join(places)
    same = {"my_text": "one.txt,tinyworld,elsewhere/two.txt", "kept_scores": "scores"}
    assert execute.job(notebook, same).id == listed.id
    assert execute.job(notebook, same).parameters["kept_scores"] == str(tmp_path / "scores"), "not there yet"
    assert execute.job(notebook, {"my_text": "one.txt,tinyworld,one.txt"}).id != listed.id


def test_what_is_embedded_is_not_taken_from_a_folder_of_that_name(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = name(notebook)
    for folder in ("tiny-llama", "tinyworld"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    assert name(notebook) == before
    assert execute.job(notebook, {"model": "tiny-llama", "my_text": "tinyworld"}).parameters["model"] == "tiny-llama"


def test_a_hub_model_keeps_its_name_when_it_is_fetched(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is asked for the commit before anything is fetched, so that a sweep finds its runs again."""
    asked = []

    def hub(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        return f"/cache/models--a--b/snapshots/{'c' * 40 if revision else 'd' * 40}/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    identity._commit.cache_clear()
    parameters = {"model": "a/b", "revision": ""}
    main, tag = (identity.run_id(notebook, parameters | {"revision": revision}) for revision in ("", "v1"))
    assert main != tag and asked == [("a/b", "config.json", None), ("a/b", "config.json", "v1")]
    assert identity.parts(notebook, parameters)["model"] == dict(name="a/b", commit="d" * 40)
    identity._commit.cache_clear()


def test_a_hub_model_that_nobody_knows_is_named_by_what_was_asked(notebook: Path) -> None:
    identity._commit.cache_clear()
    parts = identity.parts(notebook, {"model": "nobody/nothing", "revision": "v1"})
    assert parts["model"] == dict(name="nobody/nothing", revision="v1")


def test_a_preset_is_a_note_only_where_its_values_are_given(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a lesson preset = "full" asks for more items; in the reproduction notebook it says where values are from."""
    monkeypatch.setattr(parameters, "PRESETS", tmp_path)
    for file in ("ci", "smollm2-20"):
        (tmp_path / f"{file}.yaml").write_text("share: 0.5\n", encoding="utf-8")
    noted, also, smallest, full = (
        identity.run_id(notebook, {"preset": p}) for p in ("ci", "smollm2-20", "smallest", "full")
    )
    assert noted == also and len({noted, smallest, full}) == 3


def test_local_copies_count_by_content(notebook: Path, tmp_path: Path) -> None:
    def parts(copies: str) -> Any:
        return identity.parts(notebook, {"my_text": "alpaca", "local_copies": copies})["data"]

    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "alpaca.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    (tmp_path / "copies" / "alpaca-other.jsonl").write_text('{"text": "two"}\n', encoding="utf-8")
    first = parts(str(tmp_path / "copies"))
    assert first != parts("") == {"my_text": "alpaca"}
    (tmp_path / "copies" / "alpaca.jsonl").write_text('{"text": "three"}\n', encoding="utf-8")
    assert parts(str(tmp_path / "copies")) != first


def test_the_hash_of_a_local_copy_is_of_the_file_that_is_read(notebook: Path, tmp_path: Path) -> None:
    def data() -> Any:
        return identity.parts(notebook, {"my_text": "c4", "local_copies": str(tmp_path)})["data"]

    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())

    put("c4-notes.txt", "notes")
    assert data() == {"my_text": "c4"}, "the notes are no copy"
    put("c4.json.gz", '{"text": "one"}')
    first = data()
    put("c4-notes.txt", "other notes")
    assert data() == first != {"my_text": "c4"}
    put("c4.json.gz", '{"text": "another"}')
    assert data() != first
    (tmp_path / "c4.json.gz").unlink()
    put("c4/train.jsonl", '{"text": "one"}')
    put("c4/test.jsonl", '{"text": "two"}')
    first = data()
    put("c4/constraints.txt", "read by nobody")
    assert data() == first
    put("c4/test.jsonl", '{"text": "three"}')
    assert data() != first
    put("c4.jsonl", '{"text": "one"}')
    with pytest.raises(ValueError, match="holds c4 twice, as c4 and as c4.jsonl"):
        data()


def test_the_parts_say_why_two_runs_differ(notebook: Path) -> None:
    a, b = (identity.parts(notebook, checked(parameters_of(notebook), {"share": s}, "p")) for s in (0.1, 0.2))
    assert [part for part in a if a[part] != b[part]] == ["parameters"]


def test_the_embedded_data_count_where_they_are_used(notebook: Path) -> None:
    assert set(identity.parts(notebook, {"share": 0.5})["data"]) == {"world", "tasks"}, "a lesson does not say"
    assert set(identity.parts(notebook, {"my_text": "c4", "tasks": "boolq, tiny"})["data"]) == {"my_text", "tasks"}
    assert set(identity.parts(notebook, {"my_text": "c4", "tasks": "destiny"})["data"]) == {"my_text"}


MODULE = '''"""A module."""

SCALE = 1 / 20  # of the scores


def scaled(x: float) -> float:
    """Scaled."""
    if x < 0:
        raise ValueError(f"{x} is below 0.")
    return SCALE * x
'''
NOTHING_ELSE = {
    "a comment": MODULE.replace("of the scores", "of all scores"),
    "the module's docstring": MODULE.replace("A module.", "A better module."),
    "no docstring at all": MODULE.replace('    """Scaled."""\n', ""),
    "layout": MODULE.replace("SCALE * x", "(\n        SCALE *   x\n    )"),
    "the words of an error": MODULE.replace("is below 0.", "must be at least 0."),
}
ANOTHER = {
    "a number": MODULE.replace("20", "10"),
    "a whole number for a number": MODULE.replace("20", "20.0"),
    "an operation": MODULE.replace("SCALE * x", "SCALE + x"),
    "what is refused": MODULE.replace("x < 0", "x <= 0"),
    "another error": MODULE.replace("ValueError", "TypeError"),
    "a default": MODULE.replace("x: float", "x: float = 0.0"),
    "a text that is no message": MODULE.replace("return", 'y = "sum"\n    return'),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that a test may change, in the place of this one."""
    for folder in (*package_code.NUMBERS, "course", "runs"):
        (tmp_path / "package" / folder).mkdir(parents=True)
        (tmp_path / "package" / folder / "module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setattr(package_code, "PACKAGE", tmp_path / "package")
    return tmp_path / "package"


@pytest.mark.parametrize("change", NOTHING_ELSE)
def test_what_changes_no_number_of_the_package_keeps_the_name(change: str, notebook: Path, package: Path) -> None:
    before = name(notebook)
    (package / "core" / "module.py").write_text(NOTHING_ELSE[change], encoding="utf-8")
    assert name(notebook) == before and MODULE != NOTHING_ELSE[change]


@pytest.mark.parametrize("change", ANOTHER)
def test_a_mend_of_the_package_makes_another_run(change: str, notebook: Path, package: Path) -> None:
    before, parts = name(notebook), identity.parts(notebook, {"my_text": "c4"})
    (package / "core" / "module.py").write_text(ANOTHER[change], encoding="utf-8")
    assert name(notebook) != before
    now = identity.parts(notebook, {"my_text": "c4"})
    assert [part for part in now if now[part] != parts[part]] == ["code"]
    (package / "core" / "module.py").write_text(MODULE, encoding="utf-8")
    assert name(notebook) == before, "the mend is taken back"


def test_a_new_module_and_another_name_of_one_count(notebook: Path, package: Path) -> None:
    before = name(notebook)
    (package / "scale" / "other.py").write_text("", encoding="utf-8")
    added = name(notebook)
    (package / "scale" / "other.py").rename(package / "scale" / "another.py")
    assert len({before, added, name(notebook)}) == 3


@pytest.mark.parametrize("stem", ["05_evaluation", "09_real_model", "B_your_own_model"])  # they name texts otherwise
def test_code_that_only_runs_and_records_counts_for_no_run_and_exercises_for_lessons(package: Path, stem: str) -> None:
    reproduce, lesson = (NOTEBOOKS / f"{stem}.ipynb" for stem in ("reproduce", stem))
    before = name(reproduce), name(lesson)
    (package / "runs" / "module.py").write_text(ANOTHER["a number"], encoding="utf-8")
    assert (name(reproduce), name(lesson)) == before
    (package / "course" / "module.py").write_text(ANOTHER["a number"], encoding="utf-8")
    assert name(reproduce) == before[0] and name(lesson) != before[1]


def test_a_lesson_is_named_by_what_its_text_says_and_reads_it_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = NOTEBOOKS / "02_importance.ipynb"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    before = name(lesson, text="mine.jsonl")
    assert before != name(lesson) and identity.absolute({"text": "mine.jsonl"}) == {
        "text": str(tmp_path / "mine.jsonl")
    }
    (tmp_path / "mine.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
    assert name(lesson, text="mine.jsonl") != before


def test_another_protocol_makes_another_run(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name(notebook)
    monkeypatch.setattr(identity, "PROTOCOL", records.PROTOCOL + 1)
    assert name(notebook) != before


def test_the_hash_is_the_same_on_every_version_of_python() -> None:
    """Worked out with Python 3.11, 3.12 and 3.13: shards and clusters may have several."""
    source = 'def f(x, w=3):\n    return f"{x:<{w}}", None, [], {}, 1.0, b"", ...\n'
    assert package_code.meaning_sha256(source)[:16] == "90e8cc7d9bfb8ba7"
