"""The schedule against the published numbers; shots against one cut; what is kept on disk; going on after a kill."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import WHOLE, Shape, batch, byte_tokenizer, equal, every, families, prompts, some_plan, tiny, weights
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.methods import shots as module
from amp_tutorial.methods.depth_and_width import planned
from amp_tutorial.methods.shots import Shot, composed, schedule, widths

TOKENIZER = byte_tokenizer()
BATCHES = [batch(prompts((9, 7))), batch(prompts((8, 5), seed=1))]
EIGHT = Shape(groups=8, hidden=32, neurons=40)


def run(model: PreTrainedModel, **settings: Any) -> list[tuple[PreTrainedModel, Shot]]:
    found = amp.prune_in_shots(model, TOKENIZER, BATCHES, **dict(recover=None, criterion="amp") | settings)
    return [(pruned.model, pruned.report) for pruned in found]


def test_the_published_schedule() -> None:
    """LLaMA-2-7B to 6 heads and 1,536 neurons in 8 shots, by facts.md's rule."""
    assert schedule(32, 6) == [29, 26, 23, 20, 17, 14, 10, 6]
    assert schedule(11008, 1536) == [11008 - 1184 * k for k in range(1, 9)]
    assert schedule(32, 16) == [30, 28, 26, 24, 22, 20, 18, 16]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 20))
def test_any_schedule_falls_to_its_target_in_steps_that_grow_by_one_at_most(a: int, b: int, shots: int) -> None:
    current, target = max(a, b), min(a, b)
    left = [current, *schedule(current, target, shots)]
    steps = [before - after for before, after in zip(left, left[1:], strict=False)]
    assert left[-1] == target and len(steps) == shots
    assert steps == sorted(steps) and max(steps) - min(steps) <= 1


@pytest.fixture(scope="module")
def llama_2_7b() -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, dtype="float16"
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("preset", "billions", "less", "cache"), [("paper", 1.269, 0.81, 0.1875), ("script", 2.54, 0.62, 0.5)]
)
def test_published_targets(
    llama_2_7b: PreTrainedModel, preset: str, billions: float, less: float, cache: float
) -> None:
    assert llama_2_7b.num_parameters() == 6_738_415_616
    kept = some_plan(llama_2_7b, **amp.TRANSACT[preset])
    found = amp.preview(llama_2_7b, kept)
    assert found.parameters[1] / 1e9 == pytest.approx(billions, rel=2e-3)
    assert found.ratio == pytest.approx(less, abs=0.005)
    assert found.kv_cache_per_token[1] / found.kv_cache_per_token[0] == cache
    heads, neurons = amp.TRANSACT[preset].values()
    assert widths(llama_2_7b, heads, neurons)[-1] == (heads, neurons)


def test_shots_need_no_weights_if_the_scores_need_none() -> None:
    """The paper's targets in all eight shots, on a LLaMA-2-7B of two layers on the meta device."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, num_attention_heads=32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = [shot for _, shot in run(model, **amp.TRANSACT["paper"], criterion="random")]
    assert [(s.heads[1], s.neurons[1]) for s in found] == list(zip(schedule(32, 6), schedule(11008, 1536), strict=True))
    assert "KV cache 18.75 %" in str(found[-1]).replace("%", " %") and "Shot 8 of 8" in str(found[-1])


SHAPES = families([EIGHT, *every(WHOLE, groups=4, group_size=2, hidden=48)])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.family)
def test_every_shot_has_the_widths_and_parameters_said(shape: Shape) -> None:
    model = tiny(shape)
    before, seen = weights(model), 0
    for small, shot in amp.prune_in_shots(model, TOKENIZER, BATCHES, heads=4, neurons=6, shots=2, recover=None):
        anatomy = amp.Anatomy.of(small)
        assert (anatomy.heads, anatomy.neurons) == (shot.heads[1], shot.neurons[1])
        assert shot.parameters == (model.num_parameters(), small.num_parameters())
        assert shot.kv_cache_per_token[1] == amp.size(small).kv_cache_bytes_per_token
        assert shot.plan.achieved == pytest.approx(1 - small.num_parameters() / model.num_parameters())
        assert equal(weights(small), weights(amp.prune(model, shot.plan).model))  # without recovery one cut is the same
        seen += 1
    assert seen == 2 and shot.heads[1] == 4 and shot.neurons[1] == 6 and equal(weights(model), before)


@pytest.mark.parametrize("unit", ["groups", "queries"])
@pytest.mark.parametrize("shape", [EIGHT, Shape(groups=4, group_size=4, hidden=64)], ids=["heads", "groups"])
def test_magnitude_in_shots_is_magnitude_at_once(shape: Shape, unit: str) -> None:
    """It sees nothing but the structure itself, so a smaller neighbourhood changes no score, and no choice."""
    model = tiny(shape)
    keep = dict(heads=4, neurons=5, unit=unit) if unit == "groups" or shape.group_size > 1 else dict(neurons=5)
    once = planned(model, amp.score(model, [], "magnitude"), **keep)
    small, shot = run(model, **keep, shots=3, criterion="magnitude")[-1]
    assert (shot.plan.heads, shot.plan.neurons) == (once.heads, once.neurons)
    assert shot.plan.achieved == pytest.approx(once.achieved)
    assert equal(weights(small), weights(amp.prune(model, once).model))


def test_groups_stay_whole_and_wait_for_the_schedule() -> None:
    model = tiny(Shape(groups=8, group_size=4, head_dim=4, hidden=64, neurons=40))
    assert [h for h, _ in widths(model, heads=8, neurons=4)] == [-(-h // 4) * 4 for h in schedule(32, 8)]
    assert [h for h, _ in widths(model, heads=8, neurons=4, shots=3, unit="queries")] == [24, 16, 8]
    gemma = tiny(Shape("gemma2", groups=12, hidden=48, head_dim=4))  # says only head counts that divide 48
    assert [h for h, _ in widths(gemma, heads=4, neurons=8, shots=4)] == [12, 8, 6, 4]


@given(st.integers(0, 4), st.integers(0, 4))
def test_two_plans_in_a_row_are_their_composition(first_seed: int, second_seed: int) -> None:
    model = tiny(Shape(groups=4, group_size=2, hidden=24))
    first = some_plan(model, 6, 20, seed=first_seed)
    between = amp.prune(model, first).model
    then = some_plan(between, 4, 9, seed=second_seed)
    both = composed(first, then)
    assert equal(weights(amp.prune(between, then).model), weights(amp.prune(model, both).model))
    with pytest.raises(ValueError, match="The first plan leaves"):
        composed(first, first)


BAD: list[tuple[dict[str, Any], str]] = [
    (dict(), "Say which widths"),
    (dict(heads=4, shots=0), "shots=0 must be at least 1"),
    (dict(heads=4, shots=5), "shots=5 are too many: only 4 of them would cut anything"),
    (dict(heads=8, neurons=40), "shots=8 are too many: only 0 of them"),
    (dict(heads=9), "heads=9 is not possible"),
    (dict(neurons=41), "neurons=41 is not possible: keep 1 to 40"),
    (dict(neurons=0), "neurons=0 is not possible"),
    (dict(heads=4, criterion="best"), "Unknown criterion 'best'"),
    (dict(heads=4, average="words"), "Unknown average 'words'"),
    (dict(heads=4, combine="mean"), "combine='mean'"),
    (dict(heads=4, unit="heads"), "unit='heads'"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD, ids=[s for _, s in BAD])
def test_bad_input_is_refused_at_once_and_nothing_is_written(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        amp.prune_in_shots(tiny(EIGHT), TOKENIZER, BATCHES, out=tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_half_a_group_is_refused() -> None:
    model = tiny(Shape(groups=2, group_size=4, hidden=32))
    with pytest.raises(ValueError, match="keep a multiple of 4 .query heads of one KV group.*unit='queries' can"):
        amp.prune_in_shots(model, TOKENIZER, BATCHES, heads=6)


def test_batches_that_can_be_read_only_once_are_refused() -> None:
    with pytest.raises(ValueError, match="batches can be read only once"):
        amp.prune_in_shots(tiny(EIGHT), TOKENIZER, iter(BATCHES), heads=4, shots=2)


@torch.no_grad()
def louder(model: PreTrainedModel, tokenizer: Any, by: float = 1.5) -> PreTrainedModel:
    """A recovery that can be seen, and that changes what the next shot chooses."""
    for i, parameter in enumerate(model.parameters()):
        parameter.mul_(by if i % 2 else 1 / by)
    return model


def test_recovery_stands_between_the_shots() -> None:
    """Each shot scores what recovery left of the one before."""
    model, seen = tiny(EIGHT), list[int]()

    def noted(small: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
        seen.append(small.num_parameters())
        return louder(small, tokenizer)

    settings = dict(heads=4, neurons=12, shots=2, criterion="amp")
    (one, first), (two, second) = run(model, **settings, recover=noted)
    assert seen == [first.parameters[1], second.parameters[1]]
    kept = amp.keep(one, amp.score(one, BATCHES), heads=4, neurons=12)
    assert (second.plan.heads, second.plan.neurons) == (
        composed(first.plan, kept).heads,
        composed(first.plan, kept).neurons,
    )
    assert equal(weights(two), weights(louder(amp.prune(one, kept).model, TOKENIZER)))


def test_lora_is_merged_after_every_shot() -> None:
    lora = partial(amp.recover, samples=4, epochs=1, batch_size=4, length=64, progress=False, lr=1e-2)
    [(small, shot)] = run(tiny(EIGHT), heads=4, neurons=12, shots=1, recover=lora)
    assert small.num_parameters() == shot.parameters[1]
    assert not equal(weights(small), weights(amp.prune(tiny(EIGHT), shot.plan).model))


def test_a_recovery_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="recover must return a model of the shape"):
        run(tiny(EIGHT), heads=4, shots=2, recover=lambda small, _: tiny(EIGHT))


KEEP: dict[str, Any] = dict(heads=4, neurons=10, shots=4, recover=louder)


@pytest.fixture(scope="module")
def uninterrupted() -> list[tuple[PreTrainedModel, Shot]]:
    return run(tiny(EIGHT), **KEEP)


def same(found: list[tuple[PreTrainedModel, Shot]], expected: list[tuple[PreTrainedModel, Shot]]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(a == b and equal(weights(m), weights(n)) for (m, a), (n, b) in pairs)


@pytest.mark.parametrize("killed_in", ["score", "save", "move"])
def test_a_killed_run_goes_on_where_it_was(
    killed_in: str, uninterrupted: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, done = tmp_path / "out", 0
    original = getattr(module, "score" if killed_in == "score" else "save")

    def killed(*args: Any, **kwargs: Any) -> Any:
        if (out / "shot-2").is_dir():
            if killed_in == "move":  # the model is written, its record is not
                original(*args, **kwargs)
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, original.__name__, killed)
        with pytest.raises(KeyboardInterrupt):
            for _ in amp.prune_in_shots(tiny(EIGHT), TOKENIZER, BATCHES, out=out, **KEEP):
                done += 1
    assert done == 2 and not (out / "shot-3").exists()
    before = (out / "shot-2" / "model.safetensors").stat().st_mtime_ns
    assert same(run(tiny(EIGHT), out=out, **KEEP), uninterrupted)
    assert (out / "shot-2" / "model.safetensors").stat().st_mtime_ns == before
    assert {p.name for p in out.iterdir()} == {"settings.json", *(f"shot-{k}" for k in range(1, 5))}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]

    def never(*_: Any, **__: Any) -> Iterator[None]:
        raise AssertionError("all is done")

    monkeypatch.setattr(module, "prune", never)
    assert same(run(tiny(EIGHT), out=out, **KEEP), uninterrupted)  # a third call only reads
    loaded, _ = amp.load(out / "shot-4")
    assert AutoConfig.from_pretrained(out / "shot-4").num_attention_heads == 4
    assert equal(weights(loaded), weights(uninterrupted[-1][0]))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shots") / "out"
    next(amp.prune_in_shots(tiny(EIGHT), TOKENIZER, BATCHES, out=out, **KEEP))
    return out


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (dict(heads=3), "heads=4, not 3"),
        (dict(neurons=11), "neurons=10, not 11"),
        (dict(shots=3), "shots=4, not 3"),
        (dict(criterion="magnitude"), "criterion='amp'"),
        (dict(average="prompts"), "average='tokens'"),
        (dict(recover=partial(louder, by=2.0)), "recover='louder', not 'louder.by=2.0.'"),
        (dict(recover=None), "recover='louder', not ''"),
    ],
)
def test_other_settings_are_refused(begun: Path, other: dict[str, Any], name: str) -> None:
    files = sorted(begun.rglob("*"))
    with pytest.raises(ValueError, match=name):
        amp.prune_in_shots(tiny(EIGHT), TOKENIZER, BATCHES, out=begun, **KEEP | other)
    assert sorted(begun.rglob("*")) == files


def test_another_model_or_text_is_refused(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds shots with model="):
        amp.prune_in_shots(tiny(EIGHT, seed=1), TOKENIZER, BATCHES, out=begun, **KEEP)
    copy = shutil.copytree(begun, tmp_path / "out")
    with pytest.raises(ValueError, match="scored on another calibration text"):
        list(amp.prune_in_shots(tiny(EIGHT), TOKENIZER, BATCHES[:1], out=copy, **KEEP))
    assert not (copy / "shot-2").exists()


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no shots"):
        amp.prune_in_shots(tiny(EIGHT), TOKENIZER, BATCHES, out=tmp_path, **KEEP)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
