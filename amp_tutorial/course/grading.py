"""Grade what students handed in: `amp-tutorial grade FOLDER [--execute]`, to a CSV file and a report for each student.

Of a notebook only the answers count: each is found by its check or its mark, wherever it stands, and judged against
the reference as the lesson does. Nothing that a student wrote is run without `--execute`; then each answer runs as
`isolation` says. For a determined attack that is no wall: against one, run the command in a container.
"""

import argparse
import ast
import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import nbformat
from tqdm import tqdm

from ..files.atomic import new_folder, reason, write_text
from . import exercises, isolation

LARGEST = 20 * 2**20  # bytes of a notebook that is read
OURS = "amp_tutorial"  # of a notebook's metadata: which lesson, edition and student it is of
SAYS = re.compile(r"^(?:✔|✎) (\w+): (right|[^\n]*)", re.MULTILINE)
CHECKED = re.compile(r"L\.check\([^,]+, \"(\w+)\"\)")
# What an answer has no reason to name: the module that has all answers, and ways to look into running code.
LOOKS = {"exercises", "reference", "named", "all_exercises", "getsource", "getclosurevars", "_getframe", "gc"}
WORDS = {
    "missing": "not handed in: no cell of this notebook asks for it or answers it.",
    "not run": "not run; the notebook says nothing of it. Use --execute.",
    "claimed": "the notebook says that it is right; it was not run here.",
    "endless": "it did not end in {seconds:g} s.",
    "died": "it ended the process in which it ran.",
}
Parsed = list[tuple[Any, ast.Module | None]]  # the cells of code, each with its tree if it is Python


@dataclass
class Answer:
    """What a notebook holds of one exercise."""

    exercise: str
    function: str = ""  # its name
    source: str = ""  # the cell, without what belongs to the lesson
    said: str = ""  # what the check said when the notebook was run last
    flags: str = ""


@dataclass
class Grade:
    """A row of the table."""

    student: str
    lesson: str
    exercise: str
    verdict: str
    points: int
    sentence: str
    flags: str = ""


def lesson_exercises() -> dict[str, list[str]]:
    """The names of the exercises of each lesson, by what they begin with: "l3b" of lesson 03b, "b" of B."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in exercises.all_exercises():
        found[name.partition("_")[0]].append(name)
    return dict(found)


def lesson_key(stem: str) -> str:
    """What the exercises of a lesson begin with: "03b_museum" → "l3b"."""
    number = stem.partition("_")[0]
    return f"l{number.lstrip('0') or '0'}" if number[:1].isdigit() else number.lower()


def parsed(book: Any) -> Parsed:
    """The cells of code with their trees; none is run."""
    found: Parsed = []
    for cell in (cell for cell in book.cells if cell.cell_type == "code"):
        tree = None
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            tree = ast.parse(cell.source)
        found.append((cell, tree))
    return found


def answers(cells: Parsed, wanted: Sequence[str]) -> list[Answer]:
    """The answer to each exercise, wherever in the notebook it stands; of several the last."""
    found = {name: Answer(name) for name in wanted}
    for cell, tree in cells:  # what each is called, and what was said
        for node in ast.walk(tree) if tree else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "check":
                match node.args:
                    case [ast.Name(id=function), ast.Constant(value=str(name))] if name in found:
                        found[name].function = function
        for name, words in SAYS.findall("".join(o.get("text", "") for o in cell.get("outputs", []))):
            if name in found:
                found[name].said = words
    for name, answer in found.items():  # its check may be gone
        answer.function = answer.function or exercises.named(name).reference.__name__
    for cell, tree in cells:
        mark = cell.metadata.get("nbgrader", {})
        marked = found.get(str(mark.get("grade_id", "")).removeprefix("answer_")) if mark.get("solution") else None
        if tree is None:
            holds = (a for a in found.values() if f"def {a.function}(" in cell.source)
            if guess := marked or next(holds, None):
                guess.source = cell.source
            continue
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        if marked and defined and marked.function not in defined:
            marked.function, marked.flags = defined[-1], f"its function is called {defined[-1]}"
        for answer in found.values():
            if answer.function in defined:
                answer.source = _own(tree)
                answer.flags = "; ".join(filter(None, (answer.flags, _looks(tree))))
    return list(found.values())


def _own(tree: ast.Module) -> str:
    """What of a cell an answer needs: imports, functions, classes and constants, nothing that calls the lesson."""
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
            kept.append(node)
        elif isinstance(node, ast.Assign):
            with suppress(ValueError, TypeError, RecursionError):
                ast.literal_eval(node.value)
                kept.append(node)
    return "\n".join(map(ast.unparse, kept))


def _looks(tree: ast.Module) -> str:
    """Whether an answer names what it has no reason to name."""
    nodes = list(ast.walk(tree))
    named = _names(tree) | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    named |= {part for node in nodes if isinstance(node, ast.alias) for part in node.name.split(".")}
    seen = sorted(named & LOOKS)
    return f"read it: it names {', '.join(seen)}" if seen else ""


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _binds(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return {node.name} if isinstance(node, ast.FunctionDef) else set()


def _needed(source: str, cells: Parsed) -> list[ast.stmt]:
    """Of the imports and functions of a notebook those that an answer names, or that these name."""
    nodes = [node for _, tree in cells if tree for node in tree.body if _binds(node)]
    with suppress(SyntaxError, ValueError, RecursionError):
        wanted, kept = _names(ast.parse(source)), set[int]()
        while new := [k for k, node in enumerate(nodes) if k not in kept and _binds(node) & wanted]:
            kept |= set(new)
            wanted |= {name for k in new for name in _names(nodes[k])}
        return [nodes[k] for k in sorted(kept)]
    return []


def _verdict(answer: Answer, needed: Sequence[ast.stmt]) -> exercises.Verdict:
    """Run an answer and judge it, here and now."""
    names: dict[str, Any] = {"__name__": "answer"}
    for node in needed:
        with suppress(Exception):  # what is missing is told by the answer that stops
            exec(compile(ast.Module([node], []), "<notebook>", "exec"), names)
    try:
        exec(compile(answer.source, "<answer>", "exec"), names)
    except SyntaxError as error:
        return exercises.Verdict("raised", f"not yet. The cell is no Python: {error.msg}, line {error.lineno}.")
    except Exception as error:
        return exercises.Verdict("raised", f"not yet. The cell stops with {type(error).__name__}: {error}.")
    return exercises.judge(names.get(answer.function), exercises.named(answer.exercise))


def judged(answer: Answer, cells: Parsed, seconds: float) -> tuple[str, str]:
    """Run an answer in a process of its own and judge it there; the verdict and a sentence.

    Args:
        cells: of its notebook, whose imports and functions it may use.
    """
    needed = _needed(answer.source, cells)
    ended = isolation.apart(lambda: asdict(_verdict(answer, needed)), seconds)
    if ended.how != "done":
        return ended.how, WORDS[ended.how].format(seconds=seconds)
    if ended.refused and (ended.error or ended.value["kind"] != "right"):
        return "refused", f"not yet. While grading this is not allowed: {ended.refused}."
    if ended.error:
        return "raised", f"not yet. {ended.error}."
    return str(ended.value["kind"]), str(ended.value["sentence"])


def handed_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each notebook below a folder with its student: the name of the first folder, or of the file where there is none.

    Copies that Jupyter keeps of its own are passed over.
    """
    for path in sorted(folder.rglob("*.ipynb")):
        inside = path.relative_to(folder).parts
        if not any(part.startswith(".") for part in inside):
            yield (inside[0] if len(inside) > 1 else path.stem), path


def graded(student: str, path: Path, execute: bool, seconds: float) -> list[Grade]:
    """The grades of one notebook; what can't be read is one row that says why, and what asks for nothing has none."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST // 2**20} MiB; clear its outputs")
        book: Any = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        told = dict(book.metadata.get(OURS, {}))
        lesson, every = str(told.get("lesson") or path.stem), lesson_exercises()
        text = "\n".join(cell.source for cell in book.cells)
        named = {*CHECKED.findall(text)}
        wanted = every.get(lesson_key(lesson)) or next((mine for mine in every.values() if {*mine} & named), [])
        if not wanted and told.get("lesson"):
            return []  # of ours, and it asks for nothing
        if not wanted:
            raise ValueError("it is of no lesson with exercises: its name and its cells name none")
        cells = parsed(book)
        found = answers(cells, wanted)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        return [Grade(student, path.stem, "", "unreadable", 0, f"{path.name} can't be graded: {reason(error)}.")]
    rows = []
    for answer in found:
        if not answer.source:
            kind, sentence = "missing", WORDS["missing"]
        elif execute:
            kind, sentence = judged(answer, cells, seconds)
        elif answer.said.startswith("right"):
            kind, sentence = "claimed", WORDS["claimed"]
        elif answer.said:
            kind, sentence = "unsolved", answer.said
        else:
            kind, sentence = "not run", WORDS["not run"]
        flags = "; ".join(filter(None, (answer.flags, _another(student, told, text))))
        rows.append(Grade(student, lesson, answer.exercise, kind, int(kind == "right"), sentence, flags))
    return rows


def _another(student: str, told: dict[str, Any], text: str) -> str:
    """Whether a notebook was made for another student, or its seed was changed."""
    owner = told.get("student")
    if owner and owner != student:
        return f"this notebook was made for {owner}"
    if owner and re.findall(r"^seed: int = (\d+)", text, re.MULTILINE)[:1] != [str(told.get("seed"))]:
        return "its seed is not the student's"
    return ""


def report(student: str, rows: Sequence[Grade]) -> str:
    """What a student reads: each exercise with its verdict, in words."""
    lines = [f"# {student}", "", f"{sum(row.points for row in rows)} of {len(rows)} points.", ""]
    for lesson in dict.fromkeys(row.lesson for row in rows):
        mine = [row for row in rows if row.lesson == lesson]
        lines += [f"## {lesson}: {sum(row.points for row in mine)} of {len(mine)}", ""]
        lines += [f"- **{row.exercise or 'the notebook'}**: {row.sentence}" for row in mine] + [""]
    return "\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"'{v}" if isinstance(v, str) and v.startswith(("=", "+", "-", "@")) else v
                         for k, v in row.items()})  # fmt: skip
    return text.getvalue()


def grade(folder: Path, out: Path, execute: bool = False, seconds: float = 10, overwrite: bool = False) -> list[Grade]:
    """Grade all notebooks below a folder, and write `grades.csv`, `totals.csv` and a report for each student.

    Args:
        out: a new folder.
        execute: whether answers are run; otherwise only what the notebooks say of themselves is gathered.
        seconds: that an answer may take.

    Raises:
        ValueError: no notebook there; something is in `out`; a system without `fork`.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the one in which the students' notebooks are.")
    found = list(handed_in(folder))
    if not found:
        raise ValueError(f"{folder} holds no notebook (.ipynb); expected is FOLDER/STUDENT/LESSON.ipynb.")
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} holds what was handed in; grades go to another folder.")
    if execute and not isolation.possible():
        raise ValueError("Answers are run on Linux and macOS only; without --execute what they say is gathered.")
    if not 0 < seconds <= 3600:
        raise ValueError(f"seconds={seconds:g} is no time for an answer; give 1 to 3600.")
    import torch

    torch.set_num_threads(1)  # as `isolation.apart` asks
    with new_folder(out, overwrite=overwrite, replaced=["grades.csv", "totals.csv", "reports/*.md"]) as beside:
        of: dict[str, list[Grade]] = defaultdict(list)
        for student, path in tqdm(found, desc="Graded", unit="notebook", disable=None):
            of[student] += graded(student, path, execute, seconds)
        rows = [row for mine in of.values() for row in mine]
        write_text(beside / "grades.csv", table([column.name for column in fields(Grade)], list(map(asdict, rows))))
        totals = [dict(student=s, points=sum(row.points for row in mine), of=len(mine)) for s, mine in of.items()]
        write_text(beside / "totals.csv", table(["student", "points", "of"], totals))
        for student, mine in of.items():
            write_text(beside / "reports" / f"{student}.md", report(student, mine))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="what was handed in: FOLDER/STUDENT/LESSON.ipynb")
    parser.add_argument("--execute", action="store_true", help="run the answers, each in a process with limits")
    parser.add_argument("--seconds", type=float, default=10, help="that an answer may take (10)")
    parser.add_argument("--out", type=Path, default=Path("out/grades"), help="where the CSV files and reports go")
    parser.add_argument("--overwrite", action="store_true", help="replace grades that are there")


def command(options: argparse.Namespace) -> int:
    rows = grade(options.folder, options.out, options.execute, options.seconds, options.overwrite)
    students = {row.student for row in rows}
    points, flagged = sum(row.points for row in rows), sum(bool(row.flags) for row in rows)
    print(f"{len(students)} students, {points} of {len(rows)} points, {flagged} answers to be read by you.")
    print(f"See {options.out}/grades.csv, totals.csv and reports/.")
    if not options.execute:
        print("Nothing was run: these are the notebooks' own words. With --execute the answers are run and judged.")
    return 0
