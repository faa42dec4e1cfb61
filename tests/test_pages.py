"""Generated parts of the README and of `docs/` are what the code, the records and the figures give now."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers import grid

import amp_tutorial as amp
from amp_tutorial.files.paths import PACKAGE, ROOT
from amp_tutorial.reports import api_reference, architecture, pages

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
