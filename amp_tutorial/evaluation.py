"""What a model still knows and what it costs: perplexity, zero-shot tasks, size, speed."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import padded, texts, windows
from .families import Anatomy, exact


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
        sums += list(zip(exact(loss).sum(1).tolist(), counts, strict=True))
    low, high = _bootstrap(sums)
    loss_sum, tokens = (sum(column) for column in zip(*sums, strict=True))
    bos = "opened by BOS" if tokenizer.bos_token_id is not None else "first token uncounted, no BOS"
    step = "stride = window" if stride is None else f"stride {stride}"
    apart = "documents apart" if join is None else f"documents joined by {join!r}"
    protocol = f"{len(rows)} windows of at most {window} tokens, {step}, {apart}, {bos}"
    return Perplexity(_exp(loss_sum / tokens), low, high, int(tokens), protocol)


def _exp(loss: float) -> float:
    """e to the mean loss; infinite above 709 nats, which no float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _bootstrap(sums: list[tuple[float, int]], resamples: int = 500) -> tuple[float, float]:
    """95 % interval of the perplexity when windows are drawn anew, with replacement."""
    loss, count = (torch.tensor(column, dtype=torch.float64) for column in zip(*sums, strict=True))
    drawn = torch.randint(len(sums), (resamples, len(sums)), generator=torch.Generator().manual_seed(0))
    values = (loss[drawn].sum(1) / count[drawn].sum(1)).exp()
    most = torch.finfo(values.dtype).max  # between two infinite values there is no quantile
    ends = torch.quantile(values.clamp(max=most), torch.tensor([0.025, 0.975], dtype=torch.float64))
    low, high = ends.masked_fill(ends == most, math.inf).tolist()
    return low, high


@dataclass(frozen=True)
class Size:
    """What a model weighs and what a token costs."""

    parameters: int
    block_parameters: int
    bytes: int  # of all weights, as stored
    macs_per_token: float  # multiply-accumulates, mean over a sequence of `length` tokens, output head included
    kv_cache_bytes_per_token: int


@torch.no_grad()
def size(model: PreTrainedModel, length: int = 128) -> Size:
    """Parameters, bytes, multiply-accumulates per token (counted by torch on a real pass) and KV cache."""
    anatomy, device = Anatomy.of(model), next(model.parameters()).device
    ids = torch.zeros((1, length), dtype=torch.long, device=device)
    attention, experts = model.config._attn_implementation, getattr(model.config, "_experts_implementation", None)
    model.set_attn_implementation("eager")  # plain matrix products, which the counter sees on every device
    if experts:
        model.set_experts_implementation("eager")
    try:  # MATH: the same of a family whose attention cannot be set (Falcon)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(input_ids=ids, use_cache=False)
    finally:
        model.set_attn_implementation(attention)
        if experts:
            model.set_experts_implementation(experts)
    cache = model(input_ids=ids[:, :1], use_cache=True).past_key_values
    return Size(
        parameters=model.num_parameters(),
        block_parameters=anatomy.block_parameters,
        bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        macs_per_token=counter.get_total_flops() / 2 / length,
        kv_cache_bytes_per_token=sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values)),
    )


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of the repeats, and their quartiles; of a single repeat all three are that."""

    median: float
    low: float
    high: float


@torch.no_grad()
def latency(
    model: PreTrainedModel, prompt: int = 128, new: int = 16, batch: int = 1, repeats: int = 7, seed: int = 0
) -> dict[str, Timing]:
    """Time of a prefill of `prompt` tokens, and of decoding one token with the cache, warmed up.

    Returns:
        "prefill": seconds for the whole prompt. "decode": seconds per new token of the batch.

    Raises:
        ValueError: no repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1: a time is the median of that many measurements.")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (batch, prompt), generator=generator).to(device)

    def decode() -> float:
        cache = model(input_ids=ids, use_cache=True).past_key_values
        return _clock(lambda: _decode(model, ids[:, -1:], cache, new), device) / new

    model(input_ids=ids, use_cache=True)
    decode()  # warm up both
    prefill = [_clock(lambda: model(input_ids=ids, use_cache=True), device) for _ in range(repeats)]
    return {"prefill": _timing(prefill), "decode": _timing([decode() for _ in range(repeats)])}


def _decode(model: PreTrainedModel, token: torch.Tensor, cache: object, new: int) -> None:
    for _ in range(new):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)


def _clock(run: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def _timing(seconds: list[float]) -> Timing:
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else 3 * seconds
    return Timing(statistics.median(seconds), low, high)
