"""Slice the hidden size of an RMS-norm model with one rotation for the whole network; the result is a stock model.

Every module of a pre-norm decoder reads the residual stream through a norm and adds what it computes to it. An RMS norm
commutes with a rotation once its weight w is folded into the matrices that read it, so any orthogonal Q may turn the
stream and the logits stay. Turned to the principal directions of what the norms give, it can lose the last ones.
SliceGPT (Ashkboos et al., ICLR 2024, arXiv 2401.15024) turns every layer by a Q of its own; it needs matrices between
the layers, and so an own model class. With one Q for all layers nothing stands between them.

With d the hidden size, d' the new one, Q (d, d') the kept directions and s = sqrt(d' / d):

    reads (q, k, v, gate, up, routers, head)   W' = W diag(w) Q
    writes (o, down, embedding rows)           W' = s Qᵀ W,   b' = s Qᵀ b
    norms                                      w' = 1 / s = sqrt(d / d'), eps as it was

The stream of the sliced model is s Qᵀ x. Its mean square over d' numbers is that of Q Qᵀ x over d numbers: the norms
divide by the same, eps included. So the sliced model is the dense one with every write projected by Q Qᵀ (`projected`).
"""

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .families import Anatomy
from .sums import Batch
from .surgery import fill_buffers

PROBE = 16  # tokens on which each sliced model is compared with the projected one


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


@dataclass(frozen=True)
class Rotation:
    """An orthonormal basis of the residual stream, the direction that carries most first."""

    vectors: Float[Tensor, "hidden hidden"]  # float64; a column is a direction
    energy: Float[Tensor, " hidden"]  # share of all squares that the first 1, 2, … directions carry
    tokens: int  # real tokens seen; 0 where the basis was not measured
    probe: Int[Tensor, "1 tokens"]  # a few of them, on which sliced models are checked

    @classmethod
    def of(cls, moments: Float[Tensor, "hidden hidden"], tokens: int, probe: Int[Tensor, "1 tokens"]) -> "Rotation":
        """The eigenvectors of a sum of `second_moments`, largest eigenvalue first."""
        values, vectors = torch.linalg.eigh(moments.double())
        energy = values.flip(0).clamp(min=0).cumsum(0)
        return cls(vectors.flip(1), energy / energy[-1], tokens, probe)


def stream_of(anatomy: Anatomy) -> Stream:
    """The row of a model.

    Raises:
        ValueError: its hidden size cannot be sliced, or no row says how.
    """
    kind = anatomy.model.config.model_type
    if kind in STREAMS:
        return STREAMS[kind]
    why = NO_STREAM.get(kind, "it has no row in amp_tutorial.slicing.STREAMS, which says who reads each norm")
    raise ValueError(f"The hidden size of a {kind} cannot be sliced: {why}. Cut heads, neurons or layers instead.")


@torch.no_grad()
def second_moments(x: Float[Tensor, "*positions hidden"], eps: float) -> Float[Tensor, "hidden hidden"]:
    """Σ n nᵀ over positions, with n = x / sqrt(mean(x²) + eps): what an RMS norm gives before its weight; float64."""
    n = F.rms_norm(x.flatten(0, -2).float(), x.shape[-1:], eps=eps)
    return (n.T @ n).cpu().double()  # products in float32, sums of batches in float64


@torch.no_grad()
def rotation(model: PreTrainedModel, batches: Iterable[Batch]) -> Rotation:
    """The principal directions of what all norms give (before their weights), summed over norms, in one pass.

        C = Σ over norms n and tokens of n nᵀ,   Q = eigenvectors of C, largest eigenvalue first

    Memory: a few (hidden, hidden) matrices in float64, whatever the number of layers or tokens. Where the layers do not
    fit in memory together, add up `second_moments` of each norm's inputs and give the sum to `Rotation.of`.

    Args:
        model: a causal language model of a family in `STREAMS`; it is not changed.
        batches: as in `score`. Positions with attention mask 0 do not count.

    Raises:
        ValueError: a family whose hidden size cannot be sliced, no tokens, or activations that are not finite.

    Warns:
        UserWarning: fewer tokens than the hidden size.
    """
    anatomy = Anatomy.of(model)
    stream, device, training = stream_of(anatomy), next(model.parameters()).device, model.training
    moments = torch.zeros(anatomy.hidden, anatomy.hidden, dtype=torch.float64)
    tokens, probe = 0, torch.empty(1, 0, dtype=torch.long)
    mask = torch.empty(0)

    def watch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        moments.add_(second_moments(args[0][mask.bool().to(args[0].device)], model.config.rms_norm_eps))

    norms = [model.get_submodule(name) for name in _norms(anatomy, stream)]
    handles = [norm.register_forward_pre_hook(watch) for norm in norms]
    model.eval()
    try:
        for batch in batches:
            mask = batch["attention_mask"].to(device).long()
            ids = batch["input_ids"].to(device)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
            probe = ids[0][mask[0].bool()][None, :PROBE].cpu() if not tokens else probe
            tokens += int(mask.sum())
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if tokens == 0:
        raise ValueError("The calibration batches hold no tokens: every attention mask is 0, or there is no batch.")
    if not moments.isfinite().all():
        raise ValueError("Some norm's inputs are NaN or infinite; load in float32 or bfloat16, check the checkpoint.")
    if tokens < anatomy.hidden:
        warnings.warn(
            f"{tokens} calibration tokens for a hidden size of {anatomy.hidden}: the order of directions that no token "
            "uses is arbitrary; give more text.",
            stacklevel=2,
        )
    return Rotation.of(moments, tokens, probe)


def _norms(anatomy: Anatomy, stream: Stream) -> Iterator[str]:
    for i in range(anatomy.layers):
        yield from (f"{anatomy.family.layers}.{i}.{norm}" for norm, _ in stream.reads)
    yield stream.last


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
                f"{name}: the row {model.config.model_type!r} of amp_tutorial.slicing.STREAMS does not say what it has "
                "to do with the residual stream; merge adapters first, or mend the row."
            )
        if name.endswith(".bias"):
            role = Role("bias") if role.part == "writes" else Role("apart")
        axis = -2 if role.part == "writes" else -1
        if role.part != "apart" and parameter.shape[axis] != anatomy.hidden:
            raise ValueError(f"{name} is {tuple(parameter.shape)}, where the hidden size is {anatomy.hidden}.")
        found[name] = role
    return found


def sliced_parameters(anatomy: Anatomy, hidden: int) -> int:
    """Parameters of the sliced model; its embedding and head are two matrices, also where they were tied."""
    named = dict(anatomy.model.named_parameters(remove_duplicate=False))
    kept = {name: role.part == "apart" for name, role in roles(anatomy).items()}
    return sum(p.numel() if kept[name] else p.numel() // anatomy.hidden * hidden for name, p in named.items())


def hidden_at(anatomy: Anatomy, remove: float, align: int = 1) -> int:
    """The largest hidden size, a multiple of `align`, that removes this share of the dense model's parameters.

    Raises:
        ValueError: none does.
    """
    most = (1 - remove) * anatomy.model.num_parameters()
    for hidden in range(anatomy.hidden // align * align, 0, -align):
        if sliced_parameters(anatomy, hidden) <= most and _type(anatomy, hidden):
            return hidden
    raise ValueError(f"No hidden size removes {remove:.0%} of all parameters; ask for less, or for a smaller align.")


def _type(anatomy: Anatomy, hidden: int) -> str:
    """The model type that runs with this hidden size and these heads; "" if none does."""
    if hidden % stream_of(anatomy).multiple:
        return ""
    fits = anatomy.family.any_head_count or hidden % anatomy.heads == 0
    return anatomy.model.config.model_type if fits else anatomy.equal_type


def _smaller_config(anatomy: Anatomy, hidden: int) -> PreTrainedConfig:
    dense = anatomy.model.config
    if not isinstance(hidden, int) or not 1 <= hidden <= anatomy.hidden:
        raise ValueError(f"hidden={hidden!r} must be a whole number from 1 to the hidden size, {anatomy.hidden}.")
    if anatomy.no_heads:
        raise ValueError(f"The hidden size of this {dense.model_type} cannot change: {anatomy.no_heads}.")
    if not (kind := _type(anatomy, hidden)):
        step = max(stream_of(anatomy).multiple, 1 if anatomy.family.any_head_count else anatomy.heads)
        raise ValueError(
            f"No stock {dense.model_type} runs with hidden_size={hidden} and {anatomy.heads} heads; take a multiple of "
            f"{step}."
        )
    settings = dense.to_dict()
    for stale in ("model_type", "architectures", "transformers_version", "_name_or_path"):
        settings.pop(stale, None)
    settings |= dict(anatomy.family.equal_settings) if kind != dense.model_type else {}
    # Without head_dim a reload would guess hidden_size / heads.
    settings |= dict(hidden_size=hidden, head_dim=anatomy.head_dim, tie_word_embeddings=False)
    config = AutoConfig.for_model(kind, **settings)
    config._attn_implementation, config._name_or_path = dense._attn_implementation, dense._name_or_path
    return config


@torch.no_grad()
def slice_hidden(model: PreTrainedModel, rotation: Rotation, hidden: int) -> PreTrainedModel:
    """A stock model of this hidden size: the first directions of the rotation stay, the rest of the stream goes.

    It has an output head of its own also where the dense model ties it to the embedding: the last norm's weight is
    folded into the head alone. Matrices are turned in float64 and cast back. Before it is returned, its logits on the
    rotation's few probe tokens are compared with those of the `projected` model; in half precision loosely.

    Args:
        model: it is not changed. It may have lost heads, neurons or layers before, and the result may lose some.
        rotation: of this model, or of the one it was cut from.
        hidden: the new hidden size, 1 to the old one.

    Raises:
        ValueError: a family whose hidden size cannot be sliced, a hidden size that no stock configuration says, a
            rotation of another size, or a model that computes something else than the table says.
    """
    anatomy = Anatomy.of(model)
    stream, part = stream_of(anatomy), roles(anatomy)
    config = _smaller_config(anatomy, hidden)
    q = _kept(anatomy, rotation, hidden)
    dense = dict(model.named_parameters(remove_duplicate=False))
    weights = {name: _sliced(old, part[name], q, stream, dense) for name, old in dense.items()}
    with torch.device("meta"):
        small: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    small.load_state_dict(weights, assign=True)
    fill_buffers(small, model, config)
    if stream.root:
        small.get_input_embeddings().get_buffer(stream.root).fill_(hidden**0.5)
    small.generation_config = copy.deepcopy(model.generation_config)
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(dense[name].requires_grad)
    _compare(model, small, rotation)
    return small.train(model.training)


def _kept(anatomy: Anatomy, rotation: Rotation, hidden: int) -> Float[Tensor, "hidden kept"]:
    if len(rotation.vectors) != anatomy.hidden:
        raise ValueError(
            f"The rotation is of a hidden size of {len(rotation.vectors)}, the model has {anatomy.hidden}; measure it "
            "anew with rotation(model, batches)."
        )
    return rotation.vectors[:, :hidden].double()


def _sliced(
    old: Tensor, role: Role, q: Float[Tensor, "hidden kept"], stream: Stream, dense: dict[str, Tensor]
) -> Tensor:
    """One tensor of the sliced model, by the equations at the top."""
    s = (q.shape[1] / q.shape[0]) ** 0.5
    if role.part == "apart":
        return old.detach().clone()
    weight = torch.full(q.shape[1:], 1 / s - stream.offset, dtype=old.dtype, device=old.device)
    if role.part == "norm":
        return weight
    exact = torch.device("cpu") if old.device.type == "mps" else old.device  # that one has no float64
    w, q = old.to(exact).double(), q.to(exact)
    if role.part == "reads":
        folded = dense[f"{role.norm}.weight"].to(exact).double() + stream.offset
        rounding = 1 / s / (weight[0].item() + stream.offset)  # of the new norm weight, in half precision
        new = w * folded * rounding @ q
    elif role.part == "writes":
        new = s * q.T @ w
    else:
        new = s * w @ q
    if role.part == "rows" and stream.root:  # the embedding multiplies by sqrt(hidden_size), rounded to its dtype
        before, after = torch.tensor([size**0.5 for size in q.shape]).to(old.dtype).tolist()
        new *= before / after
    return new.to(old.device, old.dtype)


@contextmanager
def projected(model: PreTrainedModel, rotation: Rotation, hidden: int) -> Iterator[PreTrainedModel]:
    """Project all that is written to the residual stream on the kept directions, while the context lasts.

    x ← x Q Qᵀ behind the embedding and behind both halves of every layer; no weight is touched. The sliced model
    computes the same in fewer dimensions.

    Raises:
        ValueError: a family whose hidden size cannot be sliced, or a rotation of another size.
    """
    anatomy = Anatomy.of(model)
    q, stream = _kept(anatomy, rotation, hidden), stream_of(anatomy)

    def project(_: nn.Module, args: object, output: Tensor) -> Tensor:
        exact = torch.float32 if output.device.type == "mps" else torch.float64
        kept = q.to(output.device, exact)
        return (output.to(exact) @ kept @ kept.T).to(output.dtype)

    writers = [model.get_input_embeddings()]
    for i in range(anatomy.layers):
        block = model.get_submodule(f"{anatomy.family.layers}.{i}")
        written = (name for name, _ in block.named_parameters() if name.removesuffix(".weight") in stream.writes)
        writers += [block.get_submodule(name.rpartition(".")[0]) for name in written]  # experts: all of them together
    handles = [module.register_forward_hook(project) for module in writers]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _compare(model: PreTrainedModel, small: PreTrainedModel, rotation: Rotation) -> None:
    """Refuse a sliced model that does not compute what the projected one does: the table was wrong then."""
    if not rotation.probe.numel():
        return
    probe, training = rotation.probe.to(next(model.parameters()).device), model.training
    try:
        with projected(model.eval(), rotation, small.config.hidden_size):
            expected = model(input_ids=probe, use_cache=False).logits[0].double()
    finally:
        model.train(training)
    found = small.eval()(input_ids=probe, use_cache=False).logits[0].double()
    # The median over tokens: where experts are chosen, rounding may send a token to another one.
    error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median().item()
    if not error < (1e-2 if model.dtype in (torch.float32, torch.float64) else 0.2):
        raise ValueError(
            f"The sliced {type(model).__name__} does not compute what the projected one does (relative error of the "
            f"logits {error:.2g}): this model is not wired as the row {model.config.model_type!r} of "
            "amp_tutorial.slicing.STREAMS says."
        )
