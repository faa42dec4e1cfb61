"""The reproduction notebook: what it may be asked, and the whole of it on every embedded model."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from helpers import TRAINED

import amp_tutorial as amp
from amp_tutorial import cli
from amp_tutorial.files import NOTEBOOKS
from amp_tutorial.runs import parameter_values, parameters
from amp_tutorial.runs import record as records
from amp_tutorial.runs.parameter_values import CHOICES, LEAST, sensible
from amp_tutorial.runs.parameters import parameters_of

NOTEBOOK = NOTEBOOKS / "reproduce.ipynb"
KNOWN = parameters_of(NOTEBOOK)
DEFAULTS = {name: p.default for name, p in KNOWN.items()}


def test_every_parameter_has_help_and_goes_into_the_record() -> None:
    assert all(p.help for p in KNOWN.values())
    cells = [c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    (call,) = [
        node.value
        for cell in cells
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "settings"
    ]
    assert isinstance(call, ast.Call) and [k.arg for k in call.keywords] == [
        ast.unparse(k.value) for k in call.keywords
    ]
    assert {k.arg for k in call.keywords} == set(KNOWN)
    assert set(CHOICES) | set(LEAST) <= set(KNOWN)


def test_the_defaults_and_all_presets_without_a_download_are_sensible() -> None:
    sensible(DEFAULTS)
    sensible(DEFAULTS | parameters.preset("ci"))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (dict(fidelity="offical"), "fidelity='offical' must be one of 'clean', 'official'"),
        (dict(repair="yes"), "repair='yes' must be one of"),
        (dict(dtype="fp16"), "dtype='fp16' must be one of"),
        (dict(criterion="apm"), "apm"),
        (dict(window=1), "window=1 must be at least 2"),
        (dict(items=-4), "items=-4 must be at least 0"),
        (dict(calibration=0), "calibration=0 must be at least 1"),
        (dict(ratio=1.5), "ratio=1.5 must be at least 0 and less than 1"),
        (dict(ratio=0.3, heads=4), "say either a ratio"),
        (dict(ratio=0.0), "say either a ratio"),
        (dict(shots=4), "shots=4 needs heads or neurons"),
        (dict(fidelity="official", repair="solve"), "has no repair"),
        (dict(rate=0.0), "rate=0.0 must be more than 0"),
        (dict(tasks="tiny_tol"), "Unknown task 'tiny_tol'; the nearest are tiny_tool"),
        (dict(task_folder="gone", tasks="mine"), "No folder of tasks 'gone'"),
        (dict(calibration_text="gone.txt"), "No text source 'gone.txt'"),
        (dict(recovery_text="alpaca"), "alpaca is neither cached"),
        (dict(perplexity_text="wikitext2", local_copies="gone"), "gone holds no wikitext2"),
    ],
)
def test_what_it_cannot_be_asked_is_one_sentence(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        sensible(DEFAULTS | given)
    assert "\n" not in str(caught.value)


def test_tasks_without_their_data_are_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    files = dict(data_files=dict(test="gone.jsonl"))
    task: dict[str, Any] = dict(task="mine", dataset_path="json", dataset_kwargs=files)
    task |= dict(
        test_split="test", output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="a", doc_to_target=0
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    asked = DEFAULTS | dict(tasks="mine", task_folder=str(tmp_path))
    sensible(asked)
    with pytest.raises(ValueError, match="The data of mine are not to be had"):
        parameter_values.at_hand(asked)
    with pytest.raises(ValueError, match="alpaca is neither cached"):
        parameter_values.at_hand(DEFAULTS | dict(recovery_text="alpaca"))
    parameter_values.at_hand(DEFAULTS)


def test_nothing_is_fetched_before_the_budget_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def rows(source: str, split: str) -> list[dict[str, str]]:
        read.append(source)
        return [{"text": "a"}]

    monkeypatch.setattr(parameter_values, "rows", rows)
    monkeypatch.setattr(parameter_values.constants, "HF_HUB_OFFLINE", False)
    asked = DEFAULTS | dict(calibration_text="alpaca", recovery_text="tinyworld", perplexity_text="wikitext2")
    parameter_values._readable.cache_clear()
    sensible(asked)
    sensible(asked)
    assert read == ["tinyworld"], "once for all runs of a sweep"
    parameter_values._readable.cache_clear()
    monkeypatch.setattr(parameter_values.constants, "HF_HUB_OFFLINE", True)
    sensible(asked)
    assert read[1:] == ["alpaca", "wikitext2", "tinyworld"], "without a network the cache is all there is"


@pytest.mark.lessons
@pytest.mark.slow
@pytest.mark.parametrize("model", TRAINED)
def test_it_runs_with_the_preset_of_continuous_integration(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--preset", "ci", "-p", f"model={model}", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()  # no terminal: one a stage, with the time left
    assert re.fullmatch(r"measure dense: \d+ s, roughly .+ left", next(x for x in lines if x.startswith("measure")))
    assert re.fullmatch(r"measure tuned: \d+ s", lines[-1])
    (path,) = tmp_path.glob("*/record.json")
    record = records.read(path)
    assert record["status"] == "ok" and record["schema"] == 2 and record["identity"] == path.parent.name
    assert record["parameters"]["model"] == model and record["parameters"]["preset"] == "ci"
    assert set(record["parameters"]) == set(KNOWN)
    metrics = record["metrics"]
    assert metrics["parameters removed"]["value"] == pytest.approx(0.30, abs=0.005)
    for stage in ("dense", "untuned", "tuned"):
        assert metrics[f"{stage}/perplexity"]["low"] < metrics[f"{stage}/perplexity"]["high"]
        assert {f"{stage}/{task}" for task in amp.TASKS} <= metrics.keys()
        assert metrics[f"{stage}/mean accuracy"]["stderr"] > 0
    assert metrics["dense/perplexity"]["value"] < metrics["untuned/perplexity"]["value"]
    assert [s["name"] for s in record["stages"]] == [
        "data", "load", "measure dense", "score", "cut", "measure untuned", "recover", "measure tuned",
    ]  # fmt: skip
    assert all(s["peak_memory_bytes"] > 0 for s in record["stages"])
    assert record["model"]["files"]["model.safetensors"] and record["calibration"]["sha256"]
    assert set(record["data"]) == {"calibration_text", "recovery_text", "perplexity_text", "task_folder", "tasks"} - {
        name for name in ("task_folder",) if not record["parameters"][name]
    }
    nb = nbformat.read(path.parent / "notebook.ipynb", as_version=4)
    shown = [
        o["data"]["application/json"]
        for c in nb.cells
        for o in c.get("outputs", [])
        if "application/json" in o.get("data", {})
    ]
    assert len(shown) == 1 and shown[0]["metrics"] == json.loads(path.read_text())["metrics"], "its own output holds it"


@pytest.mark.lessons
@pytest.mark.slow
def test_the_official_choices_and_shots_are_said_in_the_record(tmp_path: Path) -> None:
    quick = ["-p", "tasks=none", "-p", "measure_dense=false", "-p", "recovery=none", "--out", str(tmp_path)]
    assert cli.main(["run", "--preset", "ci", "-p", "fidelity=official", *quick]) == 0
    (path,) = tmp_path.glob("*/record.json")
    official = records.read(path)
    assert official["notes"]["fidelity"]["texts"] == "the first 50 of the source"
    assert official["calibration"]["samples"] == 50
    shots = ["-p", "shots=2", "-p", "ratio=0", "-p", "heads=4", "-p", "criterion=transact"]
    assert cli.main(["run", "--preset", "ci", *shots, *quick]) == 0
    (other,) = set(tmp_path.glob("*/record.json")) - {path}
    assert records.read(other)["notes"]["widths"]["heads"] == 4


def test_over_budget_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = amp.needs_of(DEFAULTS | {"batch": 10**6, "window": 4096}, speed=1e12)
    with pytest.raises(amp.OverBudget, match=r"Short of .* of memory on cpu .*a smaller batch"):
        found.check(amp.has(DEFAULTS | {"device": "cpu"}))
