"""Windows and batches: every token once, no document sees another, the same seed gives the same text."""

import json
import random
from pathlib import Path

import pytest
import torch
from helpers import TEXT, byte_tokenizer
from hypothesis import assume, given
from hypothesis import strategies as st

import amp_tutorial as amp
from amp_tutorial.core.data import windows
from amp_tutorial.files.batches import tokens_in
from amp_tutorial.files.texts import SPLITS, pairs

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
    (batch,) = amp.calibration(TOKENIZER, source=["one", "twenty words"], samples=2, length=20, join=None)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 13)
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [4, 13]
    assert torch.equal(batch["attention_mask"].sort(1, descending=True).values, batch["attention_mask"])
    assert bool((batch["input_ids"][batch["attention_mask"] == 0] == TOKENIZER.pad_token_id).all())


WIKI = [line for k in range(400) for line in (f" = Title {k} = \n", "", f" Line {k} says a little . \n")]


def rows_of(batches: list[dict[str, torch.Tensor]]) -> list[str]:
    """The texts of all rows, without BOS and padding."""
    return [
        TOKENIZER.decode(row[mask == 1][1:])
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    """A local copy in the manner of WikiText-2: a line a row, every second one blank or a title."""
    path = tmp_path / "wikitext2"
    path.mkdir()
    (path / "wiki.train.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in WIKI), encoding="utf-8")
    return path


@pytest.mark.parametrize("samples", [1, 3, 40])  # from a stretch each, and, by the last, from all of the text
def test_a_corpus_of_lines_is_joined_and_gives_what_is_asked_for(
    wiki: Path, samples: int, recwarn: pytest.WarningsRecorder
) -> None:
    batches = amp.calibration(TOKENIZER, wiki, samples=samples, length=64, seed=3)
    assert tokens_in(batches) == samples * 64 == sum(b["input_ids"].numel() for b in batches) and not recwarn.list
    found, joined = rows_of(batches), "\n\n".join(WIKI)
    assert len(set(found)) == samples and all(row in joined for row in found)  # one after another, as in the source
    assert found == rows_of(amp.calibration(TOKENIZER, wiki, samples=samples, length=64, seed=3))
    assert found != rows_of(amp.calibration(TOKENIZER, wiki, samples=samples, length=64, seed=4))
    assert found == rows_of(amp.calibration(TOKENIZER, WIKI, samples=samples, length=64, seed=3, join="\n\n"))


def test_windows_of_joined_text_share_no_token() -> None:
    """Numbers in a row, joined: every number once over all windows, whichever stretches are drawn."""
    numbers = [f"{i:05}" for i in range(5000)]
    for samples in (8, 200, 1000):
        found = rows_of(amp.calibration(TOKENIZER, numbers, samples=samples, length=61, join=" "))
        whole = [number for row in found for number in row.split() if len(number) == 5]
        assert len(found) == min(samples, 500) and len(whole) == len(set(whole)) >= 9 * len(found)


def test_one_joined_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="The text has 7 tokens, less than one window of 64"):
        amp.calibration(TOKENIZER, ["one", "two"], length=64, join=" ")


def test_documents_apart_that_fill_little_are_said(wiki: Path) -> None:
    short = [text for text in WIKI if text.strip()]
    with pytest.warns(UserWarning, match=r"The given list gave [\d,]+ of the 8 × 128 = 1,024 .*; say join=") as caught:
        batches = amp.calibration(TOKENIZER, short, samples=8)
    assert f"gave {tokens_in(batches):,} of" in str(caught[0].message) and tokens_in(batches) < 512
    assert sorted(rows_of(batches)) == sorted(set(rows_of(batches)) & set(short))  # no row holds two
    with pytest.warns(UserWarning, match=r"gave .* of the 900 × 128 = .*: it holds no more"):
        amp.calibration(TOKENIZER, wiki, samples=900)


def test_rows_by_design_are_not_said(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    asked = tmp_path / "a.jsonl"
    asked.write_text("\n".join(json.dumps(dict(prompt=f"Say {i}", response="no.")) for i in range(9)), encoding="utf-8")
    for source in ("tinyworld", asked):
        amp.calibration(TOKENIZER, source, samples=8, length=2000)
    amp.calibration(TOKENIZER, ["one", "two"], samples=8, join=None)
    assert not recwarn.list


def test_a_single_sample_may_be_shorter_than_a_window() -> None:
    """One of many documents, as with more samples; a lone document that is too short is refused."""
    (batch,) = amp.calibration(TOKENIZER, ["one", "two", "six"], samples=1, length=64, join=None)
    assert batch["input_ids"].shape == (1, 4) == batch["attention_mask"].shape and tokens_in([batch]) == 4
    with pytest.raises(ValueError, match="less than one window"):
        amp.calibration(TOKENIZER, ["one"], samples=1, length=64, join=None)


def test_the_embedded_batches_are_those_that_published_numbers_rest_on() -> None:
    """The slow way, written out: draw documents, cut each into windows, draw windows."""
    for samples, length, seed in ((64, 128, 0), (9, 40, 3), (1, 200, 1)):
        rng, documents = random.Random(seed), amp.texts("tinyworld")
        ids = [TOKENIZER(text)["input_ids"] for text in rng.sample(documents, samples)]
        cut = [[0, *row[k : k + length - 1]] for row in ids for k in range(0, len(row), length - 1)]
        batches = amp.calibration(TOKENIZER, samples=samples, length=length, seed=seed)
        found = [
            row[mask == 1].tolist()
            for b in batches
            for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
        ]
        assert found == rng.sample(cut, samples)


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
