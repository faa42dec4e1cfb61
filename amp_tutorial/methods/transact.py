"""TransAct's salience, from the energy of activations alone."""

from jaxtyping import Float
from torch import Tensor

from ..core.criteria import CRITERIA, Criterion
from .wanda import squares


def transact(
    mean: Float[Tensor, " features"], output: Float[Tensor, "structures d hidden"], tokens: int
) -> Float[Tensor, " structures"]:
    """TransAct's salience: s_j = sqrt(Σ_tokens x_j²); of a head mean_j s_j + (10 / d) · max_j s_j, of a neuron s_j.

    Source: TransAct (arXiv 2407.05690), equation as in its official code [code]. No weight is in it. The code can also
    shrink heads, with one index set for query, key, value and output; it ignores which rows RoPE turns together.
    """
    s = (tokens * mean).sqrt().view(output.shape[:2])
    return s[:, 0] if s.shape[1] == 1 else s.mean(1) + 10 / s.shape[1] * s.amax(1)


CRITERIA["transact"] = Criterion(squares, squares, finish=transact)
