"""Surgery: cutting computes what masking computes, on every family, and what is cut is an ordinary model."""

import json
from pathlib import Path

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, Shape, batch, equal, hooks, logits, prompts, shapes, tiny, weights
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import amp_tutorial as amp

MHA = [Shape(family, groups=4) for family in KNOWN]


def some_plan(model: PreTrainedModel, heads: int, neurons: int, seed: int = 0) -> amp.Plan:
    return amp.plan(model, amp.score(model, [], "random", seed=seed), heads=heads, neurons=neurons)


def sayable(shape: Shape, heads: int) -> bool:
    """Whether a stock configuration exists: LLaMA's is strict, and what stands in for it has no biases."""
    return shape.family != "llama" or not shape.bias or shape.hidden % heads == 0


@given(shapes(), st.data())
def test_cut_is_masked(shape: Shape, data: st.DataObject) -> None:
    heads = shape.group_size * data.draw(st.integers(1, shape.groups))
    assume(sayable(shape, heads))
    model = tiny(shape)
    before, dense = weights(model), logits(model)
    plan = some_plan(model, heads, data.draw(st.integers(1, shape.neurons)), seed=data.draw(st.integers(0, 99)))
    with amp.masked(model, plan):
        masked = logits(model)
    small = amp.prune(model, plan)
    torch.testing.assert_close(logits(small), masked, rtol=1e-5, atol=1e-5)
    assert hooks(model) == 0 and equal(weights(model), before) and torch.equal(logits(model), dense)
    assert amp.Anatomy.of(small).heads == heads


@pytest.mark.parametrize("shape", [*EVERY_FAMILY, *MHA], ids=lambda s: f"{s.family}-{s.group_size}")
def test_what_is_saved_loads_in_stock_transformers(shape: Shape, tmp_path: Path) -> None:
    model = tiny(shape)
    small = amp.prune(model, some_plan(model, heads=2 if shape.group_size == 2 else 3, neurons=11))
    folder = amp.save(small, None, tmp_path / "small")
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert type(loaded).__module__.startswith("transformers.models") and loaded.config.head_dim == shape.head_dim
    assert torch.equal(logits(loaded), logits(small))
    assert equal(weights(loaded), weights(small))


@pytest.mark.parametrize("shape", [s for s in MHA if s.family != "qwen3"], ids=lambda s: s.family)  # qwen3 has it
def test_head_dim_is_written_down_even_if_the_dense_model_left_it_out(shape: Shape, tmp_path: Path) -> None:
    model = tiny(shape)
    model.config.head_dim = None  # hidden / heads, until heads go
    small = amp.prune(model, some_plan(model, heads=3, neurons=11))
    folder = amp.save(small, None, tmp_path / "small")
    assert json.loads((folder / "config.json").read_text())["head_dim"] == shape.head_dim
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(small))


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_the_cut_model_generates_with_a_cache_what_it_does_without(shape: Shape) -> None:
    model = tiny(shape)
    model.generation_config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=2)
    small = amp.prune(model, some_plan(model, heads=2, neurons=11))
    given = batch(prompts((5, 5)))
    cached, plain = (small.generate(**given, use_cache=cache, eos_token_id=None) for cache in (True, False))
    assert cached.shape == (2, 17) and torch.equal(cached, plain)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_in_place_is_the_same_model(shape: Shape) -> None:
    model = tiny(shape)
    plan = some_plan(model, heads=2, neurons=11)
    copied = amp.prune(model, plan)
    pointer = model.get_input_embeddings().weight.data_ptr()
    cut = amp.Anatomy.of(model).layer(0)
    within = amp.prune(model, plan, inplace=True)
    assert cut.query.weight.numel() == cut.neurons_out.weight.numel() == 0
    assert equal(weights(within), weights(copied)) and torch.equal(logits(within), logits(copied))
    assert within.get_input_embeddings().weight.data_ptr() == pointer  # nothing is held twice
    assert copied.get_input_embeddings().weight.data_ptr() != pointer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_tied_embeddings_stay_tied_and_others_apart(tied: bool, inplace: bool) -> None:
    model = tiny(Shape(tied=tied))
    small = amp.prune(model, some_plan(model, heads=3, neurons=11), inplace=inplace)
    assert (small.lm_head.weight is small.get_input_embeddings().weight) == tied
    assert small.config.tie_word_embeddings == tied


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_the_cut_model_trains_and_the_dense_one_stays(shape: Shape) -> None:
    model = tiny(shape).train()
    before = weights(model)
    small = amp.prune(model, some_plan(model, heads=2, neurons=11))
    assert small.training
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
    given, losses = batch(prompts((8, 8, 8))), []
    for _ in range(3):
        loss = small(**given, labels=given["input_ids"], use_cache=False).loss
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and equal(weights(model), before)


def test_a_plan_that_removes_nothing_changes_nothing() -> None:
    model = tiny()
    assert torch.equal(logits(amp.prune(model, some_plan(model, heads=4, neurons=24))), logits(model))


def test_settings_survive() -> None:
    model = tiny().to(torch.bfloat16)
    model.set_attn_implementation("eager")
    model.generation_config.max_new_tokens = 3
    model.model.norm.weight.requires_grad_(False)
    small = amp.prune(model, some_plan(model, heads=3, neurons=11))
    assert small.dtype == torch.bfloat16 and small.config._attn_implementation == "eager"
    assert small.generation_config.max_new_tokens == 3
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


def test_stretched_rotary_frequencies_survive() -> None:
    model = tiny(Shape(hidden=32))
    scaling = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=2.0, original_max_position_embeddings=64)
    model.config.rope_parameters = dict(rope_type="llama3", rope_theta=100.0, **scaling)
    model = AutoModelForCausalLM.from_config(model.config).eval()
    plan = some_plan(model, heads=3, neurons=11)
    with amp.masked(model, plan):
        masked = logits(model, prompts((90,)))
    torch.testing.assert_close(logits(amp.prune(model, plan), prompts((90,))), masked, rtol=1e-5, atol=1e-5)


def test_a_new_family_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = amp.Family(neurons_in=("mlp.c_fc",), neurons_out="mlp.c_proj")
    monkeypatch.setitem(amp.FAMILIES, "starcoder2", row)
    model = tiny(Shape("starcoder2", groups=4))
    plan = some_plan(model, heads=3, neurons=11)
    with amp.masked(model, plan):
        masked = logits(model)
    torch.testing.assert_close(logits(amp.prune(model, plan)), masked, rtol=1e-5, atol=1e-5)


def test_the_mask_goes_when_the_work_inside_fails() -> None:
    model = tiny()
    dense = logits(model)
    with pytest.raises(RuntimeError, match="inside"), amp.masked(model, some_plan(model, heads=3, neurons=11)):
        assert not torch.equal(logits(model), dense)
        raise RuntimeError("inside")
    assert hooks(model) == 0 and torch.equal(logits(model), dense)


@pytest.mark.parametrize("shape", [Shape(layers=3), Shape(neurons=25), Shape(groups=2, group_size=2)], ids=str)
def test_a_plan_for_another_shape_is_refused(shape: Shape) -> None:
    plan, model = some_plan(tiny(shape), heads=2, neurons=11), tiny()
    with pytest.raises(ValueError, match="the model has"):
        amp.prune(model, plan)
    with pytest.raises(ValueError, match="the model has"), amp.masked(model, plan):
        pass


def test_different_widths_in_different_layers_are_refused() -> None:
    plan = amp.Plan([[0, 1], [2]], [[0, 1], [2, 3]], of_heads=4, of_neurons=24, of_groups=4)
    with pytest.raises(ValueError, match="different widths"):
        amp.prune(tiny(), plan)


def test_a_head_count_that_nothing_can_say_is_refused() -> None:
    model = tiny(Shape(bias=True))
    with pytest.raises(ValueError, match="choose another head count"):
        amp.prune(model, some_plan(model, heads=3, neurons=11))
