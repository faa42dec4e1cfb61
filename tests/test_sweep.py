"""A sweep executes what is not finished, each run once, whatever others and other sweeps do; here without notebooks.

What a killed process leaves is in test_reliability.py, with real notebooks.
"""

import argparse
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
from tqdm import tqdm

import amp_tutorial.runs
from amp_tutorial.runs import sweep as forecasts
from amp_tutorial.runs import sweep as sweeps
from amp_tutorial.runs import workers
from amp_tutorial.runs.execute import Job, Outcome
from amp_tutorial.runs.grid import Grid, grid_of
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
