"""The course's results, written from the records of a sweep.

    amp-tutorial sweep data/sweeps/results.yaml --out out/results
    python -m amp_tutorial.reports.results --runs out/results [--grid …] [--readme docs/results.md]

The sweep executes what is not finished; `measurements.py` has the function that it calls for each run. This command
puts the finished records into one table, `records.jsonl`, and writes `summary.json`, `summary.md`, `picture.png` from
it; without `--runs` from the records that are there. With `--readme` picture and main table replace what stands between
the two result markers of that file.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..files.paths import DATA
from ..runs import collection, grid, sweep
from . import summary
from .markdown import marked

NAME = "results"
SHARED = ("ratio", "limit", "calibration", "samples", "epochs", "rate")  # what all runs of a table have in common


def gathered(grid_file: Path, runs: Path) -> tuple[dict[str, collection.Found], int]:
    """The records of every model of which all runs are finished by `<model>-<what>-<seed>.json`; how many are not.

    Raises:
        ValueError: a grid that is not sound.
    """
    found: dict[str, dict[str, collection.Found | None]] = {}
    for run, record in sweep.records_of(grid.read(grid_file), runs):
        p = run.parameters
        model = Path(str(p["model"])).name
        found.setdefault(model, {})[f"{model}-{p['what']}-{p['seed']}.json"] = record
    whole = {name: r for of in found.values() if None not in of.values() for name, r in of.items() if r is not None}
    return whole, sum(list(of.values()).count(None) for of in found.values())


def by_model(out: Path) -> tuple[dict[str, list[collection.Found]], dict[str, Any]]:
    """The records in a folder, each model's apart, and what they share.

    Raises:
        ValueError: records that must not stand in one table.
    """
    names = {path.name for path in collection.files(out, collection.SINGLE)} | set(collection.gathered(out))
    every = [record for name in sorted(names) if (record := collection.find(out, name)) is not None]
    mine = [record for record in every if record.get("name") == NAME and record.get("status") == "ok"]
    found: dict[str, list[collection.Found]] = {}
    for record in mine:
        found.setdefault(Path(str(record["parameters"]["model"])).name, []).append(record)
    shared = {tuple(record["parameters"][name] for name in SHARED) for record in mine}
    if len(shared) > 1:
        raise ValueError(f"The records in {out} differ in {', '.join(SHARED)}; a table needs the same in all.")
    settings = {name: value for values in shared for name, value in zip(SHARED, values, strict=True)}
    return found, settings | {"seeds": len({record["parameters"]["seed"] for record in mine})}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the course's results from the records of their sweep.")
    parser.add_argument("--grid", type=Path, default=DATA / "sweeps" / "results.yaml", help="the sweep's grid")
    parser.add_argument("--runs", type=Path, help="the sweep's folder of runs, whose records replace those in --out")
    parser.add_argument("--out", type=Path, default=Path("data/results"), help="where table and picture go")
    parser.add_argument("--readme", type=Path, help="file whose marked part is replaced by picture and table")
    o = parser.parse_args(arguments)
    try:
        if o.readme:
            marked(o.readme, summary.BEGIN, summary.END)
        records, missing = gathered(o.grid, o.runs) if o.runs else ({}, 0)
        if records:
            collection.replace(o.out, records)
        found, settings = by_model(o.out)
    except ValueError as error:
        parser.error(str(error))
    if missing:
        print(f"{missing} runs are not finished: amp-tutorial sweep {o.grid} --out {o.runs}", file=sys.stderr)
    if not found:
        print(f"No model has all its runs finished in {o.runs or o.out}.", file=sys.stderr)
        return 1
    print(summary.write(found, settings, o.out))
    if o.readme:
        summary.into_readme(o.readme, o.out)
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
