"""Two editions of every lesson from its one source: `python -m amp_tutorial.course.editions [--out out/editions]`.

`student/` has notebooks that nobody has run: no output, no solution; each exercise is its solution with blanks, and
what stands below a prediction is folded. `instructor/` has the solutions in place, beside each the mistakes that the
check knows, and slides and the answers to the quizzes. All are notebooks as nbgrader has them: an answer is a cell to
fill, a check one that is locked and gives a point. `--students class.csv` makes a folder for each name in the first
column, with a seed of its own.
"""

import argparse
import ast
import csv
import hashlib
import inspect
import re
import sys
import textwrap
import types
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

from ..files import DATA, NOTEBOOKS, SOURCES
from ..files.atomic import new_folder, reason, write_text
from . import exercises
from .grading import OURS
from .html_pages import slides_of
from .site import retell
from .sources import COMPARED, Cell, Source, notebook, parse
from .translation import lessons, translated

CHECK = re.compile(r"^(\w+) = L\.check\((\w+), \"(\w+)\"\)$", re.MULTILINE)
PREDICTED = re.compile(r"^L\.predict\(", re.MULTILINE)
QUIZZES = DATA / "quizzes.yaml"


@dataclass
class Asked:
    """A cell that asks for an exercise: what stands before the function, the function's head, and the check."""

    exercise: str
    before: str
    head: str  # its `def` and its docstring
    check: str


def asked(cell: Cell) -> Asked | None:
    """The exercise that a cell asks for, if it does.

    Raises:
        ValueError: the cell is written in another form than a function and its check.
    """
    if cell.kind != "code" or not (found := CHECK.search(cell.source)):
        return None
    lines, tree = cell.source.splitlines(), ast.parse(cell.source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == found[2]]
    if len(functions) != 1 or cell.source[found.end() :].strip():
        raise ValueError(f"An exercise is one function {found[2]} and, as the last line, its check {found[0]}.")
    (function,) = functions
    told = function.body[0] if ast.get_docstring(function) is not None else None
    first_line, end = function.lineno - 1, (told.end_lineno or 0) if told else function.body[0].lineno - 1
    return Asked(found[3], "\n".join(lines[:first_line]), "\n".join(lines[first_line:end]), found[0])


def _lines(exercise: exercises.Exercise) -> tuple[list[str], int, ast.FunctionDef]:
    """The lines of a solution, at which its body begins below the docstring, and its tree."""
    source = textwrap.dedent(inspect.getsource(exercise.reference)).strip()
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    told = ast.get_docstring(function) is not None
    return source.splitlines(), (function.body[0].end_lineno if told else function.body[0].lineno - 1) or 0, function


def solution(exercise: exercises.Exercise) -> str:
    """The lines of a solution below its docstring, indented."""
    lines, start, _ = _lines(exercise)
    return "\n".join(lines[start:])


def blanked(exercise: exercises.Exercise) -> str:
    """A solution with a blank, `...`, for whatever is assigned, returned or handed over; loops and conditions stay."""
    lines, start, function = _lines(exercise)
    blanks: list[ast.expr] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return) and node.value is not None:
            blanks.append(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # as in kept.remove(…)
            blanks += node.value.args
    # from the end, so that what lies before keeps its place; offsets are in bytes
    for value in sorted(blanks, key=lambda value: (value.lineno, value.col_offset), reverse=True):
        first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
        head = lines[first].encode()[: value.col_offset].decode()
        tail = lines[last].encode()[value.end_col_offset :].decode()
        lines[first : last + 1] = [head + "..." + re.sub(r"\s*#.*", "", tail)]
    return "\n".join(lines[start:])


def imports(exercise: exercises.Exercise) -> str:
    """The imports that a solution needs, a line each."""
    function: Any = exercise.reference
    codes, names = [function.__code__], set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names) & function.__globals__.keys()
        codes += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
    found = []
    for name in sorted(names):
        given = function.__globals__[name]
        module = isinstance(given, types.ModuleType)
        found.append(f"import {name}" if module else f"from {given.__module__.partition('._')[0]} import {name}")
    return "".join(f"{line}\n" for line in found)


def _graded(cell: NotebookNode, name: str, points: int = 0) -> None:
    """Mark a cell as nbgrader's: an answer, or with points a check."""
    cell.metadata["nbgrader"] = {
        "cell_type": "code",
        "grade": bool(points),
        "grade_id": name if points else f"answer_{name}",
        "locked": bool(points),
        "schema_version": 3,
        "solution": not points,
        "task": False,
    } | ({"points": points} if points else {})


@dataclass
class Edition(ABC):
    """How one edition tells a source."""

    name: str
    notes: Mapping[str, Any] = field(default_factory=dict)  # of the instructor, by lesson

    def cells(self, source: Source, stem: str) -> list[tuple[Cell, str, int]]:
        """The cells of a lesson, each with the exercise that it is of, and its points."""
        found: list[tuple[Cell, str, int]] = []
        predicted = False
        for cell in source.cells:
            if one := asked(cell):
                answer = "\n\n\n".join(part.rstrip() for part in self.answer(one) if part.strip())
                found += [(Cell("code", answer, ["answer"]), one.exercise, 0)]
                found += [(Cell("code", f'{one.check}\nL.points("{one.exercise}")', ["check"]), one.exercise, 1)]
                found += [(Cell("markdown", text), "", 0) for text in self.after(one)]
            elif cell.kind == "code":
                found.append((cell, "", 0))
                predicted |= bool(PREDICTED.search(cell.source))
            else:
                text = "\n".join(line for line in cell.source.splitlines() if not line.startswith("{{solution:"))
                text = re.sub(r"\n{3,}", "\n\n", text).strip()
                found.append((Cell(cell.kind, self.below(text) if predicted else text, cell.tags), "", 0))
                predicted = False
        if stem in self.notes:
            told = "\n".join(f"> {line}" for line in textwrap.wrap(self.notes[stem]["notes"], 110))
            found.insert(1, (Cell("markdown", f"> **For the instructor.**\n{told}"), "", 0))
        return found

    @abstractmethod
    def answer(self, one: Asked) -> list[str]:
        """The parts of the cell of an exercise's answer; two empty lines go between."""

    def after(self, one: Asked) -> list[str]:
        """What stands below its check."""
        return []

    def below(self, text: str) -> str:
        """The text below a prediction."""
        return text


class Student(Edition):
    """No solutions, blanks to fill, and what follows a prediction folded."""

    def answer(self, one: Asked) -> list[str]:
        return [one.before, f"{one.head}\n{blanked(exercises.named(one.exercise))}"]

    def below(self, text: str) -> str:
        told, heading, rest = ("", "", text) if text.startswith("#") else text.partition("\n#")
        if not told.strip():
            return text
        return f"<details><summary>Read on once you have predicted</summary>\n\n{told}\n\n</details>\n{heading}{rest}"


class Instructor(Edition):
    """Solutions in place, between nbgrader's marks, and the mistakes that the check knows."""

    def answer(self, one: Asked) -> list[str]:
        exercise = exercises.named(one.exercise)
        solved = f"    ### BEGIN SOLUTION\n{solution(exercise)}\n    ### END SOLUTION"
        return [imports(exercise), one.before, f"{one.head}\n{solved}"]

    def after(self, one: Asked) -> list[str]:
        mistakes = "\n".join(f"- {sentence}" for sentence in exercises.named(one.exercise).misconceptions)
        return [f"**Expected mistakes**, and what the check says of each:\n\n{mistakes}"]


def edition(source: Source, stem: str, how: Edition, student: str = "", running: int = 0) -> NotebookNode:
    """The notebook of an edition, without outputs.

    Args:
        student: whose it is: its seed is theirs.
        running: minutes, as measured.
    """
    told = how.cells(source, stem)
    timed = replace(source, cells=[cell for cell, _, _ in told], english=source.timed)
    made = notebook(timed, stem, running)
    there = {f"notebooks/{path.stem}.ipynb" for path in SOURCES.glob("*.py")}
    seed = f"seed: int = {seed_of(student)}"
    # `notebook` puts a badge before the first cell, and the setup after it
    for cell, (given, exercise, points) in zip([made.cells[1], *made.cells[3:]], told, strict=True):
        cell.source = cell.source.removeprefix(f"{COMPARED}\n")
        if exercise:
            _graded(cell, exercise, points)
        if student and "parameters" in given.tags:
            cell.source = re.sub(r"^seed: int = \d+", seed, cell.source, flags=re.MULTILINE)
    retell(made, PurePosixPath(f"notebooks/{stem}.ipynb"), there)
    owner = {"student": student, "seed": seed_of(student)} if student else {}
    made.metadata[OURS] = {"lesson": stem, "edition": how.name} | owner
    nbformat.validate(made)
    return made


def seed_of(student: str) -> int:
    """The seed of a student, the same at every call: 1 to 9999."""
    return 1 + int(hashlib.sha256(student.encode()).hexdigest(), 16) % 9999


def leaks(made: NotebookNode) -> list[str]:
    """What a student should not find in a notebook, a sentence each: an output, or most of a solution."""
    ran = [cell for cell in made.cells if cell.get("outputs") or cell.get("execution_count")]
    found = [f"Cell {cell.id} has been run." for cell in ran]
    for cell in made.cells:
        there = {_bare(line) for line in cell.source.splitlines()}
        for name, telling in _telling().items():
            if len(telling & there) > len(telling) / 2:
                found.append(f"Cell {cell.id} tells the solution of {name}.")
    return found


@cache
def _telling() -> dict[str, set[str]]:
    """The lines of each solution that are not the same with blanks; a lesson may show one of several."""
    every = exercises.all_exercises().items()
    lines = {name: [{_bare(line) for line in f(one).splitlines()} for f in (solution, blanked)] for name, one in every}
    return {name: solved - blank for name, (solved, blank) in lines.items()}


def _bare(line: str) -> str:
    return re.sub(r"\s*#.*", "", line.strip())


def quiz(stem: str, answers: bool) -> str:
    """The quiz of a lesson as Markdown; the answers apart from the questions."""
    told = []
    for number, one in enumerate(quizzes()[stem]["quiz"], start=1):
        choices = one.get("choices", [])
        if answers:
            right = f"({'abcdefgh'[one['answer']]}) {choices[one['answer']]}" if choices else one["answer"]
            told.append(f"{number}. **{right}** {one['why']}")
        else:
            listed = [f"   - ({'abcdefgh'[k]}) {choice}" for k, choice in enumerate(choices)]
            told.append("\n".join([f"{number}. {one['question']}", *listed]))
    return "\n\n".join(told)


@cache
def quizzes() -> dict[str, Any]:
    """The quiz, the goals and the notes of each lesson."""
    found: dict[str, Any] = yaml.safe_load(QUIZZES.read_text(encoding="utf-8"))
    return found


def names(roster: Path) -> list[str]:
    """The students of a class: the first column of a CSV file, without a heading called "student" or "name".

    Raises:
        ValueError: no such file, none in it, one twice, or one that can't be a folder's name.
    """
    try:
        rows = list(csv.reader(roster.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{roster} can't be read as a CSV file of students: {reason(error)}.") from error
    found = [row[0].strip() for row in rows if row and row[0].strip()]
    if found and found[0].lower() in ("student", "name"):
        found = found[1:]
    if not found:
        raise ValueError(f"{roster} names no student; write one a line, in the first column.")
    for name in found:
        if not re.fullmatch(r"[\w@+-][\w .@+-]*", name) or len(name) > 100:
            raise ValueError(f"{roster}: {name!r} can't be a folder's name; use letters, digits, spaces and . _ - @ +.")
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise ValueError(f"{roster} names {twice[0]!r} twice; each student needs a name of their own.")
    return found


def write(
    out: Path, students: Sequence[str] = (), stems: Sequence[str] = (), overwrite: bool = False, language: str = ""
) -> int:
    """Write both editions into a new folder; the number of notebooks.

    Args:
        stems: beginnings of the lessons' names; all if none is given.
        language: of those that have one in it; the others stay English.
        overwrite: whether editions that are there are replaced, and with them what was written into them.

    Raises:
        ValueError: something is in the folder; no lesson begins so; the student edition would tell a solution.
    """
    known = sorted(path.stem for path in SOURCES.glob("*.py"))
    if unknown := [stem for stem in stems if not any(name.startswith(stem) for name in known)]:
        raise ValueError(f"No lesson begins with {', '.join(unknown)}; there are {', '.join(known)}.")
    begun = lessons(language) if language else []
    many, asked_of = 0, {False: "", True: ""}  # the questions, and the answers
    with new_folder(out, overwrite=overwrite, replaced=["student/*", "instructor/*"]) as beside:
        for path in sorted(SOURCES.glob("*.py")):
            stem = path.stem
            if stems and not stem.startswith(tuple(stems)):
                continue
            source, stored = parse(path.read_text(encoding="utf-8")), nbformat.read(NOTEBOOKS / f"{stem}.ipynb", 4)
            if stem in begun:
                source = translated(source, language)
            running = stored.metadata.get("running", 0)
            made = {Path("instructor"): edition(source, stem, Instructor("instructor", quizzes()), running=running)}
            for student in students or [""]:
                made[Path("student") / student] = edition(source, stem, Student("student"), student, running)
            for folder, book in made.items():
                if folder.parts[0] == "student" and (told := leaks(book)):
                    raise ValueError(f"{stem}: the student edition would tell a solution. {told[0]}")
                (beside / folder).mkdir(parents=True, exist_ok=True)
                nbformat.write(book, beside / folder / f"{stem}.ipynb")
                many += 1
            if stem in quizzes():
                write_text(beside / f"instructor/slides/{stem}.html", slides_of(stored))
                for answers in asked_of:
                    asked_of[answers] += f"## {source.title}\n\n{quiz(stem, answers)}\n\n"
        if any(asked_of.values()):
            write_text(beside / "student/quiz.md", asked_of[False])
            write_text(beside / "instructor/quiz_answers.md", asked_of[True])
    return many


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the student and the instructor edition of the lessons.")
    parser.add_argument("--out", type=Path, default=Path("out/editions"), help="the folder for both")
    parser.add_argument(
        "--students", type=Path, help="a CSV file: a folder and a seed for each name in its first column"
    )
    parser.add_argument("--lessons", nargs="*", default=[], help="beginnings of names, such as 00 02; default all")
    parser.add_argument("--language", default="", help="of lessons that are translated to it")
    parser.add_argument("--overwrite", action="store_true", help="replace editions that are there")
    options = parser.parse_args(arguments)
    try:
        students = names(options.students) if options.students else ()
        many = write(options.out, students, options.lessons, options.overwrite, options.language)
    except ValueError as error:
        parser.error(str(error))
    print(f"{many} notebooks are in {options.out}/student and {options.out}/instructor.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
