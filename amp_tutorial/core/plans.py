"""Plans: which layers, query heads and neurons stay. Plain data, whoever chose it and whatever is done.

The same widths go from every layer that stays, because only such a model can be said in a stock configuration.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .criteria import CRITERIA
from .families import Anatomy
from .scores import Scores

PARTS = ("both", "heads", "neurons", "scored")
UNITS = ("groups", "queries")


@dataclass(frozen=True)
class Plan:
    """What stays, and the shape of the model it was made for."""

    heads: list[list[int]]  # kept query heads, ascending, for each layer of the dense model; [] where the layer goes
    neurons: list[list[int]]  # kept neurons, in the same way
    of_heads: int
    of_neurons: int
    of_groups: int
    of: str = "all"  # what the ratios refer to: "all" parameters or those of the "blocks"
    asked: float | None = None  # ratio asked for; None with explicit widths
    achieved: float = 0.0  # ratio this plan removes
    criterion: str = ""
    unit: str = "groups"  # what goes of the heads: whole KV "groups", or as many "queries" from every group
    combine: str = "sum"  # how the scores of a unit's heads were made one
    layers: list[int] | None = None  # kept layers, ascending; None: all

    def __post_init__(self) -> None:
        last = len(self.heads) - 1
        if self.layers is not None and (not self.layers or self.layers != sorted({*self.layers} & {*range(last + 1)})):
            raise ValueError(
                f"A plan's layers={self.layers} must name at least one, each once, ascending, from 0 to {last}."
            )

    @property
    def kept_layers(self) -> list[int]:
        """The layers that stay; what the plan says of the heads and neurons of others has no meaning."""
        return list(range(len(self.heads))) if self.layers is None else self.layers

    @property
    def widths(self) -> tuple[int, int, int]:
        """Kept query heads, KV groups and neurons of a layer: of the first one, as all that stay have the same."""
        first = self.kept_layers[0]
        return len(self.heads[first]), len(self.groups(first)), len(self.neurons[first])

    def groups(self, layer: int) -> list[int]:
        """Kept key-value heads of a layer: those that still serve a query head."""
        return sorted({h // (self.of_heads // self.of_groups) for h in self.heads[layer]})

    def shared(self, other: "Plan") -> tuple[float, float]:
        """Shares of this plan's kept heads and kept neurons that the other plan keeps too.

        Raises:
            ValueError: the plans are for models of another depth.
        """
        if len(self.heads) != len(other.heads):
            raise ValueError(
                f"The plans are for models of {len(self.heads)} and {len(other.heads)} layers; compare like."
            )
        both = set(self.kept_layers) & set(other.kept_layers)

        def share(mine: list[list[int]], theirs: list[list[int]]) -> float:
            common = sum(len(set(mine[i]) & set(theirs[i])) for i in both)
            return common / max(1, sum(len(mine[i]) for i in self.kept_layers))

        return share(self.heads, other.heads), share(self.neurons, other.neurons)

    def with_layers(self, layers: Sequence[int], model: PreTrainedModel) -> "Plan":
        """This plan with only these layers kept, each as wide as it says: depth and width in one plan.

        Args:
            layers: kept layers of the dense model, such as the `layers` of a plan by `plan_layers` or `drop_layers`.
            model: the dense model, which says what a layer is worth.

        Raises:
            ValueError: no layer, one twice, or one that this plan does not keep.
        """
        anatomy, kept = Anatomy.of(model), sorted(set(layers))
        if not kept or len(kept) < len(layers) or not set(kept) <= set(self.kept_layers):
            raise ValueError(
                f"layers={list(layers)} must name at least one layer, and each once, of those kept: {self.kept_layers}."
            )
        fewer = replace(
            self,
            heads=[heads if i in kept else [] for i, heads in enumerate(self.heads)],
            neurons=[neurons if i in kept else [] for i, neurons in enumerate(self.neurons)],
            layers=None if len(kept) == len(self.heads) else kept,
        )
        total = model.num_parameters() if self.of == "all" else anatomy.block_parameters
        return replace(fewer, achieved=_gone(anatomy, fewer) / total)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, beside the target first and then moved."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        beside.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        beside.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def __str__(self) -> str:
        asked = "explicit widths" if self.asked is None else f"asked {self.asked:.2%}"
        kept = self.kept_layers
        depth = f"{len(kept)} of {len(self.heads)}" if len(kept) < len(self.heads) else len(kept)
        lines = [
            f"Plan by {self.criterion or 'hand'}: keep {self.widths[0]} of {self.of_heads} heads and "
            f"{self.widths[2]} of {self.of_neurons} neurons in each of {depth} layers; "
            f"{asked}, removes {self.achieved:.2%} of {'all' if self.of == 'all' else 'block'} parameters."
        ]
        for i in range(len(self.heads)):
            if i not in kept:
                lines.append(f"  layer {i}: goes whole")
                continue
            gone = sorted(set(range(self.of_heads)) - set(self.heads[i]))
            lines.append(f"  layer {i}: heads {gone} go, {self.of_neurons - len(self.neurons[i])} neurons go")
        return "\n".join(lines)


def plan(
    model: PreTrainedModel,
    scores: Scores,
    remove: float | None = None,
    of: str = "all",
    parts: str = "both",
    heads: int | None = None,
    neurons: int | None = None,
    unit: str = "groups",
    combine: str = "sum",
    align: int = 1,
    nearest: bool = False,
    layers: Sequence[int] | None = None,
) -> Plan:
    """Choose what stays: the highest scores, the same number in every layer.

    With `remove`, heads and neurons lose the same share (AMP's rule: k layers' worth is k/L of the heads and of the
    neurons); neurons make up exactly for the rounding of heads. With `heads` and `neurons`, these are the kept widths
    of every layer.

    Args:
        remove: ratio of parameters to remove, in (0, 1).
        of: "all" parameters of the model, or those of its "blocks".
        parts: "both", "heads" or "neurons". Or "scored": heads and neurons of all layers stand in one ranking of their
            scores, which says how much of each goes (FLAP's global search); every layer then loses as much as the mean.
        heads, neurons: explicit kept widths; one that is not given stays whole.
        unit: with grouped queries, "groups" takes whole KV groups with all their query heads; "queries" takes the
            same number of query heads from every group and leaves keys and values (the way for multi-query attention).
        combine: how a KV group's score comes from its heads': "sum" or "max".
        align: the kept neurons are a multiple of this, the nearest one. 1 by default, because on a CPU 8 to 64 changed
            the speed-up by no more than the noise (`benchmarks/`); quantised formats fit multiples of 32 or 256.
        nearest: where the family's configuration refuses the number of heads, take the nearest it accepts.
        layers: kept layers, such as those of a plan by `plan_layers` or `drop_layers`; all others go whole. What they
            hold counts towards `remove`: heads and neurons of the layers that stay make up for the rest.

    Raises:
        ValueError: neither or both ways of asking, a ratio outside (0, 1), or one that leaves a layer without a head
            or a neuron; layers that are none, not there, or alone hold more than the ratio; widths out of range; heads
            that are not whole units; heads, or neurons, that this family cannot lose; scores of another
            model.
    """
    anatomy = Anatomy.of(model)
    if (remove is None) == (heads is None and neurons is None) and not (remove is None and layers is not None):
        raise ValueError("Say either remove=… or kept widths (heads=…, neurons=…), not both and not neither.")
    for name, given, known in (("of", of, ("all", "blocks")), ("parts", parts, PARTS), ("unit", unit, UNITS)):
        if given not in known:
            raise ValueError(f"{name}={given!r} must be one of {', '.join(known)}.")
    if combine not in ("sum", "max"):
        raise ValueError(f"combine={combine!r} must be 'sum' or 'max'.")
    if not 1 <= align <= max(1, anatomy.neurons):
        raise ValueError(f"align={align} must lie between 1 and the number of neurons, {anatomy.neurons}.")
    shape = [(anatomy.heads, anatomy.neurons)] * anatomy.layers
    scored = [(len(h), len(n)) for h, n in zip(scores.heads, scores.neurons, strict=True)]
    if scored != shape:
        raise ValueError(
            f"The scores are for {len(scored)} layers of (heads, neurons) = {max(scored)}, the model has {len(shape)} "
            f"of {shape[0]}; score this model."
        )
    if not scores.made_for(model):
        raise ValueError(
            "The scores are of another model of this shape, or of this one before its weights changed; score this "
            'model, or give dataclasses.replace(scores, model_hash="") if you mean to use them here.'
        )
    whole = whole_plan(anatomy, of=of, asked=remove, criterion=scores.criterion, unit=unit, combine=combine)
    deep = whole if layers is None else whole.with_layers(layers, model)
    budget = _Budget(anatomy, unit, align, nearest, len(deep.kept_layers))
    if remove is not None:
        total = model.num_parameters() if of == "all" else anatomy.block_parameters
        units, kept_neurons = budget.widths(remove, deep.achieved, total, parts, scores)
    else:
        units, kept_neurons = budget.explicit(heads, neurons)
    wide = replace(
        whole,
        heads=[_best_heads(s, units, anatomy.groups, unit, combine) for s in scores.heads],
        neurons=[_best(s, kept_neurons) for s in scores.neurons],
    )
    return wide.with_layers(deep.kept_layers, model)


def whole_plan(anatomy: Anatomy, **settings: Any) -> Plan:
    """The plan that removes nothing."""
    return Plan(
        heads=[list(range(anatomy.heads)) for _ in range(anatomy.layers)],
        neurons=[list(range(anatomy.neurons)) for _ in range(anatomy.layers)],
        of_heads=anatomy.heads,
        of_neurons=anatomy.neurons,
        of_groups=anatomy.groups,
        **settings,
    )


def _gone(anatomy: Anatomy, plan: Plan) -> int:
    """Parameters that go: whole layers, and of the others heads with their keys and values, and neurons."""
    heads, groups, neurons = plan.widths
    query, shared = (anatomy.heads - heads) * anatomy.head_dim, (anatomy.groups - groups) * anatomy.head_dim
    narrower = anatomy._cost(query=query, shared=shared, neurons=anatomy.neurons - neurons)
    layers = layer_parameters(anatomy)
    return sum(narrower if i in plan.kept_layers else count for i, count in enumerate(layers))


def layer_parameters(anatomy: Anatomy) -> list[int]:
    """Parameters of each decoder layer, norms included."""
    return [sum(p.numel() for p in layer.parameters()) for layer in anatomy.model.get_submodule(anatomy.family.layers)]


class _Budget:
    """What a layer can lose: units of heads, and neurons."""

    def __init__(self, anatomy: Anatomy, unit: str, align: int, nearest: bool, layers: int) -> None:
        self.anatomy, self.align, self.nearest, self.layers = anatomy, align, nearest, layers
        whole = unit == "groups"
        self.units = anatomy.groups if whole else anatomy.group_size
        self.heads_each = anatomy.group_size if whole else anatomy.groups
        self.unit_cost = anatomy.group_cost if whole else anatomy.query_cost
        self.called = "query heads of one KV group" if whole else "one query head of every KV group"

    def widths(self, remove: float, already: float, total: int, parts: str, scores: Scores) -> tuple[int, int]:
        """Kept units and neurons of each layer, so that with whole layers, a share `already`, about `remove` goes."""
        a = self.anatomy
        if not 0 < remove < 1:
            raise ValueError(f"remove={remove} is not a ratio: it must lie between 0 and 1, both excluded.")
        if already > remove:
            raise ValueError(
                f"The layers that go are {already:.1%} of the parameters counted, more than remove={remove}; keep more "
                "layers, or ask for more."
            )
        for part, reason in (("heads", a.no_heads), ("neurons", a.family.no_neurons)):
            if reason and parts in ("both", "scored", part):
                other = "neurons" if part == "heads" else "heads"
                raise ValueError(f"{_kind(a)} cannot lose {part}: {reason}. Say parts={other!r}.")
        layer_target = (remove - already) * total / self.layers
        attention, mlp = self.units * self.unit_cost, a.neurons * a.neuron_cost
        counted = {"heads": attention, "neurons": mlp}.get(parts, attention + mlp)
        share = layer_target / counted
        units_gone = 0 if parts == "neurons" else round(share * self.units)
        if parts == "scored":
            units_gone = self._by_rank(layer_target, scores)
        if parts in (
            "both",
            "scored",
        ):  # never more in heads than asked in all: neurons can make up for too little, not too much
            units_gone = min(units_gone, int(layer_target // self.unit_cost))
        units = self._sayable(self.units - units_gone)
        rest = layer_target - (self.units - units) * self.unit_cost
        neurons_gone = 0 if parts == "heads" else max(0, round(rest / a.neuron_cost))
        neurons = a.neurons - neurons_gone
        if units < 1 or neurons < 0 or (neurons < 1 and not a.family.no_neurons):
            what = "head" if units < 1 else "neuron"
            most = counted * self.layers / total + already
            raise ValueError(
                f"remove={remove} with parts={parts!r} would leave every layer without a {what}; "
                f"all of them together are {most:.1%} of the parameters counted."
            )
        return units, self._aligned(neurons) if neurons_gone else neurons

    def _by_rank(self, layer_target: float, scores: Scores) -> int:
        """Units of heads that go from a layer in the mean, if the lowest scores of all layers, heads and neurons go.

        Raises:
            ValueError: scores of heads and of neurons in different units.
        """
        a, criterion = self.anatomy, CRITERIA.get(scores.criterion)
        if criterion is not None and not criterion.comparable:
            able = ", ".join(repr(name) for name, c in CRITERIA.items() if c.comparable)
            raise ValueError(
                f"Scores by {scores.criterion!r} of a head and of a neuron are in different units, so they share no "
                f"ranking; say parts='both', or score by one of {able}."
            )
        heads, neurons = torch.cat(list(scores.heads)), torch.cat(list(scores.neurons))
        costs = torch.cat(
            [torch.full_like(heads, self.unit_cost / self.heads_each), torch.full_like(neurons, a.neuron_cost)]
        )
        order = torch.cat([heads, neurons]).argsort()
        gone = order[: int((costs[order].cumsum(0) <= layer_target * a.layers).sum())]
        return round(int((gone < len(heads)).sum()) / a.layers / self.heads_each)

    def explicit(self, heads: int | None, neurons: int | None) -> tuple[int, int]:
        """Kept units and neurons as asked, if they are possible."""
        a = self.anatomy
        for name, asked, all_of_them, reason in (
            ("heads", heads, a.heads, a.no_heads),
            ("neurons", neurons, a.neurons, a.family.no_neurons),
        ):
            if reason and asked not in (None, all_of_them):
                raise ValueError(f"{_kind(a)} cannot lose {name}: {reason}. Leave {name}=… out.")
        heads, neurons = (a.heads if heads is None else heads), (a.neurons if neurons is None else neurons)
        if heads % self.heads_each or not 1 <= heads <= a.heads:
            otherwise = "; unit='queries' can" if heads in range(a.groups, a.heads, a.groups) else ""
            raise ValueError(
                f"heads={heads} is not possible: keep a multiple of {self.heads_each} ({self.called}), at most "
                f"{a.heads}{otherwise}."
            )
        if not min(1, a.neurons) <= neurons <= a.neurons:
            raise ValueError(f"neurons={neurons} is not possible: keep 1 to {a.neurons}.")
        return self._sayable(heads // self.heads_each), self._aligned(neurons) if neurons < a.neurons else neurons

    def _aligned(self, neurons: int) -> int:
        """The nearest multiple that leaves a neuron and is no more than there are."""
        return min(max(1, round(neurons / self.align)), self.anatomy.neurons // self.align) * self.align

    def _sayable(self, units: int) -> int:
        """The units themselves if a stock configuration has so many heads; the nearest such number if that will do."""
        counts = {h // self.heads_each for h in self.anatomy.head_counts if h % self.heads_each == 0}
        if units in counts or units < 1:
            return units
        if self.nearest:
            return min(counts, key=lambda count: (abs(count - units), -count))
        possible = ", ".join(str(count * self.heads_each) for count in sorted(counts))
        raise ValueError(
            f"A {_kind(self.anatomy)} configuration takes only head counts that divide the hidden size "
            f"{self.anatomy.hidden}, not {units * self.heads_each}, and no equal architecture is known for this model; "
            f"keep {possible} heads, or say nearest=True."
        )


def _kind(anatomy: Anatomy) -> str:
    return str(anatomy.model.config.model_type)


def _best(scores: Tensor, keep: int) -> list[int]:
    """Indices of the `keep` highest scores, ascending; the lower index wins a tie."""
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:keep].tolist())


def _best_heads(scores: Tensor, units: int, groups: int, unit: str, combine: str) -> list[int]:
    """Query heads of the best KV groups by their combined scores, or the best query heads of every group."""
    grouped = scores.double().view(groups, -1)
    size = grouped.shape[1]
    if unit == "queries":
        return [g * size + j for g in range(groups) for j in _best(grouped[g], units)]
    combined = grouped.sum(1) if combine == "sum" else grouped.amax(1)
    return [g * size + j for g in _best(combined, units) for j in range(size)]
