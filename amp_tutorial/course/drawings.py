"""The course's drawings, made by code: SVG in one style, light and dark, with words for who does not see them.

`DRAWINGS` has them by name; `Lesson.drawing` shows one. Blue stays, hatched orange goes, grey is neither.
"""

import textwrap
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape

WIDTH = 760  # of every drawing; heights differ
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1b1b",
    "soft": "#55595e",
    "kept": "#cfe2f3",
    "kept-line": "#0b5394",
    "gone": "#fdebdd",
    "gone-line": "#a63f00",
    "plain": "#eceff1",
    "plain-line": "#55595e",
}
DARK = {
    "paper": "#16191d",
    "ink": "#f1f3f4",
    "soft": "#b8bfc6",
    "kept": "#12395c",
    "kept-line": "#8ec5f5",
    "gone": "#4a2410",
    "gone-line": "#ffb27a",
    "plain": "#2a2f35",
    "plain-line": "#b8bfc6",
}


class Drawing:
    """Shapes and words from the top left corner, in pixels; `kind` is "kept", "gone" or "plain"."""

    def __init__(self, height: int, alt: str) -> None:
        """`alt`: what is drawn and what it says, in full."""
        self.height, self.alt = height, alt
        self._shapes: list[str] = []

    def text(self, x: float, y: float, words: str, size: float = 14, at: str = "middle", ink: str = "ink") -> None:
        """One line of words around, from or up to x; on the line y."""
        weight = ' font-weight="bold"' if size > 15 else ""
        where = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{at}"{weight}'
        self._shapes.append(f'<text class="{ink}" fill="{LIGHT[ink]}" {where}>{escape(words)}</text>')

    def box(self, x: float, y: float, w: float, h: float, kind: str = "plain", *words: str, size: float = 14) -> None:
        """A rectangle with lines of words in its middle; what goes is hatched beside its colour."""
        for fill in (LIGHT[kind], *(["url(#hatch)"] if kind == "gone" else [])):
            name = kind if fill[0] == "#" else "hatched"
            self._shapes.append(
                f'<rect class="{name}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{fill}" '
                f'stroke="{LIGHT[f"{kind}-line"]}" stroke-width="1.4"/>'
            )
        for i, line in enumerate(words):
            self.text(x + w / 2, y + h / 2 + 0.35 * size + (i - (len(words) - 1) / 2) * 1.25 * size, line, size)

    def row(self, x: float, y: float, w: float, h: float, kinds: Sequence[str], down: bool = False) -> None:
        """A matrix as its columns, or `down` as its rows, each of a kind."""
        step = (h if down else w) / len(kinds)
        for i, kind in enumerate(kinds):
            self.box(*((x, y + i * step, w, step) if down else (x + i * step, y, step, h)), kind)

    def arrow(self, *points: tuple[float, float], head: bool = True, dashed: bool = False) -> None:
        """A line through points, with a head at the last one."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        more = (' marker-end="url(#head)"' if head else "") + (' stroke-dasharray="5 4"' if dashed else "")
        self._shapes.append(
            f'<path class="line" d="{path}" fill="none" stroke="{LIGHT["ink"]}" stroke-width="1.6"{more}/>'
        )

    def ellipse(self, x: float, y: float, turn: float) -> None:
        """A cloud of points around (x, y), turned by so many degrees."""
        self._shapes.append(
            f'<ellipse class="kept" cx="{x:g}" cy="{y:g}" rx="92" ry="26" fill="{LIGHT["kept"]}" '
            f'stroke="{LIGHT["kept-line"]}" stroke-width="1.4" transform="rotate({turn:g} {x:g} {y:g})"/>'
        )

    def note(self, x: float, y: float, words: str, width: int, at: str = "start") -> None:
        """Small words in lines of so many letters."""
        for i, line in enumerate(textwrap.wrap(words, width)):
            self.text(x, y + 17 * i, line, 13, at, "soft")

    def svg(self) -> str:
        """The picture as one document, which follows the reader's choice of light or dark."""
        rules = [
            f".{k}{{fill:{DARK[k]};stroke:{DARK[f'{k}-line']}}}" if f"{k}-line" in DARK else f".{k}{{fill:{DARK[k]}}}"
            for k in ("paper", "ink", "soft", "kept", "gone", "plain")
        ]
        rules += [f".line{{stroke:{DARK['ink']}}}", f".tip{{fill:{DARK['ink']}}}", ".hatched{fill:url(#hatch)}"]
        rules += [f".hatched,.scratch{{stroke:{DARK['gone-line']}}}"]
        size = f'width="{WIDTH}" height="{self.height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {self.height}" role="img" '
                'font-family="Helvetica, Arial, sans-serif">',
                f"<title>{escape(self.alt)}</title>",
                f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>",
                '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
                f'orient="auto-start-reverse"><path class="tip" d="M0 0 L10 5 L0 10 z" fill="{LIGHT["ink"]}"/></marker>'
                '<pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
                f'<path class="scratch" d="M0 0 V7" stroke="{LIGHT["gone-line"]}" stroke-width="1.6"/></pattern>'
                "</defs>",
                f'<rect class="paper" {size} fill="{LIGHT["paper"]}"/>',
                *self._shapes,
                "</svg>",
            ]
        )

    def html(self) -> str:
        """An image with its words, as every front end of notebooks shows it."""
        source = f"data:image/svg+xml;base64,{b64encode(self.svg().encode()).decode()}"
        return f'<img alt="{escape(self.alt)}" width="{WIDTH}" src="{source}">'


def pipeline() -> Drawing:
    d = Drawing(
        230,
        "The method as a chain. Calibration text runs through the dense model; of it comes one score for each head and "
        "neuron; a plan names what stays, as many in every layer; surgery cuts the dense model by the plan, and a "
        "smaller stock model is left.",
    )
    words = [
        ("text", "a few prompts"),
        ("scores", "one a head,", "one a neuron"),
        ("plan", "what stays,", "layer by layer"),
        ("surgery", "slices of", "matrices"),
        ("small model", "a stock", "checkpoint"),
    ]
    for i, (name, *more) in enumerate(words):
        x = 12 + 150 * i
        d.box(x, 20, 120, 78, "kept" if i == 4 else "plain")
        d.text(x + 60, 44, name, 16)
        for k, line in enumerate(more):
            d.text(x + 60, 64 + 17 * k, line, 13, ink="soft")
        if i:
            d.arrow((x - 28, 59), (x - 3, 59))
    d.box(162, 160, 420, 44, "plain", "dense model: all heads, all neurons")
    d.arrow((222, 160), (222, 102))
    d.text(230, 138, "runs on the text", 13, "start", "soft")
    d.arrow((522, 160), (522, 102))
    d.text(514, 138, "is cut", 13, "end", "soft")
    return d


def stream() -> Drawing:
    d = Drawing(
        270,
        "The residual stream, a broad line from the embedding to the output head, one vector for each token. In every "
        "layer attention reads a normed copy of it and adds its output to it; then the MLP does the same. Heads and "
        "neurons live inside the two blocks; the stream keeps its width.",
    )
    d.box(12, 180, 96, 44, "plain", "embedding")
    d.box(108, 194, 544, 16, "kept")
    d.box(652, 180, 96, 44, "plain", "output head")
    d.text(380, 244, "residual stream: one vector of the hidden size for each token", 13, ink="soft")
    for x, name, inside in ((150, "attention", "heads"), (410, "MLP", "neurons")):
        d.box(x, 26, 190, 74, "plain")
        d.text(x + 95, 52, name, 16)
        d.text(x + 95, 76, f"a sum over its {inside}", 13, ink="soft")
        d.arrow((x + 30, 194), (x + 30, 104))
        d.box(x + 6, 134, 48, 24, "plain", "norm", size=13)
        d.text(x + 66, 186, "read", 13, "start", "soft")
        d.arrow((x + 160, 100), (x + 160, 190))
        d.text(x + 152, 146, "add", 13, "end", "soft")
        d.text(x + 178, 186, "+", 18)
    d.text(624, 70, "× layers", 16, "start")
    return d


def parts() -> Drawing:
    d = Drawing(
        258,
        "Where a head and a neuron are in the weights. A head owns neighbouring columns of the output projection, as "
        "many as it has dimensions. A neuron owns one row of the gate and up matrices and one column of the down "
        "matrix. What belongs to one removed head and one removed neuron is hatched.",
    )
    keep, go = "kept", "gone"
    d.text(120, 24, "o_proj", 16)
    d.row(30, 40, 180, 150, [keep] * 4 + [go] * 2 + [keep] * 6)
    d.note(30, 212, "hidden × (heads · head_dim): a head owns head_dim neighbouring columns", 28)
    for x, name in ((270, "gate_proj"), (420, "up_proj")):
        d.text(x + 60, 24, name, 16)
        d.row(x, 40, 120, 150, [keep] * 5 + [go] + [keep] * 4, down=True)
    d.note(270, 212, "neurons × hidden: a neuron owns one row of each", 34)
    d.text(660, 24, "down_proj", 16)
    d.row(580, 40, 160, 150, [keep] * 5 + [go] + [keep] * 4)
    d.note(580, 212, "hidden × neurons: and one column here", 24)
    return d


def score() -> Drawing:
    d = Drawing(
        250,
        "How AMP scores a head. What the head computes for a token, a short vector, is carried by the head's own "
        "columns of the output projection into the stream: a vector of the hidden size, the head's share of the sum. "
        "The sizes of its entries are added up, and averaged over tokens: one number for the head.",
    )
    d.text(112, 28, "its columns of o_proj", 16)
    d.row(60, 44, 104, 150, ["kept"] * 4)
    d.note(56, 216, "hidden × head_dim", 24)
    d.text(204, 124, "×", 20)
    d.text(276, 28, "head's output", 16)
    d.row(260, 74, 32, 90, ["plain"] * 4, down=True)
    d.note(228, 216, "head_dim, a token", 24)
    d.text(350, 124, "=", 20)
    d.text(436, 28, "its part of the sum", 16)
    d.row(420, 44, 32, 150, ["kept"] * 9, down=True)
    d.note(380, 216, "hidden: what it adds", 24)
    d.arrow((474, 118), (540, 118))
    d.box(548, 60, 200, 116, "plain", "add up |entries|,", "take the mean", "over all tokens")
    d.text(648, 206, "one score", 16)
    return d


def groups() -> Drawing:
    d = Drawing(
        262,
        "What a cut takes. With a key-value head for each query head (MHA), a head goes with its own key and value. "
        "With grouped queries (GQA), the query heads of a group share one key-value head, and the group goes whole. "
        "With one key-value head for all (MQA), query heads go alone and the key-value head stays.",
    )
    shapes = [
        ("MHA", 6, 6, {2}, "a head and its own key and value"),
        ("GQA", 6, 3, {2, 3}, "a group: two query heads and the key-value head they share"),
        ("MQA", 6, 1, {2}, "a query head alone; the one key-value head stays"),
    ]
    for i, (name, heads, shared, gone, words) in enumerate(shapes):
        x, size = 20 + 250 * i, heads // shared
        d.text(x + 108, 28, name, 18)
        for h in range(heads):
            d.box(x + 36 * h, 52, 30, 44, "gone" if h in gone else "kept", "Q", size=13)
        for g in range(shared):
            left, w = x + 36 * g * size, 36 * size - 6
            mine = set(range(g * size, (g + 1) * size))
            d.box(left, 150, w, 44, "gone" if mine <= gone else "plain", "KV", size=13)
            for h in sorted(mine):
                d.arrow((x + 36 * h + 15, 96), (min(max(x + 36 * h + 15, left + 8), left + w - 8), 146))
        d.note(x, 226, words, 32)
    return d


def lora() -> Drawing:
    d = Drawing(
        212,
        "LoRA and its merge. Beside the frozen weight, a tall and a narrow matrix of few columns and rows are trained; "
        "their product, scaled, is a correction of low rank. Added to the weight it leaves one matrix of the old "
        "shape, so the merged model costs no more than before.",
    )
    d.text(82, 28, "weight, frozen", 16)
    d.box(22, 44, 120, 120, "plain", "W")
    d.text(174, 110, "+", 20)
    d.text(232, 110, "α / r", 16)
    d.text(366, 28, "trained", 16)
    d.box(276, 44, 26, 120, "kept", "B")
    d.text(326, 110, "×", 20)
    d.box(350, 91, 120, 26, "kept", "A")
    d.note(350, 140, "r rows, with r far below the width", 22)
    d.arrow((500, 104), (560, 104))
    d.text(530, 92, "merge", 13, ink="soft")
    d.text(654, 28, "one matrix again", 16)
    d.box(594, 44, 120, 120, "kept", "W + (α/r) B A", size=13)
    d.note(
        22, 192, "Only A and B learn. After the merge nothing is left of them but the change of W: a stock model.", 100
    )
    return d


def repair() -> Drawing:
    d = Drawing(
        250,
        "Repair as least squares. From the dense model come the inputs of a projection, tokens by neurons, and its "
        "output. Once some neurons, hatched, have gone, the columns that stay get new weights, chosen so that they "
        "come as near to the dense output as they can, over all tokens at once.",
    )
    keep, go = "kept", "gone"
    d.text(110, 28, "inputs, dense", 16)
    d.row(30, 44, 160, 140, [keep, keep, go, keep, go, keep, keep, go])
    d.note(30, 208, "tokens × neurons; hatched: those that went", 24)
    d.text(222, 120, "→", 20)
    d.text(318, 28, "those that stay", 16)
    d.row(264, 44, 100, 140, [keep] * 5)
    d.text(394, 120, "×", 20)
    d.text(480, 28, "new weights", 16)
    d.row(424, 74, 110, 80, [keep] * 5, down=True)
    d.note(424, 208, "solved from the normal equations, no training", 24)
    d.text(568, 120, "≈", 22)
    d.text(660, 28, "output, dense", 16)
    d.box(604, 44, 112, 140, "plain", "Y")
    d.note(604, 208, "what the stream was given before the cut", 22)
    return d


def rotation() -> Drawing:
    d = Drawing(
        292,
        "The stream's own directions. In the model's axes every coordinate of the stream is used. One rotation, the "
        "same in all layers, turns them to the directions in which the stream varies most; then the last directions "
        "carry little and can be cut off. Matrices that read the stream and those that write it are turned to match, "
        "so before the cut nothing changes.",
    )
    for x, name, turn in ((130, "the model's axes", -34), (400, "turned", 0)):
        d.text(x, 28, name, 16)
        d.ellipse(x, 140, turn)
        d.arrow((x - 108, 140), (x + 108, 140))
        d.arrow((x, 222), (x, 58))
    d.arrow((250, 140), (282, 140))
    d.text(266, 128, "Q", 16)
    d.note(32, 252, "both coordinates are needed", 30)
    d.note(310, 252, "the upright one carries little: it goes", 28)
    d.text(640, 28, "what it takes", 16)
    d.box(548, 58, 196, 34, "plain", "reads: W → W Q", size=14)
    d.box(548, 104, 196, 34, "plain", "writes: W → Qᵀ W", size=14)
    d.row(548, 160, 196, 54, ["kept"] * 7 + ["gone"] * 3)
    d.note(548, 238, "then the last columns (and rows) go, in every layer alike", 30)
    return d


def depth() -> Drawing:
    d = Drawing(
        310,
        "Two ways to the same size. Width: every layer stays and loses some of its heads and neurons. Depth: some "
        "layers go whole and the others stay as they are; then there are fewer steps one after the other, so a model "
        "without layers is also faster where each step has a fixed cost.",
    )
    for x, name, words in (
        (60, "width", "all layers, each narrower: as many steps as before"),
        (430, "depth", "whole layers go: fewer steps, each as wide as before"),
    ):
        d.text(x + 135, 28, name, 18)
        for i in range(6):
            y = 44 + 36 * i
            if name == "width":
                d.row(x, y, 270, 28, ["kept"] * 7 + ["gone"] * 3)
            else:
                d.box(
                    x, y, 270, 28, "gone" if i in (3, 4) else "kept", *([] if i in (3, 4) else [f"layer {i}"]), size=13
                )
        d.note(x, 284, words, 60)
    return d


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    f.__name__: f for f in (pipeline, stream, parts, score, groups, lora, repair, rotation, depth)
}
