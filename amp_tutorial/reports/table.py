"""Published numbers beside ours, and our own runs of a sweep: Markdown, HTML and pictures from a folder of records.

`amp-tutorial table` executes `notebooks/table.ipynb`, which does no more than call this module and explain.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import amp_tutorial

from ..files import DATA
from ..files.atomic import write_bytes, written_file
from . import groups, reference
from .groups import BASES, REMOVED, Folder, Group, setting, varying
from .measured import is_perplexity
from .plots import drawn
from .reference import NOT_RUN, Entry, Paper, Row
from .style import BLANK, STAR, cell, grid, sure

STAGES = ("dense", "untuned", "tuned", "")  # "": a record of one measurement

LEGEND = (
    f"± or brackets: a 95 % interval. {STAR} (alone, where records do not hold their items). *within*: the published "
    f"value lies in our interval; *outside*: it does not. {BLANK}: not measured, so nothing stands there."
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>Our runs, and published numbers</title>
<style>
body {{ font-family: sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; line-height: 1.45; }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 0.9em; }}
th, td {{ border: 1px solid #ccc; padding: 0.25em 0.6em; text-align: left; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass
class Table:
    """All that a folder of records says."""

    papers: list[Paper]
    folder: Folder
    groups: list[Group]

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        return reference.papers(self.papers, self.groups)

    @cached_property
    def pictures(self) -> dict[str, tuple[bytes, str]]:
        """PNG and alt text of each picture, by its file's name; none where no ratio was measured."""
        return drawn(self.groups)

    def summary(self) -> str:
        """What was found, and each file that does not count, with the reason."""
        f, found = self.folder, sum(len(group.runs) for group in self.groups)
        counts = f"{found} finished, {len(f.failed)} failed, {len(f.left_out)} left out"
        lines = [f"Runs: {counts}. Rows of our own: {len(self.groups)}."]
        lines += [f"- failed: {cell(name)}" for name in f.failed]
        lines += [f"- left out: {cell(why)}" for why in f.left_out]
        return "\n".join([lines[0], "", *lines[1:]]) if lines[1:] else lines[0]

    def published(self) -> str:
        """Every published number beside ours, paper by paper."""
        lines: list[str] = []
        for paper in self.papers:
            lines += [f"### {paper.title}", "", f"<{paper.link}>", ""] if paper.link else [f"### {paper.title}", ""]
            for block in paper.blocks:
                ids = {entry.id for entry in block.entries}
                rows = [row for row in self.rows[paper.name] if row.entry.id in ids]
                lines += [f"**{block.title}.** {block.about}".strip(), ""]
                if run := [_published(row) for row in rows if row.verdict != NOT_RUN]:
                    lines += [*grid(HEAD, run), ""]
                if folded := [_published(row) for row in rows if row.verdict == NOT_RUN]:
                    lines += [
                        f"<details><summary>{len(folded)} not run</summary>",
                        "",
                        *grid(HEAD, folded),
                        "",
                        "</details>",
                        "",
                    ]
            if paper.not_found:
                lines += [f"Not found, and so in no row: {'; '.join(paper.not_found)}.", ""]
        return "\n".join([*lines, LEGEND])

    def own(self) -> str:
        """Our own runs, a row for each set of parameters; only the parameters that vary are shown."""
        if not self.groups:
            return "Nothing was run yet."
        columns, measures = varying(self.groups), _measures(self.groups)
        header = [*columns, "seeds", "removed, %", *(label for _, label, _ in measures)]
        lines = []
        for group in sorted(self.groups, key=lambda g: [_order(setting(g, c)) for c in columns]):
            removed = group.metric(*REMOVED)
            said = [cell(setting(group, c)) for c in columns] + [str(len(group.runs))]
            said += [BLANK if removed is None or math.isnan(removed.value) else f"{100 * removed.value:.1f}"]
            said += [sure(group.metric(name), is_perplexity(name), scale) for name, _, scale in measures]
            lines.append([*said, cell("; ".join(group.notes))] if any(g.notes for g in self.groups) else said)
        header += ["mixed"] if any(group.notes for group in self.groups) else []
        guessed = {group.chance(name) for group in self.groups for name, *_ in measures} - {None}
        chances = [f"{100 * value:.1f} %" for value in sorted(filter(None, guessed))]
        told = [f"Guessing has a mean accuracy of {' or '.join(chances)}, by the tasks.", ""] if chances else []
        return "\n".join([*grid(header, lines), "", *told, LEGEND])

    def markdown(self) -> str:
        """The whole table, its pictures beside it."""
        images = [f"![{cell(alt)}]({name})\n" for name, (_, alt) in self.pictures.items()]
        parts = ["# Our runs, and published numbers", self.summary(), "## Our runs", self.own(), *images]
        return "\n\n".join([*parts, "## Published numbers", self.published()]).rstrip() + "\n"

    def html(self) -> str:
        """The same as a page of its own."""
        from nbconvert.filters.markdown_mistune import markdown2html_mistune

        return PAGE.format(body=markdown2html_mistune(self.markdown()))

    def write(self, out: str | Path) -> list[Path]:
        """`table.md`, `table.html` and the pictures, each written beside its place and moved there.

        Raises:
            OSError: the folder can't be written.
        """
        files = {name: png for name, (png, _) in self.pictures.items()}
        files |= {"table.md": self.markdown().encode(), "table.html": self.html().encode()}
        return [write_bytes(Path(out) / name, content) for name, content in files.items()]


def read(runs: str | Path = "", mix: bool = False, published: str | Path = reference.FOLDER) -> Table:
    """The table of a folder of records; without one, of the records that come with the repository.

    Raises:
        ValueError: no such folder, published numbers that are not valid, or records of one row that must not be mixed.
    """
    papers, folder = reference.read(published), groups.scan(runs or DATA / "results")
    return Table(papers, folder, groups.grouped(folder, mix))


HEAD = ("system", "model", "removed", "metric", "published", "grade", "source", "ours", "difference", "verdict")


def _published(row: Row) -> list[str]:
    e = row.entry
    difference = BLANK if row.difference is None else f"{row.difference:+.2f}"
    verdict = "; ".join([row.verdict, *row.notes])
    said = [e.system, e.model, _removed(e), e.metric, _value(e), e.grade, e.source]
    digits = 2 if e.ours is None or e.ours.rounding is None else 3
    seeds = f", {row.ours.seeds} seeds" if row.ours and "seeds" in row.ours.over else ""
    return [
        *(cell(text) for text in said),
        sure(row.ours, "perplexity" in e.metric, digits=digits) + seeds,
        difference,
        cell(verdict),
    ]


def _removed(e: Entry) -> str:
    if e.widths:
        return f"all but {e.widths['heads']} heads, {e.widths['neurons']} neurons in each layer"
    return e.cut or (f"{100 * e.ratio:g} % of {e.of}" if e.ratio else "nothing")


def _value(e: Entry) -> str:
    to = f" to {e.to:g}" if e.to is not None else ""
    unit = e.unit if e.unit in ("", "×") else f" {e.unit}"
    return f"{e.bound} {e.value:g}{to}{unit}".strip()


def _order(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, (int, float))
    return (0 if value is None else 1 if number else 2, float(value) if number else 0.0, str(value))


def _measures(groups: Sequence[Group]) -> list[tuple[str, str, int]]:
    """Of perplexity and mean accuracy at each stage, those that any group has: metric, heading, scale."""
    found = []
    for base, scale in BASES:
        for stage in STAGES:
            name = f"{stage}/{base}" if stage else base
            if any(name in run.record["metrics"] for group in groups for run in group.runs):
                found.append((name, f"{stage} {base}".strip() + (", %" if scale == 100 else ""), scale))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        default="out/runs",
        metavar="FOLDER",
        help='folder of records (out/runs); "": those that come with the package',
    )
    parser.add_argument("--out", default="out/table", metavar="FOLDER", help="where the table goes (out/table)")
    parser.add_argument("--mix", action="store_true", help="let a row hold records of different versions, and say so")


def command(options: argparse.Namespace) -> int:
    """Execute the notebook; 0 if the table was written, 2 if what was asked can't be done, 1 if the notebook failed."""
    try:
        found = read(options.runs, options.mix)  # before a kernel is started
        written = execute(dict(runs=options.runs, out=options.out, mix=options.mix))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"The table's notebook failed: {error}", file=sys.stderr)
        return 1
    print(found.summary())
    print(f"Table, pages, pictures and notebook are in {written.parent}.")
    return 0


def execute(parameters: Mapping[str, Any]) -> Path:
    """Execute the table's notebook with these parameters, and keep it in `out` as table.ipynb.

    Raises:
        OSError: `out` can't be written.
        RuntimeError: a cell failed.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    inside, clone = (Path(amp_tutorial.__file__).parents[i] / "notebooks" / "table.ipynb" for i in (0, 1))
    place = Path(parameters["out"]) / "table.ipynb"
    notebook = inside if inside.is_file() else clone
    try:
        with _this_package(), written_file(place, ending=".part.ipynb") as beside:
            # A kernel on this machine alone: ipykernel's warning of that is not for whoever reads the table.
            quiet = ["--IPKernelApp.log_level=40"]
            given = dict(parameters)
            papermill.execute_notebook(str(notebook), str(beside), given, progress_bar=False, extra_arguments=quiet)
    except PapermillExecutionError as error:
        raise RuntimeError(f"{error.ename}: {error.evalue}") from error
    return place


@contextmanager
def _this_package() -> Iterator[None]:
    """Have kernels import the package that runs, wherever it is installed, and draw no sliders."""
    before = dict(os.environ)
    here = str(Path(amp_tutorial.__file__).parents[1])
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, (here, before.get("PYTHONPATH"))))}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
