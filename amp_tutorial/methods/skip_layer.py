"""Run a model without one of its decoder layers, and without running those before it again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core.anatomy import Anatomy
from ..core.sums import Batch, model_inputs
from .whole_layers import pass_by


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
