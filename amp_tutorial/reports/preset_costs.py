"""The table in `docs/researchers.md` of what every preset needs.

Estimates from configurations alone (`runs.requirements`), at stated speeds: nothing is loaded, fetched or measured,
so the table is the same on every machine.
"""

from ..runs.parameters import effective, notebook_named, parameters_of
from ..runs.presets import names

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
