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
) -> Plan:
    """Choose what stays: the highest scores, the same number in every layer.

    With `remove`, heads and neurons lose the same share (AMP's rule: k layers' worth is k/L of the heads and of the
    neurons); whole KV groups go, and neurons make up exactly for the rounding of heads. With `heads` and `neurons`,
    these are the kept widths of every layer.

    Args:
        remove: ratio of parameters to remove, in (0, 1).
        of: "all" parameters of the model, or those of its "blocks".
        parts: "both", "heads" or "neurons".
        heads, neurons: explicit kept widths; one that is not given stays whole.

    Raises:
        ValueError: neither or both ways of asking, a ratio outside (0, 1), or one that leaves a layer without a head
            or a neuron; widths out of range; heads that are not whole KV groups; scores of a model of another shape.
    """
    anatomy = Anatomy.of(model)
    if (remove is None) == (heads is None and neurons is None):
        raise ValueError("Say either remove=… or kept widths (heads=…, neurons=…), not both and not neither.")
    if of not in ("all", "blocks") or parts not in PARTS:
        raise ValueError(f"of={of!r} must be 'all' or 'blocks', and parts={parts!r} one of {', '.join(PARTS)}.")
    shape = [(anatomy.heads, anatomy.neurons)] * anatomy.layers
    scored = [(len(h), len(n)) for h, n in zip(scores.heads, scores.neurons, strict=True)]
    if scored != shape:
        raise ValueError(
            f"The scores are for {len(scored)} layers of (heads, neurons) = {max(scored)}, the model has {len(shape)} "
            f"of {shape[0]}; score this model."
        )
    total = model.num_parameters() if of == "all" else anatomy.block_parameters
    if remove is not None:
        groups, kept_neurons = _widths(anatomy, remove * total, remove, parts)
    else:
        heads = anatomy.heads if heads is None else heads
        kept_neurons = anatomy.neurons if neurons is None else neurons
        if heads % anatomy.group_size or not 1 <= heads <= anatomy.heads:
            raise ValueError(
                f"heads={heads} is not possible: keep a multiple of {anatomy.group_size} (query heads of one KV "
                f"group), at most {anatomy.heads}."
            )
        if not 1 <= kept_neurons <= anatomy.neurons:
            raise ValueError(f"neurons={kept_neurons} is not possible: keep 1 to {anatomy.neurons}.")
        groups = heads // anatomy.group_size
    gone = (anatomy.groups - groups) * anatomy.group_cost + (anatomy.neurons - kept_neurons) * anatomy.neuron_cost
    return Plan(
        heads=[_best_groups(s, groups, anatomy.group_size) for s in scores.heads],
        neurons=[_best(s, kept_neurons) for s in scores.neurons],
        of_heads=anatomy.heads,
        of_neurons=anatomy.neurons,
        of_groups=anatomy.groups,
        of=of,
        asked=remove,
        achieved=gone * anatomy.layers / total,
        criterion=scores.criterion,
    )


def _widths(anatomy: Anatomy, target: float, remove: float, parts: str) -> tuple[int, int]:
    """Kept KV groups and neurons of each layer, so that about `target` parameters go."""
    if not 0 < remove < 1:
        raise ValueError(f"remove={remove} is not a ratio: it must lie between 0 and 1, both excluded.")
    layer_target = target / anatomy.layers
    attention = anatomy.groups * anatomy.group_cost
    mlp = anatomy.neurons * anatomy.neuron_cost
    share = layer_target / {"both": attention + mlp, "heads": attention, "neurons": mlp}[parts]
    groups_gone = 0 if parts == "neurons" else round(share * anatomy.groups)
    if parts == "both":  # never more in heads than asked in all: neurons can make up for too little, not for too much
        groups_gone = min(groups_gone, int(layer_target // anatomy.group_cost))
    rest = layer_target - groups_gone * anatomy.group_cost
    neurons_gone = 0 if parts == "heads" else max(0, round(rest / anatomy.neuron_cost))
    groups, neurons = anatomy.groups - groups_gone, anatomy.neurons - neurons_gone
    if groups < 1 or neurons < 1:
        what = "head" if groups < 1 else "neuron"
        most = {"both": attention + mlp, "heads": attention, "neurons": mlp}[parts] / (target / remove / anatomy.layers)
        raise ValueError(
            f"remove={remove} with parts={parts!r} would leave every layer without a {what}; "
            f"all of them together are {most:.1%} of the parameters counted."
        )
    return groups, neurons


def _best(scores: Tensor, keep: int) -> list[int]:
    """Indices of the `keep` highest scores, ascending; the lower index wins a tie."""
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:keep].tolist())


def _best_groups(scores: Tensor, groups: int, size: int) -> list[int]:
    """Query heads of the best KV groups; a group's score is the sum of its heads' (with one head each, the head's)."""
    best = _best(scores.double().view(-1, size).sum(1), groups)
    return [g * size + j for g in best for j in range(size)]
