"""Grade what students handed in: `amp-tutorial grade FOLDER [--execute]`, to a CSV file and a report for each student.

Of a notebook only the answers count: each is found by its check or its mark, wherever it stands, and judged against
the reference as the lesson does. Nothing that a student wrote is run without `--execute`; then each answer runs in a
process of its own, with a limit on its time, memory and files, and without a network. That stops accidents and simple
tricks, not a determined attack: for one, run the command in a container. (Linux and macOS.)
"""

import argparse
import ast
import csv
import io
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat
from tqdm import tqdm

from ..files.atomic import new_folder, reason, write_text
from . import exercises

LARGEST = 20 * 2**20  # bytes of a notebook that is read
MEMORY = 4 * 2**30  # bytes that an answer may take beside what is there
FILES = 2**20  # bytes that a file of its own may have
OURS = "amp_tutorial"
SAYS = re.compile(r"^(?:✔|✎) (\w+): (right|[^\n]*)", re.MULTILINE)
# What an answer has no reason to name: the module that has all answers, and ways to look into running code.
LOOKS = {"exercises", "reference", "named", "all_exercises", "getsource", "getclosurevars", "_getframe", "gc"}
# Events of Python's audit hooks that an answer is stopped at; writing is allowed in its own folder.
REFUSED = (
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec",
    "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg", "ctypes.dlopen", "pty.spawn",
)  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
           "os.truncate", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip

POINTS = {"right": 1}
WORDS = {
    "missing": "not handed in: no cell of this notebook asks for it or answers it.",
    "not run": "not run; the notebook says nothing of it. Use --execute.",
    "claimed": "the notebook says that it is right; it was not run here.",
    "endless": "it did not end in {seconds:g} s.",
    "died": "it ended the process in which it ran.",
}


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


def answers(book: Any, wanted: Sequence[str]) -> list[Answer]:
    """The answer to each exercise, wherever in the notebook it stands; of several the last."""
    found = {name: Answer(name) for name in wanted}
    parsed: list[tuple[Any, ast.Module | None]] = []
    for cell in book.cells:
        if cell.cell_type == "code":
            with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
                parsed.append((cell, ast.parse(cell.source)))
                continue
            parsed.append((cell, None))
    for cell, tree in parsed:  # what each is called, and what was said
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
    for cell, tree in parsed:
        mark = str(cell.metadata.get("nbgrader", {}).get("grade_id", "")).removeprefix("answer_")
        marked = found.get(mark) if cell.metadata.get("nbgrader", {}).get("solution") else None
        if tree is None:
            holds = (a for a in found.values() if a.function and f"def {a.function}(" in cell.source)
            if guess := marked or next(holds, None):
                guess.source = cell.source
            continue
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        if marked and defined and marked.function not in defined:
            marked.function, marked.flags = defined[-1], f"its function is called {defined[-1]}"
        for answer in found.values():
            if answer.function in defined or (answer is marked and defined):
                answer.source = _own(tree)
    for answer in found.values():
        answer.flags = "; ".join(filter(None, (answer.flags, _looks(answer.source))))
    return list(found.values())


def _own(tree: ast.Module) -> str:
    """What of a cell an answer needs: imports, functions, classes and constants, nothing that calls the lesson."""
    kept = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
            kept.append(node)
        elif isinstance(node, ast.Assign):
            with suppress(ValueError, TypeError, RecursionError):
                ast.literal_eval(node.value)
                kept.append(node)  # type: ignore[arg-type]
    return "\n".join(ast.unparse(node) for node in kept)


def _looks(source: str) -> str:
    """Whether an answer names what it has no reason to name."""
    with suppress(SyntaxError, ValueError, RecursionError):
        names = {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)}
        names |= {part for n in ast.walk(ast.parse(source)) if isinstance(n, ast.alias) for part in n.name.split(".")}
        if seen := sorted(names & LOOKS):
            return f"read it: it names {', '.join(seen)}"
    return ""


def judged(answer: Answer, shared: str, seconds: float) -> tuple[str, str]:
    """Run an answer in a process of its own and judge it; the verdict and a sentence.

    Args:
        shared: imports and functions of the rest of the notebook, which it may use.
    """
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(answer, shared, folder, writer, seconds)
        os.close(writer)
        said, deadline = b"", time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
            if not (part := os.read(reader, 65536)):
                break
            said += part
        over = time.monotonic() >= deadline
        os.close(reader)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        verdict = json.loads(said)
        return str(verdict["kind"]), str(verdict["sentence"])
    except (ValueError, KeyError, TypeError):
        kind = "endless" if over else "died"
        return kind, WORDS[kind].format(seconds=seconds)


def _child(answer: Answer, shared: str, folder: str, writer: int, seconds: float) -> None:
    """In the process of an answer; it never returns."""
    stopped: list[str] = []
    try:
        os.setsid()
        os.chdir(folder)
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        sys.stdout = sys.stderr = io.StringIO()
        sys.dont_write_bytecode = True
        _no_network()
        for what, most in (
            (resource.RLIMIT_CPU, int(seconds) + 1),
            (resource.RLIMIT_FSIZE, FILES),
            (resource.RLIMIT_AS, _in_use() + MEMORY),
        ):
            with suppress(ValueError, OSError):
                resource.setrlimit(what, (most, most))
        sys.addaudithook(_hook(folder, stopped))
        verdict = _verdict(answer, shared)
        if stopped and verdict.kind != "right":
            verdict = exercises.Verdict("refused", f"not yet. While grading this is not allowed: {stopped[0]}.")
        told = {"kind": verdict.kind, "sentence": verdict.sentence}
    except BaseException:
        told = {"kind": "raised", "sentence": f"not yet. {traceback.format_exc().splitlines()[-1]}."}
    with suppress(BaseException):
        os.write(writer, json.dumps(told).encode())
    os._exit(0)


def _verdict(answer: Answer, shared: str) -> exercises.Verdict:
    names: dict[str, Any] = {"__name__": "answer"}
    for node in _needed(answer.source, shared):
        with suppress(Exception):  # what is missing is told by the answer that stops
            exec(compile(ast.Module([node], []), "<notebook>", "exec"), names)
    try:
        exec(compile(answer.source, "<answer>", "exec"), names)
    except SyntaxError as error:
        return exercises.Verdict("raised", f"not yet. The cell is no Python: {error.msg}, line {error.lineno}.")
    except Exception as error:
        return exercises.Verdict("raised", f"not yet. The cell stops with {type(error).__name__}: {error}.")
    return exercises.judge(names.get(answer.function), exercises.named(answer.exercise))


def _needed(source: str, shared: str) -> list[ast.stmt]:
    """Of the imports and functions of a notebook those that an answer names, or that these name."""
    with suppress(SyntaxError, ValueError, RecursionError):
        nodes, wanted, kept = ast.parse(shared).body, _names(ast.parse(source)), set[int]()
        while new := [k for k, node in enumerate(nodes) if k not in kept and _binds(node) & wanted]:
            kept |= set(new)
            wanted |= {name for k in new for name in _names(nodes[k])}
        return [nodes[k] for k in sorted(kept)]
    return []


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _binds(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return {node.name} if isinstance(node, ast.FunctionDef) else set()


def _no_network() -> None:
    """Leave all networks, where the system lets a user do so; elsewhere the hook refuses them."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x40000000)  # a user and a network of its own


def _in_use() -> int:
    """Bytes of address space that the process has."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 64 * 2**30


def _hook(folder: str, stopped: list[str]) -> Any:
    own, read = os.path.realpath(folder), os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def inside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        return os.path.realpath(os.fsdecode(path)).startswith(own + os.sep)

    def refuse(what: str) -> None:
        stopped.append(what)
        raise PermissionError(f"not allowed while grading: {what}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = any(letter in (mode or "") for letter in "wax+") or (isinstance(flags, int) and flags & read)
            if writes and not inside(path) and path != os.devnull:
                refuse(f"writing to {path}")
        elif event.startswith(REFUSED):
            refuse(event)
        elif event.startswith(CHANGES) and not all(inside(a) for a in args if isinstance(a, str | bytes)):
            refuse(f"{event} outside its folder")

    return hook


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
        every = lesson_exercises()
        by_name = every.get(lesson_key(str(told.get("lesson") or path.stem)), [])
        named = re.findall(r"L\.check\([^,]+, \"(\w+)\"\)", "\n".join(cell.source for cell in book.cells))
        wanted = by_name or next((names for names in every.values() if set(names) & set(named)), [])
        if not wanted and told.get("lesson"):
            return []  # of ours, and it asks for nothing
        if not wanted:
            raise ValueError("it is of no lesson with exercises: its name and its cells name none")
        found = answers(book, wanted)
    except (
        OSError,
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        RecursionError,
        nbformat.ValidationError,
    ) as error:
        return [Grade(student, path.stem, "", "unreadable", 0, f"{path.name} can't be graded: {reason(error)}.")]
    lesson = str(told.get("lesson") or path.stem)
    flags = _another(student, told, book)
    # cells of a name's own, without the lesson's
    shared = "\n".join(_shared(book))
    rows = []
    for answer in found:
        if not answer.source:
            kind, sentence = "missing", WORDS["missing"]
        elif execute:
            kind, sentence = judged(answer, shared, seconds)
        elif answer.said.startswith("right"):
            kind, sentence = "claimed", WORDS["claimed"]
        elif answer.said:
            kind, sentence = "unsolved", answer.said
        else:
            kind, sentence = "not run", WORDS["not run"]
        noted = "; ".join(filter(None, (answer.flags, flags)))
        rows.append(Grade(student, lesson, answer.exercise, kind, POINTS.get(kind, 0), sentence, noted))
    return rows


def _another(student: str, told: dict[str, Any], book: Any) -> str:
    """Whether a notebook was made for another student, or its seed was changed."""
    owner = told.get("student")
    if owner and owner != student:
        return f"this notebook was made for {owner}"
    seeds = re.findall(r"^seed: int = (\d+)", "\n".join(c.source for c in book.cells), re.MULTILINE)
    if owner and seeds[:1] != [str(told.get("seed"))]:
        return "its seed is not the student's"
    return ""


def _shared(book: Any) -> Iterator[str]:
    """The imports, functions and constants of all cells."""
    for cell in book.cells:
        if cell.cell_type == "code":
            with suppress(SyntaxError, ValueError, RecursionError):
                tree = ast.parse(cell.source)
                kept = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom | ast.FunctionDef)]
                yield "\n".join(ast.unparse(node) for node in kept)


def report(student: str, rows: Sequence[Grade]) -> str:
    """What a student reads: each exercise with its verdict, in words."""
    lines = [f"# {student}", "", f"{sum(row.points for row in rows)} of {len(rows)} points.", ""]
    for lesson in dict.fromkeys(row.lesson for row in rows):
        mine = [row for row in rows if row.lesson == lesson]
        lines += [f"## {lesson}: {sum(row.points for row in mine)} of {len(mine)}", ""]
        lines += [f"- **{row.exercise or 'the notebook'}**: {row.sentence}" for row in mine] + [""]
    return "\n".join(lines)


def table(rows: Sequence[Grade]) -> str:
    """All rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        told = {k: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@" and v else v for k, v in asdict(row).items()}
        writer.writerow(told)
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
    if execute and not hasattr(os, "fork"):
        raise ValueError("Answers are run on Linux and macOS only; without --execute what they say is gathered.")
    if not 0 < seconds <= 3600:
        raise ValueError(f"seconds={seconds:g} is no time for an answer; give 1 to 3600.")
    import torch

    torch.set_num_threads(1)  # a fork of a process with more would wait for threads that it has not
    with new_folder(out, overwrite=overwrite, replaced=["grades.csv", "totals.csv", "reports/*.md"]) as beside:
        rows = [
            row
            for student, path in tqdm(found, desc="Graded", unit="notebook", disable=None)
            for row in graded(student, path, execute, seconds)
        ]
        of: dict[str, list[Grade]] = defaultdict(list)
        for row in rows:
            of[row.student].append(row)
        write_text(beside / "grades.csv", table(rows))
        totals = "".join(f"{_quoted(s)},{sum(r.points for r in mine)},{len(mine)}\n" for s, mine in of.items())
        write_text(beside / "totals.csv", f"student,points,of\n{totals}")
        (beside / "reports").mkdir()
        for student, mine in of.items():
            write_text(beside / "reports" / f"{student}.md", report(student, mine))
    return rows


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n]', text) else text


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
