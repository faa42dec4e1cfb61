"""The parameter files: right names and types, and a budget that can be had offline."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import grid

import amp_tutorial as amp
from amp_tutorial import cli
from amp_tutorial.files.downloads import KNOWN
from amp_tutorial.files.paths import ROOT
from amp_tutorial.runs import requirements as needs
from amp_tutorial.runs import sweep, workload
from amp_tutorial.scale import peak_memory as peaks

PRESETS = sorted((amp.DATA / "presets").glob("*.yaml"))
WANTED = {
    "ci", "smollm2-20", "t4", "paper-llama-7b-20", "paper-llama-2-7b-30", "paper-phi-1_5-30", "paper-phi-2",
    "transact-llama-2-7b-paper", "transact-llama-2-7b-script",
}  # fmt: skip
PUBLISHED = {
    "huggyllama/llama-7b": 6_738_415_616,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "NousResearch/Llama-2-7b-hf": 6_738_415_616,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/phi-2": 2_779_683_840,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "smollm2-135m": 134_515_008,
}  # sources and their grades: data/configs.yaml


def defaults() -> dict[str, Any]:
    """Of the reproduction notebook: the assignments in its parameters cell."""
    source = (ROOT / "notebooks" / "source" / "reproduce.py").read_text(encoding="utf-8")
    cell = source.split('# %% tags=["parameters"]')[1].split("\n# %%")[0]
    found = {}
    for line in ast.parse(cell).body:
        assert isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        found[line.targets[0].id] = ast.literal_eval(line.value)
    return found


DEFAULTS = defaults()


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: budgets are to be had before anything is."""
    monkeypatch.setenv("AMP_TUTORIAL_MODELS", str(tmp_path))
    needs._needs.cache_clear()


def test_all_are_there() -> None:
    assert {path.stem for path in PRESETS} == WANTED


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_names_and_types_are_those_of_the_notebook(path: Path) -> None:
    found = read(path)
    assert found["preset"] == path.stem
    for name, value in found.items():
        assert type(value) is type(DEFAULTS[name]), name
    head = path.read_text(encoding="utf-8").partition("preset:")[0].splitlines()
    assert len(head) >= 3 and all(line.startswith("# ") and len(line) <= 120 for line in head)
    assert "Hardware: " in "\n".join(head)


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_have_the_published_number_of_parameters(name: str) -> None:
    config, said = needs.configuration_of(name)
    assert peaks.shadow(config, torch.float16).num_parameters() == PUBLISHED[name] and "data/configs" in said[0]
    assert set(needs.stored_configurations()) == set(PUBLISHED)


ALWAYS = ("ci", "paper-llama-2-7b-30")  # a budget of a large model takes seconds
BUDGETS = [path if path.stem in ALWAYS else grid(path)[0] for path in PRESETS]


@pytest.mark.parametrize("path", BUDGETS, ids=lambda path: path.stem)
def test_every_budget_can_be_had_offline(path: Path) -> None:
    told = amp.needs_of(DEFAULTS | read(path), speed=1e13)
    print(told)
    size = torch.finfo(getattr(torch, told.given["dtype"])).bits // 8
    assert told.weights == size * told.parameters[0] and told.parameters[1] < told.parameters[0]
    assert min(told.peaks.values()) > size * told.parameters[1]
    assert told.peak < 80 * 2**30, "one GPU of 80 GB is enough for all of them"
    assert (told.download > size * told.parameters[0] / 2) == ("/" in told.model or told.model in KNOWN)


def told(name: str) -> needs.Needs:
    return amp.needs_of(DEFAULTS | read(amp.DATA / "presets" / f"{name}.yaml"), speed=2e13)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("paper-llama-2-7b-30", pytest.approx((1 - 0.3003) * 6_738_415_616, rel=1e-4)),
        *grid(
            ("paper-llama-7b-20", pytest.approx((1 - 0.2102) * 6_738_415_616, rel=1e-4)),
            ("transact-llama-2-7b-paper", pytest.approx(1.269e9, rel=1e-3)),
            ("transact-llama-2-7b-script", pytest.approx(2.54e9, rel=2e-3)),
        ),
    ],
)
def test_llama_2_7b_is_cut_as_the_papers_say(name: str, left: Any) -> None:
    found = told(name)
    assert found.parameters == (6_738_415_616, left)
    assert found.weights == 2 * 6_738_415_616, "13.48 GB"


def test_a_t4_is_enough_for_its_preset_in_both_precisions() -> None:
    """15 GiB can be used of its 16 GB; a product of its matrices at 20 TFLOP/s is assumed."""
    found = told("t4")
    found.check(needs.Has("cuda", 15 * 2**30, 2**40, 2**40))
    assert found.given["dtype"] == "float16" and 0.5 * 3600 < found.seconds < 1.5 * 3600


def test_a_laptop_is_enough_for_its_preset() -> None:
    assert told("smollm2-20").peak < 6 * 2**30 and told("ci").peak < 2**30


def test_without_a_gpu_the_time_of_a_preset_for_one_is_not_that_of_this_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half precision takes a CPU without it some 40,000 times as long as a GPU: that would be 172 years."""

    def timed(*_: Any) -> float:
        raise AssertionError("this machine was timed")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(workload, "matmul_speed", timed)
    needs = amp.needs_of(DEFAULTS | read(amp.DATA / "presets" / "paper-llama-2-7b-30.yaml"))
    assert 3600 < needs.seconds < 24 * 3600
    assert "TFLOP at 40% of 312 TFLOP/s, of an A100 80 GB, as its data sheet says; there is no GPU here" in str(needs)
    assert cli.main(["run", "--preset", "paper-llama-2-7b-30", "--dry-run"]) == 0
    assert "there is no GPU here" in capsys.readouterr().out
    text, seconds = sweep.cost(needs.given)
    assert "h on an A100 80 GB, as its data sheet says; there is no GPU here" in text
    assert "Not on this machine: device='cuda' is not there" in text
    assert seconds == needs.seconds


def test_what_runs_here_is_timed_here_in_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def timed(size: int, repeats: int, dtype: torch.dtype, device: str) -> float:
        asked.append((dtype, device))
        return 1e12

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(workload, "matmul_speed", timed)
    workload._timed.cache_clear()
    assert workload.speed_of("bfloat16", "auto") == workload.Speed(1e12, "") == workload.speed_of("bfloat16", "cpu")
    assert asked == [(torch.bfloat16, "cpu")], "once"
    workload._timed.cache_clear()
