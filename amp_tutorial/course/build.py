"""Build the notebooks from their sources: `python -m amp_tutorial.course.build [NN ...] [--check]`.

`notebooks/source/NN_name.py` is the only thing edited by hand (`amp_tutorial.course.sources` says how it is written).
It is executed and stored as `notebooks/NN_name.ipynb`, unless something in it should not be committed.
"""

import argparse
import re
import sys
import tempfile
import time
from math import ceil
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ..files import NOTEBOOKS, ROOT, SOURCES
from ..files.atomic import written_file
from ..runs.notebooks import execute_notebook
from .sources import COMPARED, Source, notebook, parse

LIMIT = 3600  # seconds for a lesson


def execute(nb: NotebookNode) -> float:
    """Run all cells, and put outputs and counts into the notebook; the seconds it took.

    Nothing else of the execution is kept: no times of day, no version of Python, no state of widgets.

    Raises:
        ValueError: a cell was not completed.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source, empty = Path(folder) / "source.ipynb", Path(folder) / "empty"
        nbformat.write(nb, source)
        empty.mkdir()
        ended = execute_notebook(source, empty, limit=LIMIT, output=Path(folder) / "executed.ipynb")
    seconds = time.monotonic() - started
    if ended.error or ended.notebook is None:
        raise ValueError(f"{ended.error} (cell {ended.place or 'unknown'})\n{ended.log}".rstrip())
    for cell, ran in zip(nb.cells, ended.notebook.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    return seconds


def faults(nb: NotebookNode) -> list[str]:
    """What keeps an executed notebook from being committed, a sentence each."""
    found = []
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("The execution counts do not run from 1 to the number of code cells.")
    if "widgets" in nb.metadata:
        found.append("It carries widget state.")
    own = [p for p in {str(ROOT), sys.prefix, str(Path.home()), tempfile.gettempdir()} if len(p) > 1]
    for cell in code:
        if cell.source.startswith(COMPARED) and not (cell.outputs and cell.execution_count):
            found.append(f"Cell {cell.id} asks for comparison, but nothing is stored to compare with.")
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                found.append(f"Cell {cell.id} stopped with {output.ename}: {output.evalue}")
            if any("widget" in kind for kind in data):
                found.append(f"Cell {cell.id} shows a widget, which draws nothing outside a live session.")
            for kind in (k for k in data if k.startswith("image/")):
                if not output.metadata.get(kind, {}).get("alt", "").strip():
                    found.append(f"Cell {cell.id} shows a figure without alt text; use L.show(fig, alt=…).")
            text = output.get("text", "") + "".join(str(v) for k, v in data.items() if not k.startswith("image/"))
            text = re.sub(r";base64,[^\"]*", "", text)
            found += [f"Cell {cell.id} prints a path of this machine ({path}/…)." for path in own if f"{path}/" in text]
    return found


def stored_differs(stem: str, source: Source) -> str | None:
    """Why the committed notebook is not what its source gives, or None if it is."""
    path = NOTEBOOKS / f"{stem}.ipynb"
    if not path.is_file():
        return "it was never built"
    stored = nbformat.read(path, as_version=4)
    wanted = notebook(source, stem, stored.metadata.get("running", 0))
    if len(stored.cells) != len(wanted.cells):
        return f"it has {len(stored.cells)} cells, its source gives {len(wanted.cells)}"
    for have, want in zip(stored.cells, wanted.cells, strict=True):
        if any(have.get(k) != want.get(k) for k in ("id", "cell_type", "source")) or have.metadata != want.metadata:
            return f"cell {want.id} differs"
    return None


def build(stem: str, source: Source) -> float:
    """Execute a lesson and store it; nothing is stored if it fails.

    Raises:
        ValueError: the executed notebook can't be committed.
    """
    nb = notebook(source, stem)
    seconds = execute(nb)
    if problems := faults(nb):
        raise ValueError("\n".join(problems))
    said = notebook(source, stem, ceil(seconds / 60))
    nb.metadata = said.metadata
    for cell, fresh in zip(nb.cells, said.cells, strict=True):
        cell.source = fresh.source
    nbformat.validate(nb)
    with written_file(NOTEBOOKS / f"{stem}.ipynb") as beside:
        nbformat.write(nb, beside)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the notebooks from notebooks/source.")
    parser.add_argument("lessons", nargs="*", help="beginnings of names, such as 01 03; all if none is given")
    parser.add_argument("--check", action="store_true", help="only say whether the notebooks equal their sources")
    options = parser.parse_args(arguments)
    paths = {p.stem: p for p in sorted(SOURCES.glob("*.py"))}
    if unknown := [n for n in options.lessons if not any(stem.startswith(n) for stem in paths)]:
        parser.error(f"no source begins with {', '.join(unknown)}; there are {', '.join(paths)}")
    failed = False
    for stem, path in paths.items():
        if options.lessons and not stem.startswith(tuple(options.lessons)):
            continue
        try:
            source = parse(path.read_text(encoding="utf-8"))
            if options.check:
                why = stored_differs(stem, source)
                print(f"{stem}: {f'build it again, {why}' if why else 'as its source'}", flush=True)
                failed |= why is not None
            else:
                print(f"{stem}: built in {build(stem, source):.0f} s", flush=True)
        except Exception as error:
            failed = True
            print(f"{stem}: not built. {error}", file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
