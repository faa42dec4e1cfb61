"""A site to read: lessons, results and reference with contents, search and mathematics, and no request to anywhere.

`python -m amp_tutorial.course.site [--out out/site]` builds it with Sphinx and MyST-NB (Jupyter Book's own engine) from
the committed notebooks and pages. Formulas are MathML, which browsers draw themselves. It leaves `links.txt`, the links
that lead outside; one that leads nowhere inside is an error.
"""

import argparse
import html
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Set
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat

from ..files import NOTEBOOKS, ROOT, SOURCES
from ..files.atomic import new_folder, write_text
from .html_pages import mathml, write_font
from .sources import address, notebook, parse
from .translation import LANGUAGES, STALE, lessons, translated

# The contents, part by part, as patterns of files; README.md opens them.
PARTS: dict[str, tuple[str, ...]] = {
    "The lessons": ("notebooks/[0-9]*.ipynb", "notebooks/[AB]_*.ipynb"),
    "What was measured": ("docs/real.md", "docs/leaderboard.md", "docs/results.md", "docs/speed.md"),
    "Reproduce": ("notebooks/reproduce.ipynb", "notebooks/table.ipynb", "docs/researchers.md", "data/README.md"),
    "Teach": ("docs/teaching.md",),
    "The library": ("docs/library.md", "docs/families.md", "docs/api.md", "docs/architecture.md"),
    "More": ("docs/glossary.md", "docs/colab.md", "CONTRIBUTING.md", "CHANGELOG.md"),
}
FIRST = "README.md"  # becomes the page that opens
# A link; or code, in which nothing is one.
LINK = re.compile(r"```.*?```|(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^)\s]+)\)|`[^`\n]*`", re.DOTALL)
STYLE = """\
@font-face { font-family: "STIX Two Math"; src: url("math.woff") }
math { font-family: "STIX Two Math", math }
details > summary { display: list-item; cursor: pointer }
math[display="block"] { display: block math; overflow-x: auto; padding: 0.3rem 0 }
.cell_output { max-width: 100%; overflow-x: auto }
.cell_output img { height: auto }
"""
OPTIONS: dict[str, Any] = {
    "project": "amp_tutorial",
    "html_title": "Structured pruning of a language model",
    "extensions": ["myst_nb"],
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "gfm",  # what a notebook shows as Markdown holds tables
    "myst_enable_extensions": ["dollarmath", "html_image"],
    "myst_heading_anchors": 4,
    "html_theme": "furo",
    "html_static_path": ["_static"],
    "html_css_files": ["site.css"],
    "html_show_copyright": False,
    "suppress_warnings": ["myst.header", "mystnb.unknown_mime_type"],  # headings of any level; what papermill glues
}


# What the theme leaves out, and a reader with a keyboard or a screen reader needs.
ADDED = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}


def pages() -> dict[str, list[PurePosixPath]]:
    """The files of each part, below the repository, in order."""
    found = {part: [p for g in globs for p in sorted(ROOT.glob(g))] for part, globs in PARTS.items()}
    return {part: [PurePosixPath(p.relative_to(ROOT).as_posix()) for p in there] for part, there in found.items()}


def retold(text: str, page: PurePosixPath, there: Set[str]) -> str:
    """A page's Markdown, where links to files that are no pages become links to the repository, or plain words.

    Raises:
        ValueError: a link to a file that is not in the repository.
    """

    def link(match: re.Match[str]) -> str:
        target = urlsplit(match["target"] or "")
        if match["target"] is None or target.scheme or not target.path or match["text"].startswith("!"):
            return match[0]
        path = _joined(page.parent, unquote(target.path))
        if path == FIRST:
            return f"{match['text']}({os.path.relpath('index.md', page.parent)})"
        if path in there:
            return match[0]
        if not (ROOT / path).exists():
            raise ValueError(f"{page} links to {match['target']}, which is not in the repository.")
        words = match["text"][1:-1]
        plain = f"`{words}`" if re.fullmatch(r"[\w./-]*[./_][\w./-]*", words) else words  # a path, not emphasis
        return f"[{words}]({address()}/blob/main/{path})" if address() else plain

    return LINK.sub(link, text)


def _joined(folder: PurePosixPath, target: str) -> str:
    """A path below the repository, as one in this folder says it."""
    return os.path.normpath(folder / target)


def retell(book: nbformat.NotebookNode, page: PurePosixPath, there: Set[str]) -> None:
    """The same of all text of a notebook."""
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = retold(cell.source, page, there)


def stage(folder: Path) -> None:
    """Copy all pages and the pictures they show, and write the contents into the first."""
    parts, begun = pages(), {language: lessons(language) for language in STALE}
    told = [PurePosixPath(f"notebooks/{stem}.{one}.ipynb") for one, stems in begun.items() for stem in stems]
    every = [PurePosixPath(FIRST), *(p for there in parts.values() for p in there)]
    there = {str(p) for p in (*every, *told)}
    for page in (*every, *told):
        target = folder / ("index.md" if str(page) == FIRST else page)
        target.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".ipynb":
            stem, _, language = page.stem.partition(".")
            book = in_language(stem, language) if language else nbformat.read(ROOT / page, as_version=4)
            book.cells[0].source += switch(stem, language or "en", begun)
            retell(book, page, there)
            text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
            nbformat.write(book, target)
        else:
            text = retold((ROOT / page).read_text(encoding="utf-8"), page, there)
            contents = _contents(parts | {"In other languages": told}) if str(page) == FIRST else ""
            write_text(target, text + contents)
        for picture in re.findall(r"!\[[^\]]*\]\(([^)\s:]+)\)", text):
            path = _joined(page.parent, picture)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / path)
    write_text(folder / "_static/site.css", STYLE)


def in_language(stem: str, language: str) -> nbformat.NotebookNode:
    """A committed lesson with its text in another language, and its outputs as they are."""
    book = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    source = translated(parse((SOURCES / f"{stem}.py").read_text(encoding="utf-8")), language)
    for cell, new in zip(book.cells, notebook(source, stem, book.metadata.get("running", 0)).cells, strict=True):
        cell.source = new.source
    return book


def switch(stem: str, language: str, begun: Mapping[str, list[str]]) -> str:
    """The lines that lead to a lesson in the other languages; empty where there is none."""
    others = {"en": f"{stem}.ipynb"} | {one: f"{stem}.{one}.ipynb" for one, stems in begun.items() if stem in stems}
    links = [f"[{LANGUAGES[one]}]({path})" for one, path in others.items() if one != language]
    return f"\n\n{' · '.join(links)}" if links else ""


def _contents(parts: dict[str, list[PurePosixPath]]) -> str:
    trees = [
        f"```{{toctree}}\n:hidden:\n:caption: {part}\n\n" + "\n".join(str(p.with_suffix("")) for p in there) + "\n```"
        for part, there in parts.items()
        if there
    ]
    return "\n\n" + "\n\n".join(trees) + "\n"


def build(out: Path) -> list[str]:
    """Build the site into a folder, in place of the site that was there; what Sphinx or a check of the links found.

    Raises:
        ValueError: something else is in the folder; a page links to a file that is not there.
    """
    from docutils.nodes import Element, SkipNode
    from sphinx.application import Sphinx
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    nocolor()
    again = (out / "links.txt").is_file()

    def drawn(displayed: bool) -> Callable[[Any, Element], None]:
        def visit(self: Any, node: Element) -> None:
            self.body.append(mathml(node.astext(), displayed))
            raise SkipNode

        return visit

    with tempfile.TemporaryDirectory() as place, new_folder(out, overwrite=again, replaced=["*"]) as beside:
        source, trees = Path(place) / "source", Path(place) / "trees"
        source.mkdir()
        stage(source)
        said = io.StringIO()
        with patch_docutils(), docutils_namespace():
            app = Sphinx(
                source, None, beside, trees, "html", confoverrides=OPTIONS, status=None, warning=said, freshenv=True
            )
            app.add_html_math_renderer("mathml", (drawn(False), None), (drawn(True), None))
            app.config.html_math_renderer = "mathml"
            app.build()
        found = [line.replace(f"{source}/", "").strip() for line in said.getvalue().splitlines() if line.strip()]
        characters = set()
        for page in beside.rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            for left_out, added in ADDED.items():
                text = text.replace(left_out, added)
            if (language := page.suffixes[0][1:]) in STALE:
                text = text.replace('lang="en"', f'lang="{language}"', 1)
            write_text(page, text)
            characters |= set(html.unescape("".join(re.findall(r"<math.*?</math>", text, re.DOTALL))))
        write_font(beside / "_static/math.woff", "".join(sorted(characters)))
        outside, broken = checked_links(beside)
        write_text(beside / "links.txt", "".join(f"{link}\n" for link in sorted(outside)))
    return found + broken


class _Links(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag in ("img", "script", "iframe", "source", "video") and "src" in given:
            self.loads.add(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon", "modulepreload"):
            self.loads.add(given.get("href", ""))


def checked_links(site: Path) -> tuple[set[str], list[str]]:
    """The links that lead outside; and of those inside the ones that lead nowhere, and what a page loads from afar."""
    seen: dict[Path, _Links] = {}
    for page in sorted(p for p in site.rglob("*.html") if "_static" not in p.relative_to(site).parts):
        seen[page] = _Links()
        seen[page].feed(page.read_text(encoding="utf-8"))
    outside: set[str] = set()
    broken = []
    for page, found in seen.items():
        name = page.relative_to(site)
        for target in sorted(found.loads):
            if (scheme := urlsplit(target).scheme) != "data" and (scheme or target.startswith("//")):
                broken.append(f"{name} loads {target} from another machine")
        for link in sorted(found.links | found.loads):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                outside.add(link)
            elif not parts.scheme:
                path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                if not path.is_file():
                    broken.append(f"{name} links to {link}, which is not there")
                elif parts.fragment and path in seen and unquote(parts.fragment) not in seen[path].ids:
                    broken.append(f"{name} links to {link}, where nothing has that name")
    return outside, broken


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the site from the committed notebooks and pages.")
    parser.add_argument("--out", type=Path, default=Path("out/site"), help="where it goes")
    options = parser.parse_args(arguments)
    problems = build(options.out.resolve())
    print("\n".join(problems), file=sys.stderr)
    print(f"Open {options.out}/index.html; links to other places are listed in {options.out}/links.txt.")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
