"""The tables and the picture of the leaderboard, from what `standings.py` collects."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from ..files.atomic import write_bytes, write_text
from ..measure.comparisons import Comparison
from ..measure.intervals import Interval, raised
from .measured import is_perplexity
from .standings import (
    CONTESTS,
    GOALS,
    METRICS,
    NEAR,
    Duel,
    Found,
    Records,
    best,
    collect,
    dense,
    duels,
    is_ours,
    ratios,
    rows_of,
)
from .style import BLANK, STAR, colour, grid, sure

KINDS = ("heads and neurons", "neurons", "layers", "repair", "slicing")  # that the picture draws
NAMED = (  # of which it says at the ends of their lines what they are, with a colour and a marker; all others are grey
    "AMP",
    "TransAct",
    "magnitude",
    "random",
    "layers, ShortGPT",
    "SliceGPT by layer, masked",
    "AMP + repair",
    "ours, one budget",
)
GREY = "#949494"
MARKERS = "os^DvPX*<>hp"


def _sure(found: Interval, name: str) -> str:
    return sure(found, is_perplexity(name), *((1, 2) if is_perplexity(name) else (100, 1)))


def _said(gap: Comparison, name: str) -> str:
    return gap.ratio() if is_perplexity(name) else gap.points()


def contest_table(found: Found, contest: str, ratio: float) -> list[str]:
    """Systems × models at one ratio. Bold: the best; ≈: not told apart from the best; †: the ratio is off."""
    rows = rows_of(found, contest, ratio)
    columns = [(m, *metric) for m in found for metric in METRICS if any(metric[0] in c for c in found[m].values())]
    winners = [best(found[m], rows, name, sign) for m, name, sign, _ in columns]
    lines = [["dense", "", *(_sure(dense(found[m])[name], name) for m, name, *_ in columns)]]
    for row in rows:
        said = []
        for (m, name, *_), winner in zip(columns, winners, strict=True):
            system = found[m].get(row)
            if system is None or name not in system:
                said.append(BLANK)
                continue
            text = _sure(system[name], name)
            if row == winner:
                text = f"**{text}**"
            elif winner and not system.against(found[m][winner], name).clear:
                text = f"≈ {text}"
            off = system["parameters removed"].value
            said.append(text + (f" †{100 * off:.0f} %" if abs(off - row[3]) > NEAR else ""))
        lines.append([row[1], row[2], *said])
    return grid(["system", "kind", *(f"{m}, {name}{', %' * pc}" for m, name, _, pc in columns)], lines, text=2)


def goal_table(found: Found, fought: Sequence[Duel]) -> list[str]:
    """For each model, ratio, contest and metric: the best of ours, the best of all others, and what either costs."""
    lines = []
    for duel in fought:
        cells, name = found[duel.model], duel.name
        said = [
            f"{row[1]}: {_sure(cells[row][name], name)} ({_change(cells[row][name], dense(cells)[name], name)})"
            for row in (duel.ours, duel.other)
        ]
        verdict = f"{duel.verdict}{' clearly' if duel.gap.clear else ''}: {_said(duel.gap, name)}"
        whole = _sure(dense(cells)[name], name)
        lines.append([duel.model, f"{100 * duel.ratio:g} %", duel.contest, name, whole, *said, verdict])
    return grid(["model", "removed", "contest", "metric", "dense", "best of ours", "best other", "ours"], lines)


def tally(fought: Sequence[Duel]) -> list[str]:
    """In how many duels ours are ahead, contest by contest and metric by metric."""
    sentences = []
    for contest, name in dict.fromkeys((duel.contest, duel.name) for duel in fought):
        mine = [duel for duel in fought if (duel.contest, duel.name) == (contest, name)]
        ahead, behind = ([d for d in mine if d.verdict == verdict] for verdict in ("ahead", "behind"))
        clear, lost = (sum(d.gap.clear for d in some) for some in (ahead, behind))
        sentences.append(
            f"- {contest}, {name}: ahead in {len(ahead)} of {len(mine)} cases, clearly in {clear}; clearly behind in "
            f"{lost}."
        )
    return sentences


def missed(found: Found) -> list[str]:
    """By how much the goals set beforehand are met or missed; a ratio that was not run is told by those around it."""
    lines = []
    for contest, asked, most in GOALS:
        above, below = [r for r in ratios(found) if r >= asked], [r for r in ratios(found) if r <= asked]
        around = {*above[:1], *below[-1:]}
        for model, cells in found.items():
            for ratio in sorted(around):
                rows = [row for row in rows_of(found, contest, ratio) if is_ours(row)]
                if row := best(cells, rows, *METRICS[0][:2]):
                    gap = cells[row].against(dense(cells), "perplexity")
                    ends = (gap.difference, gap.low, gap.high)
                    cost, low, high = (None if end is None else 100 * (raised(end) - 1) for end in ends)
                    assert cost is not None
                    verdict = "met" if cost <= most else f"missed by {cost - most:.1f} points"
                    if ratio != asked:
                        verdict = f"{asked:.0%} was not run; " + ("within it" if cost <= most else "over it") + " here"
                    sure_of = "" if low is None else f" ({low:+.1f} to {high:+.1f})"
                    goal = f"{contest}: perplexity +{most} % with {asked:.0%} of all parameters gone"
                    lines.append([goal, model, f"{row[1]} at {ratio:.0%}: {cost:+.1f} %{sure_of}", verdict])
    return grid(["goal, at most", "model", "measured", "verdict"], lines) if lines else []


def _change(now: Interval, whole: Interval, name: str) -> str:
    if is_perplexity(name):
        return f"{100 * (now.value / whole.value - 1):+.1f} %"
    return f"{100 * (now.value - whole.value):+.1f} points"


def costs_table(found: Found, ratio: float) -> list[str]:
    """What each system removed, and how long pruning took, as means over seeds."""
    names = (("parameters removed", 100), ("operations removed", 100), ("cache removed", 100), ("pruning seconds", 1))
    lines = []
    for row in (r for contest in dict.fromkeys(CONTESTS.values()) for r in rows_of(found, contest, ratio)):
        said = []
        for m in found:
            cell: Mapping[str, Interval] = found[m].get(row) or {}
            said.append(", ".join(f"{by * cell[n].value:.1f}" if n in cell else BLANK for n, by in names))
        lines.append([row[1], *said])
    return grid(["system", *(f"{m}: parameters, operations, cache, %; s" for m in found)], lines, text=1)


NOTE = (
    f"Ratios are of all parameters; perplexities of several seeds are geometric means. ± or brackets: a 95 % interval. "
    f"{STAR}. Bold is the best of a table among those that removed no less than asked; ≈ is not told apart from the "
    "best, by their difference seed by seed and item by item; † a ratio more than 2 points off, because layers go "
    "whole. The best is read off this very table, and each comparison is at 95 % by itself: a narrow lead says little."
)


GOAL = (
    "In brackets what it costs against the dense model; last, how ours stand to the other: perplexity as a multiple, "
    "accuracy as a difference, with its 95 % interval over seeds and items, and *clearly* where it leaves out that "
    "both are alike. *Ours* are all with repair, slicing with one rotation, and the "
    "one budget with LoRA; the best of each side is read off these very runs. A small model trained briefly has a "
    "low-rank residual stream, on which slicing flatters itself, so contests with slicing stand apart."
)


WHY = (
    "Slicing pays where few directions of the residual stream carry it. The goals were set after a model of which that "
    "holds; `amp.rotation` shows how much each direction of yours carries. The goals without slicing (4 % at 25 % and "
    "22 % at 50 % of block parameters) are for a longer-trained model, which is not in this repository: no line here."
)


def body(found: Found, left_out: Sequence[str], only: float | None = None) -> list[str]:
    """Who is ahead, then the tables of every ratio, or of one only."""
    fought = duels(found)
    lines = [
        "### Ours against the best of all others",
        "",
        *tally(fought),
        "",
        *goal_table(found, fought),
        "",
        GOAL,
        "",
    ]
    if goals := missed(found):
        lines += ["### Against the goals set beforehand", "", *goals, "", WHY, ""]
    for ratio in ratios(found) if only is None else [only]:
        for contest in dict.fromkeys(CONTESTS.values()):
            if rows_of(found, contest, ratio):
                lines += [f"### {contest}, {100 * ratio:g} % removed", "", *contest_table(found, contest, ratio), ""]
    lines += [NOTE, ""]
    if left_out:
        lines += [f"Left out, because measured otherwise than the dense model: {', '.join(left_out)}.", ""]
    return lines


def picture(found: Found) -> plt.Figure:
    """Perplexity relative to dense against the share of parameters removed; eight systems by name, the others grey."""
    fig, axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 5), sharey=True, squeeze=False)
    for axis, (model, rows) in zip(axes[0], found.items(), strict=True):
        whole, ends, least = dense(rows)["perplexity"].value, {}, 100.0
        for name in sorted({row[:3] for row in rows if row[2] in KINDS}, key=lambda n: n[1] in NAMED):
            of_name = (c for row, c in rows.items() if row[:3] == name)
            points = sorted((100 * c["parameters removed"].value, c["perplexity"].value / whole) for c in of_name)
            across, upward = zip(*points, strict=True)
            least = min(least, across[0])
            if (label := name[1]) in NAMED:
                style = dict(color=colour(label), marker=MARKERS[NAMED.index(label)], linewidth=1.6, label=label)
                ends[label] = points[-1]
            else:
                style = dict(color=GREY, linewidth=0.7, zorder=1)
            axis.plot(across, upward, linestyle="-" if name[2] == "repair" else "--", markersize=6, **style)
        right = max((x for x, _ in ends.values()), default=0.0)
        for (label, (x, y)), place in zip(ends.items(), spread([y for _, y in ends.values()]), strict=True):
            axis.annotate(
                label, (x, y), (right + 3, place), color=colour(label), fontsize=8.5, va="center",
                arrowprops=dict(arrowstyle="-", color=colour(label), lw=0.6, shrinkA=1, shrinkB=3),
            )  # fmt: skip
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set(yscale="log", title=model, xlabel="parameters removed (%)")
        axis.set_xticks([tick for tick in range(0, 101, 10) if least <= tick <= right])
        axis.set_xlim(right=right + 32 if ends else None)  # the labels stand there
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("perplexity, times the dense model's")
    fig.tight_layout()
    return fig


def spread(heights: Sequence[float], least: float = 1.38) -> list[float]:
    """Places for labels at these heights of a log axis: in the same order, each `least` times the one below or more."""
    places = sorted((math.log(y), i) for i, y in enumerate(heights))
    for _ in range(200):
        moved = False
        for (low, i), (high, j), k in zip(places, places[1:], range(len(places)), strict=False):
            if (lacks := math.log(least) - (high - low)) > 1e-9:
                places[k], places[k + 1], moved = (low - lacks / 2, i), (high + lacks / 2, j), True
        if not moved:
            break
    return [math.exp(place) for place, _ in sorted(places, key=lambda p: p[1])]


def alt_text(found: Found) -> str:
    """What the picture shows: at the largest ratio, the best and the worst of each model."""
    said = []
    for model, rows in found.items():
        drawn = [(row[3], c["perplexity"].value, row[1]) for row, c in rows.items() if row[2] in KINDS]
        last = sorted((value, label) for ratio, value, label in drawn if ratio == max(drawn)[0])
        whole = dense(rows)["perplexity"].value
        ends = [f"{value / whole:.2f} times ({label})" for value, label in (last[0], last[-1])] if last else []
        said += [f"{model} at {100 * max(drawn)[0]:g} %: from {' to '.join(ends)}"] if ends else []
    return (
        f"Lines of perplexity over the dense model's against parameters removed, of {len(NAMED)} systems by name and "
        f"of the others in grey. {'; '.join(said)}."
    )


def write(records: Records, out: Path) -> str:
    """Write `summary.md` and `picture.png` beside the records; return the text."""
    found, left_out = collect(records)
    lines = ["# Leaderboard", "", f"![{alt_text(found)}](picture.png)", "", *body(found, left_out)]
    for ratio in ratios(found):
        lines += [f"### Costs, {100 * ratio:g} % removed", "", *costs_table(found, ratio), ""]
    text, fig, png = "\n".join(lines), picture(found), io.BytesIO()
    fig.savefig(png, format="png", dpi=130, metadata={"Software": None})
    plt.close(fig)
    write_text(out / "summary.md", text)
    write_bytes(out / "picture.png", png.getvalue())
    return text
