"""The runner: a failing lesson is named, the others still run, and the exit status says so."""

import copy
import errno
import json
import os
from pathlib import Path

import nbformat
import pytest

from amp_tutorial.course import build, run, sources


def write_lesson(folder: Path, stem: str, *cells: str) -> None:
    first = nbformat.v4.new_code_cell(
        'model = "m"\nout = "out"\npreset = "smallest"', metadata={"tags": ["parameters"]}
    )
    finish = f"""
import json, pathlib
path = pathlib.Path(out) / "records" / f"{stem}-{{model}}.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(dict(status="ok", signature=dict(name="drop", value=2, low=1, high=3, unit="nats"))))
"""
    nb = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, (*cells, finish))])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / f"{stem}.ipynb")


def test_a_failing_lesson_is_named_and_the_others_still_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lesson(tmp_path, "00_fails", "x = 1", 'raise KeyError("one | two")')
    write_lesson(tmp_path, "01_works", "x = 1")
    out = tmp_path / "results"
    assert run.main(["--notebooks", str(tmp_path), "--out", str(out), "--models", "m", "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    failed, worked = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (failed["lesson"], failed["status"]) == ("00_fails", "failed")
    assert 'raise KeyError("one | two")' in failed["cell"] and failed["error"] == "KeyError: 'one | two'"
    assert failed["error"] in said and failed["cell"] in said
    assert worked["status"] == "ok" and worked["signature"]["value"] == 2
    for outcome in (failed, worked):
        assert (out / outcome["notebook"]).is_file() and (out / outcome["html"]).is_file()
    rows = (out / "summary.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4 and "KeyError: 'one \\| two'" in rows[2] and "drop: 2 [1, 3] nats" in rows[3]


def test_without_models_a_lesson_runs_on_its_own(tmp_path: Path) -> None:
    write_lesson(tmp_path, "00_works", "assert model == 'm'")
    assert run.main(["--notebooks", str(tmp_path), "--out", str(tmp_path / "results")]) == 0
    (outcome,) = json.loads((tmp_path / "results" / "summary.json").read_text(encoding="utf-8"))
    assert (outcome["model"], outcome["status"]) == ("m", "ok")


def test_a_lesson_that_leaves_no_record_has_failed(tmp_path: Path) -> None:
    write_lesson(tmp_path, "00_quits", "out = out + '/elsewhere'")
    outcome = run.run_lesson(tmp_path / "00_quits.ipynb", "m", tmp_path / "results", "smallest")
    assert outcome.status == "failed" and "left no record" in outcome.error


def test_a_record_that_cannot_be_closed_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: what stood there is whole, where writing in place would have emptied it."""
    record = tmp_path / "record.json"
    record.write_text('{"status": "running"}', encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        run._close_record(record, run.Outcome("00", "m", error="it broke"))
    assert json.loads(record.read_text(encoding="utf-8")) == {"status": "running"}
    assert sorted(tmp_path.iterdir()) == [record]


def test_an_unknown_parameter_is_an_error(tmp_path: Path) -> None:
    write_lesson(tmp_path, "00_odd")
    nb = nbformat.read(tmp_path / "00_odd.ipynb", as_version=4)
    nb.cells[0].source = 'model = "m"\nout = "out"'
    nbformat.write(nb, tmp_path / "00_odd.ipynb")
    outcome = run.run_lesson(tmp_path / "00_odd.ipynb", "m", tmp_path / "results", "smallest")
    assert outcome.status == "failed" and "does not name preset" in outcome.error


@pytest.mark.parametrize("arguments", [["--lessons", "77"], ["--notebooks", "nowhere"]])
def test_what_is_not_there_is_said_before_any_work(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "results"
    with pytest.raises(SystemExit, match="2"):
        run.main([*arguments, "--out", str(out)])
    assert not out.exists()


LESSON = """# lesson: A small one
# %% [markdown]
# # A small one
# %% tags=["parameters"]
out = "out"
# %%
import os, time

print("first", flush=True)
time.sleep(0.3)
print("second", flush=True)
# %% [markdown]
# The end.
# %%
sorted(os.listdir())
"""


def test_a_built_notebook_holds_outputs_and_nothing_else_of_its_execution() -> None:
    nb = sources.notebook(sources.parse(LESSON), "00_small")
    before = copy.deepcopy(nb)
    assert build.execute(nb) > 0
    assert build.faults(nb) == []
    told, listed = (cell.outputs for cell in nb.cells if cell.cell_type == "code" and cell.execution_count in (3, 4))
    assert [(o.output_type, o.text) for o in told] == [("stream", "first\nsecond\n")], "one piece, however it arrived"
    assert [o.data["text/plain"] for o in listed] == ["[]"], "an empty folder"
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    assert nb == before


def test_a_lesson_that_fails_is_not_built_and_its_cell_is_named() -> None:
    nb = sources.notebook(sources.parse(LESSON.replace("sorted(os.listdir())", "1 / 0")), "00_small")
    with pytest.raises(ValueError, match=r"ZeroDivisionError: division by zero \(cell 00_small-06: 1 / 0\)"):
        build.execute(nb)
