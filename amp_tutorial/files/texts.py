"""Texts in the formats they come in: corpora of the field by name, files, and saved data sets, as rows with a text.

A corpus is fetched by `datasets.load_dataset`, or read from a local copy: a folder that holds `alpaca`, `wikitext2`,
`ptb` or `c4`, each a data set saved by `save_to_disk`, or a folder of its files (with the split in their names), or one
file.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .paths import DATA

SPLITS = ("calibration", "recovery", "validation")
Row = dict[str, str]  # "text", and where they are known "prompt" and "response", of Alpaca also the columns it came in
KEPT = ("text", "prompt", "response", "instruction", "input")


@dataclass(frozen=True)
class Corpus:
    """Where a corpus is on the hub, which of its splits stands for which of ours, and how perplexity joins it."""

    hub: str
    config: str | None = None
    revision: str | None = None
    splits: dict[str, str] = field(default_factory=lambda: dict(zip(SPLITS, ("train", "train", "test"), strict=True)))
    files: dict[str, str] = field(default_factory=dict)  # of their splits, where not all of a split is fetched
    join: str | None = None
    most: int | None = None  # documents that are read, the first ones

    def fetch(self, split: str) -> str:
        """The call that fetches it, as one would type it."""
        said = [repr(self.hub), *([repr(self.config)] if self.config else [])]
        said += [f"revision={self.revision!r}"] if self.revision else []
        said += [f"data_files={self.files[split]!r}"] if self.files else []
        return f"datasets.load_dataset({', '.join(said)})"


CORPORA = {
    "alpaca": Corpus("yahma/alpaca-cleaned", splits=dict.fromkeys(SPLITS, "train")),
    # Joined by blank lines, as GPTQ and LLM-Pruner measure it; PTB by spaces.
    "wikitext2": Corpus("Salesforce/wikitext", "wikitext-2-raw-v1", join="\n\n"),
    # The hub's own is a script, which datasets 4 and later refuse; this branch is the hub's conversion [not verified].
    "ptb": Corpus("ptb-text-only/ptb_text_only", revision="refs/convert/parquet", join=" "),
    # One shard of each split, and of that the first documents: all of C4 is hundreds of gigabytes. GPTQ measures
    # perplexity on the first 1,100 validation documents.
    "c4": Corpus(
        "allenai/c4",
        splits=dict(calibration="train", recovery="train", validation="validation"),
        files=dict(
            train="en/c4-train.00000-of-01024.json.gz", validation="en/c4-validation.00000-of-00008.json.gz"
        ),
        join=" ",
        most=10_000,
    ),
}  # fmt: skip
MEASURED = {"c4": 1100}  # documents that perplexity reads


def text_source(name: str, local_copies: str | Path = "") -> str:
    """What to give as a source: the path of the local copy if a folder of copies is given, else the name itself.

    Raises:
        ValueError: the folder of copies does not hold this corpus.
    """
    if name not in CORPORA or not str(local_copies):
        return name
    found = sorted(Path(local_copies).glob(f"{name}*"))
    if not found:
        raise ValueError(
            f"{local_copies} holds no {name}: put a data set saved by save_to_disk, or its files, there as {name}. "
            f"Where there is a network, {CORPORA[name].fetch(CORPORA[name].splits['calibration'])} fetches it."
        )
    return str(found[0])


def perplexity_text(name: str, local_copies: str | Path = "") -> tuple[str | list[str], str | None]:
    """What to measure perplexity on, and by what its documents are joined (None: they are measured apart)."""
    corpus, source = CORPORA.get(name), text_source(name, local_copies)
    if corpus is None:
        return source, None
    documents = (row["text"] for row in rows(source, "validation"))
    return list(islice(documents, MEASURED.get(name))), corpus.join


def rows(source: str | Path, split: str) -> list[Row]:
    """All rows of a source.

    Args:
        source: "tinyworld", a name of `CORPORA`, a file (.txt, .json, .jsonl, .parquet, each of the last three with .gz
            too but parquet), or a folder: a saved data set, or files with the split in their names.

    Raises:
        ValueError: there is no such source, it cannot be fetched, or it is not what its name says.
    """
    if source == "tinyworld":
        return _of_file(DATA / "world" / f"{split}.jsonl")
    if str(source) in CORPORA:
        return _of_hub(str(source), split)
    path = Path(source)
    if path.is_dir():
        return _of_folder(path, split)
    if not path.is_file():
        raise ValueError(
            f"No text source {str(source)!r}: it is neither 'tinyworld' nor a file or folder, nor one of "
            f"{', '.join(CORPORA)}."
        )
    return _of_file(path)


def fingerprint(source: str | Path, split: str) -> str:
    """SHA-256 of all texts of a source."""
    digest = hashlib.sha256()
    for row in rows(source, split):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _of_hub(name: str, split: str) -> list[Row]:
    corpus = CORPORA[name]
    theirs = corpus.splits[split]
    from datasets import load_dataset

    files = {theirs: corpus.files[theirs]} if corpus.files else None
    try:
        found = load_dataset(corpus.hub, corpus.config, revision=corpus.revision, data_files=files, split=theirs)
    except Exception as error:  # whatever the library raises: offline, gone, a script
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{name} is neither cached nor to be had ({why}). Where there is a network, {corpus.fetch(theirs)} fetches "
            f"it; or put a saved data set or its files into FOLDER/{name}, and say local_copies=FOLDER."
        ) from error
    return [_row(row, f"{corpus.hub}, row {i}") for i, row in enumerate(islice(found, corpus.most))]


def _of_folder(folder: Path, split: str) -> list[Row]:
    """A data set saved by `save_to_disk`, or files whose names hold the split."""
    wanted = ("test", "validation") if split == "validation" else ("train",)
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        from datasets import DatasetDict, load_from_disk

        found = load_from_disk(str(folder))
        if isinstance(found, DatasetDict):
            part = next((name for name in wanted if name in found), None)
            if part is None:
                raise ValueError(f"{folder} has splits {', '.join(found)}, none of {', '.join(wanted)} for {split}.")
            found = found[part]
        return [_row(row, f"{folder}, row {i}") for i, row in enumerate(found)]
    every = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    chosen = next((of for word in wanted if (of := [path for path in every if word in path.name])), [])
    if not chosen and len(every) == 1:  # one file is all there is, as of Alpaca
        chosen = every
    if not chosen:
        raise ValueError(f"{folder} has no file with {' or '.join(wanted)} in its name, and is no saved data set.")
    return [row for path in chosen for row in _of_file(path)]


def _of_file(path: Path) -> list[Row]:
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        from datasets import load_dataset

        found = load_dataset("parquet", data_files=str(path), split="train", streaming=True)  # so nothing is cached
        return [_row(row, f"{path}, row {i}") for i, row in enumerate(found)]
    try:
        content = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        byte = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(f"{path} is not UTF-8{byte}; convert it first.") from error
    if suffix in (".json", ".json.gz") and content.lstrip().startswith("["):
        return _of_list(path, content)
    if suffix in (".json", ".json.gz", ".jsonl", ".jsonl.gz"):
        return list(_of_lines(path, content.splitlines()))
    return [{"text": content}]


def _of_list(path: Path, content: str) -> list[Row]:
    try:
        found = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    return [_row(row, f"{path}, row {i}") for i, row in enumerate(found)]


def _of_lines(path: Path, lines: Iterable[str]) -> Iterable[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            yield _row(row, f"{path}, line {number}")


def _row(row: Any, where: str) -> Row:
    """The columns that are known: text; sentence (PTB); prompt, response; instruction, input, output (Alpaca).

    An Alpaca row's text is its prompt alone: instruction and input, a line each. That is what AMP calibrates on.
    """
    if isinstance(row, dict):
        if "instruction" in row and "output" in row:
            prompt = "\n".join(filter(None, (row["instruction"], row.get("input"))))
            row = row | {"text": prompt, "prompt": prompt, "response": row["output"]}
        elif "text" not in row and "sentence" in row:
            row = {"text": row["sentence"]}
        elif "text" not in row and "prompt" in row and "response" in row:
            row = row | {"text": f"{row['prompt']} {row['response']}"}
        found = {key: row[key] for key in KEPT if row.get(key) is not None}
        if "text" in found and all(isinstance(value, str) for value in found.values()):
            return found
    raise ValueError(
        f"{where}: need a JSON object with 'text', or 'prompt' and 'response', or 'sentence', or 'instruction' and "
        "'output'."
    )
