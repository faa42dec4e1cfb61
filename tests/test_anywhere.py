"""The same result however a model is run: attention kernel, precision, padding, compilation, devices, training."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from helpers import (
    EVERY_FAMILY,
    KNOWN,
    WITH_HEADS,
    Shape,
    batch,
    byte_tokenizer,
    equal,
    every,
    families,
    logits,
    prompts,
    some_plan,
    tiny,
    weights,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.core.anatomy import exact
from amp_tutorial.core.sums import weight_of_positions
from amp_tutorial.methods.flap import moments
from amp_tutorial.methods.normal_equations import Normal
from amp_tutorial.methods.projections import stream

ROWS = prompts()
BATCHES = [batch(ROWS[:3]), batch(ROWS[3:])]
# One of each kind: plain, with biases, packed, norms over all heads, a norm for each head, soft caps and windows,
# experts, heads that stay.
KINDS = every(("llama", "phi", "phi3", "olmo2", "cohere", "gemma2", "mixtral", "gpt2"))


def close(a: amp.Scores, b: amp.Scores, rtol: float, atol: float = 0.0) -> None:
    for mine, theirs in ((a.heads, b.heads), (a.neurons, b.neurons)):
        torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), rtol=rtol, atol=atol)


def cut(model: PreTrainedModel, **settings: Any) -> PreTrainedModel:
    return amp.prune(model, some_plan(model, heads=2, neurons=11, **settings)).model


def reloaded(model: PreTrainedModel, **settings: Any) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        amp.save(model, None, Path(folder) / "model")
        return AutoModelForCausalLM.from_pretrained(Path(folder) / "model", **dict(dtype="auto") | settings)


def buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_both_attention_kernels_give_the_same(shape: Shape) -> None:
    found, outputs, dense = [], [], tiny(shape)
    if not dense._supports_sdpa:
        pytest.skip("transformers runs this family without SDPA")
    for kernel in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_config(dense.config, attn_implementation=kernel).eval()
        model.load_state_dict(dense.state_dict())
        small = cut(model)
        assert small.config._attn_implementation == model.config._attn_implementation == kernel
        found.append(amp.score(model, BATCHES))
        outputs.append(logits(small))
    close(found[0], found[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
@pytest.mark.parametrize("shape", [s for s in KINDS if s.family != "mixtral"], ids=lambda s: s.family)
def test_half_precision_scores_and_cuts_like_full(shape: Shape, dtype: str, tolerance: float) -> None:
    """The same rounded weights run in half and in full. (Not experts: a rounded router can choose another one.)"""
    half, full = tiny(shape).to(getattr(torch, dtype)), tiny(shape).to(getattr(torch, dtype)).float()
    found, wanted = amp.score(half, BATCHES), amp.score(full, BATCHES)
    assert found.heads[0].dtype == found.neurons[0].dtype == torch.float32
    for mine, theirs in ((found.heads, wanted.heads), (found.neurons, wanted.neurons)):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.mean()))
    plan = some_plan(half, heads=2, neurons=11)
    gap = (logits(amp.prune(half, plan).model).float() - logits(amp.prune(full, plan).model)).abs().mean()
    assert gap < tolerance * logits(full).std()


@pytest.mark.parametrize("family", ["llama", "mistral", "phi", "qwen2", "granite"])
def test_scores_near_the_limit_of_float16_are_those_of_float32(family: str) -> None:
    """Activations of ten thousands: every one fits float16 (65,504); what a head adds, summed over hidden, does not.

    Stated tolerance: 1 % of each score, 0.1 % of all heads' and of all neurons' together.
    """
    model = tiny(Shape(family, groups=2, group_size=2))
    anatomy = amp.Anatomy.of(model)
    largest: list[float] = []
    for i in range(anatomy.layers):
        layer = anatomy.layer(i)
        for before, after, shrink in ((layer.value, layer.output, 2.5), (layer.neurons_in[-1], layer.neurons_out, 0.1)):
            before.weight.data *= 4e3
            after.weight.data *= shrink
            after.register_forward_pre_hook(lambda _, args: largest.append(float(args[0].abs().max())))
    found = amp.score(model.half(), BATCHES)
    assert 1e4 < max(largest) < 65_504
    assert max(float(heads.max()) for heads in found.heads) > 65_504
    assert max(float(neurons.max()) for neurons in found.neurons) * found.tokens > 65_504
    wanted = amp.score(model.float(), BATCHES)
    close(found, wanted, rtol=0.01)
    for mine, theirs in ((found.heads, wanted.heads), (found.neurons, wanted.neurons)):
        assert float(torch.stack(mine).sum()) == pytest.approx(float(torch.stack(theirs).sum()), rel=1e-3)


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_a_bfloat16_model_in_memory_is_the_one_loaded(shape: Shape) -> None:
    """To the last bit, buffers too: rotary frequencies stay in float32, whatever was done to those of the dense one."""
    small = cut(tiny(shape).to(torch.bfloat16))
    loaded = reloaded(small)
    assert loaded.dtype == small.dtype == torch.bfloat16
    assert equal(buffers(loaded), buffers(small)) and equal(weights(loaded), weights(small))
    assert torch.equal(logits(loaded), logits(small))


ROPES: dict[str, dict[str, Any]] = {
    "llama3": dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=2.0, original_max_position_embeddings=64),
    "yarn": dict(factor=4.0, original_max_position_embeddings=64),
    "linear": dict(factor=4.0),
    "dynamic": dict(factor=4.0),
}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "phi"])
@pytest.mark.parametrize("kind", ROPES)
def test_stretched_rotary_frequencies_survive(kind: str, family: str) -> None:
    """Three of four heads: a LLaMA's frequencies move to the mistral that stands in for it."""
    shape = Shape(family, groups=4)
    model = tiny(shape, rope_parameters=dict(rope_type=kind, rope_theta=100.0, **ROPES[kind]))
    plain, rows = tiny(shape), prompts((90,))
    assert not torch.allclose(logits(model, rows), logits(plain, rows), atol=1e-2)
    plan = some_plan(model, heads=3, neurons=11)
    with amp.masked(model, plan):
        masked = logits(model, rows)
    small = amp.prune(model, plan).model
    torch.testing.assert_close(logits(small, rows), masked, rtol=1e-5, atol=1e-5)
    loaded = reloaded(small)
    assert equal(buffers(loaded), buffers(small)) and equal(buffers(small), buffers(model))
    assert loaded.config.rope_parameters["rope_type"] == kind
    assert torch.equal(logits(loaded, rows), logits(small, rows))


def test_each_kind_of_layer_keeps_its_own_frequencies() -> None:
    """Gemma 3: one set for layers with a window, another, stretched, for those without."""
    ropes = dict(
        sliding_attention=dict(rope_type="default", rope_theta=50.0),
        full_attention=dict(rope_type="linear", rope_theta=100.0, factor=8.0),
    )
    model = tiny(Shape("gemma3_text", groups=2, group_size=2), rope_parameters=ropes)
    small = cut(model)
    assert equal(buffers(reloaded(small)), buffers(small)) and equal(buffers(small), buffers(model))
    assert len({tuple(b.tolist()) for name, b in buffers(small).items() if name.endswith("inv_freq")}) == 2


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_padding_on_either_side_changes_no_token(shape: Shape) -> None:
    """Logits of the cut model at real tokens, and what it generates: as of each row alone."""
    small = cut(tiny(shape))
    alone = [logits(small, [row])[0] for row in ROWS]
    for left in (False, True):
        given = batch(ROWS, left=left)
        mask = given["attention_mask"]
        with torch.no_grad():
            found = small(**given, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=False).logits
        for i, wanted in enumerate(alone):
            torch.testing.assert_close(found[i][mask[i].bool()], wanted, rtol=1e-4, atol=1e-4)

    small.generation_config = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=2)

    def new(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        given = batch(rows, left=True)
        return small.generate(**given)[:, given["input_ids"].shape[1] :].tolist()

    assert new(ROWS) == [new([row])[0] for row in ROWS]


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_compiled_model_is_the_same_and_scores_the_same(family: str, backend: str) -> None:
    model = tiny(Shape(family, groups=4))
    small = amp.prune(model, some_plan(model, heads=3, neurons=11)).model
    wanted, scores, dense = logits(small), amp.score(small, BATCHES), amp.score(model, BATCHES)
    torch.compiler.reset()
    small.compile(backend=backend)
    model.compile(backend=backend)
    torch.testing.assert_close(logits(small), wanted, rtol=1e-5, atol=1e-5)
    close(amp.score(small, BATCHES), scores, rtol=1e-5)
    close(amp.score(model, BATCHES), dense, rtol=1e-5)
    assert torch.equal(logits(amp.prune(model, some_plan(model, heads=3, neurons=11)).model), wanted)
    torch.compiler.reset()


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    given = batch(prompts((8, 8)))
    model.train().zero_grad()
    model(**given, labels=given["input_ids"], use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_gradient_checkpointing_trains_alike(shape: Shape) -> None:
    dense = tiny(shape)
    small = cut(dense)
    wanted = gradients(small)
    small.gradient_checkpointing_enable()
    assert small.is_gradient_checkpointing
    found = gradients(small)
    learned = {name for name, _ in small.named_parameters() if "correction" not in name}  # a router's has no gradient
    assert found.keys() == wanted.keys() == learned
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)
    scores = amp.score(dense, BATCHES)
    dense.gradient_checkpointing_enable()
    close(amp.score(dense.train(), BATCHES), scores, rtol=1e-6)


def test_recovery_trains_with_gradient_checkpointing() -> None:
    """LoRA on a model that recomputes its activations: the same losses, and a stock model again."""
    losses = []
    for recompute in (False, True):
        small = cut(tiny())
        if recompute:
            small.gradient_checkpointing_enable()
        found = amp.recover(
            small,
            byte_tokenizer(),
            config=amp.RecoveryConfig(samples=8, epochs=1, batch_size=4, dropout=0.0),
            progress=False,
        )
        losses.append([entry["loss"] for entry in found.history])
        assert not equal(weights(found.model), weights(small))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 2


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
def test_device_map_auto_loads_what_was_saved(shape: Shape) -> None:
    model = tiny(shape)
    small = cut(model)
    loaded = reloaded(small, device_map="auto")
    if torch.cuda.is_available():
        loaded = loaded.cpu()
    assert torch.equal(logits(loaded), logits(small))
    placed = reloaded(model, device_map="auto")
    close(amp.score(placed, BATCHES), amp.score(model, BATCHES), rtol=0 if not torch.cuda.is_available() else 1e-3)


@pytest.mark.parametrize("shape", [s for s in KINDS if s.family in WITH_HEADS], ids=lambda s: s.family)
def test_a_model_dispatched_in_parts_is_scored_masked_and_cut_alike(shape: Shape) -> None:
    """Accelerate's hooks on every part, as on several devices; what is cut is dispatched in the same way."""
    model, parts = tiny(shape), tiny(shape)
    places = {name: "cpu" for name, _ in parts.named_children() if name != "model"}
    places |= {f"model.{name}": "cpu" for name, _ in parts.model.named_children() if name != "layers"}
    places |= {f"model.layers.{i}": "cpu" for i in range(shape.layers)}
    dispatch_model(parts, places, force_hooks=True)
    close(amp.score(parts, BATCHES), amp.score(model, BATCHES), rtol=0)
    plan = some_plan(model, heads=2, neurons=11)
    outputs = []
    for dense in (model, parts):
        with amp.masked(dense, plan):
            outputs.append(logits(dense))
    assert torch.equal(*outputs)
    small = amp.prune(parts, plan).model
    assert small.hf_device_map == places and hasattr(small.model.layers[1], "_hf_hook")
    assert torch.equal(logits(small), logits(amp.prune(model, plan).model))
    assert torch.equal(logits(reloaded(small)), logits(small))


class Counting(ModelHook):
    """A hook of accelerate's that counts how often its module runs."""

    runs = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return args, kwargs


@pytest.mark.parametrize(("shape", "hidden"), [(KINDS[0], 24), *((shape, None) for shape in KINDS)], ids=str)
def test_repair_runs_through_accelerates_hooks_and_leaves_them(shape: Shape, hidden: int | None) -> None:
    model, parts = tiny(shape), tiny(shape)
    dispatch_model(parts, {"": "cpu"}, force_hooks=True)
    layers, counting = parts.get_submodule(amp.FAMILIES[shape.family].layers), Counting()
    add_hook_to_module(layers[1], counting, append=True)
    own = {
        name: {key: vars(module)[key] for key in ("_hf_hook", "_old_forward", "forward")}
        for name, module in parts.named_modules()
        if hasattr(module, "_hf_hook")
    }
    assert len(own) > shape.layers
    plan = some_plan(model, heads=2, neurons=11)
    wanted, found = (
        amp.repair(dense, plan, BATCHES, reads=True, hidden=hidden, progress=False).model for dense in (model, parts)
    )
    assert equal(weights(found), weights(wanted))
    assert counting.runs > 0
    for name, entries in own.items():
        module = parts.get_submodule(name)
        assert all(vars(module)[key] is entry for key, entry in entries.items())
    counting.runs = 0
    assert torch.equal(logits(parts), logits(model)) and counting.runs == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", families([*every(KNOWN), *every(KNOWN, 4, 1), *every(WITH_HEADS, 1, 4)]), ids=str)
def test_every_family_attention_and_precision_saves_what_it_holds(shape: Shape, dtype: str) -> None:
    model = tiny(shape).to(getattr(torch, dtype))
    units = [unit for unit, count in (("groups", shape.groups), ("queries", shape.group_size)) if count > 1]
    for unit in units:
        small = cut(model, unit=unit)
        assert torch.equal(logits(reloaded(small)), logits(small))


class OnApple(torch.Tensor):
    """A tensor on Apple's GPU, as far as its precision goes."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("mps")

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_what_apples_gpu_cannot_hold_comes_to_the_cpu() -> None:
    x = torch.tensor([[3.0, 4.0]] * 4).as_subclass(OnApple)
    found = exact(x)
    assert found.dtype == torch.float64 and found.device.type == "cpu" and found.tolist() == [[3.0, 4.0]] * 4
    assert moments(x, torch.ones(2, 1))[0].tolist() == [3.0, 4.0, 9.0, 16.0]
    assert weight_of_positions(torch.ones(1, 2).bool().as_subclass(OnApple), "prompts").tolist() == [[0.5, 0.5]]
    normal = Normal()
    normal.add(x, x)
    assert normal.error(torch.eye(2).double()) < 1e-12
    assert stream(x, [x], 1.0).tolist() == [[6.0, 8.0]] * 4
