"""From the records of `results` to one summary: means with intervals, tables, a picture and the README's part."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

import amp_tutorial as amp

from ..course.lesson import HATCHES, PALETTE
from ..files.atomic import write_json, write_text, written_file

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
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
# Student's t, 97.5 %, for 2 to 10 seeds; beyond ten the last one is used, which errs on the wide side.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
PAPER_ABLATION = {"ablation-both": 61.02, "ablation-heads": 37.63, "ablation-neurons": 56.93}


@dataclass(frozen=True)
class Interval:
    """A value, its 95 % interval and what that interval is over."""

    value: float
    low: float
    high: float
    over: str  # "seeds" (Student's t) or "items" (one seed: the record's own interval)
    seeds: int

    def apart(self, other: "Interval") -> bool:
        """Whether the two intervals do not overlap."""
        return self.low > other.high or other.low > self.high


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's t interval: mean ± t(0.975, n − 1) · s / √n.

    It says how far the draw (of calibration texts, of random scores, of batches) moves the result; all seeds are
    measured on the same items, so it does not say what other items would give.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("An interval over seeds needs at least two seeds.")
    mean = statistics.fmean(values)
    half = STUDENT[min(len(values), 10) - 2] * statistics.stdev(values) / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half, "seeds", len(values))


def metric(records: Sequence[dict[str, Any]], name: str) -> Interval:
    """One metric over the records of one treatment."""
    found = [record["metrics"][name] for record in records]
    if len(found) > 1:
        return over_seeds([m["value"] for m in found])
    m = found[0]
    low, high = (m["value"] if m[end] is None else m[end] for end in ("low", "high"))
    return Interval(m["value"], low, high, "items", 1)


def summarise(records: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> dict[str, Any]:
    """Every metric of every treatment of every model, over seeds; plain data, as in `summary.json`."""
    models: dict[str, Any] = {}
    for model, mine in records.items():
        by_what: dict[str, list[dict[str, Any]]] = {}
        for record in mine:
            by_what.setdefault(record["parameters"]["what"], []).append(record)
        models[model] = {
            what: {name: asdict(metric(group, name)) for name in group[0]["metrics"]} for what, group in by_what.items()
        }
    return {"settings": settings, "chance": CHANCE, "models": models}


def interval(found: dict[str, Any], model: str, what: str, name: str) -> Interval:
    return Interval(**found["models"][model][what][name])


def _cell(i: Interval, percent: bool) -> str:
    half = max(i.high - i.value, i.value - i.low)  # a bootstrap interval need not be symmetric
    star = "" if i.over == "seeds" else "\\*"
    return f"{100 * i.value:.1f} ± {100 * half:.1f}{star}" if percent else f"{i.value:.2f} ± {half:.2f}{star}"


def _rows(found: dict[str, Any], whats: Sequence[str]) -> list[str]:
    lines = [
        "| model | measure | " + " | ".join(LABELS[w] for w in whats) + " |",
        "|---|---|" + "---:|" * len(whats),
    ]
    for model in found["models"]:
        for name, label, percent in (("mean accuracy", "accuracy, %", True), ("perplexity", "perplexity", False)):
            cells = [_cell(interval(found, model, w, name), percent) for w in whats]
            lines.append(f"| {model if percent else ''} | {label} | " + " | ".join(cells) + " |")
    return lines


def verdicts(found: dict[str, Any]) -> list[str]:
    """A sentence for each model: how AMP's mean accuracy stands to random's and to that of its own reversal."""
    sentences = []
    for model in found["models"]:
        amp_, random, reversed_ = (interval(found, model, w, "mean accuracy") for w in ("amp", "random", "reversed"))
        against = f"{_against(amp_, random)} random choice, and {_against(amp_, reversed_)} its own reversal"
        sentences.append(f"{model}: AMP keeps {against}.")
    return sentences


def _against(a: Interval, b: Interval) -> str:
    gap = 100 * (a.value - b.value)
    if not a.apart(b):
        return f"no clear difference ({gap:+.1f} points, intervals overlap) from"
    return f"{abs(gap):.1f} points {'more' if gap > 0 else 'less'} than"


def main_table(found: dict[str, Any]) -> str:
    s, (one, *_) = found["settings"], found["models"]
    removed = found["models"][one]["amp"]["removed"]["value"]
    items = "all items" if s["limit"] is None else f"the first {s['limit']} items"
    note = (
        f"Zero-shot accuracy, mean over six tasks ({items} of each; guessing gives {100 * CHANCE:.1f} %), and "
        f"perplexity on held-out text. Pruned models have lost {100 * removed:.0f} % of all parameters. ± is a 95 % "
        f"interval over {s['seeds']} seeds (Student's t); \\* marks what has no seed, where it is over items or "
        "windows. "
    )
    return "\n".join([*_rows(found, MAIN), "", note + " ".join(verdicts(found))])


def table(found: dict[str, Any]) -> str:
    """`summary.md`: the main table, recovery with its control, the tasks one by one, and the ablation."""
    lines = ["# Results", "", main_table(found), "", "## What recovery brings back", ""]
    lines += [*_rows(found, ("dense", "dense-recovered", "amp", "amp-recovered")), ""]
    lines += ["*dense + recovery* is the control: the same training on the model nobody pruned.", ""]
    lines += ["## Task by task", "", "| model | task | chance, % | " + " | ".join(LABELS[w] for w in MAIN) + " |"]
    lines += ["|---|---|---:|" + "---:|" * len(MAIN)]
    for model in found["models"]:
        for task, chance in amp.CHANCE.items():
            cells = [_cell(interval(found, model, w, task), True) for w in MAIN]
            lines.append(f"| {model} | {task} | {100 * chance:.0f} | " + " | ".join(cells) + " |")
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
        # An interval over three seeds can reach below 0 and above 100 %; the table has it whole.
        down = [min(v, 100 * (f.value - f.low)) for v, f in zip(values, found_here, strict=True)]
        up = [min(100 - v, 100 * (f.high - f.value)) for v, f in zip(values, found_here, strict=True)]
        axes.bar(
            x, values, width * 0.92, yerr=[down, up], label=LABELS[what], color=PALETTE[k], hatch=HATCHES[k],
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


def write(records: dict[str, list[dict[str, Any]]], settings: dict[str, Any], out: Path) -> str:
    """Write `summary.json`, `summary.md` and `picture.png`; return the table."""
    found = summarise(records, settings)
    write_json(out / "summary.json", found)
    text = table(found)
    write_text(out / "summary.md", text)
    with plt.style.context("default"), plt.rc_context({"axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3}):
        fig = picture(found)
        with written_file(out / "picture.png", ending=".part.png") as beside:
            fig.savefig(beside, dpi=160, metadata={"Software": None})
    plt.close(fig)
    return text


def marked(readme: Path, first: str = BEGIN, last: str = END) -> tuple[str, str]:
    """What stands before and after the results in a README.

    Raises:
        ValueError: the file or its two markers are not there.
    """
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"{readme} has no part between {first} and {last} to fill.")
    return before, after


def into_readme(readme: Path, out: Path) -> None:
    """Replace what stands between the markers by the picture and the main table."""
    before, after = marked(readme)
    found = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    link = Path(os.path.relpath(out / "picture.png", readme.resolve().parent)).as_posix()
    body = f"![{alt_text(found)}]({link})\n\n{main_table(found)}"
    write_text(readme, f"{before}{BEGIN}\n{body}\n{END}{after}")
