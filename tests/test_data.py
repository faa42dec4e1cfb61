"""Windows and batches: every token once, no document sees another, the same seed gives the same text."""

import json
from pathlib import Path

import pytest
import torch
from helpers import TEXT, byte_tokenizer
from hypothesis import assume, given
from hypothesis import strategies as st

import amp_tutorial as amp
from amp_tutorial.core.data import pairs, windows
from amp_tutorial.files.texts import SPLITS

TOKENIZER = byte_tokenizer()
DOCUMENTS = st.lists(st.text("abc ", min_size=1, max_size=40), min_size=2, max_size=5)


@given(DOCUMENTS, st.integers(2, 12), st.integers(1, 11))
def test_windows_hold_every_token_once_as_fresh(documents: list[str], length: int, stride: int) -> None:
    assume(stride < length)
    found = windows(TOKENIZER, documents, length, stride)
    fresh = [token for window in found for token in window.ids[len(window.ids) - window.fresh :]]
    assert fresh == [token for text in documents for token in TOKENIZER(text)["input_ids"]]
    assert all(window.ids[0] == 0 and 0 not in window.ids[1:] for window in found)  # BOS first, and only there
    assert all(1 <= window.fresh <= len(window.ids) - 1 <= length - 1 for window in found)


def test_windows_overlap_by_the_stride() -> None:
    apart, over = windows(TOKENIZER, [TEXT], 11), windows(TOKENIZER, [TEXT], 11, stride=4)
    assert [len(w.ids) for w in apart[:-1]] == [11] * (len(apart) - 1)
    assert over[0].fresh == 10 and {w.fresh for w in over[1:-1]} == {4}
    assert over[1].ids[1:] == TOKENIZER(TEXT)["input_ids"][4:14]


def test_windows_without_a_bos() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert windows(tokenizer, [TEXT], 10)[0].ids == tokenizer(TEXT)["input_ids"][:10]


def test_calibration_depends_on_its_seed() -> None:
    def drawn(seed: int) -> list[list[int]]:
        batches = amp.calibration(TOKENIZER, samples=10, seed=seed, length=40, batch_size=4)
        assert [len(b["input_ids"]) for b in batches] == [4, 4, 2]
        assert all(int(b["attention_mask"].sum(1).max()) <= 40 for b in batches)
        return [row[mask == 1].tolist() for b in batches for row, mask in zip(*b.values(), strict=True)]

    assert drawn(0) == drawn(0) and not {tuple(row) for row in drawn(0)} & {tuple(row) for row in drawn(1)}


def test_batch_size_changes_the_batches_only() -> None:
    one, many = (amp.calibration(TOKENIZER, samples=9, length=40, batch_size=size) for size in (1, 9))
    rows = [row[mask == 1].tolist() for row, mask in zip(*many[0].values(), strict=True)]
    assert rows == [b["input_ids"][0].tolist() for b in one]


def test_padding_is_on_the_right_and_masked() -> None:
    (batch,) = amp.calibration(TOKENIZER, source=["one", "twenty words"], samples=2, length=20)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 13)
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [4, 13]
    assert torch.equal(batch["attention_mask"].sort(1, descending=True).values, batch["attention_mask"])
    assert bool((batch["input_ids"][batch["attention_mask"] == 0] == TOKENIZER.pad_token_id).all())


@pytest.mark.parametrize("split", SPLITS)
def test_the_embedded_world_is_there(split: str) -> None:
    assert len(amp.texts("tinyworld", split)) >= 500


def test_text_comes_from_files_too(tmp_path: Path) -> None:
    plain, lines, asked = (tmp_path / name for name in ("a.txt", "b.jsonl", "c.jsonl"))
    plain.write_text("Käse\nund Brot", encoding="utf-8")
    lines.write_text('{"text": "Käse"}\n\n{"text": "Brot"}\n', encoding="utf-8")
    asked.write_text(json.dumps(dict(prompt="To cut, take the", response="knife.")) + "\n", encoding="utf-8")
    assert amp.texts(plain) == ["Käse\nund Brot"] and amp.texts(str(lines)) == ["Käse", "Brot"]
    assert amp.texts(asked) == ["To cut, take the knife."] and pairs(asked) == [("To cut, take the", "knife.")]
    assert pairs(lines) == [("", "Käse"), ("", "Brot")]
    assert amp.texts(["one", " ", "two"]) == ["one", "two"]
