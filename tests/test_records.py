"""Records: one JSON per run that says what was asked, what ran it and what came out."""

import importlib.metadata
import json
from pathlib import Path

import pytest

import amp_tutorial as amp
from amp_tutorial.checkpoint import MODELS
from amp_tutorial.data import sha256


def written(record: amp.Record, path: Path, **settings: str) -> dict:
    return json.loads(record.write(path, **settings).read_text(encoding="utf-8"))


def test_a_record_says_everything(tmp_path: Path) -> None:
    record = amp.Record("05_evaluation", dict(model="tiny-llama", ratio=0.3, seed=7))
    record.metric("accuracy", 0.61, low=0.58, high=0.64, unit="share", n=2400)
    record.metric("count", 3)
    found = written(record, tmp_path / "records" / "a.json")
    assert (found["name"], found["status"]) == ("05_evaluation", "ok")
    assert found["parameters"] == dict(model="tiny-llama", ratio=0.3, seed=7)
    assert found["metrics"]["accuracy"] == dict(value=0.61, low=0.58, high=0.64, unit="share", n=2400)
    assert found["metrics"]["count"] == dict(value=3.0, low=None, high=None, unit="", n=None)
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(found["versions"]) >= {"torch", "transformers", "peft", "lm-eval"}
    assert found["model_sha256"] == sha256(MODELS / "tiny-llama" / "SHA256.json")
    assert found["seconds"] >= 0 and found["peak_memory_bytes"] > 50e6 and found["threads"] >= 1
    assert found["device"] and found["python"] and found["schema"] == 1


def test_the_data_hash_is_that_of_all_tasks_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(amp.Record("a", {}), tmp_path / "a.json")["data_sha256"]
    assert first == written(amp.Record("b", {}), tmp_path / "b.json")["data_sha256"]
    monkeypatch.setattr("amp_tutorial.records.DATA", tmp_path)
    seen = {first}
    for folder in ("tasks", "world"):
        (tmp_path / folder).mkdir()
        for content in ("{}\n", "{ }\n"):
            (tmp_path / folder / "a.jsonl").write_text(content)
            seen.add(written(amp.Record("a", {}), tmp_path / "a.json")["data_sha256"])
    assert len(seen) == 5


def test_a_failed_run_says_so_and_models_of_ones_own_have_no_hash(tmp_path: Path) -> None:
    found = written(amp.Record("a", dict(model="owner/name")), tmp_path / "a.json", status="failed")
    assert found["status"] == "failed" and found["model_sha256"] is None


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    old = written(amp.Record("old", {}), tmp_path / "a.json")
    with pytest.raises(TypeError):
        amp.Record("new", dict(model=object())).write(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == old
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
