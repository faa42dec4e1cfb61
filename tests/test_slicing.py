"""Slicing: the turned model is the dense one, the sliced model is the projected one, and both are ordinary models."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import KNOWN, SLICED, Shape, batch, equal, hooks, logits, prompts, shapes, some_plan, tiny, weights
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.core.families import FAMILIES, Stream
from amp_tutorial.methods import hidden_size as slicing

LLAMA = FAMILIES["llama"].stream or Stream(())
(_, QKV), (_, GATE_UP) = LLAMA.reads
PACKED = {"mixtral", "qwen2_moe", "qwen3_moe", "ernie4_5_moe", "granitemoe"}
GIVEN = ("phi", "gemma2", "nanochat", "apertus", "lfm2", "doge", "gpt_oss", "bitnet")
WHY = {FAMILIES[family].no_stream for family in GIVEN}  # the reasons that there are

ROWS = [prompts(), prompts((12, 12, 12), seed=1)]


def measured(model: PreTrainedModel) -> amp.Rotation:
    return amp.rotation(model, [batch(rows) for rows in ROWS])


def alike(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def stock(model: PreTrainedModel) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        amp.save(model, None, Path(folder) / "model")
        loaded, report = AutoModelForCausalLM.from_pretrained(
            Path(folder) / "model", dtype="auto", output_loading_info=True
        )
    assert not any(report.values()), report
    assert type(loaded) is type(model) and type(loaded).__module__.startswith("transformers.models")
    return loaded


def sayable(shape: Shape, hidden: int) -> bool:
    """Some want a multiple of the heads, unless mistral, which has no biases, stands in; packed experts want of 8."""
    if shape.family in PACKED:
        return hidden % 8 == 0
    row = FAMILIES[shape.family]
    return row.any_head_count or (bool(row.equal_type) and not shape.bias) or hidden % shape.heads == 0


def any_size(data: st.DataObject, shape: Shape) -> int:
    return data.draw(st.sampled_from([size for size in range(1, shape.hidden + 1) if sayable(shape, size)]))


@given(shapes(SLICED), st.integers(0, 99))
def test_turned_is_dense(shape: Shape, seed: int) -> None:
    """The fold of the norms and the whole rotation leave the logits as they were, also where the head was tied."""
    assume(sayable(shape, shape.hidden))
    model = tiny(shape, seed)
    before, dense = weights(model), logits(model)
    turned = amp.slice_hidden(model, measured(model), shape.hidden).model
    alike(logits(turned), dense)
    assert turned.get_output_embeddings().weight is not turned.get_input_embeddings().weight
    assert hooks(model) == 0 and equal(weights(model), before) and torch.equal(logits(model), dense)


@given(shapes(SLICED), st.data())
def test_sliced_is_projected(shape: Shape, data: st.DataObject) -> None:
    model = tiny(shape)
    before, rotation = weights(model), measured(model)
    hidden = any_size(data, shape)
    with slicing.projected(model, rotation, hidden):
        projected = logits(model)
    small = amp.slice_hidden(model, rotation, hidden).model
    alike(logits(small), projected)
    assert hooks(model) == 0 and equal(weights(model), before)
    assert small.num_parameters() == slicing.sliced_parameters(amp.Anatomy.of(model), hidden)
    assert amp.Anatomy.of(small).hidden == small.config.hidden_size == hidden
    assert small.config.head_dim == shape.head_dim and small.config.rms_norm_eps == model.config.rms_norm_eps
    assert torch.equal(logits(stock(small)), logits(small))


@pytest.mark.parametrize("family", SLICED)
def test_a_large_eps_and_multipliers_change_nothing(family: str) -> None:
    """The stream is scaled so that eps means the same: by rms over the new size alone it would not."""
    extra: dict[str, Any] = dict(
        embedding_multiplier=3.0, residual_multiplier=0.4, logits_scaling=2.0, attention_multiplier=0.2
    )
    model = tiny(Shape(family, bias=True), rms_norm_eps=0.7, **extra if family == "granite" else {})
    rotation = measured(model)
    with slicing.projected(model, rotation, 24):
        projected = logits(model)
    alike(logits(amp.slice_hidden(model, rotation, 24).model), projected)


@pytest.mark.parametrize("mixed", [dict(mlp_only_layers=[0]), dict(decoder_sparse_step=2)], ids=str)
def test_layers_with_and_without_experts(mixed: dict[str, Any]) -> None:
    model = tiny(Shape("qwen3_moe", layers=3), **mixed)
    kinds = {name.split(".")[-2] for name in weights(model) if ".mlp." in name}
    assert {"experts", "gate", "gate_proj"} <= kinds
    rotation, dense = measured(model), logits(model)
    alike(logits(amp.slice_hidden(model, rotation, 32).model), dense)
    with slicing.projected(model, rotation, 24):
        projected = logits(model)
    alike(logits(amp.slice_hidden(model, rotation, 24).model), projected)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_the_rotation_is_that_of_the_summed_moments_of_all_norm_outputs(decay: float) -> None:
    """Against a loop over single tokens, row by row without padding, with the hidden states as transformers gives."""
    model = tiny(Shape(hidden=16, head_dim=4))
    moments = torch.zeros(16, 16, dtype=torch.float64)
    inputs: list[Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda norm, _, output: inputs.append(output / norm.weight))
    with torch.no_grad():
        for row in (row for rows in ROWS for row in rows):
            model(torch.tensor([row]))
    for number, rows_seen in enumerate(inputs):
        for n in rows_seen[0].double():
            moments += torch.outer(n, n) / (number % 5 + 1) ** decay  # five norms, in the order of the network
    assert len(inputs) == 5 * sum(map(len, ROWS))
    found = amp.rotation(tiny(Shape(hidden=16, head_dim=4)), [batch(rows) for rows in ROWS], decay)
    turned = found.vectors.T @ moments @ found.vectors
    values = turned.diag()
    torch.testing.assert_close(turned, torch.diag(values), rtol=0, atol=1e-3)
    assert bool((values.diff() <= 1e-3).all()) and found.tokens == sum(len(row) for rows in ROWS for row in rows)
    torch.testing.assert_close(found.energy, values.cumsum(0) / values.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("left", [True, False])
def test_batches_and_padding_do_not_matter(left: bool) -> None:
    model, rows = tiny(), [row for rows in ROWS for row in rows]
    together = amp.rotation(model, [batch(rows, left)])
    torch.testing.assert_close(together.energy, measured(model).energy, rtol=1e-5, atol=1e-6)
    alone = amp.rotation(model, [batch([row]) for row in rows])
    torch.testing.assert_close(together.energy, alone.energy, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(shapes(tuple(set(SLICED) - PACKED)), st.data())
def test_it_commutes_with_pruning(shape: Shape, data: st.DataObject) -> None:
    """Prune, then slice, or slice, then prune: the same weights, for the same plan and rotation."""
    hidden = data.draw(st.integers(2, shape.hidden))
    kept = shape.group_size * data.draw(st.integers(1, shape.groups))
    row = FAMILIES[shape.family]
    stand_in = row.any_head_count or (bool(row.equal_type) and not shape.bias)
    divided = not (hidden % shape.heads or hidden % kept or shape.hidden % kept)
    assume(stand_in or divided)
    model = tiny(shape)
    rotation, plan = measured(model), some_plan(model, kept, max(1, shape.neurons // 2))
    first = amp.slice_hidden(amp.prune(model, plan).model, rotation, hidden).model
    second = amp.prune(amp.slice_hidden(model, rotation, hidden).model, plan).model
    for name, tensor in weights(first).items():
        torch.testing.assert_close(tensor, weights(second)[name])
    alike(logits(first), logits(second))
    assert torch.equal(logits(stock(first)), logits(first))


@settings(max_examples=25)
@given(shapes(SLICED), st.data())
def test_it_generates_with_a_cache_what_it_does_without(shape: Shape, data: st.DataObject) -> None:
    hidden = any_size(data, shape)
    model = tiny(shape)
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=2)
    small = amp.slice_hidden(model, measured(model), hidden).model
    given = batch(prompts((5, 5)))
    cached, plain = (small.generate(**given, use_cache=cache, eos_token_id=None) for cache in (True, False))
    assert cached.shape == (2, 12) and torch.equal(cached, plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", SLICED)
def test_half_precision_is_float32_rounded(family: str, dtype: str) -> None:
    """All weights, norms too, of a model in half precision are those of its float32 copy, but for one rounding."""
    model = tiny(Shape(family, bias=True, dtype=dtype))
    rotation = measured(model)
    half = amp.slice_hidden(model, rotation, 24).model
    exact = amp.slice_hidden(tiny(Shape(family, bias=True, dtype=dtype)).float(), rotation, 24).model
    assert half.dtype == getattr(torch, dtype) and torch.equal(logits(stock(half)), logits(half))
    for name, tensor in weights(half).items():
        torch.testing.assert_close(tensor.float(), weights(exact)[name], rtol=0.02, atol=1e-5)


def test_norms_hold_the_ratio_of_sizes() -> None:
    small = amp.slice_hidden(model := tiny(), measured(model), 20).model
    for name, tensor in weights(small).items():
        if "norm" in name:
            torch.testing.assert_close(tensor, torch.full((20,), (32 / 20) ** 0.5))


def test_llama_becomes_mistral_only_where_its_configuration_refuses() -> None:
    model = tiny()
    rotation = measured(model)
    assert amp.slice_hidden(model, rotation, 20).model.config.model_type == "llama"
    odd = amp.slice_hidden(model, rotation, 21).model
    assert odd.config.model_type == "mistral" and odd.config.sliding_window is None
    biased = tiny(Shape(bias=True))
    with pytest.raises(ValueError, match="No stock llama runs with hidden_size=21 and 4 heads; take a multiple of 4"):
        amp.slice_hidden(biased, rotation, 21)
    with pytest.raises(ValueError, match="No stock mixtral runs with hidden_size=20 and 4 heads; take a multiple of 8"):
        amp.slice_hidden(tiny(Shape("mixtral")), rotation, 20)


def test_the_size_for_a_ratio_is_the_largest_that_removes_so_much() -> None:
    for shape in (Shape("mixtral"), Shape(bias=True), Shape(tied=True)):
        anatomy = amp.Anatomy.of(tiny(shape))
        total = anatomy.model.num_parameters()
        assert slicing.sliced_parameters(anatomy, 32) == total + (259 * 32 if shape.tied else 0)  # the head's own
        hidden = slicing.hidden_at(anatomy, 0.3, align=8)
        sizes = [slicing.sliced_parameters(anatomy, h) for h in (hidden, hidden + 8)]
        assert hidden % 8 == 0 and sizes[0] <= 0.7 * total < sizes[1]
    with pytest.raises(ValueError, match="pruning_ratio=1.0 is not a ratio"):
        slicing.hidden_at(anatomy, 1.0)


def test_settings_survive() -> None:
    model = tiny().train()
    model.set_attn_implementation("eager")
    model.generation_config.max_new_tokens = 3
    model.model.norm.weight.requires_grad_(False)
    rotation = measured(model)
    small = amp.slice_hidden(model, rotation, 20).model
    assert model.training and small.training and small.config._attn_implementation == "eager"
    assert small.generation_config.max_new_tokens == 3
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


def test_every_family_is_sliced_or_says_why_not() -> None:
    assert all(bool(row.stream) != (row.no_stream in WHY) for row in FAMILIES.values())


@pytest.mark.parametrize("family", sorted(set(KNOWN) - set(SLICED)))
def test_families_that_cannot_be_turned_say_why(family: str) -> None:
    model = tiny(Shape(family))
    why = re.escape(FAMILIES[family].no_stream)
    words = f"hidden size of a {family} cannot be sliced: {why}. Cut heads, neurons or layers instead"
    with pytest.raises(ValueError, match=words):
        measured(model)
    with pytest.raises(ValueError, match=words):
        amp.slice_hidden(model, measured(tiny()), 20)


def test_a_family_without_a_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], stream=None))
    with pytest.raises(ValueError, match="a llama cannot be sliced: it has no row of who reads each norm"):
        measured(model)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(offset=1.0),
        dict(reads=(("input_layernorm", GATE_UP), ("post_attention_layernorm", QKV))),
        dict(last="model.layers.0.input_layernorm"),
    ],
    ids=str,
)
def test_a_wrong_row_is_found_before_a_model_is_returned(monkeypatch: pytest.MonkeyPatch, wrong: dict) -> None:
    model = tiny()
    rotation = measured(model)
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], stream=replace(LLAMA, **wrong)))
    with pytest.raises(ValueError, match="not wired as the row 'llama'|does not say what it has to do"):
        amp.slice_hidden(model, rotation, 20)
    assert hooks(model) == 0


def test_an_adapter_is_refused() -> None:
    model = tiny()
    rotation = measured(model)
    model.model.layers[1].mlp.adapter = torch.nn.Linear(32, 32)
    with pytest.raises(ValueError, match="model.layers.1.mlp.adapter.weight: the row 'llama'.*merge adapters first"):
        amp.slice_hidden(model, rotation, 20)


@pytest.mark.parametrize("hidden", [0, -1, 33])
def test_a_size_that_is_none_is_refused(hidden: int) -> None:
    model = tiny()
    with pytest.raises(ValueError, match="must be a whole number from 1 to the hidden size, 32"):
        amp.slice_hidden(model, measured(model), hidden)


def test_a_rotation_of_another_size_is_refused() -> None:
    rotation = measured(tiny(Shape(hidden=40)))
    with pytest.raises(ValueError, match="of a hidden size of 40, the model has 32"):
        amp.slice_hidden(tiny(), rotation, 20)
    with pytest.raises(ValueError, match="of a hidden size of 40"), slicing.projected(tiny(), rotation, 20):
        pass


def test_rope_factors_of_a_fixed_head_dim_are_refused() -> None:
    rope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[1.0] * 4)
    model = tiny(Shape("phi3"), rope_parameters=rope, original_max_position_embeddings=512)
    with pytest.raises(ValueError, match="The hidden size of this phi3 cannot change: with rope_parameters.long_fac"):
        amp.slice_hidden(model, measured(model), 20)


def test_no_tokens_and_no_numbers_are_refused() -> None:
    model = tiny()
    empty = batch(prompts())
    empty["attention_mask"] *= 0
    for batches in ([], [empty]):
        with pytest.raises(ValueError, match="hold no tokens"):
            amp.rotation(model, batches)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        measured(model)
    assert hooks(model) == 0


def test_few_tokens_are_told() -> None:
    with pytest.warns(UserWarning, match="31 calibration tokens for a hidden size of 32"):
        rotation = amp.rotation(model := tiny(), [batch(prompts((9, 9, 13)))])
    alike(logits(amp.slice_hidden(model, rotation, 32).model), logits(model))


def test_the_embedded_model_keeps_most_by_its_own_directions() -> None:
    """A quarter of the stream of a trained model: the first directions carry far more than the last, or than chance."""
    model, tokenizer = amp.load("tiny-llama")
    rotation = amp.rotation(model, amp.calibration(tokenizer, samples=16))
    last = replace(rotation, vectors=rotation.vectors.flip(1))
    losses = []
    for turned in (rotation, last):
        small = amp.slice_hidden(model, turned, 96).model
        losses.append(amp.perplexity(small, tokenizer, limit=32).value)
    assert losses[0] < losses[1] / 4
