"""Published numbers beside ours: the rows of a table, with a verdict each. What was not measured is None."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..measure.intervals import Interval
from .groups import Group
from .reference import Entry, Paper

NEAR = 0.005  # shares of parameters removed that count as the same


@dataclass(frozen=True)
class Row:
    """A published number beside one of ours, in the paper's unit, or beside none."""

    entry: Entry
    verdict: str  # "within", "outside", "not run", or "not comparable: why"
    ours: Interval | None = None
    difference: float | None = None
    notes: tuple[str, ...] = ()


def joined(entry: Entry, groups: Sequence[Group]) -> list[Row]:
    """The rows of a published number: one for each group that is comparable; if none is, for each that tried."""
    tried = [_row(entry, group) for group in groups if _answers(entry, group)]
    comparable = [row for row in tried if not row.verdict.startswith("not comparable")]
    rows = comparable or tried or [Row(entry, "not run")]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def papers(found: Sequence[Paper], groups: Sequence[Group]) -> dict[str, list[Row]]:
    """The rows of every paper, by its name."""
    return {p.name: [row for b in p.blocks for e in b.entries for row in joined(e, groups)] for p in found}


def _answers(entry: Entry, group: Group) -> bool:
    """Whether a group is an attempt at this row: the same model and criterion, cut as much or meant to be."""
    ours, asked = entry.ours, group.parameters
    if ours is None or asked.get("model") not in entry.models:
        return False
    if any(asked.get(key) != value for key, value in ours.cut_by.items()):
        return False
    if ours.metric.startswith("dense/"):
        return group.metric(ours.metric) is not None
    if entry.widths:
        return all(asked.get(key) == value for key, value in entry.widths.items())
    by_ratio = not (asked.get("heads") or asked.get("neurons"))
    return _as_published(entry, group.removed) or (by_ratio and _as_published(entry, asked.get("ratio")))


def _as_published(entry: Entry, share: float | None) -> bool:
    published = [share for share in (entry.ratio, *entry.also) if share is not None]
    return share is not None and any(abs(share - p) <= NEAR for p in published)


def _row(entry: Entry, group: Group) -> Row:
    ours = entry.ours
    assert ours is not None  # or the group would not answer
    found = group.metric(ours.metric)
    found = found.scaled(ours.scale) if found else None
    why = list(_obstacles(entry, group.parameters))
    if entry.ratio and not _as_published(entry, group.removed):
        gone = "it is not known how much" if group.removed is None else f"{100 * group.removed:.2f} %"
        why.append(f"{gone} was removed, not {100 * entry.ratio:g} %")
    if found is None:
        why.append(f"its records have no {ours.metric}")
    elif not math.isfinite(found.value):
        why.append("a value is not finite")
    elif ours.rounding is None and (found.low is None or found.high is None):
        why.append("our value has no interval")
    if why or found is None:
        return Row(entry, f"not comparable: {'; '.join(why)}", found, None, group.notes)
    difference = found.value - entry.value
    if ours.rounding is not None:
        inside = abs(difference) <= ours.rounding
    else:
        assert found.low is not None and found.high is not None
        inside = found.low <= entry.value <= found.high
    return Row(entry, "within" if inside else "outside", found, difference, group.notes)


def _obstacles(entry: Entry, parameters: Mapping[str, Any]) -> Iterator[str]:
    assert entry.ours is not None
    for key, wanted in entry.ours.needs.items():
        if key not in parameters:
            yield f"its record does not say {key}"
        elif parameters[key] != wanted:
            yield f"{key} is {parameters[key]}, not {wanted}"
