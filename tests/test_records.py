"""Records: one JSON per run that says what was asked, what ran it and what came out."""

import errno
import importlib.metadata
import json
import math
import mmap
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

import amp_tutorial as amp
from amp_tutorial.files import ROOT
from amp_tutorial.files.checkpoints import MODELS, sha256
from amp_tutorial.measure import intervals
from amp_tutorial.reports import measured as from_metrics
from amp_tutorial.runs import record as records
from amp_tutorial.runs import this_machine

SCHEMAS = json.loads((Path(records.__file__).parent / "record.schema.json").read_text(encoding="utf-8"))["$defs"]
REQUIRED = SCHEMAS["schema 2"]["required"]


def written(record: amp.Record, path: Path, **settings: str) -> dict:
    found = records.read(record.write(path, **settings))
    assert found == json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_record_says_everything(tmp_path: Path) -> None:
    record = amp.Record("05_evaluation", dict(model="tiny-llama", ratio=0.3, seed=7, dtype="float32"))
    record.metric("accuracy", 0.61, low=0.58, high=0.64, unit="share", n=2400, stderr=0.015)
    record.metric("count", 3)
    found = written(record, tmp_path / "records" / "a.json")
    assert (found["name"], found["status"], found["error"]) == ("05_evaluation", "ok", None)
    assert found["parameters"] == dict(model="tiny-llama", ratio=0.3, seed=7, dtype="float32")
    assert found["metrics"]["accuracy"] == dict(value=0.61, low=0.58, high=0.64, stderr=0.015, unit="share", n=2400)
    assert found["metrics"]["count"] == dict(value=3.0, low=None, high=None, stderr=None, unit="", n=None)
    assert found["seeds"] == {"seed": 7} and found["dtype"] == "float32" and found["energy"] is None
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(found["versions"]) >= {"torch", "transformers", "peft", "lm-eval"}
    assert found["model_sha256"] == sha256(MODELS / "tiny-llama" / "SHA256.json")
    assert found["seconds"] >= 0 and found["peak_memory_bytes"] > 50e6 and found["threads"] >= 1
    assert found["device"] and found["python"]
    assert (found["schema"], found["protocol"]) == (records.SCHEMA, records.PROTOCOL)


LOSSES, TOKENS = (6.0, 4.123456789, 9.0), (3, 2, 5)


def measured(path: Path) -> dict:
    """A record with a perplexity and an accuracy of two tasks, as it was written."""
    record = amp.Record("a", {})
    record.perplexity(amp.Perplexity(math.exp(sum(LOSSES) / 10), 10, "by hand", (LOSSES, TOKENS)), "tuned/")
    tasks = {"x": amp.Measured(0.75, 0.2, 4, {"x": "1101"}), "y": amp.Measured(1.0, 0.0, 4, {"y": "1111"})}
    record.accuracy(amp.Accuracy(tasks | {"y acc_norm": amp.Measured(0.5, 0.3, 4, {"y": "1100"})}), "tuned/")
    return written(record, path)


def test_a_record_holds_every_window_and_every_item(tmp_path: Path) -> None:
    found = measured(tmp_path / "a.json")
    metrics = found["metrics"]
    assert list(metrics) == [f"tuned/{name}" for name in ("perplexity", "x", "y", "y acc_norm", "mean accuracy")]
    text, mean = metrics["tuned/perplexity"], metrics["tuned/mean accuracy"]
    assert text["windows"] == [[6.0, 4.123457, 9.0], [3, 2, 5]] and text["n"] == 10
    sure = intervals.perplexity([(LOSSES, TOKENS)])
    assert (text["low"], text["high"]) == (sure.low, sure.high) and 0 < text["low"] < text["value"] < text["high"]
    assert metrics["tuned/x"]["items"] == "1101" and metrics["tuned/y acc_norm"]["items"] == "1100"
    assert mean["of"] == ["tuned/x", "tuned/y"] and mean["value"] == 0.875
    assert metrics["tuned/y"]["high"] == 1 and metrics["tuned/y"]["low"] == pytest.approx(0.5101, abs=1e-4)
    assert found["notes"]["perplexity protocol"] == "by hand"


def test_a_perplexity_that_no_float_holds_keeps_its_windows(tmp_path: Path) -> None:
    record = amp.Record("a", {})
    record.perplexity(amp.Perplexity(math.inf, 3, "by hand", ((800.0, 1600.0), (1, 2))))
    found = written(record, tmp_path / "a.json")["metrics"]["perplexity"]
    assert found["value"] is None and found["windows"] == [[800.0, 1600.0], [1, 2]]


def test_a_perplexity_that_is_not_finite_has_no_windows(tmp_path: Path) -> None:
    record = amp.Record("a", {})
    record.perplexity(amp.Perplexity(math.nan, 3, "by hand", ((1.0, math.nan), (1, 2))))
    found = written(record, tmp_path / "a.json")["metrics"]["perplexity"]
    assert found == dict(value=None, low=None, high=None, stderr=None, unit="", n=3)


@pytest.mark.parametrize(
    ("metric", "change", "says"),
    [
        ("perplexity", dict(value=9.0), "its value is 9.0, but what it is the mean of gives 6.7689"),
        ("perplexity", dict(value=-9.0), "its value is -9.0, but no perplexity is below 1"),
        ("perplexity", dict(windows=[[1.0], [10, 0]]), "its windows hold 1 losses and 10 tokens, not 10"),
        ("perplexity", dict(windows=[[1.0], [9]]), "its windows hold 1 losses and 9 tokens, not 10"),
        ("perplexity", dict(windows=[[1.0], [0.5]]), "0.5 is not of type 'integer'"),
        ("perplexity", dict(windows=[[1.0]]), "is too short"),
        ("x", dict(items="110"), "it has 3 items, not 4"),
        ("x", dict(items="1100"), "its value is 0.75, but what it is the mean of gives 0.5"),
        ("x", dict(items="11x1"), "'11x1' does not match"),
        ("mean accuracy", dict(of=["tuned/z"]), "there are no items of tuned/z"),
        ("mean accuracy", dict(of=["tuned/x"]), "its value is 0.875, but what it is the mean of gives 0.75"),
    ],
    ids="value negative losses tokens halves one-list items right marks nothing others".split(),
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path: Path, metric: str, change: dict, says: str) -> None:
    found = measured(tmp_path / "a.json")
    found["metrics"][f"tuned/{metric}"] |= change
    with pytest.raises(ValueError, match=f"The record a, (metrics, )?tuned/{metric}") as caught:
        records.check(found, "a")
    assert says in str(caught.value)


def test_what_only_the_caller_knows_is_in_the_record_too(tmp_path: Path) -> None:
    record = amp.Record("a", dict(model="owner/name", revision="main"))
    record.commit, record.energy, record.identity = "c0ffee", {"kwh": 0.1}, "0123456789abcdef"
    record.calibration = dict(source="alpaca", sha256="0" * 64, samples=50)
    record.texts, record.notebook_sha256 = {"recovery": "1" * 64}, "2" * 64
    found = written(record, tmp_path / "a.json")
    assert found["model"] == dict(name="owner/name", revision="main", commit="c0ffee", files={})
    assert found["calibration"] == record.calibration and found["data"] == record.texts
    assert (found["energy"], found["identity"], found["notebook_sha256"]) == ({"kwh": 0.1}, record.identity, "2" * 64)


def test_the_files_of_a_model_are_in_the_record_of_a_finished_run(tmp_path: Path) -> None:
    sums = json.loads((MODELS / "tiny-phi" / "SHA256.json").read_text(encoding="utf-8"))
    record = amp.Record("a", dict(model="tiny-phi"))
    assert written(record, tmp_path / "a.json", status="running")["model"]["files"] == {}
    files = written(record, tmp_path / "a.json")["model"]["files"]
    assert {name: files[name] for name in sums} == sums
    (folder := tmp_path / "own").mkdir()
    for content in (b"one", b"other"):
        (folder / "model.safetensors").write_bytes(content)
        os.utime(folder / "model.safetensors", ns=(len(content), len(content)))
        own = written(amp.Record("a", dict(model=str(folder))), tmp_path / "b.json")["model"]
        assert own["files"] == {"model.safetensors": sha256(folder / "model.safetensors")}
        assert own["commit"] is None


def test_a_hub_model_in_the_cache_has_its_commit_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, commit = tmp_path / "models--owner--name", "a" * 40
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit / "config.json").write_text("{}")
    real = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", partial(real, cache_dir=tmp_path))
    model = amp.Record("a", dict(model="owner/name")).data("ok")["model"]
    assert (model["commit"], list(model["files"])) == (commit, ["config.json"])
    other = amp.Record("a", dict(model="owner/name", revision="v1")).data("ok")["model"]
    assert other == dict(name="owner/name", revision="v1", commit=None, files={})


def test_the_data_hash_is_that_of_all_tasks_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(amp.Record("a", {}), tmp_path / "a.json")["data_sha256"]
    assert first == written(amp.Record("b", {}), tmp_path / "b.json")["data_sha256"]
    monkeypatch.setattr("amp_tutorial.runs.record.DATA", tmp_path)
    seen = {first}
    for folder in ("tasks", "world"):
        (tmp_path / folder).mkdir()
        for content in ("{}\n", "{ }\n"):
            (tmp_path / folder / "a.jsonl").write_text(content)
            seen.add(written(amp.Record("a", {}), tmp_path / "a.json")["data_sha256"])
    assert len(seen) == 5


def test_a_failed_run_says_so_and_models_of_ones_own_have_no_hash(tmp_path: Path) -> None:
    record = amp.Record("a", dict(model="owner/name"))
    record.error = dict(cell="x = 1 / 0", message="division by zero")
    found = written(record, tmp_path / "a.json", status="failed")
    assert found["status"] == "failed" and found["model_sha256"] is None and found["error"] == record.error


# Stages


def test_stages_have_seconds_and_a_peak_of_their_own_and_the_run_has_the_largest(tmp_path: Path) -> None:
    record = amp.Record("a", {})
    with record.stage("whole"):
        with record.stage("large"):
            large = mmap.mmap(-1, 200_000_000)  # from the system and back to it; a heap may have had it to spare
            for i in range(0, len(large), mmap.PAGESIZE):
                large[i] = 1
            time.sleep(0.02)
        large.close()
        with record.stage("small"):
            pass
    found = written(record, tmp_path / "a.json")
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert list(stages) == ["large", "small", "whole"]
    peaks = {name: stage["peak_memory_bytes"] for name, stage in stages.items()}
    assert stages["large"]["seconds"] >= 0.02 and stages["whole"]["seconds"] >= stages["large"]["seconds"]
    assert peaks["whole"] >= peaks["large"] and found["peak_memory_bytes"] >= max(peaks.values())
    if stages["small"]["memory"] == this_machine.STAGE:
        assert peaks["small"] < peaks["large"] - 150e6, "what was freed before does not count"


def test_where_the_peak_cannot_be_reset_the_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "_high_water", lambda: None)
    record = amp.Record("a", {})
    with record.stage("a"):
        pass
    assert record.stages[0]["memory"] == this_machine.PROCESS and record.stages[0]["peak_memory_bytes"] > 50e6


def test_a_stage_that_fails_is_there_too() -> None:
    record = amp.Record("a", {})
    with pytest.raises(KeyError), record.stage("a"):
        raise KeyError
    assert [stage["name"] for stage in record.stages] == ["a"] and not record._open


# What is valid

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
MAYBE = st.none() | NUMBERS
PARAMETERS = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.floats(-1e9, 1e9))
METRICS = st.dictionaries(st.text(), st.tuples(NUMBERS, MAYBE, MAYBE, MAYBE, st.none() | st.integers(0, 10**9)))


@given(parameters=PARAMETERS, metrics=METRICS, status=st.sampled_from(("running", "ok", "failed")), key=st.data())
def test_a_record_written_is_valid_and_lacks_nothing(
    tmp_path: Path, parameters: dict[str, Any], metrics: dict[str, Any], status: str, key: st.DataObject
) -> None:
    record = amp.Record("any", parameters)
    for name, (value, low, high, stderr, n) in metrics.items():
        record.metric(name, value, low, high, n=n, stderr=stderr)
    found = written(record, tmp_path / "a.json", status=status)
    assert found["parameters"] == parameters and set(found["metrics"]) == set(metrics)
    lost = key.draw(st.sampled_from(REQUIRED))
    with pytest.raises(ValueError, match="a.json"):
        records.check({k: v for k, v in found.items() if k != lost}, "a.json")


@pytest.mark.parametrize("lost", REQUIRED)
def test_every_entry_is_needed(lost: str) -> None:
    found = amp.Record("a", {}).data("ok")
    del found[lost]
    with pytest.raises(ValueError, match=lost):
        records.check(found, "a.json")


def test_a_number_that_is_not_finite_becomes_null_with_a_note(tmp_path: Path) -> None:
    record = amp.Record("a", {})
    record.metric("perplexity", float("inf"), low=2.0, high=float("nan"))
    found = written(record, tmp_path / "a.json")
    assert (found["metrics"]["perplexity"]["value"], found["metrics"]["perplexity"]["low"]) == (None, 2.0)
    assert found["notes"]["not finite"] == {"perplexity": {"value": "inf", "high": "nan"}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"half', "cannot be read as JSON"),
        ('{"schema": 2, "metrics": {"perplexity": {"value": NaN}}}', "as JSON: it holds NaN, which is no number"),
        ("[]", "schema None"),
        ('{"schema": 3}', "schema 3"),
        ('{"schema": true}', "schema True"),
        ('{"schema": 1, "name": "a", "status": "ok", "parameters": {}}', "'metrics' is a required property"),
        (
            '{"schema": 1, "name": "a", "status": "ok", "parameters": {}, "metrics": {"x": {"value": "1"}}}',
            "metrics, x, value: '1' is not of type",
        ),
        ('{"schema": 1, "name": "a", "status": "done", "parameters": {}, "metrics": {}}', "status: 'done'"),
    ],
)
def test_what_is_no_record_is_refused_in_a_sentence(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="a.json") as caught:
        records.read(path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be read: No such file"):
        records.read(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="b.json cannot be read as JSON"):
        records.read(tmp_path / "b.json")


def test_the_records_of_the_first_schema_are_still_read(tmp_path: Path) -> None:
    metrics = {
        "perplexity": {"value": 2.8, "low": 2.7, "high": 2.9},
        "removed": {"value": 0.3, "low": None, "high": None},
    }
    found = {"schema": 1, "name": "results", "status": "ok", "parameters": {"seed": 0}, "metrics": metrics}
    (tmp_path / "old.json").write_text(json.dumps(found | {"seconds": 12.5}), encoding="utf-8")
    assert records.read(tmp_path / "old.json")["metrics"] == metrics
    assert from_metrics.over([found], "perplexity") == intervals.Interval(2.8, 2.7, 2.9, "windows", 1)


def test_reading_needs_no_torch() -> None:
    code = "import sys; from amp_tutorial import Record; Record('a', {}).data('ok'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


# Writing


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    old = written(amp.Record("old", {}), tmp_path / "a.json")
    with pytest.raises(TypeError):
        amp.Record("new", dict(model=object())).write(tmp_path / "a.json")
    record = amp.Record("new", {})
    record.texts = {"recovery": "no sum"}
    with pytest.raises(ValueError, match="a.json, data, recovery: 'no sum' does not match"):
        record.write(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == old
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = written(amp.Record("old", {}), tmp_path / "a.json")
    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(OSError, match="Could not write .*a.json: No space left on device; .* untouched"):
        amp.Record("new", {}).write(tmp_path / "a.json")
    monkeypatch.undo()
    assert records.read(tmp_path / "a.json") == old
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_place_that_is_no_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Could not write .*a.json: .*file is a file where a folder is needed"):
        amp.Record("new", {}).write(tmp_path / "file" / "a.json")


def test_amending_changes_only_what_is_named_and_refuses_what_is_not_valid(tmp_path: Path) -> None:
    old = written(amp.Record("a", {}), tmp_path / "a.json")
    assert records.amend(tmp_path / "a.json", identity="0123") == old | {"identity": "0123"}
    with pytest.raises(ValueError, match="status"):
        records.amend(tmp_path / "a.json", status="perhaps")
    assert records.read(tmp_path / "a.json") == old | {"identity": "0123"}


def test_a_record_shown_is_the_record_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    record = amp.Record("a", {})
    record.metric("x", 1.0)
    found = written(record, tmp_path / "a.json")
    record.show()
    assert shown[0]["application/json"] == found
    assert shown[0]["text/plain"].startswith("Record of a: ok, 1 metrics")


WINDOWS = """
import builtins, importlib, pkgutil, sys, types
found = builtins.__import__
MISSING = ("resource", "fcntl", "pwd", "grp", "termios")
def as_on_windows(name, globals=None, *rest, **named):
    if name in MISSING and (globals or {})["__name__"].startswith("amp_tutorial"):  # what libraries do is theirs
        raise ImportError(f"Windows has no {name}")
    return found(name, globals, *rest, **named)
builtins.__import__ = as_on_windows
import amp_tutorial.files, amp_tutorial.runs
for package in (amp_tutorial.files, amp_tutorial.runs):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import psutil
from amp_tutorial.runs import record, this_machine
this_machine._high_water = lambda: None  # nor has it /proc
psutil.Process = lambda: types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(peak_wset=12345))
sys.platform = "win32"
made = record.Record("windows", {})
with made.stage("one"):
    pass
assert made.data("ok")["peak_memory_bytes"] == 12345, made.data("ok")
assert made.stages[0]["memory"] == this_machine.PROCESS
"""


def test_windows_has_no_resource_and_records_all_the_same() -> None:
    search = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS], env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
