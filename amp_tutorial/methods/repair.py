"""Repair: what a cut breaks is partly linear, so the output projections of what stays can be solved for, not trained.

For each output projection (of attention, of the MLP) of weight W let X be the inputs that stay and Y what the dense
layer wrote, over all calibration tokens. The new weight is

    W' = argmin ‖Y − X W'ᵀ‖² + λ Σ_j ‖x_j‖² ‖w'_j − w_j‖²,

the normal equations of which need only XᵀX and XᵀY (`Normal`). λ is measured in the energy ‖x_j‖² of each input, so it
has no unit and a loud neuron does not drown the others. No new biases: still a stock checkpoint. On the calibration
tokens the error is never more than without repair, because W' = W is a candidate without penalty. No gradients, unless
`polish` asks for them: then the MLP's matrices move together, within the layer, where no equation is linear any more.

The refit after a cut is an old idea (optimal brain surgeon, Hassibi & Stork 1993; for language models SparseGPT, ZipLM,
LLM Surgeon). Here it ends in a stock checkpoint, with as many heads and neurons in every layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.plans import Plan, whole_plan
from ..core.sums import Batch, held
from ..core.surgery import Pruned, _fits, prune
from .hidden_size import Turn, slice_hidden, sliced_config
from .repair_layer import Fit, Options, Refits
from .rotation import rotation
from .taylor import Metric, is_metric
from .whole_layers import cut_layer


@dataclass(frozen=True)
class Fits:
    """What repair reports: each refit in its order."""

    fits: list[Fit]

    def __str__(self) -> str:
        rows = [f"{'layer':>5} {'part':<12} {'ridge':>8} {'error before':>12} {'after':>7}"]
        rows += [f"{f.layer:>5} {f.part:<12} {f.ridge:>8.0e} {f.before:>12.3%} {f.after:>7.3%}" for f in self.fits]
        return "\n".join(rows)


def repair(
    model: PreTrainedModel,
    plan: Plan,
    batches: Iterable[Batch],
    reselect: bool = False,
    sequential: bool = True,
    refit_inputs: bool = False,
    hidden_size: int | None = None,
    ridge: float | None = None,
    progress: bool = True,
    metric: Metric | None = None,
    polish: int = 0,
) -> Pruned:
    """Prune by a plan and refit both output projections of every layer that stays, one layer after the other.

    A layer that the plan drops is passed by; what it would have added is lacking in the residual stream, so the next
    ones make up for it. Tokens that it drops go at the end: the batches may hold them.

    Memory beside the dense and the pruned model: a copy of one layer; the hidden states of both streams, 2 · hidden
    numbers for every calibration token, padding included; of one dense layer what enters it and what its projections
    write, 3 · hidden, with `refit_inputs` what its others write, and with `polish` 2 · hidden in float32; and the
    normal equations of one projection, 16 · features · (features + outputs) bytes (`Normal`), with up to three times as
    much again while they are solved.
    Where the models do not fit, `prune_folder` repairs in the same way from the files.

    Under `torch.autocast` the passes and the polishing multiply in its dtype, while streams, weights and equations stay
    as exact as the model: on processors made for bfloat16 that takes some half of the time. docs/real.md has what it
    changes.

    Args:
        model: the dense model; it is not changed.
        batches: calibration batches as for `score`, but held.
        reselect: keep the plan's widths, but choose which heads and neurons stay by the error that remains after refit
            (see `eliminate`), layer by layer. Where a norm spans all heads (OLMo-2), or neurons, the plan's stay.
        sequential: X are the inputs in the pruned and already repaired model, and Y also makes up for what its residual
            stream lacks at that place. False: X and Y both of the dense model, from one pass.
        refit_inputs: refit also the matrices before the heads and neurons (q, k and v; gate and up, or fc1), just
            before those after: X is what the norm gives in the pruned model, Y what the dense matrices made of their
            own. So too, at the end, the output head, unless it is tied to the embedding. Needs `sequential`. Twice the
            time.
        hidden_size: slice the hidden size to this, by the batches' `rotation`, before all else; see `slice_hidden`.
            What is written is fitted to the dense model's stream in the directions that stay. Needs `sequential`.
        metric: of `output_metric`: with `reselect` an error counts as much as the loss feels of it. The refit itself is
            the same for any metric, as each output has weights of its own; `polish` is not.
        polish: steps of Adam by which all matrices of a layer's MLP move together, right after its output projection is
            refitted, towards what that was fitted to: ‖(Y − MLP(X)) G^½‖², X what the MLP reads. What the refit cannot
            reach, because the neurons that stay are as they were. Local: no loss of the model, no label; each layer's
            input is that of the layers before, polished. A step takes 4,096 tokens. Needs `sequential`.
        ridge: λ; by default chosen for each projection by `Normal.ridge`, never by a test set.

    Warns:
        UserWarning: fewer calibration tokens than inputs of a projection: then λ alone decides the rest.

    Raises:
        ValueError: a plan for another shape, no calibration tokens, `refit_inputs`, `polish` or `hidden_size` without
            `sequential`, `polish` of experts or below 0, a metric of another model, or what `slice_hidden` refuses.
    """
    anatomy, training, batches = Anatomy.of(model), model.training, held(model, batches)
    _fits(anatomy, plan)
    options = Options(reselect, sequential, refit_inputs, ridge, polish)
    options.check(anatomy, hidden_size)
    if metric is not None:
        is_metric(anatomy, metric)
    turn = None
    if hidden_size is not None:
        sliced_config(anatomy, hidden_size)  # refuses before any work
        turn = Turn(anatomy, rotation(model, batches), hidden_size)
    refits = Refits(anatomy, replace(plan, tokens=None, of_tokens=0), batches, options, turn, metric)
    weights: dict[str, Tensor] = {}
    model.eval()
    try:
        for i in tqdm(range(anatomy.layers), desc="Repaired", unit="layer", disable=not progress):
            if refitted := refits.layer(i):
                weights |= cut_layer(anatomy, refits.plan, i, refitted)
        weights |= refits.head()
    finally:
        model.train(training)
    refits.warn()
    small = prune(model, refits.plan).model
    small = small if turn is None else slice_hidden(small, turn.rotation, turn.hidden).model
    small.load_state_dict(weights, strict=False)
    if plan.tokens is not None:
        small = prune(
            small, whole_plan(Anatomy.of(small), tokens=plan.tokens, of_tokens=plan.of_tokens), inplace=True
        ).model
    return Pruned(small, replace(refits.plan, tokens=plan.tokens, of_tokens=plan.of_tokens), Fits(refits.fits))
