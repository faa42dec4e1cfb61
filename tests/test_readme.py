"""What the README and the pages of `docs/` say of the code is so: tables, named tests, examples, exceptions, links;
and their generated parts are what the code, the records and the figures give now.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from helpers import KNOWN, WITH_HEADS, WITH_NEURONS, Shape, grid, some_plan, tiny

import amp_tutorial as amp
from amp_tutorial.files import NOTEBOOKS, PACKAGE, ROOT
from amp_tutorial.files.checkpoints import refused
from amp_tutorial.reports import api_reference, architecture, pages
from amp_tutorial.runs import parameters

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md"))))


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


README, LOADING = read("README.md"), read("docs/families.md")
REACHED = {"vLLM": "| vLLM |", "llama.cpp": "| llama.cpp (GGUF) |"}


def row(beginning: str) -> str:
    (line,) = [line for line in LOADING.splitlines() if line.startswith(beginning)]
    return line


def answered(answer: str, where: str, families: tuple[str, ...], heads: int | None, neurons: int | None) -> set[str]:
    """Families of which a program gives this answer about a model that has kept only so much."""
    found = set()
    for family in families:
        dense = tiny(Shape(family, layers=1, neurons=128))  # 4 · 32: what some programs always take
        plan = some_plan(dense, heads=heads, neurons=neurons)
        (loads,) = [x for x in amp.preview(dense, plan).loads if x.where == where]
        found |= {family} if loads.answer == answer else set()
    return found


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_table_of_families_names_each_once() -> None:
    first = [line.split(" | ")[0] for line in pages.families_table().splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted([*KNOWN, *refused()])


def test_a_new_row_of_families_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(amp.FAMILIES, "helium", amp.Family(no_neurons="a reason"))
    assert "| `helium` | by KV group, or queries of every group | none: a reason |" in pages.families_table()


def test_every_test_it_names_is_there() -> None:
    named = re.findall(r"`tests/(\w+)\.py::(\w+)`", LOADING)
    assert len(named) == LOADING.count("tests/test_") >= 8
    for file, name in named:
        assert f"\ndef {name}(" in read(f"tests/{file}.py"), name


@pytest.mark.parametrize("where", REACHED)
def test_the_exceptions_it_names_are_those_that_preview_names(where: str) -> None:
    line = row(REACHED[where])

    def named(after: str) -> set[str]:
        found = re.search(rf"{after}((?:,? ?`\w+`)+)", line)
        return set(re.findall(r"`(\w+)`", found[1])) if found else set()

    def refused(families: tuple[str, ...], heads: int | None, neurons: int | None) -> set[str]:
        return answered("no", where, families, heads, neurons)

    never = refused(WITH_HEADS, heads=4, neurons=None) | refused(WITH_NEURONS, heads=None, neurons=128)
    assert named("every family but ") == never
    assert named("fewer heads: ") == refused(WITH_HEADS, heads=2, neurons=None)
    assert named("fewer neurons: ") == refused(WITH_NEURONS, heads=None, neurons=100) - never


def test_the_families_that_nobody_looked_up_are_named() -> None:
    (line,) = re.findall(r"was not looked up:\n(.*)\.$", LOADING, re.MULTILINE)
    unknown = {name for name, row in amp.FAMILIES.items() if None in row.programs}
    assert set(re.findall(r"`(\w+)`", line)) == unknown and (unknown or line == "none")


def test_the_versions_it_names_are_those_that_preview_names() -> None:
    model = tiny()
    found = amp.preview(model, some_plan(model, heads=2, neurons=9)).loads[1:]
    lines = [row(f"| {x.where}") for x in found]
    for x, line in zip(found, lines, strict=True):
        versions = re.findall(r"\d+\.\d+\.\d+", x.source)
        assert versions and all(version in line for version in versions)
        assert ("measured once" in x.source) == ("measured once" in line)
        assert ("read in source" in x.source) == ("| read" in line)


def test_it_lists_every_notebook() -> None:
    assert sorted(re.findall(r"\(notebooks/(\w+)\.ipynb\)", README)) == sorted(
        p.stem for p in NOTEBOOKS.glob("*.ipynb")
    )
    words = (
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
    )
    assert f"{words[len(list(NOTEBOOKS.glob('*.ipynb'))) - 6]} notebooks" in README


def examples(page: str) -> Iterator[str]:
    return iter(re.findall(r"```python\n(.*?)```", read(page), re.DOTALL))


def test_the_example_is_ten_lines() -> None:
    (example,) = examples("README.md")
    assert 10 <= len([line for line in example.splitlines() if "(" in line or "import" in line]) <= 11


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state: dict[str, object] = {}
    for page in ("README.md", "docs/library.md"):
        for example in examples(page):
            exec(compile(example, page, "exec"), state)
    one, two = (amp.load(f"out/{name}", device="cpu")[0] for name in ("tiny-llama-30", "larger-than-memory"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_every_call_it_names_is_offered(page: str) -> None:
    called = set(re.findall(r"\bamp\.(\w+)", read(page)))
    assert called and called <= set(amp.__all__)


def test_the_page_for_researchers_names_every_preset() -> None:
    (table,) = re.findall(r"<!-- costs:begin -->\n(.*?)<!-- costs:end -->", read("docs/researchers.md"), re.DOTALL)
    assert sorted(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == parameters.names()
    named = re.findall(r"--preset ([\w-]+)", README)
    assert named and set(named) <= set(parameters.names())


def anchors(page: str) -> set[str]:
    """The places within a page, as GitHub names its headings; of equal ones the second ends in -1."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found += [f"{plain}-{n}" if (n := sum(f == plain or f.startswith(f"{plain}-") and f[len(plain) + 1 :].isdigit()
                                             for f in found)) else plain]  # fmt: skip
    return set(found)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        file, _, place = link.partition("#")
        if "://" not in link:
            there = (ROOT / page).parent / file if file else ROOT / page
            assert there.exists(), link
            assert not place or place in anchors(there.resolve().relative_to(ROOT).as_posix()), link


# Generated parts

SLOW = "docs/researchers.md"  # it counts the memory of every preset, a minute and a half


@pytest.mark.parametrize("page", [*(page for page in pages.pages() if page != SLOW), *grid(SLOW)])
def test_a_page_is_what_make_docs_writes(page: str) -> None:
    assert (ROOT / page).read_text(encoding="utf-8") == pages.now(page), "run: make docs"


def test_every_part_between_markers_has_its_generator() -> None:
    for page in ["README.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]:
        names = re.findall(r"<!-- (\w+):begin -->", (ROOT / page).read_text(encoding="utf-8"))
        mine = [name for where, name in pages.PARTS if where == page]
        assert names == mine or (page, names) == ("docs/speed.md", ["benchmarks"])  # the command benchmarks fills it


def test_the_command_writes_what_is_stale_and_check_only_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.md").write_text("# A\n<!-- x:begin -->\nold\n<!-- x:end -->\nend\n", encoding="utf-8")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "PARTS", {("a.md", "x"): lambda: "new"})
    monkeypatch.setattr(pages, "WHOLE", {"b.svg": lambda: "drawn"})
    assert pages.main(["--check"]) == 1 and "old" in (tmp_path / "a.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.split("\n")[:2] == [f"{p} is out of date; run make docs" for p in ("a.md", "b.svg")]
    assert pages.main([]) == 0 and pages.main(["--check"]) == 0
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "# A\n<!-- x:begin -->\nnew\n<!-- x:end -->\nend\n"
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == "drawn"
    (tmp_path / "a.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit):
        pages.main([])
    assert "a.md has no part between <!-- x:begin --> and <!-- x:end --> to fill." in capsys.readouterr().err


def test_the_reference_has_every_public_name_once() -> None:
    headings = re.findall(r"^### amp\.(\w+)$", api_reference.reference(), re.MULTILINE)
    (older,) = re.findall(r"^## Older names\n(.*):", api_reference.reference(), re.MULTILINE) or [""]
    assert sorted([*headings, *re.findall(r"`(\w+)`", older)]) == sorted(amp.__all__)


def test_a_reference_has_the_call_as_written_and_its_errors_as_a_list() -> None:
    text = "\n".join(api_reference.entry("score"))
    assert 'criterion: str = "amp",\n' in text and "Raises:\n\n- `ValueError`: " in text
    assert "heads: list[" in (scores := "\n".join(api_reference.entry("Scores")))
    assert "Scores.save(path: str | Path" in scores and "(self" not in scores
    assert "`tiny-llama`" in "\n".join(api_reference.entry("EMBEDDED"))
    assert api_reference.prose("Say.\n\nRaises:\n    A: one\n        two.\n    B: three.\n\nMore.") == (
        "Say.\n\nRaises:\n\n- `A`: one two.\n- `B`: three.\n\nMore."
    )
    with pytest.raises(ValueError, match="core.plans neither defines nor imports nothing"):
        api_reference.definition("core.plans", "nothing")


def test_the_drawing_shows_every_folder_and_file() -> None:
    drawn = "".join(ElementTree.fromstring(architecture.svg()).itertext())
    for path in PACKAGE.glob("*/*.py"):
        name = re.sub(r"_(\d+|[a-z])$", "_NN", path.stem)
        assert path.parent.name in drawn and (name == "__init__" or name in drawn), path
    assert {m.floor for m in architecture.modules()} == {p.parent.name for p in PACKAGE.glob("*/__init__.py")}


def test_the_drawing_is_the_same_in_every_process() -> None:
    program = "from amp_tutorial.reports import architecture as a; print(a.svg(), a.listing(), a.house())"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "1234"
    }
    assert len(said) == 1, "sets are walked through in another order in each"


def test_an_arrow_is_an_import_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "__init__.py": '"""X.\n\nlow ← high: in this order.\n"""',
        "__init__.pyi": "from .low.a import name",
        "low/__init__.py": '"""Low."""',
        "low/a.py": '"""A."""\nname = 1',
        "low/b.py": '"""B."""\nfrom . import a',
        "low/c.py": '"""C."""',
        "high/__init__.py": '"""High."""',
        "high/one.py": f'"""One."""\nimport {tmp_path.name} as x\nx.name',
        "high/two.py": '"""Two."""\ndef later():\n    from ..low.b import thing',
        "high/three.py": f'"""Three."""\nMODULE = "{tmp_path.name}.low.c"',
        "tinyworld/__init__.py": '"""Apart."""',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(architecture, "PACKAGE", tmp_path)
    cached = (architecture.floors, architecture.public, architecture.modules)
    for function in cached:
        function.cache_clear()
    try:
        assert architecture.floors() == ("low", "high") and architecture.arrows() == {("high", "low"): 3}
        uses = {f"{m.floor}.{m.name}": m.uses for m in architecture.modules()}
        assert uses["high.one"] == {"low.a"} and uses["high.two"] == {"low.b"} and uses["high.three"] == {"low.c"}
        assert architecture.on("low") == ("Low.", ["a", "c", "b"]), "each after those it uses"
        assert "high uses low" in architecture.alt_text()
    finally:
        for function in cached:
            function.cache_clear()


def test_every_equation_names_a_line_and_a_test_that_are_there() -> None:
    rows = re.findall(
        r"^\| .* \| (\d[a-z]?) \| `([\w/]+\.py)`: `(\w+)` \| `(\w+\.py)`: `(\w+)` \|$",
        read("docs/library.md"),
        re.MULTILINE,
    )
    section = read("docs/library.md").partition("## Equation, line, test")[2]
    assert len(rows) == section.count("\n| ") - 1 and {number for number, *_ in rows} == set("1 2 3 4 5 8 8b".split())
    for _, code, name, file, test in rows:
        assert re.search(rf"^ *def {name}\(", (PACKAGE / code).read_text(encoding="utf-8"), re.MULTILINE), (code, name)
        assert f"\ndef {test}(" in read(f"tests/{file}"), (file, test)
