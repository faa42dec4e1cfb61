"""Layers that go whole: what the smaller configuration says, what tensors are called, and running without one."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from ..core.anatomy import Anatomy
from ..core.families import EACH_LAYER
from ..core.plans import Plan
from ..core.sums import Batch, model_inputs
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
    if hasattr(config, "attention_types"):  # GPT-Neo: kinds of layers, and how often they follow each other
        found["attention_types"] = [[[config.attention_layers[i]], 1] for i in kept]
        found["attention_layers"] = [config.attention_layers[i] for i in kept]
    if hasattr(config, "first_k_dense_replace"):  # the layers before this one have no experts
        found["first_k_dense_replace"] = sum(i < config.first_k_dense_replace for i in kept)
    if hasattr(config, "moe_layer_start_index"):  # ERNIE: those with experts lie between two, in steps
        first, last, step = config.moe_layer_start_index, config.moe_layer_end_index, config.moe_layer_interval
        mixed = [new for new, i in enumerate(kept) if first <= i <= last and (i + 1) % step == 0] or [len(kept)]
        if mixed != list(range(mixed[0], mixed[-1] + 1)):
            raise ValueError(
                "Layers with experts would no longer follow each other, which a configuration of ERNIE cannot say; "
                "keep other layers."
            )
        found |= dict(moe_layer_start_index=mixed[0], moe_layer_end_index=mixed[-1], moe_layer_interval=1)
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


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Each module runs another forward while this lasts; then its own again, or what accelerate put in its place."""
    own = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            vars(module).pop("forward", None)  # the class's own is seen again
            if before is not None:
                module.forward = before


class Pass:
    """A batch's way through the layers present, kept so that without one layer only those after it run again."""

    def __init__(self, anatomy: Anatomy, batch: Batch, present: Sequence[int]) -> None:
        self.model, self.present = anatomy.model, present
        self.layers: list[nn.Module] = list(anatomy.model.get_submodule(anatomy.family.layers))
        self.batch, self.ids, self.mask = batch, batch["input_ids"], batch["attention_mask"].bool()
        self.before: dict[int, Tensor] = {}  # hidden states given to each layer (batch, length, hidden)
        self.after: dict[int, Tensor] = {}
        self.in_tuple = False  # some families' layers return a tuple
        handles = [pass_by(layer) for i, layer in enumerate(self.layers) if i not in present]
        try:
            handles += [self.layers[i].register_forward_hook(self._keep(i), with_kwargs=True) for i in present]
            self.final = self.run(self.model.base_model).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, i: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.in_tuple = isinstance(output, tuple)
            self.before[i] = args[0] if args else kwargs["hidden_states"]
            self.after[i] = output[0] if self.in_tuple else output

        return hook

    def run(self, model: nn.Module) -> Any:
        return model(**model_inputs(model, self.batch))

    @contextmanager
    def without(self, skipped: int) -> Iterator[None]:
        """While it lasts the layers up to this one give what came before it, and those that are gone are passed by."""

        def wrapped(hidden: Tensor) -> Any:
            return (hidden,) if self.in_tuple else hidden

        def known(*args: Any, **kwargs: Any) -> Any:
            return wrapped(self.before[skipped])

        def passed(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return wrapped(hidden_states)

        changed = {i: known if i <= skipped else passed for i in range(len(self.layers))}
        with replaced({self.layers[i]: changed[i] for i in changed if i <= skipped or i not in self.present}):
            yield

    @property
    def followed(self) -> Bool[Tensor, "batch length"]:
        """The tokens that are followed by a token."""
        return self.mask & torch.cat([self.mask[:, 1:], torch.zeros_like(self.mask[:, :1])], dim=1)

    def of_tokens(self, hidden: Float[Tensor, "batch length hidden"]) -> Float[Tensor, "tokens hidden"]:
        return hidden[self.followed.to(hidden.device)].float()
