"""What version 0.1 called otherwise still works, with one warning for each old name."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Shape, batch, byte_tokenizer, equal, prompts, tiny, weights

import amp_tutorial as amp
from amp_tutorial import older_calls
from amp_tutorial.core import surgery

BATCHES = [batch(prompts((9, 7)))]
TOKENIZER = byte_tokenizer()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(older_calls, "_said", set())
    yield


def said(call: Any) -> tuple[Any, list[str]]:
    """What a call returns, and the warnings about old names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    return found, [str(w.message) for w in caught if "goes with the next version" in str(w.message)]


def test_an_old_name_gives_what_the_new_one_gives_and_warns_once() -> None:
    model = tiny()
    scores = amp.score(model, BATCHES)
    old, warned = said(lambda: [amp.plan(model, scores, remove=0.3, of="blocks") for _ in range(2)])
    assert old[0] == old[1] == amp.plan(model, scores, pruning_ratio=0.3, of="block parameters")
    assert len(warned) == 2 and "pruning_ratio=" in warned[0] and "'block parameters'" in warned[1]
    widths, warned = said(lambda: amp.plan(model, scores, heads=2, neurons=9))
    assert widths == amp.keep(model, scores, 2, 9) and len(warned) == 1
    both, warned = said(lambda: amp.score(model, BATCHES, ("amp", "random")))
    assert list(both) == ["amp", "random"] and len(warned) == 1 and "score_many" in warned[0]
    found, warned = said(lambda: amp.check(model, widths))
    assert found == amp.preview(model, widths) and len(warned) == 1
    deep, warned = said(lambda: amp.drop_layers(tiny(Shape(layers=3)), BATCHES, remove=1, criterion="last"))
    assert deep.kept_layers == [0, 2] and len(warned) == 1 and "num_layers=" in warned[0]


def test_a_perplexity_gives_the_ends_of_its_interval() -> None:
    found, warned = said(lambda: amp.perplexity(tiny(), TOKENIZER, ["a text of some length"], window=5))
    assert not warned
    (low, high), warned = said(lambda: (found.low, found.high))
    assert (low, high) == (amp.interval(found).low, amp.interval(found).high) and low < found.value < high
    assert len(warned) == 2 and "amp.interval(found).low" in warned[0]


def test_the_new_names_warn_of_nothing() -> None:
    model = tiny()
    scores, warned = said(lambda: amp.score_many(model, BATCHES, ("amp",))["amp"])
    plan, more = said(lambda: amp.plan(model, scores, 0.1, parts="neurons"))
    made, most = said(
        lambda: (amp.prune(model, plan).model, amp.repair(model, plan, BATCHES, progress=False).report.fits)
    )
    assert not (warned or more or most) and made[1]


def test_recovery_takes_its_settings_one_by_one_as_before() -> None:
    model = tiny()
    old, warned = said(lambda: amp.recover(model, TOKENIZER, samples=4, epochs=1, lr=1e-3, length=64, progress=False))
    config = amp.RecoveryConfig(samples=4, epochs=1, learning_rate=1e-3, length=64)
    new = amp.recover(model, TOKENIZER, config=config, progress=False)
    assert len(warned) == 1 and old.history == new.history


@pytest.mark.filterwarnings("ignore:Fewer calibration tokens")
def test_a_result_can_be_used_as_the_model_it_was_before(tmp_path: Path) -> None:
    model = tiny()
    plan = amp.keep(model, amp.score(model, BATCHES), 2, 9)
    ids = BATCHES[0]["input_ids"]
    small, warned = said(lambda: amp.prune(model, plan))
    logits, warned = said(lambda: small(input_ids=ids).logits)
    assert torch.equal(logits, small.model(input_ids=ids).logits) and len(warned) == 1 and "result.model" in warned[0]
    assert small.config.num_attention_heads == 2 and isinstance(small, surgery.Pruned)
    repaired, warned = said(lambda: amp.repair(model, plan, BATCHES, choose=True, reads=True, progress=False))
    new = amp.repair(model, plan, BATCHES, reselect=True, refit_inputs=True, progress=False)
    assert equal(weights(repaired.model), weights(new.model)) and len(warned) == 2 and repaired.fits == new.report.fits
    shots = amp.prune_in_shots(model, TOKENIZER, BATCHES, heads=2, neurons=9, shots=1, recover=None)
    (pair, _) = said(lambda: [(last, shot) for last, shot in shots])
    assert pair[0][1].heads == (4, 2)


def test_a_result_saves_itself_with_the_tokenizer_it_came_with(tmp_path: Path) -> None:
    model, tokenizer = amp.load("tiny-llama")
    pruned = amp.prune(model, amp.keep(model, amp.score(model, [], "random"), neurons=64))
    folder = pruned.save(tmp_path / "small")
    again, same = amp.load(folder)
    assert equal(weights(again), weights(pruned.model)) and same.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match="No tokenizer was found"):
        amp.prune(tiny(), amp.keep(tiny(), amp.score(tiny(), [], "random"), neurons=9)).save(tmp_path / "none")
    assert not (tmp_path / "none").exists()
