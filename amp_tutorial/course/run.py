"""Run the lessons: `python -m amp_tutorial.course.run [--models tiny-phi] [--lessons 00 02]`.

Leaves in `--out`: `<model>/NN_name.ipynb` and `.html`, `records/NN_name-<model>.json`, `summary.json` and
`summary.md`. A failing lesson names its cell and its error, the others still run, and the exit status is 1.
"""

import argparse
import copy
import json
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tqdm import tqdm

from ..files import NOTEBOOKS, record_path
from ..files.atomic import write_json, write_text
from ..runs.notebooks import execute_notebook
from ..runs.parameters import parameters_of
from .sources import HIDDEN

LESSON_TIMEOUT = 900  # seconds; a lesson takes under 60


@dataclass
class Outcome:
    """What became of one lesson on one model."""

    lesson: str
    model: str
    status: str = "failed"  # or "ok"
    seconds: float = 0.0
    cell: str = ""  # of the error: its id and its first line
    error: str = ""
    signature: dict[str, Any] = field(default_factory=dict)
    notebook: str = ""
    html: str = ""
    record: str = ""


DARKER = {"#A2F": "#8600CC", "#337ab7": "#23527c"}  # words of the code and links, for enough contrast everywhere
STYLE = "<style>details > summary {display: list-item; cursor: pointer} .code_cell details {padding-left: 14ex}</style>"
FOLDED = """{% extends "classic/index.html.j2" %}
{% block input_group %}
{% if "HIDDEN" in cell.metadata.get("tags", []) %}<details><summary>Code</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}
{% endblock input_group %}"""


# Commands that the converter does not know, as it knows them.
OTHERWISE = {r"(\\[bB]igg?[lr]?)?\\[lr]Vert": r"\\|", r"\\arg": r"\\operatorname{arg}"}
FORMULA = re.compile(r"```.*?```|`[^`\n]*`|\$\$(?P<displayed>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.DOTALL)
SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)  # of the template: all are fetched, none is needed


def mathml(formula: str, displayed: bool = False) -> str:
    """A formula of LaTeX as MathML.

    Raises:
        ValueError: a command that the converter does not know.
    """
    from latex2mathml.converter import convert

    for command, other in OTHERWISE.items():
        formula = re.sub(rf"{command}(?![A-Za-z])", other, formula)
    found = str(convert(formula, display="block" if displayed else "inline"))
    if unknown := re.search(r">\\(\W|\w+)", found):
        raise ValueError(f"\\{unknown[1]} in the formula {formula!r} is not known to latex2mathml; say it otherwise.")
    return found


def page_of(notebook: NotebookNode) -> str:
    """A notebook as an HTML page that fetches nothing: formulas as MathML, hidden cells folded, some colours darker."""
    formulas: list[str] = []

    def kept(match: re.Match[str]) -> str:
        formula = match["displayed"] or match["inline"]
        if not formula:
            return match[0]
        formulas.append(mathml(formula, match["displayed"] is not None))
        return f"FORMULA{len(formulas) - 1}END"

    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(kept, cell.source)
    folding = DictLoader({"folded.html.j2": FOLDED.replace("HIDDEN", HIDDEN)})
    exporter = HTMLExporter(template_name="classic", template_file="folded.html.j2", extra_loaders=[folding])
    page = SCRIPT.sub("", str(exporter.from_notebook_node(notebook)[0]))
    for was, now in DARKER.items():
        page = page.replace(was, now)
    page = re.sub(r"FORMULA(\d+)END", lambda match: formulas[int(match[1])], page)
    return page.replace("</head>", f"{STYLE}</head>", 1)


def run_lesson(path: Path, model: str, out: Path, preset: str, **parameters: Any) -> Outcome:
    """Execute a notebook in a process and an empty folder of its own, and gather what it left.

    Args:
        parameters: of the notebook, beside its model, its preset and its place.
    """
    outcome = Outcome(path.stem, model)
    executed = out / Path(model).name / path.name
    page, record = executed.with_suffix(".html"), record_path(out, path.stem, model)
    executed.parent.mkdir(parents=True, exist_ok=True)
    for stale in (executed, page, record):
        stale.unlink(missing_ok=True)
    wanted = {"model": model, "out": str(out), "preset": preset} | parameters
    try:
        if missing := wanted.keys() - parameters_of(path).keys():
            raise ValueError(f"its parameters cell does not name {', '.join(sorted(missing))}")
    except ValueError as error:
        outcome.error = str(error)
        return outcome
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ended = execute_notebook(path, Path(folder), wanted, LESSON_TIMEOUT, output=executed)
    outcome.seconds = round(time.monotonic() - started, 1)
    outcome.status, outcome.cell, outcome.error = "failed" if ended.error else "ok", ended.place, ended.error
    if ended.notebook is not None:
        write_text(page, page_of(ended.notebook))
        outcome.notebook, outcome.html = str(executed.relative_to(out)), str(page.relative_to(out))
    if record.is_file():
        _close_record(record, outcome)
        outcome.record = str(record.relative_to(out))
    elif not outcome.error:
        outcome.status, outcome.error = "failed", "it left no record; its last cell must call L.finish()"
    return outcome


def _close_record(path: Path, outcome: Outcome) -> None:
    """Take the signature result from the record, and put a failure into it."""
    record = json.loads(path.read_text(encoding="utf-8"))
    outcome.signature = record.get("signature") or {}
    if outcome.error or record["status"] != "ok":
        outcome.error = outcome.error or "its record was never finished; the last cell must call L.finish()"
        outcome.status = record["status"] = "failed"
        record["error"] = {"cell": outcome.cell, "message": outcome.error}
        write_json(path, record)


def result(outcome: Outcome) -> str:
    """The signature result in a few words, or the failure."""
    if outcome.status != "ok":
        return f"{outcome.error}{f' (cell {outcome.cell})' if outcome.cell else ''}"
    s = outcome.signature
    return f"{s['name']}: {s['value']:.4g} [{s['low']:.4g}, {s['high']:.4g}] {s['unit']}".strip() if s else "–"


def table(outcomes: list[Outcome]) -> str:
    """The summary as a Markdown table."""
    rows = ["| lesson | model | minutes | status | signature result [95 % interval] |", "|---|---|---|---|---|"]
    for o in outcomes:
        text = result(o).replace("|", "\\|")
        rows.append(f"| {o.lesson} | {o.model} | {o.seconds / 60:.1f} | {o.status} | {text} |")
    return "\n".join(rows) + "\n"


def run(
    paths: list[Path], models: list[str] | None, out: Path, preset: str = "smallest", jobs: int = 1
) -> list[Outcome]:
    """Run every lesson on every model, or each on that of its own parameters, and write the summary."""
    out = out.resolve()
    tasks = [(path, model) for model in models or () for path in paths]
    tasks = tasks or [(path, str(parameters_of(path)["model"].default)) for path in paths]
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(tasks), unit="lesson", disable=None) as bar:

        def one(task: tuple[Path, str]) -> Outcome:
            bar.set_description_str(f"{task[0].stem} on {task[1]}")
            return run_lesson(*task, out, preset)

        for outcome in pool.map(one, tasks):
            outcomes.append(outcome)
            bar.write(
                f"{outcome.lesson} on {outcome.model}: {outcome.status}, {outcome.seconds:.0f} s. {result(outcome)}"
            )
            bar.update()
    write_json(out / "summary.json", [asdict(o) for o in outcomes])
    write_text(out / "summary.md", table(outcomes))
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the lessons and sum up.")
    parser.add_argument("--models", nargs="*", help="embedded names, folders or hub ids; default each lesson's own")
    parser.add_argument("--lessons", nargs="*", default=[], help="beginnings of names, such as 00 02; default all")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where everything goes")
    parser.add_argument("--preset", default="smallest", help="the size of the experiments")
    parser.add_argument("--jobs", type=int, default=1, help="lessons run side by side; timings suffer")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="the folder of the lessons")
    options = parser.parse_args(arguments)
    every = sorted(options.notebooks.glob("[0-9]*_*.ipynb"))
    if not every:
        parser.error(f"no lessons in {options.notebooks}; run this in a clone, or say where they are: --notebooks")
    if unknown := [n for n in options.lessons if not any(p.stem.startswith(n) for p in every)]:
        parser.error(f"no lesson begins with {', '.join(unknown)}; there are {', '.join(p.stem for p in every)}")
    paths = [p for p in every if not options.lessons or p.stem.startswith(tuple(options.lessons))]
    outcomes = run(paths, options.models, options.out, options.preset, options.jobs)
    print("\n" + table(outcomes) + f"\nNotebooks, pages and records are in {options.out}.")
    return int(any(o.status != "ok" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
