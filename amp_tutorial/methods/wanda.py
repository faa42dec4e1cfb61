"""Wanda-sp and TransAct's salience, from the energy of what output projections read: with their weights, without."""

from jaxtyping import Float
from torch import Tensor

from ..core.criteria import COLUMNS, CRITERIA, Criterion


def squares(
    x: Float[Tensor, " tokens *structure"], output: Float[Tensor, "*structure hidden"]
) -> Float[Tensor, "tokens features"]:
    """The energy of each input."""
    return x.flatten(1).square()


def wanda_sp(
    mean: Float[Tensor, " features"], output: Float[Tensor, "structures d hidden"], tokens: int
) -> Float[Tensor, " structures"]:
    """Wanda-sp: mean over outputs of |W_ij| · ‖x_j‖₂, summed over a structure's features.

    Source: Wanda (arXiv 2306.11695) made structured in FLAP's official code [code], which scores each layer on the
    already pruned layers before it; here, as for all criteria, on the dense model. ‖x_j‖ is the root of the mean
    energy: a common factor changes no ranking.
    """
    return (output.abs().mean(-1) * mean.clamp(min=0).sqrt().view(output.shape[:2])).sum(1)


def transact(
    mean: Float[Tensor, " features"], output: Float[Tensor, "structures d hidden"], tokens: int
) -> Float[Tensor, " structures"]:
    """TransAct's salience: s_j = sqrt(Σ_tokens x_j²); of a head mean_j s_j + (10 / d) · max_j s_j, of a neuron s_j.

    Source: TransAct (arXiv 2407.05690), equation as in its official code [code]. No weight is in it. The code can also
    shrink heads, with one index set for query, key, value and output; it ignores which rows RoPE turns together.
    """
    s = (tokens * mean).sqrt().view(output.shape[:2])
    return s[:, 0] if s.shape[1] == 1 else s.mean(1) + 10 / s.shape[1] * s.amax(1)


COLUMNS[squares] = 1
CRITERIA["wanda"] = Criterion(squares, squares, finish=wanda_sp)
CRITERIA["transact"] = Criterion(squares, squares, finish=transact)
