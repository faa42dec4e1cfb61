"""The table of families in `docs/families.md`, from `FAMILIES`."""

from amp_tutorial import FAMILIES, Family


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
