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
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..core.anatomy import Anatomy, exact
from ..core.checkpoint import without_weights
from ..core.families import Stream
from ..core.plans import a_ratio, whole_plan
from ..core.surgery import Pruned, fill_buffers
from .projections import Role, roles, stream_of
from .rotation import Rotation, rotation, second_moments

__all__ = [
    "Rotation",
    "hidden_at", "projected", "roles", "rotation", "second_moments", "slice_hidden", "sliced_parameters", "stream_of",
]  # fmt: skip


def sliced_parameters(anatomy: Anatomy, hidden: int) -> int:
    """Parameters of the sliced model; its embedding and head are two matrices, also where they were tied."""
    named = dict(anatomy.model.named_parameters(remove_duplicate=False))
    kept = {name: role.part == "apart" for name, role in roles(anatomy).items()}
    return sum(p.numel() if kept[name] else p.numel() // anatomy.hidden * hidden for name, p in named.items())


def hidden_at(anatomy: Anatomy, pruning_ratio: float, align: int = 1) -> int:
    """The largest hidden size, a multiple of `align`, that removes this share of the dense model's parameters.

    Raises:
        ValueError: none does.
    """
    most = (1 - a_ratio(pruning_ratio)) * anatomy.model.num_parameters()
    for hidden in range(anatomy.hidden // align * align, 0, -align):
        if sliced_parameters(anatomy, hidden) <= most and _type(anatomy, hidden):
            return hidden
    raise ValueError(
        f"No hidden size removes {pruning_ratio:.0%} of all parameters; ask for less, or for a smaller align."
    )


def _type(anatomy: Anatomy, hidden: int) -> str:
    """The model type that runs with this hidden size and these heads; "" if none does."""
    if hidden % stream_of(anatomy).multiple:
        return ""
    fits = anatomy.family.any_head_count or hidden % anatomy.heads == 0
    return anatomy.model.config.model_type if fits else anatomy.equal_type


def sliced_config(anatomy: Anatomy, hidden: int) -> PreTrainedConfig:
    """The configuration with this hidden size, with an output head of its own.

    Raises:
        ValueError: no stock one says it.
    """
    dense = anatomy.model.config
    if not isinstance(hidden, int) or not 1 <= hidden <= anatomy.hidden:
        raise ValueError(f"hidden_size={hidden!r} must be a whole number from 1 to the hidden size, {anatomy.hidden}.")
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
def slice_hidden(model: PreTrainedModel, rotation: Rotation, hidden_size: int) -> Pruned:
    """A stock model of this hidden size: the first directions of the rotation stay, the rest of the stream goes.

    It has an output head of its own also where the dense model ties it to the embedding: the last norm's weight is
    folded into the head alone. Matrices are turned in float64 and cast back. Before it is returned, its logits on the
    rotation's few probe tokens are compared with those of the `projected` model; in half precision loosely.

    Args:
        model: it is not changed. It may have lost heads, neurons or layers before, and the result may lose some.
        rotation: of this model, or of the one it was cut from.
        hidden_size: the new one, 1 to the old one.

    Raises:
        ValueError: a family whose hidden size cannot be sliced, a hidden size that no stock configuration says, a
            rotation of another size, or a model that computes something else than the table says.
    """
    anatomy = Anatomy.of(model)
    stream, part = stream_of(anatomy), roles(anatomy)
    config = sliced_config(anatomy, hidden_size)
    q = kept_directions(anatomy, rotation, hidden_size)
    dense = dict(model.named_parameters(remove_duplicate=False))
    weights = {name: sliced(name, part, q, stream, dense) for name in dense}
    small = without_weights(config, model.dtype)
    small.load_state_dict(weights, assign=True)
    fill_buffers(small, model, config)
    if stream.root:
        small.get_input_embeddings().get_buffer(stream.root).fill_(hidden_size**0.5)
    small.generation_config = copy.deepcopy(model.generation_config)
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(dense[name].requires_grad)
    _compare(model, small, rotation)
    return Pruned(small.train(model.training), whole_plan(anatomy), rotation)


def kept_directions(anatomy: Anatomy, rotation: Rotation, hidden: int) -> Float[Tensor, "hidden kept"]:
    if len(rotation.vectors) != anatomy.hidden:
        raise ValueError(
            f"The rotation is of a hidden size of {len(rotation.vectors)}, the model has {anatomy.hidden}; measure it "
            "anew with rotation(model, batches)."
        )
    return rotation.vectors[:, :hidden].double()


def sliced(
    name: str, part: dict[str, Role], q: Float[Tensor, "hidden kept"], stream: Stream, dense: dict[str, Tensor]
) -> Tensor:
    """One tensor of the sliced model, by the equations at the top; `dense` holds it and the norm that it reads."""
    old, role = dense[name], part[name]
    s = (q.shape[1] / q.shape[0]) ** 0.5
    if role.part == "apart":
        return old.detach().clone()
    weight = torch.full(q.shape[1:], 1 / s - stream.offset, dtype=old.dtype, device=old.device)
    if role.part == "norm":
        return weight
    w = exact(old)
    q = q.to(w.device)
    if role.part == "reads":
        folded = exact(dense[f"{role.norm}.weight"]) + stream.offset
        rounding = 1 / s / (weight[0].item() + stream.offset)  # of the new norm weight, in half precision
        turned = w * folded
        turned *= rounding
        new = turned @ q
    elif role.part == "writes":
        new = s * q.T @ w
    else:
        new = s * w @ q
    if role.part == "rows" and stream.root:  # the embedding multiplies by sqrt(hidden_size), rounded to its dtype
        before, after = torch.tensor([size**0.5 for size in q.shape]).to(old.dtype).tolist()
        new *= before / after
    return new.to(old.device, old.dtype)


class Turn:
    """How a model's tensors and its residual stream are sliced.

    Raises:
        ValueError: what `slice_hidden` refuses.
    """

    def __init__(self, anatomy: Anatomy, rotation: Rotation, hidden: int) -> None:
        sliced_config(anatomy, hidden)
        self.rotation, self.hidden = rotation, hidden
        self.stream, self.part = stream_of(anatomy), roles(anatomy)
        self.q = kept_directions(anatomy, rotation, hidden)

    @property
    def directions(self) -> Float[Tensor, "hidden kept"]:
        """The sliced stream is the dense one times this: s Q."""
        return (self.q.shape[1] / self.q.shape[0]) ** 0.5 * self.q

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors sliced; each norm has to be among them with the matrices that read it."""
        return {name: sliced(name, self.part, self.q, self.stream, tensors) for name in tensors}


@contextmanager
def projected(model: PreTrainedModel, rotation: Rotation, hidden: int) -> Iterator[PreTrainedModel]:
    """Project all that is written to the residual stream on the kept directions, while the context lasts.

    x ← x Q Qᵀ behind the embedding and behind both halves of every layer; no weight is touched. The sliced model
    computes the same in fewer dimensions.

    Raises:
        ValueError: a family whose hidden size cannot be sliced, or a rotation of another size.
    """
    anatomy = Anatomy.of(model)
    q, stream = kept_directions(anatomy, rotation, hidden), stream_of(anatomy)

    def project(_: nn.Module, args: object, output: Tensor) -> Tensor:
        full = torch.float32 if output.device.type == "mps" else torch.float64
        kept = q.to(output.device, full)
        return (output.to(full) @ kept @ kept.T).to(output.dtype)

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
            expected = exact(model(input_ids=probe, use_cache=False).logits[0])
    finally:
        model.train(training)
    found = exact(small.eval()(input_ids=probe, use_cache=False).logits[0])
    # The median over tokens: where experts are chosen, rounding may send a token to another one.
    error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median().item()
    if not error < (1e-2 if model.dtype in (torch.float32, torch.float64) else 0.2):
        raise ValueError(
            f"The sliced {type(model).__name__} does not compute what the projected one does (relative error of the "
            f"logits {error:.2g}): this model is not wired as the row {model.config.model_type!r} of "
            "amp_tutorial.FAMILIES says."
        )
