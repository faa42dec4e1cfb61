"""Who executes the runs of a sweep: threads with a child process each on this machine, or workers of a Dask cluster.

Both take a `Job` by `submit` and give it back with its `Outcome` by `take`, as they come; `slots` is how many they
execute at once. They keep nothing of a run that was taken back. Placing, and trying again, is Dask's work.
"""

import os
import socket
import subprocess
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from .execute import Job, Outcome, execute
from .functions import is_function
from .package_code import code_sha256

ANSWER = 10  # seconds for a scheduler to answer
PATIENCE = 60  # seconds for a first worker to come


class Workers(ABC):
    """What a sweep needs of those who execute its runs."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """Runs executed at the same time."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Have a run executed soon."""

    @abstractmethod
    def take(self, timeout: float) -> tuple[Job, Outcome] | None:
        """A run that has come to an end; None if there was none for `timeout` seconds."""

    @abstractmethod
    def close(self) -> None:
        """Begin nothing more."""


class Local(Workers):
    """Runs on this machine, `jobs` at a time; by default one for each GPU, or one.

    Where there are several GPUs each of several jobs sees one. The cores are shared out, unless OMP_NUM_THREADS says
    otherwise: on a CPU runs side by side slow each other.
    """

    def __init__(self, out: str | Path, limit: float | None = None, jobs: int | None = None) -> None:
        devices = gpus()
        self._slots = jobs or len(devices) or 1
        self._out, self._limit = out, limit
        self._todo: SimpleQueue[Job | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[Job, Outcome]] = SimpleQueue()
        for slot in range(self.slots):
            # A daemon does not keep the process from ending, and a run's child process ends with this process.
            Thread(target=self._work, args=(environment(slot, self.slots, devices),), daemon=True).start()

    @property
    def slots(self) -> int:
        return self._slots

    def _work(self, settings: Mapping[str, str]) -> None:
        while (job := self._todo.get()) is not None:
            try:
                outcome = execute(job, self._out, self._limit, settings)
            except Exception as error:  # or the sweep would wait for it for ever
                outcome = Outcome(job.id, "failed", error=f"{type(error).__name__}: {error}")
            self._done.put((job, outcome))

    def submit(self, job: Job) -> None:
        self._todo.put(job)

    def take(self, timeout: float) -> tuple[Job, Outcome] | None:
        try:
            return self._done.get(timeout=timeout)
        except Empty:
            return None

    def close(self) -> None:
        for _ in range(self.slots):
            self._todo.put(None)


def gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them; counted without torch, which would occupy them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in map(str.strip, visible.split(",")) if name and not name.startswith("-")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    return [str(number) for number in range(count)]


def environment(slot: int, slots: int, devices: list[str]) -> dict[str, str]:
    """What the runs of one of `slots` places have in their environment."""
    settings = {}
    if "OMP_NUM_THREADS" not in os.environ:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings["OMP_NUM_THREADS"] = str(max(1, usable // slots))
    if slots > 1 and len(devices) > 1:
        settings["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return settings


class Cluster(Workers):
    """Runs on the workers of a Dask scheduler, one for each of their threads.

    If workers declare a resource GPU (`dask worker … --resources GPU=1`), runs that may use one are given one each.

    Raises:
        ValueError: Dask is not installed; no scheduler or worker answers; a worker has another amp_tutorial than this
            machine, or does not see its folders.
    """

    def __init__(self, address: str, out: str | Path, limit: float | None = None, patience: float = PATIENCE) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError("--scheduler needs Dask: pip install dask distributed dask-jobqueue") from error
        self._address, self._out, self._limit = address, str(Path(out).absolute()), limit
        self._gpu = self._warned = False
        answer = min(patience, ANSWER)
        print(f"Asking the Dask scheduler at {address}, for up to {answer:g} seconds.", flush=True)
        found: list[Any] = []  # the client, or what went wrong

        def ask() -> None:
            try:
                found.append(Client(address, timeout=answer, set_as_default=False))
            except BaseException as error:  # what is no scheduler may answer with anything
                found.append(error)

        asking = threading.Thread(target=ask, daemon=True)  # who listens and says nothing would be waited for
        asking.start()
        asking.join(answer + 2)
        if not found or isinstance(found[0], BaseException):
            raise ValueError(
                f"No Dask scheduler answers at {address}; start one with `dask scheduler`, and give its address."
            ) from (found[0] if found else None)
        self._client = found[0]
        self._jobs: dict[Any, Job] = {}
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._token = Path(self._out, ".locks", f"{uuid.uuid4().hex}.shared")  # whoever sees it shares the folder
        try:
            try:
                self._client.wait_for_workers(1, timeout=patience)
            except TimeoutError as error:
                raise ValueError(
                    f"The Dask scheduler at {address} has no workers; start some with `dask worker {address}`."
                ) from error
            self._token.parent.mkdir(parents=True, exist_ok=True)
            self._token.touch()
            self._compare()
        except BaseException:
            self.close()
            raise

    def _compare(self) -> None:
        # Dask counts GPUs and does not say which: the runs of a worker with two would both take the first.
        counts = self._client.run_on_scheduler(
            lambda dask_scheduler: {name: w.resources.get("GPU", 0) for name, w in dask_scheduler.workers.items()}
        )
        if several := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"The worker {several[0]} declares several GPUs; start one for each, with GPU=1.")
        # A lambda is sent whole, so it also arrives where the package is missing.
        answers = self._client.run(
            lambda token: __import__("importlib").import_module("amp_tutorial.runs.workers").looked(token),
            str(self._token),
            on_error="return",
        )
        mine = looked(str(self._token))[0]
        for worker, theirs in answers.items():
            if isinstance(theirs, BaseException):
                raise ValueError(f"The worker {worker} cannot import amp_tutorial: install it there ({theirs}).")
            if theirs[0] != mine:
                raise ValueError(f"The worker {worker} has another amp_tutorial than this machine: install the same.")
            if not theirs[1]:
                raise ValueError(f"The worker {worker} does not see {self._out}: {SHARED}.")

    @property
    def slots(self) -> int:
        try:
            workers = self._client.run_on_scheduler(
                lambda dask_scheduler: [(w.nthreads, "GPU" in w.resources) for w in dask_scheduler.workers.values()]
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConnectionError(self._gone) from error
        threads, self._gpu = sum(threads for threads, _ in workers), any(gpu for _, gpu in workers)
        if not threads and not self._warned:
            print(f"No worker is left at {self._address}; waiting for one.")
        self._warned = not threads
        return max(1, threads)

    @property
    def _gone(self) -> str:
        return f"The Dask scheduler at {self._address} is gone; what is finished is kept, the same command goes on."

    def submit(self, job: Job) -> None:
        wants = self._gpu and str(job.parameters.get("device", "auto")) != "cpu"
        future = self._client.submit(
            remote,
            job,
            self._out,
            self._limit,
            [str(self._token), *needed(job)],
            pure=False,
            resources={"GPU": 1} if wants else None,
        )
        self._jobs[future] = job
        future.add_done_callback(self._done.put)

    def take(self, timeout: float) -> tuple[Job, Outcome] | None:
        try:
            future = self._done.get(timeout=timeout)
        except Empty:
            return None
        job = self._jobs.pop(future)
        try:
            return job, future.result()  # on its way it may get lost: its worker dies, and so do all that do it again
        except CancelledError as error:
            raise ConnectionError(self._gone) from error
        except Exception as error:
            name = type(error).__name__
            reason = "every worker that took it up died" if name == "KilledWorker" else f"{name}: {error}"
            return job, Outcome(job.id, "failed", error=" ".join(f"the cluster gave it up, {reason}".split()))

    def close(self) -> None:
        self._token.unlink(missing_ok=True)
        self._client.close(timeout=10)


SHARED = "a cluster needs one file system that all its machines share, and paths that are the same on all of them"


def needed(job: Job) -> list[str]:
    """The files and folders of this machine that a run names."""
    strings = [value for value in job.parameters.values() if isinstance(value, str) and os.sep in value]
    notebook = [] if is_function(job.notebook) else [job.notebook]
    return [*notebook, *filter(os.path.exists, strings)]


def remote(job: Job, out: str, limit: float | None, files: list[str]) -> Outcome:
    """`execute`, on a worker that must see these files and folders."""
    missing = next((path for path in files if not os.path.exists(path)), None)
    if missing is not None:
        return Outcome(job.id, "failed", error=f"{missing} is not there on {socket.gethostname()}: {SHARED}")
    return execute(job, out, limit)


def looked(token: str) -> tuple[str, bool]:
    """The hash of this package's code, and whether this machine sees a file."""
    return code_sha256(), os.path.exists(token)
