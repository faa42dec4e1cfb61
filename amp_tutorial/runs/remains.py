"""What an executed notebook left: the cell that failed, the one record, and the folder kept of a failure."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ..files.atomic import write_json
from . import record as records
from .kernel import NOTEBOOK

RECORD = "record.json"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def executed(folder: Path) -> NotebookNode | None:
    """The notebook as far as it was executed; None if it is not there or torn."""
    try:
        return nbformat.read(folder / NOTEBOOK, as_version=4)
    except Exception:  # whatever half a notebook makes nbformat say
        return None


def complaint(nb: NotebookNode, ended: bool) -> tuple[NotebookNode | None, str]:
    """The cell that was not completed, and why; (None, "") if all were.

    Args:
        ended: papermill came to a good end. Otherwise, where no cell has an error, the last one begun is where it
            stopped; papermill calls that one and all after it completed.
    """
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in code:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return cell, COLOUR.sub("", f"{output.ename}: {output.evalue}").strip().splitlines()[0]
    if not ended:
        begun = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
        return (begun[-1] if begun else None), ""
    for cell in code:
        if cell.execution_count is None or cell.metadata.get("papermill", {}).get("status") != "completed":
            return cell, "this cell was not executed to its end"
    return None, ""


def place(cell: NotebookNode | None) -> str:
    """A cell's id and first line."""
    if cell is None:
        return ""
    return f"{cell.get('id', '')}: {next((line for line in cell.source.splitlines() if line.strip()), '')}"


def only_record(folder: Path) -> dict[str, Any]:
    """The one record that a run left, put where it belongs.

    Raises:
        ValueError: none, more than one, or one that is not valid.
    """
    found = [path for path in (folder / RECORD, *folder.glob("records/*.json")) if path.is_file()]
    if len(found) != 1:
        raise ValueError(f"it left {len(found) or 'no'} records; a notebook writes one, {RECORD} in the folder `out`")
    record = records.read(found[0])
    found[0].replace(folder / RECORD)
    if found[0].parent != folder and not any(found[0].parent.iterdir()):
        found[0].parent.rmdir()
    return record


def keep_failure(
    folder: Path,
    original: str,
    record: Mapping[str, Any],
    nb: NotebookNode | None,
    cell: NotebookNode | None,
    error: str,
    log: str,
) -> None:
    """Put the failing cell and what was said on top of the notebook, and the record beside it."""
    write_json(folder / RECORD, dict(record))
    nb = nb or nbformat.read(original, as_version=4)
    parts = ["# This run failed", error]
    parts += [f"Its cell:\n\n```python\n{cell.source}\n```"] if cell is not None else []
    parts += [f"The last that was said:\n\n```text\n{log}\n```"] if log else []
    nb.cells.insert(0, nbformat.v4.new_markdown_cell("\n\n".join(parts), id="failure"))
    nbformat.write(nb, folder / NOTEBOOK)
