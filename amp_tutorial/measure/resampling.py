"""How far other seeds and other items would move a mean: the arithmetic under `intervals`."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.95
RESAMPLES = 10_000
KEPT = 1_000  # the resamples of at most so many items are kept, 10 MB, for the next comparison

Array = NDArray[np.float64]


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
