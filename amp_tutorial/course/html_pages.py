"""A lesson as HTML that fetches nothing: a page of all of it, and slides. Formulas are MathML, which browsers draw.

Of slides each section gives its heading, its first paragraph, its formulas and its figures; a prediction is a slide of
its own, and so is an exercise. Nothing is written for the slides alone, so they can't disagree with the lesson.
"""

import copy
import html
import logging
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from .sources import HIDDEN

DARKER = {"#A2F": "#8600CC", "#337ab7": "#23527c"}  # words of the code and links, for enough contrast everywhere
FOLDS = "<style>details > summary {display: list-item; cursor: pointer} .code_cell details {padding-left: 14ex}</style>"
FOLDED = """{% extends "classic/index.html.j2" %}
{% block input_group %}
{% if "HIDDEN" in cell.metadata.get("tags", []) %}<details><summary>Code</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}
{% endblock input_group %}"""
# Commands that the converter does not know, as it knows them.
OTHERWISE = {r"(\\[bB]igg?[lr]?)?\\[lr]Vert": r"\\|", r"\\arg": r"\\operatorname{arg}"}
FORMULA = re.compile(r"```.*?```|`[^`\n]*`|\$\$(?P<displayed>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.DOTALL)
SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)  # of the template: all are fetched, none is needed
SKIPPED = ("References", "Where next")
SLIDES = """
html { scroll-snap-type: y mandatory; font: 1.5rem/1.45 system-ui, sans-serif; color-scheme: light dark }
body { margin: 0 } h1, h2 { line-height: 1.15; margin: 0 0 0.6em } a { color: inherit }
section { min-height: 100vh; box-sizing: border-box; padding: 6vh 7vw; scroll-snap-align: start; display: flex;
  flex-direction: column; justify-content: center; border-bottom: 1px solid #8888; break-after: page }
section img, section svg { max-width: 100%; max-height: 62vh; height: auto; object-fit: contain }
pre { font-size: 0.75em; white-space: pre-wrap } math[display="block"] { margin: 0.6em 0; font-size: 1.2em }
.question { border-left: 0.4rem solid; padding-left: 1rem } table { font-size: 0.7em; border-collapse: collapse }
td, th { padding: 0.1em 0.6em; text-align: right } details { font-size: 0.7em }
"""
LINKS = re.compile(r"(?<!!)\[([^\]]*)\]\([^)]*\)")


def mathml(formula: str, displayed: bool = False) -> str:
    """A formula of LaTeX as MathML.

    Raises:
        ValueError: a command that the converter does not know.
    """
    from latex2mathml.converter import convert

    for command, other in OTHERWISE.items():
        formula = re.sub(rf"{command}(?![A-Za-z])", other, formula)
    found = str(convert(formula, display="block" if displayed else "inline"))
    if unknown := re.search(r">\\(\W|\w+)", found):
        raise ValueError(f"\\{unknown[1]} in the formula {formula!r} is not known to latex2mathml; say it otherwise.")
    return found


def write_font(target: Path, characters: str) -> None:
    """Write the part of STIX Two Math that formulas of these characters need; without one, signs stay small."""
    from fontTools import subset

    (package,) = map(Path, find_spec("ziamath").submodule_search_locations)  # type: ignore[union-attr, arg-type]
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # Sphinx lets everything through
    options = subset.Options(flavor="woff", layout_features=["*"])
    font = subset.load_font(str(package / "fonts/STIXTwoMath-Regular.ttf"), options)
    wanted = subset.Subsetter(options)
    # letters stand upright in MathML, and a browser takes the slanted ones, which have numbers of their own
    wanted.populate(
        text=characters + "\u210e" + "".join(map(chr, (*range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C))))
    )
    wanted.subset(font)
    subset.save_font(font, str(target), options)


class Formulas:
    """The formulas of a text, set apart while it becomes HTML: none of their letters may be taken for Markdown."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def apart(self, text: str) -> str:
        """The text with a mark in place of each formula."""

        def mark(match: re.Match[str]) -> str:
            if formula := match["displayed"] or match["inline"]:
                self.drawn.append(mathml(formula, match["displayed"] is not None))
                return f"FORMULA{len(self.drawn) - 1}END"
            return match[0]  # code

        return FORMULA.sub(mark, text)

    def back(self, page: str) -> str:
        """The HTML with the formulas in place of their marks."""
        return re.sub(r"FORMULA(\d+)END", lambda match: self.drawn[int(match[1])], page)


def page_of(notebook: NotebookNode) -> str:
    """A notebook as a page: hidden cells folded, some colours darker than nbconvert has them."""
    formulas, notebook = Formulas(), copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas.apart(cell.source)
    folding = DictLoader({"folded.html.j2": FOLDED.replace("HIDDEN", HIDDEN)})
    exporter = HTMLExporter(template_name="classic", template_file="folded.html.j2", extra_loaders=[folding])
    page = SCRIPT.sub("", str(exporter.from_notebook_node(notebook)[0]))
    for was, now in DARKER.items():
        page = page.replace(was, now)
    return formulas.back(page).replace("</head>", f"{FOLDS}</head>", 1)


@dataclass
class Slide:
    """A heading, and what stands under it, as HTML."""

    heading: str
    parts: list[str] = field(default_factory=list)
    question: bool = False


def _html(text: str) -> str:
    """Markdown as HTML, links as their words."""
    formulas = Formulas()
    return formulas.back(str(markdown2html(formulas.apart(LINKS.sub(r"\1", text)))))


def _figures(cell: NotebookNode) -> list[str]:
    """The figures and drawings that a cell shows, with their words."""
    shown = [output.get("data", {}).get("text/html", "") for output in cell.get("outputs", [])]
    return [
        re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL) for page in shown if re.search("<img|<svg", page)
    ]


def slides(book: NotebookNode) -> list[Slide]:
    """The slides of an executed lesson."""
    found: list[Slide] = []
    for cell in book.cells:
        if cell.cell_type == "code":
            for figure in _figures(cell) if found else ():
                if found[-1].question or len(found[-1].parts) != 1:  # one beside a paragraph, others alone
                    found.append(Slide(_section(found)))
                found[-1].parts.append(figure)
            if found and found[-1].heading == "The result":
                said = "".join(o.get("text", "") for o in cell.get("outputs", []) if o.output_type == "stream")
                found[-1].parts += [f"<pre>{html.escape(said)}</pre>"] if said else []
            continue
        for text in re.split(r"\n{2,}", cell.source):
            heading = re.match(r"(#+) (.*)", text)
            if heading:
                found.append(Slide(LINKS.sub(r"\1", heading[2]), question="Exercise" in heading[2]))
                text = text[heading.end() :].strip()
            if found and found[-1].question and text.startswith("<details"):  # hints: the exercise ends
                found.append(Slide(_section(found)))
            if not text or not found or text.startswith(("<", "```", "|")) or found[-1].heading in SKIPPED:
                continue
            if "**Predict" in text:
                found.append(Slide(_section(found), [_html(text)], question=True))
            elif found[-1].question and found[-1].parts and not heading and "Exercise" not in found[-1].heading:
                found.append(Slide(_section(found), [_html(text)]))  # what follows a prediction
            elif found[-1].heading == "What this does not show":
                found[-1].parts += [
                    _html("\n".join(f"- {bold}" for bold in re.findall(r"^- \*\*(.+?)\*\*", text, re.M)))
                ]
            elif not found[-1].parts or text.startswith("$$"):
                found[-1].parts.append(_html(text))
    return [slide for slide in found if slide.parts and slide.heading not in SKIPPED]


def _section(found: list[Slide]) -> str:
    """The heading under which something stands that is no section of its own."""
    return next((slide.heading for slide in reversed(found) if not slide.question), "")


def slides_of(book: NotebookNode) -> str:
    """The slides as a page."""
    told = []
    for number, slide in enumerate(slides(book)):
        level, kind = ("h1" if number == 0 else "h2"), ' class="question"' if slide.question else ""
        parts = "\n".join(slide.parts)
        told.append(f"<section><{level}>{html.escape(slide.heading)}</{level}><div{kind}>{parts}</div></section>")
    title = html.escape(str(book.metadata.get("title", "")))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = f"<head>{head}<style>{SLIDES}</style></head><body><main>{''.join(told)}</main></body>"
    return f'<!doctype html><html lang="en">{body}</html>'
