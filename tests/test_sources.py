"""Lesson sources: parsing, the same notebook every time, folded solutions, the setup cell; and the runner."""

import copy
import errno
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from torch import Tensor

from amp_tutorial.course import build, exercises, run, sources
from amp_tutorial.course.exercises import Exercise
from amp_tutorial.files import SOURCES
from amp_tutorial.runs import this_machine


def columns(weight: Tensor, n: int) -> Tensor:
    """The solution of the exercise below."""
    return weight[:, 2 * n : 2 * n + 2]


HINTS = ["Look at the shape.", "Heads live in the columns."]
SLICE = Exercise(columns, lambda: [(torch.arange(16.0).view(4, 4), 0)], {}, HINTS)

SOURCE = """\
# lesson: A title
# %% [markdown]
# # A title
#
# It takes {{minutes}}. **Predict** how many words more make it longer.
#
# *Medium, 4 minutes.* An exercise.

# %% tags=["parameters"]
model = "tiny-llama"

# %% [markdown]
# {{hint:slice}}
#
# {{solution:slice}}
# %%
x = 1

y = 2
"""


def test_parsing_a_source() -> None:
    source = sources.parse(SOURCE)
    assert (source.title, source.reading, source.exercising) == ("A title", 1, 4)
    longer = sources.parse(SOURCE.replace("An exercise.", "An exercise. " + "word " * 400))
    assert longer.reading == source.reading + 3
    assert [c.kind for c in source.cells] == ["markdown", "code", "markdown", "code"]
    assert source.cells[0].source == (
        "# A title\n\nIt takes {{minutes}}. **Predict** how many words more make it longer.\n\n"
        "*Medium, 4 minutes.* An exercise."
    )
    assert source.cells[1].tags == ["parameters"]
    assert source.cells[3].source == "x = 1\n\ny = 2"


def test_the_same_source_gives_the_same_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercises, "all_exercises", lambda: {"slice": SLICE})
    one, two = (sources.notebook(sources.parse(SOURCE), "07_title", running=8) for _ in range(2))
    assert one == two
    assert [cell.id for cell in one.cells] == [f"07_title-{i:02d}" for i in range(6)]
    assert "It takes 13 minutes (1 to read, 4 for the exercises, 8 to run)." in one.cells[1].source
    assert (one.metadata.minutes, one.metadata.running) == (13, 8)
    assert one.cells[2].source == sources.setup() and "SOURCE" not in one.cells[2].source
    folded = one.cells[4].source
    assert folded.count("<details>") == folded.count("</details>") == 3
    assert "Heads live in the columns." in folded
    assert "```python\ndef columns(weight: Tensor, n: int) -> Tensor:" in folded


PLACES = "amp_tutorial-0.1.0-py3-none-any.whl"


def run_setup(
    folder: Path, monkeypatch: pytest.MonkeyPatch, address: str = "", said: str = "", spec: object = None
) -> list[list[str]]:
    """Run the setup cell in a folder, where the package is not found but as `spec`; return the commands that it ran."""
    ran: list[list[str]] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(sources, "address", lambda: address)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        installs = "install" in command
        return subprocess.CompletedProcess(command, int(bool(said and installs)), "numpy==1.0\ntorch==2.0+cu1\n", said)

    monkeypatch.setattr(subprocess, "run", run)
    exec(sources.setup(), {})
    return ran


def test_setup_in_a_clone_installs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "amp_tutorial").mkdir()
    (tmp_path / "amp_tutorial" / "__init__.py").touch()
    (tmp_path / "notebooks").mkdir()
    assert run_setup(tmp_path / "notebooks", monkeypatch) == []
    assert sys.path[0] == str(tmp_path)


def test_a_clone_without_what_it_needs_names_it_and_offers_the_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The line adds and replaces nothing: all that pip lists is a constraint."""
    (tmp_path / "amp_tutorial").mkdir()
    (tmp_path / "amp_tutorial" / "__init__.py").touch()
    monkeypatch.setattr(this_machine, "requires", lambda _: ["numpy>=1", "no-such-thing>=1", "no-other; extra == 'x'"])
    with pytest.raises(RuntimeError, match=r"Missing: no-such-thing>=1\..*again:\n%pip install") as caught:
        run_setup(tmp_path, monkeypatch)
    keep, wanted = str(caught.value).split("--constraint ")[1].split(" ", 1)
    assert wanted == "'no-such-thing>=1'" and "numpy==1.0" in Path(keep).read_text(encoding="utf-8")


def test_a_machine_with_too_old_a_package_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "requires", lambda _: ["numpy>=999", "no-such-thing"])
    with pytest.raises(RuntimeError, match=r"do not fit: numpy>=999 \(here: \d.*nothing was replaced"):
        this_machine.checked()


@pytest.mark.parametrize("name", [PLACES, "amp_tutorial-main.zip"])
@pytest.mark.parametrize("address", ["", "https://example.org/x"])
def test_setup_elsewhere_installs_what_was_brought_and_keeps_all_there_is(
    name: str, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / name).touch()
    listed, pip = run_setup(tmp_path, monkeypatch, address)
    assert listed[-2:] == ["list", "--format=freeze"] and pip[-1] == str(tmp_path / name)
    assert pip[:3] == [sys.executable, "-m", "pip"] and "--upgrade" not in pip
    kept = Path(pip[pip.index("--constraint") + 1]).read_text(encoding="utf-8").splitlines()
    assert kept == ["numpy==1.0", "torch==2.0+cu1"]
    assert f"torch {torch.__version__}" in capsys.readouterr().out, "it says what it chose"


def test_without_a_file_the_address_is_taken_and_without_one_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run_setup(tmp_path, monkeypatch, "https://example.org/x")[1][-1] == "git+https://example.org/x"
    with pytest.raises(
        RuntimeError, match=r"no public address yet\. Upload its wheel \(`make wheel`.*run this cell again"
    ):
        run_setup(tmp_path, monkeypatch)
    assert sources.badge("00_quick_tour").startswith("*On Colab or Kaggle:* upload")
    monkeypatch.setattr(sources, "address", lambda: "https://github.com/owner/course")
    assert "](https://colab.research.google.com/github/owner/course/blob/main/notebooks/" in sources.badge(
        "00_quick_tour"
    )


def test_setup_says_what_stands_in_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / PLACES).touch()
    pip = "amp-tutorial 0.1.0 depends on torch>=2.8\n    The user requested (constraint) torch==2.0"
    with pytest.raises(
        RuntimeError, match=r"Nothing was installed: torch==2\.0 stands in the way, and stays.*pip says"
    ):
        run_setup(tmp_path, monkeypatch, said=pip)
    with pytest.raises(
        RuntimeError, match=r"Nothing was installed: what the machine has is kept; pip says: no network"
    ):
        run_setup(tmp_path, monkeypatch, said="no network")


@pytest.mark.parametrize("name", ["ipython", "ipykernel", "psutil"])
def test_a_kernel_whose_packages_were_replaced_is_not_restarted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colab's shell expects IPython 7: whoever restarts with a newer one has no kernel any more."""
    module = importlib.import_module(this_machine.MODULES.get(name, name))
    monkeypatch.setattr(module, "__version__", "1.0.0")
    with pytest.raises(RuntimeError, match=rf"may not start again\. First put back .*%pip install {name}==1\.0\.0\)"):
        this_machine.checked()


def test_a_library_replaced_under_a_running_session_asks_for_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_machine.stale() == []
    monkeypatch.setattr(torch, "__version__", "1.0.0+cu99")
    assert this_machine.stale() == [f"torch 1.0.0+cu99 (installed: {importlib.metadata.version('torch')})"]
    with pytest.raises(RuntimeError, match=r"Restart this session.*torch 1\.0\.0"):
        this_machine.checked()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x = 1\n", "first line"),
        ("# lesson: t\nx = 1\n", "Line 2 stands before the first cell"),
        ("# lesson: t\n# %% [code]\n", "Line 2: .* is no cell header"),
        ("# lesson: t\n# %% [markdown]\nnot a comment\n", "Line 3 in a markdown cell"),
    ],
)
def test_a_malformed_source_names_its_line(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sources.parse(text)


def test_an_unknown_placeholder_is_refused() -> None:
    source = sources.parse("# lesson: t\n# %% [markdown]\n# # t\n#\n# {{minuets}}\n")
    with pytest.raises(ValueError, match="unknown placeholder"):
        sources.notebook(source, "07_title")


# The runner


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
    with pytest.raises(
        ValueError, match=r"ZeroDivisionError: division by zero \(cell 00_small-06 under “A small one”: 1 / 0\)"
    ):
        build.execute(nb)


def test_terms_lead_to_the_glossary_where_they_are_first_mentioned() -> None:
    texts = [
        "# The KV cache\n\nA `KV cache` costs $KV cache$; the [KV cache](x.md) too.",
        "Two KV caches, one KV cache; a neuron.\n\n## References\n- On perplexity.",
    ]
    first, second = sources.linked(texts)
    assert first == texts[0]
    assert second.startswith("Two [KV caches](../docs/glossary.md#kv-cache), one KV cache; a [neuron](")
    assert second.endswith("- On perplexity.")


def test_every_term_of_the_glossary_is_used_in_a_lesson_and_its_page_is_in_order() -> None:
    terms = list(sources.glossary())
    assert terms == sorted(terms, key=str.lower) and len(terms) >= 40
    lessons = [sources.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCES.glob("*.py"))]
    linked = "".join(cell.source for lesson in lessons for cell in sources.notebook(lesson, "01_some").cells)
    assert [term for term, anchor in sources.glossary().items() if f"glossary.md#{anchor})" not in linked] == []


@pytest.mark.parametrize("name", ["amp_tutorial", "amp_tutorial-main"])
def test_a_clone_or_unpacked_zip_beside_the_notebook_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after `!git clone` on Colab, where Python takes the clone's folder for a package without anything in it."""
    (tmp_path / name / "amp_tutorial").mkdir(parents=True)
    (tmp_path / name / "amp_tutorial" / "__init__.py").touch()
    folder_alone = importlib.machinery.ModuleSpec("amp_tutorial", None, is_package=True)
    assert run_setup(tmp_path, monkeypatch, spec=folder_alone) == []
    assert sys.path[0] == str(tmp_path / name)


def test_in_the_folder_of_a_clone_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nowhere)
    monkeypatch.setattr(this_machine, "requires", lambda _: ["no-such-thing>=1"])
    here = importlib.machinery.ModuleSpec("amp_tutorial", None, origin="amp_tutorial/__init__.py")
    with pytest.raises(RuntimeError, match=r"Missing: no-such-thing>=1"):
        run_setup(tmp_path, monkeypatch, spec=here)


def test_what_a_committed_lesson_concludes_holds_in_it() -> None:
    told = []
    for path in sorted(build.NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        said = [output.get("text", "") for cell in cells if cell.cell_type == "code" for output in cell.outputs]
        told += [line for text in said for line in text.splitlines() if line.startswith("• ")]
    assert len(told) >= 20 and [line for line in told if "Otherwise in this run" in line] == []
