"""Surgery: cutting computes what masking computes, on every family, and what is cut is an ordinary model."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import (
    EVERY_FAMILY,
    KNOWN,
    WITH_HEADS,
    Shape,
    batch,
    equal,
    every,
    families,
    hooks,
    logits,
    prompts,
    sayable,
    shapes,
    some_plan,
    tiny,
    weights,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import amp_tutorial as amp

DTYPES = ("float32", "bfloat16", "float16")
# Four query heads, each with its own key and value; in two groups; all with one key and value (multi-query attention).
ATTENTIONS = families([*every(WITH_HEADS, 4, 1), *every(WITH_HEADS, 2, 2), *every(WITH_HEADS, 1, 4)])


def any_plan(data: st.DataObject, shape: Shape, model: PreTrainedModel) -> amp.Plan:
    """One that a stock configuration can say: some KV groups, or some query heads of every group; some neurons."""
    unit = data.draw(st.sampled_from(("groups", "queries")))
    units, each = (shape.groups, shape.group_size) if unit == "groups" else (shape.group_size, shape.groups)
    heads, neurons = each * data.draw(st.integers(1, units)), data.draw(st.integers(1, shape.neurons))
    assume(amp.FAMILIES[shape.family].no_heads or sayable(shape, heads))
    return some_plan(model, heads, neurons, seed=data.draw(st.integers(0, 99)), unit=unit)


def alike(a: Tensor, b: Tensor) -> None:
    """Logits of about one, to rounding; it grows where a norm follows what one small neuron gives (Gemma 2)."""
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def stock(model: PreTrainedModel) -> PreTrainedModel:
    """The model saved and loaded by transformers alone, after a look at what it reports."""
    with tempfile.TemporaryDirectory() as folder:
        amp.save(model, None, Path(folder) / "model")
        loaded, report = AutoModelForCausalLM.from_pretrained(
            Path(folder) / "model", dtype="auto", output_loading_info=True
        )
    assert not any(report.values()), report
    assert type(loaded) is type(model) and type(loaded).__module__.startswith("transformers.models")
    return loaded


@pytest.mark.parametrize("shape", every(KNOWN), ids=KNOWN)
def test_every_family_is_cut_as_masked_and_by_the_plan_and_loads_again(shape: Shape) -> None:
    """Cut = masked, parameters gone = planned, saved and loaded by transformers = in memory: of every row, always."""
    model = tiny(shape)
    plan = some_plan(model, heads=2, neurons=11)
    with amp.masked(model, plan):
        masked = logits(model)
    small = amp.prune(model, plan).model
    alike(logits(small), masked)
    gone = model.num_parameters() - small.num_parameters()
    assert gone == pytest.approx(plan.achieved * model.num_parameters(), abs=0.01) and gone > 0
    loaded = stock(small)
    assert torch.equal(logits(loaded), logits(small)) and equal(weights(loaded), weights(small))


@given(shapes(), st.data())
def test_cut_is_masked(shape: Shape, data: st.DataObject) -> None:
    model = tiny(shape)
    before, dense = weights(model), logits(model)
    plan = any_plan(data, shape, model)
    with amp.masked(model, plan):
        masked = logits(model)
    small = amp.prune(model, plan).model
    alike(logits(small), masked)
    assert hooks(model) == 0 and equal(weights(model), before) and torch.equal(logits(model), dense)
    anatomy = amp.Anatomy.of(small)
    found = (anatomy.heads, len(plan.groups(0)), anatomy.head_dim, anatomy.neurons)
    assert found == (len(plan.heads[0]), anatomy.groups, shape.head_dim, len(plan.neurons[0]))
    gone = model.num_parameters() - small.num_parameters()
    assert gone == pytest.approx(plan.achieved * model.num_parameters(), abs=0.01)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", ATTENTIONS, ids=lambda s: f"{s.family}-{s.groups}x{s.group_size}")
def test_cut_is_masked_whatever_goes(shape: Shape, bias: bool) -> None:
    """Half of the heads of every family with heads, where KV groups are one each, shared, or all one; by both units."""
    model = tiny(replace(shape, bias=bias))
    for unit, units in (("groups", shape.groups), ("queries", shape.group_size)):
        if units == 1:
            continue
        plan = some_plan(model, 2, 11, seed=3, unit=unit)
        with amp.masked(model, plan):
            masked = logits(model)
        assert not torch.allclose(masked, logits(model), atol=1e-2)
        small = amp.prune(model, plan).model
        alike(logits(small), masked)
        assert small.config.num_key_value_heads == (shape.groups if unit == "queries" else 2 // shape.group_size)


@given(shapes(dtypes=DTYPES), st.data())
def test_what_is_saved_loads_in_stock_transformers(shape: Shape, data: st.DataObject) -> None:
    model = tiny(shape)
    small = amp.prune(model, any_plan(data, shape, model)).model
    loaded = stock(small)
    assert loaded.dtype == small.dtype == getattr(torch, shape.dtype)
    assert torch.equal(logits(loaded), logits(small)) and equal(weights(loaded), weights(small))


@pytest.mark.parametrize("shape", families(every(KNOWN, 4, 1)), ids=KNOWN)
def test_the_architecture_stays_unless_its_configuration_refuses(shape: Shape) -> None:
    """Three of four heads: LLaMA's weights become a mistral without a window; Gemma 2 and 3 take the nearest number."""
    model = tiny(shape)
    small = amp.prune(model, some_plan(model, 3, 11, nearest=True)).model
    assert type(stock(small)) is type(small)
    if shape.family == "llama":
        assert small.config.model_type == "mistral" and small.config.sliding_window is None
    else:
        assert type(small) is type(model) and small.config.model_type == shape.family
    if shape.family in WITH_HEADS:
        assert small.config.head_dim == shape.head_dim
        assert small.config.num_attention_heads == (3 if sayable(shape, 3) else 4)


def leaves_head_dim_out(family: str) -> bool:
    return getattr(AutoConfig.for_model(family), "head_dim", None) is None


@pytest.mark.parametrize(
    "shape", every([f for f in WITH_HEADS if leaves_head_dim_out(f)], 4, 1), ids=lambda shape: shape.family
)
def test_head_dim_is_written_down_even_if_the_dense_model_left_it_out(shape: Shape, tmp_path: Path) -> None:
    model = tiny(shape)
    model.config.head_dim = None  # hidden / heads, until heads go
    small = amp.prune(model, some_plan(model, heads=3, neurons=11)).model
    folder = amp.save(small, None, tmp_path / "small")
    assert json.loads((folder / "config.json").read_text())["head_dim"] == shape.head_dim
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(small))


@settings(max_examples=25)
@given(shapes(), st.data())
def test_the_cut_model_generates_with_a_cache_what_it_does_without(shape: Shape, data: st.DataObject) -> None:
    """Twelve tokens: more than the sliding windows of the tiny models hold."""
    model = tiny(shape)
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=2)
    small = amp.prune(model, any_plan(data, shape, model)).model
    given = batch(prompts((5, 5)))
    cached, plain = (small.generate(**given, use_cache=cache, eos_token_id=None) for cache in (True, False))
    assert cached.shape == (2, 12) and torch.equal(cached, plain)


@pytest.mark.slow
@pytest.mark.grid
@settings(max_examples=400)
@given(shapes(dtypes=DTYPES), st.data())
def test_many_more_shapes(shape: Shape, data: st.DataObject) -> None:
    """Cut = masked, saved and loaded = in memory, parameters = plan: all three on the same model."""
    model = tiny(shape)
    plan = any_plan(data, shape, model)
    small = amp.prune(model, plan).model
    assert torch.equal(logits(stock(small)), logits(small))
    gone = model.num_parameters() - small.num_parameters()
    assert gone == pytest.approx(plan.achieved * model.num_parameters(), abs=0.01)
    with amp.masked(model.float(), plan):
        masked = logits(model)
    alike(logits(small.float()), masked)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_in_place_is_the_same_model(shape: Shape) -> None:
    model = tiny(shape)
    plan = some_plan(model, heads=2, neurons=11)
    copied = amp.prune(model, plan).model
    pointer = model.get_input_embeddings().weight.data_ptr()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    within = amp.prune(model, plan, inplace=True).model
    smaller = {name for name, p in within.named_parameters() if p.numel() < sizes[name]}
    assert smaller == {name for name, p in model.named_parameters() if p.numel() == 0} != set()
    assert equal(weights(within), weights(copied)) and torch.equal(logits(within), logits(copied))
    assert within.get_input_embeddings().weight.data_ptr() == pointer  # nothing is held twice
    assert copied.get_input_embeddings().weight.data_ptr() != pointer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_tied_embeddings_stay_tied_and_others_apart(tied: bool, inplace: bool) -> None:
    model = tiny(Shape(tied=tied))
    small = amp.prune(model, some_plan(model, heads=3, neurons=11), inplace=inplace).model
    assert (small.lm_head.weight is small.get_input_embeddings().weight) == tied
    assert small.config.tie_word_embeddings == tied


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_the_cut_model_trains_and_the_dense_one_stays(shape: Shape) -> None:
    model = tiny(shape).train()
    before = weights(model)
    small = amp.prune(model, some_plan(model, heads=2, neurons=11)).model
    assert small.training
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
    given, losses = batch(prompts((8, 8, 8))), []
    for _ in range(3):
        loss = small(**given, labels=given["input_ids"], use_cache=False).loss
        loss.backward()
        learned = [p for name, p in small.named_parameters() if "correction" not in name]  # a router's has no gradient
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learned)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and equal(weights(model), before)


def test_a_plan_that_removes_nothing_changes_nothing() -> None:
    model = tiny()
    assert torch.equal(logits(amp.prune(model, some_plan(model, heads=4, neurons=24)).model), logits(model))


def test_settings_survive() -> None:
    model = tiny().to(torch.bfloat16)
    model.set_attn_implementation("eager")
    model.generation_config.max_new_tokens = 3
    model.model.norm.weight.requires_grad_(False)
    small = amp.prune(model, some_plan(model, heads=3, neurons=11)).model
    assert small.dtype == torch.bfloat16 and small.config._attn_implementation == "eager"
    assert small.generation_config.max_new_tokens == 3
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


def test_a_new_family_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(amp.FAMILIES, "olmo", amp.Family())  # in the place of its own
    model = tiny(Shape("olmo", groups=2, group_size=2))
    for unit in ("groups", "queries"):
        plan = some_plan(model, heads=2, neurons=11, unit=unit)
        with amp.masked(model, plan):
            masked = logits(model)
        small = amp.prune(model, plan).model
        alike(logits(small), masked)
        assert torch.equal(logits(stock(small)), logits(small))


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


@pytest.mark.parametrize(
    ("heads", "neurons", "words"),
    [
        ([[0, 1], [2]], [[0, 1], [2, 3]], "different widths"),
        ([[0, 1], [2, 3]], [[0, 1], [2]], "different widths"),
        ([[], []], [[0], [1]], "different widths in different layers, or none"),
        ([[0, 1], [2, 3]], [[], []], "different widths in different layers, or none"),
        ([[0, 1, 2], [0, 1, 2]], [[0], [1]], r"keeps \{0: 2, 1: 1\} query heads of the KV groups of layer 0"),
        ([[0, 2], [0, 1]], [[0], [1]], "different widths"),  # one query head of each group, and one whole group
        ([[0, 1], [3, 2]], [[0], [1]], "Layer 1 of the plan must name each head once, ascending, from 0 to 3"),
        ([[0, 0], [2, 3]], [[0], [1]], "Layer 0 of the plan must name each head once"),
        ([[2, 3], [2, 3]], [[0], [24]], "Layer 1 of the plan must name each neuron once, ascending, from 0 to 23"),
        ([[2, 3], [2, 3]], [[-1], [1]], "Layer 0 of the plan must name each neuron once"),
    ],
)
def test_a_hand_made_plan_that_no_model_is_refused(heads: list, neurons: list, words: str) -> None:
    plan = amp.Plan(heads, neurons, of_heads=4, of_neurons=24, of_groups=2)
    model = tiny(Shape(groups=2, group_size=2))
    with pytest.raises(ValueError, match=words):
        amp.prune(model, plan)
    with pytest.raises(ValueError, match=words), amp.masked(model, plan):
        pass


@pytest.mark.parametrize("shape", [Shape(name, bias=True) for name in ("llama", "gemma2", "gpt2")], ids=str)
def test_a_hand_made_head_count_that_nothing_can_say_is_refused(shape: Shape) -> None:
    plan = amp.Plan([[0, 1, 2]] * 2, [[0, 1]] * 2, of_heads=4, of_neurons=24, of_groups=4)
    with pytest.raises(ValueError, match=f"No stock configuration of {shape.family} says 3 heads; possible: "):
        amp.prune(tiny(shape), plan)


def test_experts_stay_whole() -> None:
    for family in ("mixtral", "qwen3_moe"):
        model = tiny(Shape(family, groups=2, group_size=2))
        small = amp.prune(model, some_plan(model, heads=2, neurons=None)).model
        before, after = weights(model), weights(small)
        changed = {name.split(".")[3] for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"self_attn"} and after.keys() == before.keys()
