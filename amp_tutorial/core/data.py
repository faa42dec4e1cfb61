"""Text in, batches out: the embedded tiny world, a corpus of the field, or a reader's own file."""

import random
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..files.batches import padded, tokens_in
from ..files.texts import Source, corpus_of, rows, said, stretches, written

LETTERS = 16  # that a token holds at most, in the mean over a stretch of text


class Window(NamedTuple):
    """A stretch of one document, and how many of its last tokens no earlier window held."""

    ids: list[int]
    fresh: int


def windows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    length: int,
    stride: int | None = None,
    stub: bool = False,
) -> list[Window]:
    """Each document in windows of at most `length` tokens, each opened by BOS if the tokenizer has one.

    Windows start every `stride` tokens (by default they are disjoint). Of several documents each may be short; they
    are never joined, so no text sees another. A lone document shorter than a window is refused: a stub says nothing.

    Args:
        stub: let a lone document be shorter than a window, because it is one of many.

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
        if len(documents) == 1 and len(ids) < room and not stub:
            raise ValueError(f"The text has {len(ids)} tokens, less than one window of {length}; give more text.")
        end = 0
        for start in range(0, len(ids), step):
            part = ids[start : start + room]
            found.append(Window(bos + part, fresh=start + len(part) - end))
            end = start + len(part)
            if end >= len(ids):
                break
    return found


def calibration(
    tokenizer: PreTrainedTokenizerBase,
    source: Source = "tinyworld",
    samples: int = 64,
    seed: int = 0,
    length: int = 128,
    batch_size: int = 16,
    join: str | None = "auto",
) -> list[dict[str, Tensor]]:
    """Batches of calibration text: `samples` windows drawn by `seed`, padded on the right.

    `tokens_in` counts what came out. Where that is less than half of `samples` × `length`, a warning says so, but for
    documents that are one row each by design: those of "tinyworld", prompts, and any with join=None.

    Args:
        source: see `files.texts.texts`.
        samples: windows of at most `length` tokens; all of them if the source has fewer.
        join: what is put between documents that are one after another in the source, before windows are cut, as in
            `perplexity`. None keeps documents apart, so that no window holds two, and a short one makes a short row.
            "auto": as perplexity on the corpus joins them (WikiText-2, whose rows are lines, "\\n\\n"; PTB and C4 " "),
            by name or as a local copy called so; all else apart.

    Raises:
        ValueError: no text, text shorter than a window, a file that is not UTF-8, or no positive size.
    """
    if min(samples, length, batch_size) < 1:
        raise ValueError(f"samples={samples}, length={length} and batch_size={batch_size} must all be at least 1.")
    found, corpus, by_design = rows(source, "calibration"), corpus_of(source), join is None
    if join == "auto":
        join = corpus.join if corpus else None
        by_design = source == "tinyworld" or all("prompt" in row for row in found)
    rng = random.Random(seed)
    cut = _drawn(tokenizer, written(source, found, blank=join is not None), join, samples, length, rng)
    ids = [window.ids for window in rng.sample(cut, min(samples, len(cut)))]
    batches = [padded(tokenizer, ids[i : i + batch_size]) for i in range(0, len(ids), batch_size)]
    if 2 * tokens_in(batches) < samples * length and not by_design:
        apart = "its documents are short or few; say join='\\n\\n' to join them, or join=None if each is to be a row"
        warnings.warn(
            f"{said(source)} gave {tokens_in(batches):,} of the {samples} × {length} = {samples * length:,} "
            f"calibration tokens asked for: {apart if join is None else 'it holds no more'}.",
            stacklevel=3,
        )
    return batches


def _drawn(
    tokenizer: PreTrainedTokenizerBase, given: list[str], join: str | None, samples: int, length: int, by: random.Random
) -> list[Window]:
    """Windows to choose from: all of as many documents or, joined, a full one of each of as many stretches of text."""
    if join is None:
        drawn = by.sample(given, samples) if len(given) > samples else given
        return windows(tokenizer, drawn, length, stub=len(given) > 1)
    parts = stretches(given, join, LETTERS * length)
    if len(parts) <= samples:
        return _full(windows(tokenizer, [join.join(given)], length), length, samples)
    cut = (windows(tokenizer, [part], length, stub=True) for part in by.sample(parts, samples))
    return [by.choice(_full(found, length, 1)) for found in cut if found]


def _full(found: list[Window], length: int, enough: int) -> list[Window]:
    """Without the last one, which is shorter, if enough are left."""
    full = [window for window in found if len(window.ids) == length]
    return full if len(full) >= enough else found
