"""The principal directions of the residual stream: what slicing turns it to."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.sums import Batch, entering
from .layerwise import run_decoder
from .projections import stream_of

PROBE = 16  # tokens on which each sliced model is compared with the projected one


@dataclass(frozen=True)
class Rotation:
    """An orthonormal basis of the residual stream, the direction that carries most first."""

    vectors: Float[Tensor, "hidden hidden"]  # float64; a column is a direction
    energy: Float[Tensor, " hidden"]  # share of all (weighted) squares that the first 1, 2, … directions carry
    tokens: int  # real tokens seen; 0 where the basis was not measured
    probe: Int[Tensor, "1 tokens"]  # a few of them, on which sliced models are checked

    @classmethod
    def of(cls, moments: Float[Tensor, "hidden hidden"], tokens: int, probe: Int[Tensor, "1 tokens"]) -> "Rotation":
        """The eigenvectors of a sum of `second_moments`, largest eigenvalue first."""
        values, vectors = torch.linalg.eigh(moments.double())
        energy = values.flip(0).clamp(min=0).cumsum(0)
        return cls(vectors.flip(1), energy / energy[-1], tokens, probe)


@torch.no_grad()
def second_moments(x: Float[Tensor, "*positions hidden"], eps: float) -> Float[Tensor, "hidden hidden"]:
    """Σ n nᵀ over positions, with n = x / sqrt(mean(x²) + eps): what an RMS norm gives before its weight; float64."""
    n = F.rms_norm(x.flatten(0, -2).float(), x.shape[-1:], eps=eps)
    return (n.T @ n).cpu().double()  # products in float32, sums of batches in float64


@torch.no_grad()
def rotation(model: PreTrainedModel, batches: Iterable[Batch], decay: float = 1.0) -> Rotation:
    """The principal directions of what all norms give (before their weights), summed over norms, in one pass.

        C = Σ over norms k = 1, 2, … and tokens of n nᵀ / k^decay,   Q = eigenvectors of C, largest eigenvalue first

    What is lost in front of an early norm goes through all that follows, so early norms weigh more. Of the decays 0, 1
    and 2, 1 lost least on calibration text kept apart (tiny-llama and tiny-llama-gqa, sliced without repair).

    Memory: a few (hidden, hidden) matrices in float64, whatever the number of layers or tokens. Where the layers do not
    fit in memory together, `prune_folder(…, hidden=…)` gathers the same sums layer by layer.

    Args:
        model: a causal language model of a family with a `stream`; it is not changed.
        batches: as in `score`. Positions with attention mask 0 do not count.
        decay: 0 weighs all norms alike; more gives later ones less.

    Raises:
        ValueError: a decay below 0, a family whose hidden size cannot be sliced, no tokens, or activations that are not
            finite.

    Warns:
        UserWarning: fewer tokens than the hidden size.
    """
    anatomy, training = Anatomy.of(model), model.training
    moments = Moments(anatomy, decay)
    model.eval()
    try:
        with moments.watching(name for i in range(anatomy.layers) for name in moments.norms(i)):
            for batch in entering(model, batches):
                moments.begin(batch)
                run_decoder(model, batch)
    finally:
        model.train(training)
    return moments.rotation()


class Moments:
    """The sum of `second_moments` over norms and tokens, on the way through a model."""

    def __init__(self, anatomy: Anatomy, decay: float = 1.0) -> None:
        if decay < 0:
            raise ValueError(f"decay={decay} must be at least 0, which weighs all norms alike.")
        self.anatomy, self.stream = anatomy, stream_of(anatomy)
        every = [name for i in range(anatomy.layers) for name in self.norms(i)]
        self.weights = {name: k**-decay for k, name in enumerate(every, start=1)}
        self.sum = torch.zeros(anatomy.hidden, anatomy.hidden, dtype=torch.float64)
        self.tokens, self.probe = 0, torch.empty(1, 0, dtype=torch.long)
        self._mask = torch.empty(0)

    def norms(self, i: int) -> list[str]:
        """The norms that read the stream in layer i; behind the last layer also the last norm."""
        inside = [f"{self.anatomy.family.layers}.{i}.{norm}" for norm, _ in self.stream.reads]
        return [*inside, *([self.stream.last] if i == self.anatomy.layers - 1 else [])]

    def begin(self, batch: Batch, again: bool = False) -> None:
        """Say which batch runs next, and count its tokens unless it runs again, for another layer."""
        self._mask = batch["attention_mask"].bool()
        if not again:
            if not self.tokens:
                self.probe = batch["input_ids"][0][self._mask[0]][None, :PROBE].cpu()
            self.tokens += int(self._mask.sum())

    @contextmanager
    def watching(self, norms: Iterable[str]) -> Iterator[None]:
        """While it lasts, what enters these norms is added."""
        eps = self.anatomy.model.config.rms_norm_eps

        def watch(name: str) -> Callable[..., None]:
            def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                self.sum += self.weights[name] * second_moments(args[0][self._mask.to(args[0].device)], eps)

            return add

        handles = [self.anatomy.model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def rotation(self) -> Rotation:
        """What `rotation` returns, refuses and warns of."""
        if self.tokens == 0:
            raise ValueError("The calibration batches hold no tokens: every attention mask is 0, or there is no batch.")
        if not self.sum.isfinite().all():
            raise ValueError(
                "Some norm's inputs are NaN or infinite; load in float32 or bfloat16, check the checkpoint."
            )
        if self.tokens < self.anatomy.hidden:
            warnings.warn(
                f"{self.tokens} calibration tokens for a hidden size of {self.anatomy.hidden}: the order of directions "
                "that no token uses is arbitrary; give more text.",
                stacklevel=4,
            )
        return Rotation.of(self.sum, self.tokens, self.probe)
