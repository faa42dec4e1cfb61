"""Importance criteria: small functions from activations or weights to one score per head and per neuron.

To add a criterion, write its functions and put one entry into `CRITERIA` (the field's other criteria do so from
`methods`). Higher is more important: a plan keeps the highest. Axes: `tokens`, `heads`, `d_head`, `hidden`, `neurons`,
`weights` (all weights of one structure).

A measure is called with a stretch of tokens at a time, activations in float32 and output weights, input side first, in
the model's dtype; gradients are off. Criteria that share a measure share its cost: it is computed once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def projected_l1(
    h: Float[Tensor, "tokens heads d_head"], output: Float[Tensor, "heads d_head hidden"]
) -> Float[Tensor, "tokens heads"]:
    """AMP's head score for each token: ‖h_n W_nᵀ‖₁, what head n adds to the residual stream, summed over hidden.

    Source: AMP (arXiv 2504.21174), head importance; the official code agrees. One head at a time in one buffer, so
    that tokens × heads × hidden never exists. The products of all heads cost what the output projection costs.
    """
    scores = h.new_empty(h.shape[1], h.shape[0])
    added = h.new_empty(h.shape[0], output.shape[2])  # (tokens, hidden), of one head after the other
    for n in range(h.shape[1]):
        torch.mm(h[:, n], output[n].to(h.dtype), out=added)
        torch.sum(added.abs_(), dim=-1, out=scores[n])
    return scores.T


def activation_l1(
    a: Float[Tensor, "tokens neurons"], output: Float[Tensor, "neurons hidden"]
) -> Float[Tensor, "tokens neurons"]:
    """AMP's neuron score for each token: |a_m|, the input of the down projection (W_down itself is not in it).

    Source: AMP (arXiv 2504.21174), MLP importance; for a gated MLP a = SiLU(x W_gate) · (x W_up).
    """
    return a.abs()


def l2(w: Float[Tensor, "structures weights"]) -> Float[Tensor, " structures"]:
    """Magnitude: the L2 norm of all weights of the structure; sees no data. The field's oldest baseline."""
    return w.float().norm(dim=1)


Measure = Callable[[Tensor, Tensor], Tensor]  # (activations, output weights) → (tokens, columns)
Finish = Callable[[Tensor, Tensor, int], Tensor]  # (mean measures, output weights, tokens) → one score a structure
Static = Callable[[Tensor], Tensor]  # (structures, weights) → one score a structure
Collect = Callable[..., Any]  # (anatomy, batches, average) → heads, neurons, and the `Sums` that counted the tokens
COLUMNS: dict[Measure, int] = {}  # columns for each feature; a measure that is not here has one for each structure


@dataclass(frozen=True)
class Criterion:
    """What a criterion is computed from: activations, weights, a way of its own, or, with nothing at all, chance."""

    heads: Measure | None = None
    neurons: Measure | None = None
    finish: Finish | None = None  # without it the mean measures are the scores
    static: Static | None = None
    collect: Collect | None = None  # for what one forward pass does not give, such as gradients
    sign: int = 1  # -1: the other way round, so that the least goes last
    comparable: bool = False  # whether scores of a head, of a neuron, and of different layers are in one unit

    @property
    def sees_data(self) -> bool:
        return self.heads is not None or self.collect is not None


CRITERIA: dict[str, Criterion] = {
    "amp": Criterion(projected_l1, activation_l1),
    "magnitude": Criterion(static=l2),
    "random": Criterion(),
    "reversed": Criterion(projected_l1, activation_l1, sign=-1),  # AMP upside down: the control that must fail
}


def named(criterion: str) -> Criterion:
    """The criterion of that name; a ValueError if there is none."""
    if criterion not in CRITERIA:
        raise ValueError(f"Unknown criterion {criterion!r}; choose from {', '.join(CRITERIA)}.")
    return CRITERIA[criterion]
