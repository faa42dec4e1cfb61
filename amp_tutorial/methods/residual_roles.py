"""The role of each tensor in the residual stream, in families whose hidden size can be sliced (`Family.stream`)."""

from dataclasses import dataclass

from ..core.anatomy import Anatomy
from ..core.families import Stream


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
