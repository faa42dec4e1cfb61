"""Whole layers: cutting them computes what skipping them computes, alone and with widths; and each score of a layer."""

import json
import math
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from helpers import (
    KNOWN,
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
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.core.plans import whole_plan
from amp_tutorial.methods.layers import consensus
from amp_tutorial.methods.similarity import METRICS
from amp_tutorial.methods.whole_layers import renumbered

FOUR_LAYERS = families(every(KNOWN, layers=4))
READING = [name for name in amp.LAYER_CRITERIA if name not in ("last", "random")]


def mixed(model: PreTrainedModel, kept: list[int], seed: int = 0) -> amp.Plan:
    """Some heads, some neurons and these layers, as far as the family can lose them."""
    return amp.with_layers(some_plan(model, heads=2, neurons=11, seed=seed), kept, model)


def stock(model: PreTrainedModel) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        amp.save(model, None, Path(folder) / "model")
        loaded, report = AutoModelForCausalLM.from_pretrained(
            Path(folder) / "model", dtype="auto", output_loading_info=True
        )
    assert not any(report.values()), report
    assert type(loaded) is type(model) and type(loaded).__module__.startswith("transformers.models")
    return loaded


def alike(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def untouched(model: PreTrainedModel) -> bool:
    return hooks(model) == 0 and not any("forward" in vars(module) for module in model.modules())


# Surgery


@settings(max_examples=25)
@given(shapes(dtypes=("float32", "bfloat16")), st.data())
def test_depth_and_width_in_one_plan(shape: Shape, data: st.DataObject) -> None:
    """Cut = masked, saved and loaded = in memory, parameters = plan = check, in place = copied."""
    shape = replace(shape, layers=shape.layers + 1)
    model = tiny(shape)
    kept = sorted(data.draw(st.sets(st.integers(0, shape.layers - 1), min_size=1, max_size=shape.layers)))
    heads = shape.group_size * data.draw(st.integers(1, shape.groups))
    assume(amp.FAMILIES[shape.family].no_heads or sayable(shape, heads))
    wide = some_plan(model, heads, data.draw(st.integers(1, shape.neurons)), seed=data.draw(st.integers(0, 99)))
    plan = amp.with_layers(wide, kept, model)
    small, before, found = amp.prune(model, plan).model, weights(model), amp.preview(model, plan)
    assert torch.equal(logits(stock(small)), logits(small))
    assert equal(weights(model), before) and untouched(model)
    gone = model.num_parameters() - small.num_parameters()
    assert gone == pytest.approx(plan.achieved * model.num_parameters(), abs=0.01)
    assert found.layers == (shape.layers, len(kept)) and found.parameters[1] == small.num_parameters()
    assert found.kv_cache_per_token[1] == amp.size(small, length=1).kv_cache_bytes_per_token
    with amp.masked(model.float(), plan):
        masked = logits(model)
    within = amp.prune(model, plan, inplace=True).model
    alike(logits(within), masked)
    assert equal(weights(within), weights(small.float()))


@pytest.mark.parametrize("shape", FOUR_LAYERS, ids=KNOWN)
@pytest.mark.parametrize("kept", [[0, 2], [1, 3], [3]], ids=str)
def test_every_family_loses_layers(shape: Shape, kept: list[int]) -> None:
    model = tiny(shape)
    plan = mixed(model, kept)
    small = amp.prune(model, plan).model
    with amp.masked(model, plan):
        masked = logits(model)
    alike(logits(small), masked)
    assert untouched(model) and not torch.allclose(masked, logits(model), atol=1e-2)
    anatomy = amp.Anatomy.of(small)
    assert anatomy.layers == len(kept) == small.config.num_hidden_layers
    assert (anatomy.heads, anatomy.groups, anatomy.neurons) == plan.widths
    loaded = stock(small)
    assert torch.equal(logits(loaded), logits(small)) and equal(weights(loaded), weights(small))


@pytest.mark.parametrize("shape", FOUR_LAYERS, ids=KNOWN)
def test_the_cache_stays_consistent(shape: Shape) -> None:
    """Twelve tokens, more than the windows hold: cut with a cache and without, masked with a cache and without."""
    model = tiny(shape)
    plan = mixed(model, [1, 3])
    small, given, written = amp.prune(model, plan).model, batch(prompts((5, 5))), []
    for one in (small, model):
        one.generation_config = GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=2)
    for cached in (True, False):
        written.append(small.generate(**given, use_cache=cached, eos_token_id=None))
        with amp.masked(model, plan):
            written.append(model.generate(**given, use_cache=cached, eos_token_id=None))
    assert written[0].shape == (2, 12) and all(torch.equal(one, written[0]) for one in written)
    cache = small(**given, use_cache=True).past_key_values
    assert len(cache.layers) == 2


PER_LAYER: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=2)),
    ("qwen3", dict(use_sliding_window=True, sliding_window=4, max_window_layers=3)),
    ("smollm3", dict(no_rope_layers=[1, 0, 1, 1])),
    ("smollm3", dict(no_rope_layers=[0, 1, 1, 0], use_sliding_window=True, sliding_window=4)),
    ("gemma2", {}),
    ("gemma3_text", dict(sliding_window_pattern=3)),
    ("qwen3_moe", dict(decoder_sparse_step=2)),
    ("qwen3_moe", dict(mlp_only_layers=[1, 2])),
    ("qwen3_moe", dict(decoder_sparse_step=3, mlp_only_layers=[2])),
]


@pytest.mark.parametrize(("family", "own"), PER_LAYER, ids=str)
@pytest.mark.parametrize("kept", [[0, 3], [1, 2], [2, 3]], ids=str)
def test_what_a_configuration_says_of_single_layers_goes_with_them(family: str, own: dict, kept: list[int]) -> None:
    (shape,) = every([family], layers=4)
    model = tiny(shape, **own)
    plan = amp.with_layers(whole_plan(amp.Anatomy.of(model)), kept, model)
    small = amp.prune(model, plan).model
    with amp.masked(model, plan):
        alike(logits(small), logits(model))
    assert torch.equal(logits(stock(small)), logits(small))
    gone = model.num_parameters() - small.num_parameters()
    assert gone == pytest.approx(plan.achieved * model.num_parameters(), abs=0.01)
    for name in ("layer_types", "no_rope_layers"):
        if values := getattr(model.config, name, None):
            assert getattr(small.config, name) == [values[i] for i in kept]


def test_what_goes_by_depth_is_refused() -> None:
    model = tiny(Shape("gpt2", layers=3), scale_attn_by_inverse_layer_idx=True)
    plan = mixed(model, [0, 2])
    for refused in (amp.prune, amp.check):
        with pytest.raises(ValueError, match="With scale_attn_by_inverse_layer_idx .* keep all layers"):
            refused(model, plan)
    assert logits(amp.prune(model, some_plan(model, None, 11)).model).isfinite().all()


def test_readers_that_may_not_know_the_kinds_of_layers() -> None:
    model = tiny(Shape("gemma2", layers=4))
    found = {one.where: one.answer for one in amp.preview(model, mixed(model, [0, 3])).loads}
    assert found == {"transformers 5": "yes", "transformers 4": "unknown", "vLLM": "unknown", "llama.cpp": "unknown"}
    model = tiny(Shape("llama", layers=4))
    said = amp.preview(model, mixed(model, [0, 3]))
    assert {one.answer for one in said.loads} == {"yes"} and "Cut in each of 2 of 4 layers" in str(said)


@pytest.mark.parametrize("layers", [[], [2, 1], [0, 0], [0, 3], [-1]], ids=str)
def test_a_hand_made_plan_of_no_such_layers_is_refused(layers: list[int], tmp_path: Path) -> None:
    plan = some_plan(tiny(Shape(layers=3)), 2, 11)
    words = "must name at least one, each once, ascending, from 0 to 2"
    with pytest.raises(ValueError, match=words):
        replace(plan, layers=layers)
    (tmp_path / "plan.json").write_text(json.dumps(asdict(plan) | dict(layers=layers)))
    with pytest.raises(ValueError, match=words):
        amp.Plan.load(tmp_path / "plan.json")


def test_settings_follow_their_layers() -> None:
    model = tiny(Shape(layers=3))
    model.model.layers[2].mlp.down_proj.weight.requires_grad_(False)
    small = amp.prune(model, mixed(model, [0, 2])).model
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_heads_and_neurons_scored_without_some_layers(family: str) -> None:
    """Scored while the layers are masked: the scores of the model that has lost them."""
    (shape,) = every([family], layers=4)
    model, given = tiny(shape), [batch(prompts((9, 14, 1, 12)))]
    deep = amp.with_layers(whole_plan(amp.Anatomy.of(model)), [1, 3], model)
    with amp.masked(model, deep):
        found = amp.score(model, given)
    small = amp.score(amp.prune(model, deep).model, given)
    for new, i in enumerate([1, 3]):
        torch.testing.assert_close(found.heads[i], small.heads[new], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.neurons[i], small.neurons[new], rtol=1e-4, atol=1e-5)


def test_names_of_the_layers_that_stay() -> None:
    model = tiny(Shape(layers=12))
    names = renumbered(amp.Anatomy.of(model), mixed(model, [1, 10]))
    found = {name: names(name) for name in ("model.layers.10.mlp", "model.layers.1", "model.layers.0.mlp", "lm_head")}
    assert found == {
        "model.layers.10.mlp": "model.layers.1.mlp",
        "model.layers.1": "model.layers.0",
        "model.layers.0.mlp": "",
        "lm_head": "lm_head",
    }


# Scores of layers


TINY = Shape("mistral", layers=4, groups=2, group_size=2)


ROWS = [row for seed, lengths in enumerate([(9, 14, 1, 12), (20, 3, 17)]) for row in prompts(lengths, seed)]


@torch.no_grad()
def loss_of(model: PreTrainedModel) -> float:
    """Mean over tokens that others precede, each row alone and so without padding."""
    losses = []
    for row in ROWS:
        ids = torch.tensor([row])
        out = model(input_ids=ids, use_cache=False).logits
        losses += F.cross_entropy(out[0, :-1], ids[0, 1:], reduction="none").tolist()
    return sum(losses) / len(losses)


def some_batches() -> list[dict[str, Tensor]]:
    return [batch(prompts((9, 14, 1, 12), seed=0)), batch(prompts((20, 3, 17), seed=1), left=True)]


def skipping(model: PreTrainedModel, kept: list[int]) -> Any:
    return amp.masked(model, amp.with_layers(whole_plan(amp.Anatomy.of(model)), kept, model))


@pytest.mark.parametrize("shape", every(("llama", "gemma2", "gpt2", "falcon", "gpt_neox", "opt"), layers=3), ids=str)
def test_perplexity_is_what_masking_gives(shape: Shape) -> None:
    """Row by row without padding, each layer masked; also when one is gone already."""
    model = tiny(shape)
    for kept in ([0, 1, 2], [0, 2], [1, 2]):
        found = amp.rank_layers(model, some_batches(), "perplexity", layers=kept, spare=(0, 0))
        assert list(found) == kept and untouched(model)
        for i in kept:
            with skipping(model, [j for j in kept if j != i]):
                assert found[i] == pytest.approx(math.exp(loss_of(model)), rel=1e-3)


def test_greedy_by_perplexity_is_brute_force() -> None:
    """Every single removal tried by cutting for real, twice in a row; the ends stay, as in the official code."""
    model = tiny(replace(TINY, layers=5))
    kept = list(range(5))
    for _ in range(2):
        tried = {}
        for i in kept[1:-1]:
            plan = amp.with_layers(whole_plan(amp.Anatomy.of(model)), [j for j in kept if j != i], model)
            tried[i] = loss_of(amp.prune(model, plan).model)
        kept.remove(min(tried, key=tried.__getitem__))
    assert amp.drop_layers(model, some_batches(), 2, "perplexity", progress=False).layers == kept
    assert {0, 4} <= set(kept)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_block_influence_by_its_equation(family: str) -> None:
    """1 − mean cosine of what a layer gets and gives, each row alone; the last layer's output before the norm."""
    (shape,) = every([family], layers=3)
    model, seen = tiny(shape), []
    blocks = model.get_submodule(amp.FAMILIES[family].layers)
    watch = [
        block.register_forward_hook(
            lambda _, args, out: seen.append((args[0], out[0] if isinstance(out, tuple) else out))
        )
        for block in blocks
    ]
    cosines: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for row in ROWS:
        seen.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([row]), use_cache=False)
        for i, (before, after) in enumerate(seen):
            for h, g in zip(before[0], after[0], strict=True):
                cosines[i].append(float(h @ g / (h.norm() * g.norm())))
    for handle in watch:
        handle.remove()
    found = amp.rank_layers(model, some_batches(), "influence")
    assert found == pytest.approx({i: 1 - sum(c) / len(c) for i, c in cosines.items()}, abs=1e-5)


def test_consensus_adds_the_ranks_of_masked_features() -> None:
    """Features written out: final-norm states of tokens that others follow, whole and with each layer masked."""
    model = tiny(TINY)

    def features() -> Any:
        with torch.no_grad():
            states = [model.base_model(torch.tensor([row]), use_cache=False).last_hidden_state[0, :-1] for row in ROWS]
        return torch.cat(states).double().numpy()

    labels = torch.tensor([token for row in ROWS for token in row[1:]]).numpy()
    x, distances = features(), {}
    for i in range(4):
        with skipping(model, [j for j in range(4) if j != i]):
            y = features()
        distances[i] = {name: metric(x, y, labels) for name, metric in METRICS.items()}
    twice = some_batches() * 2  # at least 4 tokens for each of 32 features; these metrics do not see that it is twice
    for name in ("cka", "linear_1", "permutation", "wasserstein"):
        found = amp.rank_layers(model, twice, name)
        assert found == pytest.approx({i: distances[i][name] for i in range(4)}, abs=1e-3)
    by_metric = {name: amp.rank_layers(model, twice, name) for name in METRICS}
    totals = dict.fromkeys(range(4), 0)
    for found in by_metric.values():
        for rank, i in enumerate(sorted(found, key=lambda i: found[i]), start=1):
            totals[i] += rank
    assert amp.rank_layers(model, twice, "consensus") == totals
    assert untouched(model)


def test_what_accelerate_put_in_place_of_a_layers_forward_stays() -> None:
    model, plain = tiny(TINY), tiny(TINY)
    add_hook_to_module(model.model.layers[1], ModelHook())
    hooked = model.model.layers[1].forward
    for criterion in ("perplexity", "influence"):
        found = amp.rank_layers(model, some_batches(), criterion)
        assert found == amp.rank_layers(plain, some_batches(), criterion)
    assert model.model.layers[1].forward is hooked and torch.equal(logits(model), logits(plain))


def test_votes_are_added_by_layer_not_by_place() -> None:
    """The released code would read the first place of the sorted list as the first layer."""
    distances = {"a": {3: 0.9, 5: 0.1, 8: 0.5}, "b": {3: 0.2, 5: 0.3, 8: 0.1}, "c": {3: 7.0, 5: 1.0, 8: 1.0}}
    assert consensus(distances) == {3: 3 + 2 + 3, 5: 1 + 3 + 1.5, 8: 2 + 1 + 1.5}


@pytest.fixture(scope="module")
def trained() -> tuple[PreTrainedModel, list[dict[str, Tensor]]]:
    """An embedded model, in which every layer matters, but for one that was made to do nothing."""
    model, tokenizer = amp.load("tiny-llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[3].get_submodule(name).weight.zero_()
    return model, amp.calibration(tokenizer, samples=8)


@pytest.mark.parametrize("criterion", READING)
def test_a_layer_that_does_nothing_goes_first(
    criterion: str, trained: tuple[PreTrainedModel, list[dict[str, Tensor]]]
) -> None:
    model, batches = trained
    plan = amp.drop_layers(model, batches, 1, criterion, features=32, progress=False)
    assert plan.layers == [0, 1, 2, 4, 5] and plan.criterion == criterion
    given = batches[0]["input_ids"][:2, :20]
    with torch.no_grad():
        torch.testing.assert_close(amp.prune(model, plan).model(given).logits, model(given).logits)


def test_scores_are_given_anew_after_each_removal() -> None:
    model, kept = tiny(replace(TINY, layers=5)), [0, 1, 2, 3, 4]
    for _ in range(3):
        scores = amp.rank_layers(model, some_batches(), "influence", layers=kept)
        kept.remove(min(scores, key=lambda i: scores[i]))
    plan = amp.drop_layers(model, some_batches(), 3, "influence", of="block parameters", progress=False)
    assert plan.layers == kept and plan.achieved == pytest.approx(3 / 5) and plan.of == "block parameters"


def test_a_search_goes_on_where_a_shorter_one_ended() -> None:
    model, batches = tiny(replace(TINY, layers=5)), some_batches()
    whole = amp.drop_layers(model, batches, 3, "influence", progress=False)
    (one,) = set(range(5)) - set(amp.drop_layers(model, batches, 1, "influence", progress=False).layers or ())
    assert amp.drop_layers(model, batches, 3, "influence", progress=False, first=[one]).layers == whole.layers
    assert amp.drop_layers(model, [], 2, "influence", progress=False, first=[1, 3]).layers == [0, 2, 4]
    for wrong in ([9], [0, 0], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match="must name at most 3 of the layers 0 to 4, each once"):
            amp.drop_layers(model, batches, 3, "influence", progress=False, first=wrong)


def test_criteria_without_data() -> None:
    model = tiny(replace(TINY, layers=5))
    assert amp.drop_layers(model, [], 2, "last", progress=False).layers == [0, 1, 4]
    assert amp.drop_layers(model, [], 2, "last", spare=(0, 2), progress=False).layers == [0, 3, 4]
    assert amp.rank_layers(model, [], "last")[4] == math.inf
    drawn = {tuple(amp.drop_layers(model, [], 2, "random", seed=s, progress=False).layers or ()) for s in range(20)}
    assert len(drawn) > 5
    three = amp.drop_layers(model, [], 3, "random", seed=7, progress=False).layers
    assert set(three or ()) < set(amp.drop_layers(model, [], 2, "random", seed=7, progress=False).layers or ())


def test_wide_states_are_projected_alike_for_the_same_seed() -> None:
    model, batches = tiny(TINY), some_batches()
    first, again, other = (amp.rank_layers(model, batches, "cka", features=8, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert all(0 < distance < 1 for distance in first.values())


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("Unknown criterion 'votes'; choose from consensus", dict(criterion="votes")),
        ("layers=.0, 9. must name at least one layer, and each once", dict(layers=[0, 9])),
        ("spare=.2, 2. leaves none of 4 layers", dict(spare=(2, 2))),
        ("spare=.-1, 0. leaves none", dict(spare=(-1, 0))),
        ("69 calibration tokens are too few to compare 32 features; .* or say features=17", {}),
        ("hold no tokens that others follow", dict(batches=[])),
        ("hold no tokens that others follow", dict(batches=[batch(prompts((1, 1)))], criterion="perplexity")),
    ],
)
def test_bad_input_for_ranking(words: str, asked: dict) -> None:
    model = tiny(TINY)
    with pytest.raises(ValueError, match=words):
        amp.rank_layers(model, **dict(batches=some_batches()) | asked)
    assert untouched(model)


def test_states_that_are_not_finite_are_refused() -> None:
    model = tiny(TINY)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = math.nan
    for criterion in ("influence", "perplexity", "cka"):
        with pytest.raises(ValueError, match="is NaN, infinite or the same for every token"):
            amp.rank_layers(model, some_batches(), criterion, features=8)


@pytest.mark.parametrize("remove", [0, 4, 9])
def test_a_budget_that_removes_all_layers_is_refused(remove: int) -> None:
    with pytest.raises(ValueError, match=f"num_layers={remove} of 4 is not possible: at least 1 goes and 1 stays"):
        amp.drop_layers(tiny(TINY), [], remove, "random")


# Plans of layers


SCORES = {0: 5.0, 1: 1.0, 2: 1.0, 3: math.inf}


def test_the_highest_scores_stay_and_the_deeper_of_equals_goes() -> None:
    model = tiny(TINY)
    assert amp.plan_layers(model, SCORES, keep=3).layers == [0, 1, 3]
    assert amp.plan_layers(model, SCORES, keep=1).layers == [3]
    half = amp.plan_layers(model, SCORES, pruning_ratio=0.5, of="block parameters", criterion="mine")
    assert half.layers == [0, 3] and half.achieved == pytest.approx(0.5) and half.asked == 0.5
    assert "each of 2 of 4 layers" in str(half) and "layer 1: goes whole" in str(half) and "Plan by mine" in str(half)
    assert amp.plan_layers(model, SCORES, pruning_ratio=0.36, of="block parameters").layers == [
        0,
        1,
        3,
    ]  # nearer to one layer


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("either pruning_ratio=… or keep=…", {}),
        ("either pruning_ratio=… or keep=…", dict(pruning_ratio=0.5, keep=2)),
        ("pruning_ratio=1.5 is not a ratio", dict(pruning_ratio=1.5)),
        ("less than half of a layer, which is 25.0%", dict(pruning_ratio=0.1, of="block parameters")),
        ("would keep 0 of 4 layers", dict(keep=0)),
        ("would keep 0 of 4 layers", dict(pruning_ratio=0.95, of="block parameters")),
        ("would keep 5 of 4 layers", dict(keep=5)),
        ("Give one score for each layer from 0 to 3", dict(keep=2, scores={0: 1.0, 1: 2.0})),
        ("and none NaN", dict(keep=2, scores=SCORES | {2: math.nan})),
        ("would take layers .3., which are to stay", dict(keep=2, scores=SCORES | {0: 0.0, 1: math.inf, 2: math.inf})),
        ("of='layers' must be one of parameters, block parameters", dict(keep=2, of="layers")),
    ],
)
def test_bad_input_for_plans_of_layers(words: str, asked: dict) -> None:
    with pytest.raises(ValueError, match=words):
        amp.plan_layers(tiny(TINY), **dict(scores=SCORES) | asked)
