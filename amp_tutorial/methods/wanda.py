"""Wanda-sp: weights times the norm of what they read."""

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


COLUMNS[squares] = 1
CRITERIA["wanda"] = Criterion(squares, squares, finish=wanda_sp)
