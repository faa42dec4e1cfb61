"""Records in their hundreds: one table, `records.jsonl`, with a line for each, instead of a file for each.

A line is a record, checked against `record.schema.json` as any other, with the name of the file that it was in as its
first entry, "file". Lines are in the order of these names, so the same records give the same bytes. A folder may hold a
table and single files, as where new runs were made beside gathered ones; a single file counts instead of a line of the
same name. Any tool reads it: `pandas.read_json("records.jsonl", lines=True)`.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..files.atomic import write_text
from . import record as records

TABLE = "records.jsonl"
SINGLE = ("*.json",)  # where single records are, in a folder of them
SWEEP = (*SINGLE, "records/*.json", "*/record.json", "*/records/*.json")  # and in that of a sweep or of lessons
Found = dict[str, Any]


def gathered(folder: str | Path) -> dict[str, Found]:
    """The records of the table in a folder, by the names of their files; none if there is no table.

    Raises:
        ValueError: a line is not a valid record, or two are of one name.
    """
    path = Path(folder) / TABLE
    if not path.is_file():
        return {}
    seen = path.stat()
    return dict(_rows(path, seen.st_size, seen.st_mtime_ns))


@lru_cache(maxsize=8)
def _rows(path: Path, size: int, changed: int) -> dict[str, Found]:
    """Read and checked once as long as size and time of change are the same."""
    found: dict[str, Found] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            name = row.pop("file")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The record {where} is not a JSON object with the name of its file: {error}.") from error
        if name in found:
            raise ValueError(f"The record {where} is the second of the name {name}; remove one.")
        records.check(row, where)
        found[name] = row
    return found


def find(folder: str | Path, name: str) -> Found | None:
    """One record of a folder, as it is on disk: the single file, else the line of the table; None if neither is sound.

    Raises:
        ValueError: see `gathered`.
    """
    path = Path(folder) / name
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None
    return gathered(folder).get(name)


def files(folder: str | Path, patterns: tuple[str, ...] = SWEEP) -> Iterator[Path]:
    """The files that may be single records, in the order of the patterns and of their names."""
    for pattern in patterns:
        for path in sorted(Path(folder).glob(pattern)):
            parts = path.relative_to(folder).parts
            if not any(part.startswith(".") for part in parts):  # a run that is not finished has such a folder
                yield path


def gather(folder: str | Path, out: str | Path | None = None) -> int:
    """Put the finished records of a folder into the table of `out`, beside those that it holds; the count of its lines.

    Without `out` it is the folder's own table, and once that is on disk the single files are removed. Whatever is not a
    finished record stays as it is.

    Raises:
        OSError: the table can't be written.
        ValueError: no such folder, no finished record there, a table that is not sound, or records of a sweep without
            another place to put them.
    """
    folder, here = Path(folder), Path(out or folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder of records at {folder}; run something first, or name another folder.")
    own = here.resolve() == folder.resolve()
    found, single = gathered(here) | gathered(folder), dict(_finished(folder))
    if own and any("/" in name for name in single):
        raise ValueError(f"A sweep goes on from its records in {folder}; name another folder for the table by --out.")
    if not found | single:
        raise ValueError(f"{folder} holds no finished record; name the folder of a sweep, of runs or of records.")
    write(here, found | single)
    if own:
        for name in single:
            (folder / name).unlink()
    return len(found | single)


def _finished(folder: Path) -> Iterator[tuple[str, Found]]:
    for path in files(folder):
        try:
            record = records.read(path)
        except ValueError:
            continue
        if record["status"] == "ok":
            yield path.relative_to(folder).as_posix(), record


def put(folder: str | Path, found: dict[str, Found]) -> Path:
    """Put records into the table of a folder in the place of those of their names; all others stay.

    Once the table is on disk, single files of these names are removed, which counted before.

    Raises:
        OSError, ValueError: see `write`; or a table that is not sound.
    """
    path = write(folder, gathered(folder) | found)
    for name in found:
        (Path(folder) / name).unlink(missing_ok=True)
    return path


def write(folder: str | Path, found: dict[str, Found]) -> Path:
    """Write the table of a folder, its lines in the order of their names.

    Raises:
        OSError: it can't be written; an earlier table is as it was.
        ValueError: one of them is not a valid record.
    """
    for name, record in found.items():
        records.check(record, name)
    rows = ({"file": name} | found[name] for name in sorted(found))
    text = "".join(f"{json.dumps(row, separators=(',', ':'), allow_nan=False)}\n" for row in rows)
    return write_text(Path(folder) / TABLE, text)
