"""Importance criteria: small functions from activations or weights to one score per head and per neuron.

To add a criterion, write its two functions and one line in `CRITERIA`. Higher is more important: a plan keeps the
highest. Axes: `tokens`, `heads`, `d_head`, `hidden`, `neurons`, `weights` (all weights of one structure).

A measure is called with a stretch of tokens at a time, activations in float32 and output weights, input side first, in
the model's dtype; gradients are off. Criteria that share a measure share its cost: it is computed once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .families import exact


@torch.no_grad()
def projected_l1(
    h: Float[Tensor, "tokens heads d_head"],
    output: Float[Tensor, "heads d_head hidden"],
    total: Float[Tensor, "tokens hidden"] | None = None,
) -> Float[Tensor, "tokens heads"]:
    """AMP's head score for each token: ‖h_n W_n‖₁, what head n adds to the residual stream, summed over hidden.

    Source: AMP (arXiv 2504.21174), head importance; the official code agrees. One head at a time in one buffer, so
    that tokens × heads × hidden never exists. The products of all heads cost what the output projection costs, and
    their sum is what it computes: `total` takes it, so that the projection need not compute it again.
    """
    scores = h.new_empty(h.shape[1], h.shape[0])
    added = h.new_empty(h.shape[0], output.shape[2])  # (tokens, hidden), of one head after the other
    for n in range(h.shape[1]):
        torch.mm(h[:, n], output[n].to(h.dtype), out=added)
        if total is not None:
            total.add_(added) if n else total.copy_(added)
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


def squares(
    x: Float[Tensor, "tokens *structure"], output: Float[Tensor, "*structure hidden"]
) -> Float[Tensor, "tokens features"]:
    """The energy of each input of an output projection."""
    return x.flatten(1).square()


def moments(
    x: Float[Tensor, "tokens *structure"], output: Float[Tensor, "*structure hidden"]
) -> Float[Tensor, "tokens twice"]:
    """Each input of an output projection, then the square of each; in float64, because a variance is what little is
    left of their difference.
    """
    x = exact(x.flatten(1))
    return torch.cat([x, x.square()], dim=1)


def transact(
    mean: Float[Tensor, " features"], output: Float[Tensor, "structures d hidden"], tokens: int
) -> Float[Tensor, " structures"]:
    """TransAct's salience: s_j = sqrt(Σ_tokens x_j²); of a head mean_j s_j + (10 / d) · max_j s_j, of a neuron s_j.

    Source: TransAct (arXiv 2407.05690), equation as in its official code [code]. No weight is in it. The code can also
    shrink heads, with one index set for query, key, value and output; it ignores which rows RoPE turns together.
    """
    s = (tokens * mean).sqrt().view(output.shape[:2])
    return s[:, 0] if s.shape[1] == 1 else s.mean(1) + 10 / s.shape[1] * s.amax(1)


def wanda_sp(
    mean: Float[Tensor, " features"], output: Float[Tensor, "structures d hidden"], tokens: int
) -> Float[Tensor, " structures"]:
    """Wanda-sp: mean over outputs of |W_ij| · ‖x_j‖₂, summed over a structure's features.

    Source: Wanda (arXiv 2306.11695) made structured in FLAP's official code [code], which scores each layer on the
    already pruned layers before it; here, as for all criteria, on the dense model. ‖x_j‖ is the root of the mean
    energy: a common factor changes no ranking.
    """
    return (output.abs().mean(-1) * mean.clamp(min=0).sqrt().view(output.shape[:2])).sum(1)


def fluctuation(
    mean: Float[Tensor, " twice"], output: Float[Tensor, "structures d hidden"], tokens: int
) -> Float[Tensor, " structures"]:
    """FLAP's WIFV: Var(x_j) · ‖W_j‖², what is lost when x_j is replaced by its mean; standardised within the layer.

    A head's score is the mean over its features, of squares, as in the code. Standardised scores of all layers and of
    heads and neurons can be compared: `plan(…, parts="scored")` lets them share the budget (FLAP's "AL-AM").

    Source: FLAP (arXiv 2312.11983), official code [code]. Its running variance leaves the first sample out, and weighs
    samples, not tokens; here it is the variance over all tokens. FLAP keeps other widths in each layer, and adds
    biases: a stock checkpoint holds neither, so widths are made equal, and only biases that are there take the means.
    """
    first, second = mean.view(2, *output.shape[:2])
    metric = (second - first.square()).clamp(min=0) * output.square().sum(-1)
    metric = metric.square() if metric.shape[1] > 1 else metric
    return ((metric - metric.mean()) / metric.std().clamp(min=1e-30)).mean(1).float()


def taylor(
    w: Float[Tensor, "structures weights"], gradient: Float[Tensor, "structures weights"]
) -> Float[Tensor, " structures"]:
    """First-order Taylor: Σ |w · ∂L/∂w| over all weights of a structure, L the mean loss over the calibration tokens.

    Of a key and value that several query heads share each gets an equal part, so that the sum over a KV group's heads
    (`combine="sum"`) is that over all of the group's weights, and a layer's that over all of its attention.

    Source: LLM-Pruner (arXiv 2305.11627), `param_first`, its default with sums over groups [not run here]. It needs a
    backward pass, and the gradients of all decoder layers at once.
    """
    return (w.float() * gradient.float()).abs().sum(1)


Measure = Callable[..., Tensor]
Finish = Callable[[Tensor, Tensor, int], Tensor]
Static = Callable[[Tensor], Tensor]
Gradient = Callable[[Tensor, Tensor], Tensor]
COLUMNS: dict[Measure, int] = {squares: 1, moments: 2}  # for each feature; other measures have one for each structure
IN_FULL: set[Measure] = {moments}  # measured in float64, and the mean stays so


@dataclass(frozen=True)
class Criterion:
    """Per-token measures of (activations, output weights), a function of weights (and gradients), or chance."""

    heads: Measure | None = None
    neurons: Measure | None = None
    finish: Finish | None = None  # from the mean measures, output weights and the number of tokens to the scores
    static: Static | None = None  # of the weights; with nothing at all the scores are drawn at random
    gradient: Gradient | None = None  # of the weights and the gradients of the loss
    sign: int = 1  # -1: the other way round, so that the least goes last
    comparable: bool = False  # whether scores of a head, of a neuron, and of different layers are in one unit

    @property
    def sees_data(self) -> bool:
        return self.heads is not None or self.gradient is not None


CRITERIA: dict[str, Criterion] = {
    "amp": Criterion(projected_l1, activation_l1),
    "magnitude": Criterion(static=l2),
    "random": Criterion(),
    "reversed": Criterion(projected_l1, activation_l1, sign=-1),  # AMP upside down: the control that must fail
    "transact": Criterion(squares, squares, finish=transact),
    "wanda": Criterion(squares, squares, finish=wanda_sp),
    "flap": Criterion(moments, moments, finish=fluctuation, comparable=True),
    "taylor": Criterion(gradient=taylor, comparable=True),
}


def named(criterion: str) -> Criterion:
    """The criterion of that name.

    Raises:
        ValueError: there is none.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"Unknown criterion {criterion!r}; choose from {', '.join(CRITERIA)}.")
    return CRITERIA[criterion]
