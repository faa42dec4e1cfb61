"""First-order Taylor: scores from the gradients of the loss, in one backward pass over the calibration text."""

from collections.abc import Iterable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..core.anatomy import Anatomy
from ..core.criteria import CRITERIA, Criterion
from ..core.sums import Batch, Sums, model_inputs, weight_of_positions


def taylor(
    w: Float[Tensor, "structures weights"], gradient: Float[Tensor, "structures weights"]
) -> Float[Tensor, " structures"]:
    """First-order Taylor: Σ |w · ∂L/∂w| over all weights of a structure, L the mean loss over the calibration tokens.

    Source: LLM-Pruner (arXiv 2305.11627), `param_first`, its default with sums over groups [not run here]. It needs a
    backward pass, and the gradients of all decoder layers at once.
    """
    return (w.float() * gradient.float()).abs().sum(1)


def _gradient(module: nn.Module) -> Float[Tensor, "out in"]:
    """The gradient of a weight as (out, in) features, as `weight_of` gives the weight."""
    gradient: Tensor = module.weight.grad  # type: ignore[assignment]
    return gradient.T if isinstance(module, Conv1D) else gradient


def by_gradients(anatomy: Anatomy, batches: Iterable[Batch], average: str) -> tuple[list[Tensor], list[Tensor], Sums]:
    """Scores from one backward pass over all batches; the model's own gradients and settings are put back.

    Returns:
        The scores of the heads and of the neurons of each layer, and the sums that counted the tokens.

    Raises:
        ValueError: no tokens, or gradients that are not finite.
    """
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
            taylor(anatomy.head_weights(i), anatomy.head_weights(i, _gradient, 1 / anatomy.group_size)) for i in layers
        ]
        neurons = [taylor(anatomy.neuron_weights(i), anatomy.neuron_weights(i, _gradient)) for i in layers]
        heads, neurons = ([scores.cpu() / sums.weight for scores in part] for part in (heads, neurons))
    finally:
        for p, grad, wanted in before:
            p.grad = grad
            p.requires_grad_(wanted)
        model.train(training)
    if not all(bool(scores.isfinite().all()) for scores in (*heads, *neurons)):
        raise ValueError("Some gradients are NaN or infinite; score in float32 or bfloat16, and check the checkpoint.")
    return heads, neurons, sums


def _weighted_loss(model: PreTrainedModel, batch: Batch, average: str) -> Float[Tensor, ""]:
    """Sum over tokens of what predicting the next one costs, in nats, each weighted as `average` says."""
    inputs = model_inputs(model, batch)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    logits = model(**inputs).logits[:, :-1].float()
    nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    weight = weight_of_positions(mask.bool(), average).to(nll)[:, 1:] * mask[:, :-1]
    return (nll * weight).sum()


CRITERIA["taylor"] = Criterion(collect=by_gradients, comparable=True)
