"""Texts in the formats they come in: corpora of the field by name, files, and saved data sets, as rows with a text.

A corpus is fetched by `datasets.load_dataset`, or read from a local copy: a folder that holds `alpaca`, `wikitext2`,
`ptb` or `c4`, each a data set saved by `save_to_disk`, or a folder of its files (with the split as a word of their
names), or one file (`c4.jsonl`, `c4.json.gz`, `c4.parquet`, …).
"""

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from . import DATA
from .atomic import expanded, may_read, reason
from .formats import ENDINGS, Row, of_file, of_library, of_memory, row

SPLITS = ("calibration", "recovery", "validation")
WORDS = {  # of a file's name, the first that is found; all files with it are read
    **dict.fromkeys(("calibration", "recovery"), ("train", "training")),
    "validation": ("test", "validation", "valid", "val", "dev"),
}
Source = str | Path | Iterable[str | Mapping[str, Any]]


@dataclass(frozen=True)
class Corpus:
    """Where a corpus is on the hub, which of its splits stands for which of ours, and by what its rows are joined."""

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
    # Articles in English, each apart; of the first file alone the first ones [not verified here].
    "wikipedia": Corpus(
        "wikimedia/wikipedia",
        "20231101.en",
        splits=dict.fromkeys(SPLITS, "train"),
        files=dict(train="20231101.en/train-00000-of-00041.parquet"),
        most=10_000,
    ),
}  # fmt: skip
MEASURED = {"c4": 1100}  # documents that perplexity reads


def copy_of(name: str, local_copies: str | Path) -> Path | None:
    """The local copy of a corpus: the entry of this folder that is called so, but for the ending of a file.

    Raises:
        ValueError: there are two.
    """
    if not os.path.isdir(local_copies):  # Path's raises where the name is too long
        return None
    found = [path for path in sorted(Path(local_copies).iterdir()) if _named(path) == name]
    if len(found) > 1:
        raise ValueError(
            f"{local_copies} holds {name} twice, as {' and as '.join(path.name for path in found)}; keep one there."
        )
    return found[0] if found else None


def _named(path: Path) -> str:
    """What a file or folder is a copy of, by its name: without the ending of a text."""
    if path.is_dir():
        return path.name
    known = next((e for e in sorted(ENDINGS, key=len, reverse=True) if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(known)]


def text_source(name: str, local_copies: str | Path = "") -> str:
    """What to give as a source: the path of the local copy if a folder of copies is given, else the name itself.

    Raises:
        ValueError: the folder of copies does not hold this corpus, or holds it twice.
    """
    if name not in CORPORA or not str(local_copies):
        return name
    local_copies = expanded(local_copies)
    found = copy_of(name, local_copies)
    if found is None:
        like = sorted(fnmatch.filter(os.listdir(local_copies), f"{name}*")) if os.path.isdir(local_copies) else []
        other = f" ({', '.join(like)} is not called exactly so)" if like else ""
        raise ValueError(
            f"{local_copies} holds no {name}{other}: put a data set saved by save_to_disk, or its files, there as "
            f"{name}, or one file as {name} with {', '.join(ENDINGS)}. Where there is a network, "
            f"{CORPORA[name].fetch(CORPORA[name].splits['calibration'])} fetches it."
        )
    return str(found)


def corpus_of(source: Source) -> Corpus | None:
    """The corpus that a source is: by its name, or a file or folder called as a local copy is."""
    if not isinstance(source, str | Path):
        return None
    return CORPORA.get(str(source)) or (CORPORA.get(_named(Path(source))) if os.path.exists(source) else None)


def perplexity_text(name: str, local_copies: str | Path = "") -> tuple[str | list[str], str | None]:
    """What to measure perplexity on, and by what its documents are joined (None: they are measured apart)."""
    corpus, source = CORPORA.get(name), text_source(name, local_copies)
    if corpus is None:
        return source, None
    documents = (found["text"] for found in rows(source, "validation"))
    return list(islice(documents, MEASURED.get(name))), corpus.join


def rows(source: Source, split: str) -> list[Row]:
    """All rows of a source.

    Args:
        source: "tinyworld", a name of `CORPORA`, a file (.txt, .json, .jsonl or .ndjson, each with .gz too, .parquet;
            any other is one text), a folder (a saved data set, or files with the split as a word of their names), or in
            memory a list, a generator or a `datasets.Dataset` of strings or of rows with known columns (see
            `formats.row`).
        split: "calibration", "recovery" or "validation". What is one file or in memory has no splits.

    Raises:
        ValueError: there is no such source, it cannot be fetched, or it is not what its name says.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}.")
    if not isinstance(source, str | Path):
        return list(of_memory(source))
    if source == "tinyworld":
        return list(of_file(DATA / "world" / f"{split}.jsonl"))
    if str(source) in CORPORA:
        return _of_hub(str(source), split)
    if not str(source).strip():
        raise ValueError("The text source is empty; give a file or folder, 'tinyworld', or the name of a corpus.")
    a_text = len(str(source)) > 255 or "\n" in str(source)
    path = Path(os.path.expanduser(source)) if a_text else expanded(source)
    may_read(path)
    if not os.path.exists(path):
        if a_text:
            said = f"{str(source)[:30]!r}…"
            raise ValueError(f"{said} ({len(str(source)):,} characters) is a text, not a source; give it as [text].")
        raise ValueError(
            f"No text source {str(source)!r}: it is neither 'tinyworld' nor a file or folder, nor one of "
            f"{', '.join(CORPORA)}. A text itself is given as [text]."
        )
    corpus = corpus_of(path)
    most = corpus.most if corpus else None  # of a local copy as many as from the hub
    if _saved(path):
        return _of_saved(path, split)[:most]
    return list(islice((found for file in files_read(path, split) for found in of_file(file)), most))


def texts(source: Source, split: str = "calibration", blank: bool = False) -> list[str]:
    """The documents of a source.

    Args:
        source: "tinyworld", "alpaca", "wikitext2", "ptb", "c4", "wikipedia" (then `split` is "calibration",
            "recovery" or "validation"), a `.jsonl` file with a `text` field (or `prompt` and `response`), another file
            or folder as `rows` reads it (any other file is one document in UTF-8), or a list, a generator or a
            `datasets.Dataset` of strings or of rows with such columns.
        blank: also documents without a letter, which matter where all are joined.

    Raises:
        ValueError: no such file, not UTF-8, not JSONL with those fields, or no text in it.
    """
    return written(source, rows(source, split), blank)


def written(source: Source, found: list[Row], blank: bool) -> list[str]:
    """The texts of rows of a source, without the blank ones if so asked; at least one must say something."""
    if not any(row["text"].strip() for row in found):
        raise ValueError(f"{said(source)} holds no text; give a file or list with at least one document.")
    return [row["text"] for row in found if blank or row["text"].strip()]


def pairs(source: Source, split: str = "recovery") -> list[tuple[str, str]]:
    """(prompt, response) of each row of a source; a row of plain text has an empty prompt."""
    found = [(row.get("prompt", ""), row.get("response", row["text"])) for row in rows(source, split)]
    found = [(prompt, response) for prompt, response in found if response.strip()]
    if not found:
        raise ValueError(f"{said(source)} holds no text; give a file or list with at least one row.")
    return found


def said(source: Source) -> str:
    """What to call a source in a sentence."""
    return str(source) if isinstance(source, str | Path) else f"The given {type(source).__name__}"


def stretches(documents: Iterable[str], join: str, letters: int) -> list[str]:
    """Documents that are one after another, joined until they have so many letters; then the next stretch begins."""
    found: list[list[str]] = [[]]
    held = 0
    for text in documents:
        if held >= letters:
            found.append([])
            held = 0
        found[-1].append(text)
        held += len(text) + len(join)
    return [join.join(stretch) for stretch in found]


def fingerprint(source: Source, split: str) -> str:
    """SHA-256 of all texts of a source."""
    digest = hashlib.sha256()
    for found in rows(source, split):
        digest.update(json.dumps(found, sort_keys=True).encode())
    return digest.hexdigest()


def files_read(path: Path, split: str) -> list[Path]:
    """The files that `rows` reads of a file or folder, and no other: what a hash of the source has to cover.

    Raises:
        ValueError: a folder without a file for this split.
    """
    if not path.is_dir():
        return [path]
    every = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    words, known = WORDS[split], {word for some in WORDS.values() for word in some}
    if _saved(path) or (len(every) == 1 and not known & _words(every[0].name)):  # all there is, as of Alpaca
        return every
    chosen = next((of for word in words if (of := [p for p in every if word in _words(p.name)])), [])
    if not chosen:
        raise ValueError(
            f"{path} has no file with the word {' or '.join(words)} in its name, and is not a saved data set."
        )
    return chosen


def files_of_all_splits(path: Path) -> list[Path]:
    """The files that are read of a file or folder for one split or another; of a folder that says none, every file."""
    found = set()
    for split in SPLITS:
        with suppress(ValueError):
            found.update(files_read(path, split))
    return sorted(found or (p for p in path.rglob("*") if p.is_file()))


def _words(name: str) -> set[str]:
    """Letters in a row: of "c4-train.00000-of-01024.json.gz" c, train, of, json, gz."""
    return set(re.findall(r"[a-z]+", name.lower()))


def _saved(path: Path) -> bool:
    """Whether this is a data set as `save_to_disk` writes it."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _of_saved(folder: Path, split: str) -> list[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # of pyarrow, of datasets, of the system
        raise ValueError(f"{folder} is a damaged data set ({reason(error)}); save it again.") from error
    if isinstance(found, DatasetDict):
        part = next((name for name in WORDS[split] if name in found), None)
        if part is None:
            raise ValueError(f"{folder} has splits {', '.join(found)}, none of {', '.join(WORDS[split])} for {split}.")
        found = found[part]
    return list(of_library(folder, lambda: found))


def _of_hub(name: str, split: str) -> list[Row]:
    corpus = CORPORA[name]
    theirs = corpus.splits[split]
    from datasets import load_dataset

    files = {theirs: corpus.files[theirs]} if corpus.files else None
    try:
        found = load_dataset(corpus.hub, corpus.config, revision=corpus.revision, data_files=files, split=theirs)
    except Exception as error:  # whatever the library raises: offline, gone, a script
        raise ValueError(
            f"{name} is neither cached nor to be had ({reason(error)}). Where there is a network, "
            f"{corpus.fetch(theirs)} fetches it; or put a saved data set or its files into FOLDER/{name}, and say "
            "local_copies=FOLDER."
        ) from error
    return [row(one, f"{corpus.hub}, row {i}") for i, one in enumerate(islice(found, corpus.most))]
