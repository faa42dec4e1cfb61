"""From the metrics of records to intervals and comparisons: what the runs of one system, or of two, say of a number.

Where every record holds the windows or items of a metric, intervals are over them and over seeds, and two systems are
compared item by item. Without them (records of older versions, or from outside) what is left is Student's interval over
seeds, or the one that the record brings, and comparisons are of such intervals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..measure import comparisons, intervals
from ..measure.comparisons import Comparison
from ..measure.intervals import Interval

Record = Mapping[str, Any]


def is_perplexity(name: str) -> bool:
    """Whether a metric is one, at whatever stage of a run ("tuned/perplexity"), and so is taken on its logarithm."""
    return name.rpartition("/")[2] == "perplexity"


def over(records: Sequence[Record], name: str) -> Interval | None:
    """A metric over the records of one system, one for each seed; None if one has no such metric.

    A value that is not finite makes an interval whose value is NaN.
    """
    if not records or any(name not in record["metrics"] for record in records):
        return None
    found = [record["metrics"][name] for record in records]
    values = [metric["value"] for metric in found]
    if None in values:
        return Interval(math.nan, None, None, "a value that is not finite", len(found), len(found))
    if windows := _windows(records, name):
        return intervals.perplexity(windows)
    if items := _items(records, name):
        return intervals.accuracy(items)
    if len(set(values)) == 1:
        return _of_one(found[0], name, len(found))
    if not is_perplexity(name):
        interval = intervals.over_seeds(values)
        return _a_share(interval) if name.endswith("accuracy") else interval
    logs = intervals.over_seeds([math.log(value) for value in values])
    low, high = (None if end is None else intervals.raised(end) for end in (logs.low, logs.high))
    return Interval(intervals.raised(logs.value), low, high, "seeds", logs.n, logs.seeds)


def _a_share(interval: Interval) -> Interval:
    """Between 0 and 1: over few seeds an interval by Student's t can reach further, an accuracy can't."""
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (interval.low, interval.high))
    return replace(interval, low=low, high=high)


def compared(a: Sequence[Record], b: Sequence[Record], name: str) -> Comparison:
    """How a metric of one system differs from another's: paired by item and seed if both hold their items.

    Raises:
        ValueError: a system without this metric, or the two were not measured on the same items.
    """
    sides = a, b
    for read, compare in ((_windows, comparisons.compare_perplexity), (_items, comparisons.compare_accuracy)):
        runs: list[Any] = [read(side, name) for side in sides]
        if all(runs):
            return compare(*(dict(zip(map(_seed, s), r, strict=True)) for s, r in zip(sides, runs, strict=True)))
    found = [over(side, name) for side in sides]
    if found[0] is None or found[1] is None:
        raise ValueError(f"Systems can't be compared by {name}, which a record of theirs does not have.")
    return comparisons.compare_intervals(found[0], found[1], logs=is_perplexity(name))


def _seed(record: Record) -> Any:
    return record["parameters"].get("seed")


def _of_one(metric: Mapping[str, Any], name: str, seeds: int) -> Interval:
    """The interval that a record brings; of an accuracy Wilson's, where it has no width or leaves 0 to 1 behind.

    Both were written by older versions: 1.96 standard errors to either side of 20 right of 20, or of 48 of 49.
    """
    value, low, high = metric["value"], metric.get("low"), metric.get("high")
    over, n = "windows" if is_perplexity(name) else "items", metric.get("n") or 1
    share = metric.get("n") is not None and 0 <= value <= 1 and not is_perplexity(name)
    if low is not None and high is not None and low < high and not (share and not 0 <= low <= high <= 1):
        return Interval(value, low, high, over, n, seeds)
    if low is not None and share:
        sure = intervals.proportion(value * n, n)
        return Interval(value, sure.low, sure.high, over, n, seeds)
    return Interval(value, None, None, "one record", n, seeds)


def _windows(records: Sequence[Record], name: str) -> list[intervals.Windows]:
    found = [record["metrics"][name].get("windows") for record in records if name in record["metrics"]]
    return [(losses, tokens) for losses, tokens in found] if len(found) == len(records) and all(found) else []


def _items(records: Sequence[Record], name: str) -> list[intervals.Items]:
    """Of each record the items of a task, or of all tasks that a mean is of; nothing if one record lacks some."""
    found: list[intervals.Items] = []
    for record in records:
        metrics = record["metrics"]
        parts = metrics.get(name, {}).get("of", [name])
        items = {part: metrics.get(part, {}).get("items", "") for part in parts}
        if not all(items.values()):
            return []
        found.append(items)
    return found
