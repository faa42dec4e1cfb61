"""Loading and saving: what comes back is what was there, and no failure leaves half a model."""

import json
from pathlib import Path

import pytest
import torch
from helpers import Shape, byte_tokenizer, equal, logits, tiny, weights

import amp_tutorial as amp
from amp_tutorial.checkpoint import MODELS, verify


@pytest.mark.parametrize("name", amp.EMBEDDED)
def test_embedded_models_are_stock_and_whole(name: str) -> None:
    model, tokenizer = amp.load(name, device="cpu")
    anatomy = amp.Anatomy.of(model)
    assert not model.training and anatomy.layers >= 6 and anatomy.heads >= 8
    assert 1e6 <= model.num_parameters() <= 5e6
    assert type(model).__module__.startswith("transformers.models")
    assert tokenizer("Anna").input_ids[0] == tokenizer.bos_token_id
    assert set(json.loads((MODELS / name / "SHA256.json").read_text())) >= {"model.safetensors", "config.json"}
    verify(MODELS / name)


def test_grouped_queries_and_a_parallel_block_are_among_them() -> None:
    models = {name: amp.load(name, device="cpu")[0] for name in amp.EMBEDDED}
    sizes = {name: amp.Anatomy.of(model).group_size for name, model in models.items()}
    assert sizes["tiny-llama"] == 1 and sizes["tiny-llama-gqa"] > 1
    assert models["tiny-phi"].config.model_type == "phi"


def test_data_is_at_most_30_megabytes() -> None:
    assert sum(p.stat().st_size for p in amp.DATA.rglob("*") if p.is_file()) <= 30e6


def test_save_then_load(tmp_path: Path) -> None:
    model = tiny(Shape(groups=4, hidden=32, tied=True))
    small = amp.prune(model, amp.plan(model, amp.score(model, [], "random"), heads=3, neurons=9))
    folder = amp.save(small, byte_tokenizer(), tmp_path / "deep" / "er")
    again, tokenizer = amp.load(folder, device="cpu")
    assert equal(weights(again), weights(small)) and torch.equal(logits(again), logits(small))
    assert tokenizer("kite").input_ids == byte_tokenizer()("kite").input_ids
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin"))
    assert amp.load(str(folder), device="cpu", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_an_empty_folder_may_be_saved_to_and_a_full_one_on_demand(tmp_path: Path) -> None:
    amp.save(tiny(seed=1), byte_tokenizer(), tmp_path)
    (tmp_path / "stale").touch()
    amp.save(tiny(seed=2), byte_tokenizer(), tmp_path, overwrite=True)
    assert not (tmp_path / "stale").exists()
    assert equal(weights(amp.load(tmp_path, device="cpu")[0]), weights(tiny(seed=2)))


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tokenizer = amp.save(tiny(seed=1), byte_tokenizer(), tmp_path / "model"), byte_tokenizer()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        amp.save(tiny(seed=2), tokenizer, folder, overwrite=True)
    with pytest.raises(OSError, match="no space"):
        amp.save(tiny(seed=2), tokenizer, tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert equal(weights(amp.load(folder, device="cpu")[0]), weights(tiny(seed=1)))
