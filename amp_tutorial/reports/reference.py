"""Published numbers, each with its source and how sure it is: `data/reference/*.yaml`, one file per paper.

A file has blocks of entries; what is `common` to a block or `ours` in it holds for each entry that says nothing else.
An entry: what was measured (`system`, `model`, `ratio` of what, or `widths`, or `cut` in words; `metric`, `unit`), its
`value` (`to` another, or with `bound`: "up to"), `source` and `grade`. With `ours` it says which of our records answer:

    metric    of a record, and `scale` from its unit to the paper's
    cut_by    parameters without which a run is no attempt at this row (the criterion)
    needs     parameters that differ from the paper's only at the price of `not comparable`
    rounding  of an exact number, such as one of parameters: half its last digit; there is no interval
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import DATA
from ..measure.intervals import Interval
from ..runs.parameters import read_yaml
from .groups import Group

FOLDER = DATA / "reference"
GRADES = ("abstract", "arithmetic", "code", "figure", "measured", "second-hand")

_OURS = {
    "type": "object",
    "required": ["metric", "scale"],
    "additionalProperties": False,
    "properties": {
        "metric": {"type": "string"},
        "scale": {"type": "number", "exclusiveMinimum": 0},
        "rounding": {"type": "number", "exclusiveMinimum": 0},
        "cut_by": {"type": "object"},
        "needs": {"type": "object"},
    },
}
_ENTRY = {
    "type": "object",
    "required": ["id", "system", "model", "metric", "value", "unit", "source", "grade"],
    "anyOf": [{"required": [key]} for key in ("ratio", "widths", "cut")],
    "additionalProperties": False,
    "properties": {
        **{key: {"type": "string", "minLength": 1} for key in ("id", "system", "model", "metric", "source", "cut")},
        "value": {"type": "number"},
        "to": {"type": "number"},
        "bound": {"enum": ["up to", "more than"]},
        "unit": {"type": "string"},
        "grade": {"enum": GRADES},
        "ratio": {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1},
        "also": {"type": "array", "items": {"type": "number"}},
        "of": {"type": "string"},
        "widths": {
            "type": "object",
            "required": ["heads", "neurons"],
            "additionalProperties": {"type": "integer", "minimum": 1},
        },
        "ours": _OURS,
    },
}
_FILE = {
    "type": "object",
    "required": ["paper", "blocks", "not_found", "models"],
    "additionalProperties": False,
    "properties": {
        "paper": {"type": "string"},
        "link": {"type": "string"},
        "not_found": {"type": "array", "items": {"type": "string"}},
        "models": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        "blocks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["title", "entries"],
                "additionalProperties": False,
                "properties": {
                    "title": {"type": "string"},
                    "about": {"type": "string"},
                    "common": {"type": "object"},
                    "ours": _OURS,
                    "entries": {"type": "array", "minItems": 1, "items": {"type": "object"}},
                },
            },
        },
    },
}


@dataclass(frozen=True)
class Ours:
    """Which of our records answer to an entry; see the module."""

    metric: str
    scale: float
    rounding: float | None = None
    cut_by: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One published number."""

    id: str
    system: str
    model: str
    metric: str
    value: float
    unit: str
    source: str
    grade: str
    ratio: float | None = None
    also: Sequence[float] = ()  # other shares that count as this ratio
    of: str = "all parameters"
    widths: dict[str, int] | None = None
    cut: str = ""
    to: float | None = None
    bound: str = ""
    ours: Ours | None = None
    models: Sequence[str] = ()  # hub ids that count as the model


@dataclass(frozen=True)
class Block:
    title: str
    about: str
    entries: list[Entry]


@dataclass(frozen=True)
class Paper:
    name: str
    title: str
    link: str
    blocks: list[Block]
    not_found: list[str]


def read(folder: str | Path = FOLDER) -> list[Paper]:
    """The papers of a folder, AMP first and peers last, each entry checked.

    Raises:
        ValueError: no papers, a file that cannot be read as YAML, an entry that lacks something or says something
            unknown, an id given twice; the sentence names the file and the entry.
    """
    paths = sorted(Path(folder).glob("*.yaml"), key=lambda path: (path.stem == "peers", path.stem))
    if not paths:
        raise ValueError(f"{folder} holds no published numbers (*.yaml).")
    papers = [_paper(path) for path in paths]
    ids = [entry.id for paper in papers for block in paper.blocks for entry in block.entries]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"{folder}: the id {twice[0]} is given twice.")
    return papers


def _paper(path: Path) -> Paper:
    found = read_yaml(path)
    _check(found, _FILE, str(path))
    blocks = []
    for block in found["blocks"]:
        entries = []
        for given in block["entries"]:
            ours = {"ours": block["ours"]} if "ours" in block else {}
            entry = block.get("common", {}) | ours | given
            _check(entry, _ENTRY, f"{path}, {entry.get('id', 'an entry without id')}")
            answer = Ours(**entry.pop("ours")) if "ours" in entry else None
            models = found["models"].get(entry["model"], [])
            if answer and not models:
                raise ValueError(f"{path}, {entry['id']}: no hub ids are given for {entry['model']} under `models`.")
            entries.append(Entry(**entry, ours=answer, models=models))
        blocks.append(Block(block["title"], block.get("about", ""), entries))
    return Paper(path.stem, found["paper"], found.get("link", ""), blocks, found["not_found"])


def _check(found: Any, schema: dict[str, Any], where: str) -> None:
    import jsonschema
    from jsonschema.exceptions import best_match

    if error := best_match(jsonschema.Draft202012Validator(schema).iter_errors(found)):
        inside = "".join(f", {part}" for part in error.absolute_path)
        raise ValueError(f"{where}{inside}: {error.message}.")


NOT_RUN = "not run"
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
    rows = comparable or tried or [Row(entry, NOT_RUN)]
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
