"""The committed notebooks: as their sources, executed, accessible; and every lesson runs and shows what is stored."""

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import Shape, byte_tokenizer, tiny
from nbformat import NotebookNode

import amp_tutorial as amp
from amp_tutorial.course import exercises, lesson, run
from amp_tutorial.course.build import faults, stored_differs
from amp_tutorial.course.sources import COMPARED, HIDDEN, Source, parse
from amp_tutorial.files import NOTEBOOKS, ROOT, SOURCES, STATIC

EVERY = sorted(p.stem for p in SOURCES.glob("*.py"))
LESSONS = [stem for stem in EVERY if re.match(r"\d\d[a-z]?_", stem)]


def stored(stem: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)


def source(stem: str) -> Source:
    return parse((SOURCES / f"{stem}.py").read_text(encoding="utf-8"))


def prose(stem: str) -> str:
    return "\n\n".join(cell.source for cell in source(stem).cells if cell.kind == "markdown")


def code(stem: str) -> str:
    return "\n\n".join(cell.source for cell in source(stem).cells if cell.kind == "code")


def checked_names(stem: str) -> set[str]:
    """Exercises that the lesson checks."""
    return {
        str(node.args[1].value)
        for node in ast.walk(ast.parse(code(stem)))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "check"
        and len(node.args) == 2
        and isinstance(node.args[1], ast.Constant)
    }


# The gate: what is committed


def test_the_lessons_are_all_there_and_no_notebook_without_a_source() -> None:
    numbers = "00 01 02 03 03b 04 05 06 06b 07 08 08b 08c 09".split()
    assert [stem.partition("_")[0] for stem in LESSONS] == numbers
    assert sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")) == EVERY


@pytest.mark.parametrize("stem", EVERY)
def test_notebook_is_what_its_source_gives(stem: str) -> None:
    assert stored_differs(stem, source(stem)) is None


@pytest.mark.parametrize("stem", EVERY)
def test_notebook_is_executed_and_fit_to_be_committed(stem: str) -> None:
    nb = stored(stem)
    nbformat.validate(nb)
    assert faults(nb) == []
    assert nb.metadata.minutes > 0


@pytest.mark.parametrize("stem", LESSONS)
def test_at_least_three_cells_are_compared(stem: str) -> None:
    compared = [cell for cell in stored(stem).cells if cell.source.startswith(COMPARED)]
    assert len(compared) >= 3
    assert sum("NBVAL" in line for line in code(stem).splitlines()) == len(compared), "only as a cell's first line"


def small_notebook(*cells: str) -> NotebookNode:
    """An executed notebook, as far as the gate can see: every cell shows "a"."""
    nb = nbformat.v4.new_notebook()
    for count, text in enumerate(cells, start=1):
        output = nbformat.v4.new_output("stream", name="stdout", text="a\n")
        nb.cells.append(nbformat.v4.new_code_cell(text, execution_count=count, outputs=[output]))
    return nb


def picture(alt: str | None) -> NotebookNode:
    metadata = {} if alt is None else {"image/png": {"alt": alt}}
    return nbformat.v4.new_output("display_data", {"image/png": "aGVsbG8="}, metadata=metadata)


def test_the_gate_opens_for_a_sound_notebook() -> None:
    nb = small_notebook(f"{COMPARED}\nprint('a')", "print('a')")
    nb.cells[1].outputs.append(picture("A letter."))
    assert faults(nb) == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda nb: nb.cells[0].update(execution_count=None), "counts do not run"),
        (lambda nb: nb.cells[1].update(execution_count=3), "counts do not run"),
        (lambda nb: nb.cells[0].update(execution_count=None, outputs=[]), "nothing is stored to compare with"),
        (lambda nb: nb.cells[0].update(outputs=[]), "nothing is stored to compare with"),
        (lambda nb: nb.cells[1].outputs.append(picture(None)), "without alt text"),
        (lambda nb: nb.cells[1].outputs.append(picture(" ")), "without alt text"),
        (lambda nb: nb.metadata.update(widgets={"state": {}}), "widget state"),
        (
            lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("error", ename="KeyError", evalue="'x'")),
            "stopped with KeyError",
        ),
        (lambda nb: nb.cells[1].outputs[0].update(text=f"{sys.prefix}/lib"), "path of this machine"),
    ],
)
def test_the_gate_closes(spoil: object, complaint: str) -> None:
    nb = small_notebook(f"{COMPARED}\nprint('a')", "print('a')")
    assert callable(spoil)
    spoil(nb)
    assert any(complaint in fault for fault in faults(nb))


# The parts every lesson has


@pytest.mark.parametrize("stem", LESSONS)
def test_lesson_has_every_part_in_order(stem: str) -> None:
    text = prose(stem)
    parts = [r"objectives|you will be able to", r"prerequisites", r"\{\{minutes\}\}"]
    parts += [r"^#+ .*what this does not show", r"^#+ .*references"]
    found = [re.search(part, text, re.IGNORECASE | re.MULTILINE) for part in parts]
    assert None not in found, parts[found.index(None)]
    first, *_, limits, references = [match.start() for match in found if match]
    assert first < limits < references
    assert "L.signature(" in code(stem)
    assert source(stem).cells[0].source.startswith("# ")
    assert re.search(r"L\.finish\(\)\s*$", code(stem)), "the last code cell finishes the record"


@pytest.mark.parametrize("stem", LESSONS)
def test_parameters_are_flat_literals(stem: str) -> None:
    (cell,) = [c for c in source(stem).cells if "parameters" in c.tags]
    names = set()
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.AnnAssign), "papermill sees assignments only, and shows their types"
        assert isinstance(statement.target, ast.Name) and statement.value is not None
        assert isinstance(ast.literal_eval(statement.value), (str, int, float, bool))
        names.add(statement.target.id)
    assert {"model", "ratio", "seed", "preset", "out"} <= names
    assert any(name.startswith(("calibration", "samples")) for name in names), "the calibration size"


MOST_CELLS, MOST_LINES = 25, 25  # of code in view; plotting, set-up and what only prints verdicts are folded


@pytest.mark.parametrize("stem", LESSONS)
def test_what_is_in_view_can_be_read(stem: str) -> None:
    shown = [cell.source for cell in source(stem).cells if cell.kind == "code" and HIDDEN not in cell.tags]
    assert len(shown) <= MOST_CELLS
    assert [text for text in shown if len(text.splitlines()) > MOST_LINES] == []


@pytest.mark.parametrize("stem", LESSONS)
def test_exercises_have_hints_a_solution_and_are_left_to_the_reader(stem: str) -> None:
    names, text = checked_names(stem), prose(stem)
    assert len(names) >= 3 - (stem == "02_importance")  # its third is judged by the ground truth
    shown = "".join(output.get("text", "") for cell in stored(stem).cells for output in cell.get("outputs", []))
    for name in names:
        exercises.named(name)
        assert f"{{{{hint:{name}}}}}" in text and f"{{{{solution:{name}}}}}" in text
        assert f"✎ {name}: not solved yet" in shown


# They run


def shown(cell: NotebookNode) -> dict[str, str]:
    """What nbval compares of a cell: the text of each stream, and what is displayed, by kind, but for pictures."""
    found: dict[str, str] = {}
    for output in cell.outputs:
        parts = {output.name: output.text} if output.output_type == "stream" else output.get("data", {})
        for kind, content in parts.items():
            if not kind.startswith("image/"):
                found[kind] = found.get(kind, "") + str(content)
    return found


def differing(executed: NotebookNode, wanted: NotebookNode) -> list[str]:
    """The cells to be compared that show something else than is stored."""
    mine = {cell.id: cell for cell in executed.cells}
    compared = [cell for cell in wanted.cells if cell.source.startswith(COMPARED)]
    return [cell.source for cell in compared if shown(mine[cell.id]) != shown(cell)]


def assert_it_ran(outcome: run.Outcome, out: Path) -> None:
    """It went through, left its record, and a page whose pictures all have alt text."""
    assert outcome.status == "ok", f"{outcome.cell}: {outcome.error}"
    record = json.loads((out / outcome.record).read_text(encoding="utf-8"))
    assert record["status"] == "ok" and record["parameters"]["model"] == outcome.model
    assert record["signature"]["baseline"] and record["signature"]["control"]
    page = (out / outcome.html).read_text(encoding="utf-8")
    images = re.findall(r"<img[^>]*>", page)
    assert images and all(re.search(r'alt="[^"]+"', image) for image in images)


@pytest.mark.lessons
@pytest.mark.slow
@pytest.mark.parametrize("stem", LESSONS)
def test_a_lesson_runs_and_shows_what_is_stored(stem: str, tmp_path: Path) -> None:
    """Executed once, by papermill, as a reader's own run is; what nbval would compare is compared in what it left."""
    outcome = run.run_lesson(NOTEBOOKS / f"{stem}.ipynb", "tiny-llama", tmp_path, "smallest")
    assert_it_ran(outcome, tmp_path)
    assert differing(nbformat.read(tmp_path / outcome.notebook, as_version=4), stored(stem)) == []


@pytest.mark.lessons
@pytest.mark.slow
def test_the_lesson_on_a_real_model_shows_what_was_found_where_the_model_is_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMP_TUTORIAL_MODELS", str(tmp_path / "none"))
    (stem,) = [stem for stem in LESSONS if stem.startswith("09_")]
    outcome = run.run_lesson(NOTEBOOKS / f"{stem}.ipynb", "smollm2-135m", tmp_path, "smallest")
    assert_it_ran(outcome, tmp_path)
    executed, wanted = nbformat.read(tmp_path / outcome.notebook, as_version=4), stored(stem)
    shows = [
        shown(cell) for cell in executed.cells if cell.cell_type == "code" and "injected" not in str(cell.metadata)
    ]
    text = "".join(found.get("stdout", "") for found in shows)
    assert (
        "this fetches it: amp-tutorial fetch smollm2-135m." in text
        and "What follows was found by these cells on" in text
    )
    stored_text = "".join(shown(cell).get("stdout", "") for cell in wanted.cells if cell.cell_type == "code")
    assert text.partition("The capital of France")[2] == stored_text.partition("The capital of France")[2] != ""


@pytest.mark.lessons
@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("stem", LESSONS)
def test_a_lesson_runs_on_another_model(stem: str, tmp_path: Path) -> None:
    assert_it_ran(run.run_lesson(NOTEBOOKS / f"{stem}.ipynb", "tiny-phi", tmp_path, "smallest"), tmp_path)


# A model that is not of the tiny world. Lessons 0, 3b and 4 are of the tiny world alone; lesson 9 is of a real model.
ELSEWHERE = ["01", "02", "03", "05", "06", "06b", "07", "08", "08b", "08c"]


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A random model of SmolLM2's shape, but for its depth and its words; and a folder of text by split."""
    folder = tmp_path_factory.mktemp("shaped")
    shape = Shape(layers=3, groups=3, group_size=3, head_dim=64, hidden=576, neurons=1536, tied=True)
    amp.save(tiny(shape, vocabulary=2048), byte_tokenizer(), folder / "model")
    (folder / "web").mkdir()
    for split, word in (("calibration", "train"), ("validation", "validation")):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in amp.texts("tinyworld", split)[:200])
        (folder / "web" / f"{word}.jsonl").write_text(rows, encoding="utf-8")
    return {"model": str(folder / "model"), "text": str(folder / "web")}


@pytest.mark.lessons
@pytest.mark.slow
@pytest.mark.parametrize(  # they repair some ten times each: minutes with two threads, more with one
    "number", [pytest.param(n, marks=pytest.mark.grid) if n in ("08", "08b", "08c") else n for n in ELSEWHERE]
)
def test_a_lesson_runs_on_a_model_of_smollm2s_shape(number: str, shaped: dict[str, str], tmp_path: Path) -> None:
    (stem,) = [stem for stem in LESSONS if stem.startswith(f"{number}_")]
    names = run.parameters_of(NOTEBOOKS / f"{stem}.ipynb")
    asked = {
        "text": shaped["text"],
        "tasks": "tiny_tool,tiny_fact",
        "responses": "tinyworld",
        "calibration": 24,
        "samples": 16,
    }
    outcome = run.run_lesson(
        NOTEBOOKS / f"{stem}.ipynb", shaped["model"], tmp_path, "smallest",
        **{name: value for name, value in asked.items() if name in names},
    )  # fmt: skip
    assert_it_ran(outcome, tmp_path)
    said = f"A model of more words than the tiny world's reads {shaped['text']}, in the sizes called 'real'."
    assert said in (tmp_path / outcome.html).read_text(encoding="utf-8").replace("&#39;", "'")


@pytest.mark.lessons
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "c4 is neither cached nor to be had"),
        ({"text": "nowhere"}, "No text source 'nowhere'"),
        ({"text": "tinyworld"}, "The data of piqa, hellaswag"),
        ({"text": "tinyworld", "tasks": "tiny_tol"}, "Unknown task 'tiny_tol'"),
    ],
)
def test_text_and_tasks_that_are_not_to_be_had_are_said_in_a_sentence(
    parameters: dict[str, str], sentence: str, shaped: dict[str, str], tmp_path: Path
) -> None:
    L = lesson.start("05_evaluation", {"model": shaped["model"], "out": str(tmp_path)})
    with pytest.raises(ValueError, match=sentence):
        L.material(parameters.get("text", ""), parameters.get("tasks", ""))


@pytest.mark.parametrize("number", ELSEWHERE)
def test_text_and_tasks_are_asked_for_before_the_model_is_loaded(number: str) -> None:
    (stem,) = [stem for stem in LESSONS if stem.startswith(f"{number}_")]
    text = code(stem)
    loaded = min(text.find(load) for load in ("amp.load(", "lesson.Bench(") if load in text)
    assert 0 < text.index("L.material(text") < loaded


def test_a_model_of_the_tiny_worlds_words_reads_the_tiny_world(tmp_path: Path) -> None:
    L = lesson.start("05_evaluation", {"model": "tiny-phi", "out": str(tmp_path)})
    assert L.material("", "") == ("tinyworld", list(amp.TASKS)) and L.size == "smallest"


def nbval(notebook: Path) -> subprocess.CompletedProcess[str]:
    """Run nbval on a notebook, in its own folder, as another process."""
    search = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval",
            "--nbval-current-env",
            "-q",
            "-p",
            "no:cacheprovider",
            notebook,
        ],
        cwd=notebook.parent,
        env=inherited | {STATIC: "1", "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )


@pytest.mark.lessons
@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("stem", LESSONS)
def test_lesson_runs_by_nbval(stem: str, tmp_path: Path) -> None:
    done = nbval(Path(shutil.copy(NOTEBOOKS / f"{stem}.ipynb", tmp_path)))
    assert done.returncode == 0, done.stdout[-3000:]


def test_what_differs_is_found_here_and_by_nbval(tmp_path: Path) -> None:
    same = small_notebook(f"{COMPARED}\nprint('a')", "print('a')")
    other, unmarked, split = (copy.deepcopy(same) for _ in range(3))
    other.cells[0].outputs[0].text = unmarked.cells[1].outputs[0].text = "b\n"
    split.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a", "\n")]
    for nb in (same, unmarked, split):
        nb.cells[0].outputs.append(picture("A letter."))
        assert differing(same, nb) == []
    assert differing(same, other) == [same.cells[0].source]
    for nb, status in ((same, 0), (other, 1)):
        nb.cells[0].outputs = nb.cells[0].outputs[:1]
        nbformat.write(nb, tmp_path / "small.ipynb")
        assert nbval(tmp_path / "small.ipynb").returncode == status
