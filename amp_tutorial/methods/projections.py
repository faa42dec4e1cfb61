"""The residual stream: what enters and leaves the linear maps of a layer, how it is added, and which matrices read and
write the stream.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.anatomy import Anatomy, Layer, Projection, exact
from ..core.families import Stream

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


def stream_of(anatomy: Anatomy) -> Stream:
    """Who reads and writes the residual stream of a model, as its family's row says.

    Raises:
        ValueError: its hidden size cannot be sliced, or no row says how.
    """
    family = anatomy.family
    if family.stream is None:
        raise ValueError(
            f"The hidden size of a {anatomy.model.config.model_type} cannot be sliced: {family.no_stream}. Cut heads, "
            "neurons or layers instead."
        )
    return family.stream


@dataclass(frozen=True)
class Role:
    """What a tensor has to do with the residual stream."""

    part: str  # "writes" have it on the last axis but one; "reads", "rows", "bias", "norm" on the last; "apart" nowhere
    norm: str = ""  # of a matrix that reads: through which norm


def roles(anatomy: Anatomy) -> dict[str, Role]:
    """The role of each parameter, by its name; a tied head stands here too.

    Raises:
        ValueError: the table does not say it of some parameter, or the model has adapters or an own shape.
    """
    stream, prefix, found = stream_of(anatomy), anatomy.family.layers, {}
    model = anatomy.model
    module_names = {module: name for name, module in model.named_modules()}
    embedding, head = (module_names[m] for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    outer = {embedding: Role("rows"), head: Role("reads", stream.last), stream.last: Role("norm")}
    inner = dict.fromkeys(stream.apart, Role("apart")) | dict.fromkeys(stream.writes, Role("writes"))
    inner |= {norm: Role("norm") for norm, _ in stream.reads}
    inner |= {reader: Role("reads", norm) for norm, readers in stream.reads for reader in readers}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        where = name.removesuffix(".weight").removesuffix(".bias")
        if where.startswith(f"{prefix}."):
            i, part = where.removeprefix(f"{prefix}.").split(".", 1)
            role = inner.get(part)
            role = Role("reads", f"{prefix}.{i}.{role.norm}") if role and role.norm else role
        else:
            role = outer.get(where)
        if role is None:
            raise ValueError(
                f"{name}: the row {model.config.model_type!r} of amp_tutorial.FAMILIES does not say what it has "
                "to do with the residual stream; merge adapters first, or mend the row."
            )
        if name.endswith(".bias"):
            role = Role("bias") if role.part == "writes" else Role("apart")
        axis = -2 if role.part == "writes" else -1
        if role.part != "apart" and parameter.shape[axis] != anatomy.hidden:
            raise ValueError(f"{name} is {tuple(parameter.shape)}, where the hidden size is {anatomy.hidden}.")
        found[name] = role
    return found
