"""Plans: which query heads and which neurons of every layer stay. Plain data, whoever chose it and whatever is done.

The same widths go from every layer, because only such a model can be said in a stock configuration.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .families import Anatomy
from .scores import Scores

PARTS = ("both", "heads", "neurons")
UNITS = ("groups", "queries")


@dataclass(frozen=True)
class Plan:
    """What stays, and the shape of the model it was made for."""

    heads: list[list[int]]  # kept query heads, ascending, for each layer
    neurons: list[list[int]]  # kept neurons, ascending, for each layer
    of_heads: int
    of_neurons: int
    of_groups: int
    of: str = "all"  # what the ratios refer to: "all" parameters or those of the "blocks"
    asked: float | None = None  # ratio asked for; None with explicit widths
    achieved: float = 0.0  # ratio this plan removes
    criterion: str = ""
    unit: str = "groups"  # what goes of the heads: whole KV "groups", or as many "queries" from every group
    combine: str = "sum"  # how the scores of a unit's heads were made one

    def groups(self, layer: int) -> list[int]:
        """Kept key-value heads of a layer: those that still serve a query head."""
        return sorted({h // (self.of_heads // self.of_groups) for h in self.heads[layer]})

    def shared(self, other: "Plan") -> tuple[float, float]:
        """Shares of this plan's kept heads and kept neurons that the other plan keeps too."""

        def share(mine: list[list[int]], theirs: list[list[int]]) -> float:
            common = sum(len(set(a) & set(b)) for a, b in zip(mine, theirs, strict=True))
            return common / max(1, sum(map(len, mine)))

        return share(self.heads, other.heads), share(self.neurons, other.neurons)

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
        lines = [
            f"Plan by {self.criterion or 'hand'}: keep {len(self.heads[0])} of {self.of_heads} heads and "
            f"{len(self.neurons[0])} of {self.of_neurons} neurons in each of {len(self.heads)} layers; "
            f"{asked}, removes {self.achieved:.2%} of {'all' if self.of == 'all' else 'block'} parameters."
        ]
        for i, kept in enumerate(self.heads):
            gone = sorted(set(range(self.of_heads)) - set(kept))
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
) -> Plan:
    """Choose what stays: the highest scores, the same number in every layer.

    With `remove`, heads and neurons lose the same share (AMP's rule: k layers' worth is k/L of the heads and of the
    neurons); neurons make up exactly for the rounding of heads. With `heads` and `neurons`, these are the kept widths
    of every layer.

    Args:
        remove: ratio of parameters to remove, in (0, 1).
        of: "all" parameters of the model, or those of its "blocks".
        parts: "both", "heads" or "neurons".
        heads, neurons: explicit kept widths; one that is not given stays whole.
        unit: with grouped queries, "groups" takes whole KV groups with all their query heads; "queries" takes the
            same number of query heads from every group and leaves keys and values (the way for multi-query attention).
        combine: how a KV group's score comes from its heads': "sum" or "max".
        align: the kept neurons are a multiple of this, the nearest one. 1 by default, because on a CPU 8 to 64 changed
            the speed-up by no more than the noise (`benchmarks/`); quantised formats fit multiples of 32 or 256.
        nearest: where the family's configuration refuses the number of heads, take the nearest it accepts.

    Raises:
        ValueError: neither or both ways of asking, a ratio outside (0, 1), or one that leaves a layer without a head
            or a neuron; widths out of range; heads that are not whole units; heads, or neurons, that this family
            cannot lose; scores of another model.
    """
    anatomy = Anatomy.of(model)
    if (remove is None) == (heads is None and neurons is None):
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
    budget = _Budget(anatomy, unit, align, nearest)
    total = model.num_parameters() if of == "all" else anatomy.block_parameters
    if remove is not None:
        units, kept_neurons = budget.widths(remove * total, remove, parts)
    else:
        units, kept_neurons = budget.explicit(heads, neurons)
    gone = (budget.units - units) * budget.unit_cost + (anatomy.neurons - kept_neurons) * anatomy.neuron_cost
    return Plan(
        heads=[_best_heads(s, units, anatomy.groups, unit, combine) for s in scores.heads],
        neurons=[_best(s, kept_neurons) for s in scores.neurons],
        of_heads=anatomy.heads,
        of_neurons=anatomy.neurons,
        of_groups=anatomy.groups,
        of=of,
        asked=remove,
        achieved=gone * anatomy.layers / total,
        criterion=scores.criterion,
        unit=unit,
        combine=combine,
    )


class _Budget:
    """What a layer can lose: units of heads, and neurons."""

    def __init__(self, anatomy: Anatomy, unit: str, align: int, nearest: bool) -> None:
        self.anatomy, self.align, self.nearest = anatomy, align, nearest
        whole = unit == "groups"
        self.units = anatomy.groups if whole else anatomy.group_size
        self.heads_each = anatomy.group_size if whole else anatomy.groups
        self.unit_cost = anatomy.group_cost if whole else anatomy.query_cost
        self.called = "query heads of one KV group" if whole else "one query head of every KV group"

    def widths(self, target: float, remove: float, parts: str) -> tuple[int, int]:
        """Kept units and neurons of each layer, so that about `target` parameters go."""
        a = self.anatomy
        if not 0 < remove < 1:
            raise ValueError(f"remove={remove} is not a ratio: it must lie between 0 and 1, both excluded.")
        for part, reason in (("heads", a.no_heads), ("neurons", a.family.no_neurons)):
            if reason and parts in ("both", part):
                other = "neurons" if part == "heads" else "heads"
                raise ValueError(f"{_kind(a)} cannot lose {part}: {reason}. Say parts={other!r}.")
        layer_target = target / a.layers
        attention, mlp = self.units * self.unit_cost, a.neurons * a.neuron_cost
        counted = {"both": attention + mlp, "heads": attention, "neurons": mlp}[parts]
        share = layer_target / counted
        units_gone = 0 if parts == "neurons" else round(share * self.units)
        if parts == "both":  # never more in heads than asked in all: neurons can make up for too little, not too much
            units_gone = min(units_gone, int(layer_target // self.unit_cost))
        units = self._sayable(self.units - units_gone)
        rest = layer_target - (self.units - units) * self.unit_cost
        neurons_gone = 0 if parts == "heads" else max(0, round(rest / a.neuron_cost))
        neurons = a.neurons - neurons_gone
        if units < 1 or neurons < 0 or (neurons < 1 and not a.family.no_neurons):
            what = "head" if units < 1 else "neuron"
            most = counted * a.layers * remove / target
            raise ValueError(
                f"remove={remove} with parts={parts!r} would leave every layer without a {what}; "
                f"all of them together are {most:.1%} of the parameters counted."
            )
        return units, self._aligned(neurons) if neurons_gone else neurons

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
