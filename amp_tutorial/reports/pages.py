"""All generated parts of the README and of `docs/`: `python -m amp_tutorial.reports.pages [--check]`.

A part stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. Numbers in the README come from the records in
`data/` and the figures in `benchmarks/`, so they cannot differ from the tables that it points to.
"""

import argparse
import ast
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from amp_tutorial import DATA, FAMILIES, Family

from ..files import NOTEBOOKS, ROOT
from ..files.atomic import write_text
from ..files.checkpoints import refused
from ..runs.parameters import effective, names, notebook_named, parameters_of
from . import api_reference, architecture, boards, real, real_lessons, standings, summary

SHOWN, RATIO = "tiny-llama", 0.30  # the model and the share removed of which the README speaks
CPUS = {"ci": ("CPU, 0.1 TFLOP/s", 1e11), "smollm2-20": ("CPU, 0.4 TFLOP/s", 4e11)}  # operations a second: assumptions
Part = Callable[[], str]


@cache
def _results() -> dict[str, Any]:
    return summary.read(DATA / "results")


@cache
def _board() -> tuple[standings.Found, list[str]]:
    return standings.collect(standings.read(DATA / "leaderboard"))


def picture(to_root: str) -> str:
    """The picture of the main results with its alt text, for a page from which the root is `to_root`."""
    return f"![{summary.alt_text(_results())}]({to_root}data/results/picture.png)"


def results_sentence() -> str:
    """Mean accuracies of one model: dense, cut, cut by chance and upside down, and after recovery."""
    found = {
        what: f"{100 * summary.interval(_results(), SHOWN, what, 'mean accuracy').value:.1f} %"
        for what in ("dense", "amp", "random", "reversed", "amp-recovered")
    }
    removed = _results()["models"][SHOWN]["amp"]["removed"]["value"]
    return (
        f"`{SHOWN}` answers {found['dense']} of six tasks' questions right, and guessing gives "
        f"{100 * summary.CHANCE:.1f} %. With {100 * removed:.0f} % of all parameters gone it is {found['amp']} where "
        f"AMP chose, {found['random']} where chance did, {found['reversed']} with AMP's order reversed, and "
        f"{found['amp-recovered']} for AMP after a short fine-tuning. "
        "[All three models, with intervals](docs/results.md)."
    )


def leaderboard_sentence() -> str:
    """Perplexities of one model at one ratio: dense, AMP, the best of ours and the best of all others."""
    found, _ = _board()
    cells, rows = found[SHOWN], standings.rows_of(found, standings.WIDTH_AND_DEPTH, RATIO)
    sides = [[row for row in rows if standings.is_ours(row) is ours] for ours in (True, False)]
    ours, other = (standings.best(cells, side, "perplexity", 1) for side in sides)
    amp = next(row for row in rows if row[0] == "amp")
    if ours is None or other is None:
        raise ValueError(f"The leaderboard has no {SHOWN} at {RATIO:.0%} to speak of; run it first.")
    value = {row: f"{cells[row]['perplexity'].value:.2f}" for row in (ours, other, amp)}
    return (
        f"With {100 * RATIO:.0f} % of all parameters gone and nothing trained end to end, `{SHOWN}` goes from a "
        f"perplexity of {standings.dense(cells)['perplexity'].value:.2f} to {value[ours]} with the best of ours "
        f"(*{ours[1]}*), to {value[other]} with the best of all others (*{other[1]}*), and to {value[amp]} "
        "with AMP alone. [The whole leaderboard](docs/leaderboard.md)."
    )


def families_sentence() -> str:
    heads, neurons = (
        sum(not getattr(family, name) for family in FAMILIES.values()) for name in ("no_heads", "no_neurons")
    )
    return (
        f"{len(FAMILIES)} model families have a row in the table: {heads} can lose heads, {neurons} neurons. "
        "[What can be cut in each](docs/families.md)."
    )


def speed_sentence() -> str:
    """What scoring costs beside a forward pass, and how much faster the widest model gets."""
    parts = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))["parts"]
    costs = [row["ratios"]["score"]["median"] for row in parts["scoring"]["rows"]]
    asked = dict(align=1, parts="both", dtype="float32", hidden=max(row["hidden"] for row in parts["speed"]["rows"]))
    rows = [row for row in parts["speed"]["rows"] if all(row[name] == value for name, value in asked.items())]
    row = min(rows, key=lambda row: abs(row["removed"] - RATIO))
    prefill, decode = (row[f"{kind} blocks"]["speed_up"]["median"] for kind in ("prefill", "decode"))
    return (
        f"Scoring by all criteria at once takes {min(costs):.2f} to {max(costs):.2f} times as long as a forward pass. "
        f"Decoder layers of hidden size {row['hidden']} that lost {100 * row['removed']:.0f} % of their parameters are "
        f"{prefill:.2f} times as fast on a prompt and {decode:.2f} times as fast token by token. "
        "[All measurements](docs/speed.md)."
    )


def leaderboard() -> str:
    """Picture and tables of the leaderboard; of the ratios only the README's."""
    found, left_out = _board()
    more = "All ratios, and what each system costs: [data/leaderboard/summary.md](../data/leaderboard/summary.md)."
    drawing = f"![{boards.alt_text(found)}](../data/leaderboard/picture.png)"
    return "\n".join([drawing, "", *boards.body(found, left_out, RATIO), more])


def _code(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def family_cells(family: Family) -> tuple[str, str, str]:
    """What the table says of a family: its heads, its neurons, and what it is saved as."""
    heads, saved = "by KV group, or queries of every group", "as the source"
    if family.no_heads_with:
        heads += f"; none with {_code(family.no_heads_with)}"
    if not family.any_head_count and not family.equal_type:
        heads += "; only counts that divide `hidden_size`"
    if family.no_heads:
        heads = f"none: {family.no_heads}"
    if family.equal_type:
        settings = " and ".join(f"`{name}={value}`" for name, value in family.equal_settings)
        saved += f"; as `{family.equal_type}` with {settings} where the head count does not divide `hidden_size`"
        if family.equal_unless:
            saved += f" (with {_code(family.equal_unless)}: only counts that divide it)"
    return heads, f"none: {family.no_neurons}" if family.no_neurons else "yes", saved


def families_table() -> str:
    """A Markdown table: families of which the same is true share a row; the order is that of `FAMILIES`."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for kind, family in FAMILIES.items():
        rows.setdefault(family_cells(family), []).append(f"`{kind}`")
    for kind, why in refused().items():
        rows.setdefault(("none", "none", f"refused: {why}"), []).append(f"`{kind}`")
    lines = ["| `model_type` | heads | neurons | saved |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {', '.join(kinds)} | {' | '.join(said)} |" for said, kinds in rows.items())])


def preset_costs() -> str:
    """What every preset needs: estimates from configurations alone, at stated speeds, the same on every machine."""
    from ..runs.requirements import duration, needs_of, size  # here, because they bring torch
    from ..runs.workload import ASSUMED, GPUS

    speeds = CPUS | {"t4": ("T4", GPUS["T4"])}
    known = parameters_of(notebook_named("reproduce"))
    lines = [
        "| preset | model | removed | weights | peak, and in which stage | time, roughly |",
        "|---|---|---:|---:|---|---|",
    ]
    for name in names():
        device, speed = speeds.get(name, (ASSUMED, GPUS[ASSUMED]))
        p = effective(known, name, {"device": "cpu"}, name)
        needs = needs_of(p, speed)
        before, after = needs.parameters
        stage = max(needs.peaks, key=lambda s: needs.peaks[s])
        lines.append(
            f"| `{name}` | {p['model']} | {1 - after / before:.1%} | {size(needs.weights)} | "
            f"{size(needs.peak)}, {stage} | {duration(needs.seconds)} on {device} |"
        )
    return "\n".join(lines)


def brought() -> str:
    """What people bring and what happens, from the test that runs each row."""
    tree = ast.parse((ROOT / "tests" / "test_bad_input.py").read_text(encoding="utf-8"))
    [rows] = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "BROUGHT"]
    lines = [f"| {what} | “… {happens} …” |" for what, happens in ast.literal_eval(rows)]
    return "\n".join(["| what is brought | refused at once, with a sentence that says |", "|---|---|", *lines])


def _number(stem: str) -> str:
    """What a lesson is called: "03b_museum" → "3b", "A_training" → "A"."""
    number = stem.partition("_")[0]
    return number.lstrip("0") or "0"


def lesson_minutes() -> dict[str, int]:
    """How long each notebook takes, as it says itself: by "0", "3b", "A", "reproduce"."""
    found = {}
    for path in NOTEBOOKS.glob("*.ipynb"):
        found[_number(path.stem)] = json.loads(path.read_text(encoding="utf-8"))["metadata"]["minutes"]
    return found


def timed(name: str) -> str:
    """A table of docs/teaching.md with the minutes of the lessons that each row names; the rest as it was written."""
    text = (ROOT / "docs/teaching.md").read_text(encoding="utf-8")
    table = text.partition(f"<!-- {name}:begin -->\n")[2].partition(f"\n<!-- {name}:end -->")[0]
    minutes, lines, total = lesson_minutes(), [], 0
    heading = table.splitlines()[0].split(" | ")
    at = next(k for k, cell in enumerate(heading) if cell.startswith("minutes"))
    for line in table.splitlines():
        cells = line.split(" | ")
        named = cells[at - 1].removeprefix("| ").split(", ") if len(cells) > at else []
        if named and set(named) <= minutes.keys():
            cells[at] = str(sum(minutes[one] for one in named))
            total += int(cells[at])
        elif named == ["together"]:
            cells[at] = str(total)
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def goals() -> str:
    """What each lesson is for, from data/quizzes.yaml."""
    quizzes = yaml.safe_load((DATA / "quizzes.yaml").read_text(encoding="utf-8"))
    lines = ["| lesson | after it a student can |", "|---|---|"]
    for stem, told in quizzes.items():
        said = "; ".join(goal[0].lower() + goal[1:] for goal in told["goals"])
        lines.append(f"| [{_number(stem)}](../notebooks/{stem}.ipynb) | {said} |")
    return "\n".join(lines)


PARTS: dict[tuple[str, str], Part] = {
    ("README.md", "real"): real.front,
    ("README.md", "picture"): lambda: f"{picture('')}\n\n{results_sentence()}",
    ("README.md", "numbers"): lambda: f"- {leaderboard_sentence()}\n- {speed_sentence()}\n- {families_sentence()}",
    ("README.md", "house"): lambda: f"```\n{architecture.house()}\n```",
    ("docs/results.md", "results"): lambda: f"{picture('../')}\n\n{summary.main_table(_results())}",
    ("docs/leaderboard.md", "leaderboard"): leaderboard,
    ("docs/real.md", "real"): real.page,
    ("docs/real.md", "lessons"): real_lessons.page,
    ("docs/families.md", "families"): families_table,
    ("docs/library.md", "brought"): brought,
    ("docs/researchers.md", "costs"): preset_costs,
    ("docs/teaching.md", "plan"): lambda: timed("plan"),
    ("docs/teaching.md", "day"): lambda: timed("day"),
    ("docs/teaching.md", "goals"): goals,
    ("docs/architecture.md", "architecture"): architecture.listing,
    ("docs/api.md", "api"): api_reference.reference,
}
WHOLE: dict[str, Part] = {"docs/architecture.svg": architecture.svg}


def filled(text: str, name: str, body: str, page: str) -> str:
    """The text with its part of that name replaced.

    Raises:
        ValueError: the part's two markers are not there.
    """
    first, last = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"{page} has no part between {first} and {last} to fill.")
    return f"{before}{first}\n{body}\n{last}{after}"


def now(page: str, root: Path = ROOT) -> str:
    """What a page should be now, with all its parts filled."""
    if page in WHOLE:
        return WHOLE[page]()
    text = (root / page).read_text(encoding="utf-8")
    for (where, name), part in PARTS.items():
        if where == page:
            text = filled(text, name, part(), page)
    return text


def pages() -> list[str]:
    return [*dict.fromkeys(page for page, _ in PARTS), *WHOLE]


def stale(root: Path = ROOT) -> dict[str, str]:
    """The pages that differ from what they should be, with what that is."""
    wanted = {page: now(page, root) for page in pages()}
    return {
        page: text
        for page, text in wanted.items()
        if not (root / page).is_file() or (root / page).read_text(encoding="utf-8") != text
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the generated parts of the README and of docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; name the pages that are out of date")
    options = parser.parse_args(arguments)
    try:
        old = stale(ROOT)
    except ValueError as error:
        parser.error(str(error))
    for page, text in old.items() if not options.check else ():
        write_text(ROOT / page, text)
    for page in old:
        print(f"{page} {'is out of date; run make docs' if options.check else 'written'}")
    return 1 if options.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
