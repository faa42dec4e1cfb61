"""Moments of the inputs of an output projection, which several criteria of the field are made from."""

from jaxtyping import Float
from torch import Tensor

from ..core.criteria import COLUMNS


def squares(
    x: Float[Tensor, " tokens *structure"], output: Float[Tensor, "*structure hidden"]
) -> Float[Tensor, "tokens features"]:
    """The energy of each input."""
    return x.flatten(1).square()


COLUMNS[squares] = 1
