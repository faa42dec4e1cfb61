"""What enters and leaves the linear maps of one decoder layer, and how it is added to the residual stream."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.anatomy import Layer, Projection

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


def with_bias(weight: Float[Tensor, "hidden features"], bias: Tensor | None) -> Float[Tensor, "hidden inputs"]:
    """A bias is one more column, of an input that is always 1."""
    return weight.clone() if bias is None else torch.cat([weight, bias.to(weight.dtype)[:, None]], dim=1)


def residual_scale(entered: Tensor, left: Tensor, seen: Seen) -> float:
    """By what factor both projections' outputs are added to the residual stream; 0 where it is not so simple.

    Measured, not looked up: 1 in most families, another factor in Granite. Gemma 2 norms the outputs first, and of
    experts the output is not seen; there each projection is fitted to its own dense output alone.
    """
    written = torch.stack([output.reshape_as(entered) for _, output in seen.values()]).double().sum(0).flatten()
    change = (left.double() - entered.double()).flatten()
    scale = float(change @ written / written.square().sum().clamp(min=1e-300))
    exact = float((change - scale * written).norm()) <= 0.02 * float(change.norm())
    return scale if exact else 0.0


def stream(entered: Tensor, seen: Seen, scale: float) -> dict[str, tuple[Tensor | float, Tensor]]:
    """Of each part: the residual stream before and after it is added; without a scale 0 and its own output."""
    if not scale:
        return {part: (0.0, output.reshape_as(entered).double()) for part, (_, output) in seen.items()}
    found: dict[str, tuple[Tensor | float, Tensor]] = {}
    before = entered.double()
    for part in sorted(seen):  # "heads" before "neurons"; in a block that runs both at once the order is free
        found[part] = (before, before + scale * seen[part][1].reshape_as(entered).double())
        before = found[part][1]
    return found
