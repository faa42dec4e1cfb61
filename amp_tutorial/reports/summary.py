"""From the records of `results` to one summary: means with intervals, tables, a picture and the README's part.

    amp-tutorial sweep data/sweeps/results.yaml --out out/results
    python -m amp_tutorial.reports.summary --runs out/results [--grid …]

The sweep executes what is not finished; `measurements.py` has the function that it calls for each run. This command
puts the finished records into one table, `records.jsonl`, and writes `summary.md` and `picture.png` from it; without
`--runs` from the records that are there. `pages.py` puts both into `docs/`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

import amp_tutorial as amp

from ..files import DATA
from ..files.atomic import write_text, written_file
from ..measure.comparisons import Comparison
from ..measure.intervals import Interval
from ..runs import collection, sweep
from ..runs import grid as grids
from . import measured
from .measured import is_perplexity
from .style import HATCHES, STAR, colour, grid, sure

NAME = "results"
SHARED = ("ratio", "limit", "calibration", "samples", "epochs", "rate")  # parameters of every record of one table
CHANCE = sum(amp.CHANCE.values()) / len(amp.CHANCE)  # mean accuracy of guessing

LABELS = {
    "dense": "dense",
    "amp": "AMP",
    "magnitude": "magnitude",
    "random": "random",
    "reversed": "reversed AMP",
    "amp-recovered": "AMP + recovery",
    "dense-recovered": "dense + recovery",
    "ablation-both": "both",
    "ablation-heads": "heads only",
    "ablation-neurons": "neurons only",
}
MAIN = ("dense", "amp", "magnitude", "random", "reversed", "amp-recovered")
ABLATION = ("ablation-both", "ablation-heads", "ablation-neurons")
PAPER_ABLATION = {"ablation-both": 61.02, "ablation-heads": 37.63, "ablation-neurons": 56.93}


AGAINST = {"random": "random choice", "reversed": "its own reversal"}  # what AMP's mean accuracy is compared with


def summarise(records: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> dict[str, Any]:
    """Every metric of every treatment of every model, and what is claimed; plain data."""
    models: dict[str, Any] = {}
    claims: dict[str, Any] = {}
    for model, mine in records.items():
        by_what: dict[str, list[dict[str, Any]]] = {}
        for record in mine:
            by_what.setdefault(record["parameters"]["what"], []).append(record)
        models[model] = {
            what: {name: asdict(i) for name in group[0]["metrics"] if (i := measured.over(group, name))}
            for what, group in by_what.items()
        }
        claims[model] = {
            what: asdict(measured.compared(by_what["amp"], by_what[what], "mean accuracy")) for what in AGAINST
        }
    return {"settings": settings, "chance": CHANCE, "models": models, "amp against": claims}


def read(folder: Path) -> dict[str, Any]:
    """The same of the finished records in a folder, which are all of one measurement.

    Raises:
        ValueError: no records of `results` there, or records made with different settings.
    """
    names = {path.name for path in collection.files(folder, collection.SINGLE)} | set(collection.gathered(folder))
    found = [collection.find(folder, name) for name in sorted(names)]
    mine = [r for r in found if r is not None and r.get("name") == NAME and r.get("status") == "ok"]
    asked = [{key: r["parameters"].get(key) for key in SHARED} for r in mine]
    if not mine or any(settings != asked[0] for settings in asked):
        why = "are made with different settings" if mine else "are not there"
        raise ValueError(f"The records of results in {folder} {why}; run amp_tutorial.reports.summary for one table.")
    models = sorted({r["parameters"]["model"] for r in mine}, key=lambda m: ([*amp.EMBEDDED, m].index(m), m))
    seeds = len({r["parameters"]["seed"] for r in mine})
    by_model = {Path(m).name: [r for r in mine if r["parameters"]["model"] == m] for m in models}
    return summarise(by_model, asked[0] | {"seeds": seeds})


def interval(found: dict[str, Any], model: str, what: str, name: str) -> Interval:
    return Interval(**found["models"][model][what][name])


def _cells(found: dict[str, Any], model: str, whats: Sequence[str], name: str) -> list[str]:
    text = is_perplexity(name)
    scale, digits = (1, 2) if text else (100, 1)
    return [sure(interval(found, model, what, name), text, scale, digits) for what in whats]


def _rows(found: dict[str, Any], whats: Sequence[str]) -> list[str]:
    lines = []
    for model in found["models"]:
        for first, name, label in ((model, "mean accuracy", "accuracy, %"), ("", "perplexity", "perplexity")):
            lines.append([first, label, *_cells(found, model, whats, name)])
    return grid(["model", "measure", *(LABELS[w] for w in whats)], lines, text=2)


def verdicts(found: dict[str, Any]) -> list[str]:
    """A sentence for each model: how AMP's mean accuracy stands to random's and to that of its own reversal."""
    sentences = []
    for model, claims in found["amp against"].items():
        said = [_against(Comparison(**claims[what]), name) for what, name in AGAINST.items()]
        sentences.append(f"{model}: {'; '.join(said)}.")
    return sentences


def _against(gap: Comparison, other: str) -> str:
    if not gap.clear:
        return f"AMP and {other} are not told apart, {gap.points()}"
    more = gap.difference > 0
    points = (gap if more else gap.turned).points().replace("+", "")
    return f"AMP keeps {points} {'more' if more else 'less'} than {other}"


def main_table(found: dict[str, Any]) -> str:
    s, (one, *_) = found["settings"], found["models"]
    removed = found["models"][one]["amp"]["removed"]["value"]
    items = "all items" if s["limit"] is None else f"the first {s['limit']} items"
    note = (
        f"Zero-shot accuracy, mean over six tasks ({items} of each; guessing gives {100 * CHANCE:.1f} %), and "
        f"perplexity on held-out text, of {s['seeds']} seeds the geometric mean. Pruned models have lost "
        f"{100 * removed:.0f} % of all parameters. ± or brackets: a 95 % interval. {STAR}. In sentences, differences "
        "seed by seed and item by item. "
    )
    return "\n".join([*_rows(found, MAIN), "", note + " ".join(verdicts(found))])


def table(found: dict[str, Any]) -> str:
    """`summary.md`: the main table, recovery with its control, the tasks one by one, and the ablation."""
    lines = ["# Results", "", main_table(found), "", "## What recovery brings back", ""]
    lines += [*_rows(found, ("dense", "dense-recovered", "amp", "amp-recovered")), ""]
    lines += ["*dense + recovery* is the control: the same training on the model nobody pruned.", ""]
    by_task = [
        [model, task, f"{100 * chance:.0f}", *_cells(found, model, MAIN, task)]
        for model in found["models"]
        for task, chance in amp.CHANCE.items()
    ]
    header = ["model", "task", "chance, %", *(LABELS[w] for w in MAIN)]
    lines += ["## Task by task", "", *grid(header, by_task, text=2)]
    lines += ["", "## AMP's ablation at equal total parameters", "", *_rows(found, ABLATION), ""]
    gone = [f"{m} {100 * w['ablation-heads']['removed']['value']:.1f} %" for m, w in found["models"].items()]
    paper = ", ".join(f"{LABELS[w]} {value}" for w, value in PAPER_ABLATION.items())
    lines += [
        f"Share of all parameters removed: {', '.join(gone)} (the most that heads alone can give up, at most the ratio "
        f"asked for). The paper, LLaMA-2-7B at 30 %, other tasks [second-hand]: {paper}.",
    ]
    return "\n".join(lines) + "\n"


def picture(found: dict[str, Any]) -> plt.Figure:
    """Mean accuracy of every model, dense and treated, with 95 % intervals and the level of guessing."""
    models, width = list(found["models"]), 0.14
    fig, axes = plt.subplots(figsize=(8.6, 3.9))
    for k, what in enumerate(MAIN):
        found_here = [interval(found, m, what, "mean accuracy") for m in models]
        x = [i + (k - (len(MAIN) - 1) / 2) * width for i in range(len(models))]
        values = [100 * f.value for f in found_here]
        # An interval over three seeds alone can reach below 0 and above 100 %; the table has it whole.
        ends = [(f.value if f.low is None else f.low, f.value if f.high is None else f.high) for f in found_here]
        down = [100 * (f.value - max(low, 0.0)) for f, (low, _) in zip(found_here, ends, strict=True)]
        up = [100 * (min(high, 1.0) - f.value) for f, (_, high) in zip(found_here, ends, strict=True)]
        axes.bar(
            x, values, width * 0.92, yerr=[down, up], label=LABELS[what], color=colour(LABELS[what]), hatch=HATCHES[k],
            edgecolor="white", error_kw=dict(elinewidth=1.2, capsize=2.5, ecolor="black"),
        )  # fmt: skip
        for at, value, above in zip(x, values, up, strict=True):
            axes.text(at, value + above + 1.2, f"{value:.0f}", ha="center", va="bottom", fontsize=8.5)
    axes.axhline(100 * CHANCE, color="black", linestyle="--", linewidth=1.2)
    axes.set_xlim(-0.5, len(models) - 0.5)
    axes.text(len(models) - 0.49, 100 * CHANCE, "guessing", va="center", fontsize=9)
    axes.set_xticks(range(len(models)), models, fontsize=11)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("mean accuracy, six tasks (%)")
    axes.grid(axis="x", visible=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    fig.legend(loc="upper center", ncols=len(MAIN), frameon=False, fontsize=9, columnspacing=1.1, handlelength=1.6)
    fig.subplots_adjust(left=0.08, right=0.915, top=0.9, bottom=0.09)
    return fig


def alt_text(found: dict[str, Any]) -> str:
    parts = []
    for model in found["models"]:
        values = (f"{LABELS[w]} {100 * interval(found, model, w, 'mean accuracy').value:.0f} %" for w in MAIN)
        parts.append(f"{model}: {', '.join(values)}")
    return f"Bars of mean accuracy over six tasks, where guessing gives {100 * CHANCE:.0f} %. {'; '.join(parts)}."


def write(found: dict[str, Any], out: Path) -> str:
    """Write `summary.md` and `picture.png`; return the table."""
    text = table(found)
    write_text(out / "summary.md", text)
    with plt.style.context("default"), plt.rc_context({"axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3}):
        fig = picture(found)
        with written_file(out / "picture.png", ending=".part.png") as beside:
            fig.savefig(beside, dpi=160, metadata={"Software": None})
    plt.close(fig)
    return text


def gathered(grid_file: Path, runs: Path) -> tuple[dict[str, collection.Found], int]:
    """The records of every model of which all runs are finished by `<model>-<what>-<seed>.json`; how many are not.

    Raises:
        ValueError: a grid that is not sound.
    """
    found: dict[str, dict[str, collection.Found | None]] = {}
    for run, record in sweep.records_of(grids.read(grid_file), runs):
        p = run.parameters
        model = Path(str(p["model"])).name
        found.setdefault(model, {})[f"{model}-{p['what']}-{p['seed']}.json"] = record
    whole = {name: r for of in found.values() if None not in of.values() for name, r in of.items() if r is not None}
    return whole, sum(list(of.values()).count(None) for of in found.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the course's results from the records of their sweep.")
    parser.add_argument("--grid", type=Path, default=DATA / "sweeps" / "results.yaml", help="the sweep's grid")
    parser.add_argument(
        "--runs", type=Path, help="the sweep's folder of runs, whose records take the place of the same runs' in --out"
    )
    parser.add_argument("--out", type=Path, default=Path("data/results"), help="where table and picture go")
    o = parser.parse_args(arguments)
    try:
        records, missing = gathered(o.grid, o.runs) if o.runs else ({}, 0)
        if records:
            collection.put(o.out, records)
    except ValueError as error:
        parser.error(str(error))
    if missing:
        print(f"{missing} runs are not finished: amp-tutorial sweep {o.grid} --out {o.runs}", file=sys.stderr)
    if o.runs and not records:
        print(f"No model has all its runs finished in {o.runs}.", file=sys.stderr)
        return 1
    try:
        found = read(o.out)
    except ValueError as error:
        parser.error(str(error))
    print(write(found, o.out))
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
