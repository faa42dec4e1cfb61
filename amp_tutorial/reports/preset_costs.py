"""What every preset needs, as a table: `python -m amp_tutorial.reports.preset_costs docs/researchers.md` puts it
there.

Estimates from configurations alone (`runs.requirements`), at stated speeds: nothing is loaded, fetched or measured,
so the table is the same on every machine.
"""

import sys
from pathlib import Path

from ..files.atomic import write_text
from ..runs.parameters import effective, notebook_named, parameters_of
from ..runs.presets import names

BEGIN, END = "<!-- costs:begin -->", "<!-- costs:end -->"
CPUS = {"ci": ("CPU, 0.1 TFLOP/s", 1e11), "laptop": ("CPU, 0.4 TFLOP/s", 4e11)}  # operations a second: assumptions


def table() -> str:
    from ..runs.requirements import duration, needs_of, size  # here, because they bring torch
    from ..runs.speeds import ASSUMED, GPUS

    speeds = CPUS | {"t4": ("T4", GPUS["T4"])}
    known = parameters_of(notebook_named("reproduce"))
    lines = [
        "| preset | model | removed | weights | peak, and in which stage | time, roughly |",
        "|---|---|---:|---:|---|---|",
    ]
    for name in names():
        device, speed = speeds.get(name, (ASSUMED, GPUS[ASSUMED]))
        p = effective(known, name, {"device": "cpu"}, name)
        needs = needs_of(p, speed)
        before, after = needs.parameters
        stage = max(needs.peaks, key=lambda s: needs.peaks[s])
        lines.append(
            f"| `{name}` | {p['model']} | {1 - after / before:.1%} | {size(needs.weights)} | "
            f"{size(needs.peak)}, {stage} | {duration(needs.seconds)} on {device} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    page = Path(arguments[0])
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"{page} has no part between {BEGIN} and {END}.", file=sys.stderr)
        return 1
    write_text(page, f"{before}{BEGIN}\n{table()}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
