"""FLAP's compensation: what a cut takes away is replaced by its mean, where there is a bias to take it."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy, Projection, weight_of
from ..core.plans import Plan
from ..core.sums import Batch, Sums, one_pass
from ..core.surgery import Pruned, _kept, prune
from .flap import moments


@torch.no_grad()
def prune_and_fold(model: PreTrainedModel, plan: Plan, batches: Iterable[Batch]) -> Pruned:
    """Prune, and add W_gone · mean(x_gone) to the biases of the output projections, over all calibration tokens.

    Source: FLAP (arXiv 2312.11983), "baseline bias compensation" [code]. It gives LLaMA biases that its class does not
    have; a stock checkpoint cannot hold those, so only biases that are there take the means, as in Phi.

    Raises:
        ValueError: no output projection of this model has a bias; or what `prune` refuses.
    """
    anatomy = Anatomy.of(model)
    first = anatomy.layer(0)
    parts = {"heads": first.output, "neurons": first.neurons_out}
    having = [part for part, module in parts.items() if module is not None and module.bias is not None]
    if not having:
        raise ValueError(
            f"The output projections of this {model.config.model_type} have no biases to take the means; use "
            "amp.repair."
        )
    sums = Sums(anatomy, [(moments, part) for part in having])
    one_pass(anatomy, batches, sums, "tokens")
    sums.check()
    pruned, rows = prune(model, plan), {"heads": "query", "neurons": "neurons"}
    cut = Anatomy.of(pruned.model)
    for new, i in enumerate(plan.kept_layers):
        for part in having:
            mean = sums.means(moments, part)[i][: sums.features[part]]
            old, module = (_projection(a, n, part) for a, n in ((anatomy, i), (cut, new)))
            stay = torch.zeros(len(mean), dtype=torch.bool)
            stay[_kept(anatomy, plan, i)[rows[part]]] = True
            gone = weight_of(old)[:, ~stay].float() @ mean[~stay].to(old.weight.device)
            module.bias.add_(gone.to(module.bias.dtype))
    return pruned


def _projection(anatomy: Anatomy, i: int, part: str) -> Projection:
    layer = anatomy.layer(i)
    return layer.output if part == "heads" else layer.neurons_out
