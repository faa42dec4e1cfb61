"""Repair: what a cut breaks is partly linear, so the output projections of what stays can be solved for, not trained.

For each output projection (of attention, of the MLP) of weight W let X be the inputs that stay and Y what the dense
layer wrote, over all calibration tokens. The new weight is

    W' = argmin ‖Y − X W'ᵀ‖² + λ Σ_j ‖x_j‖² ‖w'_j − w_j‖²,

the normal equations of which need only XᵀX and XᵀY (`gram.py`). λ is measured in the energy ‖x_j‖² of each input, so it
has no unit and a loud neuron does not drown the others. No gradients, no new biases: still a stock checkpoint. On the
calibration tokens the error is never more than without repair, because W' = W is a candidate without penalty.

The refit after a cut is an old idea (optimal brain surgeon, Hassibi & Stork 1993; for language models SparseGPT, ZipLM,
LLM Surgeon). Here it ends in a stock checkpoint, with as many heads and neurons in every layer.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .families import Anatomy, weight_of
from .gram import Normal, eliminate
from .plans import Plan
from .sums import Batch
from .surgery import _fits, _kept, masked, prune
from .walk import Walk


@dataclass(frozen=True)
class Fit:
    """How one output projection was refitted. Errors are ‖Y − X Wᵀ‖² / ‖Y‖² over the calibration tokens."""

    layer: int
    part: str  # "heads" or "neurons"; "into heads" or "into neurons" of the matrices before them, together
    ridge: float
    before: float
    after: float


@dataclass(frozen=True)
class Repaired:
    """A pruned and repaired model, the plan that was carried out, and each fit."""

    model: PreTrainedModel
    plan: Plan
    fits: list[Fit]


def repair(
    model: PreTrainedModel,
    plan: Plan,
    batches: Sequence[Batch],
    choose: bool = False,
    sequential: bool = True,
    reads: bool = False,
    ridge: float | None = None,
    progress: bool = True,
) -> Repaired:
    """Prune by a plan and refit both output projections of every layer that stays, one layer after the other.

    A layer that the plan drops is passed by; what it would have added is lacking in the residual stream, so the next
    ones make up for it.

    Args:
        model: the dense model; it is not changed.
        batches: calibration batches as for `score`, but held: with hidden states of 4 · hidden numbers a token.
        choose: keep the plan's widths, but choose which heads and neurons stay by the error that remains after refit
            (see `eliminate`), layer by layer. Where a norm spans all heads (OLMo-2) the plan's heads stay.
        sequential: X are the inputs in the pruned and already repaired model, and Y also makes up for what its residual
            stream lacks at that place. False: X and Y both of the dense model, from one pass.
        reads: refit also the matrices before the heads and neurons (q, k and v; gate and up, or fc1), just before those
            after: X is what the norm gives in the pruned model, Y what the dense matrices made of their own. For
            `sequential` only, as otherwise nothing has changed there. Twice the time.
        ridge: λ; by default chosen for each projection by `Normal.ridge`, never by a test set.

    Warns:
        UserWarning: fewer calibration tokens than inputs of a projection: then λ alone decides the rest.

    Raises:
        ValueError: a plan for another shape, no calibration tokens, or `reads` without `sequential`.
    """
    anatomy = Anatomy.of(model)
    _fits(anatomy, plan)
    if reads and not sequential:
        raise ValueError(
            "reads=True needs sequential=True: in the dense model's own pass the reading side is as it was."
        )
    if not any(bool(batch["attention_mask"].any()) for batch in batches):
        raise ValueError("The calibration batches hold no tokens: repair needs some text; see amp.calibration.")
    training = model.training
    model.eval()
    try:
        work = _Work(model, plan, batches, sequential)
        with work.norms_of_the_cut():
            for i in tqdm(range(anatomy.layers), desc="Repaired", unit="layer", disable=not progress):
                work.layer(i, choose, reads, ridge)
    finally:
        model.train(training)
    if work.short:
        warnings.warn(
            f"Fewer calibration tokens than inputs of a projection ({work.short}): the rest is left to the ridge; give "
            "more text.",
            stacklevel=2,
        )
    small = prune(work.copy.model, work.plan, inplace=True).train(training)
    return Repaired(small, work.plan, work.fits)


class _Work:
    """A copy of the dense model in which layer after layer is silenced where the plan says so, and refitted."""

    def __init__(self, model: PreTrainedModel, plan: Plan, batches: Sequence[Batch], sequential: bool) -> None:
        self.dense, self.copy = Anatomy.of(model), Anatomy.of(copy.deepcopy(model))
        self.plan = replace(plan, heads=list(plan.heads), neurons=list(plan.neurons))
        self.parts = ["heads", *(["neurons"] if self.dense.neurons else [])]
        self.walk = Walk(self.dense, batches)
        self.follow = Walk(self.copy, batches) if sequential else self.walk  # where X is looked at
        self.masks = [batch["attention_mask"].bool() for batch in batches]
        self.numbers = range(len(self.masks))
        self.fits: list[Fit] = []
        self.short = ""  # the first projection with fewer tokens than inputs

    def norms_of_the_cut(self) -> AbstractContextManager[object]:
        """While it lasts, norms that span all heads leave out those that go, as they will in the cut model."""
        if not self.dense.family.spanning:
            return nullcontext()
        everyone = [list(range(self.dense.neurons))] * self.dense.layers
        return masked(self.copy.model, replace(self.plan, neurons=everyone))

    def layer(self, i: int, choose: bool, reads: bool, ridge: float | None) -> None:
        """Refit layer i's attention, then its MLP on what that now gives, and go on to the next layer."""
        if i not in self.plan.kept_layers:
            self._pass_by(i)
            return
        targets, hidden, scale, sequential = [], [], 0.0, self.follow is not self.walk
        with self.walk.only(i), _watch(self.walk.anatomy, i) as seen:
            for b in self.numbers:
                entered, left = self.walk.step(b)
                if b == 0 and sequential:
                    scale = _residual_scale(entered, left, seen)
                targets.append({part: after for part, (_, after) in _stream(entered, seen, scale).items()})
                hidden.append(left)
        for part in self.parts:
            if reads:
                self._read(i, part, ridge)
            normal = Normal(_projection(self.dense, i, part).bias is not None)
            with self.follow.only(i), _watch(self.follow.anatomy, i) as seen:
                for b, mask in enumerate(self.masks):
                    entered, _ = self.follow.step(b)
                    before, _ = _stream(entered, seen, scale)[part]
                    lacking, real = (targets[b][part] - before) / (scale or 1.0), mask.to(entered.device)
                    normal.add(seen[part][0].reshape(*mask.shape, -1)[real], lacking[real])
            self._refit(i, part, normal, choose, ridge)
        if sequential:
            with self.follow.only(i):
                self.follow.hidden = [self.follow.step(b)[1] for b in self.numbers]
        self.walk.hidden = hidden

    def _pass_by(self, i: int) -> None:
        """A layer that goes changes nothing in the pruned model's stream, only in the dense one's."""
        with self.walk.only(i):
            steps = [self.walk.step(b) for b in self.numbers]
        if self.follow is not self.walk and i == 0:
            self.follow.hidden = [entered for entered, _ in steps]
        self.walk.hidden = [left for _, left in steps]

    @torch.no_grad()
    def _read(self, i: int, part: str, ridge: float | None) -> None:
        """Refit the matrices before the heads or neurons together, as all read the same."""
        ours, dense = _readers(self.copy, i, part), _readers(self.dense, i, part)
        if not ours:
            return  # of experts they are not seen
        bias = ours[0].bias is not None
        normal = Normal(bias)
        with (
            self.walk.only(i),
            self.follow.only(i),
            _ends(dict(enumerate(dense))) as wanted,
            _ends(dict(enumerate(ours))) as given,
        ):
            for b, mask in enumerate(self.masks):
                self.walk.step(b)
                self.follow.step(b)
                real = mask.to(given[0][0].device)
                y = torch.cat([output.reshape(*mask.shape, -1)[real] for _, output in wanted.values()], dim=-1)
                normal.add(given[0][0].reshape(*mask.shape, -1)[real], y)
        prior = torch.cat([_with_bias(weight_of(module).double(), module.bias) for module in ours])
        found = normal.ridge(prior) if ridge is None else ridge
        fitted = normal.solve(prior, found)
        for module, rows in zip(ours, fitted.split([len(weight_of(module)) for module in ours]), strict=True):
            weight_of(module).copy_(rows[:, :-1] if bias else rows)
            if bias:
                module.bias.copy_(rows[:, -1])
        self.fits.append(Fit(i, f"into {part}", found, normal.error(prior), normal.error(fitted)))

    @torch.no_grad()
    def _refit(self, i: int, part: str, normal: Normal, choose: bool, ridge: float | None) -> None:
        module, heads = _projection(self.copy, i, part), part == "heads"
        weight, count = weight_of(module), weight_of(module).shape[1]
        dense = _with_bias(weight.double(), module.bias)
        rows = "query" if heads else "neurons"
        some_go = len(_kept(self.dense, self.plan, i)[rows]) < count
        if choose and some_go and not (heads and self.dense.family.spanning):
            self._choose(i, heads, normal, dense)
        kept = _kept(self.dense, self.plan, i)[rows].to(weight.device)
        columns = kept if module.bias is None else torch.cat([kept, kept.new_tensor([count])])
        some, prior = normal.of(columns), dense[:, columns]
        found = some.ridge(prior) if ridge is None else ridge
        fitted = some.solve(prior, found)
        weight.zero_()
        weight[:, kept] = fitted[:, : len(kept)].to(weight.dtype)
        if module.bias is not None:
            module.bias.copy_(fitted[:, -1])
        self.fits.append(Fit(i, part, found, some.error(prior), some.error(fitted)))
        if normal.tokens < len(kept) and not self.short:
            self.short = f"layer {i}, {part}: {normal.tokens} tokens, {len(kept)} inputs"

    def _choose(self, i: int, heads: bool, normal: Normal, prior: Tensor) -> None:
        a, plan = self.dense, self.plan
        xx, xy = normal.centred()
        prior = prior[:, : len(xx)]
        if not heads:
            pools = torch.zeros(a.neurons, dtype=torch.long, device=xx.device)
            plan.neurons[i] = eliminate(xx, xy, prior, 1, pools, len(plan.neurons[i]))
        elif plan.unit == "groups":
            pools = torch.zeros(a.groups, dtype=torch.long, device=xx.device)
            stay = eliminate(xx, xy, prior, a.group_size * a.head_dim, pools, len(plan.groups(i)))
            plan.heads[i] = [g * a.group_size + j for g in stay for j in range(a.group_size)]
        else:
            pools = torch.arange(a.heads, device=xx.device) // a.group_size
            plan.heads[i] = eliminate(xx, xy, prior, a.head_dim, pools, len(plan.heads[i]) // a.groups)


Seen = dict[Any, tuple[Tensor, Tensor]]  # of each part or place: the input and the output of a linear map


def _watch(anatomy: Anatomy, i: int) -> AbstractContextManager[Seen]:
    """While it lasts, the inputs and outputs of both output projections of layer i are kept, of the last batch run."""
    return _ends({part: _projection(anatomy, i, part) for part in ("heads", "neurons")})


@contextmanager
def _ends(modules: dict[Any, Any]) -> Iterator[Seen]:
    seen: Seen = {}

    def keep(name: Any) -> Any:
        return lambda _, args, output: seen.update({name: (args[0], output)})

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items() if module is not None]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _readers(anatomy: Anatomy, i: int, part: str) -> list[Any]:
    """The matrices before the heads or the neurons, each once; none of a family that hides them."""
    layer = anatomy.layer(i)
    found = (layer.query, layer.key, layer.value) if part == "heads" else layer.neurons_in
    return [module for module in dict.fromkeys(found) if module is not None]


def _projection(anatomy: Anatomy, i: int, part: str) -> Any:
    layer = anatomy.layer(i)
    return layer.output if part == "heads" else layer.neurons_out


def _with_bias(weight: Float[Tensor, "hidden features"], bias: Tensor | None) -> Float[Tensor, "hidden inputs"]:
    """A bias is one more column, of an input that is always 1."""
    return weight.clone() if bias is None else torch.cat([weight, bias.to(weight.dtype)[:, None]], dim=1)


def _residual_scale(entered: Tensor, left: Tensor, seen: Seen) -> float:
    """By what factor both projections' outputs are added to the residual stream; 0 where it is not so simple.

    Measured, not looked up: 1 in most families, another factor in Granite. Gemma 2 norms the outputs first, and of
    experts the output is not seen; there each projection is fitted to its own dense output alone.
    """
    written = torch.stack([output.reshape_as(entered) for _, output in seen.values()]).double().sum(0).flatten()
    change = (left.double() - entered.double()).flatten()
    scale = float(change @ written / written.square().sum().clamp(min=1e-300))
    exact = float((change - scale * written).norm()) <= 0.02 * float(change.norm())
    return scale if exact else 0.0


def _stream(entered: Tensor, seen: Seen, scale: float) -> dict[str, tuple[Tensor | float, Tensor]]:
    """Of each part: the residual stream before and after it is added; without a scale 0 and its own output."""
    if not scale:
        return {part: (0.0, output.reshape_as(entered).double()) for part, (_, output) in seen.items()}
    found: dict[str, tuple[Tensor | float, Tensor]] = {}
    stream = entered.double()
    for part in sorted(seen):  # "heads" before "neurons"; in a block that runs both at once the order is free
        found[part] = (stream, stream + scale * seen[part][1].reshape_as(entered).double())
        stream = found[part][1]
    return found
