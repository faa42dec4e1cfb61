"""What the README says of the code is so: its table of families, the tests it names, its example, its exceptions."""

import re
from pathlib import Path

import pytest
import torch
from helpers import KNOWN, WITH_HEADS, WITH_NEURONS, Shape, some_plan, tiny

import amp_tutorial as amp
from amp_tutorial.files.paths import NOTEBOOKS, ROOT
from amp_tutorial.reports import families_table as readme
from amp_tutorial.runs import presets

README = (ROOT / "README.md").read_text(encoding="utf-8")
REACHED = {"vLLM": "| vLLM |", "llama.cpp": "| llama.cpp (GGUF) |"}


def row(beginning: str) -> str:
    (line,) = [line for line in README.splitlines() if line.startswith(beginning)]
    return line


def refused(where: str, families: tuple[str, ...], heads: int | None, neurons: int | None) -> set[str]:
    """Families of which a program does not load a model that has kept only so much."""
    found = set()
    for family in families:
        dense = tiny(Shape(family, layers=1, neurons=128))  # 4 · 32: what some programs always take
        (loads,) = [
            x for x in amp.preview(dense, some_plan(dense, heads=heads, neurons=neurons)).loads if x.where == where
        ]
        assert loads.answer in ("yes", "no")
        found |= {family} if loads.answer == "no" else set()
    return found


def test_the_table_of_families_is_the_table_in_the_code() -> None:
    assert f"{readme.BEGIN}\n{readme.families_table()}\n{readme.END}" in README
    first = [line.split(" | ")[0] for line in readme.families_table().splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted(KNOWN)


def test_a_new_row_makes_the_table_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(amp.FAMILIES, "helium", amp.Family(no_neurons="a reason"))
    assert "| `helium` | by KV group, or queries of every group | none: a reason |" in readme.families_table()
    assert readme.families_table() not in README


def test_the_command_fills_the_part_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README.replace("`smollm3`", "`gone`"), encoding="utf-8")
    assert readme.main([str(copy)]) == 0 and copy.read_text(encoding="utf-8") == README
    copy.write_text("nothing", encoding="utf-8")
    assert readme.main([str(copy)]) == 1 and "no part between" in capsys.readouterr().err
    assert copy.read_text(encoding="utf-8") == "nothing"


def test_every_test_it_names_is_there() -> None:
    named = re.findall(r"`tests/(\w+)\.py::(\w+)`", README)
    assert len(named) == README.count("tests/test_") >= 8
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), name


@pytest.mark.parametrize("where", REACHED)
def test_the_exceptions_it_names_are_those_that_check_names(where: str) -> None:
    line = row(REACHED[where])

    def named(after: str) -> set[str]:
        found = re.search(rf"{after}((?:,? ?`\w+`)+)", line)
        return set(re.findall(r"`(\w+)`", found[1])) if found else set()

    never = refused(where, WITH_HEADS, heads=4, neurons=None) | refused(where, WITH_NEURONS, heads=None, neurons=128)
    assert named("every family but ") == never
    assert named("fewer heads: ") == refused(where, WITH_HEADS, heads=2, neurons=None)
    assert named("fewer neurons: ") == refused(where, WITH_NEURONS, heads=None, neurons=100) - never


def test_the_versions_it_names_are_those_that_check_names() -> None:
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
    words = ("six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen")
    assert f"{words[len(list(NOTEBOOKS.glob('*.ipynb'))) - 6]} notebooks" in README


@pytest.mark.slow
def test_its_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    state: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), state)
    one, two = (amp.load(f"out/{name}", device="cpu")[0] for name in ("tiny-llama-30", "larger-than-memory"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_it_names_every_preset() -> None:
    (named,) = re.findall(r"Presets: (.*?)\. More", README, re.S)
    assert sorted(re.findall(r"`([\w-]+)`", named)) == presets.names()


@pytest.mark.parametrize("page", ["README.md", "docs/researchers.md"])
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
