"""One JSON record per run: what was asked, what ran it, and what came out."""

import json
import platform
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .checkpoint import MODELS, SUMS
from .data import DATA, sha256

SCHEMA = 1
PACKAGES = ("amp-tutorial", "torch", "transformers", "peft", "lm-eval", "datasets", "numpy")


class Record:
    """Fill while running, write at the end.

    Metrics are value, interval (95 %), unit and sample size; whatever else belongs to a run goes into `notes`.
    """

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        self.name = name
        self.parameters = dict(parameters)
        self.metrics: dict[str, dict[str, Any]] = {}
        self.signature: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self._started = time.time()

    def metric(
        self,
        name: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        unit: str = "",
        n: int | None = None,
    ) -> None:
        """Add one measured number; `low` and `high` bound its 95 % interval."""
        self.metrics[name] = dict(value=float(value), low=low, high=high, unit=unit, n=n)

    def data(self, status: str) -> dict[str, Any]:
        model = str(self.parameters.get("model", ""))
        sums = MODELS / model / SUMS
        return dict(
            schema=SCHEMA,
            name=self.name,
            status=status,
            parameters=self.parameters,
            metrics=self.metrics,
            signature=self.signature,
            notes=self.notes,
            seconds=round(time.time() - self._started, 2),
            peak_memory_bytes=peak_memory(),
            device=device_name(),
            threads=torch.get_num_threads(),
            python=platform.python_version(),
            versions={p: v for p in PACKAGES if (v := _version(p))},
            model_sha256=sha256(sums) if model and sums.is_file() else None,
            data_sha256=sha256(*sorted((DATA / "tasks").glob("*.jsonl")), *sorted((DATA / "world").glob("*.jsonl"))),
        )

    def write(self, path: str | Path, status: str = "ok") -> Path:
        """Write the record beside its place and move it there."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        beside.write_text(json.dumps(self.data(status), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
        return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory() -> int:
    """Peak memory so far in bytes: allocated on the GPU if one is used, else resident in this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage gives bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}"
