"""Text in, batches out: the embedded tiny world, a corpus of the field, or a reader's own file."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..files.texts import rows


def texts(source: str | Path | Sequence[str], split: str = "calibration", blank: bool = False) -> list[str]:
    """The documents of a source.

    Args:
        source: "tinyworld", "alpaca", "wikitext2", "ptb", "c4" (then `split` is "calibration", "recovery" or
            "validation"), a `.jsonl` file with a `text` field (or `prompt` and `response`), another file or folder as
            `corpora.rows` reads it (any other file is one document in UTF-8), or a list of strings.
        blank: also documents without a letter, which matter where all are joined.

    Raises:
        ValueError: no such file, not UTF-8, not JSONL with those fields, or no text in it.
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        found = list(source)
    else:
        found = [row["text"] for row in rows(source, split)]
    if not any(text.strip() for text in found):
        raise ValueError(f"{source} holds no text; give a file or list with at least one document.")
    return found if blank else [text for text in found if text.strip()]


def pairs(source: str | Path, split: str = "recovery") -> list[tuple[str, str]]:
    """(prompt, response) of each row of a source; a row of plain text has an empty prompt."""
    found = [(row.get("prompt", ""), row.get("response", row["text"])) for row in rows(source, split)]
    found = [(prompt, response) for prompt, response in found if response.strip()]
    if not found:
        raise ValueError(f"{source} holds no text; give a file with at least one row.")
    return found


class Window(NamedTuple):
    """A stretch of one document, and how many of its last tokens no earlier window held."""

    ids: list[int]
    fresh: int


def windows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int, stride: int | None = None
) -> list[Window]:
    """Each document in windows of at most `length` tokens, each opened by BOS if the tokenizer has one.

    Windows start every `stride` tokens (by default they are disjoint). Of several documents each may be short; they
    are never joined, so no text sees another. A lone document shorter than a window is refused: a perplexity or a
    score over a stub says nothing.

    Raises:
        ValueError: one document, shorter than a window; a length or stride without room.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = length - len(bos)
    step = room if stride is None else stride
    if room < 1 or not 1 <= step <= room:
        raise ValueError(f"Windows of {length} tokens need length >= 2 and a stride of 1 to {room}, not {stride}.")
    found = []
    for text in documents:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(documents) == 1 and len(ids) < room:
            raise ValueError(f"The text has {len(ids)} tokens, less than one window of {length}; give more text.")
        end = 0
        for start in range(0, len(ids), step):
            part = ids[start : start + room]
            found.append(Window(bos + part, fresh=start + len(part) - end))
            end = start + len(part)
            if end >= len(ids):
                break
    return found


def padded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows of token ids as one right-padded batch with its attention mask."""
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def calibration(
    tokenizer: PreTrainedTokenizerBase,
    source: str | Path | Sequence[str] = "tinyworld",
    samples: int = 64,
    seed: int = 0,
    length: int = 128,
    batch_size: int = 16,
) -> list[dict[str, Tensor]]:
    """Batches of calibration text: `samples` windows drawn by `seed`, padded on the right.

    Args:
        source: see `texts`.
        samples: windows of at most `length` tokens; all of them if the source has fewer.

    Raises:
        ValueError: no text, text shorter than a window, a file that is not UTF-8, or no positive size.
    """
    if min(samples, length, batch_size) < 1:
        raise ValueError(f"samples={samples}, length={length} and batch_size={batch_size} must all be at least 1.")
    documents = texts(source)
    rng = random.Random(seed)
    if len(documents) > samples:
        documents = rng.sample(documents, samples)
    rows = [window.ids for window in windows(tokenizer, documents, length)]
    rows = rng.sample(rows, min(samples, len(rows)))
    return [padded(tokenizer, rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]


def sha256(*paths: Path) -> str:
    """One SHA-256 over the bytes of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
