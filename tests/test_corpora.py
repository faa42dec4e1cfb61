"""Texts in the formats they come in, from local copies, and what is said when one is missing."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers import byte_tokenizer, logits, tiny

import amp_tutorial as amp
from amp_tutorial.files import texts as corpora
from amp_tutorial.files.formats import of_memory
from amp_tutorial.files.texts import pairs

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


@pytest.mark.parametrize(
    ("given", "prompt", "response"),
    [
        ({"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]}, "Hi.", "Yes?"),
        ({"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Yes?"}]}, "Hi.", "Yes?"),
        ({"messages": [{"role": r, "content": r[:1]} for r in ("system", "user", "assistant")]}, "s\nu", "a"),
        ({"prompt": "Hi.", "completion": "Yes?"}, "Hi.", "Yes?"),
        (
            {"prompt": [{"role": "user", "content": "Hi."}], "completion": [{"role": "assistant", "content": "Yes?"}]},
            "Hi.",
            "Yes?",
        ),
    ],
)
def test_chats_are_read_and_their_last_turn_is_what_is_learned(
    tmp_path: Path, given: dict[str, Any], prompt: str, response: str
) -> None:
    path = str(put(tmp_path / "chat.jsonl", lines([given, given])))
    for source in (path, [given, given], Dataset.from_list([given, given])):
        assert pairs(source) == [(prompt, response)] * 2
        assert amp.texts(source) == [f"{prompt} {response}"] * 2


def test_a_folder_of_files_goes_by_the_split_in_their_names(tmp_path: Path) -> None:
    for split in ("train", "test", "validation"):
        put(tmp_path / "w" / f"{split}-00000-of-00001.jsonl", lines([{"text": f"of {split}"}]))
    assert amp.texts(str(tmp_path / "w")) == ["of train"]
    assert amp.texts(str(tmp_path / "w"), "validation") == ["of test"]
    put(tmp_path / "v" / "validation.jsonl", lines([{"text": "of validation"}]))
    assert amp.texts(str(tmp_path / "v"), "validation") == ["of validation"]
    for name in ("constraints.txt", "latest.txt", "retrain.txt", "contest.txt"):
        put(tmp_path / "w" / name, name)  # the split is a word of the name, not a part of one
    assert (amp.texts(tmp_path / "w"), amp.texts(tmp_path / "w", "validation")) == (["of train"], ["of test"])
    put(tmp_path / "x" / "a.txt", "a"), put(tmp_path / "x" / "b.txt", "b")
    with pytest.raises(ValueError, match="no file with the word train or training in its name"):
        amp.texts(str(tmp_path / "x"))
    DatasetDict(other=Dataset.from_list([{"text": "a"}])).save_to_disk(str(tmp_path / "y"))
    with pytest.raises(ValueError, match="has splits other, none of test, validation"):
        amp.texts(str(tmp_path / "y"), "validation")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.jsonl", "calibration"),
        ("c4-train.00000-of-01024.json.gz", "recovery"),
        ("ptb_train.txt", "calibration"),
        ("wiki.test.raw", "validation"),
        ("TEST.jsonl", "validation"),
        ("ptb.valid.txt", "validation"),
    ],
)
def test_names_of_splits_as_the_field_writes_them(tmp_path: Path, name: str, split: str) -> None:
    put(tmp_path / "w" / name, lines([{"text": "right"}]) if "json" in name else "right")
    put(tmp_path / "w" / "constraints.txt", "wrong"), put(tmp_path / "w" / "latest.txt", "wrong")
    assert amp.texts(tmp_path / "w", split) == ["right"]
    other = "validation" if split != "validation" else "calibration"
    for _ in range(2):
        with pytest.raises(ValueError, match="has no file with the word"):
            amp.texts(tmp_path / "w", other)
        for wrong in (tmp_path / "w").glob("*t*.txt"):
            if wrong.name in ("constraints.txt", "latest.txt"):
                wrong.unlink()


@pytest.mark.parametrize("copy", ["c4", "c4.jsonl", "c4.json.gz", "c4.JSONL", "c4.ndjson.gz", "c4.parquet"])
def test_a_copy_is_called_exactly_so(tmp_path: Path, copy: str) -> None:
    for name in ("c4-notes.txt", "c4_old.jsonl", "c4.md", "c40.jsonl", ".c4.jsonl"):
        put(tmp_path / name, '{"text": "notes"}')
    with pytest.raises(ValueError, match=r"holds no c4 \(c4-notes.txt, c4.md, .* is not called exactly so\): put"):
        amp.text_source("c4", tmp_path)
    right = tmp_path / copy
    if copy == "c4.parquet":
        Dataset.from_list([{"text": "right"}]).to_parquet(str(right))
    else:
        put(right / "train.jsonl" if copy == "c4" else right, '{"text": "right"}')
    assert amp.text_source("c4", tmp_path) == str(right) and amp.texts(right) == ["right"]
    put(tmp_path / "c4.txt", "twice")
    with pytest.raises(ValueError, match=rf"holds c4 twice, as {copy}.* and as c4.txt|as c4.txt and as {copy}"):
        amp.text_source("c4", tmp_path)


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


def test_as_much_is_read_of_a_local_copy_as_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corpora.CORPORA, "c4", replace(corpora.CORPORA["c4"], most=10))
    many = lines([{"text": f"{i}"} for i in range(12)])
    counts = {name: len(amp.texts(put(tmp_path / name, many))) for name in ("c4.jsonl", "mine.jsonl")}
    assert counts == {"c4.jsonl": 10, "mine.jsonl": 12}


def test_perplexity_of_c4_reads_as_many_documents_as_the_literature(tmp_path: Path) -> None:
    put(tmp_path / "c4" / "validation.jsonl", lines([{"text": f"{i}"} for i in range(1200)]))
    assert len(amp.perplexity_text("c4", tmp_path)[0]) == 1100


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[1]", r"row 0: need a JSON object with 'text'"),
        ('[{"instruction": "a", "output": 3}]', "row 0: 'output' must be a string, not int"),
        ('[{"instruction": ["a"], "output": "b"}]', "row 0: 'instruction' must be a string, not list"),
        ('[{"instruction": null, "output": "b"}]', "row 0: need a JSON object"),
        ('[{"text": "a"},\n {"text" "b"}]', "a.json, line 2: this JSON is broken at column 10: Expecting ':'"),
        ('{"text": "a"}\n{"text": b}', "a.json, line 2: this JSON is broken at column 10: Expecting value"),
        ("[" * 100_000, "this JSON can't be read"),
        ('{"text": "\\ud800 and"}', "line 1: 'text' holds half a surrogate pair at character 0"),
        ('{"text": 3}', "line 1: 'text' must be a string, not int"),
        ("[]", "holds no text"),
        ('{"messages": "Hi."}', "line 1: 'messages' must be a list of turns, each with 'role' and 'content'"),
        ('{"conversations": [{"role": "user"}]}', "'conversations' must be a list of turns, each with 'from'"),
        ('{"messages": [{"role": "user", "content": null}]}', "'messages': 'content' must be a string, not null"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        amp.texts(str(put(tmp_path / "a.json", content)))


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(lines([{"text": f"{i} and more"} for i in range(999)]).encode())
    saved = tmp_path / "saved"
    Dataset.from_list(ALPACA).save_to_disk(str(saved))
    next(saved.glob("*.arrow")).write_bytes(b"torn")
    for name, content in {
        "a.json.gz": b"no gzip",
        "b.jsonl.gz": whole[:-9],
        "c.json.gz": whole[: len(whole) // 2],
        "d.txt.gz": whole[:40] + b"?" + whole[41:],
        "e.parquet": b"PAR1 torn PAR1",
        "saved": b"",
    }.items():
        if content:
            (tmp_path / name).write_bytes(content)
        kind = "not a whole gzip file" if name.endswith(".gz") else "damaged"
        with pytest.raises(ValueError, match=f"{name} is .*{kind}.* again.$") as caught:
            amp.texts(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.csv.gz"])
def test_a_table_is_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    tab = "\t" if "TSV" in name else ","
    path = put(tmp_path / name, f"text{tab}n\nOne.{tab}1\n")
    with pytest.raises(ValueError, match=r"is a table.*datasets.load_dataset\(.*to_json\('a.jsonl'\)\.$") as caught:
        amp.texts(path)
    import datasets  # as it says, word for word

    call = str(caught.value).split("'text': ")[1][:-1].replace(f"{name!r}", f"{str(path)!r}")
    call = call.replace("'a.jsonl'", f"{str(tmp_path / 'a.jsonl')!r}")
    eval(call, {"datasets": datasets})
    assert amp.texts(tmp_path / "a.jsonl") == ["One."]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.NDJSON.gz", "a.jsonl.GZ"])
def test_lines_end_as_json_lines_says_and_a_mark_is_no_text(tmp_path: Path, name: str, end: str) -> None:
    found = ["one\u2028two", "three\u2029\x85four", "five"]
    content = end.join(json.dumps({"text": text}, ensure_ascii=False) for text in found).encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    assert amp.texts(tmp_path / name) == found


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.md", "a.txt.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = (json.dumps([{"text": "Käse"}]) if "json" in name else "Käse").encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert amp.texts(tmp_path / name) == ["Käse"]


def test_what_is_in_memory_is_a_source_too(tmp_path: Path) -> None:
    for given in (ALPACA, tuple(ALPACA), iter(ALPACA), Dataset.from_list(ALPACA)):
        assert amp.texts(given) == PROMPTS
    assert pairs(Dataset.from_list(ALPACA)) == list(zip(PROMPTS, ["A tit.", "3"], strict=True))
    assert amp.texts(text for text in LINES) == ["One day.", "Two days."]
    assert pairs(["One day."]) == [("", "One day.")]
    assert amp.texts(["One day.", {"sentence": "Two days."}]) == ["One day.", "Two days."]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["a", None], "Item 1 of the source must be a string or a row of columns, not null .None"),
        (["a", "\ud800"], "item 1 of the source holds half a surrogate pair"),
        ([{"body": "a"}], "item 0 of the source: need a JSON object with 'text'"),
        (DatasetDict(train=Dataset.from_list(ALPACA)), r"A DatasetDict is not a list.*source\['train'\]"),
        ({"text": ["a"]}, r"A dict is not a list.*source\['text'\]"),
        (b"a text", "a list of strings or of rows with .*; not bytes"),
        (3, "a list of strings or of rows with .*; not int"),
        (None, "; not null .None"),
    ],
)
def test_what_in_memory_is_no_source(given: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        list(of_memory(given))


def test_a_text_given_as_a_source(tmp_path: Path) -> None:
    for text in ("word " * 1000, "A line.\nAnother."):
        with pytest.raises(ValueError, match=r"^'.{1,40}'… \([\d,]+ characters\) is a text.*give it as \[text\]"):
            amp.texts(text)
    with pytest.raises(ValueError, match="No text source 'A short text.*given as .text"):
        amp.texts("A short text.")
    with pytest.raises(ValueError, match="split='train' must be one of calibration, recovery, validation"):
        amp.texts("tinyworld", "train")


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
