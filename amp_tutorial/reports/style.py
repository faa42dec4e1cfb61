"""What all tables and pictures share: cells and rows, how a measured number is said, colours, a figure's numbers."""

import base64
import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..measure.intervals import Interval

# Colour never carries meaning alone: pair PALETTE[i] with MARKERS[i] in lines and with HATCHES[i] in bars. Each has a
# contrast of at least 3 to 1 on white, which of seaborn's own "colorblind" five of ten have not.
PALETTE = "#0072B2 #C55A00 #007A5A #882255 #7A4FBF #8C5A2B #6B6B00 #767676 #332288 #1B7F8C".split()
# In the whole course a way to choose has one colour, whatever stands beside it.
COLOURS = {
    "dense": "#4D4D4D",
    "AMP": "#0072B2",
    "TransAct": "#C55A00",
    "Wanda-sp": "#007A5A",
    "FLAP": "#1B7F8C",
    "Taylor": "#7A4FBF",
    "magnitude": "#8C5A2B",
    "random": "#767676",
    "reversed": "#882255",
    "layers": "#6B6B00",
    "SliceGPT": "#B5306E",
    "ours": "#332288",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "\\\\", "++")


def colour(name: str) -> str:
    """The colour of a way to choose, by the longest of the words of COLOURS that is in its name; else of the dense."""
    found = [word for word in COLOURS if word.lower() in name.lower()]
    return COLOURS[max(found, key=len, default="dense")]


BLANK = "–"
STAR = (
    "\\* marks one run, or seeds that all gave the same, where it is over items or windows; elsewhere it is over seeds "
    "as well"
)


def grid(header: Sequence[str], lines: Sequence[Sequence[str]], text: int | None = None) -> list[str]:
    """A Markdown table; all columns after the first `text` ones hold numbers, and stand to the right."""
    left = len(header) if text is None else text
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return [f"| {' | '.join(line)} |" for line in (header, rule, *lines)]


def cell(value: Any) -> str:
    """Text for a cell: one line, in which nothing is markup."""
    if value is None or value == "":
        return BLANK
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else " ".join(str(value).split())
    text = html.escape(text, quote=False)
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text


def sure(found: Interval | None, perplexity: bool = False, scale: float = 1, digits: int = 2) -> str:
    """A measured number with its interval: of a perplexity both ends, of anything else ± where both halves agree."""
    if found is None or not math.isfinite(found.value):
        return BLANK
    if found.low is None or found.high is None:
        return f"{scale * found.value:.{digits}f}"
    text = found.bounds(digits, scale) if perplexity else found.plain(digits, scale)
    return text if "seeds" in found.over else f"{text}\\*"


def bundle(png: bytes, alt: str, table: str = "") -> dict[str, str]:
    """A PNG with its alt text for `IPython.display.display(…, raw=True)`, and under it, folded, the numbers it draws.

    As HTML, because JupyterLab drops the alt text of a PNG; as a PNG too, for what shows no HTML, such as print.
    """
    code = base64.b64encode(png).decode()
    shown = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{code}">'
    shown += f"<details><summary>The numbers of this figure</summary>{table}</details>" if table else ""
    return {"text/html": shown, "image/png": code, "text/plain": alt}


MOST = 40  # rows of a figure's table; of more marks an even choice is shown


def numbers(fig: Figure) -> str:
    """Where the marks of a figure stand, as HTML: a table for each of its axes. What is only shading is left out."""
    tables = []
    for ax in fig.axes:
        rows = [] if ax.get_label() == "<colorbar>" else [*_images(ax), *_marks(ax)]
        if not rows:
            continue
        step = -(-len(rows) // MOST)
        title = " ".join((ax.get_title() or ax.get_ylabel() or "the figure").split())
        title += f"; every {step}th of {len(rows)} marks" if step > 1 else ""
        names = ["", ax.get_xlabel() or "across", ax.get_ylabel() or "upward"]
        lines = [("th", names), *(("td", row) for row in rows[::step])]
        cells = ("".join(f"<{tag}>{html.escape(' '.join(c.split()))}</{tag}>" for c in row) for tag, row in lines)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        tables.append(f"<table><caption>{html.escape(title)}</caption>{body}</table>")
    return "".join(tables)


def _named(axis: Axis) -> Callable[[float], str]:
    """A position as the axis names it, if it names positions by words; otherwise the number."""
    words = [label.get_text() for label in axis.get_ticklabels()]
    words = words if any(c.isalpha() for word in words for c in word.replace("mathdefault", "")) else []
    ticks = list(zip(axis.get_ticklocs(), words, strict=False))

    def name(value: float) -> str:
        distance, word = min(((abs(tick - value), word) for tick, word in ticks), default=(1.0, ""))
        return word if distance < 0.5 and word else f"{value:.4g}"

    return name


def _marks(ax: Axes) -> Iterator[list[str]]:
    """Series, where it stands across and upward: of bars, points with whiskers, lines and points."""
    seen: set[int] = set()
    across, upward = _named(ax.xaxis), _named(ax.yaxis)
    for part in ax.containers:
        label = str(part.get_label())
        label = "" if label.startswith("_") else label
        if isinstance(part, BarContainer):
            flat, ends = part.orientation == "horizontal", _whiskers(part.errorbar)
            for i, bar in enumerate(part):
                if flat:
                    place = upward(bar.get_y() + bar.get_height() / 2)
                    yield [label, _sure(bar.get_width(), ends[i : i + 1], 0), place]
                else:
                    place = across(bar.get_x() + bar.get_width() / 2)
                    yield [label, place, _sure(bar.get_height(), ends[i : i + 1], 1)]
        elif isinstance(part, ErrorbarContainer) and part.lines[0] is not None:
            line, caps, _ = part.lines
            seen |= {id(x) for x in (line, *caps)}
            ends = _whiskers(part)
            for i, (x, y) in enumerate(_points(line)):
                yield [label, across(x), _sure(y, ends[i : i + 1], 1)]
    for drawn in (*ax.lines, *(c for c in ax.collections if isinstance(c, PathCollection))):
        label = "" if str(drawn.get_label()).startswith("_") else str(drawn.get_label())
        level = isinstance(drawn, Line2D) and drawn.get_transform() != ax.transData  # across the whole axes
        if id(drawn) in seen or (level and not label):
            continue
        for x, y in _points(drawn)[: 1 if level else None]:
            yield [label, "" if level else across(x), upward(y)]


def _whiskers(part: ErrorbarContainer | None) -> list[np.ndarray]:
    """From where to where each whisker goes, as (2, 2)."""
    return [] if part is None else [np.asarray(line) for lines in part.lines[2] for line in lines.get_segments()]


def _sure(value: float, ends: list[np.ndarray], axis: int) -> str:
    """A number, and its whisker's ends if it has one along that axis."""
    low, high = np.sort(ends[0][:, axis]) if ends else (value, value)
    return f"{value:.4g}" + (f" ({low:.4g} to {high:.4g})" if low < high else "")


def _points(drawn: Artist) -> np.ndarray:
    """Where the points of a line or a cloud are, as (points, 2)."""
    if isinstance(drawn, PathCollection):
        return np.asarray(drawn.get_offsets(), dtype=float)
    return np.asarray(drawn.get_xydata())  # type: ignore[attr-defined]  # words have become numbers there


def _images(ax: Axes) -> Iterator[list[str]]:
    """Rows of what is drawn as colours of cells."""
    upward = _named(ax.yaxis)
    for image in ax.images:
        for i, row in enumerate(np.atleast_2d(np.asarray(image.get_array(), dtype=float))):
            shown = row[:: -(-len(row) // 12)]
            yield [f"row {upward(i)}", "", ", ".join(f"{v:.3g}" for v in shown)]
