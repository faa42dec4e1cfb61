"""Walk through a decoder layer by layer, over all calibration batches: only one hidden state a token is held.

The model's own forward runs, with every layer but one skipped. So masks, positions and whatever else a family hands its
layers come from its own code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy, exact
from ..core.sums import Batch, model_inputs
from .whole_layers import replaced


@torch.no_grad()
def run_decoder(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "batch length hidden"]:
    """Run all but the output head, and return what it would read."""
    last: Tensor = model.base_model(**model_inputs(model, batch))[0]
    return last


@contextmanager
def weights_change() -> Iterator[None]:
    """Weights change while this lasts, so `torch.autocast` around it must not keep them as it cast them first."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


class _Reached(Exception):  # noqa: N818, no error
    """All that was asked for has been seen."""


class Walk:
    """What enters the next layer, for every batch: one stream through the model, and another for a pruned one.

    Memory: hidden numbers a token of the calibration batches, padding included, in the model's dtype.
    """

    def __init__(
        self, anatomy: Anatomy, batches: Sequence[Batch], turn: Float[Tensor, "hidden kept"] | None = None
    ) -> None:
        self.anatomy, self.model, self.batches = anatomy, anatomy.model, batches
        self.turn = turn  # of a sliced stream: what it is of the dense one
        self.layers: list[nn.Module] = list(anatomy.model.get_submodule(anatomy.family.layers).children())
        # (batch, length, hidden) of each batch; before the first layer it is not asked
        self.hidden: list[Tensor] = [torch.empty(0)] * len(batches)
        self.in_tuple = False  # some families' layers return a tuple; the first one run tells
        self._batch = 0
        self._entered = self._left = torch.empty(0)

    @contextmanager
    def only(self, i: int | None, block: nn.Module | None = None, go_on: bool = False) -> Iterator[None]:
        """While it lasts the model runs layer i alone, whoever runs it: batch by batch in order, or by `step`.

        Args:
            i: with None no layer runs, only what comes after the last.
            block: a changed copy of the layer, which runs in its place. The model goes on with what it had if the
                stream of the copy is a sliced one.
            go_on: what leaves the layer takes the place of what entered it. A batch may be run only once then.
        """
        self._batch = 0
        layer = None if i is None else self.layers[i]
        forward: Any = getattr(
            layer if block is None else block, "forward", None
        )  # accelerate's, if it has hooks there

        def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
            given = self.hidden[self._batch] if i is None else hidden_states
            return (given,) if self.in_tuple else given

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._entered = self.hidden[self._batch] if i else self.turned(hidden_states)
            output = forward(self._entered, *args, **kwargs)
            self.in_tuple = isinstance(output, tuple)
            self._left = output[0] if self.in_tuple else output
            self._entered = self._entered.to(self._left.device)  # where layers lie on several, hooks move what enters
            if go_on:
                self.hidden[self._batch] = self._left
            self._batch += 1
            if self.turn is not None:
                return (hidden_states,) if self.in_tuple else hidden_states
            return output

        with replaced({other: run if other is layer else skip for other in self.layers}):
            yield

    def turned(self, hidden: Float[Tensor, "*positions hidden"]) -> Float[Tensor, "*positions kept"]:
        """What a sliced stream is of this; all of it, where nothing is sliced."""
        if self.turn is None:
            return hidden
        full = exact(hidden)
        return (full @ self.turn.to(full)).to(hidden)

    def step(self, b: int) -> tuple[Float[Tensor, "batch length hidden"], Float[Tensor, "batch length hidden"]]:
        """What enters and what leaves the layer for batch b."""
        self._batch = b
        run_decoder(self.model, self.batches[b])
        return self._entered, self._left

    def until(
        self, b: int, module: nn.Module, *before: nn.Module
    ) -> tuple[Float[Tensor, "batch length hidden"], Tensor, list[Tensor]]:
        """What enters the layer for batch b, what enters a module in it, and what leaves others; no further."""
        entered: list[Tensor] = []
        left: dict[nn.Module, Tensor] = {}

        def stop() -> None:
            if entered and len(left) == len(before):
                raise _Reached

        def enters(_: nn.Module, args: tuple[Any, ...]) -> None:
            entered.append(args[0])
            stop()

        def leaves(other: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
            left[other] = output
            stop()

        handles = [module.register_forward_pre_hook(enters), *(m.register_forward_hook(leaves) for m in before)]
        self._batch = b
        try:
            run_decoder(self.model, self.batches[b])
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return self._entered, entered[0], [left[other] for other in before]

    def last(self, b: int) -> Float[Tensor, "batch length hidden"]:
        """What the last norm makes of `hidden`, for the output head."""
        with self.only(None):
            self._batch = b
            return run_decoder(self.model, self.batches[b])
