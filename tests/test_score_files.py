"""Scores in a file: what comes back is what was saved; and scores are used for the model and prompts they are of."""

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, Shape, batch, prompts, shapes, tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from test_checkpoint import largest_file
from transformers import PreTrainedModel

import amp_tutorial as amp
from amp_tutorial.files.checkpoints import fingerprint

ROWS = prompts()
BATCHES = [batch(ROWS)]
CRITERIA = tuple(amp.CRITERIA)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
