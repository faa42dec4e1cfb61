"""Plans: which layers, query heads and neurons stay. Plain data, whoever chose it and whatever is done with it.

The same widths go from every layer that stays, because only such a model can be said in a stock configuration.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..files.arguments import misfit
from ..files.atomic import expanded, write_json
from .anatomy import Anatomy
from .scores import Scores

OF = ("parameters", "block parameters")
PARTS = ("both", "heads", "neurons")
UNITS, COMBINED = ("groups", "queries"), ("sum", "max")


@dataclass(frozen=True)
class Plan:
    """What stays, and the shape of the model it was made for."""

    heads: list[list[int]]  # kept query heads, ascending, for each layer of the dense model; [] where the layer goes
    neurons: list[list[int]]  # kept neurons, in the same way
    of_heads: int
    of_neurons: int
    of_groups: int
    of: str = "parameters"  # what the ratios refer to: all "parameters", or the "block parameters"
    asked: float | None = None  # ratio asked for; None with explicit widths
    achieved: float = 0.0  # ratio this plan removes
    criterion: str = ""
    unit: str = "groups"  # what goes of the heads: whole KV "groups", or as many "queries" from every group
    combine: str = "sum"  # how the scores of a unit's heads were made one
    layers: list[int] | None = None  # kept layers, ascending; None: all
    tokens: list[int] | None = None  # kept tokens of the vocabulary, ascending; None: all
    of_tokens: int = 0  # with tokens: rows of the dense model's embedding

    def __post_init__(self) -> None:
        for name, kept, of in (("layers", self.layers, len(self.heads)), ("tokens", self.tokens, self.of_tokens)):
            if kept is not None and (not kept or kept != sorted({*kept} & {*range(of)})):
                rule = f"must name at least one, each once, ascending, from 0 to {of - 1}."
                raise ValueError(f"A plan's {name}={str(kept)[:60]} {rule}")

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
        """Shares of this plan's kept heads and neurons that the other keeps too; a ValueError if depths differ."""
        if len(self.heads) != len(other.heads):
            raise ValueError(f"Plans for models of {len(self.heads)} and {len(other.heads)} layers; compare like.")

        def share(mine: list[list[int]], theirs: list[list[int]]) -> float:
            common = sum(len({*mine[i]} & {*theirs[i]}) for i in self.kept_layers if i in other.kept_layers)
            return common / max(1, sum(len(mine[i]) for i in self.kept_layers))

        return share(self.heads, other.heads), share(self.neurons, other.neurons)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the plan as JSON, beside the target first and then moved; errors as in `Scores.save`."""
        return write_json(path, asdict(self), overwrite, indent=None)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read what `save` wrote; a ValueError if there is no such file, or it holds something else."""
        try:
            stored = json.loads(expanded(path).read_text(encoding="utf-8"))
            stored["of"] = {"all": "parameters", "blocks": "block parameters"}.get(stored["of"], stored["of"])
            found = cls(**stored)
            if (wrong := misfit(found)) or len(found.heads) != len(found.neurons):
                raise ValueError(wrong or "heads and neurons must cover as many layers")
            one_of(of=(found.of, OF), unit=(found.unit, UNITS), combine=(found.combine, COMBINED))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a plan as Plan.save writes them ({error}); plan again.") from error
        return found

    def __str__(self) -> str:
        asked = "explicit widths" if self.asked is None else f"asked {self.asked:.2%}"
        kept = self.kept_layers
        depth = f"{len(kept)} of {len(self.heads)}" if len(kept) < len(self.heads) else len(kept)
        lines = [
            f"Plan by {self.criterion or 'hand'}: keep {self.widths[0]} of {self.of_heads} heads and "
            f"{self.widths[2]} of {self.of_neurons} neurons in each of {depth} layers; "
            f"{asked}, removes {self.achieved:.2%} of {'all ' * (self.of == 'parameters')}{self.of}."
        ]
        lines += [f"  of the vocabulary {len(self.tokens or []):,} tokens stay"] * (self.tokens is not None)
        for i in range(len(self.heads)):
            gone = sorted(set(range(self.of_heads)) - set(self.heads[i]))
            fewer = f"heads {gone} go, {self.of_neurons - len(self.neurons[i])} neurons go"
            lines.append(f"  layer {i}: {fewer if i in kept else 'goes whole'}")
        return "\n".join(lines)


def plan(
    model: PreTrainedModel,
    scores: Scores,
    pruning_ratio: float,
    of: str = "parameters",
    parts: str = "both",
    unit: str = "groups",
) -> Plan:
    """Choose what stays at a ratio: `widths_at` says how many heads and neurons, `keep` which ones.

    Args, and errors: see these two.
    """
    heads, neurons = widths_at(model, pruning_ratio, of, parts, unit)
    return replace(keep(model, scores, heads, neurons, unit, of=of), asked=pruning_ratio)


def widths_at(
    model: PreTrainedModel,
    pruning_ratio: float,
    of: str = "parameters",
    parts: str = "both",
    unit: str = "groups",
    align: int = 1,
    nearest: bool = False,
) -> tuple[int, int]:
    """How many heads and neurons stay in every layer at a ratio.

    Heads and neurons lose the same share (AMP's rule: k layers' worth is k/L of the heads and of the neurons); neurons
    make up exactly for the rounding of heads.

    Args:
        pruning_ratio: share of the parameters to remove, in (0, 1).
        of: of which parameters: all "parameters" of the model, or the "block parameters".
        parts: what may go: "both", "heads" or "neurons".
        unit: with grouped queries, "groups" takes whole KV groups with all their query heads; "queries" takes the
            same number of query heads from every group and leaves keys and values (the way for multi-query attention).
        align: the kept neurons are a multiple of this, the nearest one. 1 by default, because on a CPU 8 to 64 changed
            the speed-up by no more than the noise (`benchmarks/`); quantised formats fit multiples of 32 or 256.
        nearest: where the family's configuration refuses the number of heads, take the nearest it accepts.

    Raises:
        ValueError: a ratio outside (0, 1), or one that leaves a layer without a head or a neuron; heads, or neurons,
            that this family cannot lose.
    """
    a, ratio = Anatomy.of(model), a_ratio(pruning_ratio)
    one_of(of=(of, OF), parts=(parts, PARTS), unit=(unit, UNITS))
    can_align(a, align)
    can_lose(a, parts)
    heads, neurons = spread(a, ratio * counted(a, of) / a.layers, parts, unit, align, nearest)
    if heads < 1 or neurons < min(1, a.neurons):
        most = a.layers * removable(a, parts, unit) / counted(a, of)
        raise ValueError(
            f"pruning_ratio={ratio} with parts={parts!r} would leave every layer without a "
            f"{'head' if heads < 1 else 'neuron'}; all of them together are {most:.1%} of the parameters counted."
        )
    return heads, neurons


def keep(
    model: PreTrainedModel,
    scores: Scores,
    heads: int | None = None,
    neurons: int | None = None,
    unit: str = "groups",
    combine: str = "sum",
    of: str = "parameters",
) -> Plan:
    """Keep so many heads and neurons in every layer: those with the highest scores.

    Args:
        heads, neurons: kept widths of every layer; one that is not given stays whole.
        unit: see `widths_at`.
        combine: how a KV group's score comes from its heads': "sum" or "max".
        of: which parameters the achieved ratio refers to.

    Raises:
        ValueError: widths out of range; heads that are not whole units; heads, or neurons, that this family cannot
            lose; scores of another model, or that are not numbers.
    """
    a = Anatomy.of(model)
    one_of(unit=(unit, UNITS), combine=(combine, COMBINED), of=(of, OF))
    _scored(a, scores)
    units, neurons = _possible(a, heads, neurons, unit)
    made = replace(
        whole_plan(a, of=of, criterion=scores.criterion, unit=unit, combine=combine),
        heads=[_best_heads(s, units, a.groups, unit, combine) for s in scores.heads],
        neurons=[_best(s, neurons) for s in scores.neurons],
    )
    return replace(made, achieved=a.layers * narrower(a, made) / counted(a, of))


def whole_plan(anatomy: Anatomy, **settings: Any) -> Plan:
    """The plan that removes nothing."""
    layers, heads, neurons = range(anatomy.layers), range(anatomy.heads), range(anatomy.neurons)
    every = [list(heads) for _ in layers], [list(neurons) for _ in layers]
    return Plan(*every, anatomy.heads, anatomy.neurons, anatomy.groups, **settings)


def narrower(anatomy: Anatomy, plan: Plan) -> int:
    """Parameters that go from each layer that stays: heads with their keys and values, and neurons."""
    heads, groups, neurons = plan.widths
    query, shared = (anatomy.heads - heads) * anatomy.head_dim, (anatomy.groups - groups) * anatomy.head_dim
    return anatomy.cost(query=query, shared=shared, neurons=anatomy.neurons - neurons)


def counted(anatomy: Anatomy, of: str) -> int:
    """How many parameters a ratio refers to."""
    return int(anatomy.model.num_parameters()) if of == "parameters" else anatomy.block_parameters


class Unit(NamedTuple):
    """What goes of the heads together: a KV group, or one query head of every group."""

    number: int  # in a layer
    each: int  # query heads in it
    cost: int  # its parameters
    called: str


def units_of(a: Anatomy, unit: str) -> Unit:
    if unit == "groups":
        return Unit(a.groups, a.group_size, a.group_cost, "query heads of one KV group")
    return Unit(a.group_size, a.groups, a.query_cost, "one query head of every KV group")


def removable(a: Anatomy, parts: str, unit: str) -> int:
    """Parameters of all heads, of all neurons, or of both, in a layer."""
    u = units_of(a, unit)
    attention, mlp = u.number * u.cost, a.neurons * a.neuron_cost
    return {"heads": attention, "neurons": mlp}.get(parts, attention + mlp)


def spread(a: Anatomy, target: float, parts: str, unit: str, align: int, nearest: bool) -> tuple[int, int]:
    """Kept heads and neurons of a layer that loses `target` parameters, the same share of all that may go."""
    u, share = units_of(a, unit), target / removable(a, parts, unit)
    if parts == "heads":
        return u.each * sayable(a, u.number - round(share * u.number), u, nearest), a.neurons
    return fill(a, target, 0 if parts == "neurons" else share, unit, align, nearest)


def fill(
    a: Anatomy, target: float, share: float, unit: str = "groups", align: int = 1, nearest: bool = False
) -> tuple[int, int]:
    """Kept heads and neurons of a layer that loses `target` parameters: a share of its heads, neurons for the rest.

    Never more goes in heads than in all, because neurons can make up for too little and not for too much.
    """
    u = units_of(a, unit)
    units = sayable(a, u.number - min(round(share * u.number), int(target // u.cost)), u, nearest)
    rest = target - (u.number - units) * u.cost
    gone = max(0, round(rest / a.neuron_cost)) if a.neuron_cost else 0
    neurons = a.neurons - gone
    return units * u.each, aligned(a, neurons, align) if gone and neurons >= 1 else neurons


def aligned(a: Anatomy, neurons: int, align: int) -> int:
    """The nearest multiple that leaves a neuron and is no more than there are."""
    return min(max(1, round(neurons / align)), a.neurons // align) * align


def a_ratio(pruning_ratio: float) -> float:
    if not 0 < pruning_ratio < 1:
        raise ValueError(f"pruning_ratio={pruning_ratio} is not a ratio: it must lie between 0 and 1, both excluded.")
    return pruning_ratio


def one_of(**given: tuple[str, Sequence[str]]) -> None:
    for name, (value, possible) in given.items():
        if value not in possible:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(possible)}.")


def can_align(a: Anatomy, align: int) -> None:
    if not 1 <= align <= max(1, a.neurons):
        raise ValueError(f"align={align} must lie between 1 and the number of neurons, {a.neurons}.")


def can_lose(a: Anatomy, parts: str) -> None:
    for part, reason, other in (("heads", a.no_heads, "neurons"), ("neurons", a.family.no_neurons, "heads")):
        if reason and parts in ("both", part):
            raise ValueError(f"{_kind(a)} cannot lose {part}: {reason}. Say parts={other!r}.")


def _scored(a: Anatomy, scores: Scores) -> None:
    """Refuse scores of another model, and scores that rank nothing."""
    shape = [(a.heads, a.neurons)] * a.layers
    scored = [(len(h), len(n)) for h, n in zip(scores.heads, scores.neurons, strict=False)]
    if scored != shape or len(scores.heads) != len(scores.neurons):
        raise ValueError(
            f"The scores are for {len(scored)} layers of (heads, neurons) = {max(scored, default=0)}, the model has "
            f"{len(shape)} of {shape[0]}; score this model."
        )
    if not all(bool(s.isfinite().all()) for s in (*scores.heads, *scores.neurons)):
        raise ValueError("Some scores are NaN or infinite and rank nothing; check the checkpoint, and score again.")
    if not scores.made_for(a.model):
        raise ValueError(
            "The scores are of another model of this shape, or of this one before its weights changed; score this "
            'model, or give dataclasses.replace(scores, model_hash="") if you mean to use them here.'
        )


def _possible(a: Anatomy, heads: int | None, neurons: int | None, unit: str) -> tuple[int, int]:
    """Kept units and neurons as asked."""
    u = units_of(a, unit)
    for name, asked, all_of_them, reason in (
        ("heads", heads, a.heads, a.no_heads),
        ("neurons", neurons, a.neurons, a.family.no_neurons),
    ):
        if reason and asked not in (None, all_of_them):
            raise ValueError(f"{_kind(a)} cannot lose {name}: {reason}. Leave {name}=… out.")
    heads, neurons = (a.heads if heads is None else heads), (a.neurons if neurons is None else neurons)
    if heads % u.each or not 1 <= heads <= a.heads:
        otherwise = "; unit='queries' can" if heads in range(a.groups, a.heads, a.groups) else ""
        raise ValueError(
            f"heads={heads} is not possible: keep a multiple of {u.each} ({u.called}), at most {a.heads}{otherwise}."
        )
    if not min(1, a.neurons) <= neurons <= a.neurons:
        raise ValueError(f"neurons={neurons} is not possible: keep 1 to {a.neurons}.")
    return sayable(a, heads // u.each, u, False), neurons


def sayable(a: Anatomy, units: int, u: Unit, nearest: bool) -> int:
    """The units themselves if a stock configuration has so many heads; the nearest such number if that will do."""
    counts = {h // u.each for h in a.head_counts if h % u.each == 0}
    if units in counts or units < 1:
        return units
    if nearest:
        return min(counts, key=lambda count: (abs(count - units), -count))
    raise ValueError(
        f"A {_kind(a)} configuration takes only head counts that divide the hidden size {a.hidden}, not "
        f"{units * u.each}, and no equal architecture is known for this model; keep "
        f"{', '.join(str(count * u.each) for count in sorted(counts))} heads, or say nearest=True."
    )


def _kind(a: Anatomy) -> str:
    return str(a.model.config.model_type)


def _best(scores: Tensor, count: int) -> list[int]:
    """Indices of the `count` highest scores, ascending; the lower index wins a tie."""
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:count].tolist())


def _best_heads(scores: Tensor, units: int, groups: int, unit: str, combine: str) -> list[int]:
    """Query heads of the best KV groups by their combined scores, or the best query heads of every group."""
    grouped = scores.double().view(groups, -1)
    size = grouped.shape[1]
    if unit == "queries":
        return [g * size + j for g in range(groups) for j in _best(grouped[g], units)]
    combined = grouped.sum(1) if combine == "sum" else grouped.amax(1)
    return [g * size + j for g in _best(combined, units) for j in range(size)]
