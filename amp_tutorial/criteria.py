"""Importance criteria: small functions from activations or weights to one score per head and per neuron.

To add a criterion, write its two functions and one line in `CRITERIA`. Higher is more important: a plan keeps the
highest. Axes: `tokens`, `heads`, `d_head`, `hidden`, `neurons`, `weights` (all weights of one structure).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def projected_l1(
    h: Float[Tensor, "tokens heads d_head"], output: Float[Tensor, "hidden heads d_head"]
) -> Float[Tensor, "tokens heads"]:
    """AMP's head score for each token: ‖h_n W_n‖₁, what head n adds to the residual stream, summed over hidden.

    Source: AMP (arXiv 2504.21174), head importance; the official code agrees. One head at a time, so that
    tokens × heads × hidden never exists.
    """
    return torch.stack([(h[:, n] @ output[:, n].T).abs().sum(-1) for n in range(h.shape[1])], dim=1)


def activation_l1(
    a: Float[Tensor, "tokens neurons"], output: Float[Tensor, "hidden neurons"]
) -> Float[Tensor, "tokens neurons"]:
    """AMP's neuron score for each token: |a_m|, the input of the down projection (W_down itself is not in it).

    Source: AMP (arXiv 2504.21174), MLP importance; for a gated MLP a = SiLU(x W_gate) · (x W_up).
    """
    return a.abs()


def l2(w: Float[Tensor, "structures weights"]) -> Float[Tensor, " structures"]:
    """Magnitude: the L2 norm of all weights of the structure; sees no data. The field's oldest baseline."""
    return w.float().norm(dim=1)


def reversed_heads(h: Tensor, output: Tensor) -> Tensor:
    """AMP upside down: the control that must fail."""
    return -projected_l1(h, output)


def reversed_neurons(a: Tensor, output: Tensor) -> Tensor:
    """AMP upside down for neurons."""
    return -activation_l1(a, output)


Measure = Callable[[Tensor, Tensor], Tensor]
Static = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Criterion:
    """Either a pair of per-token measures of (activations, output weights), or one function of weights, or chance."""

    heads: Measure | None = None
    neurons: Measure | None = None
    static: Static | None = None  # with neither measures nor static the scores are drawn at random

    @property
    def sees_data(self) -> bool:
        return self.heads is not None


CRITERIA: dict[str, Criterion] = {
    "amp": Criterion(projected_l1, activation_l1),
    "magnitude": Criterion(static=l2),
    "random": Criterion(),
    "reversed": Criterion(reversed_heads, reversed_neurons),
}


def named(criterion: str) -> Criterion:
    """The criterion of that name.

    Raises:
        ValueError: there is none.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"Unknown criterion {criterion!r}; choose from {', '.join(CRITERIA)}.")
    return CRITERIA[criterion]
