"""Scoring by all criteria at once, against a plain forward pass of the decoder over the same tokens.

Beside it: the same pass with logits; the naive hook, which holds tokens × heads × hidden; and the way of AMP's official
code (facts read in its source, not its code itself): a pass for heads and one for neurons, one prompt at a time, each
through the generation of one token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import amp_tutorial as amp

from . import common

ALL = ("amp", "reversed", "magnitude", "random")
STATIC = ("magnitude", "random")  # see no data: their cost does not grow with the tokens
GOAL = 1.10
# hidden, layers, head_dim, texts' length, rounds, whether beside the other ways
SHAPES = (
    (256, 2, 64, 128, 7, True),
    (256, 2, 64, 512, 7, True),
    (512, 1, 64, 128, 7, True),
    (512, 1, 64, 512, 7, True),
    (1024, 1, 64, 128, 5, True),
    (1024, 1, 128, 128, 5, True),
    (1024, 1, 128, 512, 5, True),
    (2048, 1, 128, 128, 3, False),
)
TOKENS, BATCH = 8192, 2048  # in all and in a batch: amp.calibration gives 64 texts of 128 tokens, 16 in a batch
SMOKE = ((64, 1, 16, 16, 2, True),)
Batches = list[dict[str, Tensor]]
Hook = Callable[[amp.Anatomy, int, Tensor], None]


@contextmanager
def watching(anatomy: amp.Anatomy, heads: Hook | None, neurons: Hook | None) -> Iterator[None]:
    """Call a hook with the number of the layer and the inputs of its output projections."""
    handles = []

    def watch(i: int, module: nn.Module, hook: Hook) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, args: hook(anatomy, i, args[0].flatten(0, -2))))

    for i in range(anatomy.layers):
        if heads:
            watch(i, anatomy.layer(i).output, heads)
        if neurons:
            watch(i, anatomy.layer(i).neurons_out, neurons)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def naive_heads(anatomy: amp.Anatomy, i: int, x: Tensor) -> None:
    """All heads at once, as one writes it first: (tokens, heads, hidden)."""
    h = x.unflatten(-1, (anatomy.heads, -1))
    output = anatomy.layer(i).output.weight.unflatten(-1, (anatomy.heads, -1))
    torch.einsum("tnd,ond->tno", h, output).abs().sum(-1).float().mean(0)


def naive_neurons(anatomy: amp.Anatomy, i: int, x: Tensor) -> None:
    x.abs().float().mean(0)


@torch.no_grad()
def plain(model: PreTrainedModel, given: Batches, logits: bool = False) -> None:
    for batch in given:
        (model if logits else model.base_model)(**batch, use_cache=False)


def naive(model: PreTrainedModel, given: Batches) -> None:
    with watching(amp.Anatomy.of(model), naive_heads, naive_neurons):
        plain(model, given)


@torch.no_grad()
def official(model: PreTrainedModel, given: Batches) -> None:
    anatomy = amp.Anatomy.of(model)
    for heads, neurons in ((naive_heads, None), (None, naive_neurons)):
        with watching(anatomy, heads, neurons):
            for ids in (row[None] for batch in given for row in batch["input_ids"]):
                mask = torch.ones_like(ids)
                model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=True, pad_token_id=0)


def compare(model: PreTrainedModel, given: Batches, rounds: int, few: int, others: bool = True) -> dict[str, Any]:
    """Times of all ways as ratios to the plain forward pass, and peak memory above it."""
    runs: dict[str, common.Run] = {
        "plain": lambda: plain(model, given),
        "score": lambda: amp.score(model, given, ALL),
        "weights alone": lambda: amp.score(model, given, STATIC),
        "with logits": lambda: plain(model, given, logits=True),
    }
    if others:
        runs |= {"naive": lambda: naive(model, given), "official": lambda: official(model, given)}
    times = common.in_turn(runs, rounds, {"with logits": few, "naive": few, "official": few})
    found: dict[str, Any] = {
        "plain_seconds": sorted(times["plain"])[rounds // 2],
        "ratios": {name: common.ratio(times[name], times["plain"]) for name in runs if name != "plain"},
    }
    one = given[:1]
    peak = common.peaks(
        {
            "plain": lambda: plain(model, one),
            "score": lambda: amp.score(model, one, ALL),
            **({"naive": lambda: naive(model, one)} if others else {}),
        }
    )
    base = peak.pop("plain")
    found["peak_above_plain_bytes"] = {k: v - base for k, v in peak.items() if v is not None and base is not None}
    return found


def measure(smoke: bool = False) -> dict[str, Any]:
    rows = []
    for hidden, layers, head_dim, length, rounds, others in SMOKE if smoke else SHAPES:
        model = common.llama(hidden, layers, head_dim)
        tokens, batch = (4 * length, 2) if smoke else (TOKENS, BATCH // length)
        given = common.batches(model, tokens, length, batch)
        row = dict(hidden=hidden, layers=layers, head_dim=head_dim, length=length, tokens=tokens, dtype="float32")
        row["all_heads_bytes"] = given[0]["input_ids"].numel() * hidden // head_dim * hidden * 4  # of one batch
        # The o_proj-sized product as a share of all products with weights: what a hook for exact head scores costs.
        row["product_share"] = hidden**2 * layers / common.weights_in(model, whole=False)
        rows.append(row | compare(model, given, rounds, 1, others))
    return {"goal": GOAL, "rows": rows}
