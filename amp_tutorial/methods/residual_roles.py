"""Who reads and who writes the residual stream, in each family whose hidden size can be sliced; why not in the others.

To add a family, add a row to `STREAMS`.
"""

from dataclasses import dataclass, replace

from ..core.anatomy import Anatomy


@dataclass(frozen=True)
class Stream:
    """Which tensors of a decoder layer read and write the residual stream, by module (or bare tensor) name."""

    reads: tuple[tuple[str, tuple[str, ...]], ...]  # (norm, all that reads it)
    writes: tuple[str, ...]
    apart: tuple[str, ...] = ("self_attn.q_norm", "self_attn.k_norm")  # norms inside a head, not of the stream
    last: str = "model.norm"  # the norm that the output head reads
    offset: float = 0.0  # a norm multiplies by offset + weight
    multiple: int = 1  # of the hidden size: the products of packed experts want rows of whole 16 bytes
    root: str = ""  # a buffer of the embedding by which it multiplies its rows: always sqrt(hidden_size)


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
EXPERTS = ("mlp.gate", "mlp.experts.gate_up_proj")


def _stream(attention: tuple[str, ...], mlp: tuple[str, ...], *down: str) -> Stream:
    reads = (("input_layernorm", attention), ("post_attention_layernorm", mlp))
    return Stream(reads, ("self_attn.o_proj", *(down or ("mlp.down_proj",))))


LLAMA = _stream(QKV, GATE_UP)
STREAMS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3"), LLAMA),
    "phi3": _stream(("self_attn.qkv_proj",), ("mlp.gate_up_proj",)),
    "gemma": replace(LLAMA, offset=1.0, root="embed_scale"),
    "mixtral": replace(_stream(QKV, EXPERTS, "mlp.experts.down_proj"), multiple=8),
    # A layer has one of the two MLPs.
    "qwen3_moe": replace(_stream(QKV, GATE_UP + EXPERTS, "mlp.down_proj", "mlp.experts.down_proj"), multiple=8),
}
LAYER_NORM = "its layer norms subtract the mean, so the stream cannot be turned; RMS norms are needed"
OUTPUT_NORM = "its norms weigh what is written to the residual stream, and a weight there cannot be folded away"
NO_STREAM = {
    **dict.fromkeys(("phi", "gpt_neox", "gpt2", "opt", "stablelm", "falcon", "starcoder2", "cohere"), LAYER_NORM),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), OUTPUT_NORM),
}


def stream_of(anatomy: Anatomy) -> Stream:
    """The row of a model.

    Raises:
        ValueError: its hidden size cannot be sliced, or no row says how.
    """
    kind = anatomy.model.config.model_type
    if kind in STREAMS:
        return STREAMS[kind]
    why = NO_STREAM.get(kind, "it has no row in residual_roles.STREAMS, which says who reads each norm")
    raise ValueError(f"The hidden size of a {kind} cannot be sliced: {why}. Cut heads, neurons or layers instead.")


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
                f"{name}: the row {model.config.model_type!r} of residual_roles.STREAMS does not say what it has "
                "to do with the residual stream; merge adapters first, or mend the row."
            )
        if name.endswith(".bias"):
            role = Role("bias") if role.part == "writes" else Role("apart")
        axis = -2 if role.part == "writes" else -1
        if role.part != "apart" and parameter.shape[axis] != anatomy.hidden:
            raise ValueError(f"{name} is {tuple(parameter.shape)}, where the hidden size is {anatomy.hidden}.")
        found[name] = role
    return found
