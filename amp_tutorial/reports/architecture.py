"""The map of the package, drawn from its imports: what stands on which floor, and which floor uses which.

The floors and their order are read off the package's own docstring, the rest off the source files; nothing is imported.
"""

import ast
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape

from ..files import PACKAGE

APART = "tinyworld"  # made the models, texts and tasks once; nothing else in the package needs it
BESIDE = {  # what is in the repository and not in the package
    "notebooks/source": "the lessons as they are written; notebooks/*.ipynb are built from them",
    "data": "models, texts, tasks, presets, published numbers, and the records of our runs",
    "tests": "a file for each subject; helpers.py has tiny random models of every family",
    "benchmarks": "time and memory of scoring, of cutting and of pruned models",
    "docs": "results, reference and guides; api.md and architecture.md are generated",
}


@dataclass(frozen=True)
class Module:
    """A source file: where it stands, what it says of itself, and which modules it uses, each as floor.name."""

    floor: str
    name: str  # "" is the folder's own __init__.py
    says: str
    uses: frozenset[str]


def _parse(path: str) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


@cache
def floors() -> tuple[str, ...]:
    """The folders from the lowest up, as the package's docstring names them."""
    (line,) = re.findall(r"\w+(?: ← \w+)+", ast.get_docstring(_parse("__init__.py")) or "")
    return tuple(line.split(" ← "))


def _imported(path: str) -> dict[str, str]:
    """What a file at the top of the package imports, under the name it has there → the module it comes from."""
    body = _parse(path).body if (PACKAGE / path).is_file() else []
    return {a.asname or a.name: n.module or "" for n in body if isinstance(n, ast.ImportFrom) for a in n.names}


@cache
def public() -> dict[str, str]:
    """The module of each public name, as floor.name; of a call that `older_calls` wraps, the module of the call."""
    behind = _imported("older_calls.py")
    return {name: behind.get(f"_{name}", module) for name, module in _imported("__init__.pyi").items()}


def _used(tree: ast.Module, floor: str, known: set[str]) -> Iterator[str]:
    """The modules that a file imports, anywhere in it, reaches through `import amp_tutorial`, or names in a string."""
    imports = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    whole = {alias.asname or alias.name for alias in imports if alias.name == PACKAGE.name}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if not node.level and parts[:1] != [PACKAGE.name]:
                continue
            origin = [floor][: 2 - node.level] + parts if node.level else parts[1:]
            for alias in node.names:
                full = ".".join([*origin, alias.name])
                yield full if full in known else ".".join(origin) or public().get(alias.name, "")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
            yield public().get(node.attr, "")
        elif isinstance(node, ast.Constant) and str(node.value).startswith(f"{PACKAGE.name}."):
            yield str(node.value).partition(".")[2]


@cache
def modules() -> tuple[Module, ...]:
    """All source files in the package's folders, from the lowest floor up; in a folder, each after those it uses."""
    paths = {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
        for path in sorted(PACKAGE.glob("*/*.py"))
    }
    found = {}
    for name, path in paths.items():
        floor, _, own = name.partition(".")
        tree = _parse(str(path))
        says = " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())
        found[name] = Module(floor, own, says, frozenset(set(_used(tree, floor, set(paths))) & paths.keys() - {name}))
    ranked: list[Module] = []
    for floor in (*floors(), APART):
        left = {name: m for name, m in found.items() if m.floor == floor}
        while left:
            free = [name for name, m in left.items() if not m.uses & left.keys()] or list(left)[:1]
            ranked += [left.pop(name) for name in free]
    return tuple(ranked)


def on(floor: str) -> tuple[str, list[str]]:
    """What a folder says of itself, and the names of its modules; a numbered row of them has one name, with NN."""
    (says,) = (m.says for m in modules() if (m.floor, m.name) == (floor, ""))
    names = [re.sub(r"_(\d+|[a-z])$", "_NN", m.name) for m in modules() if m.floor == floor and m.name]
    return says, list(dict.fromkeys(names))


def arrows() -> dict[tuple[str, str], int]:
    """(floor, floor that it uses) → how many of its modules do."""
    return dict(
        Counter(
            (m.floor, used) for m in modules() for used in sorted({u.partition(".")[0] for u in m.uses} - {m.floor})
        )
    )


def house() -> str:
    """The README's diagram as text: the floors from the top, each with a line and its files."""
    lines = ["amp_tutorial/"]
    for path in sorted(PACKAGE.glob("[!_]*.py")):
        says = (ast.get_docstring(_parse(path.name)) or "").splitlines()[0].partition(";")[0].rstrip(".")
        lines += [f"  {path.name:<14} {says}"]
    for floor in (*reversed(floors()), APART):
        says, names = on(floor)
        said, files = textwrap.wrap(says, 88), textwrap.wrap(", ".join(names), 84)
        lines += [f"  {floor + '/' if not i else '':<11} {line}" for i, line in enumerate(said)]
        lines += [f"{'':16}{line}" for line in files]
    return "\n".join([*lines, *(f"{folder + '/':<18}{says}" for folder, says in BESIDE.items())])


WIDTH, LEFT, STEP, FIRST = 800, 14, 29, 566  # pixels: of the drawing, its margin, between columns, their first
BLUE, RED = "#1f4e79", "#b00020"
SANS, MONO = "Helvetica, Arial, sans-serif", "Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def _text(x: float, y: float, words: str, size: float = 12, **more: str) -> str:
    settings = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{settings}>{escape(words)}</text>'


def svg() -> str:
    """The floors as bands; from each that is used a line rises to all that use it. An SVG of 800 pixels' width."""
    order, lines, middle, y = [APART, *reversed(floors())], [], {}, 62
    for floor in order:
        says, names = on(floor)
        said, files = textwrap.wrap(says, 84), textwrap.wrap(", ".join(names), 72)
        height = 32 + 16 * len(said) + 16 * len(files)
        fill = "#eef3f8" if floor != APART else "#f4f4f4"
        lines += [f'<rect x="{LEFT}" y="{y}" width="{WIDTH - 2 * LEFT}" height="{height - 6}" rx="6" fill="{fill}"/>']
        lines += [_text(LEFT + 10, y + 19, floor, 15, font_weight="bold")]
        lines += [_text(LEFT + 10, y + 36 + 16 * i, line, fill="#333") for i, line in enumerate(said)]
        lines += [
            _text(LEFT + 10, y + 36 + 16 * (len(said) + i), line, 11.5, font_family=MONO, fill=BLUE)
            for i, line in enumerate(files)
        ]
        middle[floor], y = y + (height - 6) / 2, y + height
    for i, floor in enumerate(floor for floor in order if any(pair[1] == floor for pair in arrows())):
        x, users = FIRST + STEP * i, [a for a in order if (a, floor) in arrows()]
        top, foot = min(middle[a] for a in users), middle[floor]
        lines += [f'<path d="M{x} {min(top, foot):g} V{foot - 7:g}" stroke="{BLUE}" stroke-width="1.5"/>']
        lines += [f'<path d="M{x - 5} {foot - 8:g} h10 l-5 9 z" fill="{BLUE}"/>']
        lines += [_text(x, 52, floor, 12, transform=f"rotate(-40 {x} 52)")]
        for a in users:
            colour = BLUE if middle[a] < foot else RED  # red would be an import upward
            lines += [f'<circle cx="{x}" cy="{middle[a]:g}" r="9" fill="#fff" stroke="{colour}"/>']
            lines += [_text(x, middle[a] + 4, f"{arrows()[a, floor]}", 11, text_anchor="middle", fill=colour)]
    size = f'width="{WIDTH}" height="{y + 8}" viewBox="0 0 {WIDTH} {y + 8}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{SANS}" role="img">',
            f"<title>{escape(alt_text())}</title>",
            f'<rect width="{WIDTH}" height="{y + 8}" fill="#fff"/>',
            _text(LEFT, 30, "Each floor uses only those below it", 16, font_weight="bold"),
            _text(
                LEFT, 49, "In a circle: how many files of that floor use the one at the foot of the line.", fill="#333"
            ),
            *lines,
            "</svg>",
            "",
        ]
    )


def alt_text() -> str:
    """What the drawing shows, in words."""
    order = (*floors(), APART)
    said = []
    for floor in order:
        below = [other for other in order if (floor, other) in arrows()]
        said.append(f"{floor} uses {', '.join(below) if below else 'nothing'}")
    return f"The folders of the package as floors: {'; '.join(said)}."


def listing() -> str:
    """The drawing, and under it every module with the first sentence of its docstring, in Markdown."""
    lines = [f"![{alt_text()}](architecture.svg)"]
    for floor in (*floors(), APART):
        mine = [m for m in modules() if m.floor == floor]
        below = [f"{other} ({n})" for (a, other), n in arrows().items() if a == floor]
        lines += ["", f"## {floor}", *(m.says for m in mine if not m.name)]
        lines += [f"Uses {', '.join(below)}." if below else "Uses nothing else of the package.", ""]
        lines += ["| file | what it says of itself |", "|---|---|"]
        for m in mine:
            link = f"[{m.name}.py](../{PACKAGE.name}/{floor}/{m.name}.py)"
            lines += [f"| {link} | {m.says.replace('|', chr(92) + '|')} |"] if m.name else []
    return "\n".join(lines)
