"""Perplexity: how well a model still predicts text, with the protocol by which that was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import padded, texts, windows


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per token, with a 95 % bootstrap interval over windows, and how it was taken."""

    value: float
    low: float
    high: float
    tokens: int
    protocol: str


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str | Path | Sequence[str] = "tinyworld",
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
        source: see `data.texts`; "tinyworld" means its validation split.
        limit: only the first windows.
        join: put all documents into one text with this between them, blank ones too, before windows are cut. WikiText-2
            is measured so in the literature, with "\\n\\n"; `perplexity_text` gives a corpus with what joins it.

    Raises:
        ValueError: no text, or a single text shorter than one window.
    """
    documents = texts(source, "validation", blank=join is not None)
    rows = windows(tokenizer, documents if join is None else [join.join(documents)], window, stride)[:limit]
    order = sorted(rows, key=lambda row: len(row.ids))
    device = next(model.parameters()).device
    sums: list[tuple[float, int]] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = padded(tokenizer, [row.ids for row in chosen])
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        # Count the last `fresh` tokens of each row: the running count of its tokens passes what earlier windows held.
        known = torch.tensor([len(row.ids) - row.fresh for row in chosen], device=device)
        counted = (mask.cumsum(1) > known[:, None]) & (mask == 1)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        labels = ids[:, 1:].masked_fill(~counted[:, 1:], -100)
        loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        counts = counted[:, 1:].sum(1).tolist()
        sums += list(zip(loss.double().sum(1).tolist(), counts, strict=True))
    low, high = _bootstrap(sums)
    loss_sum, tokens = (sum(column) for column in zip(*sums, strict=True))
    bos = "opened by BOS" if tokenizer.bos_token_id is not None else "first token uncounted, no BOS"
    step = "stride = window" if stride is None else f"stride {stride}"
    apart = "documents apart" if join is None else f"documents joined by {join!r}"
    protocol = f"{len(rows)} windows of at most {window} tokens, {step}, {apart}, {bos}"
    return Perplexity(math.exp(loss_sum / tokens), low, high, int(tokens), protocol)


def _bootstrap(sums: list[tuple[float, int]], resamples: int = 500) -> tuple[float, float]:
    """95 % interval of the perplexity when windows are drawn anew, with replacement."""
    loss, count = (torch.tensor(column, dtype=torch.float64) for column in zip(*sums, strict=True))
    drawn = torch.randint(len(sums), (resamples, len(sums)), generator=torch.Generator().manual_seed(0))
    values = (loss[drawn].sum(1) / count[drawn].sum(1)).exp()
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
