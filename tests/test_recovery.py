"""Recovery: what is trained on, what comes out, and that the model given stays as it was."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EVERY_FAMILY, KNOWN, Shape, byte_tokenizer, equal, logits, some_plan, tiny, weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import amp_tutorial as amp
from amp_tutorial.methods.lora import IGNORE, adapted, encode, seeded

TOKENIZER = byte_tokenizer()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    pairs = [("To cut the bread, take the", "knife."), ("A cow says", "moo."), ("Is it red?", "no.")] * 4
    path.write_text("".join(json.dumps(dict(prompt=p, response=r)) + "\n" for p, r in pairs), encoding="utf-8")
    return path


def recovered(model: PreTrainedModel, rows: Path, **settings: Any) -> amp.Recovery:
    few: dict[str, Any] = dict(samples=12, epochs=2, batch_size=4, progress=False)
    return amp.recover(model, TOKENIZER, rows, **few | settings)


def test_responses_are_the_only_labels_and_bos_stands_once() -> None:
    [(ids, labels)] = encode(TOKENIZER, "A cow says", "moo.", "responses", 64)
    response = [*TOKENIZER(" moo.")["input_ids"], TOKENIZER.eos_token_id]
    assert ids == [TOKENIZER.bos_token_id, *TOKENIZER("A cow says")["input_ids"], *response]
    assert labels == [IGNORE] * (len(ids) - len(response)) + response


def test_text_is_trained_on_whole() -> None:
    [(ids, labels)] = encode(TOKENIZER, "A cow says", "moo.", "text", 64)
    assert labels == ids and ids.count(TOKENIZER.bos_token_id) == 1


@pytest.mark.parametrize("loss", ["responses", "text"])
def test_a_row_of_plain_text_is_trained_on_after_its_bos(loss: str) -> None:
    [(ids, labels)] = encode(TOKENIZER, "", "moo.", loss, 64)
    assert ids == [0, *TOKENIZER("moo.")["input_ids"], 1] and labels[1:] == ids[1:]  # labels are shifted by one


def test_length_cuts_both_alike() -> None:
    [(ids, labels)] = encode(TOKENIZER, "A cow says", "moo.", "responses", 13)
    assert (len(ids), len(labels)) == (13, 13) and labels[-2:] == ids[-2:]


def test_a_long_text_becomes_several_rows_and_loses_no_token() -> None:
    found = encode(TOKENIZER, "", "A cow says moo. " * 9, "text", 16)
    assert len(found) > 3 and {ids[0] for ids, _ in found} == {TOKENIZER.bos_token_id}
    assert [i for ids, _ in found for i in ids[1:]] == [*TOKENIZER("A cow says moo. " * 9)["input_ids"], 1]


def test_a_prompt_without_room_for_a_response_is_left_out() -> None:
    assert encode(TOKENIZER, "A cow says " * 9, "moo.", "responses", 16) == []


def test_the_loss_counts_labels_only(rows: Path) -> None:
    """The first step's loss, by hand: its adapter is still zero, and one batch takes all rows."""
    model, total, tokens = tiny(), 0.0, 0
    first = recovered(model, rows, epochs=1, batch_size=12, dropout=0.0)
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        [(ids, labels)] = encode(TOKENIZER, row["prompt"], row["response"], "responses", 512)
        found = logits(model, [ids])[0].log_softmax(-1)
        for t, label in enumerate(labels):
            if label != IGNORE:
                total, tokens = total - float(found[t - 1, label]), tokens + 1
    assert first.history[0]["loss"] == pytest.approx(total / tokens, rel=1e-4) and first.tokens == tokens


@pytest.mark.parametrize("shape", EVERY_FAMILY, ids=KNOWN)
@pytest.mark.filterwarnings("error:.is_gradient_checkpointing:FutureWarning")  # peft still asks for it
def test_every_projection_is_adapted_and_merged_into_a_stock_model(shape: Shape, rows: Path, tmp_path: Path) -> None:
    """Attention and MLP, packed or not, whether the family can lose them or not; experts and routers stay."""
    dense = tiny(shape)
    model = amp.prune(dense, some_plan(dense, heads=2, neurons=11)).model
    before, found = weights(model), recovered(model, rows, lr=1e-2)
    blocks = f"{amp.FAMILIES[shape.family].layers}."
    attention = "self_attn" if shape.family in ("glm4_moe", "ernie4_5_moe") else ""  # peft can't tell the rest apart
    linear = {
        f"{name}.weight": sum(m.weight.shape)
        for name, m in model.named_modules()
        if name.startswith(blocks) and isinstance(m, nn.Linear | Conv1D) and attention in name and "router" not in name
    }
    assert found.trainable == 8 * sum(linear.values()) and len(linear) >= 2 * shape.layers
    assert equal(weights(model), before) and type(found.model) is type(model)
    after = weights(found.model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == linear.keys()
    assert not found.model.training and all(p.requires_grad for p in found.model.parameters())
    folder = amp.save(found.model, None, tmp_path / "recovered")
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()) and torch.equal(logits(loaded), logits(found.model))


def test_the_same_seed_gives_the_same_model_and_another_does_not(rows: Path) -> None:
    model = tiny()
    first, again, other = (recovered(model, rows, seed=seed) for seed in (0, 0, 1))
    assert first.history == again.history and equal(weights(first.model), weights(again.model))
    assert first.history != other.history


def test_whatever_is_switched_off_around_it(rows: Path) -> None:
    model = tiny()
    wanted = recovered(model, rows, seed=3).history
    with torch.no_grad():
        assert recovered(model, rows, seed=3).history == wanted
    with torch.inference_mode(), pytest.raises(ValueError, match="Nothing is learned under torch.inference_mode"):
        recovered(model, rows, seed=3)
    with pytest.raises(ValueError, match="learning_rate must be a finite number, not inf"):
        recovered(model, rows, lr=math.inf)


def test_rows_are_no_longer_than_learned_positions(rows: Path) -> None:
    model = tiny(Shape("gpt2"), n_positions=16)
    assert math.isfinite(recovered(model, rows).history[-1]["loss"])


def test_the_callers_random_numbers_go_on(rows: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = tiny()
    torch.set_rng_state(before)
    first = recovered(model, rows, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # whatever the caller drew before does not matter to the result
    assert equal(weights(recovered(model, rows, seed=3).model), weights(first.model))
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="The recovery loss is (nan|inf) at step"):
        recovered(model, rows, lr=1e30)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_are_those_of_the_seed_in_torchs_own_generator(rows: Path) -> None:
    """What is drawn is what `torch.manual_seed` gives, so that recorded runs stay what they were."""
    model = tiny()
    torch.manual_seed(4)
    wanted = [p.detach().clone() for name, p in adapted(model).named_parameters() if "lora_A" in name]
    torch.manual_seed(9)
    with seeded(model, 4):
        found = [p for name, p in adapted(model).named_parameters() if "lora_A" in name]
    assert wanted and all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize("bos", [True, False])
def test_only_labels_that_bear_a_loss_are_counted(rows: Path, bos: bool) -> None:
    """A row's first token, BOS or not, is predicted by nothing."""
    tokenizer, lengths = byte_tokenizer(), []
    if not bos:
        tokenizer.bos_token = None
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        [(ids, _)] = encode(tokenizer, row["prompt"], row["response"], "text", 512)
        assert (ids[0] == 0) == bos
        lengths.append(len(ids))
    found = amp.recover(tiny(), tokenizer, rows, samples=12, epochs=1, batch_size=4, loss="text", progress=False)
    assert found.tokens == sum(lengths) - len(lengths)


def test_the_loss_falls(rows: Path) -> None:
    history = recovered(tiny(), rows, epochs=15, lr=1e-2).history
    assert [entry["step"] for entry in history] == list(range(45))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_under_autocast_it_learns_as_well(rows: Path) -> None:
    """Had autocast kept the adapters as it cast them first, no step would have changed what the next one gives."""
    exact = recovered(tiny(), rows, epochs=8, lr=1e-2, dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = recovered(tiny(), rows, epochs=8, lr=1e-2, dropout=0.0)
    assert found.model.dtype == torch.float32 and found.history != exact.history
    for one, other in zip(exact.history, found.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)


@pytest.mark.parametrize("at_once", [1, 3, 5, 16])
def test_rows_at_once_change_neither_the_gradient_nor_the_loss_of_a_step(
    at_once: int, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a step is seen where it is clipped; five rows do not divide a step, sixteen are more than it."""
    model, seen = tiny(), []
    clip = torch.nn.utils.clip_grad_norm_

    def look(parameters: list[torch.nn.Parameter], most: float) -> torch.Tensor:
        seen.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).clone())
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", look)
    how: dict[str, Any] = dict(batch_size=12, dropout=0.0, epochs=3, lr=1e-4)
    whole = recovered(model, rows, **how)
    few = recovered(model, rows, rows_at_once=at_once, **how)
    expected, found = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(expected) == 3 and float(expected[1].abs().max()) > 1e-4
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert [e["loss"] for e in few.history] == pytest.approx([e["loss"] for e in whole.history], rel=1e-6)
    assert few.tokens == whole.tokens


def test_no_row_at_once_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="rows_at_once=0 must be at least 1"):
        amp.recover(tiny(), TOKENIZER, "no such file", config=amp.RecoveryConfig(rows_at_once=0))
