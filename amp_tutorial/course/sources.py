"""Lesson sources: from percent format to the unexecuted notebook. The same source always gives the same notebook.

A source's first line is `# lesson: title`. Then cells: `# %% [markdown]` with comment lines, `# %%` with code,
`# %% tags=["parameters"]` with code and tags. In markdown, `{{minutes}}` is the time that a lesson takes, as three sums
(`Source`, and running it as measured), and on lines of their own `{{hint:NAME}}` and `{{solution:NAME}}` become an
exercise's folded hints and the folded source of its reference. Where a term of docs/glossary.md is first mentioned, it
becomes a link to it.
"""

import inspect
import json
import re
import textwrap
import tomllib
from dataclasses import dataclass, field
from math import ceil

import nbformat
from nbformat import NotebookNode

from ..files import ROOT
from . import exercises

CELL = re.compile(r"^# %%\s*(?P<markdown>\[markdown\])?\s*(?:tags=(?P<tags>\[.*\]))?\s*$")
PLACEHOLDER = re.compile(r"^\{\{(hint|solution):(\w+)\}\}$", re.MULTILINE)
COMPARED = "# NBVAL_CHECK_OUTPUT"  # first line of a cell whose output nbval compares
UNCOMPARED = "nbval-ignore-output"  # the tag of all others, so that plain nbval passes as its lax form does
HIDDEN = "hide-input"  # the tag of a cell that is only there for what it shows: folded in JupyterLab, Colab, books
WORDS_PER_MINUTE = 150  # of prose; code is not counted
PREDICTION = 0.5  # minutes, for each "**Predict"
EXERCISE = re.compile(r"^\*(?:Easy|Medium|Hard), (\d+) minutes?\.\*", re.MULTILINE)

GLOSSARY = "../docs/glossary.md"  # as a notebook sees it
# Where a word is not made a link: references, code, formulas, headings, links.
APART = re.compile(
    r"^## References.*|```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\[[^\]]*\]\([^)]*\)|^#[^\n]*$|<[^>]*>",
    re.DOTALL | re.MULTILINE,
)

SETUP = """\
# Setup: uses this repository or an installed package; elsewhere (Colab, Kaggle) it installs the package first.
import importlib.metadata, importlib.util, os, pathlib, re, subprocess, sys, tempfile

found = importlib.util.find_spec("amp_tutorial")
ready = found is not None and found.origin is not None  # else not there, or a folder called so, with a clone in it
if not ready:
    here, given = pathlib.Path.cwd(), pathlib.Path("/kaggle/input")
    places = [here, *here.parents, *here.glob("*"), *given.glob("*"), *given.glob("*/*")]
    clone = next((p for p in places if os.path.isfile(p / "amp_tutorial" / "__init__.py")), None)
    files = [f for p in places for kind in ("whl", "zip") for f in sorted(p.glob(f"amp_tutorial*.{kind}"))]
    source = str(files[0]) if files else "SOURCE"
    if clone is not None:
        sys.path.insert(0, str(clone))
    elif not source:
        raise RuntimeError("NOWHERE")
    else:  # what the machine has stays as it is, to the last package: its kernel stands on some of them
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        has = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout
        keep = pathlib.Path(tempfile.mkdtemp()) / "keep.txt"
        keep.write_text(has)
        command = [*pip, "install", "--quiet", "--constraint", str(keep), source]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            ways = ", ".join(dict.fromkeys(re.findall(r"\\(constraint\\) (\\S+)", done.stdout + done.stderr)))
            said = f"{ways} stands in the way, and stays as it is" if ways else "what the machine has is kept"
            raise RuntimeError(f"Nothing was installed: {said}; pip says: {done.stderr[-800:]}")
    importlib.invalidate_caches()
try:
    importlib.metadata.version("amp-tutorial")
except importlib.metadata.PackageNotFoundError:  # the clone in whose folder this runs
    ready = False
if not ready:
    from amp_tutorial.runs import this_machine

    this_machine.checked()  # that all it needs is here, and what is loaded is what is installed"""

NOWHERE = (
    "This course has no public address yet. Upload its wheel (`make wheel` writes dist/amp_tutorial-….whl; all in it)"
    " or a zip of the repository, called amp_tutorial….zip, beside this notebook, and run this cell again."
)


@dataclass
class Cell:
    kind: str  # "markdown" or "code"
    source: str
    tags: list[str] = field(default_factory=list)


@dataclass
class Source:
    """A lesson's source, parsed."""

    title: str
    cells: list[Cell]
    english: str = ""  # the prose by which times are told, of a source in another language
    time: tuple[str, str, str, str] = ("{n} minutes", "{n} to read", "{n} for the exercises", "{n} to run")

    @property
    def prose(self) -> str:
        return "\n".join(cell.source for cell in self.cells if cell.kind == "markdown")

    @property
    def timed(self) -> str:
        return self.english or self.prose

    @property
    def reading(self) -> int:
        """Minutes, by the number of words and of predictions."""
        return ceil(len(self.timed.split()) / WORDS_PER_MINUTE + PREDICTION * self.timed.count("**Predict"))

    @property
    def exercising(self) -> int:
        """Minutes, as its exercises say."""
        return sum(map(int, EXERCISE.findall(self.timed)))


def address() -> str:
    """The repository's address, from its one place; empty as long as that names nobody."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = str(project["urls"]["Repository"])
    return "" if "/OWNER/" in found else found


def setup() -> str:
    """The first code cell of every notebook."""
    return SETUP.replace("SOURCE", f"git+{address()}" if address() else "").replace("NOWHERE", NOWHERE)


def badge(stem: str) -> str:
    """The line above a lesson's title: how to open it on Colab."""
    if not address():
        return (
            "*On Colab or Kaggle:* upload this notebook and, beside it, the course's wheel (`make wheel`); it has no "
            "public address yet that a badge could open."
        )
    link = address().replace("https://github.com/", "https://colab.research.google.com/github/")
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({link}/blob/main/notebooks/{stem}.ipynb)"


def parse(text: str) -> Source:
    """Read a source.

    Raises:
        ValueError: no title, text before the first cell, an unknown cell header, or a markdown line that is no comment.
    """
    lines = text.splitlines()
    if not lines or not lines[0].startswith("# lesson: "):
        raise ValueError("The first line must be `# lesson: title`.")
    title, cells = lines[0].removeprefix("# lesson: ").strip(), []
    for number, line in enumerate(lines[1:], start=2):
        if line.startswith("# %%"):
            header = CELL.match(line)
            if header is None:
                raise ValueError(
                    f'Line {number}: {line!r} is no cell header; write `# %% [markdown]` or `# %% tags=["…"]`.'
                )
            cells.append(Cell("markdown" if header["markdown"] else "code", "", json.loads(header["tags"] or "[]")))
        elif not cells:
            if line.strip():
                raise ValueError(f"Line {number} stands before the first cell: {line!r}.")
        elif cells[-1].kind == "code":
            cells[-1].source += line + "\n"
        else:
            if line.strip() and line != "#" and not line.startswith("# "):
                raise ValueError(f"Line {number} in a markdown cell does not begin with `# `: {line!r}.")
            cells[-1].source += line[2:] + "\n"
    for cell in cells:
        cell.source = cell.source.strip("\n")
    return Source(title, cells)


def glossary() -> dict[str, str]:
    """Terms of the glossary, and where on its page they stand."""
    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    return {term: term.lower().replace(" ", "-") for term in re.findall(r"^## (.+)$", page, re.MULTILINE)}


def linked(texts: list[str]) -> list[str]:
    """The texts of a lesson, each glossary term a link where it is first mentioned."""
    texts, waiting = list(texts), sorted(glossary().items(), key=lambda item: -len(item[0]))
    for term, anchor in waiting:
        word = re.compile(rf"(?<![\w-]){re.escape(term)}s?(?![\w-])", re.IGNORECASE if term.islower() else 0)
        for k, text in enumerate(texts):
            taken = [found.span() for found in APART.finditer(text)]
            free = (m for m in word.finditer(text) if not any(a < m.end() and m.start() < b for a, b in taken))
            if (first := next(free, None)) is not None:
                link = f"[{first[0]}]({GLOSSARY}#{anchor})"
                texts[k] = text[: first.start()] + link + text[first.end() :]
                break
    return texts


def fold(match: re.Match[str]) -> str:
    """The folded hints or solution of an exercise."""
    exercise = exercises.named(match[2])
    if match[1] == "hint":
        folds = [(f"Hint {i}", hint) for i, hint in enumerate(exercise.hints, start=1)]
    else:
        code = textwrap.dedent(inspect.getsource(exercise.reference)).strip()
        folds = [("Solution", f"```python\n{code}\n```")]
    return "\n\n".join(f"<details><summary>{name}</summary>\n\n{text}\n\n</details>" for name, text in folds)


def minutes(source: Source, running: int) -> str:
    """How long a lesson takes, and what of it is what."""
    unit, *kinds = source.time
    parts = dict(zip(kinds, (source.reading, source.exercising, running), strict=True))
    return f"{unit.format(n=sum(parts.values()))} ({', '.join(what.format(n=n) for what, n in parts.items() if n)})"


def notebook(source: Source, stem: str, running: int = 0) -> NotebookNode:
    """The unexecuted notebook; the same source always gives the same cells with the same ids.

    Args:
        running: minutes, as measured.
    """
    first, *rest = source.cells
    if not (first.kind == "markdown" and first.source.startswith("# ")):
        raise ValueError(f"{stem}: the first cell must be markdown that begins with the title as a heading.")
    cells = []
    given = [Cell("markdown", badge(stem)), first, Cell("code", setup(), ["setup", HIDDEN]), *rest]
    prose = iter(linked([cell.source for cell in given if cell.kind == "markdown"]))
    for index, cell in enumerate(given):
        text = next(prose) if cell.kind == "markdown" else cell.source
        if cell.kind == "markdown":
            text = PLACEHOLDER.sub(fold, text).replace("{{minutes}}", minutes(source, running))
            if "{{" in text:
                raise ValueError(
                    f"{stem}: cell {index} holds an unknown placeholder: {text[text.index('{{') :][:40]!r}."
                )
        new = nbformat.v4.new_markdown_cell if cell.kind == "markdown" else nbformat.v4.new_code_cell
        free = cell.kind == "code" and not text.startswith(COMPARED)  # times, and last digits of another machine
        tags = [*cell.tags, *([UNCOMPARED] if free else [])]
        more = {"jupyter": {"source_hidden": True}, "cellView": "form"} if HIDDEN in cell.tags else {}
        cells.append(new(text, id=f"{stem}-{index:02d}", metadata=({"tags": tags} if tags else {}) | more))
    metadata = {
        "title": source.title,
        "minutes": source.reading + source.exercising + running,
        "running": running,
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)
