"""Every interval and every claim of this project: how sure a measured number is, and whether one is ahead of another.

Two things move a measurement: the draw of a run (its seed) and the items or windows it is measured on. All seeds and
all systems see the same items, so seeds and items are crossed, and an interval here is over both where both are known:

- Seeds: Student's t. Three seeds cannot be resampled: drawn with replacement they give ten different samples, one in
  nine without any spread, and a plain hierarchical bootstrap then holds the truth in about three of four cases instead
  of 95 % (a test measures it). So the seeds' part of each resample is drawn from Student's distribution.
- Items: of a proportion Wilson's score interval, which stays within 0 and 1 and has a width even at 0 and n of n; those
  of several tasks are put together by their halves (MOVER, Zou and Donner 2008, doi 10.1002/sim.3095). Windows and
  differences are drawn anew with replacement, and the spread is widened for few of them by sqrt(n / (n - 1)) t / z
  (Hesterberg 2015, arXiv 1411.5279).
- What seed and item do together is in both parts, so an interval over both errs on the wide side.

A perplexity is the exponential of a mean loss, and all about it is computed on the loss: its value over seeds is the
geometric mean, its interval never reaches below zero, and two perplexities are compared by their ratio.

A claim ("A is ahead of B") is a `Comparison`, taken item by item: an item that is hard for both moves no difference.
Caveat: each comparison is at 95 % by itself. Of twenty pairs that are equal, one comes out clear by chance, and whoever
is picked as the best of a table is flattered by that very table.

The resamples are the same in every call, so the same data give the same interval. Nothing here imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .resampling import Array, error_over, spread, t, z

Items = Mapping[str, str]  # of one run: for each task one character an item, in a fixed order; "1" is right, "0" wrong
Numbers = Sequence[float] | NDArray[Any]
Windows = tuple[Numbers, Numbers]  # of one run: summed loss (nats) and counted tokens of each window


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval. Where none can be given, both ends are None and `over` says why."""

    value: float
    low: float | None
    high: float | None
    over: str  # what another measurement would draw anew: "items", "seeds and windows" …; or "one window"
    n: int  # items or windows; of an interval over seeds alone, seeds
    seeds: int = 1

    def percent(self, digits: int = 1) -> str:
        """Of a share, in percent: "81.3 ± 2.1", or "99.0 (94.6 to 99.8)" where the two halves differ."""
        return self.plain(digits, 100)

    def plain(self, digits: int = 2, scale: float = 1) -> str:
        """Value ± half of the interval, or value (low to high) where the two halves differ."""
        if self.low is None or self.high is None:
            return self.bounds(digits, scale)
        digits = self._digits(digits, scale)
        down, up = (f"{scale * half:.{digits}f}" for half in (self.value - self.low, self.high - self.value))
        return f"{scale * self.value:.{digits}f} ± {up}" if down == up else self.bounds(digits, scale)

    def bounds(self, digits: int = 2, scale: float = 1) -> str:
        """Value (low to high), as perplexities are said: "38.85 (30.52 to 49.44)"."""
        if self.low is None or self.high is None:
            return f"{scale * self.value:.{digits}f} ({self.over})"
        digits = self._digits(digits, scale)
        value, low, high = (f"{scale * v:.{digits}f}" for v in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"

    def factor(self, digits: int = 2) -> str:
        """Of a perplexity: by what factor it may be off, the larger of both sides: "38.85 ×/÷ 1.27"."""
        if self.low is None or self.high is None or self.low <= 0:
            return self.bounds(digits)
        off = max(self.value / self.low, self.high / self.value)
        while digits < 9 and off - 1 < 0.5 * 10**-digits:
            digits += 1
        return f"{self.value:.{digits}f} ×/÷ {off:.{digits}f}"

    def _digits(self, digits: int, scale: float) -> int:
        """As many digits as tell the ends apart: an interval is never printed as if it had no width."""
        assert self.low is not None and self.high is not None
        while digits < 9 and 0 < scale * (self.high - self.low) < 10**-digits:
            digits += 1
        return digits


@dataclass(frozen=True)
class Comparison:
    """How A differs from B: a difference of shares, or of mean losses in nats, whose exponential is a ratio.

    At 95 % by itself; the module says what that means for many comparisons and for the best of a table.
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

    def points(self, digits: int = 1) -> str:
        """Of shares: "+3.2 points (+1.1 to +5.3)"."""
        value, *ends = (None if v is None else f"{100 * v:+.{digits}f}" for v in (self.difference, self.low, self.high))
        return f"{value} points ({self.over if None in ends else f'{ends[0]} to {ends[1]}'})"

    def ratio(self, digits: int = 2) -> str:
        """Of perplexities: "0.93 times (0.90 to 0.96)"."""
        value, *ends = (None if v is None else f"{_exp(v):.{digits}f}" for v in (self.difference, self.low, self.high))
        return f"{value} times ({self.over if None in ends else f'{ends[0]} to {ends[1]}'})"


def proportion(right: float, n: float) -> Interval:
    """Wilson's score interval of `right` out of `n`: (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n).

    Neither need be whole: `right` may be a mean over seeds, and `n` the number of items that several seeds are worth.

    Raises:
        ValueError: no items, or not 0 <= right <= n.
    """
    if not (math.isfinite(n) and n > 0 and 0 <= right <= n):
        raise ValueError(f"{right} right of {n} is not a proportion; give at least one item, and a count from 0 to n.")
    p, zz = right / n, z() ** 2
    half = math.sqrt(zz * p * (1 - p) / n + (zz / (2 * n)) ** 2)
    low, high = ((p + zz / (2 * n) + end) / (1 + zz / n) for end in (-half, half))
    return Interval(p, 0.0 if right == 0 else low, 1.0 if right == n else high, "items", math.ceil(n))


def over_seeds(values: Numbers) -> Interval:
    """Mean over seeds with Student's interval, mean ± t(0.975, n - 1) s / sqrt(n); of perplexities give the logarithms.

    For what has no items. Where it has, `accuracy`, `perplexity` and comparisons are over seeds and items. Seeds that
    all gave the same drew nothing, and there is no interval.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    if len(values) < 2:
        raise ValueError("An interval over seeds needs at least two seeds.")
    found = _finite(values, "A value of a seed")
    error, freedom = error_over([found])
    half, n, mean = error * t(freedom), len(values), float(found.mean())
    if not half:
        return Interval(mean, None, None, "seeds that all gave the same", n, n)
    return Interval(mean, mean - half, mean + half, "seeds", n, n)


def accuracy(runs: Sequence[Items]) -> Interval:
    """Mean accuracy of one system, the unweighted mean over its tasks, from the items of each of its seeds.

    Each of K tasks has Wilson's interval; their halves d and the seeds' half h make one, sqrt(sum (d / K)² + h²), on
    either side by itself, within 0 and 1. Where seeds answer differently, a task is worth more items than it has:
    p (1 - p) over the variance of an item's mean over seeds, as in surveys.

    Raises:
        ValueError: no run, no items, runs on different items, or items other than 0 and 1.
    """
    tasks = _bits(runs)
    seeds, parts = _means(tasks), [_task(of_task) for of_task in tasks.values()]
    error, freedom = error_over([seeds])
    half = error * t(freedom)
    value, K = float(seeds.mean()), len(parts)
    down = math.hypot(half, *((p.value - (p.low or 0.0)) / K for p in parts))
    up = math.hypot(half, *(((p.high or 0.0) - p.value) / K for p in parts))
    over = "seeds and items" if half else "items"
    n = sum(of_task.shape[1] for of_task in tasks.values())
    return Interval(value, max(0.0, value - down), min(1.0, value + up), over, n, len(seeds))


def perplexity(runs: Sequence[Windows]) -> Interval:
    """Perplexity of one system, exp of its mean loss a token, from the windows of each of its seeds.

    One window has no interval. A mean loss above 709 nats is an infinite perplexity.

    Raises:
        ValueError: no run, no tokens, runs on different windows, or a loss that is not finite.
    """
    losses, tokens = _losses(runs)
    seeds = losses.sum(1) / tokens.sum()
    ends, over = spread([losses.mean(0)], [tokens], [seeds], "windows")
    value = float(seeds.mean())
    low, high = (None, None) if ends is None else (_exp(value + ends[0]), _exp(value + ends[1]))
    return Interval(_exp(value), low, high, over, losses.shape[1], len(losses))


def compare_accuracy(a: Mapping[Any, Items], b: Mapping[Any, Items]) -> Comparison:
    """Mean accuracy of A minus that of B, over tasks as in `accuracy`; either is given by the items of every seed.

    The same seeds on both sides are paired as well; a system without a seed has one run, which stands against every
    seed of the other. One item that only A has right and one that only B has right are added before items are drawn
    (Bonett and Price 2012, doi 10.3102/1076998611411915), so no two systems are equal because a few items say so.

    Raises:
        ValueError: see `accuracy`; or other tasks, or other numbers of items, on either side.
    """
    x, y = (_bits(list(side.values())) for side in (a, b))
    if [(task, runs.shape[1]) for task, runs in x.items()] != [(task, runs.shape[1]) for task, runs in y.items()]:
        raise ValueError(
            "Two systems are compared on the same items; these have other tasks, or other numbers of them."
        )
    gaps = [x[task].mean(0) - y[task].mean(0) for task in x]
    added = np.array([1.0, -1.0]) / math.sqrt(len(gaps))  # two items in all, shared out among the tasks
    drawn = [np.concatenate([gap, added]) for gap in gaps]
    seeds = _paired(a, b, _means(x), _means(y))
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
    (x, tokens), (y, others) = (_losses(list(side.values())) for side in (a, b))
    if not np.array_equal(tokens, others):
        raise ValueError("Two systems are compared on the same windows; these have other windows, or other tokens.")
    means = [side.sum(1) / tokens.sum() for side in (x, y)]
    ends, over = spread([x.mean(0) - y.mean(0)], [tokens], _paired(a, b, *means), "windows")
    difference = float(means[0].mean() - means[1].mean())
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


def _task(runs: Array) -> Interval:
    """Wilson's interval of one task, of as many items as the seeds are worth: n to seeds · n."""
    items, (seeds, n) = runs.mean(0), runs.shape
    p, variance = float(items.mean()), float(items.var(ddof=1)) if n > 1 else 0.0
    worth = min(max(p * (1 - p) / variance, 1.0), seeds) * n if variance else n
    return proportion(p * worth, worth)


def _means(tasks: Mapping[str, Array]) -> Array:
    """Of each seed the mean over tasks."""
    return np.asarray(np.mean([runs.mean(1) for runs in tasks.values()], axis=0))


def _paired(a: Mapping[Any, object], b: Mapping[Any, object], x: Array, y: Array) -> list[Array]:
    """What the seeds gave: one difference a seed if both sides have the same, else either side by itself."""
    if set(a) == set(b):
        order = list(b)
        return [x - y[[order.index(seed) for seed in a]]]
    return [x, y]


def _bits(runs: Sequence[Items]) -> dict[str, Array]:
    """Of each task the answers, [seeds, items]."""
    sizes = {tuple(sorted((task, len(bits)) for task, bits in run.items())) for run in runs}
    if len(sizes) != 1 or not min(sizes) or not all(n for _, n in min(sizes)):
        raise ValueError(
            "An accuracy needs at least one run, all of the same tasks, each with the same number of items."
        )
    if wrong := {mark for run in runs for bits in run.values() for mark in bits} - {"0", "1"}:
        raise ValueError(f"Items are 1 (right) or 0 (wrong), not {min(wrong)!r}.")
    return {
        task: np.array([[mark == "1" for mark in run[task]] for run in runs], np.float64) for task in sorted(runs[0])
    }


def _losses(runs: Sequence[Windows]) -> tuple[Array, Array]:
    """Summed losses, [seeds, windows], and tokens, [windows], of the windows that have any."""
    if not runs or any(list(tokens) != list(runs[0][1]) or len(losses) != len(tokens) for losses, tokens in runs):
        raise ValueError("A perplexity needs at least one run, all on the same windows, with a loss for each.")
    losses = np.stack([_finite(losses, "The loss of a window") for losses, _ in runs])
    tokens = _finite(runs[0][1], "The number of tokens of a window")
    if tokens.size == 0 or tokens.min() < 0 or not tokens.sum():
        raise ValueError("A perplexity needs windows with at least one token between them.")
    return losses[:, tokens > 0], tokens[tokens > 0]


def _finite(values: Numbers, what: str) -> Array:
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{what} is {found[~np.isfinite(found)][0]}; an interval needs finite numbers.")
    return found


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf
