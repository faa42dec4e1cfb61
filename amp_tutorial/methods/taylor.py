"""What the gradients of the loss say: first-order Taylor scores, and how much it feels of what each layer writes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..core.anatomy import Anatomy, exact
from ..core.criteria import CRITERIA, Criterion
from ..core.sums import Batch, Sums, entering, model_inputs, weight_of_positions
from .projections import projection

PARTS = ("heads", "neurons")


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
    with _gradients_of(model, block.parameters()):
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
    if not all(bool(scores.isfinite().all()) for scores in (*heads, *neurons)):
        raise ValueError("Some gradients are NaN or infinite; score in float32 or bfloat16, and check the checkpoint.")
    return heads, neurons, sums


@contextmanager
def _gradients_of(model: PreTrainedModel, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients of these alone, in evaluation mode; the model's own gradients and settings are put back."""
    if torch.is_inference_mode_enabled():
        raise ValueError("Gradients are needed, which torch.inference_mode() forbids: call this outside of it.")
    before, training = [(p, p.grad, p.requires_grad) for p in model.parameters()], model.training
    model.eval()
    try:
        for p, _, _ in before:
            p.grad = None
            p.requires_grad_(False)
        for p in parameters:
            p.requires_grad_(p.is_floating_point())
        with torch.enable_grad():
            yield
    finally:
        for p, grad, wanted in before:
            p.grad = grad
            p.requires_grad_(wanted)
        model.train(training)


Metric = list[dict[str, Tensor]]  # of each layer, by part


def output_metric(model: PreTrainedModel, batches: Iterable[Batch]) -> Metric:
    """What the loss feels of what each output projection writes: G = Σ g gᵀ over tokens, g the gradient there.

    A change δ of what is written changes the loss, to second order and as far as the empirical Fisher tells, by δᵀ G δ.
    So an error counts where the rest of the model sees it (as in K-FAC, Martens & Grosse 2015; in pruning LLM Surgeon,
    arXiv 2312.17244). One pass there and back, so all that a batch writes is held at once; no weight gets a gradient.

    Returns:
        Of each layer "heads" and "neurons": G (hidden, hidden), in float64 on the CPU.

    Raises:
        ValueError: no two tokens that follow each other, or gradients that are not finite.
    """
    anatomy, batches = Anatomy.of(model), entering(model, batches)
    named = {(i, part): projection(anatomy.layer(i), part) for i in range(anatomy.layers) for part in PARTS}
    found = {key: torch.zeros(anatomy.hidden, anatomy.hidden).double() for key, module in named.items() if module}
    written: dict[Any, Tensor] = {}

    def keeps(key: Any) -> Any:
        return lambda _module, _args, output: written.__setitem__(key, output)

    handles = [model.get_input_embeddings().register_forward_hook(lambda _m, _a, output: output.requires_grad_())]
    handles += [named[key].register_forward_hook(keeps(key)) for key in found]
    tokens = 0
    try:
        with _gradients_of(model, ()):
            for batch in batches:
                tokens += int((batch["attention_mask"][:, 1:] * batch["attention_mask"][:, :-1]).sum())
                lost = _weighted_loss(model, batch, "tokens")
                for key, g in zip(written, torch.autograd.grad(lost, list(written.values())), strict=True):
                    g = exact(g.reshape(-1, anatomy.hidden))
                    found[key] += (g.T @ g).cpu()
    finally:
        for handle in handles:
            handle.remove()
    if not tokens or not all(bool(g.isfinite().all()) for g in found.values()):
        raise ValueError(
            "The calibration text gives no finite gradients: give some text, in float32 or bfloat16, and check the "
            "checkpoint."
        )
    return [{part: found[i, part] for part in PARTS if (i, part) in found} for i in range(anatomy.layers)]


def is_metric(anatomy: Anatomy, metric: Metric) -> None:
    """Refuse, by a ValueError, what `output_metric` does not give for a model of this shape."""
    shape, found = (anatomy.hidden, anatomy.hidden), []
    for i, parts in enumerate(metric[: anatomy.layers]):
        wanted = {part for part in PARTS if projection(anatomy.layer(i), part)}
        found += [parts.keys() == wanted and all(g.shape == shape and bool(g.isfinite().all()) for g in parts.values())]
    if len(metric) != anatomy.layers or not all(found):
        raise ValueError(
            f"metric must have, for each of {anatomy.layers} layers, finite matrices {shape} for its parts, as "
            "output_metric gives them for this model."
        )


def _weighted_loss(model: PreTrainedModel, batch: Batch, average: str) -> Float[Tensor, ""]:
    """Sum over tokens of what predicting the next one costs, in nats, each weighted as `average` says."""
    inputs = model_inputs(model, batch)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    logits = model(**inputs).logits[:, :-1].float()
    nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    weight = weight_of_positions(mask.bool(), average).to(nll)[:, 1:] * mask[:, :-1]
    return (nll * weight).sum()


CRITERIA["taylor"] = Criterion(collect=by_gradients, comparable=True)
