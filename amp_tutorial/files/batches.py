"""Batches of token ids: made of rows, counted, and looked through where they come in."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

WANTED = (
    "give a list of mappings with input_ids and attention_mask, both (batch, length), as amp.calibration and "
    "tokenizers with return_tensors='pt' do"
)


def padded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows of token ids as one right-padded batch with its attention mask."""
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def tokens_in(batches: Iterable[Mapping[str, Tensor]]) -> int:
    """Tokens of batches: BOS is counted, padding is not."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def words_of(model: Any) -> int:
    """Rows of a model's embedding, also where an adapter stands around it."""
    return int(model.get_input_embeddings().weight.shape[0])


def known_ids(rows: Iterable[Sequence[int]], words: int) -> None:
    """Refuse token ids that a model's embedding has no row for, by a ValueError: the tokenizer is another model's."""
    if (worst := max((max(row) for row in rows if len(row)), default=0)) >= words:
        raise ValueError(f"{_no_row('The tokenizer makes', worst, words)}.")


def _no_row(who: str, worst: int, words: int) -> str:
    known = f"the model knows 0 to {words - 1:,}"
    return f"{who} the token id {worst:,}, and {known}: take the tokenizer that belongs to the model"


def _layout(tensor: Tensor) -> str:
    return "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")


def checked(batch: Any, words: int, positions: int | None) -> tuple[Tensor, Tensor]:
    """The ids and the mask of a batch, which a model can read as they were meant.

    Args:
        words: rows of the model's embedding.
        positions: the longest row that the model has positions for; None if there is no such bound.

    Raises:
        ValueError: no mapping with both; no whole numbers of the same shape (batch, length); a mask of other values
            than 0 and 1 (one that numbers packed texts would shift positions, an additive one invert itself); an id
            that the model does not have; positions that restart within a row; a row longer than its positions.
    """
    if not isinstance(batch, Mapping):
        what = f"the word {batch!r}, as if one batch were a list of them" if isinstance(batch, str) else _kind(batch)
        raise ValueError(f"A batch is {what}: {WANTED}.")
    for name in ("input_ids", "attention_mask"):
        if batch.get(name) is None:
            raise ValueError(f"A batch has no {name}: {WANTED}.")
        if isinstance(batch[name], Tensor) and (batch[name].is_meta or batch[name].layout != torch.strided):
            raise ValueError(f"The {name} of a batch are a {_layout(batch[name])} tensor: {WANTED}.")
        if not isinstance(batch[name], Tensor):
            raise ValueError(f"The {name} of a batch are {_kind(batch[name])}, not a torch.Tensor: {WANTED}.")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if ids.dim() != 2 or ids.shape != mask.shape:
        raise ValueError(f"A batch has input_ids {tuple(ids.shape)} and attention_mask {tuple(mask.shape)}: {WANTED}.")
    if not ids.numel():
        raise ValueError(f"A batch of the shape {tuple(ids.shape)} holds no tokens; leave it out.")
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"The input_ids of a batch are {ids.dtype}: token ids are whole numbers, torch.long.")
    if not bool(((mask == 0) | (mask == 1)).all()):
        found = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(
            f"The attention_mask of a batch holds {found:g}; it must be 1 for a token and 0 for padding. Packed texts "
            "go into rows of their own, and an additive mask is (mask == 0)."
        )
    if not 0 <= int(ids.min()) <= int(ids.max()) < words:
        worst = int(ids.max()) if int(ids.max()) >= words else int(ids.min())
        labels = "(ids of labels, such as -100, are not to be read)"
        raise ValueError(f"{_no_row('A batch holds', worst, words)} {labels}.")
    place = batch.get("position_ids")
    if isinstance(place, Tensor) and not bool(((place == (mask.cumsum(-1) - 1)) | (mask == 0)).all()):
        raise ValueError(
            "A batch has position_ids that do not count its tokens from 0, as packing makes them; they are not read: "
            "give packed texts as rows of their own."
        )
    if positions is not None and ids.shape[1] > positions:
        raise ValueError(
            f"A row of {ids.shape[1]:,} tokens is longer than the model's {positions:,} learned positions; make "
            "windows of at most so many."
        )
    return ids, mask


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
