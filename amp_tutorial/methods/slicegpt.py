"""SliceGPT with one rotation for each norm, masked: a comparison for the leaderboard that no stock model can hold.

Ashkboos et al., ICLR 2024, arXiv 2401.15024: the stream in front of every norm k is turned to the principal directions
Q_k of what that norm gives, measured in the model sliced so far, and loses the last ones. Between two norms stands
Q_kᵀ Q_{k+1}, a matrix of its own on the skip connection. Here the stream is projected on the directions that stay,
which computes the same: x ← x Q_k Q_kᵀ at each norm. Written from the paper's equations, not from its code; its
re-alignment of the embedding and its data are not reproduced.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.sums import Batch, held
from .hidden_size import sliced_parameters
from .layerwise import Walk
from .rotation import Moments, Rotation, second_moments

SCALED = ("residual_multiplier", "embedding_multiplier")  # settings by which what is written is multiplied


def kept_parameters(anatomy: Anatomy, hidden: int) -> int:
    """Parameters with that many directions at every norm: the sliced matrices, and one more at each skip connection."""
    return sliced_parameters(anatomy, hidden) + 2 * anatomy.layers * hidden**2


def hidden_for(anatomy: Anatomy, ratio: float) -> int:
    """The largest number of directions that removes this share of all parameters, matrices between norms counted.

    Raises:
        ValueError: none does.
    """
    most = (1 - ratio) * anatomy.model.num_parameters()
    found = [hidden for hidden in range(1, anatomy.hidden + 1) if kept_parameters(anatomy, hidden) <= most]
    if not found:
        raise ValueError(f"No number of directions removes {ratio:.0%} of all parameters; ask for less.")
    return found[-1]


@torch.no_grad()
def sliced_by_layer(model: PreTrainedModel, batches: Sequence[Batch], hidden: int) -> PreTrainedModel:
    """A copy of the model that keeps `hidden` directions at every norm, each norm its own.

    Raises:
        ValueError: a family without RMS norms, with experts, or with factors on what is written.
    """
    small = copy.deepcopy(model).eval()
    anatomy, batches = Anatomy.of(small), held(model, batches)
    if anatomy.family.no_neurons or any(getattr(small.config, name, 1) != 1 for name in SCALED):
        raise ValueError(
            f"SliceGPT layer by layer cannot follow a {small.config.model_type}: its stream is not a plain sum of what "
            "one attention and one MLP write."
        )
    named = Moments(anatomy)  # it knows the norms
    norms = [small.get_submodule(name) for i in range(anatomy.layers) for name in named.norms(i)]
    project, walk = _Project(anatomy, norms), Walk(anatomy, batches)
    for k, norm in enumerate(norms):
        i, second = divmod(k, 2)
        moments = torch.zeros(anatomy.hidden, anatomy.hidden, dtype=torch.float64)
        for b, batch in enumerate(batches):
            stream = walk.hidden[b]
            if second or k == 0:
                with walk.only(i):
                    stream = walk.until(b, norm)[1]
            moments += second_moments(stream[batch["attention_mask"].bool()], small.config.rms_norm_eps)
        q = Rotation.of(moments, 0, torch.empty(1, 0, dtype=torch.long)).vectors[:, :hidden]
        project.at[k] = (q @ q.T).to(small.dtype)
        if second:
            with walk.only(i, go_on=True):
                for b in range(len(batches)):
                    walk.step(b)
        elif k:  # the layer before wrote this stream when its projection was not known
            walk.hidden = [stream @ project.at[k] for stream in walk.hidden]
    return small


class _Project:
    """Hooks that project the stream where norm k = 0, 1, … reads it: behind the embedding, and behind both halves."""

    def __init__(self, anatomy: Anatomy, norms: Sequence[nn.Module]) -> None:
        self.at: dict[int, Tensor] = {}
        self.stream = torch.empty(0)
        anatomy.model.get_input_embeddings().register_forward_hook(lambda _, args, e: self._embedded(e))
        for i in range(anatomy.layers):
            layer = anatomy.layer(i)
            norms[2 * i].register_forward_pre_hook(lambda _, args: self._enters(args[0]))
            layer.output.register_forward_hook(self._written(2 * i + 1))
            layer.neurons_out.register_forward_hook(self._written(2 * i + 2))

    def _embedded(self, embedded: Tensor) -> Tensor:
        return embedded @ self.at[0] if 0 in self.at else embedded

    def _enters(self, stream: Tensor) -> None:
        self.stream = stream

    def _written(self, k: int) -> Any:
        def hook(_: nn.Module, args: object, output: Tensor) -> Tensor:
            """Write what turns the stream x into the projection of x + output."""
            before = self.stream
            self.stream = (before + output) @ self.at[k] if k in self.at else before + output
            return self.stream - before

        return hook
