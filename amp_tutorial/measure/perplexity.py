"""Perplexity: how well a model still predicts text, with the protocol by which that was measured."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.anatomy import exact
from ..core.data import windows
from ..core.sums import positions_of
from ..files.arguments import at_least_one
from ..files.batches import known_ids, padded, words_of
from ..files.checkpoints import wrapping
from ..files.texts import Source, texts


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per token, how it was taken, and of what: `amp.interval` says from it how sure it is."""

    value: float
    tokens: int
    protocol: str
    # Summed loss in nats, and counted tokens, of every window: the shortest first, those of one length as in the text.
    windows: tuple[tuple[float, ...], tuple[int, ...]] = field(repr=False)


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source = "tinyworld",
    window: int = 256,
    stride: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    join: str | None = None,
) -> Perplexity:
    """Perplexity over windows; every window opens with BOS, which is context and never counted.

    Documents are not joined: each is cut into windows of its own, which start every `stride` tokens; by default they
    are disjoint. Where they overlap, a token is counted once, in the first window that holds it. A perplexity without
    its window is no number, so the protocol comes with it.

    Args:
        source: see `files.texts.texts`; "tinyworld" means its validation split.
        limit: only the first windows.
        join: put all documents into one text with this between them, blank ones too, before windows are cut. WikiText-2
            is measured so in the literature, with "\\n\\n"; `perplexity_text` gives a corpus with what joins it.

    Raises:
        ValueError: no text, a single text shorter than one window, a window longer than the model's learned positions,
            tokens that the model does not have, or no model that predicts a next token.
    """
    if said := wrapping(model, measured=True):
        raise ValueError(said)
    if (most := positions_of(model)) is not None and window > most:
        raise ValueError(f"window={window} is longer than this model's {most:,} learned positions; take at most that.")
    at_least_one(batch_size=batch_size, limit=limit)
    documents = texts(source, "validation", blank=join is not None)
    rows = windows(tokenizer, documents if join is None else [join.join(documents)], window, stride)[:limit]
    known_ids((row.ids for row in rows), words_of(model))
    order = sorted(rows, key=lambda row: len(row.ids))
    device = next(model.parameters()).device
    sums: list[float] = []
    tokens: list[int] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = padded(tokenizer, [row.ids for row in chosen])
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        # Count the last `fresh` tokens of each row: the running count of its tokens passes what earlier windows held.
        known = torch.tensor([len(row.ids) - row.fresh for row in chosen], device=device)
        counted = (mask.cumsum(1) > known[:, None]) & (mask == 1)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        labels = ids[:, 1:].masked_fill(~counted[:, 1:], -100)
        # Row by row: a sum over many words that do not lie side by side in memory is slow, and far less exact.
        rows_loss = [
            F.cross_entropy(row.float(), label, reduction="none") for row, label in zip(logits, labels, strict=True)
        ]
        sums += exact(torch.stack(rows_loss)).sum(1).tolist()
        tokens += counted[:, 1:].sum(1).tolist()
    bos = "opened by BOS" if tokenizer.bos_token_id is not None else "first token uncounted, no BOS"
    step = "stride = window" if stride is None else f"stride {stride}"
    apart = "documents apart" if join is None else f"documents joined by {join!r}"
    protocol = f"{len(rows)} windows of at most {window} tokens, {step}, {apart}, {bos}"
    return Perplexity(_exp(sum(sums) / sum(tokens)), sum(tokens), protocol, (tuple(sums), tuple(tokens)))


def _exp(loss: float) -> float:
    """e to the mean loss; infinite above 709 nats, which no float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
