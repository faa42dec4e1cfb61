"""What may be claimed of two systems: `Comparison`, taken item by item and seed by seed, as `intervals` counts both.

All systems see the same items and windows, so an item that is hard for both moves no difference, and a paired interval
is mostly narrower than what two intervals that overlap suggest. The same seeds (the same calibration texts, say) are
paired as well.

Caveat: each comparison is at 95 % by itself. Of twenty pairs that are equal, one comes out clear by chance, and whoever
is picked as the best of a table is flattered by that very table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .intervals import Array, Interval, Items, Measurement, Windows, answers, losses, means, raised, spread

Seeds = Sequence[Measurement] | Mapping[Any, Measurement]


@dataclass(frozen=True)
class Comparison:
    """How A differs from B: a difference of shares, or of mean losses in nats, whose exponential is a ratio.

    At 95 % by itself; this module says what that means for many comparisons and for the best of a table.
    """

    difference: float  # A - B
    low: float | None
    high: float | None
    over: str
    n: int
    seeds: int
    paired: bool = True  # item by item; if not, from two intervals, which is wider

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def turned(self) -> "Comparison":
        """How B differs from A."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return replace(self, difference=-self.difference, low=low, high=high)

    def points(self, digits: int = 1) -> str:
        """Of shares: "+3.2 points (+1.1 to +5.3)"."""
        value, *ends = (None if v is None else f"{100 * v:+.{digits}f}" for v in (self.difference, self.low, self.high))
        return f"{value} points ({self.over if None in ends else f'{ends[0]} to {ends[1]}'})"

    def ratio(self, digits: int = 2) -> str:
        """Of perplexities: "0.93 times (0.90 to 0.96)"."""
        value, *ends = (
            None if v is None else f"{raised(v):.{digits}f}" for v in (self.difference, self.low, self.high)
        )
        return f"{value} times ({self.over if None in ends else f'{ends[0]} to {ends[1]}'})"


def compare(a: Measurement | Seeds, b: Measurement | Seeds) -> Comparison:
    """How a perplexity, a task's accuracy or a mean accuracy differs from another: a ratio, or a difference.

    Args:
        a: what `amp.perplexity` gives, or an entry or the mean of what `amp.accuracy` gives; or one for each seed, as a
            list (in the order of the seeds) or by name.

    Raises:
        ValueError: the two were not measured on the same items or windows, or are not of one kind.
    """
    x, y = (_by_seed(side) for side in (a, b))
    kinds = {hasattr(run, "windows") for run in (*x.values(), *y.values())}
    if len(kinds) != 1 or not (x and y):
        raise ValueError("A comparison needs two perplexities, or two accuracies, each of at least one run.")
    if kinds.pop():
        return compare_perplexity(*({seed: run.windows for seed, run in side.items()} for side in (x, y)))
    return compare_accuracy(*({seed: run.items for seed, run in side.items()} for side in (x, y)))


def compare_accuracy(a: Mapping[Any, Items], b: Mapping[Any, Items]) -> Comparison:
    """Mean accuracy of A minus that of B, over tasks as in `accuracy`; either is given by the items of every seed.

    The same seeds on both sides are paired as well; a system without a seed has one run, which stands against every
    seed of the other. One item that only A has right and one that only B has right are added before items are drawn
    (Bonett and Price 2012, doi 10.3102/1076998611411915), so no two systems are equal because a few items say so.

    Raises:
        ValueError: see `accuracy`; or other tasks, or other numbers of items, on either side.
    """
    x, y = (answers(list(side.values())) for side in (a, b))
    if [(task, runs.shape[1]) for task, runs in x.items()] != [(task, runs.shape[1]) for task, runs in y.items()]:
        raise ValueError(
            "Two systems are compared on the same items; these have other tasks, or other numbers of them."
        )
    gaps = [x[task].mean(0) - y[task].mean(0) for task in x]
    added = np.array([1.0, -1.0]) / math.sqrt(len(gaps))  # two items in all, shared out among the tasks
    drawn = [np.concatenate([gap, added]) for gap in gaps]
    seeds = _paired(a, b, means(x), means(y))
    ends, over = spread(drawn, [np.ones(len(d)) for d in drawn], seeds, "items")
    assert ends is not None  # the two items differ
    difference, middle = (float(np.mean([g.mean() for g in part])) for part in (gaps, drawn))
    low, high = min(middle + ends[0], difference), max(middle + ends[1], difference)
    return Comparison(difference, low, high, over, sum(map(len, gaps)), max(len(a), len(b)))


def compare_perplexity(a: Mapping[Any, Windows], b: Mapping[Any, Windows]) -> Comparison:
    """Mean loss of A minus that of B, nats a token, window by window; `Comparison.ratio` says it of perplexities.

    Seeds are paired as in `compare_accuracy`. One window, or two systems that are alike on every window, have no
    interval, and are not clear.

    Raises:
        ValueError: see `perplexity`; or other windows on either side, which their numbers of tokens tell.
    """
    (x, tokens), (y, others) = (losses(list(side.values())) for side in (a, b))
    if not np.array_equal(tokens, others):
        raise ValueError("Two systems are compared on the same windows; these have other windows, or other tokens.")
    of_seeds = [side.sum(1) / tokens.sum() for side in (x, y)]
    ends, over = spread([x.mean(0) - y.mean(0)], [tokens], _paired(a, b, *of_seeds), "windows")
    difference = float(of_seeds[0].mean() - of_seeds[1].mean())
    low, high = (None, None) if ends is None else (difference + ends[0], difference + ends[1])
    return Comparison(difference, low, high, over, len(tokens), max(len(a), len(b)))


def compare_intervals(a: Interval, b: Interval, logs: bool = False) -> Comparison:
    """The same of two values whose items are not known, as if measured apart: wider than a paired comparison.

    The ends are A - B ∓ sqrt(half of A² + half of B²), with the halves on the sides that face each other (MOVER).

    Args:
        logs: compare the logarithms, as of perplexities.

    Raises:
        ValueError: logarithms of what is not positive.
    """
    ends = [(v.value, v.low, v.high) for v in (a, b)]
    if logs and any(v is not None and v <= 0 for side in ends for v in side):
        raise ValueError("Only positive numbers can be compared by their ratio.")
    (x, down, up), (y, below, above) = [[v if v is None else math.log(v) if logs else v for v in side] for side in ends]
    assert x is not None and y is not None
    over, n, seeds = a.over if a.low is None else b.over, min(a.n, b.n), max(a.seeds, b.seeds)
    if down is None or up is None or below is None or above is None:
        return Comparison(x - y, None, None, over, n, seeds, paired=False)
    low, high = x - y - math.hypot(x - down, above - y), x - y + math.hypot(up - x, y - below)
    return Comparison(x - y, low, high, over, n, seeds, paired=False)


def _by_seed(side: Measurement | Seeds) -> Mapping[Any, Measurement]:
    if isinstance(side, Mapping):
        return side
    return dict(enumerate(side if isinstance(side, Sequence) else [side]))


def _paired(a: Mapping[Any, object], b: Mapping[Any, object], x: Array, y: Array) -> list[Array]:
    """What the seeds gave: one difference a seed if both sides have the same, else either side by itself."""
    if set(a) == set(b):
        order = list(b)
        return [x - y[[order.index(seed) for seed in a]]]
    return [x, y]
