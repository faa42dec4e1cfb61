"""Layers that go whole: what the smaller configuration says, how tensors are renamed, and who passes a layer by."""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from ..core.anatomy import Anatomy
from ..core.families import EACH_LAYER
from ..core.plans import Plan
from ..core.surgery import DEPTH, Depth, cuts_of


def settings(config: PreTrainedConfig, kept: list[int]) -> dict[str, Any]:
    """What a configuration says layer by layer, or counts in layers, when only these are left and are renumbered.

    Raises:
        ValueError: something in a layer is worked out from its depth, which changes.
    """
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "With scale_attn_by_inverse_layer_idx every layer scales attention by its depth, which a configuration "
            "without some layers cannot say; keep all layers."
        )
    found: dict[str, Any] = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(kept)}
    for name in EACH_LAYER:
        if values := getattr(config, name, None):
            found[name] = [values[i] for i in kept]
    if hasattr(config, "max_window_layers"):  # the layers before this one attend without a window
        found["max_window_layers"] = sum(i < config.max_window_layers for i in kept)
    if hasattr(config, "mlp_only_layers"):  # without experts: these, and those that the step passes over
        step, plain = config.decoder_sparse_step, config.mlp_only_layers
        found["mlp_only_layers"] = [new for new, i in enumerate(kept) if i in plain or (i + 1) % step]
        found["decoder_sparse_step"] = 1
    return found


def renumbered(anatomy: Anatomy, plan: Plan) -> Callable[[str], str]:
    """What a module or tensor of the dense model is called in the cut one; "" if its layer goes."""
    inside = re.compile(rf"{re.escape(anatomy.family.layers)}\.(\d+)(?=\.|$)")
    places = {i: new for new, i in enumerate(plan.kept_layers)}

    def name_of(name: str) -> str:
        found = inside.match(name)
        if not found:
            return name
        new = places.get(int(found[1]))
        return "" if new is None else f"{anatomy.family.layers}.{new}{name[found.end() :]}"

    return name_of


def cut_layer(anatomy: Anatomy, plan: Plan, i: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stays of these tensors of layer i, by its names in the cut model; they come by those in the dense one."""
    cuts, names = cuts_of(anatomy, plan, i), renumbered(anatomy, plan)
    found = {}
    for name, tensor in tensors.items():
        axis, kept = cuts.get(name, (0, None))
        found[names(name)] = tensor if kept is None else tensor.index_select(axis, kept.to(tensor.device))
    return found


def pass_by(layer: nn.Module) -> RemovableHandle:
    """Let a decoder layer hand on the hidden states that it is given, alone or in a tuple, as its family does."""

    def identity(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    return layer.register_forward_hook(identity, with_kwargs=True)


DEPTH[:] = [Depth(settings, renumbered, pass_by)]
