"""From the records of `leaderboard` to means over seeds and who is best; `boards.py` draws them.

A system from outside this repository joins the board as a record, a JSON file of any name in the same folder:

    {"name": "leaderboard", "status": "ok",
     "parameters": {"model": "tiny-llama", "system": "my-system", "label": "My system", "cuts": "heads and neurons",
                    "ratio": 0.3, "seed": 0, "measured": {…}},
     "metrics": {"perplexity": {"value": 5.1, "low": 4.9, "high": 5.3},
                 "parameters removed": {"value": 0.3, "low": null, "high": null}}}

`cuts` is a key of `CONTESTS`, and `measured` is copied from the dense record of the model: it holds the SHA-256 of the
dense weights and of the held-out text, and how much of it was read. Records measured otherwise are left out, and named.
Further metrics, each optional: "mean accuracy", "operations removed", "cache removed", "pruning seconds". A perplexity
that also has "windows": [[summed loss in nats of each], [tokens of each]] is compared with the others window by window,
and an accuracy that is "of" tasks which have their "items", as "1101…", item by item; else by their intervals alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..measure.comparisons import Comparison
from ..measure.intervals import Interval
from ..runs import collection
from . import measured

NAME = "leaderboard"
# The contest in which each kind of system runs. Slicing flatters itself on models trained briefly: kept apart.
WIDTH_AND_DEPTH = "Heads, neurons and layers"
CONTESTS = {
    "nothing": "",
    **dict.fromkeys(("heads and neurons", "heads", "neurons", "layers", "repair"), WIDTH_AND_DEPTH),
    "slicing": "With the hidden size sliced",
    "LoRA": "After LoRA on equal data",
}
# Set before anything was measured: the best of ours costs at most so much perplexity, in percent of the dense model's.
GOALS = (("With the hidden size sliced", 0.25, 1), ("With the hidden size sliced", 0.50, 7))  # share of all parameters
OURS = (
    "sliced",
    "sliced-repair",
    "sliced-budget",
    "sliced-lora",
    "ours-polished-lora",
    "ours-lora",
)  # systems, beside all of the kind "repair"
NEEDED = ("model", "system", "label", "cuts", "ratio", "seed", "measured")  # parameters of a record
MEASURED = ("perplexity", "parameters removed")  # its metrics
NEAR = 0.02  # a ratio further off than this is marked
METRICS = (("perplexity", 1, False), ("mean accuracy", -1, True))  # name, sign of better, in percent

Records = list[dict[str, Any]]
Row = tuple[str, str, str, float]  # system, label, cuts, ratio


class System(dict[str, Interval]):
    """Every metric of a row, over its seeds, and the records it is from, one for each seed."""

    def __init__(self, records: Records) -> None:
        found = {name: measured.over(records, name) for name in records[0]["metrics"]}
        super().__init__({name: interval for name, interval in found.items() if interval is not None})
        self.records = records

    def against(self, other: "System", name: str) -> Comparison:
        """How a metric of it differs from another's, window by window or item by item where the records hold them."""
        return measured.compared(self.records, other.records, name)


Found = dict[str, dict[Row, System]]  # of each model every row


def read(out: Path) -> Records:
    """The finished records of a folder, single files and lines of its table; other JSON files are passed by.

    Raises:
        ValueError: a record of the leaderboard without what a table needs, or a table that is not sound.
    """
    names = {path.name for path in collection.files(out, collection.SINGLE)} | set(collection.gathered(out))
    found = []
    for name in sorted(names):
        record = collection.find(out, name)
        if record is not None and record.get("name") == NAME and record.get("status") == "ok":
            p, m = record.get("parameters", {}), record.get("metrics", {})
            lacks = [key for key in NEEDED if key not in p] + [key for key in MEASURED if key not in m]
            if lacks or p["cuts"] not in CONTESTS:
                why = f"lacks {', '.join(lacks)}" if lacks else f"cuts {p['cuts']!r}, none of {', '.join(CONTESTS)}"
                raise ValueError(
                    f"The record {out / name} {why}; amp_tutorial/reports/standings.py says what it needs."
                )
            found.append(record | {"file": name})
    return found


def collect(records: Records) -> tuple[Found, list[str]]:
    """Every metric over seeds, and the files left out: of models without a dense record, or measured otherwise."""
    whole = {r["parameters"]["model"]: r["parameters"] for r in records if r["parameters"]["system"] == "dense"}
    found: dict[str, dict[Row, Records]] = {model: {} for model in sorted(whole)}
    left_out = []
    for r in records:
        p = r["parameters"]
        if p["model"] not in whole or p["measured"] != whole[p["model"]]["measured"]:
            left_out.append(r["file"])
            continue
        found[p["model"]].setdefault((p["system"], p["label"], p["cuts"], p["ratio"]), []).append(r)
    return {model: {row: System(mine) for row, mine in rows.items()} for model, rows in found.items()}, left_out


def dense(cells: dict[Row, System]) -> System:
    return next(found for row, found in cells.items() if row[0] == "dense")


def ratios(found: Found) -> list[float]:
    return sorted({row[3] for rows in found.values() for row in rows if row[0] != "dense"})


def rows_of(found: Found, contest: str, ratio: float) -> list[Row]:
    """The rows of one contest at one ratio, of whatever model, each kind together."""
    rows = {row for of_model in found.values() for row in of_model if CONTESTS[row[2]] == contest and row[3] == ratio}
    kinds, first = list(CONTESTS), next(iter(found))

    def place(row: Row) -> tuple[int, float, str]:
        cell = found[first][row].get("perplexity") if row in found[first] else None
        return kinds.index(row[2]), -cell.value if cell else 0.0, row[0]

    return sorted(rows, key=place)


def best(cells: dict[Row, System], rows: Sequence[Row], name: str, sign: int) -> Row | None:
    """Of the rows that cut no less than asked (but for `NEAR`), the best in one metric."""
    there = [r for r in rows if r in cells and name in cells[r] and math.isfinite(cells[r][name].value)]
    fair = [r for r in there if cells[r]["parameters removed"].value >= r[3] - NEAR]
    return min(fair, key=lambda r: sign * cells[r][name].value, default=None)


def is_ours(row: Row) -> bool:
    return row[2] == "repair" or row[0] in OURS


@dataclass(frozen=True)
class Duel:
    """The best of ours against the best of all others, on one model, at one ratio, in one contest and metric."""

    model: str
    ratio: float
    contest: str
    name: str
    sign: int  # of better: 1 where less is better
    ours: Row
    other: Row
    gap: Comparison  # ours minus theirs

    @property
    def verdict(self) -> str:
        """ "ahead", "behind" or "level"."""
        gap = self.sign * self.gap.difference
        return "ahead" if gap < 0 else "behind" if gap > 0 else "level"


def duels(found: Found) -> list[Duel]:
    """Every duel there is; one needs both sides."""
    made = []
    for (model, cells), ratio, contest in product(found.items(), ratios(found), dict.fromkeys(CONTESTS.values())):
        rows = rows_of(found, contest, ratio)
        for name, sign, _ in METRICS:
            ours = best(cells, [r for r in rows if is_ours(r)], name, sign)
            other = best(cells, [r for r in rows if not is_ours(r)], name, sign)
            if ours and other:
                gap = cells[ours].against(cells[other], name)
                made.append(Duel(model, ratio, contest, name, sign, ours, other, gap))
    return made
