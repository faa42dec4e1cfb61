"""Run the lessons: `python -m amp_tutorial.course.run [--models tiny-phi] [--lessons 00 02]`.

Leaves in `--out`: `<model>/NN_name.ipynb` and `.html`, `records/NN_name-<model>.json`, `summary.json` and
`summary.md`. A failing lesson names its cell and its error, the others still run, and the exit status is 1.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..files import NOTEBOOKS, record_path
from ..files.atomic import write_json, write_text
from ..runs.notebooks import execute_notebook
from ..runs.parameters import parameters_of
from .html_pages import page_of

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
