"""The README's table of families, from `FAMILIES`: `python -m amp_tutorial.reports.families_table README.md`."""

import sys
from pathlib import Path

from amp_tutorial import FAMILIES, Family
from amp_tutorial.files.atomic import write_text

BEGIN, END = "<!-- families:begin -->", "<!-- families:end -->"


def _code(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def cells(family: Family) -> tuple[str, str, str]:
    """What the table says of a family: its heads, its neurons, and what it is saved as."""
    heads, saved = "by KV group, or queries of every group", "as the source"
    if family.no_heads_with:
        heads += f"; none with {_code(family.no_heads_with)}"
    if not family.any_head_count and not family.equal_type:
        heads += "; only counts that divide `hidden_size`"
    if family.no_heads:
        heads = f"none: {family.no_heads}"
    if family.equal_type:
        settings = " and ".join(f"`{name}={value}`" for name, value in family.equal_settings)
        saved += f"; as `{family.equal_type}` with {settings} where the head count does not divide `hidden_size`"
        if family.equal_unless:
            saved += f" (with {_code(family.equal_unless)}: only counts that divide it)"
    return heads, f"none: {family.no_neurons}" if family.no_neurons else "yes", saved


def families_table() -> str:
    """A Markdown table: families of which the same is true share a row; the order is that of `FAMILIES`."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for kind, family in FAMILIES.items():
        rows.setdefault(cells(family), []).append(f"`{kind}`")
    lines = ["| `model_type` | heads | neurons | saved |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {', '.join(kinds)} | {' | '.join(said)} |" for said, kinds in rows.items())])


def main(arguments: list[str] | None = None) -> int:
    (path,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        print(f"{path} has no part between {BEGIN} and {END} to fill.", file=sys.stderr)
        return 1
    write_text(path, f"{before}{BEGIN}\n{families_table()}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
