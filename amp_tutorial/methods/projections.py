"""What enters and leaves the linear maps of one decoder layer, and how it is added to the residual stream."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.anatomy import Anatomy, Layer, Projection, exact

Seen = dict[Any, tuple[Tensor, Tensor]]  # of each part or place: the input and the output of a linear map


def projection(layer: Layer, part: str) -> Projection:
    """The output projection that the heads or the neurons live in; None where they stay."""
    return layer.output if part == "heads" else layer.neurons_out


def readers(layer: Layer, part: str) -> list[Projection]:
    """The matrices before the heads or the neurons, each once; none of a family that hides them."""
    found = (layer.query, layer.key, layer.value) if part == "heads" else layer.neurons_in
    return [module for module in dict.fromkeys(found) if module is not None]


def watch(layer: Layer) -> AbstractContextManager[Seen]:
    """While it lasts, the inputs and outputs of both output projections are kept, of the last batch run."""
    return ends({part: projection(layer, part) for part in ("heads", "neurons")})


@contextmanager
def ends(modules: dict[Any, Projection]) -> Iterator[Seen]:
    """While it lasts, the input and output of each module are kept, of the last batch run."""
    seen: Seen = {}

    def keep(name: Any) -> Any:
        return lambda _, args, output: seen.update({name: (args[0], output)})

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items() if module is not None]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def residual_scale(anatomy: Anatomy) -> float:
    """By what both projections' outputs are multiplied when they are added to the residual stream; 0: not so."""
    adds = anatomy.family.adds
    return float(getattr(anatomy.model.config, adds)) if isinstance(adds, str) else adds


def with_bias(weight: Float[Tensor, "hidden features"], bias: Tensor | None) -> Float[Tensor, "hidden inputs"]:
    """A bias is one more column, of an input that is always 1."""
    return weight.clone() if bias is None else torch.cat([weight, bias.to(weight)[:, None]], dim=1)


def stream(entered: Tensor, outputs: Sequence[Tensor], scale: float) -> Tensor:
    """The residual stream, in float64, after these outputs of projections are added to what entered.

    Args:
        scale: `residual_scale` of the model.
    """
    return sum((scale * exact(output.reshape_as(entered)) for output in outputs), exact(entered))
