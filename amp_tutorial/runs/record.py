"""One JSON record per run: what was asked, what ran it, and what came out. Nothing here imports torch.

`record.schema.json` says what a record holds; every record is checked against it when written and when read.
"""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ..files import DATA
from ..files.atomic import write_json
from ..files.checkpoints import located, made_from
from ..files.downloads import sha256
from ..measure import intervals
from .this_machine import GPU, device_name, peak_memory, reset_peak, uses_gpu, versions

SCHEMA = 2
# Raise it whenever the same parameters would give another number: a table never mixes two silently, and it is part of
# the name of a run.
PROTOCOL = 1

STAGES = "AMP_TUTORIAL_STAGES"  # names a file that gets a line for each stage that is over

_SCHEMA = Path(__file__).with_name("record.schema.json")


class Record:
    """Fill while running, write at the end.

    Metrics are value, interval (95 %), standard error, unit and sample size; whatever else belongs to a run goes into
    `notes`. What only the caller knows is set as an attribute: `commit` (of a hub model), `seeds`, `dtype`, `device`,
    `calibration` (`source`, `sha256`, `samples`), `texts` (SHA-256 of each further text or task file), `energy`,
    `notebook_sha256`, `identity` and, of a failed run, `error` (`cell`, `message`).
    """

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        self.name = name
        self.parameters = dict(parameters)
        self.metrics: dict[str, dict[str, Any]] = {}
        self.signature: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self.seeds: dict[str, int] = {k: v for k, v in parameters.items() if k == "seed" and isinstance(v, int)}
        self.stages: list[dict[str, Any]] = []
        self.dtype: str | None = str(parameters["dtype"]) if "dtype" in parameters else None
        self.device: str | None = None
        self.commit: str | None = None
        self.calibration: dict[str, Any] | None = None
        self.texts: dict[str, str] = {}
        self.energy: dict[str, Any] | None = None
        self.notebook_sha256: str | None = None
        self.identity: str | None = None
        self.error: dict[str, str] | None = None
        self.written: dict[str, Any] | None = None
        self._started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
        self._peak = 0
        self._open: list[dict[str, Any]] = []

    def metric(
        self,
        name: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        unit: str = "",
        n: int | None = None,
        stderr: float | None = None,
        **each: Any,
    ) -> None:
        """Add one measured number; `low` and `high` bound its 95 % interval.

        A number that is not finite cannot be read as JSON: it becomes null, and `notes["not finite"]` says what it was.

        Args:
            each: what the number is the mean of, see `perplexity` and `accuracy`: "windows", "items", or "of".
        """
        given = dict(value=value, low=low, high=high, stderr=stderr)
        numbers = {key: None if v is None else float(v) for key, v in given.items()}
        if wild := {key: str(v) for key, v in numbers.items() if v is not None and not math.isfinite(v)}:
            self.notes.setdefault("not finite", {})[name] = wild
        self.metrics[name] = (
            {key: None if key in wild else v for key, v in numbers.items()} | dict(unit=unit, n=n) | each
        )

    def perplexity(self, found: Any, stage: str = "") -> None:
        """Add what `amp.perplexity` gave, with the summed loss (six decimals) and the tokens of every window."""
        losses, tokens = found.windows
        finite = all(map(math.isfinite, losses))
        each: dict[str, Any] = dict(windows=[[round(loss, 6) for loss in losses], list(tokens)]) if finite else {}
        sure = intervals.perplexity([found.windows]) if finite else None
        ends = (sure.low, sure.high) if sure else (None, None)
        self.metric(f"{stage}perplexity", found.value, *ends, n=found.tokens, **each)
        self.notes["perplexity protocol"] = found.protocol

    def accuracy(self, found: Any, stage: str = "") -> None:
        """Add what `amp.accuracy` gave: of every task which items were right, and the mean with what it is "of"."""
        for name, m in found.items():
            each: dict[str, Any] = dict(items="".join(m.items.values())) if m.items else {}
            each |= {"chance": found.chance[name]} if name in found.chance else {}
            self.metric(f"{stage}{name}", m.value, m.low, m.high, n=m.n, stderr=m.stderr, **each)
        self.notes["tasks protocol"] = found.protocol
        mean = found.mean
        of: dict[str, Any] = dict(of=[f"{stage}{task}" for task in mean.items]) if mean.items else {}
        self.metric(f"{stage}mean accuracy", mean.value, mean.low, mean.high, n=mean.n, stderr=mean.stderr, **of)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside, and take its peak memory; `memory` says of what. Stages may hold others.

        The running peak is started anew where that can be done: on a GPU, and on Linux (by /proc/self/clear_refs).
        """
        self._see_peak()
        stage: dict[str, Any] = {"name": name, "seconds": 0.0, "peak_memory_bytes": 0, "memory": reset_peak()}
        self._open.append(stage)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._see_peak()
            self._open.remove(stage)
            stage["seconds"] = round(time.perf_counter() - started, 4)
            stage["memory"] = GPU if uses_gpu() else stage["memory"]
            self.stages.append(stage)
            if told := os.environ.get(STAGES):  # whoever started the run wants to know
                with open(told, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": name, "seconds": stage["seconds"]}) + "\n")

    def _see_peak(self) -> int:
        """Raise the peaks of the run and of all open stages to the running peak, before anyone resets it."""
        now = peak_memory()
        self._peak = max(self._peak, now)
        for stage in self._open:
            stage["peak_memory_bytes"] = max(stage["peak_memory_bytes"], now)
        return self._peak

    def data(self, status: str) -> dict[str, Any]:
        """The record as plain data; a model's files are hashed only once the run is over, as they can be large."""
        model = str(self.parameters.get("model", ""))
        sums = DATA / "models" / model / "SHA256.json"
        torch = sys.modules.get("torch")
        clock, started = self._started
        return dict(
            schema=SCHEMA,
            protocol=PROTOCOL,
            name=self.name,
            status=status,
            error=self.error,
            parameters=self.parameters,
            metrics=self.metrics,
            seeds=self.seeds,
            signature=self.signature,
            notes=self.notes,
            started=started,
            seconds=round(time.perf_counter() - clock, 2),
            stages=self.stages,
            peak_memory_bytes=self._see_peak(),
            energy=self.energy,
            device=self.device or device_name(str(self.parameters.get("device", ""))),
            dtype=self.dtype,
            threads=torch.get_num_threads() if torch else None,
            python=platform.python_version(),
            versions=versions(),
            model=self._model(model, status),
            model_sha256=sha256(sums) if model and sums.is_file() else None,
            calibration=self.calibration,
            data=self.texts,
            data_sha256=sha256(*sorted((DATA / "tasks").glob("*.jsonl")), *sorted((DATA / "world").glob("*.jsonl"))),
            notebook_sha256=self.notebook_sha256,
            identity=self.identity,
        )

    def _model(self, name: str, status: str) -> dict[str, Any]:
        revision = self.parameters.get("revision") or None
        folder, commit = _folder_of(name, self.commit or revision) if name else (None, None)
        found: dict[str, Any] = dict(name=name or None, revision=revision, commit=self.commit or commit, files={})
        if folder and status != "running":
            found |= dict(files=files_of(folder), made_from=made_from(folder))
        return found

    def write(self, path: str | Path, status: str = "ok") -> Path:
        """Check the record, write it beside its place and move it there.

        Raises:
            OSError: it can't be written; an earlier file in its place is as it was.
            ValueError: it is not a valid record.
        """
        data = self.data(status)
        check(data, str(path))
        self.written = data
        return write_json(path, data)

    def show(self) -> None:
        """Display the record as last written, so that an executed notebook holds it."""
        from IPython.display import display

        found = json.loads(json.dumps(self.written or self.data("running"), allow_nan=False))
        line = f"Record of {self.name}: {found['status']}, {len(self.metrics)} metrics, {found['seconds']:.0f} s."
        display({"application/json": found, "text/plain": line}, raw=True)


def read(path: str | Path) -> dict[str, Any]:
    """A record of schema 1 or 2, checked.

    Raises:
        ValueError: no file, no JSON, or no valid record; the sentence names the file and what is wrong.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number, parse_float=_finite)
    except OSError as error:
        raise ValueError(f"The record {path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The record {path} cannot be read as JSON: {error}.") from error
    check(found, str(path))
    return dict(found)


def _no_number(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


def check(found: Any, name: str) -> None:
    """Refuse what is no valid record.

    Raises:
        ValueError: with the name and the first thing that is wrong.
    """
    from jsonschema.exceptions import best_match

    number = found.get("schema") if isinstance(found, dict) else None
    if type(number) is not int or number not in (1, SCHEMA):
        raise ValueError(f"The record {name} is of schema {number!r}; this version reads 1 and {SCHEMA}.")
    if error := best_match(_validator(number).iter_errors(found)):
        where = "".join(f", {part}" for part in error.absolute_path)
        raise ValueError(f"The record {name}{where}: {error.message}.")
    for metric, found_here in found["metrics"].items():
        why, value = _contradiction(found_here, found["metrics"]), found_here["value"]
        if metric.rpartition("/")[2] == "perplexity" and value is not None and value < 1:
            why = f"its value is {value}, but no perplexity is below 1"
        if why:
            raise ValueError(f"The record {name}, {metric}: {why}.")


def _contradiction(metric: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """What is wrong with a metric whose value is not the mean of its own windows, items or parts; empty if nothing."""
    if "windows" in metric:
        losses, tokens = metric["windows"]
        if len(losses) != len(tokens) or sum(tokens) != metric["n"]:
            return f"its windows hold {len(losses)} losses and {sum(tokens)} tokens, not {metric['n']}"
        mean = intervals.raised(sum(losses) / sum(tokens))
    elif "items" in metric:
        if len(metric["items"]) != metric["n"]:
            return f"it has {len(metric['items'])} items, not {metric['n']}"
        mean = metric["items"].count("1") / len(metric["items"])
    elif "of" in metric:
        if lacking := [name for name in metric["of"] if "items" not in others.get(name, {})]:
            return f"there are no items of {lacking[0]}"
        mean = sum(others[name]["value"] for name in metric["of"]) / len(metric["of"])
    else:
        return ""
    value = math.inf if metric["value"] is None else metric["value"]  # as a number that is not finite was written
    same = math.isclose(value, mean, rel_tol=1e-6, abs_tol=1e-12)
    return "" if same else f"its value is {metric['value']}, but what it is the mean of gives {mean:.9g}"


def amend(path: str | Path, **changes: Any) -> dict[str, Any]:
    """Change entries of a record on disk, such as `identity` or `status`, and return it.

    Raises:
        OSError: it can't be written.
        ValueError: it is not a valid record, before or after.
    """
    found = read(path) | changes
    check(found, str(path))
    write_json(path, found)
    return found


@cache
def _validator(number: int) -> Any:
    import jsonschema

    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema["$defs"][f"schema {number}"] | {"$defs": schema["$defs"]})


def _folder_of(name: str, revision: str | None) -> tuple[Path | None, str | None]:
    """Where the files of a model are on this machine, if they are, and the commit if it came from the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).is_dir():
        return Path(name), None
    try:
        place = located(name)
        if place.exists():
            return place, None
        found = try_to_load_from_cache(place.as_posix(), "config.json", revision=revision)
    except (ValueError, HFValidationError):  # no model, or no hub id
        return None, None
    return (Path(found).parent, Path(found).parent.name) if isinstance(found, str) else (None, None)


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a model that says what it is: JSON, safetensors, tokenizer files; or of a GGUF file."""
    if folder.is_file():
        return {folder.name: file_sha256(folder)}
    kinds = (".json", ".safetensors", ".model", ".txt", ".jinja")
    return {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in kinds}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    seen = path.stat()
    return _of_file(path, seen.st_size, seen.st_mtime_ns)


@cache
def _of_file(path: Path, size: int, changed: int) -> str:
    """Hashed once as long as size and time of change are the same."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
