"""Texts in the formats they come in, from local copies, and what is said when one is missing.

Windows and batches of them: every token once, no document sees another, the same seed gives the same text.
"""

import gzip
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers import TEXT, byte_tokenizer, logits, tiny
from hypothesis import assume, given
from hypothesis import strategies as st

import amp_tutorial as amp
from amp_tutorial.core.data import windows
from amp_tutorial.files import texts as corpora
from amp_tutorial.files.batches import tokens_in
from amp_tutorial.files.formats import of_memory
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
    for source in (ALPACA, tuple(ALPACA), iter(ALPACA), Dataset.from_list(ALPACA)):
        assert amp.texts(source) == PROMPTS
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
