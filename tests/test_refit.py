"""Repair is least squares, never worse than none on its own text, exact where it can be, and leaves a stock model.

What stays is chosen exactly: against a refit of every candidate, for blocks of any size, on any Gram matrix.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    EVERY_FAMILY,
    KNOWN,
    TRAINED,
    Shape,
    batch,
    equal,
    hooks,
    logits,
    prompts,
    shapes,
    some_plan,
    tiny,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

import amp_tutorial as amp
from amp_tutorial.core.anatomy import weight_of
from amp_tutorial.core.families import Kind
from amp_tutorial.core.surgery import _kept
from amp_tutorial.methods import normal_equations as gram
from amp_tutorial.methods import repair as module
from amp_tutorial.methods.layerwise import Walk
from amp_tutorial.methods.normal_equations import Normal, eliminate
from amp_tutorial.methods.projections import residual_scale, watch

ROWS = prompts([12] * 24)
BATCHES = [batch(ROWS[i : i + 4]) for i in range(0, len(ROWS), 4)]
SEVERAL = [Shape(), Shape("phi", bias=True), Shape("qwen2", groups=2, group_size=2), Shape("gpt2")]


def inputs(model: torch.nn.Module, i: int) -> dict[str, Tensor]:
    """What enters both output projections of layer i, of all tokens."""
    found: dict[str, list[Tensor]] = {"heads": [], "neurons": []}
    layer = amp.Anatomy.of(model).layer(i)  # type: ignore[arg-type]
    pairs = (("heads", layer.output), ("neurons", layer.neurons_out))
    handles = [m.register_forward_pre_hook(lambda _, a, p=p: found[p].append(a[0].flatten(0, 1))) for p, m in pairs]
    with torch.no_grad():
        for given_batch in BATCHES:
            model(**given_batch)
    for handle in handles:
        handle.remove()
    return {part: torch.cat(x).double() for part, x in found.items()}


@pytest.mark.parametrize("shape", SEVERAL, ids=lambda s: s.family)
def test_repair_is_least_squares(shape: Shape) -> None:
    model = tiny(shape)
    plan = some_plan(model, 2, 15)
    small = module.repair(model, plan, BATCHES, sequential=False, ridge=0.0, progress=False).model
    dense, cut = amp.Anatomy.of(model), amp.Anatomy.of(small)
    for i in range(shape.layers):
        x = inputs(model, i)
        kept = (torch.tensor(plan.heads[i])[:, None] * shape.head_dim + torch.arange(shape.head_dim)).flatten()
        for part, rows in (("heads", kept), ("neurons", torch.tensor(plan.neurons[i]))):
            before, after = (
                layer.output if part == "heads" else layer.neurons_out for layer in (dense.layer(i), cut.layer(i))
            )
            y, some = x[part] @ weight_of(before).double().T, x[part][:, rows]
            if before.bias is not None:
                some = torch.cat([some, torch.ones_like(some[:, :1])], 1)
                y = y + before.bias.double()
            wanted = torch.linalg.lstsq(some, y).solution.T
            found = weight_of(after).double()
            if before.bias is not None:
                found = torch.cat([found, after.bias.double()[:, None]], 1)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(shapes(), st.data())
def test_repair_is_never_worse_than_none_on_its_own_text(shape: Shape, data: st.DataObject) -> None:
    model = tiny(shape)
    kept = dict(heads=shape.group_size, neurons=data.draw(st.integers(1, shape.neurons)))
    plan = some_plan(model, **kept, nearest=True)
    before, choose = weights(model), data.draw(st.booleans())
    sequential, ridge = data.draw(st.booleans()), data.draw(st.sampled_from((None, 1e-6, 0.1, 10.0)))
    reads = sequential and data.draw(st.booleans())
    stay = data.draw(st.sets(st.integers(0, shape.layers - 1), min_size=1))
    plan = amp.with_layers(plan, sorted(stay), model)
    found = module.repair(model, plan, BATCHES[:2], choose, sequential, reads, None, ridge, progress=False)
    assert all(fit.after <= fit.before * (1 + 1e-9) + 1e-12 for fit in found.report.fits)
    assert {fit.layer for fit in found.report.fits} == stay
    assert equal(weights(model), before) and hooks(model) == hooks(found.model) == 0
    assert found.model.num_parameters() == amp.prune(model, plan).model.num_parameters()
    assert [len(kept) for kept in found.plan.heads] == [len(kept) for kept in plan.heads]
    assert [len(kept) for kept in found.plan.neurons] == [len(kept) for kept in plan.neurons]


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_what_is_repaired_loads_in_stock_transformers(shape: Shape, tmp_path: Path) -> None:
    model = tiny(shape)
    found = module.repair(model, some_plan(model, 2, 15), BATCHES[:3], reselect=True, refit_inputs=True, progress=False)
    folder = amp.save(found.model, None, tmp_path / "saved")
    again, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(again), logits(found.model))
    assert all("forward" not in vars(part) for part in model.modules())  # the walk leaves no layer skipped


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("shape", SEVERAL, ids=lambda s: s.family)
def test_a_plan_that_removes_nothing_changes_nothing(shape: Shape, sequential: bool) -> None:
    model = tiny(shape)
    plan = amp.keep(model, amp.score(model, [], "random"), neurons=shape.neurons)
    small = module.repair(model, plan, BATCHES, sequential=sequential, ridge=1e-3, progress=False).model
    torch.testing.assert_close(logits(small), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [*SEVERAL[:3], Shape("phi3")], ids=lambda s: s.family)
def test_what_reads_the_stream_is_refitted_to_give_what_the_dense_model_gave(shape: Shape) -> None:
    model = tiny(shape)
    plan = some_plan(model, 2, 15)
    small = module.repair(model, plan, BATCHES, refit_inputs=True, ridge=1e-8, progress=False).model
    dense, cut, i = amp.Anatomy.of(model), amp.Anatomy.of(small), 1
    rows = _kept(dense, plan, i)
    kinds: tuple[tuple[Kind, str], ...] = (("query", "query"), ("shared", "value"), ("neurons", "up"))
    for kind, name in kinds:
        before, after = (a.layer(i).neurons_in[-1] if name == "up" else getattr(a.layer(i), name) for a in (dense, cut))
        (_, y), (x, found), columns = ends(model, before), ends(small, after), rows[kind]
        if shape.family == "phi3":  # a packed matrix: the query's rows come first, the others' last
            last = slice(None, dense.features(kind)) if kind == "query" else slice(-dense.features(kind), None)
            y, found = y[:, last], found[:, : len(columns)] if kind == "query" else found[:, -len(columns) :]
        if before.bias is not None:
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        # What a layer norm gives sums to a constant: with a bias that is one direction too many, and rounding in it.
        wanted = x @ torch.linalg.lstsq(x, y[:, columns], rcond=1e-6, driver="gelsd").solution
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def ends(model: torch.nn.Module, linear: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """What enters and what leaves a linear map, of all tokens."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = linear.register_forward_hook(lambda _, a, o: found.append((a[0].flatten(0, 1), o.flatten(0, 1))))
    with torch.no_grad():
        for given_batch in BATCHES:
            model(**given_batch)
    handle.remove()
    x, y = (torch.cat(part).double() for part in zip(*found, strict=True))
    return x, y


@pytest.mark.parametrize("tied", [False, True])
def test_an_output_head_of_its_own_is_refitted_to_give_the_dense_logits(tied: bool) -> None:
    model = tiny(Shape(tied=tied))
    small = module.repair(model, some_plan(model, 2, 15), BATCHES, refit_inputs=True, ridge=1e-8, progress=False).model
    if tied:
        assert torch.equal(small.lm_head.weight, model.lm_head.weight)
        return
    (_, y), (x, found) = ends(model, model.lm_head), ends(small, small.lm_head)
    wanted = x @ torch.linalg.lstsq(x, y, rcond=1e-6, driver="gelsd").solution
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


SLICED = [Shape(hidden=32, tied=True), Shape("qwen2", bias=True), Shape("gemma"), Shape("mixtral")]


@pytest.mark.parametrize("shape", SLICED, ids=lambda s: s.family)
def test_a_sliced_stream_is_repaired_into_a_stock_model(shape: Shape, tmp_path: Path) -> None:
    model = tiny(shape)
    plan = some_plan(model, 2, 15)
    found = module.repair(model, plan, BATCHES, reselect=True, refit_inputs=True, hidden_size=24, progress=False)
    assert all(fit.after <= fit.before * (1 + 1e-9) + 1e-12 for fit in found.report.fits)
    assert found.model.config.hidden_size == 24
    folder = amp.save(found.model, None, tmp_path / "saved")
    again, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(again), logits(found.model))


@pytest.mark.parametrize("shape", SLICED, ids=lambda s: s.family)
def test_repair_brings_a_sliced_model_nearer_to_the_dense_one(shape: Shape) -> None:
    model = tiny(shape)
    plan = some_plan(model, shape.heads, shape.neurons)
    wanted, cut = logits(model), logits(amp.slice_hidden(model, amp.rotation(model, BATCHES), 24).model)
    ours = logits(module.repair(model, plan, BATCHES, refit_inputs=True, hidden_size=24, progress=False).model)
    most = 1.0 if shape.family == "mixtral" else 0.9  # experts are not refitted
    assert (ours - wanted).norm() < most * (cut - wanted).norm()
    whole = module.repair(model, plan, BATCHES, refit_inputs=True, hidden_size=32, progress=False).model
    torch.testing.assert_close(logits(whole), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("shape", SEVERAL, ids=lambda s: s.family)
def test_the_layers_that_stay_make_up_for_one_that_goes(shape: Shape, gone: int) -> None:
    model = tiny(replace(shape, layers=3))
    plan = amp.with_layers(some_plan(model, shape.heads, shape.neurons), [i for i in range(3) if i != gone], model)

    def stream(some: torch.nn.Module) -> Tensor:
        last = amp.Anatomy.of(some).model.get_submodule(amp.Anatomy.of(some).family.layers)[-1]  # type: ignore[arg-type]
        found: list[Tensor] = []
        handle = last.register_forward_hook(
            lambda _, a, o: found.append((o[0] if isinstance(o, tuple) else o).detach())
        )
        for given_batch in BATCHES:
            some(**given_batch)
        handle.remove()
        return torch.cat(found)

    wanted, cut = stream(model), stream(amp.prune(model, plan).model)
    ours = stream(module.repair(model, plan, BATCHES, progress=False).model)
    assert (ours - wanted).norm() < 0.8 * (cut - wanted).norm()


def test_a_layer_that_adds_nothing_goes_for_nothing() -> None:
    model = tiny(Shape(layers=3))
    layer = amp.Anatomy.of(model).layer(0)
    torch.nn.init.zeros_(layer.output.weight)
    torch.nn.init.zeros_(layer.neurons_out.weight)
    plan = amp.with_layers(some_plan(model, 4, 24), [1, 2], model)
    small = module.repair(model, plan, BATCHES, refit_inputs=True, progress=False).model
    torch.testing.assert_close(logits(small), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choose", [True, False])
@pytest.mark.parametrize("shape", [s for s in SEVERAL if s.family != "gpt2"], ids=lambda s: s.family)
def test_what_depends_linearly_on_the_rest_is_made_up_for(shape: Shape, choose: bool) -> None:
    model = tiny(shape)
    anatomy, size = amp.Anatomy.of(model), shape.group_size * shape.head_dim
    with torch.no_grad():
        for i in range(shape.layers):
            layer = anatomy.layer(i)
            for linear in layer.neurons_in:
                for tensor in (linear.weight, *([] if linear.bias is None else [linear.bias])):
                    tensor[:4] = tensor[4:8]  # the first four neurons are copies
            for linear, rows in ((layer.query, size), (layer.key, shape.head_dim), (layer.value, shape.head_dim)):
                for tensor in (linear.weight, *([] if linear.bias is None else [linear.bias])):
                    tensor[:rows] = tensor[rows : 2 * rows]  # and so is the first KV group
    plan = amp.keep(model, amp.score(model, [], "random"), heads=shape.heads - shape.group_size, neurons=20)
    if not choose:  # with choose the copies have to be found
        plan = replace(
            plan,
            heads=[list(range(shape.group_size, shape.heads))] * shape.layers,
            neurons=[list(range(4, 24))] * shape.layers,
        )
    found = module.repair(model, plan, BATCHES, reselect=choose, ridge=1e-9, progress=False)
    torch.testing.assert_close(logits(found.model), logits(model), atol=2e-3, rtol=1e-3)
    assert not torch.allclose(logits(amp.prune(model, found.plan).model), logits(model), atol=0.05)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("size", "pools"), [(1, [0] * 6), (2, [0] * 3), (1, [0, 0, 0, 1, 1, 1])])
def test_elimination_takes_what_costs_least_after_refit(size: int, pools: list[int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double() + 1
    y = x @ torch.randn(6, 5, generator=generator).double() + torch.randn(50, 5, generator=generator)
    normal = Normal(bias)
    normal.add(x, y)
    prior = torch.zeros(5, 6).double()
    found = eliminate(*normal.centred(), prior, size, torch.tensor(pools), keep=1)

    def error(kept: list[int]) -> float:
        columns = [b * size + j for b in kept for j in range(size)]
        some = torch.cat([x[:, columns], torch.ones(50, int(bias)).double()], 1)
        return float((y - some @ torch.linalg.lstsq(some, y).solution).square().sum())

    left = list(range(len(pools)))
    while any(sum(pools[b] == p for b in left) > 1 for p in set(pools)):
        may_go = [b for b in left if sum(pools[other] == pools[b] for other in left) > 1]
        left.remove(min(may_go, key=lambda b: error([other for other in left if other != b])))
    assert found == left


def test_the_ridge_is_the_one_that_does_best_on_the_other_half() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, 30, generator=generator).double()
    for noise, strong in ((0.0, False), (30.0, True)):
        normal = Normal()
        for _ in range(2):
            x = torch.randn(40, 30, generator=generator)
            normal.add(x, x @ truth.T.float() + noise * torch.randn(40, 4, generator=generator))
        assert (normal.ridge(truth) >= 1e-1) == strong or noise == 0.0
        if noise == 0.0:
            assert normal.ridge(torch.zeros_like(truth)) == 1e-6


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_the_row_says_how_the_residual_stream_is_written(shape: Shape) -> None:
    """Measured: what both projections write, times one number, is what the layer adds; or no number makes it so."""
    granite: dict[str, Any] = {"residual_multiplier": 0.3}
    model = tiny(shape, **(granite if shape.family == "granite" else {}))
    anatomy = amp.Anatomy.of(model)
    walk = Walk(anatomy, BATCHES)
    with walk.only(0), watch(anatomy.layer(0)) as seen:
        entered, left = walk.step(0)
    written = torch.stack([output.reshape_as(entered) for _, output in seen.values()]).double().sum(0).flatten()
    change = (left.double() - entered.double()).flatten()
    scale = float(change @ written / written.square().sum())
    simple = float((change - scale * written).norm()) <= 0.02 * float(change.norm())
    assert residual_scale(anatomy) == pytest.approx(scale if simple else 0.0, abs=1e-5)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_a_walk_is_the_forward_pass(shape: Shape) -> None:
    model = tiny(shape)
    anatomy = amp.Anatomy.of(model)
    walk, rows = Walk(anatomy, [batch(prompts(), left=True), *BATCHES[:2]]), list(range(3))
    for i in range(anatomy.layers):
        with walk.only(i):
            walk.hidden = [walk.step(b)[1] for b in rows]
    layer, found = model.get_submodule(anatomy.family.layers)[-1], list[Tensor]()
    layer.register_forward_hook(lambda _, args, out: found.append(out[0] if isinstance(out, tuple) else out))
    for b in rows:
        mask = walk.batches[b]["attention_mask"]
        with torch.no_grad():
            places = (mask.cumsum(-1) - 1).clamp(min=0)
            model.base_model(**walk.batches[b], position_ids=places, use_cache=False)
        torch.testing.assert_close(walk.hidden[b], found[b])


def test_queries_are_chosen_in_every_group() -> None:
    shape = Shape("qwen2", groups=2, group_size=3)
    model = tiny(shape)
    plan = some_plan(model, 4, 15, unit="queries")
    found = module.repair(model, plan, BATCHES, reselect=True, progress=False).plan
    assert all(sum(h < 3 for h in kept) == sum(h >= 3 for h in kept) == 2 for kept in found.heads)


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny().train()
    before = weights(model)
    monkeypatch.setattr(Normal, "solve", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.repair(model, some_plan(model, 2, 15), BATCHES, progress=False)
    assert equal(weights(model), before) and hooks(model) == 0 and model.training
    assert all("forward" not in vars(part) for part in model.modules())


def test_too_little_text_is_said() -> None:
    model = tiny()
    with pytest.warns(UserWarning, match="Fewer calibration tokens than inputs of a projection .layer 0, heads: 9 tok"):
        module.repair(model, some_plan(model, 2, 15), [batch([list(range(3, 12))])], progress=False)
    with pytest.raises(ValueError, match="hold no tokens"):
        module.repair(model, some_plan(model, 2, 15), [], progress=False)
    with pytest.raises(ValueError, match="plan anew"):
        module.repair(model, some_plan(tiny(Shape(layers=3)), 2, 15), BATCHES, progress=False)
    for asked in (dict(refit_inputs=True), dict(hidden_size=24)):
        with pytest.raises(ValueError, match="need sequential=True"):
            module.repair(model, some_plan(model, 2, 15), BATCHES, sequential=False, progress=False, **asked)
    with pytest.raises(ValueError, match="The hidden size of a phi cannot be sliced"):
        phi = tiny(Shape("phi"))
        module.repair(phi, some_plan(phi, 2, 15), BATCHES, hidden_size=24, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_on_a_trained_model_each_step_helps(name: str) -> None:
    model, tokenizer = amp.load(name)
    batches = amp.calibration(tokenizer, samples=64)
    plan = amp.plan(model, amp.score(model, batches), pruning_ratio=0.5, of="block parameters")
    quality = [
        amp.perplexity(small, tokenizer, limit=60).value
        for small in (
            module.repair(model, plan, batches, reselect=True, refit_inputs=True, progress=False).model,
            module.repair(model, plan, batches, reselect=True, progress=False).model,
            module.repair(model, plan, batches, progress=False).model,
            module.repair(model, plan, batches, sequential=False, progress=False).model,
            amp.prune(model, plan).model,
        )
    ]
    assert all(better < worse for better, worse in itertools.pairwise(quality))


# What goes is replaced by its mean, where a bias can take it (methods/flap.py)

MIXED = [batch(prompts((9, 4))), batch(prompts((7, 3, 5), seed=1), left=True)]


@pytest.mark.parametrize("shape", [Shape("phi", bias=True), Shape("gpt2"), Shape("starcoder2", bias=True)], ids=str)
def test_the_bias_takes_what_goes_on_average(shape: Shape) -> None:
    model = tiny(shape)
    plan = some_plan(model, 2, 15)
    before, folded, cut = weights(model), amp.prune_and_fold(model, plan, MIXED).model, amp.prune(model, plan).model
    dense, small, plain = (amp.Anatomy.of(m) for m in (model, folded, cut))
    x: dict[int, list[torch.Tensor]] = {i: [] for i in range(shape.layers)}
    for i in x:
        dense.layer(i).neurons_out.register_forward_pre_hook(lambda _, a, i=i: x[i].append(a[0].reshape(-1, 24)))
    with torch.no_grad():
        for given in MIXED:
            for row, mask in zip(given["input_ids"], given["attention_mask"].bool(), strict=True):
                model(input_ids=row[mask][None])
    for i, inputs in x.items():
        gone = [n for n in range(24) if n not in plan.neurons[i]]
        weight = dense.layer(i).neurons_out.weight.detach()
        weight = weight.T if shape.family == "gpt2" else weight
        wanted = weight[:, gone] @ torch.cat(inputs).mean(0)[gone]
        found = small.layer(i).neurons_out.bias - plain.layer(i).neurons_out.bias
        torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=1e-4)
    assert equal(weights(model), before)


def test_neurons_that_never_change_are_made_up_for() -> None:
    model = tiny(Shape("phi", bias=True))
    with torch.no_grad():
        for i in range(2):
            amp.Anatomy.of(model).layer(i).neurons_in[0].weight[:9] = 0.0  # these give what their bias says
    plan = some_plan(model, 4, 15)
    plan = amp.Plan(**vars(plan) | {"neurons": [list(range(9, 24))] * 2})
    torch.testing.assert_close(
        logits(amp.prune_and_fold(model, plan, MIXED).model), logits(model), atol=1e-4, rtol=1e-4
    )


def test_without_biases_it_says_what_to_use() -> None:
    with pytest.raises(ValueError, match="have no biases to take the means; use amp.repair"):
        amp.prune_and_fold(tiny(), some_plan(tiny(), 2, 15), MIXED)


def test_what_the_loss_feels_is_the_outer_product_of_its_gradients() -> None:
    """Against gradients with respect to a bias of its own for each token, also where attention and MLP run at once."""
    for shape in (Shape(groups=2, group_size=2), Shape("phi"), Shape("gpt2"), Shape("mixtral", groups=2, group_size=2)):
        model = tiny(shape).train()
        given = [batch(prompts((9, 4))), batch(prompts((7, 6), seed=1))]
        before, wanted = weights(model), [p.requires_grad for p in model.parameters()]
        found = amp.output_metric(model, given)
        assert equal(weights(model), before) and hooks(model) == 0 and model.training
        assert [p.requires_grad for p in model.parameters()] == wanted and all(
            p.grad is None for p in model.parameters()
        )
        layer, expected = amp.Anatomy.of(model.eval()).layer(1), torch.zeros(shape.hidden, shape.hidden).double()
        for one in given:
            nudges: list[torch.Tensor] = []

            def nudge(_: Any, __: Any, output: torch.Tensor, nudges: list[torch.Tensor] = nudges) -> torch.Tensor:
                nudges.append(torch.zeros_like(output, requires_grad=True))
                return output + nudges[-1]

            handle = layer.output.register_forward_hook(nudge)
            labels = one["input_ids"].masked_fill(one["attention_mask"] == 0, -100)
            lost = model(**one, labels=labels).loss * float((labels[:, 1:] != -100).sum())
            (g,) = torch.autograd.grad(lost, nudges)
            handle.remove()
            g = g.reshape(-1, shape.hidden).double()
            expected += g.T @ g
        torch.testing.assert_close(found[1]["heads"], expected, rtol=1e-4, atol=1e-6)
        assert ("neurons" in found[1]) == (shape.family != "mixtral")


def test_a_choice_by_what_the_loss_feels_spares_the_outputs_it_reads() -> None:
    """Two neurons write loudly where nothing is felt, two softly where all is."""
    model = tiny(Shape(layers=1, neurons=4))
    layer = amp.Anatomy.of(model).layer(0)
    given = [batch(prompts([24] * 4, seed)) for seed in (0, 1)]
    with torch.no_grad():
        layer.neurons_out.weight.zero_()
        layer.neurons_out.weight[0, :2] = 8.0 * torch.tensor([1.0, -1.0])
        layer.neurons_out.weight[1, 2:] = torch.tensor([1.0, -1.0])
    plan = amp.keep(model, amp.score(model, [], "random"), neurons=2)
    only = torch.zeros(32, 32).double()
    only[1, 1] = 1.0
    felt = [{"heads": torch.eye(32).double(), "neurons": only}]
    plain = amp.repair(model, plan, given, reselect=True, progress=False).plan.neurons[0]
    by_loss = amp.repair(model, plan, given, reselect=True, progress=False, metric=felt).plan.neurons[0]
    assert (plain, by_loss) == ([0, 1], [2, 3])


def test_a_metric_of_another_model_is_refused() -> None:
    model = tiny(Shape())
    metric = amp.output_metric(model, BATCHES)
    nan = [{part: g.clone().fill_(torch.nan) for part, g in parts.items()} for parts in metric]
    thin = [{part: g[:, 1:] for part, g in parts.items()} for parts in metric]
    for wrong in ([], metric[:1], metric + metric[:1], [{"neurons": parts["neurons"]} for parts in metric], nan, thin):
        with pytest.raises(ValueError, match=r"metric must have, for each of 2 layers, finite matrices \(32, 32\)"):
            amp.repair(model, some_plan(model, 4, 10), BATCHES, metric=wrong, progress=False)


@pytest.mark.parametrize("rows", [(1,), ()])
def test_without_text_nothing_is_felt(rows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no finite gradients"):
        amp.output_metric(tiny(), [batch(prompts(rows))] if rows else [])


@pytest.mark.parametrize("shape", [Shape(), Shape("phi", bias=True), Shape("phi3"), Shape("gpt2")], ids=str)
@pytest.mark.parametrize("reselect", [False, True])
def test_a_polished_mlp_is_nearer_to_what_the_refit_was_fitted_to_and_its_cut_is_exact(
    shape: Shape, reselect: bool
) -> None:
    model = tiny(shape)
    before = weights(model)
    plan = some_plan(model, amp.Anatomy.of(model).heads, 15)
    plain, found = (module.repair(model, plan, BATCHES, reselect, progress=False, polish=n) for n in (0, 40))
    assert equal(weights(model), before)
    # the first layer's refit is that of `plain`, and polishing starts from there
    polished = [fit for fit in found.report.fits if fit.part == "MLP"]
    assert len(polished) == amp.Anatomy.of(model).layers
    assert all(fit.after < fit.before for fit in polished)
    neurons = [fit for fit in found.report.fits if fit.part == "neurons"]
    assert neurons[0] == plain.report.fits[1]
    # what it says of the first layer is what the small models' own MLPs do
    y = mlp_of(model, 0) + stream_before_mlp(model) - stream_before_mlp(found.model)
    for made, said in ((plain, polished[0].before), (found, polished[0].after)):
        error = (y - mlp_of(made.model, 0)).square().sum() / y.square().sum()
        assert float(error) == pytest.approx(said, rel=1e-3)


def test_under_autocast_products_are_of_bfloat16_and_nothing_else_is() -> None:
    model = tiny(Shape())
    plan = some_plan(model, amp.Anatomy.of(model).heads, 15)
    exact = module.repair(model, plan, BATCHES, progress=False, polish=40)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_cache_enabled()
        found = module.repair(model, plan, BATCHES, progress=False, polish=40)
        assert torch.is_autocast_cache_enabled()
    assert found.model.dtype == torch.float32 and not equal(weights(found.model), weights(exact.model))
    mlps = ([fit for fit in made.report.fits if fit.part == "MLP"] for made in (exact, found))
    for one, other in zip(*mlps, strict=True):
        assert (other.before, other.after) == pytest.approx((one.before, one.after), rel=0.02)
        # had autocast kept the weights of the first step, no later one would have moved them well
        assert other.after - other.before == pytest.approx(one.after - one.before, rel=0.1)


def mlp_of(model: Any, i: int) -> Tensor:
    """What the MLP of layer i writes, of all tokens."""
    return written_by(model, model.get_submodule(f"{amp.Anatomy.of(model).family.layers}.{i}.mlp"))


def stream_before_mlp(model: Any) -> Tensor:
    """The residual stream after the attention of layer 0: only what attention writes can differ there."""
    return written_by(model, amp.Anatomy.of(model).layer(0).output)


def written_by(model: Any, part: torch.nn.Module | None) -> Tensor:
    found: list[Tensor] = []
    assert part is not None
    handle = part.register_forward_hook(lambda _, args, out: found.append(out))
    with torch.no_grad():
        for given_batch in BATCHES:
            model(**given_batch)
    handle.remove()
    return torch.cat([t.reshape(-1, t.shape[-1]) for t in found]).double()


def test_polishing_is_deterministic_and_heads_stay_as_the_refit_left_them() -> None:
    model = tiny(Shape())
    plan = some_plan(model, amp.Anatomy.of(model).heads, 15)
    once, again, none = (module.repair(model, plan, BATCHES, progress=False, polish=n).model for n in (3, 3, 0))
    assert equal(weights(once), weights(again))
    first = "model.layers.0."
    changed = {n for n, t in weights(once).items() if n.startswith(first) and not torch.equal(t, weights(none)[n])}
    assert changed == {f"{first}mlp.{name}_proj.weight" for name in ("gate", "up", "down")}


def test_a_sliced_stream_is_polished_too_and_the_winner_of_a_search() -> None:
    model = tiny(Shape())
    plan = some_plan(model, amp.Anatomy.of(model).heads, 15)
    metric = amp.output_metric(model, BATCHES)
    found = module.repair(model, plan, BATCHES, hidden_size=24, progress=False, polish=20, metric=metric)
    polished = [fit for fit in found.report.fits if fit.part == "MLP"]
    assert len(polished) == 2 and all(fit.after < fit.before for fit in polished)
    plain, best = (amp.fit_budget(model, BATCHES, 0.3, trials=2, polish=n, progress=False) for n in (0, 5))
    assert best.report.shape == plain.report.shape and best.report.loss == plain.report.loss
    assert not equal(weights(best.model), weights(plain.model))
    with pytest.raises(ValueError, match="polish=-1"):
        amp.fit_budget(model, BATCHES, 0.3, trials=2, polish=-1, progress=False)


def test_polishing_weighs_errors_by_the_metric() -> None:
    model = tiny(Shape())
    plan = some_plan(model, amp.Anatomy.of(model).heads, 10)
    hidden = amp.Anatomy.of(model).hidden
    one = torch.zeros(hidden, hidden).double()
    one[0, 0] = 1.0
    metric = [{"heads": one, "neurons": one}] * amp.Anatomy.of(model).layers
    blind, seeing = (module.repair(model, plan, BATCHES, progress=False, polish=40, metric=m) for m in (None, metric))
    y = mlp_of(model, 0) + stream_before_mlp(model) - stream_before_mlp(blind.model)
    left = [(y - mlp_of(found.model, 0))[:, 0].square().sum() for found in (blind, seeing)]
    assert left[1] < 0.9 * left[0]


@pytest.mark.parametrize(
    ("family", "asked", "sentence"),
    [
        ("llama", dict(polish=3, sequential=False), "need sequential=True"),
        ("llama", dict(polish=-1), "polish=-1 must be at least 0"),
        ("mixtral", dict(polish=3), "The MLPs of a mixtral cannot be polished: its MLP is a mixture of experts"),
        ("opt", dict(polish=3), "The MLPs of a opt cannot be polished: its layers hold"),
    ],
)
def test_what_cannot_be_polished_is_refused(family: str, asked: dict[str, Any], sentence: str) -> None:
    model = tiny(Shape(family))
    plan = amp.keep(model, amp.score(model, [], "random"))
    with pytest.raises(ValueError, match=sentence):
        module.repair(model, plan, BATCHES, progress=False, **asked)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def inputs_of_kind(kind: str, tokens: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (tokens, features) of a kind, and factors by which their weights are to be divided so that all matter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, features, generator=generator).double()
    x = x + 0.5 * x @ torch.randn(features, features, generator=generator).double() / features**0.5
    factors = torch.ones(features).double()
    if kind == "duplicate":
        x[:, ::3] = x[:, 1::3][:, : len(x[0, ::3])]
    if kind == "nearly duplicate":
        x[:, ::3] = x[:, 1::3][:, : len(x[0, ::3])] + 1e-5 * x[:, ::3]
    if kind == "silent":
        x[:, 1::4] = 0
    if kind in ("huge", "tiny", "both"):
        factors[::5] = 1e-5 if kind == "tiny" else 1e5
        factors[1::5] = 1e-5 if kind == "both" else 1.0
    if kind == "far from 0":
        x = x + 300
    return x * factors, factors


def with_ridge(
    x: Tensor, y: Tensor, prior: Tensor, ridge: float = gram.LEAST, silent: float = gram.SILENT
) -> tuple[Tensor, Tensor]:
    """The penalty of each weight as one token more."""
    energy = x.square().sum(0)
    root = (ridge * energy.clamp(min=silent * float(energy.max()))).sqrt()
    return torch.cat([x, root.diag()]), torch.cat([y, root[:, None] * prior.T])


def left_over(x: Tensor, y: Tensor, size: int, kept: list[int]) -> float:
    """What no weights of these structures can explain of y, by singular values of scaled columns."""
    columns = [b * size + j for b in kept for j in range(size)]
    some = x[:, columns]
    some = some / some.norm(dim=0).clamp(min=1e-300)
    return float((y - some @ torch.linalg.lstsq(some, y, rcond=1e-10, driver="gelsd").solution).square().sum())


KINDS = ("plain", "duplicate", "nearly duplicate", "silent", "huge", "tiny", "both", "far from 0", "few tokens")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_choice_is_the_one_that_trying_every_candidate_finds(kind: str, size: int, dtype: torch.dtype) -> None:
    features = 12 * size if size < 3 else 18
    x, factors = inputs_of_kind(kind, 8 * size if kind == "few tokens" else 90, features)
    x = x.to(dtype).double()  # as a model in this precision gives them
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, features, generator=generator).double()
    y = x @ (weight / factors).T
    least = 1e-9 * float(y.square().sum())  # below, every choice is right
    tokens, wanted = with_ridge(x, y, weight / factors)
    gram_matrix, pools, left = (x.T @ x, x.T @ y), torch.zeros(features // size).long(), list(range(features // size))
    for keep in range(len(left) - 1, len(left) // 2 - 1, -1):  # it is greedy: each choice is one more than the last
        found = eliminate(*gram_matrix, weight / factors, size, pools, keep)
        tried = {b: left_over(tokens, wanted, size, [other for other in left if other != b]) for b in left}
        [gone] = set(left) - set(found)
        assert tried[gone] <= 1.01 * min(tried.values()) + least
        left = found
    assert len(left) == features // size // 2 and left == sorted(left)


BLOCKS = [(1, 40), (2, 20), (16, 5), (64, 4), (192, 3), (512, 2)]


@pytest.mark.parametrize(("size", "structures"), BLOCKS)
def test_blocks_of_every_size(size: int, structures: int, threads: int) -> None:
    features, generator = size * structures, torch.Generator().manual_seed(2)
    x, _ = inputs_of_kind("plain", features + 100, features)
    weight = torch.randn(8, features, generator=generator).double()
    y, pools = x @ weight.T, torch.zeros(structures).long()
    xx, xy, costs = x.T @ x, x.T @ y, []
    for keep in (structures - 1, structures // 2):
        found = eliminate(xx, xy, weight, size, pools, keep)
        assert len(found) == keep and found == sorted(found)
    [gone] = set(range(structures)) - set(eliminate(xx, xy, weight, size, pools, structures - 1))
    for b in range(structures):
        others = torch.tensor([j for j in range(features) if j // size != b])
        w = torch.cholesky_solve(xy[others], torch.linalg.cholesky(xx[others][:, others]))
        costs.append(float((y - x[:, others] @ w).square().sum()))
    assert costs[gone] <= min(costs) * (1 + 1e-6)


def test_a_long_elimination_does_not_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """150 inputs of 100 tokens: C begins at 1e8 and ends near 1. Never computed anew, it would be wrong by then."""
    x, _ = inputs_of_kind("nearly duplicate", 100, 150)
    weight = torch.randn(5, 150, generator=torch.Generator().manual_seed(3)).double()
    y, pools = x @ weight.T, torch.zeros(150).long()
    counted, cholesky = [0], gram._cholesky

    def count(*args: Tensor) -> tuple[Tensor, Tensor]:
        counted[0] += 1
        return cholesky(*args)

    monkeypatch.setattr(gram, "_cholesky", count)
    found = eliminate(x.T @ x, x.T @ y, weight, 1, pools, 40)
    assert 10 < counted[0] < 111  # anew now and then, not at every step
    last = eliminate(x.T @ x, x.T @ y, weight, 1, pools, 41)
    [gone] = set(last) - set(found)
    tokens, wanted = with_ridge(x, y, weight)
    costs = {b: left_over(tokens, wanted, 1, [other for other in last if other != b]) for b in last}
    assert costs[gone] <= 1.01 * min(costs.values())


def test_costs_are_brought_up_to_date_and_not_computed_anew_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 160 inputs 80 go: C is computed some eleven times, once for each sixteenth of what is left."""
    x, _ = inputs_of_kind("plain", 400, 160)
    weight = torch.randn(5, 160, generator=torch.Generator().manual_seed(3)).double()
    counted, cholesky = [0], gram._cholesky

    def count(*args: Tensor) -> tuple[Tensor, Tensor]:
        counted[0] += 1
        return cholesky(*args)

    monkeypatch.setattr(gram, "_cholesky", count)
    eliminate(x.T @ x, x.T @ (x @ weight.T), weight, 1, torch.zeros(160).long(), 80)
    assert 8 <= counted[0] <= 14


def test_a_whole_layer_that_is_silent_and_one_that_is_not_finite() -> None:
    zero = torch.zeros(6, 6).double()
    assert len(eliminate(zero, zero[:, :2], torch.ones(2, 6).double(), 2, torch.zeros(3).long(), 1)) == 1
    for what in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="NaN, infinite or too large to be squared"):
            eliminate(zero + what, zero[:, :2], torch.ones(2, 6).double(), 2, torch.zeros(3).long(), 1)


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_refit_of_any_inputs_is_the_least_of_what_it_minimises(kind: str, ridge: float) -> None:
    x, factors = inputs_of_kind(kind, 20 if kind == "few tokens" else 90, 30)
    generator = torch.Generator().manual_seed(4)
    prior = torch.randn(4, 30, generator=generator).double() / factors
    y = x @ prior.T + 3 * torch.randn(len(x), 4, generator=generator).double()
    normal = Normal()
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        normal.add(x[rows], y[rows])
    whole, wanted = with_ridge(x, y, prior, ridge, 1e-12)
    scaled = whole / (norms := whole.norm(dim=0).clamp(min=1e-300))
    best = torch.linalg.lstsq(scaled, wanted, rcond=1e-9, driver="gelsd").solution / norms[:, None]
    found = normal.solve(prior, ridge)
    least, ours = (float((wanted - whole @ w).square().sum()) for w in (best, found.T))
    assert bool(found.isfinite().all()) and ours <= least * (1 + 1e-3) + 1e-6 * float(y.square().sum())
    assert normal.error(found) <= normal.error(prior) and normal.ridge(prior) in gram.RIDGES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_repair_chooses_among_groups_as_wide_as_those_of_a_real_model(dtype: str, threads: int) -> None:
    """Three KV groups of 3 · 64 features, as in SmolLM2-135M, on which batched LU fails with two threads."""
    model = tiny(Shape("llama", layers=1, groups=3, group_size=3, head_dim=64, hidden=36, neurons=40, dtype=dtype))
    rows = prompts([30] * 8)
    found = amp.repair(model, some_plan(model, 6, 20), [batch(rows[:4]), batch(rows[4:])], choose=True, progress=False)
    assert [len(kept) for kept in (*found.plan.heads, *found.plan.neurons)] == [6, 20]
    assert all(fit.after <= fit.before for fit in found.fits)
    assert all(b - a in (1, 4) for a, b in itertools.pairwise(found.plan.heads[0]))  # whole groups
