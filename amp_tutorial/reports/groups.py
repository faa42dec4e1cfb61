"""From a folder of records to groups of runs: what a row of a table is made of.

A group is all runs that differ in nothing but the seed. Records of another schema, protocol, notebook, model or data
are never averaged silently, a number that was not measured is None, and a file that is no record is named.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..measure.intervals import Interval
from ..runs import collection
from ..runs import record as records
from ..runs.identity import CHANGES_NOTHING
from . import measured

ASIDE = ("seed", *CHANGES_NOTHING, "preset")
REMOVED = ("parameters removed", "removed")  # the metric's name, and the one in data/results
BASES = (("perplexity", 1), ("mean accuracy", 100))  # metric, and scale (100: in %)
MIXABLE = ("lm-eval", "torch", "transformers")  # packages whose versions are only noted


@dataclass(frozen=True)
class Run:
    """A finished run: its file, named as seen from the folder, and its record."""

    file: str
    record: dict[str, Any]

    @property
    def seed(self) -> Any:
        return self.record["parameters"].get("seed")

    @property
    def marks(self) -> dict[str, Any]:
        """What must be equal in one row."""
        r = self.record
        model = r.get("model", {})
        weights = (r.get("model_sha256"), model.get("commit"), sorted(model.get("files", {}).items()))
        data = (r.get("data_sha256"), sorted(r.get("data", {}).items()))
        found = {key: r.get(key) for key in ("schema", "protocol", "notebook_sha256")}
        return found | {"weights": weights, "data": data}


@dataclass
class Folder:
    """What a folder holds; `left_out` says of each file that does not count why, `failed` names failed runs."""

    runs: list[Run]
    left_out: list[str]
    failed: list[str]


def scan(folder: str | Path) -> Folder:
    """The finished runs of a sweep's folder (`ID/record.json`, or `ID/records/*.json`), or of a folder of records.

    Records may be single files, or the lines of a table (`runs.collection`).

    Raises:
        ValueError: no such folder, or a table of records that is not sound.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder of records at {folder}; run something first, or name another folder.")
    found = Folder([], [], [])
    single = {path.relative_to(folder).as_posix(): path for path in collection.files(folder)}
    found.runs += [Run(name, record) for name, record in collection.gathered(folder).items() if name not in single]
    for name, path in single.items():
        try:
            record = records.read(path)
        except ValueError as error:
            if not _something_else(path):
                found.left_out.append(f"{name}: {str(error).removeprefix(f'The record {path} ')}")
            continue
        if record["status"] == "ok":
            found.runs.append(Run(name, record))
        elif record["status"] == "failed":
            found.failed.append(name)
        else:
            found.left_out.append(f"{name}: its run never finished.")
    found.failed += [p.relative_to(folder).as_posix() for p in sorted(folder.glob("failed/*/record.json"))]
    return found


def _something_else(path: Path) -> bool:
    """Whether a file is sound JSON that never meant to be a record, such as a summary."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return path.name != "record.json" and not (isinstance(found, dict) and "schema" in found)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, each seed once."""

    name: str
    parameters: dict[str, Any]
    runs: tuple[Run, ...]
    mixed: tuple[str, ...] = ()  # what was mixed on request

    def metric(self, *names: str) -> Interval | None:
        """The first of these metrics that the records have; None if none has."""
        for name in names:
            if having := [run.record for run in self.runs if name in run.record["metrics"]]:
                return measured.over(having, name)
        return None

    def chance(self, name: str) -> float | None:
        """What guessing gives of a mean accuracy: the mean over its tasks, None if that of one is not known."""
        from ..measure.tasks import CHANCE  # with torch, which reading records does not need

        for metrics in (run.record["metrics"] for run in self.runs):
            tasks = metrics.get(name, {}).get("of") or ()
            found = [metrics.get(task, {}).get("chance", CHANCE.get(task.rpartition("/")[2])) for task in tasks]
            if found and None not in found:
                return sum(found) / len(found)
        return None

    @property
    def removed(self) -> float | None:
        found = self.metric(*REMOVED)
        return found.value if found else None

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Versions and devices that are not the same in all its records."""
        found = []
        for package in MIXABLE:
            versions = sorted({str(r.record.get("versions", {}).get(package, "unknown")) for r in self.runs})
            found += [f"{package} {' and '.join(versions)}"] if len(versions) > 1 else []
        devices = sorted({str(r.record.get("device")) for r in self.runs})
        return (*self.mixed, *found, *([" and ".join(devices)] if len(devices) > 1 else []))


def grouped(folder: Folder, mix: bool = False) -> list[Group]:
    """The runs of a folder in groups; of runs with one seed the latest counts, and the others are named.

    Raises:
        ValueError: records of one group differ in what must be equal, and `mix` does not allow it.
    """
    found: dict[str, list[Run]] = {}
    for run in folder.runs:
        kept = {key: value for key, value in run.record["parameters"].items() if key not in ASIDE}
        found.setdefault(json.dumps([run.record["name"], kept], sort_keys=True), []).append(run)
    groups = []
    for runs in found.values():
        mixed = tuple(_differences(runs))
        if mixed and not mix:
            raise ValueError(
                f"Records that would stand in one row differ in {'; '.join(mixed)}: move some elsewhere, or say --mix."
            )
        by_seed: dict[Any, Run] = {}
        for run in sorted(runs, key=lambda r: str(r.record.get("started", ""))):
            if run.seed in by_seed:
                folder.left_out.append(f"{by_seed[run.seed].file}: the same run, as to its parameters, as {run.file}.")
            by_seed[run.seed] = run
        name = runs[0].record["name"]
        parameters = {k: v for k, v in runs[0].record["parameters"].items() if k not in ASIDE}
        mixed = tuple(_differences(list(by_seed.values())))
        groups.append(Group(name, parameters, tuple(by_seed[s] for s in sorted(by_seed, key=str)), mixed))
    return groups


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    for mark in runs[0].marks:
        files: dict[str, list[str]] = {}
        for run in runs:
            files.setdefault(str(run.marks[mark]), []).append(run.file)
        if len(files) > 1:
            plain = mark in ("schema", "protocol")
            said = [
                f"{value if plain else 'one'} in {', '.join(of[:3])}{' and more' * (len(of) > 3)}"
                for value, of in files.items()
            ]
            yield f"{mark.removesuffix('_sha256')} ({'; '.join(said)})"


def varying(groups: Sequence[Group]) -> list[str]:
    """The parameters that are not the same in all groups; "notebook" is the name of what was run."""
    named = ["notebook", *dict.fromkeys(key for group in groups for key in group.parameters)]
    return [key for key in named if len({repr(setting(group, key)) for group in groups}) > 1]


def setting(group: Group, key: str) -> Any:
    return group.name if key == "notebook" else group.parameters.get(key)
