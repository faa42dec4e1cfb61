"""Score every head and every neuron of a model in one forward pass."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from .criteria import Criterion, named
from .families import Anatomy

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scores:
    """One value per query head and per neuron, for every layer. Higher means more important."""

    heads: list[Float[Tensor, " heads"]]
    neurons: list[Float[Tensor, " neurons"]]
    criterion: str
    average: str
    tokens: int  # tokens averaged over, padding not counted
    prompts: int
    seed: int


class _Sums:
    """Weighted sums of per-token scores, in float64: independent of the batches' size and, to rounding, order."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.heads = torch.zeros(anatomy.layers, anatomy.heads, dtype=torch.float64)
        self.neurons = torch.zeros(anatomy.layers, anatomy.neurons, dtype=torch.float64)
        self.weights = 0.0
        self.batch_weight: Float[Tensor, "batch length"] | None = None  # set before each forward pass

    def add(self, total: Tensor, per_token: Float[Tensor, "tokens structures"]) -> None:
        assert self.batch_weight is not None
        weight = self.batch_weight.flatten().to(per_token.device)
        total += (weight[:, None] * per_token.double()).sum(0).cpu()


def score(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    criterion: str = "amp",
    average: str = "tokens",
    seed: int = 0,
) -> Scores:
    """Score heads and neurons by a criterion of `amp_tutorial.criteria.CRITERIA`.

    Args:
        model: a causal language model of a known family; it is not changed.
        batches: mappings with `input_ids` and `attention_mask` (batch, length), as a DataLoader gives them. Positions
            with attention mask 0 do not count. Read once; never held, so memory does not grow with their number.
        criterion: "amp", "magnitude", "random" or "reversed".
        average: "tokens" is the mean over all tokens. "prompts" is the mean over prompts of each prompt's mean, as
            in AMP's official code: there a short prompt weighs as much as a long one.
        seed: for "random" only.

    Raises:
        ValueError: unknown criterion or average, no tokens at all, or activations that are not finite.
    """
    chosen = named(criterion)
    if average not in ("tokens", "prompts"):
        raise ValueError(f"Unknown average {average!r}; choose 'tokens' or 'prompts'.")
    anatomy = Anatomy.of(model)
    if not chosen.sees_data:
        heads, neurons = _static(anatomy, chosen, seed)
        return Scores(heads, neurons, criterion, average, tokens=0, prompts=0, seed=seed)
    sums, tokens, prompts = _Sums(anatomy), 0, 0
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with _hooks(anatomy, chosen, sums), torch.no_grad():
            for batch in batches:
                mask = batch["attention_mask"].to(device).bool()
                sums.batch_weight = _weights(mask, average)
                sums.weights += float(sums.batch_weight.sum())
                # The decoder without its output head: scores need no logits.
                model.base_model(
                    input_ids=batch["input_ids"].to(device),
                    attention_mask=mask.long(),
                    position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),  # left padding shifts no position
                    use_cache=False,
                )
                tokens += int(mask.sum())
                prompts += int(mask.any(1).sum())
    finally:
        model.train(training)
    if tokens == 0:
        raise ValueError("The calibration batches hold no tokens: every attention mask is 0, or there is no batch.")
    _finite(sums)
    heads = list((sums.heads / sums.weights).float().unbind())
    neurons = list((sums.neurons / sums.weights).float().unbind())
    return Scores(heads, neurons, criterion, average, tokens, prompts, seed)


def _weights(mask: Tensor, average: str) -> Float[Tensor, "batch length"]:
    """What each position counts: 1 for a token and 0 for padding; 1/length where every prompt weighs the same."""
    weight = mask.double()
    return weight if average == "tokens" else weight / weight.sum(1, keepdim=True).clamp(min=1)


@contextmanager
def _hooks(anatomy: Anatomy, criterion: Criterion, sums: _Sums) -> Iterator[None]:
    """Watch the inputs of both output projections of every layer; leave no hook behind, whatever happens."""
    assert criterion.heads is not None and criterion.neurons is not None
    head_measure, neuron_measure = criterion.heads, criterion.neurons
    handles = []

    def watch(i: int) -> None:
        layer = anatomy.layer(i)

        def on_heads(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            h = args[0].float().reshape(-1, anatomy.heads, anatomy.head_dim)  # (tokens, heads, d_head)
            output = layer.output.weight.float().view(anatomy.hidden, anatomy.heads, anatomy.head_dim)
            sums.add(sums.heads[i], head_measure(h, output))

        def on_neurons(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            a = args[0].float().reshape(-1, anatomy.neurons)  # (tokens, neurons)
            sums.add(sums.neurons[i], neuron_measure(a, layer.neurons_out.weight.float()))

        handles.append(layer.output.register_forward_pre_hook(on_heads))
        handles.append(layer.neurons_out.register_forward_pre_hook(on_neurons))

    try:
        for i in range(anatomy.layers):
            watch(i)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _static(anatomy: Anatomy, criterion: Criterion, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Scores that need no data: from weights, or drawn from a seed."""
    if criterion.static is not None:
        heads = [criterion.static(anatomy.head_weights(i)) for i in range(anatomy.layers)]
        neurons = [criterion.static(anatomy.neuron_weights(i)) for i in range(anatomy.layers)]
        return [h.cpu() for h in heads], [n.cpu() for n in neurons]
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.rand(anatomy.heads, generator=generator) for _ in range(anatomy.layers)]
    neurons = [torch.rand(anatomy.neurons, generator=generator) for _ in range(anatomy.layers)]
    return heads, neurons


def _finite(sums: _Sums) -> None:
    for kind, total in (("attention heads", sums.heads), ("neurons", sums.neurons)):
        bad = (~total.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"The activations behind the {kind} of layer {bad[0]} are NaN or infinite; "
                "score in float32 or bfloat16, and check the checkpoint."
            )
