"""Operations against closed formulas and a real pass, the cache against a real one, energy by a tracker of our own."""

import logging
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, Shape, equal, tiny, weights
from transformers import LlamaConfig

import amp_tutorial as amp

LLAMA_2_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, dtype="float16"
)


@pytest.mark.parametrize("shape", [Shape(groups=2, group_size=2), Shape(layers=3, hidden=40, neurons=17)])
@pytest.mark.parametrize(("length", "batch"), [(1, 1), (32, 1), (9, 3)])
def test_flops_of_a_llama_are_the_closed_formula(shape: Shape, length: int, batch: int) -> None:
    found = amp.flops(tiny(shape), length, batch)
    query, shared = shape.heads * shape.head_dim, shape.groups * shape.head_dim
    linear = 2 * shape.hidden * (query + shared) + 3 * shape.hidden * shape.neurons
    head = 259 * shape.hidden

    def closed(tokens: int, seen: int) -> int:
        products = 2 * tokens * (shape.layers * (linear + 2 * seen * query) + head)
        return batch * products + tokens * shape.head_dim  # the angles are one outer product, whatever the batch

    assert found.prefill == pytest.approx(closed(length, length), abs=batch * length * shape.head_dim)
    assert found.decode == pytest.approx(closed(1, length + 1), abs=batch * shape.head_dim)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_flops_without_weights_are_those_of_a_real_pass(shape: Shape) -> None:
    model = tiny(shape)
    before = weights(model)
    assert amp.flops(model, 32).prefill == 2 * 32 * amp.size(model, 32).macs_per_token
    assert equal(weights(model), before)


def test_flops_agree_with_the_estimate() -> None:
    """The estimate is of the decoder layers, and of a causal kernel, which does half of the attention."""
    length, estimate = 512, amp.estimate(LLAMA_2_7B, length=512)
    macs = estimate.macs_per_token + 32 * length * 4096 + 32000 * 4096
    assert amp.flops(LLAMA_2_7B, length).prefill == pytest.approx(2 * length * macs, rel=1e-6)


def test_a_cut_model_needs_fewer_operations() -> None:
    model = tiny()
    small = amp.prune(model, amp.keep(model, amp.score(model, [], "random"), heads=2, neurons=12)).model
    dense, cut = amp.flops(model, 16), amp.flops(small, 16)
    assert cut.prefill < dense.prefill and cut.decode < dense.decode
    assert amp.kv_cache_bytes(small, 16) == amp.kv_cache_bytes(model, 16) / 2


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_the_cache_is_as_large_as_a_real_one(shape: Shape) -> None:
    """Sliding windows (six tokens in some of these models) included."""
    model = tiny(shape)
    cache = model(input_ids=torch.zeros((2, 9), dtype=torch.long), use_cache=True).past_key_values
    attending = [layer for layer in cache.layers if hasattr(layer, "keys")]
    held = sum(t.numel() * t.element_size() for layer in attending for t in (layer.keys, layer.values))
    assert amp.kv_cache_bytes(model, 9, batch=2) == held


def test_the_cache_of_llama_2_7b() -> None:
    assert amp.kv_cache_bytes(LLAMA_2_7B, 4096) == 2 * 32 * 4096 * 4096 * 2  # 2 GiB in float16
    assert amp.kv_cache_bytes(LLAMA_2_7B, 10, dtype=torch.float32) == 2 * 32 * 4096 * 10 * 4


@pytest.mark.parametrize(("length", "batch"), [(0, 1), (4, 0)])
def test_nothing_to_count_is_refused(length: int, batch: int) -> None:
    for count in (amp.flops, amp.kv_cache_bytes):
        with pytest.raises(ValueError, match=f"^{'batch' if length else 'length'}=0 must be at least 1"):
            count(tiny(), length, batch)


HARDWARE = {
    ("RAM()", "CPU(Cpu Load)"): (False, "processor estimated from load and rated power"),
    ("RAM()", "CPU(Xeon > 85W [generic])"): (False, "processor estimated from rated power (TDP) alone"),
    ("RAM()", "CPU(Intel Rapl)", "GPU(…)"): (True, "processor measured by RAPL, GPU measured by its driver"),
    ("AppleSiliconChip (M1 > CPU)", "AppleSiliconChip (M1 > GPU)"): (True, "processor measured by PowerMetrics"),
}


class Tracker:
    """Notes what it is told and uses 2 kWh, wherever the grid."""

    made: "list[Tracker]" = []
    hardware: tuple[str, ...] = ("RAM()", "CPU(Cpu Load)")

    def __init__(self, **settings: Any) -> None:
        self.settings, self.calls, self._conf = settings, list[str](), {"hardware": list(self.hardware)}
        self.made.append(self)

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")
        kg = 2 * self.settings["force_carbon_intensity_g_co2e_kwh"] / 1000
        self.final_emissions_data = SimpleNamespace(energy_consumed=2.0, emissions=kg, duration=3.0)


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Tracker]:
    package: Any = ModuleType("codecarbon")
    package.input = ModuleType("codecarbon.input")
    package.OfflineEmissionsTracker = Tracker
    table = {"BRA": dict(carbon_intensity=98.0, country_name="Brazil", year=2023), "XXX": {}}
    package.input.DataSource = lambda: SimpleNamespace(get_global_energy_mix_data=lambda: table)
    monkeypatch.setitem(sys.modules, "codecarbon", package)
    monkeypatch.setitem(sys.modules, "codecarbon.input", package.input)
    monkeypatch.setattr(Tracker, "made", [])
    return Tracker


@pytest.mark.parametrize("hardware", HARDWARE)
def test_energy_says_how_much_and_how_it_is_known(
    tracker: type[Tracker], monkeypatch: pytest.MonkeyPatch, hardware: tuple[str, ...]
) -> None:
    monkeypatch.setattr(tracker, "hardware", hardware)
    with amp.energy(country="BRA") as used:
        assert used.kwh == 0
    assert (used.kwh, used.grams, used.seconds, used.factor) == (2.0, pytest.approx(196.0), 3.0, 98.0)
    measured, method = HARDWARE[hardware]
    assert used.measured == measured and method in used.method
    assert "98 g/kWh (Brazil 2023, codecarbon)" in str(used) and method in str(used)
    [made] = tracker.made
    assert made.calls == ["start", "stop"] and made.settings["output_methods"] == []


def test_energy_with_a_factor_of_the_users(tracker: type[Tracker]) -> None:
    with amp.energy(factor=50) as used:
        pass
    assert (used.grams, used.factor, used.grid) == (pytest.approx(100.0), 50, "as given")


def test_an_error_inside_ends_the_tracking(tracker: type[Tracker]) -> None:
    with pytest.raises(KeyError), amp.energy(factor=50) as used:
        raise KeyError
    assert tracker.made[0].calls == ["start", "stop"] and used.kwh == 2.0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "either country"),
        (dict(country="BRA", factor=1.0), "either country"),
        (dict(factor=-1.0), "must not be negative"),
        (dict(country="Brazil"), "No grid for country='Brazil'"),
        (dict(country="XXX"), "No grid for country='XXX'"),
    ],
)
def test_energy_without_one_grid_is_refused(tracker: type[Tracker], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence), amp.energy(**settings):
        pass
    assert tracker.made == []


def test_energy_without_codecarbon_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(ImportError, match="pip install codecarbon"), amp.energy(factor=1.0):
        pass


def test_codecarbon_itself_quietly_without_network_or_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("codecarbon")

    def refuse(*_: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    with amp.energy(country="BRA") as used:
        torch.randn(500, 500) @ torch.randn(500, 500)
    assert used.kwh > 0 and used.seconds > 0 and used.factor > 0
    assert used.grams == pytest.approx(used.kwh * used.factor)
    assert "processor" in used.method and used.grid.startswith("Brazil")
    assert list(tmp_path.iterdir()) == [] and "".join(capfd.readouterr()) == ""
    assert logging.getLogger().level != logging.CRITICAL  # only its own voice is lowered
