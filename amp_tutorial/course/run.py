"""Run the lessons through papermill: `python -m amp_tutorial.course.run [--models tiny-llama] [--lessons 00 02]`.

Leaves in `--out`: `<model>/NN_name.ipynb` and `.html`, `records/NN_name-<model>.json`, `summary.json` and
`summary.md`. A failing lesson names its cell and its error, the others still run, and the exit status is 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbconvert import HTMLExporter
from tqdm import tqdm

from ..files.paths import NOTEBOOKS, ROOT, STATIC, record_path
from ..runs.record import store

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


def run_lesson(path: Path, model: str, out: Path, preset: str) -> Outcome:
    """Execute a notebook in a process and an empty folder of its own, and gather what it left."""
    outcome = Outcome(path.stem, model)
    executed = out / Path(model).name / path.name
    page, record = executed.with_suffix(".html"), record_path(out, path.stem, model)
    executed.parent.mkdir(parents=True, exist_ok=True)
    for stale in (executed, page, record):
        stale.unlink(missing_ok=True)
    wanted = {"model": model, "out": str(out), "preset": preset}
    known = papermill.inspect_notebook(str(path))
    if missing := wanted.keys() - known.keys():
        outcome.error = f"its parameters cell does not name {', '.join(sorted(missing))}"
        return outcome
    started = time.monotonic()
    outcome.error = _papermill(path, executed, wanted)
    outcome.seconds = round(time.monotonic() - started, 1)
    outcome.status = "failed" if outcome.error else "ok"
    if executed.is_file():
        nb = nbformat.read(executed, as_version=4)
        outcome.notebook = str(executed.relative_to(out))
        if outcome.error:
            outcome.cell, outcome.error = _first_error(nb) or ("", outcome.error)
        page.write_text(HTMLExporter(template_name="classic").from_notebook_node(nb)[0], encoding="utf-8")
        outcome.html = str(page.relative_to(out))
    if record.is_file():
        _close_record(record, outcome)
        outcome.record = str(record.relative_to(out))
    elif not outcome.error:
        outcome.status, outcome.error = "failed", "it left no record; its last cell must call L.finish()"
    return outcome


def _papermill(path: Path, executed: Path, parameters: dict[str, str]) -> str:
    """Run papermill on the notebook; return what it complains about, in one line, or nothing."""
    raw = [word for name, value in parameters.items() for word in ("-r", name, value)]
    search = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "papermill", str(path), str(executed), *raw, "--cwd", folder, "-k", "python3"]
        try:
            done = subprocess.run(
                [*command, "--no-progress-bar", "--log-level", "ERROR"],
                env=os.environ | {STATIC: "1", "PYTHONPATH": search},
                capture_output=True,
                text=True,
                timeout=LESSON_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {LESSON_TIMEOUT // 60} minutes"
    last = done.stderr.strip().splitlines()[-1:] or ["papermill failed and said nothing"]
    return last[0] if done.returncode else ""


def _first_error(nb: nbformat.NotebookNode) -> tuple[str, str] | None:
    """The cell that failed (its id and first line) and its error, in one line each."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                line = next((s for s in cell.source.splitlines() if s.strip()), "")
                return f"{cell.id}: {line}", f"{output.ename}: {output.evalue}".splitlines()[0]
    return None


def _close_record(path: Path, outcome: Outcome) -> None:
    """Take the signature result from the record, and put a failure into it."""
    record = json.loads(path.read_text(encoding="utf-8"))
    outcome.signature = record.get("signature") or {}
    if outcome.error or record["status"] != "ok":
        outcome.error = outcome.error or "its record was never finished; the last cell must call L.finish()"
        outcome.status = record["status"] = "failed"
        record["error"] = {"cell": outcome.cell, "message": outcome.error}
        store(path, record)


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


def run(paths: list[Path], models: list[str], out: Path, preset: str = "smallest", jobs: int = 1) -> list[Outcome]:
    """Run every lesson on every model, and write the summary."""
    out = out.resolve()
    tasks = [(path, model) for model in models for path in paths]
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
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(table(outcomes), encoding="utf-8")
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the lessons through papermill and sum up.")
    parser.add_argument("--models", nargs="+", default=["tiny-llama"], help="embedded names, folders or hub ids")
    parser.add_argument("--lessons", nargs="*", default=[], help="beginnings of names, such as 00 02; default all")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where everything goes")
    parser.add_argument("--preset", default="smallest", help="the size of the experiments")
    parser.add_argument("--jobs", type=int, default=1, help="lessons run side by side; timings suffer")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="the folder of the lessons")
    options = parser.parse_args(arguments)
    every = sorted(options.notebooks.glob("[0-9][0-9]_*.ipynb"))
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
