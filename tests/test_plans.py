"""Plans: what is asked is achieved, counted on real models; the highest scores stay; plans are plain data."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import Shape, shapes, tiny
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import amp_tutorial as amp

RATIOS = st.floats(0.02, 0.7)


def scores_of(heads: list[Tensor], neurons: list[Tensor]) -> amp.Scores:
    return amp.Scores(heads, neurons, "hand", "tokens", tokens=1, prompts=1, seed=0)


def drawn(model: PreTrainedModel, seed: int = 0) -> amp.Scores:
    return amp.score(model, [], "random", seed=seed)


@given(shapes(), RATIOS, st.sampled_from(("all", "blocks")), st.sampled_from(("both", "neurons", "heads")))
def test_asked_is_achieved(shape: Shape, remove: float, of: str, parts: str) -> None:
    """To half a neuron in each layer, or half a KV group with heads only; counted on the model that comes out."""
    model = tiny(shape)
    anatomy = amp.Anatomy.of(model)
    total = model.num_parameters() if of == "all" else anatomy.block_parameters
    try:
        plan = amp.plan(model, drawn(model), remove=remove, of=of, parts=parts)
        small = amp.prune(model, plan)
    except ValueError:  # too much asked, or a head count that no configuration says; tested on its own
        assume(False)
    step = anatomy.group_cost if parts == "heads" else anatomy.neuron_cost
    gone = model.num_parameters() - small.num_parameters()
    assert abs(gone - remove * total) <= anatomy.layers * step / 2 + 1e-6 * total
    assert gone == pytest.approx(plan.achieved * total, abs=0.01) and plan.asked == remove
    if parts == "heads":
        assert len(plan.neurons[0]) == anatomy.neurons
    if parts == "neurons":
        assert len(plan.heads[0]) == anatomy.heads


@pytest.mark.parametrize(("k", "percent"), [(7, "21.02%"), (10, "30.03%")])
def test_llama_2_7b_loses_layers_worth(k: int, percent: str) -> None:
    """AMP's rule: as many parameters as k decoder layers are exactly k of 32 heads and 344·k of 11,008 neurons."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())
    hand = scores_of([torch.arange(32.0)] * 32, [torch.arange(11_008.0)] * 32)
    plan = amp.plan(model, hand, remove=k * 202_383_360 / 6_738_415_616)
    assert {(len(h), len(n)) for h, n in zip(plan.heads, plan.neurons, strict=True)} == {(32 - k, 11_008 - 344 * k)}
    assert f"removes {percent} of all parameters" in str(plan)


def test_the_highest_scores_stay_and_ties_go_to_the_lower_index() -> None:
    model = tiny(Shape(layers=2, groups=4, neurons=4))
    heads = [torch.tensor([0.1, 0.9, 0.3, 0.8]), torch.tensor([5.0, 5.0, 5.0, 5.0])]
    neurons = [torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([-1.0, -4.0, -2.0, -3.0])]
    plan = amp.plan(model, scores_of(heads, neurons), heads=2, neurons=2)
    assert plan.heads == [[1, 3], [0, 1]] and plan.neurons == [[0, 2], [0, 2]]


def test_whole_groups_go_by_the_sum_of_their_heads() -> None:
    model = tiny(Shape(layers=1, groups=2, group_size=2, neurons=4))
    hand = scores_of([torch.tensor([9.0, 0.0, 5.0, 5.0])], [torch.ones(4)])
    plan = amp.plan(model, hand, heads=2)
    assert plan.heads == [[2, 3]] and plan.groups(0) == [1] and len(plan.neurons[0]) == 4


@given(shapes(), st.data())
def test_explicit_widths_are_kept(shape: Shape, data: st.DataObject) -> None:
    model = tiny(shape)
    groups, neurons = data.draw(st.integers(1, shape.groups)), data.draw(st.integers(1, shape.neurons))
    plan = amp.plan(model, drawn(model), heads=groups * shape.group_size, neurons=neurons)
    assert all(len(kept) == len(set(kept)) == groups * shape.group_size for kept in plan.heads)
    assert all(len(kept) == len(set(kept)) == neurons for kept in plan.neurons)
    assert all(kept == sorted(kept) for kept in (*plan.heads, *plan.neurons))
    assert plan.asked is None and "explicit widths" in str(plan)


@given(shapes(), st.integers(0, 9))
def test_a_plan_comes_back_from_json(shape: Shape, seed: int) -> None:
    model = tiny(shape)
    plan = amp.plan(model, drawn(model, seed), neurons=max(1, shape.neurons // 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deeper" / "plan.json"
        plan.save(path)
        assert amp.Plan.load(path) == plan and [p.name for p in path.parent.iterdir()] == ["plan.json"]
        assert json.loads(path.read_text())["heads"] == plan.heads
    other = amp.plan(model, drawn(model, seed + 1), neurons=max(1, shape.neurons // 2))
    assert (other == plan) == (other.neurons == plan.neurons)


def test_shared_counts_what_both_keep() -> None:
    def made(heads: list[list[int]], neurons: list[list[int]]) -> amp.Plan:
        return amp.Plan(heads, neurons, of_heads=4, of_neurons=6, of_groups=4)

    a = made([[0, 1], [2, 3]], [[0, 1, 2], [3, 4, 5]])
    assert a.shared(a) == (1.0, 1.0)
    assert a.shared(made([[1, 2], [2, 3]], [[3, 4, 5], [3, 4, 0]])) == (0.75, pytest.approx(1 / 3))


def test_a_plan_says_what_goes() -> None:
    model = tiny(Shape(layers=2, groups=4, neurons=10))
    hand = scores_of([torch.tensor([1.0, 2, 3, 4]), torch.tensor([4.0, 3, 2, 1])], [torch.arange(10.0)] * 2)
    said = str(amp.plan(model, hand, heads=3, neurons=7))
    assert "keep 3 of 4 heads and 7 of 10 neurons in each of 2 layers" in said
    assert "layer 0: heads [0] go, 3 neurons go" in said and "layer 1: heads [3] go" in said
