"""Notebooks of a few lines that import no torch: what the tests of runs execute."""

from pathlib import Path

import nbformat

PARAMETERS = 'x = 1  # a number\nword = "a"  # a word\nshare = 0.5\nsure = True\nout = "out"'
RECORD = (  # the smallest record there is: the package's own, without torch
    "from amp_tutorial.runs import record as records\n"
    'r = records.Record("small", dict(x=x, word=word))\n'
    'r.metric("perplexity", x)\n'
    'r.write(out + "/record.json")'
)


def small(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a parameters cell and these code cells."""
    nb = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    nb.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters")]
    nb.cells += [nbformat.v4.new_code_cell(cell, id=f"cell-{i}") for i, cell in enumerate(cells)]
    nbformat.write(nb, path)
    return path


def counting(log: Path) -> str:
    """A cell that leaves a line in a file outside the run, so that runs can be counted."""
    return f'with open({str(log)!r}, "a") as file:\n    file.write(f"{{x}} {{word}}\\n")'
