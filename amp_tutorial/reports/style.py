"""What all tables and pictures share: cells and rows, how a measured number is said, colours."""

import html
import math
from collections.abc import Sequence
from typing import Any

import seaborn as sns

from ..measure.intervals import Interval

# Colour never carries meaning alone: pair PALETTE[i] with MARKERS[i] in lines and with HATCHES[i] in bars.
PALETTE = sns.color_palette("colorblind")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "\\\\", "++")

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
