"""Slides from a committed lesson: a page that scrolls from one to the next, and prints one on a sheet.

Each section gives its heading, its first paragraph, its formulas and its figures; a prediction is a slide of its own,
and so is an exercise. Nothing is written for the slides alone, so they can't disagree with the lesson.
"""

import html
import re
from dataclasses import dataclass, field

from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from .run import FORMULA, mathml

SKIPPED = ("References", "Where next")
STYLE = """
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


@dataclass
class Slide:
    """A heading, and what stands under it, as HTML."""

    heading: str
    parts: list[str] = field(default_factory=list)
    question: bool = False


def _html(text: str) -> str:
    """Markdown as HTML: formulas as MathML, links as their words."""
    formulas: list[str] = []

    def kept(match: re.Match[str]) -> str:
        if formula := match["displayed"] or match["inline"]:
            formulas.append(mathml(formula, match["displayed"] is not None))
            return f"FORMULA{len(formulas) - 1}END"
        return match[0]

    page = str(markdown2html(FORMULA.sub(kept, LINKS.sub(r"\1", text))))
    return re.sub(r"FORMULA(\d+)END", lambda match: formulas[int(match[1])], page)


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


def page(book: NotebookNode) -> str:
    """The slides as a page that fetches nothing."""
    told = []
    for number, slide in enumerate(slides(book)):
        level, kind = ("h1" if number == 0 else "h2"), ' class="question"' if slide.question else ""
        parts = "\n".join(slide.parts)
        told.append(f"<section><{level}>{html.escape(slide.heading)}</{level}><div{kind}>{parts}</div></section>")
    title = html.escape(str(book.metadata.get("title", "")))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = f"<head>{head}<style>{STYLE}</style></head><body><main>{''.join(told)}</main></body>"
    return f'<!doctype html><html lang="en">{body}</html>'
