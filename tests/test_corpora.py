"""Texts in the formats they come in, from local copies, and what is said when one is missing."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers import byte_tokenizer, logits, tiny

import amp_tutorial as amp
from amp_tutorial.core.data import pairs
from amp_tutorial.files import texts as corpora

ALPACA = [
    dict(instruction="Name a bird.", input="", output="A tit."),
    dict(instruction="Add them.", input="1 and 2", output="3"),
]
PROMPTS = ["Name a bird.", "Add them.\n1 and 2"]
LINES = ["One day.", "", "Two days."]


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8")
    return path


def lines(rows: list[dict[str, str]]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz", "a.parquet", "saved", "folder"])
def test_alpaca_in_every_format_gives_prompts_and_pairs(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "saved":
        DatasetDict(train=Dataset.from_list(ALPACA)).save_to_disk(str(path))
    elif name == "folder":
        put(path / "alpaca_data_cleaned.json", json.dumps(ALPACA))
    elif name == "a.parquet":
        Dataset.from_list(ALPACA).to_parquet(str(path))
    else:
        put(path, json.dumps(ALPACA) if ".json" in name and "jsonl" not in name else lines(ALPACA))
    assert amp.texts(str(path)) == PROMPTS
    assert pairs(str(path)) == list(zip(PROMPTS, ["A tit.", "3"], strict=True))


def test_json_lines_may_be_called_json_as_c4_does(tmp_path: Path) -> None:
    path = put(tmp_path / "c4-train.00000-of-01024.json.gz", lines([{"text": "One.", "url": "x"}, {"text": "Two."}]))
    assert amp.texts(str(path)) == ["One.", "Two."]


def test_sentences_of_ptb_and_raw_text(tmp_path: Path) -> None:
    saved = tmp_path / "ptb"
    rows = {"train": "a b", "validation": "c d", "test": "e f"}
    DatasetDict({k: Dataset.from_list([{"sentence": v}]) for k, v in rows.items()}).save_to_disk(str(saved))
    assert (amp.texts(str(saved)), amp.texts(str(saved), "validation")) == (["a b"], ["e f"])
    assert amp.texts(str(put(tmp_path / "ptb.txt", "a b\nc"))) == ["a b\nc"]


def test_a_folder_of_files_goes_by_the_split_in_their_names(tmp_path: Path) -> None:
    for split in ("train", "test", "validation"):
        put(tmp_path / "w" / f"{split}-00000-of-00001.jsonl", lines([{"text": f"of {split}"}]))
    assert amp.texts(str(tmp_path / "w")) == ["of train"]
    assert amp.texts(str(tmp_path / "w"), "validation") == ["of test"]
    put(tmp_path / "v" / "validation.jsonl", lines([{"text": "of validation"}]))
    assert amp.texts(str(tmp_path / "v"), "validation") == ["of validation"]
    put(tmp_path / "x" / "a.txt", "a"), put(tmp_path / "x" / "b.txt", "b")
    with pytest.raises(ValueError, match="no file with train in its name"):
        amp.texts(str(tmp_path / "x"))
    DatasetDict(other=Dataset.from_list([{"text": "a"}])).save_to_disk(str(tmp_path / "y"))
    with pytest.raises(ValueError, match="has splits other, none of test, validation"):
        amp.texts(str(tmp_path / "y"), "validation")


@pytest.mark.parametrize("name", list(amp.CORPORA))
def test_a_missing_corpus_says_what_to_fetch_and_where_to_put_it(tmp_path: Path, name: str) -> None:
    hub = amp.CORPORA[name].hub
    with pytest.raises(ValueError, match=rf"{name} is neither cached.*load_dataset\('{hub}'.*FOLDER/{name}") as caught:
        amp.texts(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"holds no {name}: put .* there as {name}.*'{hub}'"):
        amp.text_source(name, tmp_path)


@pytest.mark.parametrize(("name", "join"), [("wikitext2", "\n\n"), ("ptb", " "), ("c4", " "), ("alpaca", None)])
def test_a_local_copy_stands_for_the_corpus(tmp_path: Path, name: str, join: str | None) -> None:
    put(tmp_path / name / "train.jsonl", lines([{"text": "to learn"}]))
    put(tmp_path / name / "validation.jsonl", lines([{"text": text} for text in LINES]))
    assert amp.texts(amp.text_source(name, tmp_path)) == ["to learn"]
    assert amp.perplexity_text(name, tmp_path) == (LINES, join)
    assert amp.text_source("tinyworld", tmp_path) == "tinyworld" == amp.perplexity_text("tinyworld", tmp_path)[0]


def test_perplexity_of_c4_reads_as_many_documents_as_the_literature(tmp_path: Path) -> None:
    put(tmp_path / "c4" / "validation.jsonl", lines([{"text": f"{i}"} for i in range(1200)]))
    assert len(amp.perplexity_text("c4", tmp_path)[0]) == 1100


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[1]", r"row 0: need a JSON object with 'text'"),
        ('[{"instruction": "a", "output": 3}]', "row 0: need a JSON object"),
        ("[{", "is no JSON"),
        ('{"text": 3}', "line 1: need a JSON object"),
        ("[]", "holds no text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        amp.texts(str(put(tmp_path / "a.json", content)))
    with pytest.raises(ValueError, match="is not UTF-8"):
        (tmp_path / "b.json.gz").write_bytes(b"no gzip")
        amp.texts(str(tmp_path / "b.json.gz"))


def test_a_fingerprint_is_of_the_texts_and_not_of_their_format(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b"}]
    one, two = put(tmp_path / "a.jsonl", lines(rows)), put(tmp_path / "b.json", json.dumps(rows))
    other = put(tmp_path / "c.jsonl", lines(rows[::-1]))
    found = [corpora.fingerprint(path, "calibration") for path in (one, two, other)]
    assert found[0] == found[1] != found[2] and len(found[0]) == 64


@pytest.mark.parametrize("limit", [None, 2])
def test_joined_documents_are_one_text_in_windows(limit: int | None) -> None:
    """Against the slow way: one long row of tokens, cut by hand, blank documents included."""
    model, tokenizer = tiny(), byte_tokenizer()
    found = amp.perplexity(model, tokenizer, LINES * 4, window=16, limit=limit, join="\n\n")
    ids = tokenizer("\n\n".join(LINES * 4), add_special_tokens=False).input_ids
    loss, count = 0.0, 0
    for start in list(range(0, len(ids), 15))[:limit]:
        window = [0, *ids[start : start + 15]]
        scores = logits(model, [window])[0].log_softmax(-1)
        loss -= sum(float(scores[i, token]) for i, token in enumerate(window[1:]))
        count += len(window) - 1
    assert found.value == pytest.approx(math.exp(loss / count), rel=1e-5) and found.tokens == count
    assert r"documents joined by '\n\n'" in found.protocol
    apart = amp.perplexity(model, tokenizer, LINES * 4, window=16)
    assert "documents apart" in apart.protocol and apart.tokens != count
    assert torch.isfinite(torch.tensor(apart.value))
