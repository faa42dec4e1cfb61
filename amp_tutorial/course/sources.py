"""Lesson sources: from percent format to the unexecuted notebook. The same source always gives the same notebook.

A source's first line is `# lesson: title`, and a line `# reading: 20` may follow (minutes a reader needs; otherwise
estimated from the number of words). Then cells: `# %% [markdown]` with comment lines, `# %%` with code,
`# %% tags=["parameters"]` with code and tags. In markdown, `{{minutes}}` is the measured time, and on lines of their
own `{{hint:NAME}}` and `{{solution:NAME}}` become an exercise's folded hints and the folded source of its reference.
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

from ..files.paths import ROOT
from . import exercises

CELL = re.compile(r"^# %%\s*(?P<markdown>\[markdown\])?\s*(?:tags=(?P<tags>\[.*\]))?\s*$")
PLACEHOLDER = re.compile(r"^\{\{(hint|solution):(\w+)\}\}$", re.MULTILINE)
WORDS_PER_MINUTE = 100  # slow, as technical text is read with pauses to predict and to try

SETUP = """\
# Setup: uses this repository or an installed package; elsewhere (Colab, Kaggle) it installs the package first.
import importlib.metadata, importlib.util, pathlib, subprocess, sys, tempfile

if importlib.util.find_spec("amp_tutorial") is None:
    here = pathlib.Path.cwd()
    clone = next((p for p in (here, *here.parents) if (p / "amp_tutorial" / "__init__.py").is_file()), None)
    if clone is not None:
        sys.path.insert(0, str(clone))
    else:  # what the machine has of these stays as it is
        keep = [f"{d.name}=={d.version}" for d in importlib.metadata.distributions() if d.name in ("torch", "numpy")]
        pins = pathlib.Path(tempfile.mkdtemp()) / "keep.txt"
        pins.write_text("\\n".join(keep))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(pins)]
        done = subprocess.run([*pip, "git+ADDRESS"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Nothing was installed. With {' and '.join(keep)} kept, pip says: {done.stderr[-800:]}")
        from amp_tutorial.runs import this_machine

        this_machine.checked()  # that what is loaded is what is installed, before anything is fetched"""


@dataclass
class Cell:
    kind: str  # "markdown" or "code"
    source: str
    tags: list[str] = field(default_factory=list)


@dataclass
class Source:
    """A lesson's source, parsed."""

    title: str
    reading: int  # minutes
    cells: list[Cell]


def address() -> str:
    """The repository's address, from its one place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"])


def parse(text: str) -> Source:
    """Read a source.

    Raises:
        ValueError: no title, text before the first cell, an unknown cell header, or a markdown line that is no comment.
    """
    lines = text.splitlines()
    if not lines or not lines[0].startswith("# lesson: "):
        raise ValueError("The first line must be `# lesson: title`.")
    title, reading, cells = lines[0].removeprefix("# lesson: ").strip(), 0, []
    for number, line in enumerate(lines[1:], start=2):
        if line.startswith("# %%"):
            header = CELL.match(line)
            if header is None:
                raise ValueError(
                    f'Line {number}: {line!r} is no cell header; write `# %% [markdown]` or `# %% tags=["…"]`.'
                )
            cells.append(Cell("markdown" if header["markdown"] else "code", "", json.loads(header["tags"] or "[]")))
        elif not cells:
            if line.startswith("# reading: "):
                reading = int(line.removeprefix("# reading: "))
            elif line.strip():
                raise ValueError(f"Line {number} stands before the first cell: {line!r}.")
        elif cells[-1].kind == "code":
            cells[-1].source += line + "\n"
        else:
            if line.strip() and line != "#" and not line.startswith("# "):
                raise ValueError(f"Line {number} in a markdown cell does not begin with `# `: {line!r}.")
            cells[-1].source += line[2:] + "\n"
    for cell in cells:
        cell.source = cell.source.strip("\n")
    words = sum(len(cell.source.split()) for cell in cells if cell.kind == "markdown")
    return Source(title, reading or ceil(words / WORDS_PER_MINUTE), cells)


def fold(match: re.Match[str]) -> str:
    """The folded hints or solution of an exercise."""
    exercise = exercises.named(match[2])
    if match[1] == "hint":
        folds = [(f"Hint {i}", hint) for i, hint in enumerate(exercise.hints, start=1)]
    else:
        code = textwrap.dedent(inspect.getsource(exercise.reference)).strip()
        folds = [("Solution", f"```python\n{code}\n```")]
    return "\n\n".join(f"<details><summary>{name}</summary>\n\n{text}\n\n</details>" for name, text in folds)


def notebook(source: Source, stem: str, minutes: int = 0) -> NotebookNode:
    """The unexecuted notebook; the same source always gives the same cells with the same ids."""
    link = address().replace("https://github.com/", "https://colab.research.google.com/github/")
    badge = (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"({link}/blob/main/notebooks/{stem}.ipynb)"
    )
    first, *rest = source.cells
    if not (first.kind == "markdown" and first.source.startswith("# ")):
        raise ValueError(f"{stem}: the first cell must be markdown that begins with the title as a heading.")
    setup = Cell("code", SETUP.replace("ADDRESS", address()), ["setup"])
    cells = []
    for index, cell in enumerate([Cell("markdown", badge), first, setup, *rest]):
        text = cell.source
        if cell.kind == "markdown":
            text = PLACEHOLDER.sub(fold, text).replace("{{minutes}}", str(minutes))
            if "{{" in text:
                raise ValueError(
                    f"{stem}: cell {index} holds an unknown placeholder: {text[text.index('{{') :][:40]!r}."
                )
        new = nbformat.v4.new_markdown_cell if cell.kind == "markdown" else nbformat.v4.new_code_cell
        cells.append(new(text, id=f"{stem}-{index:02d}", metadata={"tags": cell.tags} if cell.tags else {}))
    metadata = {
        "title": source.title,
        "minutes": minutes,
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)
