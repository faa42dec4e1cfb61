"""Lessons in other languages: `python -m amp_tutorial.course.translation [pt zh] [--check]`.

What a reader reads, the paragraphs of a lesson's source and its exercises' hints, stands in one gettext catalogue a
language, `data/translations/LANGUAGE.po`, with the English as its key. Without `--check` the catalogues are brought up
to date: a paragraph that changed keeps its old translation, marked fuzzy; one that is gone is kept as obsolete. A
paragraph without a translation of its present words is shown in English, and the lesson says how many there are. Code,
and what it prints and draws, stays as it is.
"""

import argparse
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from ..files import DATA, SOURCES
from ..files.atomic import write_bytes
from . import exercises
from .sources import PLACEHOLDER, Cell, Source, fold, parse

FOLDER = DATA / "translations"
LANGUAGES = {"en": "English", "pt": "Português", "zh": "中文"}
# The words of a lesson's time and its hints, and what is said of paragraphs that are not translated.
TIME = {
    "pt": ("{n} minutos", "{n} de leitura", "{n} para os exercícios", "{n} de execução"),
    "zh": ("{n} 分钟", "阅读 {n}", "练习 {n}", "运行 {n}"),
}
HINT = {"pt": "Dica", "zh": "提示"}
STALE = {
    "pt": "*{stale} de {all} parágrafos ainda não têm tradução do texto atual e aparecem em inglês.*",
    "zh": "*{all} 段中有 {stale} 段的译文尚未跟上当前原文，以英文显示。*",
}
UNTOLD = re.compile(r"\{\{.*\}\}|```.*```|\$\$.*\$\$|<.*>|!\[.*\]\(.*\)", re.DOTALL)  # paragraphs of no words


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of Markdown that hold words: what blank lines part, and a heading apart from what follows it."""
    for part in re.split(r"\n{2,}", text):
        lines = part.strip("\n")
        if lines.startswith("#") and "\n" in lines:
            heading, lines = lines.split("\n", 1)
            yield heading
        if lines and not UNTOLD.fullmatch(lines):
            yield lines


def told(source: Source) -> dict[str, int]:
    """All a reader reads of a lesson, in order, each with the number of its cell: paragraphs, and the hints."""
    found: dict[str, int] = {}
    for number, cell in enumerate(source.cells):
        if cell.kind == "markdown":
            for text in paragraphs(cell.source):
                found.setdefault(text, number)
            for kind, name in PLACEHOLDER.findall(cell.source):
                for hint in exercises.named(name).hints if kind == "hint" else ():
                    found.setdefault(hint, number)
    return found


def path_of(language: str) -> Path:
    """Where the catalogue of a language is.

    Raises:
        ValueError: a language that no catalogue is kept for.
    """
    if language not in STALE:
        raise ValueError(f"There is no translation to {language!r}; there are {', '.join(STALE)}.")
    return FOLDER / f"{language}.po"


def catalogue(language: str) -> Catalog:
    """The catalogue of a language; an empty one where none is kept yet."""
    path = path_of(language)
    if not path.is_file():
        return Catalog(locale=language, project="amp_tutorial", fuzzy=False)
    with path.open("rb") as file:
        return read_po(file, locale=language)


def lessons(language: str) -> list[str]:
    """The lessons of which a paragraph is translated."""
    begun = {place for message in catalogue(language) if message.string for place, _ in message.locations}
    return sorted(Path(place).stem for place in begun)


def update(language: str, stems: list[str]) -> int:
    """Bring a catalogue up to date with the sources of these lessons; how many paragraphs it lacks now."""
    old = catalogue(language)
    template = Catalog(project="amp_tutorial", fuzzy=False)
    for stem in stems:
        source = parse((SOURCES / f"{stem}.py").read_text(encoding="utf-8"))
        for text, number in told(source).items():
            template.add(text, locations=[(f"{stem}.py", number + 1)])
    old.update(template, no_fuzzy_matching=False, update_creation_date=False)
    old.msgid_bugs_address, old.version = "", "0.1"
    for message in old:
        message.flags.discard("python-format")  # "30 % of" is none
    written = io.BytesIO()
    write_po(written, old, width=100, sort_output=False, include_previous=True)
    write_bytes(path_of(language), written.getvalue())
    return sum(not _current(old, str(message.id)) for message in template if message.id)


def _current(known: Catalog, text: str) -> str:
    """The translation of a paragraph's present words, or nothing."""
    message = known.get(text)
    return str(message.string) if message and message.string and not message.fuzzy else ""


def stale(language: str, stem: str) -> list[str]:
    """The paragraphs of a lesson that are not translated as they stand."""
    known = catalogue(language)
    source = parse((SOURCES / f"{stem}.py").read_text(encoding="utf-8"))
    return [text for text in told(source) if not _current(known, text)]


def translated(source: Source, language: str) -> Source:
    """A lesson in another language; what is not translated stays English, and its first cell says how much that is."""
    known, missing = catalogue(language), 0
    cells = []
    for cell in source.cells:
        if cell.kind == "markdown":
            text = PLACEHOLDER.sub(lambda found: fold(found) if found[1] == "hint" else found[0], cell.source)
            text = text.replace("<summary>Hint", f"<summary>{HINT[language]}")
            named = [name for kind, name in PLACEHOLDER.findall(cell.source) if kind == "hint"]
            every = [*paragraphs(cell.source), *(hint for name in named for hint in exercises.named(name).hints)]
            # the longest first, so that none is replaced inside another
            for one in sorted(every, key=len, reverse=True):
                if new := _current(known, one):
                    text = text.replace(one, new, 1)
                else:
                    missing += 1
            cell = Cell(cell.kind, text, cell.tags)
        cells.append(cell)
    if missing:
        said = STALE[language].format(stale=missing, all=len(told(source)))
        cells[0] = Cell("markdown", f"{cells[0].source}\n\n{said}", cells[0].tags)
    return replace(source, cells=cells, english=source.prose, time=TIME[language])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bring the catalogues of translations up to date, or check them.")
    parser.add_argument("languages", nargs="*", help=f"of {', '.join(STALE)}; all if none is given")
    parser.add_argument("--lessons", nargs="*", help="beginnings of names to take in; default those begun")
    parser.add_argument("--check", action="store_true", help="only list what is not translated as it stands")
    options = parser.parse_args(arguments)
    late = False
    for language in options.languages or STALE:
        try:
            begun, wanted = lessons(language), tuple(options.lessons or ())
            every = sorted(path.stem for path in SOURCES.glob("*.py"))
            stems = [stem for stem in every if stem in begun or (wanted and stem.startswith(wanted))]
            if not options.check:
                lacking = update(language, stems)
                print(f"{language}: {lacking} paragraphs of {', '.join(stems) or 'no lesson'} to translate.")
            for stem in stems if options.check else ():
                for text in stale(language, stem):
                    late = True
                    print(f"{language}, {stem}: stale or missing: {text.splitlines()[0][:100]}")
        except ValueError as error:
            parser.error(str(error))
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
