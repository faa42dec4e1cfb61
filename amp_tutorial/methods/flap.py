"""FLAP: what varies is kept, one ranking says how much of each part goes, and biases take the means of the rest."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy, Projection, exact, weight_of
from ..core.criteria import COLUMNS, CRITERIA, Criterion
from ..core.plans import Plan
from ..core.scores import Scores
from ..core.sums import Batch, Sums, one_pass
from ..core.surgery import Pruned, _kept, prune


def moments(
    x: Float[Tensor, " tokens *structure"], output: Float[Tensor, "*structure hidden"]
) -> Float[Tensor, "tokens twice"]:
    """Each input of an output projection, then the square of each; in float64, because a variance is what little is
    left of their difference.
    """
    x = exact(x.flatten(1))
    return torch.cat([x, x.square()], dim=1)


def fluctuation(
    mean: Float[Tensor, " twice"], output: Float[Tensor, "structures d hidden"], tokens: int
) -> Float[Tensor, " structures"]:
    """FLAP's WIFV: Var(x_j) · ‖W_j‖², what is lost when x_j is replaced by its mean; standardised within the layer.

    A head's score is the mean over its features, of squares, as in the code. Standardised scores of all layers and of
    heads and neurons can be compared: `plan(…, parts="scored")` lets them share the budget (FLAP's "AL-AM").

    Source: FLAP (arXiv 2312.11983), official code [code]. Its running variance leaves the first sample out, and weighs
    samples, not tokens; here it is the variance over all tokens. FLAP keeps other widths in each layer, and adds
    biases: a stock checkpoint holds neither, so widths are made equal, and only biases that are there take the means.
    """
    first, second = mean.view(2, *output.shape[:2])
    metric = (second - first.square()).clamp(min=0) * output.square().sum(-1)
    metric = metric.square() if metric.shape[1] > 1 else metric
    return ((metric - metric.mean()) / metric.std().clamp(min=1e-30)).mean(1).float()


def joint_share(anatomy: Anatomy, scores: Scores, target: float) -> float:
    """The share of all heads that goes if the lowest scores of all layers, heads and neurons together, go.

    Args:
        target: parameters that go in all.

    Raises:
        ValueError: scores of heads and of neurons in different units.
    """
    criterion = CRITERIA.get(scores.criterion)
    if criterion is not None and not criterion.comparable:
        able = ", ".join(repr(name) for name, c in CRITERIA.items() if c.comparable)
        raise ValueError(
            f"Scores by {scores.criterion!r} of a head and of a neuron are in different units, so they share no "
            f"ranking; say parts='both', or score by one of {able}."
        )
    heads, neurons = torch.cat(list(scores.heads)), torch.cat(list(scores.neurons))
    a_head = anatomy.group_cost / anatomy.group_size
    costs = torch.cat([torch.full_like(heads, a_head), torch.full_like(neurons, anatomy.neuron_cost)])
    order = torch.cat([heads, neurons]).argsort()
    gone = order[: int((costs[order].cumsum(0) <= target).sum())]
    return int((gone < len(heads)).sum()) / len(heads)


COLUMNS[moments] = 2
CRITERIA["flap"] = Criterion(moments, moments, finish=fluctuation, comparable=True)


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
            gone = weight_of(old)[:, ~stay].float() @ mean[~stay].float().to(old.weight.device)
            module.bias.add_(gone.to(module.bias.dtype))
    return pruned


def _projection(anatomy: Anatomy, i: int, part: str) -> Projection:
    layer = anatomy.layer(i)
    return layer.output if part == "heads" else layer.neurons_out
