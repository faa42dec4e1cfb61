"""Pictures of a sweep: accuracy and perplexity against the share of parameters removed, a panel for each model."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from ..measure.intervals import Interval
from .groups import BASES, Group, setting, varying
from .style import PALETTE

MARKERS = "os^DvPX*<>hp"  # colour never carries meaning alone
AXES = ("model", "ratio", "heads", "neurons")  # what the panels and the horizontal axis show
PLAIN = ("criterion", "what", "system")  # parameters whose values speak for themselves
LINES = {"untuned": (":", "none"), "tuned": ("-", None), "": ("-", None)}  # of a stage: line, and inside of markers
ASIDE = 0.35  # points of the horizontal axis by which lines stand beside each other, so that no interval hides one

Point = tuple[float, Interval]
Drawn = dict[tuple[str, str], list[Point]]  # of a line (label, stage): its points
Panels = dict[str, tuple[Drawn, Interval | None, float | None]]  # of a model: lines, the dense model, guessing


def drawn(groups: Sequence[Group]) -> dict[str, tuple[bytes, str]]:
    """PNG and alt text of each picture, by its file's name; no picture where nothing was measured."""
    found = {}
    for base, scale in BASES:
        panels = _panels(groups, base, scale)
        if panels:
            name = "accuracy" if scale == 100 else base
            found[f"{name}.png"] = _picture(panels, f"{base}{', %' * (scale == 100)}"), _alt(panels, base, scale)
    return found


def _labels(groups: Sequence[Group]) -> list[str]:
    """For each group, what varies besides model and ratio; what follows from another parameter is left out."""
    keys = [key for key in varying(groups) if key not in AXES]
    kept: list[str] = []
    for key in sorted(keys, key=lambda k: (k not in PLAIN, -len({repr(setting(g, k)) for g in groups}))):
        if not any(_follows(groups, key, other) for other in kept):
            kept.append(key)
    return [", ".join(filter(None, (_said(key, setting(g, key)) for key in kept))) or g.name for g in groups]


def _follows(groups: Sequence[Group], key: str, other: str) -> bool:
    """Whether the value of one parameter follows from that of another."""
    pairs = {(repr(setting(g, other)), repr(setting(g, key))) for g in groups}
    return len(pairs) == len({first for first, _ in pairs})


def _said(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key.replace("_", " ") if value else f"no {key.replace('_', ' ')}"
    if value is None or key in PLAIN:
        return str(value or "")
    return f"{key.replace('_', ' ')} {value}"


def _panels(groups: Sequence[Group], base: str, scale: int) -> Panels:
    """Of each model its lines, sorted by what was removed, and what the dense model and guessing have, where known."""
    panels: Panels = {}
    for group, label in zip(groups, _labels(groups), strict=True):
        model, removed = str(group.parameters.get("model", "")), group.removed
        lines, dense, chance = panels.get(model, ({}, None, None))
        for stage in LINES:
            found = group.metric(f"{stage}/{base}" if stage else base)
            if found and math.isfinite(found.value) and removed is not None:
                lines.setdefault((label, stage), []).append((100 * removed, found.scaled(scale)))
            guessed = group.chance(f"{stage}/{base}" if stage else base)
            chance = chance if guessed is None else scale * guessed
        first = group.metric(f"dense/{base}")
        dense = dense or (first.scaled(scale) if first and math.isfinite(first.value) else None)
        if lines:
            panels[model] = ({key: sorted(points, key=lambda p: p[0]) for key, points in lines.items()}, dense, chance)
    return dict(sorted(panels.items()))


def _picture(panels: Panels, title: str) -> bytes:
    keys = list(dict.fromkeys(key for lines, *_ in panels.values() for key in lines))
    labels = list(dict.fromkeys(label for label, _ in keys))
    fig, axes = plt.subplots(1, len(panels), figsize=(3.6 + 2.6 * len(panels), 4), sharey=True, squeeze=False)
    shown: dict[str, Any] = {}
    percent = title.endswith("%")
    top = 100.0 if percent else math.inf  # an interval over few seeds can reach further; the table has it whole
    for axis, (model, (lines, dense, chance)) in zip(axes[0], panels.items(), strict=True):
        if chance is not None:
            shown["guessing"] = axis.axhline(chance, color="0.5", linestyle="-.", linewidth=1)
        if dense is not None:
            shown["dense"] = axis.axhline(dense.value, color="black", linestyle="--", linewidth=1)
        for label, stage in sorted(lines, key=keys.index):
            points, k = lines[label, stage], labels.index(label)
            style, face = LINES[stage]
            colour, aside = PALETTE[k % len(PALETTE)], ASIDE * (k - (len(labels) - 1) / 2)
            values = [p.value for _, p in points]
            down = [
                0.0 if p.low is None else max(v - max(p.low, 0.0 if percent else 1.0), 0.0)  # no perplexity is below 1
                for v, (_, p) in zip(values, points, strict=True)
            ]
            up = [
                0.0 if p.high is None else max(min(p.high, top) - v, 0.0)
                for v, (_, p) in zip(values, points, strict=True)
            ]
            shown[f"{label} ({stage})" if stage else label] = axis.errorbar(
                [x + aside for x, _ in points], values, yerr=[down, up], color=colour, linestyle=style,
                marker=MARKERS[k % len(MARKERS)], markerfacecolor=face or colour, markersize=5, linewidth=1.3,
                elinewidth=1, capsize=2.5,
            )  # fmt: skip
        axis.set(title=model, xlabel="parameters removed (%)", yscale="linear" if percent else "log")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(title)
    fig.tight_layout()
    fig.legend(
        list(shown.values()), list(shown), loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, fontsize=8,
        ncols=min(len(shown), 1 + len(panels)),
    )  # fmt: skip
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)
    return png.getvalue()


def _alt(panels: Panels, base: str, scale: int) -> str:
    """What is drawn, and the best and the worst of each model where most was removed."""
    said = []
    for model, (lines, _, chance) in panels.items():
        last = max(points[-1][0] for points in lines.values())
        there = [(points[-1][1].value, f"{label} {stage}".strip())
                 for (label, stage), points in lines.items() if points[-1][0] > last - 0.5]  # fmt: skip
        best, worst = sorted(there, reverse=scale == 100)[0], sorted(there, reverse=scale == 100)[-1]
        ends = [f"{value:.3g}{' %' * (scale == 100)} ({label})" for value, label in dict.fromkeys((best, worst))]
        guessing = "" if chance is None else f", guessing {chance:.3g} %"
        said.append(f"{model or 'one model'} with {last:.0f} % removed: {' to '.join(ends)}{guessing}")
    return f"Lines of {base} against the share of parameters removed, with 95 % intervals. {'; '.join(said)}."
