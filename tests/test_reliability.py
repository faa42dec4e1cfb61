"""What is killed loses nothing finished, leaves nothing half-written that counts, and goes on at the next start.

The runs are real: notebooks of a few lines in processes of their own. Each says in a file outside that it begins, then
waits there for a file that lets it go on, so that a test kills at the moment it means, on a machine of any speed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import LocalCluster
from helpers import RECORD, small

from amp_tutorial.files import ROOT
from amp_tutorial.runs import record as records
from amp_tutorial.runs.execute import finished

WITHIN = 240.0  # seconds; a generous limit for what takes a few
BEGIN = """\
import os, pathlib, time
gates, me = pathlib.Path(word), os.getpid()
with open(gates / "begun", "a") as file:
    file.write(f"{x} {me}\\n")
while not (gates / "all").exists() and not (gates / f"{x}").exists():
    time.sleep(0.05)"""
END = 'with open(gates / "ended", "a") as file:\n    file.write(f"{x}\\n")'


def until(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + WITHIN
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


class Stage:
    """A grid of runs that wait at gates, and the sweeps over it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.gates = folder, folder / "runs", folder / "gates"
        self.gates.mkdir()
        self.started: list[subprocess.Popen[str]] = []
        small(folder / "book.ipynb", BEGIN, RECORD, END)

    def grid(self, runs: int, cells: tuple[str, ...] = ()) -> None:
        if cells:
            small(self.folder / "book.ipynb", BEGIN, *cells, RECORD, END)
        block = dict(notebook="book.ipynb", fixed=dict(word=str(self.gates)), grid=dict(x=list(range(1, runs + 1))))
        (self.folder / "grid.yaml").write_text(json.dumps(block))  # JSON is YAML

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "amp_tutorial.cli", "sweep", str(self.folder / "grid.yaml")]
        search = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
        started = subprocess.Popen(
            [*command, "--out", str(self.out), *words],
            env=os.environ | {"PYTHONPATH": search},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(started)
        return started

    def done(self, sweep: subprocess.Popen[str]) -> tuple[int, str]:
        """Exit status and what was said."""
        said, _ = sweep.communicate(timeout=WITHIN)
        return sweep.returncode, said

    def open(self, *gates: int | str) -> None:
        for gate in gates:
            (self.gates / str(gate)).touch()

    def lines(self, name: str) -> list[list[int]]:
        path = self.gates / name
        text = path.read_text() if path.exists() else ""
        return [[int(word) for word in line.split()] for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def begun(self) -> Counter[int]:
        """How often each run began."""
        return Counter(x for x, _ in self.lines("begun"))

    def ended(self) -> Counter[int]:
        return Counter(x for (x,) in self.lines("ended"))

    def kernel(self, x: int) -> psutil.Process:
        """The kernel of a run that has begun and waits."""
        return psutil.Process(until(lambda: next((pid for y, pid in self.lines("begun") if y == x), None)))

    def folders(self) -> list[str]:
        """What counts or could be taken for it: all that stands in the folder of runs but for locks and failures."""
        return sorted(path.name for path in self.out.iterdir() if path.name not in (".locks", "failed"))

    def finished(self) -> list[int]:
        """The runs whose record is whole and says ok."""
        found = [finished(self.out, name) for name in self.folders()]
        return sorted(int(record["parameters"]["x"]) for record in found if record is not None)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.open("all")
    for sweep in stage.started:
        if sweep.poll() is None:
            sweep.kill()
        sweep.wait()
        if sweep.stdout is not None:
            sweep.stdout.close()


def dead(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_killed_goes_on_where_it_was(stage: Stage, how: signal.Signals) -> None:
    stage.grid(3)
    stage.open(1)
    sweep = stage.start()
    kernel = stage.kernel(2)
    sweep.send_signal(how)
    status, said = stage.done(sweep)
    until(lambda: dead(kernel))  # nothing goes on without its sweep
    assert stage.finished() == [1] and stage.ended() == {1: 1}
    assert not list((stage.out / "failed").glob("*"))  # a run that was stopped has not failed
    if how == signal.SIGINT:
        assert status == 130 and "the same command goes on" in said and "Traceback" not in said
    stage.open("all")
    status, said = stage.done(stage.start())
    assert (status, "3 runs: 2 executed, 1 were finished, 0 failed." in said) == (0, True), said
    assert stage.finished() == [1, 2, 3] and len(stage.folders()) == 3  # nothing half-written is left
    assert stage.begun() == {1: 1, 2: 2, 3: 1} and stage.ended() == {1: 1, 2: 1, 3: 1}
    assert "0 executed, 3 were finished" in stage.done(stage.start())[1]
    assert sum(stage.ended().values()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["kernel", "papermill"])
def test_a_run_that_is_killed_has_failed_and_stops_no_other(stage: Stage, victim: str) -> None:
    stage.grid(3)
    stage.open(1, 3)
    sweep = stage.start()
    kernel = stage.kernel(2)
    (kernel if victim == "kernel" else kernel.parents()[0]).kill()
    status, said = stage.done(sweep)
    until(lambda: dead(kernel))
    assert status == 1 and "3 runs: 2 executed, 0 were finished, 1 failed; see" in said, said
    assert "failed book x=2" in said and "killed" in said
    assert stage.finished() == [1, 3] and stage.ended() == {1: 1, 3: 1}
    (failure,) = (stage.out / "failed").iterdir()
    assert records.read(failure / "record.json")["status"] == "failed"
    stage.open("all")
    status, said = stage.done(stage.start())
    assert (status, "3 runs: 1 executed, 2 were finished, 0 failed." in said) == (0, True), said
    assert stage.finished() == [1, 2, 3] and len(stage.folders()) == 3
    assert not list((stage.out / "failed").iterdir()) and stage.begun() == {1: 1, 2: 2, 3: 1}


@pytest.mark.slow
def test_two_sweeps_on_one_folder_share_the_work(stage: Stage) -> None:
    stage.grid(4)
    sweeps = [stage.start(), stage.start()]
    until(lambda: len(stage.begun()) == 2)  # both are at work, and not at the same
    stage.open("all")
    for status, said in map(stage.done, sweeps):
        assert status == 0 and "4 runs: " in said and "0 failed." in said, said
    assert stage.begun() == stage.ended() == {1: 1, 2: 1, 3: 1, 4: 1}
    assert stage.finished() == [1, 2, 3, 4] and len(stage.folders()) == 4
    assert not (stage.out / "failed").exists()


@pytest.mark.slow
def test_a_corrupted_record_is_named_and_kept_and_its_run_done_again(stage: Stage) -> None:
    stage.grid(2)
    stage.open("all")
    assert stage.done(stage.start())[0] == 0
    victim = stage.out / stage.folders()[0]
    torn = (victim / "record.json").read_bytes()[:100]
    (victim / "record.json").write_bytes(torn)
    status, said = stage.done(stage.start())
    assert status == 0 and "1 executed, 1 were finished" in said, said
    assert f"{victim} does not hold a valid record" in said
    assert (stage.out / "corrupt" / f"{victim.name}-1" / "record.json").read_bytes() == torn
    assert stage.finished() == [1, 2]


@pytest.fixture
def address() -> Iterator[str]:
    """A Dask scheduler without workers yet."""
    with LocalCluster(n_workers=0, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def worker(address: str) -> subprocess.Popen[bytes]:
    """A worker process on loopback that nobody starts again."""
    words = ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
    search = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, *words],
        env=os.environ | {"PYTHONPATH": search},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_what_a_killed_worker_of_a_cluster_was_at_is_taken_up_by_the_other(stage: Stage, address: str) -> None:
    stage.grid(4)
    workers = [worker(address), worker(address)]
    try:
        sweep = stage.start("--scheduler", address)
        until(lambda: len(stage.begun()) == 2)  # one run waits on each
        x, pid = stage.lines("begun")[0]
        kernel = psutil.Process(pid)
        victim = kernel.parents()[1]  # kernel, papermill, worker
        assert victim.pid in [w.pid for w in workers]
        victim.kill()
        until(lambda: dead(kernel))  # its run holds nothing any more
        stage.open("all")
        status, said = stage.done(sweep)
        assert status == 0 and "4 runs: 4 executed, 0 were finished, 0 failed." in said, said
        assert stage.begun() == {run: 2 if run == x else 1 for run in range(1, 5)}
        assert stage.ended() == {1: 1, 2: 1, 3: 1, 4: 1}
        assert stage.finished() == [1, 2, 3, 4]
        status, said = stage.done(stage.start("--scheduler", address))
        assert status == 0 and "4 runs: 0 executed, 4 were finished, 0 failed." in said, said
        assert sum(stage.ended().values()) == 4
    finally:
        for process in workers:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_run_that_kills_its_workers_is_given_up_and_the_others_go_on(stage: Stage) -> None:
    import dask

    stage.grid(2, ("import psutil\nif x == 1:\n    psutil.Process().parents()[1].kill()\n    time.sleep(600)",))
    stage.open("all")
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
            status, said = stage.done(stage.start("--scheduler", cluster.scheduler_address))
    assert status == 1 and "1 executed, 0 were finished, 1 failed" in said, said
    assert "failed book x=1" in said and "every worker that took it up died" in said
    assert stage.finished() == [2]
