"""Plans: what is asked is achieved, counted on real models; the highest scores stay; plans are plain data."""

import json
import re
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers import KNOWN, WITH_NEURONS, Shape, every, logits, sayable, shapes, tiny
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.core.plans import OF
from amp_tutorial.methods.depth_and_width import planned

RATIOS = st.floats(0.02, 0.7)


def scores_of(heads: list[Tensor], neurons: list[Tensor]) -> amp.Scores:
    return amp.Scores(heads, neurons, "hand", "tokens", tokens=1, prompts=1, seed=0)


def drawn(model: PreTrainedModel, seed: int = 0) -> amp.Scores:
    return amp.score(model, [], "random", seed=seed)


def possible_parts(family: str) -> tuple[str, ...]:
    row = amp.FAMILIES[family]
    return ("neurons",) if row.no_heads else ("heads",) if row.no_neurons else ("both", "neurons", "heads")


@given(
    shapes(),
    RATIOS,
    st.sampled_from(OF),
    st.sampled_from(("groups", "queries")),
    st.data(),
)
def test_asked_is_achieved(shape: Shape, remove: float, of: str, unit: str, data: st.DataObject) -> None:
    """To half a neuron in each layer, or half a unit of heads with heads only; counted on the model that comes out."""
    parts = data.draw(st.sampled_from(possible_parts(shape.family)))
    model = tiny(shape)
    anatomy = amp.Anatomy.of(model)
    total = model.num_parameters() if of == "parameters" else anatomy.block_parameters
    try:
        plan = amp.plan(model, drawn(model), pruning_ratio=remove, of=of, parts=parts, unit=unit)
    except ValueError as error:  # too much asked, or a head count that no configuration says; tested on their own
        assert "without a" in str(error) or "that divide the hidden size" in str(error)
        assume(False)
    small = amp.prune(model, plan).model
    a_unit = anatomy.group_cost if unit == "groups" else anatomy.query_cost
    step = a_unit if parts == "heads" else anatomy.neuron_cost
    gone = model.num_parameters() - small.num_parameters()
    assert abs(gone - remove * total) <= anatomy.layers * step / 2 + 1e-6 * total
    assert gone == pytest.approx(plan.achieved * total, abs=0.01) and plan.asked == remove and plan.unit == unit
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
    plan = amp.plan(model, hand, pruning_ratio=k * 202_383_360 / 6_738_415_616)
    assert {(len(h), len(n)) for h, n in zip(plan.heads, plan.neurons, strict=True)} == {(32 - k, 11_008 - 344 * k)}
    assert f"removes {percent} of all parameters" in str(plan)


def test_the_highest_scores_stay_and_ties_go_to_the_lower_index() -> None:
    model = tiny(Shape(layers=2, groups=4, neurons=4))
    heads = [torch.tensor([0.1, 0.9, 0.3, 0.8]), torch.tensor([5.0, 5.0, 5.0, 5.0])]
    neurons = [torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([-1.0, -4.0, -2.0, -3.0])]
    plan = amp.keep(model, scores_of(heads, neurons), heads=2, neurons=2)
    assert plan.heads == [[1, 3], [0, 1]] and plan.neurons == [[0, 2], [0, 2]]


@given(shapes(), st.sampled_from(("groups", "queries")), st.data())
def test_explicit_widths_are_kept(shape: Shape, unit: str, data: st.DataObject) -> None:
    """Whole groups with all their heads, or as many heads from every group; no index twice, and in order."""
    row, model = amp.FAMILIES[shape.family], tiny(shape)
    units, each = (shape.groups, shape.group_size) if unit == "groups" else (shape.group_size, shape.groups)
    heads = shape.heads if row.no_heads else each * data.draw(st.integers(1, units))
    neurons = 0 if row.no_neurons else data.draw(st.integers(1, shape.neurons))
    assume(sayable(shape, heads))
    plan = amp.keep(model, drawn(model), heads=heads, neurons=neurons, unit=unit)
    for kept in plan.heads:
        served = Counter(head // shape.group_size for head in kept)
        assert len(kept) == heads and set(served.values()) == {shape.group_size if unit == "groups" else heads // each}
    assert all(len(kept) == neurons for kept in plan.neurons)
    assert all(kept == sorted(set(kept)) for kept in (*plan.heads, *plan.neurons))
    assert plan.asked is None and "explicit widths" in str(plan)


GROUPED = Shape("mistral", layers=1, groups=2, group_size=2, neurons=4)
GROUP_SCORES = scores_of([torch.tensor([9.0, 0.0, 5.0, 5.0])], [torch.ones(4)])  # two KV groups of two heads


@pytest.mark.parametrize(("combine", "group"), [("sum", 1), ("max", 0)])
def test_a_groups_score_is_combined_from_its_heads(combine: str, group: int) -> None:
    plan = amp.keep(tiny(GROUPED), GROUP_SCORES, heads=2, combine=combine)
    assert plan.groups(0) == [group] and plan.combine == combine


def test_queries_go_from_every_group_the_lowest_first() -> None:
    plan = amp.keep(tiny(GROUPED), GROUP_SCORES, heads=2, unit="queries")
    assert plan.heads == [[0, 2]] and plan.groups(0) == [0, 1]  # a tie goes to the lower index


def test_multi_query_attention_loses_single_heads() -> None:
    """One KV head serves all: whole groups cannot go, query heads can."""
    model = tiny(Shape("mistral", groups=1, group_size=4, hidden=32))
    hand = scores_of([torch.tensor([3.0, 1.0, 4.0, 2.0])] * 2, [torch.arange(24.0)] * 2)
    plan = amp.keep(model, hand, heads=3, unit="queries")
    assert plan.heads == [[0, 2, 3]] * 2 and plan.groups(0) == [0]
    with pytest.raises(ValueError, match="heads=3 is not possible: keep a multiple of 4.*; unit='queries' can"):
        amp.keep(model, hand, heads=3)


@given(shapes(families=WITH_NEURONS), RATIOS, st.integers(1, 9), st.data())
def test_aligned_widths_are_the_nearest_multiple(shape: Shape, remove: float, align: int, data: st.DataObject) -> None:
    align = min(align, shape.neurons)
    model = tiny(shape)
    widths = range(align, shape.neurons + 1, align)
    asked = data.draw(st.integers(1, shape.neurons - 1))
    found = len(planned(model, drawn(model), neurons=asked, align=align).neurons[0])
    assert found in widths and abs(found - asked) == min(abs(width - asked) for width in widths)
    try:
        exact = amp.plan(model, drawn(model), pruning_ratio=remove, of="block parameters", parts="neurons")
    except ValueError:
        return
    plan = planned(model, drawn(model), pruning_ratio=remove, of="block parameters", parts="neurons", align=align)
    found, asked = len(plan.neurons[0]), len(exact.neurons[0])
    assert asked == shape.neurons or abs(found - asked) == min(abs(width - asked) for width in widths)
    gone = model.num_parameters() - amp.prune(model, plan).model.num_parameters()
    assert gone == pytest.approx(plan.achieved * amp.Anatomy.of(model).block_parameters, abs=0.01)


@pytest.mark.parametrize(
    "shape",
    [Shape(name, groups=6, hidden=36, bias=True) for name in ("gemma2", "gemma3_text", "llama")],
    ids=lambda s: s.family,
)
def test_head_counts_that_no_configuration_says_are_refused_or_made_the_nearest(shape: Shape) -> None:
    """A divisor of 36 up to 6 heads is 1, 2, 3, 4 or 6; five heads are as near to six, and more is less harm."""
    model = tiny(shape)
    said = f"{shape.family} configuration takes only head counts that divide the hidden size 36, not 5"
    with pytest.raises(ValueError, match=f"{said}.*keep 1, 2, 3, 4, 6 heads, or say nearest=True"):
        amp.keep(model, drawn(model), heads=5)
    assert len(planned(model, drawn(model), heads=5, nearest=True).heads[0]) == 6
    assert len(planned(model, drawn(model), heads=4, nearest=True).heads[0]) == 4
    share = 1.05 * amp.Anatomy.of(model).group_cost / (amp.Anatomy.of(model).block_parameters / 2)
    with pytest.raises(ValueError, match=said):
        amp.plan(model, drawn(model), pruning_ratio=share, of="block parameters", parts="heads")
    plan = planned(model, drawn(model), pruning_ratio=0.2, of="block parameters", nearest=True)
    small = amp.prune(model, plan).model
    assert 36 % len(plan.heads[0]) == 0 and logits(small).isfinite().all()
    half = amp.Anatomy.of(model).neuron_cost / 2 * shape.layers / amp.Anatomy.of(model).block_parameters
    assert plan.achieved == pytest.approx(0.2, abs=half)  # neurons make up for the heads that stay


FIXED = every([name for name in KNOWN if amp.FAMILIES[name].no_heads])
EXPERTS = every([name for name in KNOWN if amp.FAMILIES[name].no_neurons])


@pytest.mark.parametrize(
    ("shape", "part", "other", "reason"),
    [(s, "heads", "neurons", amp.FAMILIES[s.family].no_heads) for s in FIXED]
    + [(s, "neurons", "heads", "its MLP is a mixture of experts, which go whole (drop_experts)") for s in EXPERTS],
    ids=lambda value: value.family if isinstance(value, Shape) else "",
)
def test_what_a_family_cannot_lose_is_said(shape: Shape, part: str, other: str, reason: str) -> None:
    model = tiny(shape)
    said = f"{shape.family} cannot lose {part}: {reason}"
    for parts in ("both", part):
        with pytest.raises(ValueError, match=f"{re.escape(said)}.*Say parts='{other}'"):
            amp.plan(model, drawn(model), pruning_ratio=0.2, parts=parts)
    with pytest.raises(ValueError, match=f"{re.escape(said)}.*Leave {part}=… out"):
        amp.keep(model, drawn(model), heads=2 if part == "heads" else None, neurons=2 if part == "neurons" else None)
    small = amp.prune(model, amp.plan(model, drawn(model), pruning_ratio=0.1, of="block parameters", parts=other)).model
    assert small.num_parameters() < model.num_parameters() and type(small) is type(model)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("unit='heads' must be one of groups, queries", dict(unit="heads")),
        ("combine='mean' must be one of sum, max", dict(combine="mean")),
        ("align=0 must lie between 1 and the number of neurons, 24", dict(align=0)),
        ("align=32 must lie between", dict(align=32)),
        ("keep a multiple of 2 .one query head of every KV group.", dict(heads=3, unit="queries")),
    ],
)
def test_options_that_mean_nothing(words: str, asked: dict) -> None:
    model = tiny(Shape("mistral", groups=2, group_size=2))
    with pytest.raises(ValueError, match=words):
        planned(model, drawn(model), **dict(neurons=11) | asked)


@given(shapes(families=WITH_NEURONS), st.integers(0, 9), st.sampled_from(("groups", "queries")))
def test_a_plan_comes_back_from_json(shape: Shape, seed: int, unit: str) -> None:
    model = tiny(shape)
    plan = amp.keep(model, drawn(model, seed), neurons=max(1, shape.neurons // 2), unit=unit, combine="max")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deeper" / "plan.json"
        plan.save(path)
        assert amp.Plan.load(path) == plan and [p.name for p in path.parent.iterdir()] == ["plan.json"]
        assert json.loads(path.read_text())["heads"] == plan.heads
    other = amp.keep(model, drawn(model, seed + 1), neurons=max(1, shape.neurons // 2), unit=unit, combine="max")
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
    said = str(amp.keep(model, hand, heads=3, neurons=7))
    assert "keep 3 of 4 heads and 7 of 10 neurons in each of 2 layers" in said
    assert "layer 0: heads [0] go, 3 neurons go" in said and "layer 1: heads [3] go" in said


@settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much])  # many such ratios leave nothing
@given(shapes(), RATIOS, st.sampled_from(OF), st.data())
def test_widths_make_up_for_what_layers_leave_of_the_budget(
    shape: Shape, remove: float, of: str, data: st.DataObject
) -> None:
    """One ratio for depth and width: to half a neuron, or half a unit of heads, in each layer that stays."""
    shape = replace(shape, layers=shape.layers + 2)
    parts = data.draw(st.sampled_from(possible_parts(shape.family)))
    kept = sorted(data.draw(st.sets(st.integers(0, shape.layers - 1), min_size=1, max_size=shape.layers)))
    model = tiny(shape)
    anatomy = amp.Anatomy.of(model)
    total = model.num_parameters() if of == "parameters" else anatomy.block_parameters
    try:
        plan = planned(model, drawn(model), pruning_ratio=remove, of=of, parts=parts, layers=kept)
    except ValueError as error:
        said = str(error)
        assert (
            "without a" in said or "that divide the hidden size" in said or f"more than pruning_ratio={remove}" in said
        )
        assume(False)
    small = amp.prune(model, plan).model
    step = anatomy.group_cost if parts == "heads" else anatomy.neuron_cost
    gone = model.num_parameters() - small.num_parameters()
    assert abs(gone - remove * total) <= len(kept) * step / 2 + 1e-6 * total
    assert gone == pytest.approx(plan.achieved * total, abs=0.01)
    assert plan.kept_layers == kept and (plan.layers is None) == (len(kept) == shape.layers)
    assert all(bool(plan.heads[i]) == (i in kept) for i in range(shape.layers))


def test_layers_join_a_plan_before_or_after_the_widths() -> None:
    model = tiny(Shape(layers=4))
    before = planned(model, drawn(model), heads=2, neurons=9, layers=[3, 0])
    after = amp.with_layers(amp.keep(model, drawn(model), heads=2, neurons=9), [0, 3], model)
    assert before == after and before.layers == [0, 3] and before.neurons[1] == before.heads[2] == []
    assert before.achieved == pytest.approx(
        1 - amp.prune(model, before).model.num_parameters() / model.num_parameters()
    )
    assert planned(model, drawn(model), layers=[0, 3]).widths == (4, 4, 24)
    for layers in ([], [0, 0], [4], [-1]):
        with pytest.raises(ValueError, match="must name at least one layer, and each once, of those kept"):
            planned(model, drawn(model), heads=2, layers=layers)
    with pytest.raises(ValueError, match=r"of those kept: \[0, 3\]"):
        amp.with_layers(before, [1, 3], model)
    with pytest.raises(ValueError, match="The layers that go are 75.0% of .* more than pruning_ratio=0.5; keep more"):
        planned(model, drawn(model), pruning_ratio=0.5, of="block parameters", layers=[2])


def test_plans_of_layers_come_back_from_json_and_older_plans_load(tmp_path: Path) -> None:
    model = tiny(Shape(layers=4))
    plan = planned(model, drawn(model), heads=2, neurons=9, layers=[0, 3])
    plan.save(tmp_path / "plan.json")
    assert amp.Plan.load(tmp_path / "plan.json") == plan
    wide = amp.keep(model, drawn(model), heads=2, neurons=9)
    older = {name: value for name, value in asdict(wide).items() if name != "layers"}
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert amp.Plan.load(tmp_path / "older.json") == wide and wide.layers is None


@pytest.mark.parametrize("field", ["of", "unit", "combine"])
def test_a_file_with_another_word_is_no_plan(field: str, tmp_path: Path) -> None:
    model = tiny(Shape())
    wrong = asdict(amp.keep(model, drawn(model), heads=2, neurons=9)) | {field: "blocks of wood"}
    (tmp_path / "plan.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=f"as Plan.save writes them .{field}='blocks of wood' must be one"):
        amp.Plan.load(tmp_path / "plan.json")


def test_shared_counts_only_layers_that_both_keep() -> None:
    model = tiny(Shape(layers=4))
    wide = amp.keep(model, drawn(model), heads=2, neurons=9)
    deep, other = amp.with_layers(wide, [0, 3], model), amp.with_layers(wide, [0, 1], model)
    assert deep.shared(wide) == (1.0, 1.0) and wide.shared(deep) == (0.5, 0.5) and deep.shared(other) == (0.5, 0.5)
    with pytest.raises(ValueError, match="models of 4 and 2 layers"):
        wide.shared(amp.keep(tiny(), drawn(tiny()), heads=2))


def test_one_ranking_of_heads_and_neurons_says_how_much_of_each_goes() -> None:
    model = tiny(Shape(layers=2, groups=4, head_dim=8, hidden=32, neurons=24))
    anatomy = amp.Anatomy.of(model)
    low, high = torch.zeros(4), torch.ones(24)

    def asked(heads: float, neurons: float, criterion: str = "flap") -> tuple[int, int]:
        scores = amp.Scores([low + heads] * 2, [high + neurons] * 2, criterion, "tokens", 1, 1, 0)
        plan = planned(model, scores, pruning_ratio=0.3, of="block parameters", parts="scored")
        assert plan.achieved == pytest.approx(0.3, abs=anatomy.neuron_cost / anatomy.block_parameters * 2)
        return len(plan.heads[0]), len(plan.neurons[0])

    most = int(0.3 * anatomy.block_parameters / 2 // anatomy.group_cost)
    assert asked(0, 5)[0] == 4 - most  # heads are worth less: as many go as fit
    assert asked(5, 0)[0] == 4 and asked(5, 0)[1] < 24
    assert asked(5, 0, "one of the reader's own")[0] == 4
    with pytest.raises(ValueError, match="Scores by 'amp' of a head and of a neuron are in different units"):
        asked(0, 5, "amp")
