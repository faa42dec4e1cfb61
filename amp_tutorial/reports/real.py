"""What a real LLaMA says: dense figures, the contest, the papers' claims with verdicts, and the goals set beforehand.

All from the records in `data/real` (`data/sweeps/real.yaml` makes them); `docs/real.md` and the README show it.
"""

import argparse
import io
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from ..files import DATA
from ..files.atomic import write_bytes
from ..measure.comparisons import Comparison, compare_perplexity
from ..measure.intervals import Interval, raised
from ..methods.lora import RecoveryConfig
from ..runs import collection
from ..runs import record as records_of_runs
from . import damage, leaderboard, measured, standings
from .standings import Records, Row, System
from .style import BLANK, MARKERS, colour, grid

FOLDER = DATA / "real"
TEXTS = {"perplexity": "WikiText-2", "c4/perplexity": "C4"}
TEXT, PROMPTS = "c4,wikipedia", "alpaca"  # what systems are made from; the paper takes instruction prompts
# Systems of others at their best split are compared with; AMP as published is heads and neurons alike.
PUBLISHED = "amp"
OF_AMP = ("amp", "reversed", "amp-neurons", "amp-heads")  # which are not the field that it is compared with
SHOWN = {  # of the picture and the README's table
    "amp": "AMP, heads and neurons",
    "amp-neurons": "AMP, neurons",
    "transact-neurons": "TransAct, neurons",
    "layers-influence": "whole layers, ShortGPT",
    "ours-neurons": "ours, neurons",
    "ours-polished": "ours, neurons, polished",
    "ours-budget-8": "ours, one budget",
}
TUNED = "LoRA"  # the kind of what was trained after the cut
# Set before anything was measured: of ours, the excess log-perplexity over dense at most so much of AMP's as published,
# and of the best other's at its best split.
MINIMAL = 0.1  # nats a token: our reading of an impact that is minimal, a tenth more perplexity
GOALS = {0.2: (0.35, 0.65), 0.3: (0.45, 0.75)}


@dataclass(frozen=True)
class Contest:
    """The dense model and every system measured in one way, by name and ratio."""

    dense: System
    rows: dict[tuple[str, float], System]
    labels: dict[str, Row]
    tuned: "Contest | None" = None  # those that LoRA came after: a contest of their own
    elsewhere: frozenset[tuple[str, float]] = frozenset()  # of the rows those measured in float32 alone

    def at(self, name: str, ratio: float) -> System | None:
        return self.rows.get((name, ratio))

    @property
    def ratios(self) -> list[float]:
        return sorted({ratio for _, ratio in self.rows})

    def excess(self, found: System, metric: str = "perplexity") -> Comparison:
        """Log-perplexity over the dense model's, in nats a token, window by window."""
        return found.against(self.dense, metric)

    def times(self, name: str, ratio: float) -> str:
        """A system's perplexity as a multiple of the dense model's, in words."""
        found = self.at(name, ratio)
        return "not measured" if found is None else f"{digits(raised(self.excess(found).difference))} times"

    def others(self, ratio: float, metric: str = "perplexity") -> list[tuple[float, str]]:
        """Excess of everything that is not ours and removes as much as asked, the least first."""
        found = []
        for (name, at), system in self.rows.items():
            if at == ratio and not standings.is_ours(self.labels[name]) and metric in system:
                if system["parameters removed"].value >= ratio - standings.NEAR:
                    found.append((self.excess(system, metric).difference, name))
        return sorted(found)

    def ours(self, ratio: float, metric: str = "perplexity") -> str | None:
        """The best of ours by the text that is named first; None if none was measured."""
        mine = [n for n, at in self.rows if at == ratio and standings.is_ours(self.labels[n])]
        return min(mine, key=lambda n: self.excess(self.rows[n, ratio], metric).difference, default=None)


@cache
def records(folder: Path = FOLDER) -> Records:
    return standings.read(folder)


def made_from(record: dict[str, Any], otherwise: str = "") -> str:
    """The text that a system was made from; the dense model is made from none."""
    return str(record["parameters"].get("made", {}).get("text", otherwise))


def contest_of(found: Records, wanted: Callable[[dict[str, Any]], bool], text: str = TEXT) -> Contest:
    """The contest among records that were measured in one way, of systems made from one text.

    Raises:
        ValueError: there is no dense record of that kind.
    """
    mine = [r for r in found if wanted(r["parameters"]["measured"]) and made_from(r, text) == text]
    boards_of, _ = standings.collect(mine)
    if not boards_of:
        raise ValueError(f"{FOLDER} has no dense record that was measured so; data/sweeps/real.yaml makes them.")
    return _contest(next(iter(boards_of.values())))


def _contest(cells: dict[Row, System]) -> Contest:
    dense, labels = standings.dense(cells), {row[0]: row for row in cells}
    plain, tuned = (
        {(row[0], row[3]): system for row, system in cells.items() if row[0] != "dense" and (row[2] == TUNED) == after}
        for after in (False, True)
    )
    return Contest(dense, plain, labels, Contest(dense, tuned, labels) if tuned else None)


def on_short_windows(m: dict[str, Any], dtype: str = "bfloat16") -> bool:
    """Whether it was measured on the first short windows of two texts, in one precision, and asked nothing."""
    return m.get("dtype", "float32") == dtype and m["items"] == 0 and m["windows"] == 40


@cache
def main_contest(folder: Path = FOLDER) -> Contest:
    """The contest on short windows of two texts: in bfloat16, and in float32 what has not been measured so.

    What LoRA came after is measured in float32, as it was trained.
    """
    found = records(folder)
    c, in_float32 = contest_of(found, on_short_windows), partial(on_short_windows, dtype="float32")
    if not any(in_float32(p["measured"]) and p["system"] == "dense" for p in (r["parameters"] for r in found)):
        return c  # of a sweep that has not come so far
    exact = contest_of(found, in_float32)
    rows, labels = exact.rows | c.rows, exact.labels | c.labels
    return replace(c, rows=rows, labels=labels, tuned=exact.tuned, elsewhere=frozenset(rows.keys() - c.rows.keys()))


def dense_table(found: Records) -> list[str]:
    """The dense model's perplexity by every protocol by which it was measured."""
    lines = []
    for m, r in ((r["parameters"]["measured"], r) for r in found if r["parameters"]["system"] == "dense"):
        if m["items"] != 0:
            continue  # it was asked the tasks as well, over windows that another record has
        many = "all" if m["windows"] is None else f"the first {m['windows']}"
        how = f"{many} windows of {m.get('window', 256)} tokens, {m.get('dtype', 'float32')}"
        for name, text in TEXTS.items():
            if value := measured.over([r], name):
                lines.append([text, how, value.bounds(2)])
    return grid(["text", "protocol", "dense model, perplexity"], sorted(lines), text=2)


def digits(value: float) -> str:
    """A perplexity or a multiple of one, with as many digits as say something."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def sure(found: Interval) -> str:
    ends = "" if found.low is None or found.high is None else f" ({digits(found.low)} to {digits(found.high)})"
    return digits(found.value) + ends


def _nats(gap: Comparison) -> str:
    ends = "" if gap.low is None or gap.high is None else f" ({gap.low:.2f} to {gap.high:.2f})"
    return f"{gap.difference:.2f}{ends}"


def contest_table(c: Contest, ratio: float) -> list[str]:
    """Every system at one ratio, the best first: perplexity on both texts, and the excess over dense in nats."""
    lines = [["dense", "", *(found for t in TEXTS for found in (sure(c.dense[t]), "0"))]]
    names = [name for name, at in c.rows if at == ratio]
    for name in sorted(names, key=lambda n: c.excess(c.rows[n, ratio]).difference):
        system = c.rows[name, ratio]
        removed = system["parameters removed"].value
        off = f" †{100 * removed:.1f} %" if abs(removed - ratio) > 0.005 else ""
        said = [found for t in TEXTS for found in (sure(system[t]), _nats(c.excess(system, t)))]
        off += " ‡" * ((name, ratio) in c.elsewhere)
        lines.append([c.labels[name][1] + off, str(system["perplexity"].seeds), *said])
    head = [part for text in TEXTS.values() for part in (text, "excess, nats")]
    return grid(["system", "draws", *head], lines, text=1)


def trained(c: Contest, ratio: float) -> str:
    """How those that LoRA came after were trained, and what it took."""
    mine = [r for (_, at), system in c.rows.items() if at == ratio for r in system.records]
    made = mine[0]["parameters"]["made"]
    labels = max(r["metrics"]["recovery tokens"]["value"] for r in mine)
    spent = [r["metrics"]["recovery seconds"]["value"] / 60 for r in mine]
    return (
        f"Within a draw each is trained on the same {made['samples']} rows of Alpaca in the same order: "
        f"{made['epochs']} epochs, rate {made['rate']:g}, rank {RecoveryConfig.rank} on all projections, "
        f"{labels / made['epochs']:,.0f} tokens of responses an epoch; {min(spent):.0f} to {max(spent):.0f} minutes on "
        "two cores. Measured in float32, as it was trained, on the windows of above."
    )


def tasks_contest(found: Records) -> Contest | None:
    """The contest among what was asked all items of the tasks; None if nothing was."""
    asked = [r for r in found if r["parameters"]["measured"]["items"] != 0]
    return contest_of(asked, lambda measured: True) if asked else None


def tasks_table(c: Contest) -> list[str]:
    """Zero-shot accuracy in percent, beside guessing, and against the dense model's item by item."""
    metrics = c.dense.records[0]["metrics"]
    tasks = metrics["mean accuracy"]["of"]

    def line(name: str, draws: str, system: System, gap: str) -> list[str]:
        of = [f"{100 * system[task].value:.1f}" for task in tasks]
        return [name, draws, *of, system["mean accuracy"].percent(), gap]

    lines = [line("dense", "", c.dense, "")]
    for (name, ratio), system in sorted(c.rows.items(), key=lambda row: (row[0][1], -row[1]["mean accuracy"].value)):
        label, gap = f"{c.labels[name][1]}, {100 * ratio:g} %", system.against(c.dense, "mean accuracy")
        lines.append(line(label, str(system["mean accuracy"].seeds), system, gap.points()))
    chance = [100 * metrics[task]["chance"] for task in tasks]
    lines.append(["guessing", "", *(f"{value:.1f}" for value in [*chance, sum(chance) / len(tasks)]), ""])
    n = [f"{task} ({metrics[task]['n']:,})" for task in tasks]
    return grid(["system", "draws", *n, "mean", "against dense"], lines, text=1)


def above_chance(c: Contest) -> str:
    """Which tasks the dense model does not answer better than by guessing."""
    metrics = c.dense.records[0]["metrics"]
    level = [task for task in metrics["mean accuracy"]["of"] if metrics[task]["low"] <= metrics[task]["chance"]]
    return f"The dense model is not clearly above guessing in: {_list(level)}."


def rounded(asked: Contest, c: Contest) -> str:
    """What products of bfloat16 change where something is made: of systems that were made both ways, draw by draw."""
    said = []
    for (name, ratio), system in asked.rows.items():
        same = c.at(name, ratio)
        fast = {r["parameters"]["seed"]: r for r in system.records if _made_in(r) == "bfloat16"}
        exact = {r["parameters"]["seed"]: r for r in (same.records if same else []) if _made_in(r) == "float32"}
        if both := sorted(fast.keys() & exact.keys()):
            gap = System([fast[k] for k in both]).against(System([exact[k] for k in both]), "perplexity")
            draws = "one draw" if len(both) == 1 else f"{len(both)} draws"
            said.append(f"{c.labels[name][1]}, {100 * ratio:g} %: {gap.ratio(3)} the perplexity ({draws}).")
    return "" if not said else " ".join(["Made with products of bfloat16 in place of float32, on WikiText-2:", *said])


def _made_in(record: dict[str, Any]) -> str:
    return str(record["parameters"].get("made", {}).get("dtype", "float32"))


def prompts_table(other: Contest, c: Contest) -> list[str]:
    """AMP made from instruction prompts, by either of its averages, beside AMP made from the contest's text."""
    lines = []
    for (name, ratio), system in sorted(other.rows.items(), key=lambda row: (row[0][1], row[0][0])):
        if same := c.at(PUBLISHED, ratio):
            said = [found for t in TEXTS for found in (sure(system[t]), system.against(same, t).ratio())]
            draws = str(system["perplexity"].seeds)
            lines.append([f"{other.labels[name][1]}, {100 * ratio:g} %", draws, *said])
    head = [part for text in TEXTS.values() for part in (text, "of AMP's from C4 and Wikipedia")]
    return grid(["system", "draws", *head], lines, text=1)


def goals_table(c: Contest) -> list[str]:
    """Ours against AMP as published and against the best other, as shares of their excess."""
    lines = []
    for ratio in c.ratios:
        for metric, text in TEXTS.items():
            ours, others, amp = c.ours(ratio), c.others(ratio, metric), c.at(PUBLISHED, ratio)
            if ours is None or amp is None or not others:
                continue
            mine, best = c.rows[ours, ratio], c.rows[others[0][1], ratio]
            own = c.excess(mine, metric)
            shares = [own.difference / c.excess(other, metric).difference for other in (amp, best)]
            asked = GOALS.get(ratio, (None, None))
            said = [
                f"{share:.2f}"
                + ("" if most is None else f" (at most {most:.2f}: {'met' if share <= most else 'missed'})")
                for share, most in zip(shares, asked, strict=True)
            ]
            gap = mine.against(best, metric)
            lead = f"{gap.ratio()}{', clearly' if gap.clear else ''}"
            other = f"{c.labels[others[0][1]][1]}: {_nats(c.excess(best, metric))}"
            lines.append([f"{100 * ratio:g} %", text, f"{c.labels[ours][1]}: {_nats(own)}", other, *said, lead])
    head = ["removed", "text", "best of ours, nats", "best other, nats", "of AMP's excess", "of the best other's"]
    return grid([*head, "ours, perplexity"], lines, text=4)


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what our records say of it."""

    said: str
    verdict: str  # "holds", "does not hold", "not decidable here"
    number: str


def claims(c: Contest) -> list[Claim]:
    """The abstract's and the paper's claims of AMP, each by the records."""
    found = []
    if amp := c.at(PUBLISHED, 0.3):
        gap = c.excess(amp)
        assert gap.low is not None and gap.high is not None
        verdict = "does not hold" if gap.low > MINIMAL else "holds" if gap.high < MINIMAL else "not decidable here"
        number = f"perplexity is {gap.ratio()} the dense model's, untuned"
        found.append(Claim("30 % can go “with minimal impact” [abstract]", verdict, number))
    for ratio in c.ratios:
        if not (amp := c.at(PUBLISHED, ratio)):
            continue
        beaten, beats = list[str](), list[str]()
        for _, name in c.others(ratio):
            if name not in OF_AMP:
                gap = amp.against(c.rows[name, ratio], "perplexity")
                if gap.clear:
                    (beaten if gap.difference < 0 else beats).append(c.labels[name][1])
        verdict = "does not hold" if beats else "holds" if beaten else "not decidable here"
        number = f"clearly worse than: {_list(beats)}. Clearly better than: {_list(beaten)}"
        found.append(Claim(f"AMP is ahead of the field at equal parameters, {100 * ratio:g} %", verdict, number))
    found += [claim for ratio in c.ratios for claim in _ablation(c, ratio)]
    for ratio in c.ratios:
        amp, turned = c.at(PUBLISHED, ratio), c.at("reversed", ratio)
        if amp and turned:
            gap = turned.against(amp, "perplexity")
            verdict = "holds" if gap.clear and gap.difference > 0 else "does not hold"
            said = f"The order matters: reversed, AMP is far worse, {100 * ratio:g} %"
            found.append(Claim(said, verdict, f"{digits(raised(gap.difference))} times the perplexity"))
    return found


def tuned_claims(c: Contest) -> list[Claim]:
    """Whether the best of ours is still ahead after LoRA, which had equal rows from everyone."""
    found = []
    for ratio, (metric, text) in product(c.ratios, TEXTS.items()):
        first, others = c.ours(ratio), c.others(ratio, metric)
        if first and others:
            gaps = {name: c.rows[first, ratio].against(c.rows[name, ratio], metric) for _, name in others}
            number = "; ".join(f"of {c.labels[name][1]}'s perplexity {gap.ratio()}" for name, gap in gaps.items())
            draws = "" if c.rows[first, ratio][metric].seeds > 1 else ", by one draw"
            said = f"Ours is still ahead of all others after LoRA, {100 * ratio:g} %, {text}{draws}"
            found.append(Claim(said, _ahead([gap.turned for gap in gaps.values()]), number))
    return found


def _ahead(gaps: Collection[Comparison]) -> str:
    """The verdict on being ahead of all: each gap is more than 0 where it is."""
    if any(gap.clear and gap.difference < 0 for gap in gaps):
        return "does not hold"
    return "holds" if all(gap.clear and gap.difference > 0 for gap in gaps) else "not decidable here"


def accuracy_claims(c: Contest, ours: bool = False) -> list[Claim]:
    """Whether AMP, or the best of ours, is ahead by tasks of everything else that was asked, item by item."""
    found = []
    for ratio in c.ratios:
        systems = {name: system for (name, at), system in c.rows.items() if at == ratio}
        own = {name for name in systems if standings.is_ours(c.labels[name])}
        first = max(own, key=lambda name: systems[name]["mean accuracy"].value, default="") if ours else PUBLISHED
        others = systems.keys() - own - (set() if ours else {*OF_AMP})
        if first not in systems or not others:
            continue
        gaps = {other: systems[first].against(systems[other], "mean accuracy") for other in others}
        number = "; ".join(f"against {c.labels[other][1]} {gap.points()}" for other, gap in sorted(gaps.items()))
        said = "Ours is ahead of all others" if ours else "AMP is ahead of the field"
        said += f" in mean accuracy over the five tasks, {100 * ratio:g} %"
        found.append(Claim(said, _ahead(gaps.values()), number))
    return found


def speed_claim(record: dict[str, Any] | None) -> list[Claim]:
    """What lesson 3 measured of the time that a cut saves, where it was run on the real model."""
    if record is None:
        return []
    fast, ideal = record["metrics"]["prefill speed-up, cut"], record["metrics"]["prefill speed-up, ideal"]["value"]
    verdict = "holds" if fast["low"] > 1 else "does not hold" if fast["high"] < 1 else "not decidable here"
    gone = 100 * record["parameters"]["ratio"]
    said = f"The cut is faster (1.25 × on LLaMA-7B [second-hand]), {gone:g} %"
    number = f"a prompt is read {fast['value']:.2f} times as fast ({fast['low']:.2f} to {fast['high']:.2f})"
    return [Claim(said, verdict, f"{number}; by its operations it would be {ideal:.2f} times")]


def _ablation(c: Contest, ratio: float) -> list[Claim]:
    """AMP's heads and neurons against either alone, as far as it was measured."""
    both = c.at(PUBLISHED, ratio)
    alone = {part: other for part in ("neurons", "heads") if (other := c.at(f"amp-{part}", ratio))}
    if not both or "neurons" not in alone:
        return []
    gaps = {part: other.against(both, "perplexity") for part, other in alone.items()}
    if gaps["neurons"].difference == 0:
        verdict, same = "not decidable here", ": no whole KV group fits into so little, so both are neurons alone"
    else:
        worse = [gap.difference > 0 for gap in gaps.values() if gap.clear]
        verdict = "does not hold" if not all(worse) else "holds" if len(worse) == 2 else "not decidable here"
        same = ""
    said = ", ".join(f"{part} alone have {gap.ratio()}" for part, gap in gaps.items() if gap.difference)
    said = f"of the perplexity of both, {said}" if said else "the same model"
    name = f"Heads and neurons together lose less than either alone (ablation), {100 * ratio:g} %"
    return [Claim(name, verdict, said + same)]


def _list(names: list[str]) -> str:
    return "; ".join(names) if names else "none"


def claims_table(found: list[Claim]) -> list[str]:
    return grid(["claim", "verdict", "measured"], [[x.said, f"**{x.verdict}**", x.number] for x in found])


def picture(c: Contest) -> tuple[bytes, str]:
    """Perplexity over dense against what was removed, on both texts: the PNG and its alt text."""
    fig, axes = plt.subplots(1, len(TEXTS), figsize=(9.5, 4), sharey=True)
    told = []
    for axis, (metric, text) in zip(axes, TEXTS.items(), strict=True):
        for k, (name, label) in enumerate(SHOWN.items()):
            points = [(r, raised(c.excess(found, metric).difference)) for r in c.ratios if (found := c.at(name, r))]
            if points:
                style = dict(
                    color=colour(label), marker=MARKERS[k], linestyle="-" if "ours" in name else "--", label=label
                )
                axis.plot([0, *(100 * r for r, _ in points)], [1, *(y for _, y in points)], **style)
                told.append(f"{text}, {label}: " + ", ".join(f"{y:.2f} at {100 * r:g} %" for r, y in points))
        axis.set(title=text, xlabel="parameters removed (%)", yscale="log")
        axis.grid(alpha=0.3)
        for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            ticks("{x:g}")
    axes[0].set_ylabel("perplexity, times the dense model's")
    axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)
    return png.getvalue(), f"Perplexity as a multiple of the dense model's. {'; '.join(told)}."


# Beside a tiny model

RATIO, TINY = 0.2, "tiny-llama-gqa"  # both boards have this ratio; this tiny model shares keys and values, as the real


@cache
def tiny_contest() -> Contest:
    """The tiny models' leaderboard, of the one that stands beside the real model."""
    return _contest(standings.collect(standings.read(DATA / "leaderboard"))[0][TINY])


def gap(a: Any, b: Any) -> Comparison:
    """How the perplexity of A differs from B's: each is the losses and the tokens of its windows."""
    return compare_perplexity({0: tuple(a)}, {0: tuple(b)})


def front() -> str:
    """What the README shows first: the picture, and a table of the real model beside a tiny one."""
    c, tiny = main_contest(), tiny_contest()
    lines = []
    for name, label in SHOWN.items():
        same = TINY_NAMES.get(name, name)  # another budget of trials
        sides = [(c, name, ratio) for ratio in c.ratios] + [(tiny, same, ratio) for ratio in (0.2, 0.3)]
        found = [(board, board.at(system, ratio)) for board, system, ratio in sides]
        if any(system for board, system in found if board is c):
            cells = [digits(raised(board.excess(s).difference)) if s else BLANK for board, s in found]
            lines.append([label, *cells])
    head = [*(f"SmolLM2-135M, {100 * r:g} %" for r in c.ratios), *(f"{TINY}, {r} %" for r in (20, 30))]
    table = grid(["perplexity, times dense", *head], lines, text=1)
    amp, ours = c.at(PUBLISHED, RATIO), c.ours(RATIO)
    others = c.others(RATIO)
    said = f"On a real LLaMA, SmolLM2-135M-Instruct, a cut of {100 * RATIO:g} % of all parameters leaves"
    if amp and ours and others:
        found_ours, best = c.rows[ours, RATIO], c.rows[others[0][1], RATIO]
        said += (
            f" a perplexity on WikiText-2 of {amp['perplexity'].value:.0f} where AMP chose and of "
            f"{found_ours['perplexity'].value:.0f} with the best of ours (*{c.labels[ours][1]}*); dense it is "
            f"{c.dense['perplexity'].value:.0f}, and with the best of all others (*{c.labels[others[0][1]][1]}*) "
            f"{best['perplexity'].value:.0f}. Nothing was trained end to end: ours refits layer by layer, on the text "
            "by which all choose. [All systems, the papers' claims one by one, and what was missed](docs/real.md)."
        )
    return "\n".join([f"![{picture(c)[1]}](data/real/picture.png)", "", said, "", *table])


TINY_NAMES = {"ours-budget-8": "ours-budget"}


def page() -> str:
    """What `docs/real.md` shows of the records."""
    c, fast = main_contest(), speed_claim(collection.gathered(FOLDER).get("03_surgery.json"))
    asked = tasks_contest(records())
    lines = [
        f"![{picture(c)[1]}](../data/real/picture.png)",
        "",
        "### The papers' claims",
        "",
        *claims_table([*claims(c), *(accuracy_claims(asked) if asked else []), *fast]),
        "",
    ]
    lines += ["### The dense model", "", *dense_table(records()), ""]
    for found in collection.gathered(FOLDER).values():
        if found["name"] == damage.NAME:
            n = found["parameters"]["measured"]["windows"]
            lines += ["### What a cut breaks, before repair", "", damage.SAID.format(n), "", *damage.tables(found), ""]
    lines += ["### Ours against the goals set beforehand", "", *goals_table(c), ""]
    by_tasks = accuracy_claims(asked, ours=True) if asked else []
    if further := [*by_tasks, *(tuned_claims(c.tuned) if c.tuned else [])]:
        lines += [*claims_table(further), ""]
    for ratio in c.ratios:
        lines += [f"### {100 * ratio:g} % of all parameters removed", "", *contest_table(c, ratio), ""]
        both, neurons = c.at(PUBLISHED, ratio), c.at("amp-neurons", ratio)
        if both and neurons and neurons.against(both, "perplexity").difference == 0:
            lines += [ALIKE, ""]
    if c.tuned:
        for ratio in c.tuned.ratios:
            head = [f"### After LoRA, {100 * ratio:g} % of all parameters removed", "", trained(c.tuned, ratio), ""]
            lines += [*head, *contest_table(c.tuned, ratio), ""]
    if asked:
        lines += ["### Zero-shot accuracy, all items at hand", "", *tasks_table(asked), "", above_chance(asked), ""]
        lines += [said, ""] if (said := rounded(asked, c)) else []
    if any(made_from(r) == PROMPTS for r in records()):
        other = contest_of(records(), on_short_windows, PROMPTS)
        lines += ["### AMP by the paper's calibration, 50 instruction prompts", "", *prompts_table(other, c), ""]
    return "\n".join([*lines, NOTE])


ALIKE = (
    "No whole KV group fits into the share that heads would lose here: cut alike, heads and neurons are neurons alone."
)
PLACES = {"out", "local_copies", "text", "task_folder", "responses"}
NAMED = {"text", "responses"}  # of which the last part of the path says what was read
NOTE = (
    "Perplexities of several draws are geometric means; in brackets 95 % intervals over draws and windows, or over "
    "windows where a system has one draw. An excess is the log-perplexity over the dense model's, in nats a token, "
    "window by window. † a share that is not the one asked for, because layers go whole. ‡ measured in float32, which "
    "the table of the dense model shows beside bfloat16."
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the records of the real model, and their picture.")
    parser.add_argument("--grid", type=Path, default=DATA / "sweeps" / "real.yaml", help="the sweep's grid")
    parser.add_argument("--runs", type=Path, help="the sweep's folder of runs; without it only the picture is drawn")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="as in the sweep")
    parser.add_argument(
        "--lesson",
        type=Path,
        nargs="+",
        help="records of lessons; lesson 9 shows its own where the model is not at hand",
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the records are")
    o = parser.parse_args(arguments)
    missing = 0
    try:
        if o.runs:
            found, missing = leaderboard.gathered(o.grid, o.runs, o.parameter)
            collection.put(o.out, found)
        if o.lesson:
            for lesson in map(records_of_runs.read, o.lesson):
                given = lesson["parameters"]
                for name in given.keys() & PLACES:  # no path of the machine that ran it
                    given[name] = "out" if name == "out" else Path(given[name]).name if name in NAMED else ""
                if "text" in lesson["notes"]:
                    lesson["notes"]["text"] = Path(lesson["notes"]["text"]).name
                collection.put(o.out, {f"{lesson['name']}.json": lesson})
        png, _ = picture(main_contest(o.out))
    except ValueError as error:
        parser.error(str(error))
    write_bytes(o.out / "picture.png", png)
    if missing:
        print(f"{missing} runs are not finished: amp-tutorial sweep {o.grid} --out {o.runs}", file=sys.stderr)
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
