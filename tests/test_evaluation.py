"""Measurements against hand computations: perplexity, accuracy, size, cache, operations; what timings promise; and
energy by a tracker of our own.

Perturbed items: what changes, what never does, and that a model is measured on just these.
"""

import itertools
import json
import logging
import math
import re
import socket
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, OWN, TEXT, Shape, byte_tokenizer, equal, hooks, logits, tiny, weights
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import amp_tutorial as amp
from amp_tutorial.measure import costs
from amp_tutorial.measure.robustness import NEAR, PERTURBATIONS, perturbed, words_of
from amp_tutorial.measure.tasks import Item

TOKENIZER = byte_tokenizer()
LLAMA_2_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, dtype="float16"
)


def losses(model: PreTrainedModel, ids: list[int]) -> list[float]:
    """-log p of each token after the first, given all before it in `ids`."""
    found = logits(model, [ids])[0].double().log_softmax(-1)
    return [-float(found[t - 1, ids[t]]) for t in range(1, len(ids))]


@pytest.mark.parametrize("stride", [None, 10, 7])
def test_perplexity_by_hand(stride: int | None) -> None:
    """Windows of 31 tokens, BOS and 30 of the text; each token counts once, where it first appears."""
    model, ids = tiny(), TOKENIZER(TEXT)["input_ids"]
    counted: list[float] = []
    for start in range(0, len(ids), stride or 30):
        window = losses(model, [0, *ids[start : start + 30]])
        counted += window[len(counted) - start :]
    assert len(counted) == len(ids)
    found = amp.perplexity(model, TOKENIZER, [TEXT], window=31, stride=stride)
    assert found.value == pytest.approx(math.exp(sum(counted) / len(counted)), rel=1e-5)
    assert found.tokens == len(ids)
    assert "31 tokens" in found.protocol and "BOS" in found.protocol
    assert ("stride = window" if stride is None else f"stride {stride}") in found.protocol


def test_documents_are_kept_apart_and_weigh_by_their_tokens() -> None:
    model, documents = tiny(), ["Ben.", TEXT[:20], "A red kite"]
    each = [losses(model, [0, *TOKENIZER(text)["input_ids"]]) for text in documents]
    total = sum(map(sum, each)) / sum(map(len, each))
    for size in (1, 3):
        found = amp.perplexity(model, TOKENIZER, documents, window=64, batch_size=size)
        assert found.value == pytest.approx(math.exp(total), rel=1e-5)
    first = amp.perplexity(model, TOKENIZER, documents, window=64, limit=1)
    assert first.value == pytest.approx(math.exp(sum(each[0]) / len(each[0])), rel=1e-5)


def test_with_a_large_vocabulary_a_loss_is_exact() -> None:
    """A sum over tens of thousands of words, next to that of the same logits in float64."""
    model = tiny(vocabulary=49_152)
    model.lm_head.weight.data *= 3  # logits that differ, as a trained model's do
    ids = TOKENIZER(TEXT)["input_ids"][:60]
    expected = losses(model, [0, *ids])
    found = amp.perplexity(model, TOKENIZER, [TEXT], window=61, limit=1)
    assert found.windows[0][0] == pytest.approx(sum(expected), abs=5e-4)  # nats, of some 960


def test_a_perplexity_that_no_float_holds_is_infinite() -> None:
    model = tiny()
    model.lm_head.weight.data *= 1e6
    found = amp.perplexity(model, TOKENIZER, [TEXT], window=31)
    sure = amp.interval(found)
    assert found.value == sure.value == sure.low == sure.high == math.inf and found.tokens == len(
        TOKENIZER(TEXT)["input_ids"]
    )


def test_a_single_repeat_is_its_own_median_and_quartiles() -> None:
    for time in amp.latency(tiny(), prompt=4, new=2, repeats=1).values():
        assert 0 < time.low == time.median == time.high
    with pytest.raises(ValueError, match="repeats=0 must be at least 1"):
        amp.latency(tiny(), repeats=0)


def test_the_windows_come_shortest_first_with_their_losses_and_tokens() -> None:
    model, documents = tiny(), [TEXT[:20], "Ben.", "A red kite", "A blue cat"]
    expected = [losses(model, [0, *TOKENIZER(documents[i])["input_ids"]]) for i in (1, 2, 3, 0)]
    for size in (1, 3):
        found = amp.perplexity(model, TOKENIZER, documents, window=64, batch_size=size)
        assert found.windows[0] == pytest.approx([sum(loss) for loss in expected], rel=1e-5)
        assert found.windows[1] == tuple(map(len, expected)) and sum(found.windows[1]) == found.tokens
        assert found.value == pytest.approx(math.exp(sum(found.windows[0]) / found.tokens))
    sure = amp.interval(found)
    assert (sure.value, sure.over, sure.n) == (pytest.approx(found.value), "windows", 4)
    assert sure.low is not None and sure.high is not None and sure.low < found.value < sure.high
    assert "windows=" not in repr(found)


def test_models_are_compared_window_by_window_and_item_by_item() -> None:
    a, b = tiny(seed=0), tiny(seed=1)
    x, y = (amp.perplexity(model, TOKENIZER, [TEXT], window=16) for model in (a, b))
    gap = amp.compare(x, y)
    assert gap.difference == pytest.approx(math.log(x.value / y.value)) and gap.paired and gap.over == "windows"
    assert amp.compare([x, x], [y, x]).difference == pytest.approx(gap.difference / 2)
    right, wrong = (amp.Measured(value, 0.0, 50, {"t": str(int(value)) * 50}) for value in (1.0, 0.0))
    assert amp.compare(right, wrong).clear and amp.compare({3: right}, {3: wrong}).difference == 1
    mixed: Any
    for mixed in ((x, right), ([], x), ([x, right], [y, y])):
        with pytest.raises(ValueError, match="two perplexities, or two accuracies"):
            amp.compare(*mixed)


def test_an_untrained_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    model = tiny()
    model.lm_head.weight.data.zero_()
    assert amp.perplexity(model, TOKENIZER, [TEXT], window=31).value == pytest.approx(259, rel=1e-5)


def test_accuracy_is_slow_scoring() -> None:
    """Highest summed log-likelihood of a space and the choice, after BOS and the prompt: 20 items of two tasks."""
    model, tasks, seen = tiny(), ("tiny_tool", "tiny_fact"), list[list[int]]()
    spy = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.extend(args[0].tolist()))
    opening = byte_tokenizer()
    opening.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found = amp.accuracy(model, opening, tasks, limit=20)
    spy.remove()
    opened = [tuple(row) for row in seen if row[0] == 0]  # prompts, whose answers are read after them
    assert all(row[1] != 0 for row in opened) and len(set(opened)) == len(opened) == 40, (
        "one BOS, each prompt read once"
    )
    for task in tasks:
        answers = []
        for line in (amp.DATA / "tasks" / f"{task}.jsonl").read_text().splitlines()[:20]:
            item = json.loads(line)
            prompt = [0, *TOKENIZER(item["prompt"])["input_ids"]]
            rows = [prompt + TOKENIZER(f" {choice}")["input_ids"] for choice in item["choices"]]
            sums = [sum(losses(model, row)[len(prompt) - 1 :]) for row in rows]
            answers.append(sums.index(min(sums)) == item["answer"])
        right = sum(answers)
        assert found[task].items == {task: "".join(str(int(a)) for a in answers)}
        assert found[task].value == pytest.approx(right / 20) and found[task].n == 20
        error = math.sqrt(right / 20 * (1 - right / 20) / 19)
        assert found[task].stderr == pytest.approx(error)
    assert list(found) == list(tasks)


def test_the_mean_over_tasks_and_its_error() -> None:
    found = amp.Accuracy(a=amp.Measured(0.5, 0.03, 100), b=amp.Measured(0.9, 0.04, 400))
    assert (found.mean.value, found.mean.stderr, found.mean.n) == (pytest.approx(0.7), pytest.approx(0.025), 500)
    assert (found["a"].low, found["a"].high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert found.mean.low > found["a"].low, "the mean is known better than a task of few items"


def test_every_answer_right_leaves_something_open() -> None:
    found = amp.Accuracy(a=amp.Measured(1.0, 0.0, 20, {"a": "1" * 20}), b=amp.Measured(0.5, 0.1, 20, {"b": "01" * 10}))
    assert found["a"].high == 1 and found["a"].low == pytest.approx(0.8389, abs=1e-4)
    assert found.mean.items == {"a": "1" * 20, "b": "01" * 10}
    assert found.mean.interval == amp.interval(found.mean) and found.mean.low < 0.75 < found.mean.high < 1


def test_chance_is_one_over_the_number_of_choices() -> None:
    assert set(amp.TASKS) == {path.stem for path in (amp.DATA / "tasks").glob("*.jsonl")}
    for task, chance in amp.CHANCE.items():
        items = [json.loads(line) for line in (amp.DATA / "tasks" / f"{task}.jsonl").read_text().splitlines()]
        assert {1 / len(item["choices"]) for item in items} == {chance}


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_size_by_hand(shape: Shape) -> None:
    """Every matrix once for each token, but of the experts only those that it is sent to; attention; the head."""
    model, length = tiny(shape), 32
    found = amp.size(model, length)
    anatomy, config = amp.Anatomy.of(model), model.config
    blocks = model.get_submodule(anatomy.family.layers)
    linear = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, nn.Linear | Conv1D | nn.Conv1d))
    for name, weight in blocks.named_parameters():
        if ".experts." in name and weight.ndim == 3:
            linear += weight.numel() // len(weight) * config.num_experts_per_tok
        if name.endswith(("gate.weight", "router.weight")):
            router = blocks.get_submodule(name.removesuffix(".weight"))
            linear += 0 if isinstance(router, nn.Linear) else weight.numel()
    attending = sum(anatomy.layer(i).output is not None for i in range(anatomy.layers))
    attention = attending * 2 * anatomy.heads * anatomy.head_dim * length  # scores, and their mean of values
    macs = linear + attention + config.vocab_size * anatomy.hidden
    if shape.family != "granitemoehybrid":  # what Mamba's state costs depends on its chunks
        assert found.macs_per_token == pytest.approx(macs, rel=2e-3)  # the rotary angles are a product too
    assert found.parameters == model.num_parameters() and found.block_parameters == anatomy.block_parameters
    assert found.bytes == 4 * found.parameters


def test_size_leaves_the_model_alone() -> None:
    model = tiny()
    before, kind = weights(model), model.config._attn_implementation
    amp.size(model)
    assert equal(weights(model), before) and model.config._attn_implementation == kind and hooks(model) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [*EVERY_FAMILY, Shape(groups=2, group_size=3, hidden=36)], ids=[*KNOWN, "llama, two groups of three"]
)
def test_the_cache_has_the_size_said(shape: Shape, dtype: str) -> None:
    """Also where the configuration calls its KV heads by another name, or shares them though heads stay."""
    model = tiny(replace(shape, dtype=dtype))
    cache = model(input_ids=torch.zeros((1, 5), dtype=torch.long), use_cache=True).past_key_values
    attending = [layer for layer in cache.layers if hasattr(layer, "keys")]
    held = sum(t.numel() * t.element_size() for layer in attending for t in (layer.keys, layer.values))
    said = amp.size(model).kv_cache_bytes_per_token
    assert said == held / 5
    one_for_all = shape.family in ("falcon", "gpt_bigcode") or "num_key_value_heads" in OWN.get(shape.family, {})
    if not one_for_all:
        per_head = 2 * len(attending) * shape.head_dim * getattr(torch, dtype).itemsize
        assert said == shape.groups * per_head


def test_a_cut_model_is_smaller_in_every_respect() -> None:
    model = tiny()
    small = amp.prune(model, amp.keep(model, amp.score(model, [], "random"), heads=2, neurons=12)).model
    dense, cut = vars(amp.size(model)), vars(amp.size(small))
    assert all(cut[name] < dense[name] for name in dense)
    assert cut["kv_cache_bytes_per_token"] == dense["kv_cache_bytes_per_token"] / 2


def test_latency_counts_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks once a forward pass: a prefill is one pass, a new token one pass each."""
    model, ticks = tiny(), itertools.count()
    passes = [0]
    model.register_forward_pre_hook(lambda *_: passes.__setitem__(0, next(ticks)))
    monkeypatch.setattr(costs.time, "perf_counter", lambda: float(passes[0]))
    found = amp.latency(model, prompt=6, new=5, repeats=3)
    assert vars(found["prefill"]) == dict(median=1.0, low=1.0, high=1.0)
    assert vars(found["decode"]) == dict(median=1.0, low=1.0, high=1.0)


def test_latency_orders_its_quartiles() -> None:
    for timing in amp.latency(tiny(), prompt=4, new=2, repeats=5).values():
        assert 0 < timing.low <= timing.median <= timing.high


# Operations, the cache and energy


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


ITEMS = [
    json.loads(line)
    for task in amp.TASKS
    for line in (amp.DATA / "tasks" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[::7]
]
items, names = st.sampled_from(ITEMS), st.sampled_from(sorted(PERTURBATIONS))
rates, seeds = st.floats(0, 1), st.integers(0, 5)


def words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text)]


@given(items, names, rates, seeds)
def test_the_same_item_and_seed_give_the_same_prompt_and_leave_all_else(
    item: Item, name: str, rate: float, seed: int
) -> None:
    before = json.dumps(item)
    found = perturbed(item, name, rate, seed)
    assert found == perturbed(json.loads(before), name, rate, seed) and json.dumps(item) == before
    assert {**found, "prompt": ""} == {**item, "prompt": ""}


@given(items, names, seeds)
def test_rate_zero_changes_nothing(item: Item, name: str, seed: int) -> None:
    assert perturbed(item, name, 0, seed) == item


@given(items, names, rates, seeds)
def test_words_of_the_choices_survive(item: Item, name: str, rate: float, seed: int) -> None:
    protected = words_of(item["choices"])
    kept = [Counter(w for w in words(prompt) if w in protected) for prompt in
            (item["prompt"], perturbed(item, name, rate, seed)["prompt"])]  # fmt: skip
    assert kept[0] <= kept[1]  # a typo may make one more by chance


@given(items, rates, seeds)
def test_typos_keep_the_shape_of_every_word(item: Item, rate: float, seed: int) -> None:
    found = perturbed(item, "typos", rate, seed)["prompt"]
    assert [(c.isalpha(), c.isupper()) for c in found] == [(c.isalpha(), c.isupper()) for c in item["prompt"]]


def test_a_typo_is_a_swap_or_a_key_beside_it() -> None:
    seen = set()
    for seed in range(200):
        found = perturbed(dict(prompt="Bring", choices=["no"], answer=0), "typos", 0.15, seed)["prompt"].lower()
        wrong = [i for i in range(5) if found[i] != "bring"[i]]
        if len(wrong) == 1:
            assert found[wrong[0]] in NEAR["bring"[wrong[0]]]
            seen.add("key")
        elif len(wrong) == 2 and sorted(found) == sorted("bring"):
            assert wrong[1] == wrong[0] + 1
            seen.add("swap")
    assert seen == {"key", "swap"}


def test_keys_beside_each_other() -> None:
    assert (set(NEAR["g"]), set(NEAR["q"]), set(NEAR["m"])) == (set("fhtyvb"), set("wa"), set("njk"))
    assert all(a in NEAR[b] for a in NEAR for b in NEAR[a])


@given(items, rates, rates, seeds)
def test_a_higher_rate_drops_what_a_lower_drops(item: Item, a: float, b: float, seed: int) -> None:
    more, fewer = (perturbed(item, "dropped words", r, seed)["prompt"] for r in (max(a, b), min(a, b)))
    assert not Counter(words(more)) - Counter(words(fewer)) and not Counter(words(fewer)) - Counter(
        words(item["prompt"])
    )


@given(items, seeds)
def test_all_words_dropped_leaves_the_protected_and_the_last(item: Item, seed: int) -> None:
    found = words(perturbed(item, "dropped words", 1, seed)["prompt"])
    *before, last = words(item["prompt"])
    assert found == [w for w in before if w in words_of(item["choices"])] + [last]


@given(items, rates, seeds)
def test_shuffling_moves_distractors_alone(item: Item, rate: float, seed: int) -> None:
    before, found = (re.split(r"(?<=\.) ", p) for p in (item["prompt"], perturbed(item, "shuffled distractors", rate, seed)["prompt"]))  # fmt: skip  # noqa: E501
    assert sorted(found) == sorted(before) and found[-1] == before[-1]
    right, others = item["choices"][item["answer"]], [c for i, c in enumerate(item["choices"]) if i != item["answer"]]
    telling = words_of([right]) - words_of(others)
    assert all(a == b for a, b in zip(before, found, strict=True) if telling & set(words(a)))


def test_a_chain_of_sentences_by_hand() -> None:
    item = dict(
        prompt="Al has it. Bo runs. Cy sits. Al is in the barn. It is in the", choices=["barn", "mill"], answer=0
    )
    seen = {perturbed(item, "shuffled distractors", 1, seed)["prompt"] for seed in range(60)}
    assert len(seen) == 6 and all(p.endswith("Al is in the barn. It is in the") for p in seen)


def test_only_two_tasks_have_distractors_to_shuffle() -> None:
    for task in amp.TASKS:
        lines = (amp.DATA / "tasks" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        changed = [perturbed(item, "shuffled distractors", 1) != item for item in map(json.loads, lines)]
        assert any(changed) == (task in ("tiny_chain", "tiny_yesno")), task
        assert all(changed[:20]) or task != "tiny_chain"


def test_each_perturbation_has_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def noted(*args: Any) -> amp.Accuracy:
        seen.extend(change.keywords["rate"] for change in args[6:])
        return amp.Accuracy()

    monkeypatch.setattr(sys.modules["amp_tutorial.measure.robustness"], "accuracy", noted)
    amp.robustness(tiny(), byte_tokenizer(), list(PERTURBATIONS))
    amp.robustness(tiny(), byte_tokenizer(), list(PERTURBATIONS), rate=0)
    assert seen == [0.1, 0.1, 1.0, 0, 0, 0]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_seeds_differ(name: str) -> None:
    for seed in range(2):
        prompts = [[perturbed(i, name, 0.5, s)["prompt"] for i in ITEMS] for s in (seed, seed + 1)]
        assert prompts[0] != prompts[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(perturbation="noise"), "Unknown perturbation 'noise'; choose from typos"),
        (dict(perturbation=("typos", "noise")), "Unknown perturbation 'noise'"),
        (dict(rate=1.5), "rate=1.5 is no probability"),
        (dict(rate=float("nan")), "rate of robustness must be a finite number"),
        (dict(tasks=["piqa"]), "Items can be changed of tiny_tool"),
    ],
)
def test_bad_input(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        amp.robustness(tiny(), byte_tokenizer(), **settings)


def test_the_model_reads_the_perturbed_prompts() -> None:
    """And the clean ones; rate zero gives the clean accuracy again, and several perturbations share it."""
    model, tokenizer, seen = tiny(), byte_tokenizer(), list[str]()
    spy = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: seen.extend(tokenizer.batch_decode(args[0], skip_special_tokens=True))
    )
    found = amp.robustness(model, tokenizer, ("typos", "dropped words"), rate=0.3, tasks=["tiny_tool"], limit=4, seed=3)
    spy.remove()
    lines = (amp.DATA / "tasks" / "tiny_tool.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    for item in map(json.loads, lines):
        for prompt in (item["prompt"], *(perturbed(item, n, 0.3, 3)["prompt"] for n in ("typos", "dropped words"))):
            assert any(row.startswith(prompt) for row in seen), prompt
    assert list(found) == ["clean", "typos", "dropped words"]
    assert found["clean"] == amp.accuracy(model, tokenizer, ["tiny_tool"], limit=4)
    same = amp.robustness(model, tokenizer, "typos", rate=0, tasks=["tiny_tool"], limit=4)
    assert same["typos"] == same["clean"] == found["clean"]


@pytest.mark.slow
def test_pure_noise_costs_a_trained_model_its_knowledge() -> None:
    model, tokenizer = amp.load("tiny-llama")
    tasks = ["tiny_tool", "tiny_fact", "tiny_chain"]
    found = amp.robustness(model, tokenizer, ("typos", "dropped words"), rate=1.0, tasks=tasks, limit=80)
    for name in ("typos", "dropped words"):
        assert found[name].mean.high < found["clean"].mean.low
