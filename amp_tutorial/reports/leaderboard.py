"""Every system side by side, written from the records of a sweep.

    amp-tutorial sweep data/sweeps/leaderboard.yaml --out out/leaderboard
    python -m amp_tutorial.reports.leaderboard --runs out/leaderboard [--grid …]

The sweep executes what is not finished; `measurements.py` has the function that it calls for each run, and `systems.py`
what there is to call. This command puts the finished records into one table, `records.jsonl`, and writes tables and
picture from it; without `--runs` from the records that are there. `standings.py` says how a system from outside joins.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import DATA
from ..files.texts import CORPORA
from ..runs import collection, functions, grid, sweep
from . import boards, measurements, standings


def gathered(grid_file: Path, runs: Path, everywhere: Sequence[str] = ()) -> tuple[dict[str, collection.Found], int]:
    """The finished records of a sweep by `file_of`, and how many runs are not finished.

    Raises:
        ValueError: a grid that is not sound; or two models have one name, and so would their records.
    """
    found: dict[str, collection.Found] = {}
    places: dict[str, str] = {}
    missing = 0
    for run, record in sweep.records_of(grid.read(grid_file, everywhere=everywhere), runs):
        model = Path(str(run.parameters["model"])).name
        if places.setdefault(model, str(run.parameters["model"])) != str(run.parameters["model"]):
            raise ValueError(f"Two of the models have the name {model}, and so would their records; rename a folder.")
        missing += record is None
        if record is not None:
            found[file_of(run.parameters)] = record
    return found, missing


def file_of(p: Mapping[str, Any]) -> str:
    """`<model>-<system>-<ratio>-<seed>.json`, and before the ending what else is measured than perplexity on the tiny
    world's windows, so that one system can be measured in several ways. A run of `damage` has that name as its system.
    """
    known = functions.parameters_of_function(f"{measurements.__name__}:system")
    other = [
        p[name] for name in ("tasks", "window", "dtype") if p.get(name, known[name].default) != known[name].default
    ]
    kind = "".join(f"-{'tasks' if ',' in str(value) else value}" for value in other if value != "none")
    made = p.get("calibration_text", "")  # a corpus by itself: the real model's contest is made from two
    kind += f"-{made}" if made in CORPORA else ""
    return f"{Path(str(p['model'])).name}-{p.get('system', 'damage')}-{p['ratio']:g}-{p['seed']}{kind}.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the leaderboard from the records of its sweep.")
    parser.add_argument("--grid", type=Path, default=DATA / "sweeps" / "leaderboard.yaml", help="the sweep's grid")
    parser.add_argument(
        "--runs", type=Path, help="the sweep's folder of runs, whose records take the place of the same runs' in --out"
    )
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="as given to the sweep"
    )
    parser.add_argument("--out", type=Path, default=Path("data/leaderboard"), help="where table and picture go")
    o = parser.parse_args(arguments)
    try:
        standings.read(o.out)  # refuses a record from outside that lacks something
        found, missing = gathered(o.grid, o.runs, o.parameter) if o.runs else ({}, 0)
    except ValueError as error:
        parser.error(str(error))
    if missing:
        print(f"{missing} runs are not finished: amp-tutorial sweep {o.grid} --out {o.runs}", file=sys.stderr)
    if found:
        collection.put(o.out, found)
    records = standings.read(o.out)
    if not any(record["parameters"]["system"] == "dense" for record in records):
        print(f"No dense model was measured, so there is nothing to compare with in {o.out}.", file=sys.stderr)
        return 1
    print(boards.write(records, o.out))
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
