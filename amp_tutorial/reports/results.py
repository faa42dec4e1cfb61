"""The course's results, written from the records of a sweep.

    amp-tutorial sweep data/sweeps/results.yaml --out out/results
    python -m amp_tutorial.reports.results --runs out/results [--grid …]

The sweep executes what is not finished; `measurements.py` has the function that it calls for each run. This command
puts the finished records into one table, `records.jsonl`, and writes `summary.md` and `picture.png` from it; without
`--runs` from the records that are there. `pages.py` puts both into `docs/`.
"""

import argparse
import sys
from pathlib import Path

from ..files.paths import DATA
from ..runs import collection, grid, sweep
from . import summary


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the course's results from the records of their sweep.")
    parser.add_argument("--grid", type=Path, default=DATA / "sweeps" / "results.yaml", help="the sweep's grid")
    parser.add_argument(
        "--runs", type=Path, help="the sweep's folder of runs, whose records take the place of the same runs' in --out"
    )
    parser.add_argument("--out", type=Path, default=Path("data/results"), help="where table and picture go")
    o = parser.parse_args(arguments)
    try:
        records, missing = gathered(o.grid, o.runs) if o.runs else ({}, 0)
        if records:
            collection.put(o.out, records)
    except ValueError as error:
        parser.error(str(error))
    if missing:
        print(f"{missing} runs are not finished: amp-tutorial sweep {o.grid} --out {o.runs}", file=sys.stderr)
    if o.runs and not records:
        print(f"No model has all its runs finished in {o.runs}.", file=sys.stderr)
        return 1
    try:
        found = summary.read(o.out)
    except ValueError as error:
        parser.error(str(error))
    print(summary.write(found, o.out))
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
