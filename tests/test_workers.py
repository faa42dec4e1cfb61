"""Runs are given their share of the machine, or go to a cluster; what is wrong with a cluster is one sentence."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, LocalCluster

from amp_tutorial.runs import workers
from amp_tutorial.runs.execute import Job, Outcome
from amp_tutorial.runs.workers import Cluster, Local, environment, gpus

ENOUGH = 60.0  # seconds; nothing here takes more than a few


def job(number: int = 0, **parameters: Any) -> Job:
    return Job(__file__, parameters, f"{number:016x}", f"run {number}")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `execute` is given, in its place."""
    seen: list[Any] = []

    def fake(job: Job, out: Any, limit: Any = None, environment: Any = None) -> Outcome:
        seen.append((job.id, str(out), limit, environment))
        return Outcome(job.id, "ok")

    monkeypatch.setattr(workers, "execute", fake)
    return seen


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, listed: str | None) -> None:
    """A machine where nvidia-smi lists this, or is not there."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        tool = folder / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '{listed}'\n")
        tool.chmod(0o755)


@pytest.mark.parametrize(
    "listed, wanted",
    [
        (None, []),
        ("", []),
        ("GPU 0: A (UUID: x)\\nGPU 1: A (UUID: y)\\n", ["0", "1"]),
        ("GPU 0: A (UUID: x)\\n  MIG 1g.10gb Device 0: (UUID: z)\\n", ["0"]),
    ],
)
def test_gpus_are_counted_without_torch(
    listed: str | None, wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, listed)
    assert gpus() == wanted
    for visible, some in {
        "": [],
        "-1": [],
        "3": ["3"],
        "0, 2": ["0", "2"],
        "GPU-ab,GPU-c": ["GPU-ab", "GPU-c"],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus() == some


def test_each_of_several_places_sees_one_gpu_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10)), raising=False)
    assert environment(0, 1, []) == {"OMP_NUM_THREADS": "10"}
    assert environment(0, 1, ["0", "1"]) == {"OMP_NUM_THREADS": "10"}  # alone it may have them all
    given = [environment(slot, 3, ["5", "7"]) for slot in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in given] == ["5", "7", "5"]
    assert {each["OMP_NUM_THREADS"] for each in given} == {"3"}
    assert environment(0, 20, ["0"]) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert environment(0, 2, []) == {}


def test_as_many_runs_at_once_as_there_are_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[Any]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for visible, jobs, slots in (("", None, 1), ("0,1,2", None, 3), ("0,1,2", 2, 2), ("", 2, 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        local = Local(tmp_path, 5.0, jobs)
        assert local.slots == slots
        local.submit(job(slots))
        assert local.take(ENOUGH) == (job(slots), Outcome(job(slots).id, "ok"))
        assert local.take(0.01) is None
        local.close()
    assert seen[0] == (job(1).id, str(tmp_path), 5.0, {})
    assert seen[1][3]["CUDA_VISIBLE_DEVICES"] in ("0", "1", "2")


def test_an_error_that_nobody_expected_is_a_failed_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> Outcome:
        raise RuntimeError("broken")

    monkeypatch.setattr(workers, "execute", broken)
    local = Local(tmp_path, None, 1)
    for number in range(2):  # the place goes on after the first
        local.submit(job(number))
        assert local.take(ENOUGH) == (job(number), Outcome(job(number).id, "failed", error="RuntimeError: broken"))
    local.close()


@pytest.fixture
def dask(request: pytest.FixtureRequest) -> Iterator[str]:
    """A scheduler with one worker of two threads, all in this process."""
    resources = getattr(request, "param", None)
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, resources=resources
    ) as cluster:
        yield cluster.scheduler_address


def through(address: str, out: Path, *jobs: Job, limit: float | None = None) -> dict[str, Outcome]:
    cluster = Cluster(address, out, limit, patience=ENOUGH)
    try:
        assert cluster.slots == 2
        for each in jobs:
            cluster.submit(each)
        found = [cluster.take(ENOUGH) for _ in jobs]
        assert cluster.take(0.01) is None
        return {got[0].id: got[1] for got in found if got is not None}
    finally:
        cluster.close()


def test_a_cluster_executes_and_leaves_nothing_else(dask: str, seen: list[Any], tmp_path: Path) -> None:
    jobs = [job(number) for number in range(5)]
    assert through(dask, tmp_path, *jobs, limit=7.0) == {each.id: Outcome(each.id, "ok") for each in jobs}
    assert sorted(seen) == [(each.id, str(tmp_path), 7.0, None) for each in jobs]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("dask", [{"GPU": 1}], indirect=True)
def test_runs_that_may_use_a_gpu_are_given_one_each(dask: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from distributed import get_worker

    taken: dict[str, dict[str, float]] = {}

    def fake(job: Job, out: Any, limit: Any = None, environment: Any = None) -> Outcome:
        worker = get_worker()
        taken[job.id] = dict(worker.state.tasks[worker.get_current_task()].resource_restrictions or {})
        return Outcome(job.id, "ok")

    monkeypatch.setattr(workers, "execute", fake)
    through(dask, tmp_path, job(1), job(2, device="cuda:1"), job(3, device="cpu"))
    assert taken == {job(1).id: {"GPU": 1}, job(2).id: {"GPU": 1}, job(3).id: {}}


@pytest.mark.parametrize("dask", [{"GPU": 2}], indirect=True)
def test_a_worker_with_several_gpus_cannot_tell_its_runs_which(dask: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="declares several GPUs; start one for each, with GPU=1"):
        Cluster(dask, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "status, error, wanted",
    [
        ("finished", RuntimeError("lost\non its way"), "the cluster gave it up, RuntimeError: lost on its way"),
        ("finished", CancelledError("x"), None),
        ("cancelled", CancelledError("x"), None),
    ],
)
def test_a_result_that_is_lost_on_its_way_stops_no_other(
    status: str, error: Exception, wanted: str | None, dask: str, seen: list[Any], tmp_path: Path
) -> None:
    """The worker died after the run and before its outcome was fetched."""
    cluster = Cluster(dask, tmp_path, patience=ENOUGH)
    try:
        cluster.submit(job(1))
        future = cluster._done.get(timeout=ENOUGH)
        lost: Any = type("Lost", (), {"status": status, "result": lambda self: _raise(error)})()
        cluster._jobs[lost] = cluster._jobs.pop(future)
        cluster._done.put(lost)
        if wanted is None:
            with pytest.raises(ConnectionError, match="is gone; what is finished is kept"):
                cluster.take(ENOUGH)
        else:
            assert cluster.take(ENOUGH) == (job(1), Outcome(job(1).id, "failed", error=wanted))
        assert not cluster._jobs
    finally:
        cluster.close()


def _raise(error: Exception) -> None:
    raise error


def test_without_declared_gpus_none_is_asked_for(dask: str, seen: list[Any], tmp_path: Path) -> None:
    assert through(dask, tmp_path, job(1, device="cuda"))[job(1).id].status == "ok"


def test_an_error_of_the_cluster_is_a_failed_run(dask: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from distributed import KilledWorker

    def fake(job: Job, out: Any, limit: Any = None, environment: Any = None) -> Outcome:
        died: Any = SimpleNamespace(address="tcp://x")
        raise KilledWorker(job.id, died, 3) if job.name == "run 1" else RuntimeError("two\nlines")

    monkeypatch.setattr(workers, "execute", fake)
    found = through(dask, tmp_path, job(1), job(2))
    assert {outcome.status for outcome in found.values()} == {"failed"}
    assert found[job(1).id].error == "the cluster gave it up, every worker that took it up died"
    assert found[job(2).id].error == "the cluster gave it up, RuntimeError: two lines"


def test_what_a_worker_does_not_see_needs_a_shared_file_system(seen: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    asked = job(1, model=str(folder), other="owner/name", text="tiny", ratio=0.5)
    assert workers.needed(asked) == [__file__, str(folder)]  # the hub's owner/name is no folder here
    assert workers.remote(asked, str(tmp_path), None, workers.needed(asked)).status == "ok" and len(seen) == 1
    folder.rmdir()
    found = workers.remote(asked, str(tmp_path), None, [__file__, str(folder)])
    assert found.status == "failed" and len(seen) == 1
    assert f"{folder} is not there on " in found.error and "one file system that all its machines share" in found.error


def test_no_dask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="needs Dask: pip install dask distributed"):
        Cluster("tcp://127.0.0.1:1", tmp_path)


def test_who_listens_and_says_nothing_is_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amp_tutorial.runs.workers.ANSWER", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"No Dask scheduler answers at {address}"):
            Cluster(address, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x"])
def test_no_scheduler(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"No Dask scheduler answers at {address}; start one") as error:
        Cluster(address, tmp_path, patience=0.5)
    assert "\n" not in str(error.value)


def test_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler may take its time to answer; a worker that never comes need not be waited for."""
    wait = Client.wait_for_workers
    monkeypatch.setattr(Client, "wait_for_workers", lambda client, n, timeout: wait(client, n, timeout=0.1))
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(ValueError, match="has no workers; start some with `dask worker"):
            Cluster(cluster.scheduler_address, tmp_path, patience=ENOUGH)
    assert not list(tmp_path.iterdir())


def test_a_worker_with_other_code_or_another_disk(dask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter(range(2))
    with monkeypatch.context() as patch:
        patch.setattr(workers, "looked", lambda token: (str(next(versions)), True))
        with pytest.raises(ValueError, match="has another amp_tutorial than this machine: install the same"):
            Cluster(dask, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", lambda *_, **__: None)
        with pytest.raises(ValueError, match="does not see .*a cluster needs one file system"):
            Cluster(dask, tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "amp_tutorial.runs.workers", None)
        with pytest.raises(ValueError, match="cannot import amp_tutorial: install it"):
            Cluster(dask, tmp_path)


def test_a_scheduler_that_goes_away(seen: list[Any], tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as local:
        cluster = Cluster(local.scheduler_address, tmp_path, patience=ENOUGH)
        cluster._client._timeout = 0.1  # what is gone need not be waited for
    with pytest.raises(ConnectionError, match="is gone; what is finished is kept, the same command goes on"):
        assert cluster.slots == 2
    cluster.close()


def test_jobs_and_outcomes_are_plain() -> None:
    """They travel to other machines and into files."""
    assert json.loads(json.dumps(vars(job(3, ratio=0.1)))) == vars(job(3, ratio=0.1))
    assert json.loads(json.dumps(vars(Outcome("a", "ok")))) == vars(Outcome("a", "ok"))
