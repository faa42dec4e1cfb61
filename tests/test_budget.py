"""One budget: every candidate meets it, costs are exact, the search is bounded, and text kept apart stays so."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SLICED, batch, byte_tokenizer, equal, hooks, logits, prompts, tiny, weights
from helpers import Shape as Tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import amp_tutorial as amp
from amp_tutorial.measure.costs import Timing
from amp_tutorial.methods import budget
from amp_tutorial.methods.depth_and_width import planned
from amp_tutorial.methods.shapes import CUT, OF, Shape, Shapes

ROWS = prompts([12] * 16)
BATCHES = [batch(ROWS[i : i + 4]) for i in range(0, len(ROWS), 4)]
GROUPED = Tiny("qwen2", layers=3, groups=3, group_size=2)
SEVERAL = [
    Tiny(layers=3),
    GROUPED,
    Tiny("mistral", layers=3, groups=1, group_size=4, tied=True),  # multi-query
    Tiny("gemma", groups=2, group_size=2, tied=True),
    Tiny("mixtral", layers=2, groups=2, group_size=2),
    Tiny("gpt2", layers=3, tied=True),
    Tiny("phi", layers=3, bias=True),
    Tiny(bias=True),  # a LLaMA that wants a hidden size that its heads divide
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Fewer calibration tokens"),
    pytest.mark.filterwarnings("ignore:.*calibration tokens for a hidden size"),
]


def slow(model: Any, prompt: int, new: int, **_: Any) -> dict[str, Timing]:
    """Time as if every parameter took as long, whatever else the machine does."""
    return {name: Timing(*[float(model.num_parameters())] * 3) for name in ("prefill", "decode")}


def built(model: Any, shape: Shape) -> Any:
    """The model of a shape, by pruning and slicing real weights."""
    unit = Shapes(model, 0.01, "parameters", ["neurons", "layers"], 4, 0).unit
    layers = list(range(shape.layers))
    drawn = amp.score(model, [], "random")
    plan = planned(model, drawn, heads=shape.heads, neurons=shape.neurons, layers=layers, unit=unit)
    small = amp.prune(model, plan).model
    if shape.hidden < model.config.hidden_size:
        small = amp.slice_hidden(small, amp.rotation(small, BATCHES), shape.hidden).model
    return small


@settings(max_examples=25)
@given(st.sampled_from(SEVERAL), st.sampled_from(OF), st.sets(st.sampled_from(CUT), min_size=1), st.data())
def test_every_candidate_meets_the_target_and_none_is_smaller_than_need_be(
    tiny_shape: Tiny, of: str, cut: set[str], data: st.DataObject
) -> None:
    """Whatever the losses are: at most so many trials, none twice, and the winner is the least."""
    remove, trials = data.draw(st.sampled_from((0.01, 0.1, 0.3, 0.5, 0.75))), data.draw(st.integers(1, 12))
    if tiny_shape.family not in SLICED:
        cut -= {"hidden"}
    assume(cut and (of != "cache" or cut & {"heads", "layers"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amp_tutorial.methods.shapes.latency", slow)
        try:
            shapes = Shapes(tiny(tiny_shape), remove, of, sorted(cut), 5, 0)
        except ValueError as error:
            assert "No shape of" in str(error)
            return
        generator, losses = torch.Generator().manual_seed(data.draw(st.integers(0, 9))), {}

        def judge(shape: Shape) -> float:
            assert shape not in losses
            losses[shape] = float(torch.rand((), generator=generator))
            return losses[shape]

        def costs(shape: Shape) -> list[float]:
            """Right, or wrong, or none: the search ends well whatever is expected."""
            return data.draw(st.sampled_from(([1.0, 2.0], [0.0, 0.0], [shape.layers, -shape.heads])))

        winner = budget._search(shapes, judge, trials, costs)
        assert 1 <= len(losses) <= trials and losses[winner] == min(losses.values())
        for shape in losses:
            assert shapes.removed(shape) >= remove and math.isfinite(shapes.amount(shape))
            more = shapes.step(shape, {shapes.solved: 1})
            assert more is None or shapes.amount(more) > shapes.most
            kept = {name for name, whole in vars(shapes.whole).items() if getattr(shape, name) == whole}
            assert set(CUT) - cut <= kept


def test_the_shape_expected_to_lose_least_comes_first_and_what_is_judged_corrects_it() -> None:
    """Losses are a constant and shares of the costs, which the search has to find: heads cost more than it expects."""
    shapes = Shapes(tiny(Tiny("qwen2", layers=6, groups=6)), 0.4, "parameters", ["heads", "neurons", "layers"], 5, 0)
    asked: list[Shape] = []

    def costs(shape: Shape) -> list[float]:
        gone = shapes.whole.heads - shape.heads, shapes.whole.layers - shape.layers
        return [0.1 * gone[0], 0.3 * gone[1], 2.0 * (1 - shape.neurons / shapes.whole.neurons) ** 2]

    def judge(shape: Shape) -> float:
        asked.append(shape)
        heads, layers, neurons = costs(shape)
        return 3.0 + 2.0 * heads + 0.4 * layers + 0.5 * neurons

    every = [shape for name in shapes.walked for shape in shapes.start(name)]
    found = budget._search(shapes, judge, 6, costs)
    assert sum(costs(asked[0])) == min(sum(costs(shape)) for shape in every)
    assert judge(found) <= min(judge(shape) for shape in every)


@settings(max_examples=12)
@given(st.sampled_from(SEVERAL), st.data())
def test_amounts_are_those_of_the_built_model(tiny_shape: Tiny, data: st.DataObject) -> None:
    model = tiny(tiny_shape)
    cut = [name for name in CUT if name != "hidden" or tiny_shape.family in SLICED]
    shapes = Shapes(model, 0.01, "parameters", cut, 5, 0)
    shape = Shape(**{name: data.draw(st.sampled_from(values)) for name, values in shapes.values.items()})
    assume(math.isfinite(shapes.amount(shape)))
    small = built(model, shape)
    assert shapes.amount(shape) == small.num_parameters()
    operations = Shapes(model, 0.01, "operations", cut, 5, 0)
    assert operations.amount(shape) == amp.flops(small, 5).prefill
    cache = Shapes(model, 0.01, "cache", cut, 5, 0)
    assert cache.amount(shape) == amp.kv_cache_bytes(small, 5)


def test_what_is_solved_for_is_exact_against_a_loop() -> None:
    shapes = Shapes(tiny(GROUPED), 0.4, "parameters", ["heads", "neurons", "layers"], 5, 0)
    for layers in (1, 2, 3):
        for heads in (2, 4, 6):
            every = [Shape(32, layers, heads, n) for n in range(1, 25)]
            fit = [shape for shape in every if shapes.amount(shape) <= shapes.most]
            found = shapes.largest(every[0])
            assert found in ([fit[-1]] if fit and fit[-1].neurons < 24 else [None, *fit[-1:]])


def test_time_is_that_of_the_dense_model_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shape is measured once, with weights by chance that leave the generator where it was."""
    measured = []

    def counted(model: Any, **how: Any) -> dict[str, Timing]:
        measured.append(model.num_parameters())
        return slow(model, **how)

    monkeypatch.setattr("amp_tutorial.methods.shapes.latency", counted)
    model, state = tiny(Tiny(layers=3)), torch.random.get_rng_state()
    shapes = Shapes(model, 0.4, "latency", ["heads", "neurons"], 5, 0)
    line = shapes.start("heads")
    assert torch.equal(torch.random.get_rng_state(), state) and line
    asked = len(measured)
    assert shapes.start("heads") == line and len(measured) == asked == 2 * len(shapes.known)
    assert all(shapes.amount(s) == built(model, s).num_parameters() / model.num_parameters() for s in line)


@pytest.fixture(scope="module")
def found() -> amp.Pruned:
    return amp.fit_budget(tiny(GROUPED), BATCHES, 0.4, trials=5, cut=("hidden", *CUT[:2], "neurons"), progress=False)


def test_the_winner_is_the_least_and_is_what_it_says(found: amp.Pruned) -> None:
    dense = tiny(GROUPED)
    a = amp.Anatomy.of(found.model)
    assert found.report.loss == min(t.loss for t in found.report.trials) and len(found.report.trials) <= 5
    assert all(t.amount >= 0.4 for t in found.report.trials) and len({t.shape for t in found.report.trials}) == len(
        found.report.trials
    )
    assert (
        found.report.shape == Shape(a.hidden, a.layers, a.heads, a.neurons)
        and found.model.config.hidden_size == a.hidden
    )
    assert found.report.amount == 1 - found.model.num_parameters() / dense.num_parameters()
    assert (len(found.plan.kept_layers), found.plan.widths[0], found.plan.widths[2]) == (a.layers, a.heads, a.neurons)
    lines = str(found.report).splitlines()
    assert len(lines) == 2 + len(found.report.trials) and f"removes {found.report.amount:.2%} of parameters" in lines[0]
    assert [line.endswith("<") for line in lines[2:]] == [t.shape == found.report.shape for t in found.report.trials]


def test_the_same_seed_gives_the_same_model_and_the_dense_one_stays(found: amp.Pruned) -> None:
    model = tiny(GROUPED).train()
    before = weights(model)
    again = amp.fit_budget(model, BATCHES, 0.4, trials=5, cut=CUT, progress=False)
    assert equal(weights(model), before) and hooks(model) == 0 and model.training and again.model.training
    assert equal(weights(again.model), weights(found.model)) and again.plan == found.plan
    assert [replace(t, seconds=0) for t in again.report.trials] == [replace(t, seconds=0) for t in found.report.trials]


def test_a_stock_checkpoint(found: amp.Pruned, tmp_path: Path) -> None:
    amp.save(found.model, byte_tokenizer(), tmp_path / "small")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype="auto", output_loading_info=True)
    assert not any(report.values()) and type(loaded).__module__.startswith("transformers.models")
    assert torch.equal(logits(loaded), logits(found.model))


def test_layers_go_where_they_add_nothing() -> None:
    """Layers that write nothing are dropped before anything else, and the model computes what it did."""
    model = tiny(Tiny(layers=4))
    with torch.no_grad():
        for i in (1, 2):
            block = model.model.layers[i]
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.lm_head.weight.mul_(3)  # sure of what it writes, so that any other model loses by that text
    torch.manual_seed(0)
    start = torch.tensor(prompts([2] * 32))
    text = model.generate(start, do_sample=True, max_new_tokens=24, eos_token_id=None, pad_token_id=2).tolist()
    own = [batch(text[i : i + 8]) for i in range(0, 32, 8)]
    gone = sum(p.numel() for p in model.model.layers[1:3].parameters()) / model.num_parameters()
    result = amp.fit_budget(model, own, gone - 1e-6, trials=12, progress=False)
    assert result.plan.kept_layers == [0, 3] and result.report.shape.neurons == 24
    torch.testing.assert_close(logits(result.model), logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("of", ["parameters", "cache"])
def test_layers_of_different_kinds_count_as_what_they_are(of: str) -> None:
    """A layer with experts holds more than one without, and one with a window caches less: those that go are known."""
    if of == "parameters":
        model = tiny(Tiny("qwen3_moe", layers=4, groups=2, group_size=2), mlp_only_layers=[0, 3])
    else:
        model = tiny(Tiny("gemma3_text", layers=4, groups=2, group_size=2))
    result = amp.fit_budget(model, BATCHES, 0.3, of, ["layers"], progress=False, length=20)
    pair = [m.num_parameters() if of == "parameters" else amp.kv_cache_bytes(m, 20) for m in (result.model, model)]
    assert result.report.amount == 1 - pair[0] / pair[1] >= 0.3 and result.report.shape.layers < 4


def test_text_kept_apart_makes_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """It only judges; the winner, made again, sees all text."""
    seen: list[list[int]] = []
    for name in ("score", "rank_layers", "repair"):
        own = getattr(budget, name)
        place = 2 if name == "repair" else 1

        def watched(*args: Any, own: Any = own, place: int = place, **how: Any) -> Any:
            seen.append([id(b) for b in args[place]])
            return own(*args, **how)

        monkeypatch.setattr(budget, name, watched)
    judged: list[list[int]] = []
    own_loss = budget.loss

    def loss(model: Any, batches: Any) -> float:
        judged.append([id(b) for b in batches])
        return own_loss(model, batches)

    monkeypatch.setattr(budget, "loss", loss)
    amp.fit_budget(tiny(), BATCHES, 0.3, trials=6, cut=("hidden", "neurons", "layers"), progress=False)
    apart, rest, everything = [id(BATCHES[-1])], [id(b) for b in BATCHES[:-1]], [id(b) for b in BATCHES]
    assert all(one in (apart, rest) for one in judged), "costs are measured on the text that makes"
    assert 1 <= judged.count(apart) <= 6
    first_of_all = seen.index(everything)
    assert first_of_all > judged.count(apart)  # a score, and a repair for each
    assert all(one == rest for one in seen[:first_of_all]) and all(one == everything for one in seen[first_of_all:])


def test_loss_is_the_mean_over_real_tokens_that_follow_one() -> None:
    model, rows = tiny(), prompts((9, 4, 7, 1, 6))
    total = tokens = 0.0
    for row in rows:
        if len(row) > 1:
            ids = torch.tensor([row])
            total += model(ids, labels=ids).loss.item() * (len(row) - 1)
            tokens += len(row) - 1
    for left in (True, False):
        assert budget.loss(model, [batch(rows[:2], left), batch(rows[2:], left)]) == pytest.approx(total / tokens, 1e-4)


def test_a_loss_that_is_no_number_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([math.nan, 2.0, *[3.0] * 9])
    apart = len(BATCHES) // 4
    monkeypatch.setattr(budget, "loss", lambda _, given: next(losses) if len(given) == apart else 1.0)
    result = amp.fit_budget(tiny(), BATCHES, 0.15, trials=3, cut=("heads", "neurons"), progress=False)
    assert (
        result.report.trials[0].loss == math.inf
        and result.report.loss == 2.0
        and result.report.shape == result.report.trials[1].shape
    )


EMPTY = batch(prompts((5, 5)))
EMPTY["attention_mask"] *= 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(of="energy"), "of='energy' is unknown; choose from parameters, operations, cache, latency"),
        (dict(cut=["experts"]), "cut='experts' is unknown; choose from heads, layers, hidden, neurons"),
        (dict(cut=[]), "must be a list of what may go"),
        (dict(cut="heads"), "cut of fit_budget must be a list of texts, not 'heads'"),
        (dict(pruning_ratio=0), "pruning_ratio=0 is not a ratio"),
        (dict(pruning_ratio=1.0), "pruning_ratio=1.0 is not a ratio"),
        (dict(trials=0), "trials=0 must be at least 1"),
        (dict(batches=BATCHES[:1]), "1 given, give at least two"),
        (dict(batches=[*BATCHES, EMPTY, EMPTY]), "hold no text"),
        (dict(batches=[EMPTY, BATCHES[0]]), "hold no text"),
        (dict(of="cache", cut=["neurons", "hidden"]), "name 'heads' or 'layers' in cut"),
        (dict(family="gpt2", cut=["hidden"]), "hidden size of a gpt2 cannot be sliced"),
        (dict(family="gpt2", cut=["heads"]), r"removes 30% of parameters; the smallest removes 0.0%"),
        (
            dict(pruning_ratio=0.9, cut=["neurons"]),
            "No shape of fewer neurons removes 90% .* or add heads or layers or hidden",
        ),
        (dict(of="operations", length=0), "length=0"),
    ],
    ids=str,
)
def test_bad_input(settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, before any work."""
    monkeypatch.setattr(budget, "score", lambda *_, **__: pytest.fail("work was begun"))
    model, how = tiny(Tiny(settings.get("family", "llama"))), {"batches": BATCHES} | settings
    how.pop("family", None)
    with pytest.raises(ValueError, match=words) as error:
        amp.fit_budget(model, **how)
    assert "\n" not in str(error.value)
