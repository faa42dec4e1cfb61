"""`amp-tutorial gather`: the records of many runs as one table, and a summary beside it that shows what changed.

`results` and `leaderboard` write a summary of their own; of any other records it is the table of `reports.table`.
"""

import argparse
import sys

from ..files.atomic import expanded, write_text
from ..runs import collection
from . import groups, standings, table

OWN = (standings.NAME, "results")  # names of records whose command writes their summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="of records, of a sweep, or of lessons")
    parser.add_argument("--out", help="where the table goes (the same folder, whose single files are then removed)")


def command(options: argparse.Namespace) -> int:
    """Gather the records and write the summary; 0 if it was done, 2 if what was asked can't be done.

    Raises:
        ValueError: see `collection.gather`; or the records may not stand in one table.
    """
    folder = expanded(options.folder)
    out = folder if options.out is None else expanded(options.out)
    if not str(options.folder).strip() or options.out == "":
        raise ValueError("The name of a folder is empty; give that of a sweep, of runs or of records.")
    for why in groups.scan(folder).left_out:
        print(f"Left out: {why}", file=sys.stderr)
    count = collection.gather(folder, out)
    print(f"{out / collection.TABLE}: {count} records.")
    if not {record["name"] for record in collection.gathered(out).values()} & {*OWN}:
        found = groups.scan(out)
        made = table.Table([], found, groups.grouped(found))
        write_text(out / "summary.md", f"# Runs\n\n{made.summary()}\n\n{made.own()}\n")
    return 0
