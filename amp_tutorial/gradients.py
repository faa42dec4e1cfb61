"""Scores from the gradients of the loss: one backward pass over the calibration text."""

from collections.abc import Iterable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from .criteria import Gradient
from .families import Anatomy, gradient_of
from .sums import Batch, Sums, weight_of_positions


def by_gradients(
    anatomy: Anatomy, batches: Iterable[Batch], criterion: Gradient, average: str
) -> tuple[list[Tensor], list[Tensor], int, int, str]:
    """Scores from one backward pass over all batches; the model's own gradients and settings are put back."""
    model, sums = anatomy.model, Sums(anatomy, ())
    block = model.get_submodule(anatomy.family.layers)
    before = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    training = model.training
    model.eval()
    try:
        for p, _, _ in before:
            p.grad = None
            p.requires_grad_(False)
        for p in block.parameters():
            p.requires_grad_(p.is_floating_point())
        for batch in batches:
            sums.begin(batch, average)
            _weighted_loss(model, batch, average).backward()
        sums.check()
        layers = range(anatomy.layers)
        heads = [
            criterion(anatomy.head_weights(i), anatomy.head_weights(i, gradient_of, 1 / anatomy.group_size))
            for i in layers
        ]
        neurons = [criterion(anatomy.neuron_weights(i), anatomy.neuron_weights(i, gradient_of)) for i in layers]
        heads, neurons = ([scores.cpu() / sums.weight for scores in part] for part in (heads, neurons))
    finally:
        for p, grad, wanted in before:
            p.grad = grad
            p.requires_grad_(wanted)
        model.train(training)
    if not all(bool(scores.isfinite().all()) for scores in (*heads, *neurons)):
        raise ValueError("Some gradients are NaN or infinite; score in float32 or bfloat16, and check the checkpoint.")
    return heads, neurons, sums.tokens, sums.prompts, f"{sums.digest:064x}"


def _weighted_loss(model: PreTrainedModel, batch: Batch, average: str) -> Float[Tensor, ""]:
    """Sum over tokens of what predicting the next one costs, in nats, each weighted as `average` says."""
    device = next(model.parameters()).device
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, :-1].float()
    nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    weight = weight_of_positions(mask.bool(), average).to(nll)[:, 1:] * mask[:, :-1]
    return (nll * weight).sum()
