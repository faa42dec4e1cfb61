"""What is made of the lessons: editions that tell nothing too early, grades of whatever is handed in, slides,
translations, and the site."""

import ast
import csv
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
import pytest

from amp_tutorial.cli import main as amp_tutorial
from amp_tutorial.course import editions, exercises, grading, html_pages, site, sources, translation
from amp_tutorial.files import NOTEBOOKS, ROOT, SOURCES
from amp_tutorial.runs.notebooks import execute_notebook

STEMS = sorted(path.stem for path in SOURCES.glob("*.py"))


def made(stem: str, how: editions.Edition, student: str = "") -> Any:
    return editions.edition(sources.parse((SOURCES / f"{stem}.py").read_text("utf-8")), stem, how, student)


def answer_cells(book: Any) -> dict[str, Any]:
    return {
        cell.metadata["nbgrader"]["grade_id"].removeprefix("answer_"): cell
        for cell in book.cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }


def test_the_student_edition_tells_no_solution_and_has_no_output() -> None:
    asked: list[str] = []
    for stem in STEMS:
        book = made(stem, editions.Student("student"))
        assert editions.leaks(book) == [], stem
        told = "\n".join(cell.source for cell in book.cells)
        assert "<summary>Solution" not in told and "{{" not in told and "BEGIN SOLUTION" not in told
        asked += answer_cells(book)
    assert sorted(asked) == sorted(exercises.all_exercises())


def test_the_scan_for_leaks_finds_what_it_is_for() -> None:
    book = made("02_importance", editions.Instructor("instructor"))
    assert any("tells the solution of l2_head_importance" in found for found in editions.leaks(book))
    book = made("00_quick_tour", editions.Student("student"))
    book.cells[3].execution_count = 1
    assert editions.leaks(book) == [f"Cell {book.cells[3].id} has been run."]
    folded = nbformat.v4.new_markdown_cell(f"```python\n{editions.solution(exercises.named('l0_ship'))}\n```", id="x")
    book.cells[3].execution_count = None
    book.cells.append(folded)
    assert editions.leaks(book) == ["Cell x tells the solution of l0_ship."]


@pytest.mark.parametrize("name", sorted(exercises.all_exercises()))
def test_a_stub_is_its_solution_with_blanks_and_solves_nothing(name: str) -> None:
    exercise = exercises.named(name)
    solved, stub = (ast.parse(f"def f():\n{f(exercise)}") for f in (editions.solution, editions.blanked))
    assert ast.dump(solved) != ast.dump(stub)
    for node in ast.walk(solved):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return):
            node.value = ast.Constant(...)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            node.value.args = [ast.Constant(...) for _ in node.value.args]
    assert ast.dump(solved) == ast.dump(stub)
    parameters = ", ".join(inspect.signature(exercise.reference).parameters)
    names: dict[str, Any] = {}
    exec(f"def f({parameters}):\n{editions.blanked(exercise)}", names)
    assert exercises.judge(names["f"], exercise).kind == "unsolved"


@pytest.mark.parametrize("name", sorted(exercises.all_exercises()))
def test_an_instructors_answer_is_right_by_itself(name: str) -> None:
    (cell,) = [
        answer_cells(book)[name]
        for book in (made(stem, editions.Instructor("instructor")) for stem in STEMS_OF[name])
        if name in answer_cells(book)
    ]
    import torch

    names: dict[str, Any] = {"torch": torch}
    function = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)][-1]
    exec(f"from __future__ import annotations\n{grading._own(ast.parse(cell.source))}", names)  # types are the lesson's
    assert exercises.judge(names[function.name], exercises.named(name)).kind == "right"
    assert "### BEGIN SOLUTION" in cell.source and "### END SOLUTION" in cell.source


STEMS_OF = {
    name: [stem for stem in STEMS if grading.lesson_key(stem) == name.partition("_")[0]]
    for name in exercises.all_exercises()
}


def test_what_stands_below_a_prediction_is_folded() -> None:
    book = made("02_importance", editions.Student("student"))
    k = next(k for k, cell in enumerate(book.cells) if cell.source.startswith("L.predict("))
    assert book.cells[k + 1].source.startswith("<details><summary>Read on once you have predicted</summary>")
    assert "so A is the one to drop" in book.cells[k + 1].source.partition("</details>")[0]


def test_each_student_has_a_seed_of_their_own() -> None:
    ann, bob = (made("01_anatomy", editions.Student("student"), name) for name in ("ann", "bob"))
    assert ann.metadata["amp_tutorial"]["seed"] != bob.metadata["amp_tutorial"]["seed"]
    assert any(f"seed: int = {editions.seed_of('ann')}" in cell.source for cell in ann.cells)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no student"),
        ("name\n", "names no student"),
        ("ann\nann\n", "names 'ann' twice"),
        ("../../etc\n", "can't be a folder's name"),
        ("a/b\n", "can't be a folder's name"),
        (".hidden\n", "can't be a folder's name"),
    ],
)
def test_a_class_that_can_have_no_folders_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "class.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        editions.names(tmp_path / "class.csv")


def test_editions_are_written_whole_and_replace_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "class.csv").write_text("student,group\nann,1\nZoë Müller,2\n")
    command = ["--out", str(tmp_path / "out"), "--students", str(tmp_path / "class.csv"), "--lessons", "00"]
    assert editions.main(command) == 0
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert files == [
        "instructor/00_quick_tour.ipynb",
        "instructor/quiz_answers.md",
        "instructor/slides/00_quick_tour.html",
        "student/Zoë Müller/00_quick_tour.ipynb",
        "student/ann/00_quick_tour.ipynb",
        "student/quiz.md",
    ]
    with pytest.raises(SystemExit) as stopped:
        editions.main(command)
    assert stopped.value.code == 2
    assert editions.main([*command, "--overwrite"]) == 0
    with pytest.raises(SystemExit):
        editions.main(["--out", str(tmp_path / "other"), "--lessons", "42"])
    assert not (tmp_path / "other").exists()


def test_quizzes_have_five_questions_a_lesson_and_answers_apart(tmp_path: Path) -> None:
    lessons, quizzes = [stem for stem in STEMS if stem[0].isdigit()], editions.quizzes()
    assert sorted(quizzes) == lessons
    places = [one["answer"] for stem in lessons for one in quizzes[stem]["quiz"] if "choices" in one]
    assert all(len(quizzes[stem]["quiz"]) == 5 and quizzes[stem]["goals"] for stem in lessons)
    assert all(0 <= place < 4 for place in places) and max(map(places.count, range(4))) < len(places) / 2
    for stem in lessons:
        for one in quizzes[stem]["quiz"]:
            assert one["why"] not in editions.quiz(stem, answers=False) and one["why"] in editions.quiz(stem, True)


NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")
SOURCE = re.compile(r"^    # outputs? of ((?:\w+-\d\d(?: and )?)+)(?:; of its own: (.*))?$", re.MULTILINE)


def numbers_in(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def test_a_number_of_a_quiz_is_the_lessons_output_or_said_to_be_its_own() -> None:
    text = editions.QUIZZES.read_text("utf-8")
    sources_of = list(SOURCE.finditer(text))
    assert len(sources_of) == text.count("# output") > 20
    for source in sources_of:
        shown = ""
        for cell_id in source[1].split(" and "):
            book = nbformat.read(NOTEBOOKS / f"{cell_id.rpartition('-')[0]}.ipynb", as_version=4)
            (cell,) = (cell for cell in book.cells if cell.id == cell_id)
            for output in cell.outputs:
                told = {kind: str(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")}
                shown += "".join([output.get("text", ""), *told.values()])
        known = numbers_in(re.sub(r";base64,[^\"]*", "", shown)) + numbers_in(source[2] or "")
        asked = re.split(r"^    (?:- question|# )|^\w", text[source.end() :], flags=re.MULTILINE)[1]
        for said in NUMBER.findall(re.sub(r"^      answer: \d$", "", asked, flags=re.MULTILINE)):
            digits = len(said.partition(".")[2])
            assert float(said.replace(",", "")) in [round(number, digits) for number in known], (source[1], said)


# ---------------------------------------------------------------------------------------------------------- grading

RIGHT = {
    "l0_share_of_blocks": "def share_of_blocks(remove, parameters, block_parameters):\n"
    "    return remove * parameters / block_parameters",
    "l0_keep_best": "import torch\ndef keep_best(scores, keep):\n"
    "    return sorted(torch.argsort(scores, descending=True)[:keep].tolist())",
    "l0_ship": "def ship(plans, megabytes, milliseconds):\n"
    "    fits = {n: p for n, p in plans.items() if p[0] <= megabytes and p[1] <= milliseconds}\n"
    "    return max(fits, key=lambda n: fits[n][2], default=None)",
}
FIRST = "l0_share_of_blocks"
HEAD = "def share_of_blocks(remove, parameters, block_parameters):\n"


def filled(student: str = "ann", **changed: str) -> Any:
    book = made("00_quick_tour", editions.Student("student"), student)
    for name, cell in answer_cells(book).items():
        cell.source = changed.get(name, RIGHT[name])
    return book


def hand_in(folder: Path, student: str, book: Any, name: str = "00_quick_tour.ipynb") -> None:
    (folder / student).mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / student / name)


def without(book: Any, drop: Callable[[Any], bool]) -> Any:
    book.cells = [cell for cell in book.cells if not drop(cell)]
    return book


def graded(folder: Path, student: str, book: Any, seconds: float = 10) -> dict[str, grading.Grade]:
    hand_in(folder / "in", student, book)
    rows = grading.graded(student, folder / "in" / student / "00_quick_tour.ipynb", True, seconds)
    return {row.exercise: row for row in rows}


@pytest.mark.parametrize(
    ("body", "verdict", "says"),
    [
        ("    return remove * parameters / block_parameters", "right", "right"),
        ("    return remove", "misconception", "the blocks must give more"),
        ("    print(remove * parameters / block_parameters)", "misconception", "prints its answer"),
        ("    return ...", "unsolved", "not solved yet"),
        ("    return remove *", "raised", "no Python"),
        ("    return nowhere", "raised", "NameError"),
        ("    while True: pass", "endless", "did not end"),
        ("    import os; os._exit(0)", "died", "ended the process"),
        ("    open('/tmp/amp_tutorial_was_here', 'w').write('x')", "refused", "writing to /tmp/amp_tutorial_was_here"),
        ("    import subprocess; subprocess.run(['true'])", "refused", "not allowed"),
        ("    import socket; socket.create_connection(('127.0.0.1', 9), 1)", "refused", "socket"),
        ("    import os; os.system('true')", "refused", "os.system"),
        ("    return bytearray(10**12)", "raised", "MemoryError"),
        ("    open('own', 'w').write('x'); return remove * parameters / block_parameters", "right", "right"),
        ("    return share_of_blocks(remove, parameters, block_parameters)", "raised", "RecursionError"),
    ],
)
def test_an_answer_is_judged_in_its_own_process(body: str, verdict: str, says: str, tmp_path: Path) -> None:
    seconds = 3 if verdict == "endless" else 20
    row = graded(tmp_path, "ann", filled(**{FIRST: HEAD + body}), seconds)[FIRST]
    assert (row.verdict, row.points) == (verdict, int(verdict == "right")) and says in row.sentence
    assert not Path("/tmp/amp_tutorial_was_here").exists()


def test_others_are_graded_whatever_one_answer_does(tmp_path: Path) -> None:
    rows = graded(tmp_path, "ann", filled(l0_keep_best="def keep_best(scores, keep):\n    while True: pass"), 2)
    assert [row.verdict for row in rows.values()] == ["right", "endless", "right"]


def test_cells_may_be_shuffled_renamed_missing_or_doubled(tmp_path: Path) -> None:
    shuffled = filled()
    shuffled.cells.reverse()
    assert all(row.points for row in graded(tmp_path, "shuffled", shuffled).values())
    renamed = filled(**{FIRST: RIGHT[FIRST].replace("share_of_blocks", "mine")})
    row = graded(tmp_path, "renamed", renamed)[FIRST]
    assert row.points and "its function is called mine" in row.flags
    bare = without(filled(), lambda cell: "L.check(" in cell.source)
    assert all(row.points for row in graded(tmp_path, "bare", bare).values())
    for cell in bare.cells:
        cell.metadata = {}
    assert all(row.points for row in graded(tmp_path, "no marks", bare).values())
    missing = without(filled(), lambda cell: "def share_of_blocks(" in cell.source)
    row = graded(tmp_path, "missing", missing)[FIRST]
    assert (row.verdict, row.points) == ("missing", 0)
    helped = filled(**{FIRST: HEAD + "    return helper(remove) * parameters / block_parameters"})
    helped.cells.insert(3, nbformat.v4.new_code_cell("import math\ndef helper(x):\n    return x * math.cos(0)"))
    assert graded(tmp_path, "helped", helped)[FIRST].points


def test_what_asks_the_course_for_its_answer_is_flagged(tmp_path: Path) -> None:
    body = "    from amp_tutorial.course import exercises\n"
    body += f"    return exercises.named('{FIRST}').reference(remove, parameters, block_parameters)"
    assert (
        "read it: it names exercises, named, reference"
        in graded(tmp_path, "ann", filled(**{FIRST: HEAD + body}))[FIRST].flags
    )
    assert "was made for ann" in graded(tmp_path, "bob", filled("ann"))[FIRST].flags
    other_seed = filled("ann")
    for cell in other_seed.cells:
        cell.source = cell.source.replace(f"seed: int = {editions.seed_of('ann')}", "seed: int = 0")
    assert "its seed is not the student's" in graded(tmp_path, "ann", other_seed)[FIRST].flags


def test_without_execute_nothing_runs_and_claims_give_no_points(tmp_path: Path) -> None:
    book = filled(**{FIRST: f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{RIGHT[FIRST]}"})
    for cell in book.cells:
        if cell.source.startswith("share_of_blocks = L.check"):
            cell.outputs = [nbformat.v4.new_output("stream", text=f"✔ {FIRST}: right.\n")]
    hand_in(tmp_path / "in", "ann", book)
    rows = grading.grade(tmp_path / "in", tmp_path / "out")
    assert [(row.verdict, row.points) for row in rows] == [("claimed", 0), ("not run", 0), ("not run", 0)]
    assert not (tmp_path / "ran").exists()


def test_a_class_of_five_is_graded_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "submitted"
    hand_in(folder, "ann", filled("ann"))
    hand_in(folder, "bob", filled("bob", l0_ship="def ship(plans, megabytes, milliseconds):\n    return 'dense'"))
    hand_in(folder, "=cmd()", made("00_quick_tour", editions.Student("student")))
    (folder / "dan").mkdir()
    (folder / "dan/00_quick_tour.ipynb").write_text("no notebook")
    hand_in(folder, "eve", nbformat.v4.new_notebook(), "holiday.ipynb")
    hand_in(folder, "ann/.ipynb_checkpoints", filled("ann"))
    hand_in(folder, "ann", made("A_training", editions.Student("student"), "ann"), "A_training.ipynb")
    out = tmp_path / "grades"
    assert amp_tutorial(["grade", str(folder), "--execute", "--out", str(out)]) == 0
    assert "5 students, 5 of 11 points" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "grades.csv").read_text("utf-8").splitlines()))
    assert {row["verdict"] for row in rows if row["student"] in ("dan", "eve")} == {"unreadable"}
    totals = (out / "totals.csv").read_text("utf-8").splitlines()
    assert totals[0] == "student,points,of" and "ann,3,3" in totals and "bob,2,3" in totals
    assert "'=cmd()" in (out / "grades.csv").read_text("utf-8")
    said = (out / "reports/bob.md").read_text("utf-8")
    assert "2 of 3 points" in said and "**l0_ship**: not yet." in said and "reference" not in said
    assert amp_tutorial(["grade", str(folder), "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_class_of_which_nothing_is_asked_has_a_table_without_rows(tmp_path: Path) -> None:
    hand_in(tmp_path / "in", "ann", made("A_training", editions.Student("student")), "A_training.ipynb")
    assert grading.grade(tmp_path / "in", tmp_path / "out") == []
    assert (tmp_path / "out/totals.csv").read_text("utf-8") == "student,points,of\nann,0,0\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "is no folder"),
        (["empty"], "holds no notebook"),
        (["full", "--seconds", "0", "--execute"], "is no time for an answer"),
        (["full", "--out", "full"], "holds what was handed in"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    hand_in(tmp_path / "full", "ann", filled())
    before = sorted(tmp_path.rglob("*"))
    assert amp_tutorial(["grade", *arguments]) == 2
    assert sentence in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


def test_a_check_writes_its_verdict_into_the_record(tmp_path: Path) -> None:
    from amp_tutorial.course import lesson

    started = lesson.start("00_quick_tour", dict(model="tiny-llama", seed=0, out=str(tmp_path)))
    started.check(lambda remove, parameters, block_parameters: remove, FIRST)
    assert started.points(FIRST) == 0
    started.check(lambda remove, parameters, block_parameters: remove * parameters / block_parameters, FIRST)
    assert started.points(FIRST) == 1 and started.points("l0_ship") == 0
    started.finish()
    assert json.loads(started.record_path.read_text("utf-8"))["notes"]["exercises"] == {FIRST: "right"}


# ------------------------------------------------------------------------------------------- slides and translations


def test_slides_hold_a_lessons_headings_formulas_and_figures(tmp_path: Path) -> None:
    book = nbformat.read(NOTEBOOKS / "02_importance.ipynb", as_version=4)
    found = html_pages.slides(book)
    figures = sum(len(html_pages._figures(cell)) for cell in book.cells if cell.cell_type == "code")
    page = html_pages.slides_of(book)
    assert [slide.heading for slide in found[:2]] == ["2 · Importance: which heads and neurons matter?", "The score"]
    assert sum("<img" in part or "<svg" in part for slide in found for part in slide.parts) == figures > 5
    assert any(slide.question and "<strong>Predict.</strong>" in slide.parts[0] for slide in found)
    assert "<math" in page and "FORMULA" not in page and "<script" not in page and "References" not in page
    assert page.count("alt=") + page.count("<title") >= figures
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("language", sorted(translation.STALE))
def test_lesson_0_is_translated_and_says_the_same(language: str) -> None:
    assert translation.lessons(language) == ["00_quick_tour"] and translation.stale(language, "00_quick_tour") == []
    source = sources.parse((SOURCES / "00_quick_tour.py").read_text("utf-8"))
    told = translation.translated(source, language)
    assert [cell.source for cell in told.cells if cell.kind == "code"] == [
        cell.source for cell in source.cells if cell.kind == "code"
    ]
    known = translation.catalogue(language)
    for text in translation.told(source):
        new = translation._current(known, text)
        kept = re.compile(r"`[^`]+`|\]\([^)]*\)|\{\{\w+\}\}|(?<![\w.])\d+(?:\.\d+)?")
        assert sorted(kept.findall(new)) == sorted(kept.findall(text)), text
        assert len(re.match("#*", new)[0]) == len(re.match("#*", text)[0])  # type: ignore[index]
    made = editions.edition(told, "00_quick_tour", editions.Student("student"))
    assert editions.leaks(made) == []


def test_a_changed_paragraph_is_stale_shown_in_english_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    text = (SOURCES / "00_quick_tour.py").read_text("utf-8")
    old, new = "and asks what became of the model.", "and asks, without mercy, what became of the model."
    assert old in text
    (folder / "00_quick_tour.py").write_text(text.replace(old, new), encoding="utf-8")
    shutil.copytree(translation.FOLDER, tmp_path / "translations")
    monkeypatch.setattr(translation, "SOURCES", folder)
    monkeypatch.setattr(translation, "FOLDER", tmp_path / "translations")
    assert translation.main(["pt", "--check"]) == 1
    assert "pt, 00_quick_tour: stale or missing: A trained language model" in capsys.readouterr().out
    source = sources.parse((folder / "00_quick_tour.py").read_text("utf-8"))
    told = translation.translated(source, "pt")
    assert new in told.prose and "1 de " in told.cells[0].source
    assert translation.main(["pt"]) == 0 and "1 paragraphs of 00_quick_tour to translate" in capsys.readouterr().out
    message = translation.catalogue("pt").get(next(text for text in translation.told(source) if new in text))
    assert message and message.fuzzy and message.string  # the old translation is kept, to be mended
    assert translation.main(["pt", "--check"]) == 1


def test_an_unknown_language_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        translation.main(["tlh"])
    assert "There is no translation to 'tlh'; there are pt, zh." in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the site

LARGEST = 2_000_000  # bytes that a page loads, itself included

QUIET = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")  # of Sphinx


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site") / "out"
    assert site.build(out) == []
    return out


@QUIET
def test_every_lesson_and_page_is_there_and_leads_on(built: Path) -> None:
    pages = {p.relative_to(built).with_suffix("").as_posix() for p in built.rglob("*.html")}
    wanted = {f"notebooks/{p.stem}" for p in NOTEBOOKS.glob("*.ipynb")} | {
        f"docs/{p.stem}" for p in (ROOT / "docs").glob("*.md")
    }
    assert wanted <= pages
    tour = (built / "notebooks/00_quick_tour.html").read_text("utf-8")
    assert 'rel="next"' in tour and "glossary.html#" in tour and "<summary>Hint 1</summary>" in tour
    assert (built / "searchindex.js").is_file()
    last = (built / "notebooks/09_real_model.html").read_text("utf-8")
    assert 'rel="prev"' in last and "docs/real" in last


@QUIET
def test_pages_load_little_and_nothing_from_afar(built: Path) -> None:
    outside, broken = site.checked_links(built)
    assert broken == [] and outside == set((built / "links.txt").read_text("utf-8").split())
    for page in built.rglob("*.html"):
        links = site._Links()
        links.feed(page.read_text("utf-8"))
        files = {(page.parent / load.split("?")[0]).resolve() for load in links.loads if not load.startswith("data:")}
        files |= set((built / "_static").glob("*.woff"))
        assert page.stat().st_size + sum(map(os.path.getsize, files)) <= LARGEST, page.name
    for text in [p for kind in ("*.css", "*.html") for p in built.rglob(kind)]:
        assert "url(http" not in text.read_text("utf-8").replace('"', ""), text


@QUIET
def test_formulas_are_drawn_by_the_browser(built: Path) -> None:
    page = (built / "notebooks/02_importance.html").read_text("utf-8")
    assert page.count("<math") > 10 and "$$" not in page and "\\frac" not in page
    assert (built / "_static/math.woff").stat().st_size > 20_000
    assert (built / "notebooks/table.html").read_text("utf-8").count("<table") >= 2  # Markdown that a cell shows
    assert not [p for p in built.rglob("*.html") if "/OWNER/" in p.read_text("utf-8")]


@QUIET
def test_a_site_is_replaced_and_nothing_else(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "pages", lambda: {"The library": [PurePosixPath("docs/glossary.md")]})
    monkeypatch.setattr(site, "STALE", {})
    monkeypatch.setattr(site, "retold", lambda text, page, there: "# A page\n\nIn short.\n")
    shutil.copytree(built, tmp_path / "old")
    assert site.build(tmp_path / "old") == []
    assert not (tmp_path / "old/notebooks").exists() and (tmp_path / "old/docs/glossary.html").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; choose another folder"):
        site.build(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("see [the glossary](glossary.md#head)", "see [the glossary](glossary.md#head)"),
        ("see [`criteria`](../amp_tutorial/core/criteria.py)", "see `criteria`"),
        ("in [core/__init__.py](../amp_tutorial/core/__init__.py)", "in `core/__init__.py`"),
        ("back to [the start](../README.md)", "back to [the start](../index.md)"),
        (
            "`[x](../nowhere.py)` and [paper](https://arxiv.org/abs/1)",
            "`[x](../nowhere.py)` and [paper](https://arxiv.org/abs/1)",
        ),
        ("![alt](../nowhere.png) [here](#below)", "![alt](../nowhere.png) [here](#below)"),
    ],
)
def test_links_to_what_is_no_page_become_words(text: str, told: str) -> None:
    assert site.retold(text, PurePosixPath("docs/library.md"), {"docs/glossary.md"}) == told


def test_with_an_address_they_lead_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "address", lambda: "https://github.com/someone/amp_tutorial")
    told = site.retold("[`criteria`](../amp_tutorial/core/criteria.py)", PurePosixPath("docs/library.md"), set())
    assert told == "[`criteria`](https://github.com/someone/amp_tutorial/blob/main/amp_tutorial/core/criteria.py)"


def test_a_link_to_a_missing_file_is_refused() -> None:
    with pytest.raises(ValueError, match="docs/library.md links to nowhere.md, which is not in the repository"):
        site.retold("[x](nowhere.md)", PurePosixPath("docs/library.md"), set())


def test_formulas_that_the_converter_does_not_know_are_refused() -> None:
    assert html_pages.mathml(r"\big\lVert x \big\rVert_1 + \lVert y \rVert").count("&#x02016;") == 4
    with pytest.raises(ValueError, match=r"\\nonsense in the formula"):
        html_pages.mathml(r"\nonsense{x}")


def test_broken_links_and_what_is_fetched_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<p id="here">')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here"><a href="b.html#gone"><a href="c.html"><a href="https://x.org/">'
        '<script src="https://cdn.example/x.js"></script><img src="data:image/png;base64,AA">'
    )
    outside, broken = site.checked_links(tmp_path)
    assert outside == {"https://x.org/", "https://cdn.example/x.js"}
    assert [sentence.split(" ", 1)[1] for sentence in broken] == [
        "loads https://cdn.example/x.js from another machine",
        "links to b.html#gone, where nothing has that name",
        "links to c.html, which is not there",
    ]


# ------------------------------------------------------------------------------------------------- run as a whole


@pytest.mark.slow
@pytest.mark.parametrize("edition", ["student", "instructor"])
def test_nbgrader_finds_all_answers_right(edition: str, tmp_path: Path) -> None:
    """The instructor's notebook as it is; the student's with right answers in its blanks."""
    pytest.importorskip("nbgrader")
    book = filled() if edition == "student" else made("00_quick_tour", editions.Instructor("instructor"))
    nbformat.write(book, tmp_path / "00_quick_tour.ipynb")
    command = [sys.executable, "-m", "nbgrader", "validate", "00_quick_tour.ipynb"]
    search = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": search, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert "Success! Your notebook passes all the tests." in ran.stdout + ran.stderr


@pytest.mark.grid
@pytest.mark.lessons
@pytest.mark.parametrize(
    "edition", [editions.Student("student"), editions.Instructor("instructor")], ids=lambda e: e.name
)
@pytest.mark.parametrize("stem", STEMS)
def test_every_notebook_of_both_editions_runs(stem: str, edition: editions.Edition, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.ipynb"
    nbformat.write(made(stem, edition, "ann" if edition.name == "student" else ""), path)
    ended = execute_notebook(path, tmp_path / "run", limit=1800, output=tmp_path / "ran.ipynb")
    assert ended.error == ""
    said = "".join(o.get("text", "") for cell in ended.notebook.cells for o in cell.get("outputs", []))  # type: ignore[union-attr]
    verdicts = grading.SAYS.findall(said)
    asked = answer_cells(made(stem, edition))
    assert len(verdicts) == len(asked)
    assert all((words == "right") == (edition.name == "instructor") for _, words in verdicts)
