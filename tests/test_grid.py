"""A grid holds every combination once, in the order written, and every mistake in it is one sentence before any run."""

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amp_tutorial.runs import grid as grids
from amp_tutorial.runs import parameters
from amp_tutorial.runs.grid import LARGEST, Grid, grid_of, read

CELL = """\
preset = "none"  # a note
text = "a"  # a word
ratio = 0.3  # a share
count = 0  # how many
flag = False  # whether
out = "out"  # where to
"""
PRESETS: dict[str, dict[str, Any]] = {"small": {"ratio": 0.1}, "big": {"ratio": 0.5, "text": "b"}}
Made = Callable[..., Grid]


def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Grids over a notebook of these parameters, with these presets."""
    cell = nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "reproduce.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "04_recovery.ipynb")
    monkeypatch.setattr(parameters, "FOLDERS", (tmp_path,))
    real = grids.preset_of
    monkeypatch.setattr(grids, "preset_of", lambda name: PRESETS[name] if name in PRESETS else real(name))
    return lambda data: grid_of(data, "grid.yaml", tmp_path)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return maker(tmp_path, monkeypatch)


@given(
    ratios=st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
    flags=st.sampled_from([[False], [True, False]]),
)
def test_every_combination_once_in_the_order_written(
    ratios: list[float], counts: list[int], flags: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        grid = maker(tmp_path_factory.mktemp("grid"), patch)(
            {"fixed": {"text": "b"}, "grid": {"ratio": ratios, "count": counts, "flag": flags}}
        )
    points = list(grid)
    wanted = list(itertools.product(ratios, counts, flags))
    assert len(grid) == len(points) == len(wanted)
    assert [(p.effective["ratio"], p.effective["count"], p.effective["flag"]) for p in points] == wanted
    assert all(p.effective["text"] == "b" and "out" not in p.given for p in points)
    assert len({p.name for p in points}) == len(points)


def test_presets_are_replaced_by_what_is_fixed_and_by_the_grid(made: Made) -> None:
    points = list(made({"preset": ["small", "big"], "fixed": {"count": 2}, "grid": {"text": ["x", "y"]}}))
    assert [p.name for p in points] == ["small text=x", "small text=y", "big text=x", "big text=y"]
    assert [p.effective["preset"] for p in points] == ["small", "small", "big", "big"]
    assert [p.effective["ratio"] for p in points] == [0.1, 0.1, 0.5, 0.5]
    assert {p.effective["count"] for p in points} == {2}
    (one,) = made({"preset": "big", "fixed": {"ratio": 0.2}})
    assert one.effective | {"out": ""} == dict(preset="big", text="b", ratio=0.2, count=0, flag=False, out="")


def test_blocks_follow_each_other_and_find_their_notebooks(made: Made, tmp_path: Path) -> None:
    grid = made([{"grid": {"count": [1]}}, {"notebook": "04_recovery"}, {"notebook": "04_recovery.ipynb"}])
    assert [Path(p.notebook).name for p in grid] == ["reproduce.ipynb", "04_recovery.ipynb", "04_recovery.ipynb"]
    assert [p.name for p in grid] == ["reproduce count=1", "04_recovery", "04_recovery"]


def test_a_yaml_file_with_numbers_as_json_has_them(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("grid:\n  ratio: [1e-3, 2E-1, 0.5, 1]\n  text: [1.e-x, e5]\n")
    assert [p.effective["ratio"] for p in read(path)][::2] == [0.001, 0.2, 0.5, 1]


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "must hold a block"),
    "no blocks": ([], "must hold a block"),
    "a word": ("small", "must hold a block"),
    "a list of words": (["small"], "must hold a block"),
    "a misspelt key": ({"girds": {}}, "unknown key 'girds', did you mean grid?"),
    "a misspelt parameter": ({"grid": {"ratoi": [0.1]}}, "ratoi.*ratio.*text"),
    "a misspelt fixed parameter": ({"fixed": {"cuont": 1}}, "cuont.*count"),
    "a wrong type": ({"grid": {"count": [1, "two"]}}, "count.*'two'"),
    "a wrong fixed type": ({"fixed": {"ratio": "0.1"}}, "ratio.*'0.1'"),
    "a bool for a number": ({"grid": {"count": [True]}}, "count.*True"),
    "an empty grid": ({"grid": {}}, "the grid is empty"),
    "an empty list": ({"grid": {"ratio": [0.1], "count": []}}, "the grid is empty at count"),
    "no list": ({"grid": {"count": 3}}, r"count in the grid must be a list, \[3\]; or name it under fixed"),
    "no mapping": ({"fixed": [1]}, "fixed must be a mapping"),
    "both": ({"fixed": {"count": 1}, "grid": {"count": [1]}}, "count is both fixed and in the grid"),
    "out": ({"fixed": {"out": "here"}}, "out is not to be given"),
    "an unknown preset": ({"preset": "smal"}, "smal"),
    "no presets": ({"preset": []}, "preset must be a name"),
    "preset twice": ({"preset": "small", "fixed": {"preset": "big"}}, "either with the key preset or as a parameter"),
    "an unknown notebook": (
        {"notebook": "05"},
        "grid.yaml: No notebook is called '05'. There are 04_recovery",
    ),
    "a missing notebook": ({"notebook": "none.ipynb"}, "grid.yaml: No notebook .*none.ipynb"),
    "a number as notebook": ({"notebook": 4}, "must be a name or a path, not 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence(case: str, made: Made) -> None:
    data, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        made(data)
    assert "\n" not in str(error.value)


def test_in_a_list_the_block_is_named(made: Made) -> None:
    with pytest.raises(ValueError, match="grid.yaml, block 2.*the grid is empty"):
        made([{"fixed": {"count": 1}}, {"grid": {}}])


NO_GRID = {
    "grid: [": "cannot be read as YAML",
    "grid: {count: [1], count: [2]}": "count stands twice",
    "": "must hold a block",
    "grid: " + 2000 * "[": "cannot be read as YAML: it is nested too deeply",
}


@pytest.mark.parametrize(("text", "message"), NO_GRID.items(), ids=["torn", "twice", "empty", "deep"])
def test_a_file_that_is_no_grid(text: str, message: str, made: Made, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value) and "grid.yaml" in str(error.value)
    with pytest.raises(ValueError, match="none.yaml cannot be read"):
        read(tmp_path / "none.yaml")


def test_more_than_ten_thousand_runs_need_a_yes(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"grid": {"count": list(range(LARGEST)), "flag": [True]}}))
    assert len(read(path)) == LARGEST
    path.write_text(yaml.safe_dump({"grid": {"count": list(range(LARGEST // 2 + 1)), "flag": [True, False]}}))
    with pytest.raises(ValueError, match="10,002 runs, more than 10,000: confirm with --yes"):
        read(path)
    assert len(read(path, yes=True)) == LARGEST + 2


def test_a_grid_longer_than_python_counts_is_one_sentence_too(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(20)]
    cell = nbformat.v4.new_code_cell("\n".join(f"{name} = 0" for name in names), metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "long.ipynb")
    grid = grid_of({"notebook": "long.ipynb", "grid": {name: list(range(10)) for name in names}}, "g", tmp_path)
    with pytest.raises(ValueError, match="The grid has 100,000,000,000,000,000,000 runs.*--yes"):
        grid.confirmed(False)
    assert next(iter(grid)).effective == dict.fromkeys(names, 0)


@pytest.mark.parametrize("data", [{"grid": {"preset": ["ci", "smollm2-20"]}}, {"fixed": {"preset": "ci"}}])
def test_a_preset_where_it_would_only_be_a_note_is_refused(data: dict[str, Any], tmp_path: Path) -> None:
    """Its values would not be taken, and the record would bear its name all the same."""
    for default in ('""', '"smallest"'):
        cell = nbformat.v4.new_code_cell(f"preset = {default}", metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "b.ipynb")
        if default == '""':
            with pytest.raises(ValueError, match="preset is only a note; name it by the key preset"):
                grid_of({"notebook": "b.ipynb"} | data, "grid.yaml", tmp_path)
        else:  # a lesson's own parameter
            assert next(iter(grid_of({"notebook": "b.ipynb"} | data, "grid.yaml", tmp_path))).given["preset"] == "ci"


def test_a_grid_is_never_expanded(made: Made) -> None:
    some = list(range(1000))
    grid = made({"grid": {"count": some, "ratio": [i / 1000 for i in some], "text": [str(i) for i in some]}})
    tracemalloc.start()
    assert len(grid) == 10**9
    assert len(list(itertools.islice(grid, 2000))) == 2000
    walk = iter(grid)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for _ in itertools.islice(walk, 2000):
        pass
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 100_000  # bytes, of 2,000 runs of which each holds some hundreds


def test_a_block_may_take_over_another_s_values(made: Made, tmp_path: Path) -> None:
    made({"fixed": {"count": 1}})
    (tmp_path / "grid.yaml").write_text(
        "- &first\n  notebook: reproduce\n  fixed: {count: 1}\n  grid: {ratio: [0.1]}\n"
        "- <<: *first\n  fixed: {count: 2}\n",
        encoding="utf-8",
    )
    assert [(p.effective["count"], p.effective["ratio"]) for p in read(tmp_path / "grid.yaml")] == [(1, 0.1), (2, 0.1)]


def test_what_is_said_for_all_runs_is_said_once_and_is_no_preset(made: Made, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("notebook: 04_recovery.ipynb\ngrid: {count: [1, 2]}")
    for said, words in ((["ratio=0.1", "ratio=0.2"], "-p ratio is given twice"), (["preset=ci"], "only a note")):
        with pytest.raises(ValueError, match=words):
            read(tmp_path / "grid.yaml", everywhere=said)
    assert read(tmp_path / "grid.yaml", everywhere=["preset=full"]).blocks[0].fixed == {"preset": "full"}
