"""Every interval of this project: how sure a measured number is. Claims about two of them are in `comparisons`.

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

The resamples are the same in every call, so the same data give
the same interval. Nothing here imports torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.95
RESAMPLES = 10_000
KEPT = 1_000  # the resamples of at most so many items are kept, 10 MB, for the next comparison

Array = NDArray[np.float64]
Items = Mapping[str, str]  # of one run: for each task one character an item, in a fixed order; "1" is right, "0" wrong
Numbers = Sequence[float] | NDArray[Any]
Windows = tuple[Numbers, Numbers]  # of one run: summed loss (nats) and counted tokens of each window
Measurement = Any  # what `amp.perplexity` gives, which has windows, or an accuracy of it or its mean, which has items


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval. Where none can be given, both ends are None and `over` says why."""

    value: float
    low: float | None
    high: float | None
    over: str  # what another measurement would draw anew: "items", "seeds and windows" …; or "one window"
    n: int  # items or windows; of an interval over seeds alone, seeds
    seeds: int = 1

    def scaled(self, by: float) -> "Interval":
        """The same in another unit, such as percent."""
        low, high = (None if end is None else end * by for end in (self.low, self.high))
        return replace(self, value=self.value * by, low=low, high=high)

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


def interval(measured: Measurement, *others: Measurement) -> Interval:
    """The interval of a perplexity, of a task's accuracy or of a mean accuracy; with others that of all these seeds.

    Raises:
        ValueError: the others were not measured on the same items or windows, or the items are not known.
    """
    runs = (measured, *others)
    if hasattr(measured, "windows"):
        return perplexity([run.windows for run in runs])
    return accuracy([run.items for run in runs])


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
    tasks = answers(runs)
    seeds, parts = means(tasks), [_task(of_task) for of_task in tasks.values()]
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
    found, tokens = losses(runs)
    seeds = found.sum(1) / tokens.sum()
    ends, over = spread([found.mean(0)], [tokens], [seeds], "windows")
    value = float(seeds.mean())
    low, high = (None, None) if ends is None else (raised(value + ends[0]), raised(value + ends[1]))
    return Interval(raised(value), low, high, over, found.shape[1], len(found))


def _task(runs: Array) -> Interval:
    """Wilson's interval of one task, of as many items as the seeds are worth: n to seeds · n."""
    items, (seeds, n) = runs.mean(0), runs.shape
    p, variance = float(items.mean()), float(items.var(ddof=1)) if n > 1 else 0.0
    worth = min(max(p * (1 - p) / variance, 1.0), seeds) * n if variance else n
    return proportion(p * worth, worth)


def means(tasks: Mapping[str, Array]) -> Array:
    """Of each seed the mean over tasks."""
    return np.asarray(np.mean([runs.mean(1) for runs in tasks.values()], axis=0))


def answers(runs: Sequence[Items]) -> dict[str, Array]:
    """Of each task the answers, [seeds, items]."""
    sizes = {tuple(sorted((task, len(bits)) for task, bits in run.items())) for run in runs}
    if len(sizes) != 1 or not min(sizes) or not all(n for _, n in min(sizes)):
        raise ValueError(
            "An accuracy needs at least one run, all of the same tasks, each with the same number of items."
        )
    if wrong := set().union(*(bits for run in runs for bits in run.values())) - {"0", "1"}:
        raise ValueError(f"Items are 1 (right) or 0 (wrong), not {min(wrong)!r}.")
    return {
        task: np.array([[mark == "1" for mark in run[task]] for run in runs], np.float64) for task in sorted(runs[0])
    }


def losses(runs: Sequence[Windows]) -> tuple[Array, Array]:
    """Summed losses, [seeds, windows], and tokens, [windows], of the windows that have any."""
    if not runs or any(list(tokens) != list(runs[0][1]) or len(loss) != len(tokens) for loss, tokens in runs):
        raise ValueError("A perplexity needs at least one run, all on the same windows, with a loss for each.")
    found = np.stack([_finite(loss, "The loss of a window") for loss, _ in runs])
    tokens = _finite(runs[0][1], "The number of tokens of a window")
    if tokens.size == 0 or tokens.min() < 0 or not tokens.sum():
        raise ValueError("A perplexity needs windows with at least one token between them.")
    return found[:, tokens > 0], tokens[tokens > 0]


def _finite(values: Numbers, what: str) -> Array:
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{what} is {found[~np.isfinite(found)][0]}; an interval needs finite numbers.")
    return found


def raised(loss: float) -> float:
    """e to a loss; infinite where no float holds it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def z() -> float:
    """Half of a normal distribution's 95 % interval, in standard deviations: 1.96."""
    return float(special.ndtri((1 + LEVEL) / 2))


def t(freedom: float) -> float:
    """The same of Student's distribution."""
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))


def error_over(seeds: Sequence[Array]) -> tuple[float, float]:
    """Standard error of the sum of means over seeds, and its degrees of freedom (Welch); 0 where nothing varies."""
    parts = [(float(s.var(ddof=1)) / len(s), len(s) - 1) for s in seeds if len(s) > 1 and np.ptp(s) > 1e-12]
    variance = sum(v for v, _ in parts)
    return math.sqrt(variance), variance**2 / sum(v * v / f for v, f in parts) if parts else 1.0


def spread(
    values: Sequence[Array], weights: Sequence[Array], seeds: Sequence[Array], what: str
) -> tuple[tuple[float, float] | None, str]:
    """How far resampling moves the mean over parts of sum(values) / sum(weights): the ends, and what they are over."""
    if any(len(x) < 2 for x in values):
        return None, f"one {what.removesuffix('s')}"
    error, freedom = error_over(seeds)
    drawn, over = np.zeros(RESAMPLES), ["seeds"] * (error > 0)
    for part, (x, w) in enumerate(zip(values, weights, strict=True)):
        rest, n = x - x.sum() / w.sum() * w, len(x)
        if np.abs(rest).max() > 1e-12 * (1 + np.abs(x).max()):
            wider = math.sqrt(n / (n - 1)) * t(n - 1) / z()
            drawn += wider / len(values) * np.concatenate([(c @ rest) / (c @ w) for c in _counts(n, part)])
            over = [*over, what] if what not in over else over
    if not over:
        return None, f"{what} all alike"
    if error:
        places = (np.random.default_rng(0).permutation(RESAMPLES) + 0.5) / RESAMPLES
        drawn += error * special.stdtrit(freedom, places)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return (float(low), float(high)), " and ".join(over)


def _counts(n: int, part: int) -> Sequence[NDArray[np.uint8]] | Iterator[NDArray[np.uint8]]:
    """How often each of n items is in each resample, some rows at a time; every part of a measurement has its own."""
    return _kept(n, part) if n <= KEPT else _drawn(n, part)


@lru_cache(maxsize=16)
def _kept(n: int, part: int) -> tuple[NDArray[np.uint8], ...]:
    return tuple(_drawn(n, part))


def _drawn(n: int, part: int) -> Iterator[NDArray[np.uint8]]:
    generator, left = np.random.default_rng([n, part]), RESAMPLES
    while left:
        rows = min(left, max(1, 2_000_000 // n))
        places = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(places.ravel(), minlength=rows * n).reshape(rows, n).astype(np.uint8)
        left -= rows
