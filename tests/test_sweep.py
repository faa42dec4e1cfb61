"""A sweep executes what is not finished, each run once, whatever others and other sweeps do; here without notebooks.

A grid holds every combination once, in the order written, and every mistake in it is one sentence before any run. What
a killed process leaves is in test_reliability.py, with real notebooks.
"""

import argparse
import itertools
import json
import re
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

import amp_tutorial.runs
from amp_tutorial.runs import grid as grids
from amp_tutorial.runs import parameters, workers
from amp_tutorial.runs import sweep as forecasts
from amp_tutorial.runs import sweep as sweeps
from amp_tutorial.runs.execute import Job, Outcome
from amp_tutorial.runs.grid import LARGEST, Grid, grid_of, read
from amp_tutorial.runs.sweep import Summary, add_arguments, command, sweep

CELL = 'text = "a"  # a word\ncount = 0  # how many\nflag = False  # whether\n'


def valid(out: str | Path, id: str) -> dict[str, Any] | None:
    """What counts as finished, for the runs of these tests."""
    try:
        record: dict[str, Any] = json.loads((Path(out) / id / "record.json").read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("status") == "ok" else None


class Fake:
    """In the place of `execute`: notes what it is asked for, and leaves a record."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.noting = True
        self.wait: Callable[[], None] | None = None  # what each waits for
        self.results: dict[str, list[str]] = {}  # name → what becomes of it, in turn; then ok
        self.lock, self.running, self.most = threading.Lock(), 0, 0

    def __call__(self, job: Job, out: str | Path, limit: float | None = None, environment: Any = None) -> Outcome:
        with self.lock:
            if self.noting:
                self.names.append(job.name)
            self.running += 1
            self.most = max(self.most, self.running)
            status = (self.results.get(job.name) or ["ok"]).pop(0)
        if self.wait:
            self.wait()
        if status == "ok":
            (Path(out) / job.id).mkdir(parents=True)
            (Path(out) / job.id / "record.json").write_text(json.dumps({"status": "ok"}))
        with self.lock:
            self.running -= 1
        return Outcome(job.id, status, 1.0, "it broke" if status == "failed" else "")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(workers, "execute", fake)
    monkeypatch.setattr(sweeps, "finished", valid)
    monkeypatch.setattr(sweeps, "POLL", 0.01)
    return fake


Made = Callable[..., Grid]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Grids over a notebook with a few parameters; it is never executed."""
    cell = nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "book.ipynb")

    def make(**grid: list[Any]) -> Grid:
        return grid_of({"notebook": "book.ipynb"} | ({"grid": grid} if grid else {}), "grid.yaml", tmp_path)

    return make


def counts(summary: Summary) -> tuple[int, int, int]:
    return summary.ok, summary.failed, summary.finished


def test_each_run_once_and_nothing_is_left_to_do(made: Made, fake: Fake, tmp_path: Path) -> None:
    grid = made(count=[1, 2, 3], flag=[True, False])
    assert counts(sweep(grid, tmp_path / "runs")) == (6, 0, 0)
    assert sorted(fake.names) == sorted(point.name for point in grid)
    assert counts(sweep(grid, tmp_path / "runs")) == (0, 0, 6)
    assert len(fake.names) == 6
    assert counts(sweep(made(count=[1, 4], flag=[True]), tmp_path / "runs")) == (1, 0, 1)
    assert fake.names[6:] == ["book count=4 flag=True"]


def test_a_failed_run_stops_no_other_and_runs_again_next_time(
    made: Made, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = made(count=[1, 2, 3])
    fake.results = {"book count=2": ["failed"]}
    summary = sweep(grid, tmp_path / "runs")
    assert (counts(summary), summary.status) == ((2, 1, 0), 1)
    said = capsys.readouterr().out
    assert "failed book count=2" in said and "it broke" in said
    assert str(summary).startswith("3 runs: 2 executed, 0 were finished, 1 failed; see ")
    summary = sweep(grid, tmp_path / "runs")
    assert (counts(summary), summary.status) == ((1, 0, 2), 0)
    assert fake.names[3:] == ["book count=2"]


@pytest.mark.parametrize("first", ["ok", "failed"])
def test_a_run_that_stands_twice_runs_once(first: str, made: Made, fake: Fake, tmp_path: Path) -> None:
    fake.results = {"book count=1": [first]}
    twice = Grid(made(count=[1, 2]).blocks + made(count=[1, 2], flag=[False]).blocks)
    assert counts(sweep(twice, tmp_path / "runs"))[:2] == ((2, 0) if first == "ok" else (1, 1))
    assert sorted(fake.names) == ["book count=1", "book count=2"]


def test_a_run_that_another_process_has_is_looked_at_again(made: Made, fake: Fake, tmp_path: Path) -> None:
    fake.results = {"book count=1": ["busy", "busy", "ok"], "book count=2": ["busy", "finished"]}
    assert counts(sweep(made(count=[1, 2, 3]), tmp_path / "runs")) == (2, 0, 1)
    assert fake.names.count("book count=1") == 3 and fake.names.count("book count=2") == 2
    assert fake.names.index("book count=3") < 3  # nothing waits for it


def test_without_a_terminal_a_long_sweep_says_where_it_is(
    made: Made, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    still = sweeps._still

    def noted(*given: Any) -> str:
        lines.append(still(*given))
        return lines[-1]

    monkeypatch.setattr(sweeps, "_still", noted)
    monkeypatch.setattr(sweeps, "WORD", 0.0)

    def until_said() -> None:  # however slow this machine is: each run lasts until a line was written about it
        start = f"{len(fake.names) - 1} of 2 runs are over"
        while not any(line.startswith(start) for line in list(lines)):
            time.sleep(0.001)

    fake.wait = until_said
    sweep(made(count=[1, 2]), tmp_path / "runs")
    assert set(lines) <= set(capsys.readouterr().out.splitlines())
    first, last = (re.sub(r"\d\d:\d\d", "mm:ss", line) for line in (lines[0], lines[-1]))
    assert first == "0 of 2 runs are over after mm:ss, now at book count=1"
    assert last == "1 of 2 runs are over after mm:ss, now at book count=2, roughly mm:ss left"
    half = Summary(tmp_path, ok=2, finished=3, seconds=200.0)  # of two at a time: 100 s are gone, and 30 s since
    assert sweeps._still(["a", "b"], half, 9, 130.0).endswith("after 02:10, now at a, b, roughly 02:50 left")
    monkeypatch.setattr(sweeps, "WORD", 60.0)
    fake.wait = None
    sweep(made(count=[3]), tmp_path / "runs")
    assert "now at" not in capsys.readouterr().out


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shards_are_disjoint_and_complete_and_stay(of: int, made: Made, fake: Fake, tmp_path: Path) -> None:
    whole, part = made(count=list(range(20))), made(count=list(range(0, 20, 2)))
    shares: list[set[str]] = []
    for index in range(1, of + 1):
        sweep(whole, tmp_path / f"{index}", shard=(index, of))
        shares.append(set(fake.names))
        fake.names.clear()
        sweep(part, tmp_path / f"part {index}", shard=(index, of))
        assert set(fake.names) == shares[-1] & {point.name for point in part}  # whatever else is in the grid
        fake.names.clear()
    assert sum(map(len, shares)) == len(set().union(*shares)) == 20


def test_a_dry_run_writes_nothing_and_says_what_it_costs(
    made: Made, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasts, "cost", lambda parameters, here: (f"{parameters['count']} minutes", 0.0))
    monkeypatch.setattr(forecasts, "finished", valid)
    before = sorted(tmp_path.rglob("*"))
    assert sweep(made(count=[1, 2]), tmp_path / "runs", dry_run=True).status == 0
    assert sorted(tmp_path.rglob("*")) == before and not fake.names
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("book count=1 (") and said[0].endswith("): 1 minutes")
    assert said[2].startswith("2 to run, 0 finished")
    sweep(made(count=[2]), tmp_path / "runs")
    capsys.readouterr()
    sweep(made(count=[1, 2, 2]), tmp_path / "runs", dry_run=True)
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith("): finished") and said[2].startswith("1 to run, 1 finished")


def test_what_a_run_costs_is_asked_only_where_there_is_a_model() -> None:
    assert forecasts.cost({"count": 1}) == ("to run", 0.0)


def test_what_a_run_costs_against_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another `needs`: its own numbers are tested in test_requirements.py."""

    def needs_of(parameters: dict[str, Any]) -> SimpleNamespace:
        if parameters["model"] == "owner/name":
            raise ValueError("owner/name is not in the cache.")

        ratio = parameters["ratio"]  # a lesson's notebook may have none

        def check(has: int) -> None:
            if ratio * 10 > has:
                raise ValueError("Short of memory.")

        sizes = dict(peak=3, disk=2, download=int(parameters["model"] == "far"))
        return SimpleNamespace(**sizes, seconds=60.0, speed=SimpleNamespace(of=""), check=check)

    fake = SimpleNamespace(needs_of=needs_of, has=lambda _: 5, size=lambda n: f"{n} B", duration=lambda s: f"{s:.0f} s")
    monkeypatch.setattr(amp_tutorial.runs, "requirements", fake, raising=False)
    common = "3 B of memory, 2 B of disk, "
    assert forecasts.cost({"model": "tiny", "ratio": 0.1}) == (
        common + "nothing to download, roughly 60 s on this machine",
        60.0,
    )
    text, seconds = forecasts.cost({"model": "far", "ratio": 1.0})
    assert text == common + "1 B to download, roughly 60 s on this machine. Not on this machine: Short of memory."
    assert "Not on" not in forecasts.cost({"model": "far", "ratio": 1.0}, here=False)[0]  # a cluster has its own
    assert "not known: owner/name is not in the cache." in forecasts.cost({"model": "owner/name", "ratio": 1})[0]
    assert forecasts.cost({"model": "tiny"})[0] == "its needs are not known, it has no parameter ratio"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_runs(made: Made, fake: Fake, tmp_path: Path) -> None:
    """The name of each run takes 50 kB, so that 360 names kept would be 18 MB.

    10 MB are allowed: the interpreter's table of all short strings grows by some MB when it happens to be full.
    """

    def peak(runs: int) -> int:
        grid = made(text=["x" * 50_000], count=list(range(runs)))
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        assert counts(sweep(grid, tmp_path / f"{runs}", jobs=2)) == (runs, 0, 0)
        most = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return most

    fake.noting = False
    peak(10)  # what is made once
    assert peak(400) < peak(40) + 10_000_000


def test_runs_are_handed_out_as_they_are_needed(made: Made, fake: Fake, tmp_path: Path) -> None:
    """Never more than a few times what can be executed is in flight, or exists at all, and no more executed at once."""
    flying, most, alive = [0], [0], [0]
    jobs: weakref.WeakValueDictionary[str, Job] = weakref.WeakValueDictionary()

    class Watched(workers.Local):
        def submit(self, job: Job) -> None:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
            jobs[job.id] = job
            alive[0] = max(alive[0], len(jobs))
            super().submit(job)

        def take(self, timeout: float) -> tuple[Job, Outcome] | None:
            found = super().take(timeout)
            flying[0] -= found is not None
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "Local", Watched)
        sweep(made(count=list(range(50))), tmp_path / "runs", jobs=3)
    assert flying == [0] and 3 <= most[0] <= 3 * 3 and alive[0] <= 3 * 4 and fake.most <= 3 and len(fake.names) == 50


def test_progress_counts_what_is_finished_but_not_as_work(
    made: Made, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(made(count=[1, 2]), tmp_path / "runs")
    bars: list[Any] = []

    def shown(**options: Any) -> Any:
        bars.append(tqdm(**options | {"disable": False}))
        return bars[0]

    monkeypatch.setattr(sweeps, "tqdm", shown)
    fake.results = {"book count=3": ["failed"]}
    twice = Grid(made(count=[1, 2, 3, 4, 5]).blocks + made(count=[3]).blocks)
    assert counts(sweep(twice, tmp_path / "runs")) == (2, 1, 2)
    assert (bars[0].total, bars[0].n, bars[0].initial) == (5, 5, 2)
    assert "5/5" in capsys.readouterr().err


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such shard": ({"shard": (3, 2)}, "shard 3/2 does not exist"),
    "shard from zero": ({"shard": (0, 2)}, "shard 0/2 does not exist; write 1/2 for the first"),
    "no jobs": ({"jobs": 0}, "--jobs must be at least 1"),
    "no time": ({"limit": 0}, "--limit must be more than 0"),
    "no end": ({"limit": float("inf")}, "--limit must be more than 0 seconds and a finite number"),
    "no number": ({"limit": float("nan")}, "--limit must be more than 0 seconds and a finite number"),
    "an empty address": ({"scheduler": " "}, "--scheduler is empty; give an address"),
    "a web page": ({"scheduler": "http://127.0.0.1:1"}, "--scheduler http://127.0.0.1:1 is no address"),
    "no such port": ({"scheduler": "tcp://127.0.0.1:99999"}, "--scheduler tcp://127.0.0.1:99999 is no address"),
    "jobs on a cluster": ({"jobs": 2, "scheduler": "tcp://127.0.0.1:1"}, "--jobs is for runs on this machine"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence_and_nothing_is_written(case: str, made: Made, fake: Fake, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        sweep(made(count=[1]), tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists() and not fake.names


def test_a_model_that_is_asked_for_later_is_said_not_to_be_there(made: Made, fake: Fake, tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell(f"{CELL}keep_model = False\n", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "book.ipynb")
    grid = {"notebook": "book.ipynb", "grid": {"count": [1, 2]}}
    first = sweep(grid_of(grid, "grid.yaml", tmp_path), tmp_path / "runs")
    again = sweep(grid_of(grid | {"fixed": {"keep_model": True}}, "grid.yaml", tmp_path), tmp_path / "runs")
    assert (first.unkept, first.status, again.finished, again.unkept, again.status) == (0, 0, 2, 2, 1)
    assert "The models of 2 finished runs were not kept then: give another --out" in str(again)


def test_ten_thousand_and_one_runs_without_a_yes(made: Made, fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="confirm with --yes"):
        sweep(made(count=list(range(10_001))), tmp_path / "runs", dry_run=True)


def test_a_folder_that_cannot_be_written_to(made: Made, fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="Cannot write into .*file.*; name another folder with --out"):
        sweep(made(count=[1]), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine" and not fake.names


def test_the_home_folder_by_its_short_name(
    made: Made, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves --out=~/runs as it stands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert counts(sweep(made(count=[1]), "~/runs")) == (1, 0, 0)
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 1
    assert sweep(made(count=[1]), "~/runs", dry_run=True).out == tmp_path / "runs"


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return command(parser.parse_args(words))


def test_the_command_sums_up_and_its_status_says_whether_a_run_failed(
    made: Made, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made()
    grid, out = tmp_path / "grid.yaml", str(tmp_path / "runs")
    grid.write_text("notebook: book.ipynb\ngrid: {count: [1, 2]}\n")
    fake.results = {"book count=2": ["failed"]}
    assert run_command(str(grid), "--out", out) == 1
    assert "2 runs: 1 executed, 0 were finished, 1 failed; see" in capsys.readouterr().out
    assert run_command(str(grid), "--out", out, "--dry-run") == 0
    assert run_command(str(grid), "--out", out, "--shard", "1/1", "--jobs", "2", "--limit", "60") == 0
    assert "2 runs: 1 executed, 1 were finished, 0 failed." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command(str(grid), "--shard", "half")
    assert "'half' must be two numbers such as 1/4" in capsys.readouterr().err


CELL_OF_A_GRID = """\
preset = "none"  # a note
text = "a"  # a word
ratio = 0.3  # a share
count = 0  # how many
flag = False  # whether
out = "out"  # where to
"""
PRESETS: dict[str, dict[str, Any]] = {"small": {"ratio": 0.1}, "big": {"ratio": 0.5, "text": "b"}}


def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Grids over a notebook of these parameters, with these presets."""
    cell = nbformat.v4.new_code_cell(CELL_OF_A_GRID, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "reproduce.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "04_recovery.ipynb")
    monkeypatch.setattr(parameters, "FOLDERS", (tmp_path,))
    real = grids.preset_of
    monkeypatch.setattr(grids, "preset_of", lambda name: PRESETS[name] if name in PRESETS else real(name))
    return lambda data: grid_of(data, "grid.yaml", tmp_path)


@pytest.fixture
def grid_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
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


def test_presets_are_replaced_by_what_is_fixed_and_by_the_grid(grid_made: Made) -> None:
    points = list(grid_made({"preset": ["small", "big"], "fixed": {"count": 2}, "grid": {"text": ["x", "y"]}}))
    assert [p.name for p in points] == ["small text=x", "small text=y", "big text=x", "big text=y"]
    assert [p.effective["preset"] for p in points] == ["small", "small", "big", "big"]
    assert [p.effective["ratio"] for p in points] == [0.1, 0.1, 0.5, 0.5]
    assert {p.effective["count"] for p in points} == {2}
    (one,) = grid_made({"preset": "big", "fixed": {"ratio": 0.2}})
    assert one.effective | {"out": ""} == dict(preset="big", text="b", ratio=0.2, count=0, flag=False, out="")


def test_blocks_follow_each_other_and_find_their_notebooks(grid_made: Made, tmp_path: Path) -> None:
    grid = grid_made([{"grid": {"count": [1]}}, {"notebook": "04_recovery"}, {"notebook": "04_recovery.ipynb"}])
    assert [Path(p.notebook).name for p in grid] == ["reproduce.ipynb", "04_recovery.ipynb", "04_recovery.ipynb"]
    assert [p.name for p in grid] == ["reproduce count=1", "04_recovery", "04_recovery"]


def test_a_yaml_file_with_numbers_as_json_has_them(grid_made: Made, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("grid:\n  ratio: [1e-3, 2E-1, 0.5, 1]\n  text: [1.e-x, e5]\n")
    assert [p.effective["ratio"] for p in read(path)][::2] == [0.001, 0.2, 0.5, 1]


MISTAKES: dict[str, tuple[Any, str]] = {
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


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence(case: str, grid_made: Made) -> None:
    data, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message) as error:
        grid_made(data)
    assert "\n" not in str(error.value)


def test_in_a_list_the_block_is_named(grid_made: Made) -> None:
    with pytest.raises(ValueError, match="grid.yaml, block 2.*the grid is empty"):
        grid_made([{"fixed": {"count": 1}}, {"grid": {}}])


NO_GRID = {
    "grid: [": "cannot be read as YAML",
    "grid: {count: [1], count: [2]}": "count stands twice",
    "": "must hold a block",
    "grid: " + 2000 * "[": "cannot be read as YAML: it is nested too deeply",
}


@pytest.mark.parametrize(("text", "message"), NO_GRID.items(), ids=["torn", "twice", "empty", "deep"])
def test_a_file_that_is_no_grid(text: str, message: str, grid_made: Made, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value) and "grid.yaml" in str(error.value)
    with pytest.raises(ValueError, match="none.yaml cannot be read"):
        read(tmp_path / "none.yaml")


def test_more_than_ten_thousand_runs_need_a_yes(grid_made: Made, tmp_path: Path) -> None:
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


def test_a_grid_is_never_expanded(grid_made: Made) -> None:
    some = list(range(1000))
    grid = grid_made({"grid": {"count": some, "ratio": [i / 1000 for i in some], "text": [str(i) for i in some]}})
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


def test_a_block_may_take_over_another_s_values(grid_made: Made, tmp_path: Path) -> None:
    grid_made({"fixed": {"count": 1}})
    (tmp_path / "grid.yaml").write_text(
        "- &first\n  notebook: reproduce\n  fixed: {count: 1}\n  grid: {ratio: [0.1]}\n"
        "- <<: *first\n  fixed: {count: 2}\n",
        encoding="utf-8",
    )
    assert [(p.effective["count"], p.effective["ratio"]) for p in read(tmp_path / "grid.yaml")] == [(1, 0.1), (2, 0.1)]


def test_what_is_said_for_all_runs_is_said_once_and_is_no_preset(grid_made: Made, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("notebook: 04_recovery.ipynb\ngrid: {count: [1, 2]}")
    for said, words in ((["ratio=0.1", "ratio=0.2"], "-p ratio is given twice"), (["preset=ci"], "only a note")):
        with pytest.raises(ValueError, match=words):
            read(tmp_path / "grid.yaml", everywhere=said)
    assert read(tmp_path / "grid.yaml", everywhere=["preset=full"]).blocks[0].fixed == {"preset": "full"}
