"""Scores against a slow reference written from the equations, and what must not change them or be changed by them.

In a file: what comes back is what was saved; and scores are used for the model and prompts they are of.
"""

import copy
import itertools
import json
import math
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import EVERY_FAMILY, KNOWN, Shape, batch, equal, hooks, prompts, shapes, tiny, weights
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from test_checkpoint import largest_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.core.anatomy import weight_of
from amp_tutorial.files.checkpoints import fingerprint

ROWS = prompts()
BATCHES = [batch(ROWS)]
CRITERIA = tuple(amp.CRITERIA)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def close(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(torch.stack(list(a)), torch.stack(list(b)), rtol=tolerance, atol=tolerance)


def same(a: amp.Scores, b: amp.Scores) -> None:
    close(a.heads, b.heads)
    close(a.neurons, b.neurons)


@torch.no_grad()
def slow(model: PreTrainedModel, rows: list[list[int]], average: str) -> tuple[list[Tensor], list[Tensor]]:
    """AMP by its equations, one prompt, token and head at a time; attention heads from probabilities and values.

    h[n, t] = sum over s of A[n, t, s] · V[group of n, s];  I_n = mean over t of sum over j of |(W_n h[n, t])_j|;
    I_m = mean over t of |act(gate x_t)_m · (up x_t)_m|, or |act(fc1 x_t)_m|.
    """
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")  # the only one that returns probabilities
    anatomy = amp.Anatomy.of(model)
    d, family = anatomy.head_dim, anatomy.family
    heads = torch.zeros(anatomy.layers, anatomy.heads, dtype=torch.float64)
    neurons = torch.zeros(anatomy.layers, anatomy.neurons, dtype=torch.float64)
    total = 0.0
    seen: dict[str, Tensor] = {}
    for i in range(anatomy.layers):
        layer = anatomy.layer(i)
        if not family.no_heads:
            layer.value.register_forward_hook(lambda m, a, out, i=i: seen.update({f"values {i}": out[0]}))
        if not family.no_neurons:
            layer.neurons_in[0].register_forward_hook(lambda m, a, out, i=i: seen.update({f"x {i}": a[0]}))
    for row in rows:
        whole = not family.no_heads
        attentions = model(input_ids=torch.tensor([row]), output_attentions=whole, use_cache=False).attentions
        weight = 1.0 if average == "tokens" else 1 / len(row)
        for i, t in itertools.product(range(anatomy.layers), range(len(row))):
            layer = anatomy.layer(i)
            for n in range(0 if family.no_heads else anatomy.heads):
                group = n // (anatomy.heads // anatomy.groups)
                values = seen[f"values {i}"][:, -anatomy.groups * d :]  # in a packed matrix they come last
                values = values[:, group * d : (group + 1) * d]
                h = torch.stack([attentions[i][0, n, t, s] * values[s] for s in range(t + 1)]).sum(0)
                heads[i, n] += weight * float((layer.output.weight[:, n * d : (n + 1) * d] @ h).abs().sum())
            if family.no_neurons:
                continue
            maps = dict.fromkeys(layer.neurons_in)  # gate and up may be packed in one
            x = seen[f"x {i}"].flatten(0, -2)[t]
            outputs = torch.cat([F.linear(x, weight_of(m), m.bias) for m in maps])
            first, *rest = outputs.split(anatomy.neurons)
            act = activation(model.get_submodule(f"{family.layers}.{i}"))
            values = math.prod(rest, start=act(first))
            for name, _ in family.norms if "neurons" in dict(family.norms).values() else ():
                values = model.get_submodule(f"{family.layers}.{i}.{name}")(values)
            neurons[i] += weight * values.abs()
        total += weight * len(row)
    return list((heads / total).float()), list((neurons / total).float())


def activation(block: nn.Module) -> Callable[[Tensor], Tensor]:
    """The activation function of a block's MLP, whatever it is called; OPT's MLP is the block itself."""
    if hasattr(block, "feed_forward"):  # LFM2 names it in its code alone
        return F.silu
    within = (getattr(block, "mlp", getattr(block, "shared_mlp", block)), block)
    for module, name in itertools.product(within, ("act_fn", "activation_fn", "act", "activation")):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"no activation function in {block}")


@pytest.mark.parametrize("average", ["tokens", "prompts"])
@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_amp_is_its_equation(shape: Shape, average: str) -> None:
    model = tiny(shape)
    heads, neurons = slow(model, ROWS, average)
    scores = amp.score(model, [batch(ROWS[:3]), batch(ROWS[3:])], average=average)
    if not amp.FAMILIES[shape.family].no_heads and shape.family != "granite_swa":
        close(scores.heads, heads, 1e-5)  # that one scales by its sinks after what it shows as probabilities
    close(scores.neurons, neurons, 1e-5)
    assert (scores.tokens, scores.prompts) == (27, 5)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_magnitude_is_the_norm_of_everything_a_structure_owns(shape: Shape) -> None:
    model = tiny(shape).requires_grad_(False)
    anatomy, scores, d = amp.Anatomy.of(model), amp.score(model, [], "magnitude"), shape.head_dim
    layer, family = anatomy.layer(1), anatomy.family
    for n in range(0 if family.no_heads else shape.heads):
        mine, shared = slice(n * d, n * d + d), slice(n // shape.group_size * d, n // shape.group_size * d + d)
        q, k, v = (m.weight for m in (layer.query, layer.key, layer.value))
        if layer.query is layer.key:
            q, k, v = q.split([shape.heads * d, shape.groups * d, shape.groups * d])
        squares = sum(float((w**2).sum()) for w in (q[mine], k[shared], v[shared], layer.output.weight[:, mine]))
        assert float(scores.heads[1][n]) == pytest.approx(squares**0.5, rel=1e-5)
    for m in range(0 if family.no_neurons else shape.neurons):
        inner = [row for w in dict.fromkeys(layer.neurons_in) for row in weight_of(w)[m :: shape.neurons]]
        squares = sum(float((w**2).sum()) for w in (*inner, weight_of(layer.neurons_out)[:, m]))
        assert len(inner) == len(family.neurons_in)
        assert float(scores.neurons[1][m]) == pytest.approx(squares**0.5, rel=1e-5)


def test_reversed_is_amp_upside_down() -> None:
    model, batches = tiny(), [batch(ROWS)]
    up, down = amp.score(model, batches), amp.score(model, batches, "reversed")
    close(up.heads, [-h for h in down.heads])
    close(up.neurons, [-n for n in down.neurons])


def test_random_depends_on_its_seed_alone() -> None:
    first, again, other = (amp.score(tiny(seed=seed), [], "random", seed=seed // 2) for seed in (0, 1, 2))
    same(first, again)
    assert not torch.equal(first.heads[0], other.heads[0]) and not torch.equal(first.neurons[0], other.neurons[0])
    assert not torch.equal(first.heads[0], first.heads[1])


@given(shapes(), st.permutations(range(5)), st.integers(1, 5), st.sampled_from(("tokens", "prompts")))
def test_neither_size_nor_order_of_batches_matters(shape: Shape, order: list[int], size: int, average: str) -> None:
    model, rows = tiny(shape), [ROWS[i] for i in order]
    cut = [batch(rows[i : i + size]) for i in range(0, 5, size)]
    same(amp.score(model, cut, average=average), amp.score(model, [batch(ROWS)], average=average))


@pytest.mark.parametrize("average", ["tokens", "prompts"])
@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_padding_counts_on_neither_side(shape: Shape, average: str) -> None:
    model = tiny(shape)
    alone = amp.score(model, [batch([row]) for row in ROWS], average=average)
    same(amp.score(model, [batch(ROWS)], average=average), alone)
    same(amp.score(model, [batch(ROWS, left=True)], average=average), alone)


def test_the_averages_differ_where_prompts_differ_in_length() -> None:
    model, batches = tiny(), [batch(ROWS)]
    tokens, mean = amp.score(model, batches), amp.score(model, batches, average="prompts")
    assert not torch.allclose(tokens.neurons[0], mean.neurons[0], rtol=1e-3)
    even = [batch(prompts((6, 6, 6)))]
    same(amp.score(model, even), amp.score(model, even, average="prompts"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("criterion", list(amp.CRITERIA))
def test_scoring_leaves_the_model_as_it_was(criterion: str, training: bool) -> None:
    model = tiny(Shape("qwen2")).train(training)
    before = weights(model)
    scores = amp.score(model, [batch(ROWS)], criterion)
    assert equal(weights(model), before) and model.training == training and hooks(model) == 0
    assert all(p.grad is None for p in model.parameters())
    assert not any(t.requires_grad for t in (*scores.heads, *scores.neurons))


def test_scoring_drops_nothing_out() -> None:
    model = tiny()
    still = amp.score(model, [batch(ROWS)])
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    same(amp.score(model.train(), [batch(ROWS)]), still)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_no_hook_behind_when_it_fails(training: bool) -> None:
    model = tiny().train(training)
    before = weights(model)

    def batches() -> Iterator[dict[str, Tensor]]:
        yield batch(ROWS)
        yield {"input_ids": torch.tensor([[10**6]]), "attention_mask": torch.tensor([[1]])}  # no such token

    with pytest.raises(ValueError, match="the token id 1,000,000, and the model knows 0 to"):
        amp.score(model, batches())
    assert hooks(model) == 0 and model.training == training and equal(weights(model), before)


def test_batches_are_read_once_and_not_kept() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[dict[str, Tensor]]:
        for row in ROWS:
            given = batch([row])
            alive.append(weakref.ref(given["input_ids"]))
            yield given
            del given
            assert sum(reference() is not None for reference in alive) <= 2  # this one, and the one before at most

    same(amp.score(tiny(), batches()), amp.score(tiny(), [batch(ROWS)]))


def test_half_precision_is_summed_in_full() -> None:
    """A head's score is a sum over the hidden size, which overflows float16 (65,504) long before the activations."""
    model = tiny()
    for i in range(2):
        model.model.layers[i].self_attn.o_proj.weight.data *= 3e4
    whole, half = amp.score(model, [batch(ROWS)]), amp.score(model.to(torch.bfloat16), [batch(ROWS)])
    assert float(whole.heads[0].max()) > 65_504 and half.heads[0].dtype == torch.float32
    torch.testing.assert_close(whole.heads[0], half.heads[0], rtol=0.1, atol=0.0)


def test_a_new_criterion_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    squared = amp.Criterion(lambda h, o: h.pow(2).sum(-1), lambda a, o: a.pow(2))
    monkeypatch.setitem(amp.CRITERIA, "squared", squared)
    scores = amp.score(tiny(), [batch(ROWS)], "squared")
    assert scores.criterion == "squared" and bool((scores.heads[0] > 0).all())


def test_batches_that_can_be_read_once_serve_several_criteria() -> None:
    """A criterion that needs gradients has a pass of its own: a generator is held for it, and not found empty."""
    model = tiny()
    batches = [batch(ROWS[:2]), batch(ROWS[2:])]
    once = amp.score_many(model, iter(batches), ("amp", "taylor", "magnitude"))
    for name, found in once.items():
        alone = amp.score(model, batches, name)
        same(found, alone)
        assert found.tokens == alone.tokens and found.calibration_hash == alone.calibration_hash


@pytest.mark.parametrize("missing", ["input_ids", "attention_mask"])
@pytest.mark.parametrize("criterion", ["amp", "taylor"])
def test_a_batch_without_ids_or_mask_is_one_sentence(missing: str, criterion: str) -> None:
    given = {name: tensor for name, tensor in batch(ROWS).items() if name != missing}
    model = tiny()
    with pytest.raises(ValueError, match=f"A batch has no {missing}: give a list of mappings with input_ids"):
        amp.score(model, [given], criterion)
    assert hooks(model) == 0


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_the_shared_product_gives_the_same_scores_and_the_same_model(shape: Shape) -> None:
    model = tiny(shape)
    before, rows = weights(model), [batch(ROWS), batch(ROWS[:2], left=True)]
    plain = amp.score_many(model, rows, ("amp", "flap"))
    shared = amp.score_many(model, rows, ("amp", "flap"), forward=amp.shared_product)
    for name in plain:
        close(plain[name].heads, shared[name].heads, 1e-5)
        close(plain[name].neurons, shared[name].neurons, 1e-4)
    assert equal(before, weights(model)) and hooks(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())
    with pytest.raises(ValueError, match="need gradients and have a pass of their own"):
        amp.score(model, rows, "taylor", forward=amp.shared_product)


# In a file


def identical(a: amp.Scores, b: amp.Scores) -> bool:
    """To the last bit, whatever else they say included."""
    return all(
        torch.equal(torch.stack(value), torch.stack(getattr(b, name)))
        if isinstance(value, list)
        else value == getattr(b, name) and type(value) is type(getattr(b, name))
        for name, value in vars(a).items()
    )


def reloaded(scores: amp.Scores) -> amp.Scores:
    with tempfile.TemporaryDirectory() as folder:
        return amp.Scores.load(scores.save(Path(folder) / "deep" / "er" / "scores.safetensors"))


# Saved and loaded


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_saved_is_reloaded_to_the_last_bit(shape: Shape) -> None:
    for name, scores in amp.score(tiny(shape), BATCHES, CRITERIA, seed=7).items():
        again = reloaded(scores)
        assert identical(again, scores) and (again.criterion, again.seed) == (name, 7)


@given(shapes(dtypes=("float32", "bfloat16")), st.sampled_from(CRITERIA), st.sampled_from(("tokens", "prompts")))
def test_any_scores_come_back_and_plan_the_same(shape: Shape, criterion: str, average: str) -> None:
    model = tiny(shape)
    scores = amp.score(model, BATCHES, criterion, average)
    again, neurons = reloaded(scores), max(1, shape.neurons // 2)
    assert identical(again, scores)
    if not amp.FAMILIES[shape.family].no_neurons:
        assert amp.keep(model, again, neurons=neurons) == amp.keep(model, scores, neurons=neurons)


def test_a_file_holds_two_tensors_and_says_what_they_are(tmp_path: Path) -> None:
    path = amp.score(tiny(), BATCHES, average="prompts").save(tmp_path / "scores.safetensors")
    with safe_open(path, framework="pt") as file:
        assert {name: tuple(file.get_tensor(name).shape) for name in file.keys()} == dict(heads=(2, 4), neurons=(2, 24))
        assert file.metadata()["average"] == "prompts" and file.metadata()["tokens"] == "27"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.safetensors"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_score_once_and_prune_at_many_ratios(criterion: str) -> None:
    model = tiny(Shape("qwen2", groups=2, group_size=2))
    kept = reloaded(amp.score(model, BATCHES, criterion))
    for remove in (0.1, 0.2, 0.3, 0.5):
        anew = amp.score(model, BATCHES, criterion)
        assert amp.plan(model, kept, remove, of="block parameters") == amp.plan(
            model, anew, remove, of="block parameters"
        )


# Nothing is lost, and nothing half-written is left


def test_a_file_is_overwritten_on_demand_only(tmp_path: Path) -> None:
    first, second = (amp.score(tiny(), [], "random", seed=seed) for seed in (1, 2))
    path = first.save(tmp_path / "scores.safetensors")
    with pytest.raises(ValueError, match="is there already; choose another name or say overwrite=True"):
        second.save(path)
    assert identical(amp.Scores.load(path), first)
    assert identical(amp.Scores.load(second.save(path, overwrite=True)), second)
    for overwrite in (True, False):
        with pytest.raises(ValueError, match="is a folder, and a file is to be written; choose another name"):
            first.save(tmp_path, overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.safetensors"]


@pytest.mark.parametrize("size", [0, 100, 500])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(size: int, tmp_path: Path) -> None:
    scores, path = amp.score(tiny(), BATCHES), tmp_path / "scores.safetensors"
    for before in ([], ["scores.safetensors"]):
        with largest_file(size), pytest.raises(OSError, match="Could not write .*: .*File too large") as caught:
            scores.save(path, overwrite=True)
        assert "\n" not in str(caught.value) and str(caught.value).endswith("what was there is untouched.")
        assert [p.name for p in tmp_path.iterdir()] == before
        scores.save(path, overwrite=True)
    assert identical(amp.Scores.load(path), scores)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def without(name: str) -> Callable[[Path], None]:
    """Scores that lack one entry."""

    def damage(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            tensors, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
        tensors.pop(name, None)
        about.pop(name, None)
        save_file(tensors, path, about)

    return damage


def broken_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12] ^= 255
    path.write_bytes(content)


def no_number(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"tokens":"27"', b'"tokens":"2x"'))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": cut_short,
    "broken header": broken_header,
    "no number": no_number,
    "a model": lambda path: save_file({"lm_head.weight": torch.ones(2, 2)}, path),
    "text": lambda path: path.write_text(json.dumps({"heads": [1], "neurons": [2]})),
    "a folder": become_a_folder,
    "no heads": without("heads"),
    "no criterion": without("criterion"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_holds_no_scores_is_one_sentence(damage: str, tmp_path: Path) -> None:
    path = amp.score(tiny(), BATCHES).save(tmp_path / "scores.safetensors")
    assert amp.Scores.load(path).tokens == 27
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match="is not a file of scores as Scores.save writes it; score again") as caught:
        amp.Scores.load(path)
    assert "\n" not in str(caught.value)


# Which model


@torch.no_grad()
def trained(model: PreTrainedModel) -> PreTrainedModel:
    """A step of gradient descent away, such that weights move by a hundredth of their spread."""
    model = copy.deepcopy(model).train()
    with torch.enable_grad():
        model(**BATCHES[0], labels=BATCHES[0]["input_ids"]).loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter -= 0.01 * parameter.std() * parameter.grad.sign()
    return model


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_copies_in_any_precision_have_one_fingerprint_and_training_changes_it(shape: Shape) -> None:
    model = tiny(shape)
    scores = amp.score(model, BATCHES)
    assert len(scores.model_hash) == 64
    for dtype in DTYPES:
        copied = copy.deepcopy(model).to(dtype)
        assert fingerprint(copied) == scores.model_hash and scores.made_for(copied)
    for other in (trained(model), tiny(shape, seed=1)):
        assert fingerprint(other) != scores.model_hash and not scores.made_for(other)


@given(shapes(), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 9))
def test_rounding_twice_changes_no_fingerprint(shape: Shape, first: Any, second: Any, seed: int) -> None:
    model = tiny(shape, seed)
    assert fingerprint(copy.deepcopy(model).to(first).to(second)) == fingerprint(model)


def test_a_large_matrix_is_not_judged_by_one_column() -> None:
    """Its width is a power of two, and so would be an even step through it."""
    model = tiny(Shape(hidden=64), vocabulary=1024)
    before = fingerprint(model)
    model.model.embed_tokens.weight.data[:, 1:] *= -1
    assert fingerprint(model) != before


def test_a_model_without_its_weights_is_unknown() -> None:
    with torch.device("meta"):
        blank = type(tiny())(tiny().config)
    assert fingerprint(blank) == "" and amp.score(tiny(), BATCHES).made_for(blank)
    amp.keep(blank, amp.score(tiny(), BATCHES), neurons=9)


def test_a_plan_wants_the_scores_of_its_own_model() -> None:
    model, other = tiny(), tiny(seed=1)
    for name, scores in amp.score(model, BATCHES, CRITERIA).items():
        amp.keep(copy.deepcopy(model).half(), reloaded(scores), neurons=9)
        if name == "random":  # of no model: the same for each of that shape
            assert amp.keep(other, scores, neurons=9) == amp.keep(model, scores, neurons=9)
            continue
        for stranger in (other, trained(model)):
            with pytest.raises(ValueError, match="of another model of this shape.*; score this model") as caught:
                amp.keep(stranger, reloaded(scores), neurons=9)
            assert "\n" not in str(caught.value)
        meant = amp.keep(other, replace(scores, model_hash=""), neurons=9)  # the way out that the sentence names
        assert meant == amp.keep(model, scores, neurons=9)


# Which prompts


@given(st.permutations(range(5)), st.integers(1, 5), st.booleans(), st.sampled_from(("tokens", "prompts")))
def test_order_batches_and_padding_leave_the_calibration_hash(
    order: list[int], size: int, left: bool, average: str
) -> None:
    rows = [ROWS[i] for i in order]
    for criterion in ("amp", "reversed"):
        found = amp.score(tiny(), [batch(rows[i : i + size], left) for i in range(0, 5, size)], criterion, average)
        assert found.calibration_hash == amp.score(tiny(seed=1), BATCHES).calibration_hash


@given(st.integers(0, 4), st.integers(0, 8), st.integers(3, 258))
def test_another_prompt_changes_the_calibration_hash(i: int, place: int, token: int) -> None:
    wanted, rows = amp.score(tiny(), BATCHES).calibration_hash, copy.deepcopy(ROWS)
    rows[i][place % len(rows[i])] = token
    assert (amp.score(tiny(), [batch(rows)]).calibration_hash == wanted) == (rows == ROWS)


def test_more_fewer_or_longer_prompts_change_the_calibration_hash() -> None:
    given_once = amp.score(tiny(), BATCHES).calibration_hash
    for rows in (ROWS[:4], [*ROWS, ROWS[0]], [*ROWS[:4], [*ROWS[4], 2]], [ROWS[0] + ROWS[1], *ROWS[2:]]):
        assert amp.score(tiny(), [batch(rows)]).calibration_hash != given_once
    assert amp.score(tiny(), [], "magnitude").calibration_hash == ""
