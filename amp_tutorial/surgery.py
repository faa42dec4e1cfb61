"""Carry a plan out: mask (zero what goes, keep the shapes) or cut (a smaller stock model). Both compute the same."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .families import Anatomy
from .plans import Plan

Cut = tuple[int, Int[Tensor, " kept"]]  # (axis, indices to keep)


def _fits(anatomy: Anatomy, plan: Plan) -> None:
    there = (anatomy.layers, anatomy.heads, anatomy.groups, anatomy.neurons)
    asked = (len(plan.heads), plan.of_heads, plan.of_groups, plan.of_neurons)
    if there != asked:
        raise ValueError(
            f"The plan is for (layers, heads, KV groups, neurons) = {asked}, the model has {there}; plan anew for it."
        )
    widths = {(len(plan.heads[i]), len(plan.groups(i)), len(plan.neurons[i])) for i in range(anatomy.layers)}
    if len(widths) > 1 or 0 in min(widths):
        raise ValueError(
            "The plan keeps different widths in different layers, or none: no stock configuration says so."
        )


@contextmanager
def masked(model: PreTrainedModel, plan: Plan) -> Iterator[PreTrainedModel]:
    """Silence what the plan removes while the context lasts, without touching a weight.

    A head's or neuron's only way out is its columns of an output projection, so its input there is set to zero.
    """
    anatomy = Anatomy.of(model)
    _fits(anatomy, plan)
    handles = []

    def silence(module: nn.Linear, kept: Tensor) -> None:
        mask = torch.zeros(module.in_features, dtype=module.weight.dtype, device=module.weight.device)
        mask[kept.to(mask.device)] = 1
        handles.append(module.register_forward_pre_hook(lambda _, args: (args[0] * mask, *args[1:])))

    try:
        for i in range(anatomy.layers):
            layer = anatomy.layer(i)
            silence(layer.output, _features(plan.heads[i], anatomy.head_dim))
            silence(layer.neurons_out, torch.tensor(plan.neurons[i]))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def prune(model: PreTrainedModel, plan: Plan, inplace: bool = False) -> PreTrainedModel:
    """Return a smaller stock model that computes what the masked one does.

    Args:
        inplace: give up the dense model's weights one by one as they are cut; the dense model is unusable afterwards.

    Raises:
        ValueError: the plan was made for another shape, or no stock configuration can say the result.
    """
    anatomy = Anatomy.of(model)
    _fits(anatomy, plan)
    config = smaller_config(anatomy, plan)
    cuts = _cuts(anatomy, plan)
    source = dict(model.state_dict())
    tied = model.config.tie_word_embeddings
    head = "lm_head.weight"
    if tied:
        source.pop(head, None)
    weights = {}
    for name in list(source):
        tensor = source.pop(name).detach()
        for axis, kept in cuts.get(name, []):
            tensor = tensor.index_select(axis, kept.to(tensor.device))
        weights[name] = tensor if name in cuts or inplace else tensor.clone()
        if inplace:
            model.get_parameter(name).data = torch.empty(0, dtype=tensor.dtype) if name in cuts else tensor
    with torch.device("meta"):
        small: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    missing, unexpected = small.load_state_dict(weights, strict=False, assign=True)
    small.tie_weights()
    lost = [name for name in missing if not (tied and name == head)]
    if lost or unexpected:
        raise ValueError(f"{type(small).__name__} does not hold the same weights: {lost + list(unexpected)}.")
    _rebuild_buffers(small, config, next(model.parameters()).device)
    small.generation_config = copy.deepcopy(model.generation_config)
    for parameter, dense in zip(small.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(dense.requires_grad)
    return small.train(model.training)


def smaller_config(anatomy: Anatomy, plan: Plan) -> PreTrainedConfig:
    """The configuration of the cut model: same family where it can say the head count, else the equal architecture."""
    heads, groups, neurons = len(plan.heads[0]), len(plan.groups(0)), len(plan.neurons[0])
    settings = anatomy.model.config.to_dict() | {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": anatomy.head_dim,  # without it a reload would guess hidden / heads, wrongly
        "intermediate_size": neurons,
    }
    family = anatomy.family
    kind = settings.pop("model_type")
    if not family.any_head_count and anatomy.hidden % heads:
        if family.equal_type is None or settings.get("attention_bias") or settings.get("mlp_bias"):
            raise ValueError(
                f"A {kind} configuration takes only head counts that divide the hidden size {anatomy.hidden}, not "
                f"{heads}, and no equal architecture is known for this one; choose another head count."
            )
        kind = family.equal_type
        settings |= dict(family.equal_settings)
    for stale in ("architectures", "transformers_version", "_name_or_path"):
        settings.pop(stale, None)
    config = AutoConfig.for_model(kind, **settings)
    config._attn_implementation = anatomy.model.config._attn_implementation
    return config


def _features(heads: list[int], head_dim: int) -> Int[Tensor, " features"]:
    """Rows (of query) or columns (of output) that belong to these heads."""
    return (torch.tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _cuts(anatomy: Anatomy, plan: Plan) -> dict[str, list[Cut]]:
    """For every tensor that shrinks: the axis and the indices that stay."""
    f, cuts = anatomy.family, {}
    for i in range(anatomy.layers):
        prefix = f"{f.layers}.{i}."
        queries = _features(plan.heads[i], anatomy.head_dim)
        shared = _features(plan.groups(i), anatomy.head_dim)
        neurons = torch.tensor(plan.neurons[i])
        rows = {f.query: queries, f.key: shared, f.value: shared} | dict.fromkeys(f.neurons_in, neurons)
        for name, kept in rows.items():
            cuts[f"{prefix}{name}.weight"] = cuts[f"{prefix}{name}.bias"] = [(0, kept)]
        cuts[f"{prefix}{f.output}.weight"] = [(1, queries)]  # heads live in the columns of the output projection
        cuts[f"{prefix}{f.neurons_out}.weight"] = [(1, neurons)]
    return cuts


def _rebuild_buffers(small: PreTrainedModel, config: PreTrainedConfig, device: torch.device) -> None:
    """Fill what no checkpoint stores: rotary frequencies, computed anew from the configuration."""
    for module in small.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            fresh = type(module)(config=config)
            for name, buffer in fresh.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(device), persistent=False)
                if hasattr(module, f"original_{name}"):
                    setattr(module, f"original_{name}", getattr(fresh, f"original_{name}", buffer).to(device))
