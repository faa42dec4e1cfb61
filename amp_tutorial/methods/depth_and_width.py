"""Plans that take whole layers, or tokens of the vocabulary, as well as heads and neurons, on one budget."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.plans import (
    PARTS,
    UNITS,
    Plan,
    a_ratio,
    aligned,
    can_align,
    can_lose,
    counted,
    fill,
    keep,
    narrower,
    one_of,
    sayable,
    spread,
    units_of,
    whole_plan,
    widths_at,
)
from ..core.scores import Scores
from .flap import joint_share
from .vocabulary import changed, rows_of, token_parameters


def with_layers(plan: Plan, layers: Sequence[int], model: PreTrainedModel) -> Plan:
    """A plan with only these layers kept, each as wide as it says: depth and width in one plan.

    Args:
        layers: kept layers of the dense model, such as the `layers` of a plan by `plan_layers` or `drop_layers`.
        model: the dense model, which says what a layer is worth.

    Raises:
        ValueError: no layer, one twice, or one that the plan does not keep.
    """
    anatomy, kept = Anatomy.of(model), sorted(set(layers))
    if not kept or len(kept) < len(layers) or not set(kept) <= set(plan.kept_layers):
        raise ValueError(
            f"layers={list(layers)} must name at least one layer, and each once, of those kept: {plan.kept_layers}."
        )
    fewer = replace(
        plan,
        heads=[heads if i in kept else [] for i, heads in enumerate(plan.heads)],
        neurons=[neurons if i in kept else [] for i, neurons in enumerate(plan.neurons)],
        layers=None if len(kept) == len(plan.heads) else kept,
    )
    each = narrower(anatomy, fewer)
    gone = sum(each if i in kept else count for i, count in enumerate(anatomy.layer_parameters))
    return replace(fewer, achieved=gone / counted(anatomy, plan.of) + _share(model, plan))


def with_tokens(plan: Plan, tokens: Sequence[int], model: PreTrainedModel) -> Plan:
    """A plan with only these tokens of the vocabulary kept, and heads, neurons and layers as it says.

    Args:
        tokens: kept tokens, ascending, as `tokens_in_use` gives them.
        model: the dense model, which says what a token is worth: nothing, where ratios are of block parameters.

    Raises:
        ValueError: no token, one twice or not in order, one that the model does not have; one goes that a configuration
            names, such as the end of a text.
    """
    fewer = replace(plan, tokens=[int(token) for token in tokens], of_tokens=rows_of(model))
    for settings in (model.config, model.generation_config):
        changed(settings, fewer)  # refuses that one of its tokens goes
    return replace(fewer, achieved=plan.achieved - _share(model, plan) + _share(model, fewer))


def _share(model: PreTrainedModel, plan: Plan) -> float:
    """Of the parameters that the plan's ratio refers to, those of tokens that go."""
    if plan.tokens is None or plan.of != "parameters":
        return 0.0
    return (rows_of(model) - len(plan.tokens)) * token_parameters(model) / int(model.num_parameters())


def planned(
    model: PreTrainedModel,
    scores: Scores,
    pruning_ratio: float | None = None,
    *,
    of: str = "parameters",
    parts: str = "both",
    heads: int | None = None,
    neurons: int | None = None,
    unit: str = "groups",
    combine: str = "sum",
    align: int = 1,
    nearest: bool = False,
    layers: Sequence[int] | None = None,
) -> Plan:
    """Any plan by scores: at a ratio or of given widths, of all layers or of some.

    Args:
        pruning_ratio, of, unit, align, nearest: see `core.plans.widths_at`.
        parts: as there; or "scored": heads and neurons of all layers stand in one ranking of their scores, which says
            how much of each goes (FLAP's global search); every layer then loses as much as the mean.
        heads, neurons, combine: see `core.plans.keep`.
        layers: kept layers; all others go whole. What they hold counts towards the ratio: heads and neurons of the
            layers that stay make up for the rest.

    Raises:
        ValueError: neither a ratio nor widths nor layers, or a ratio and widths; what `widths_at`, `keep` and
            `with_layers` refuse; layers that alone hold more than the ratio.
    """
    explicit = heads is not None or neurons is not None
    if (pruning_ratio is None and not explicit and layers is None) or (pruning_ratio is not None and explicit):
        raise ValueError("Say either pruning_ratio=… or kept widths (heads=…, neurons=…), and not both.")
    a = Anatomy.of(model)
    one_of(parts=(parts, (*PARTS, "scored")), unit=(unit, UNITS))
    can_align(a, align)
    u = units_of(a, unit)
    if neurons is not None and 1 <= neurons < a.neurons:
        neurons = aligned(a, neurons, align)
    if nearest and heads is not None and heads % u.each == 0:
        heads = sayable(a, heads // u.each, u, nearest) * u.each
    depth = range(a.layers) if layers is None else layers
    if pruning_ratio is not None and layers is None and parts != "scored":
        heads, neurons = widths_at(model, pruning_ratio, of, parts, unit, align, nearest)
    elif pruning_ratio is not None:
        heads, neurons = _widths(a, scores, pruning_ratio, depth, of, parts, unit, align, nearest)
    wide = keep(model, scores, heads, neurons, unit, combine, of)
    return with_layers(replace(wide, asked=pruning_ratio), depth, model)


def plan_with_layers(
    model: PreTrainedModel, scores: Scores, pruning_ratio: float, layers: Sequence[int], unit: str = "groups"
) -> Plan:
    """Depth and width on one budget: these layers stay, and their heads and neurons make up for the rest of the ratio.

    Args:
        layers: kept layers, such as those of a plan by `plan_layers` or `drop_layers`; what the others hold counts.

    Raises:
        ValueError: see `planned`.
    """
    return planned(model, scores, pruning_ratio, layers=layers, unit=unit)


def plan_with_tokens(
    model: PreTrainedModel,
    scores: Scores,
    pruning_ratio: float,
    tokens: Sequence[int],
    parts: str = "both",
    unit: str = "groups",
    layers: Sequence[int] | None = None,
) -> Plan:
    """Vocabulary and width on one budget: these tokens stay, and heads and neurons make up for the rest of the ratio.

    Args:
        pruning_ratio: share of all parameters to remove, in (0, 1).
        tokens: kept tokens, ascending, as `tokens_in_use` gives them; what the others hold counts.
        parts, unit, layers: as in `planned`.

    Raises:
        ValueError: the tokens that go hold more than the ratio; what `with_tokens` and `planned` refuse.
    """
    first = with_tokens(whole_plan(Anatomy.of(model)), tokens, model)
    if (rest := a_ratio(pruning_ratio) - first.achieved) <= 0:
        raise ValueError(
            f"The tokens that go are {first.achieved:.1%} of all parameters, no less than pruning_ratio="
            f"{pruning_ratio}; keep more of them, or ask for more."
        )
    try:
        wide = planned(model, scores, rest, parts=parts, unit=unit, layers=layers)
    except ValueError as error:
        asked = f"pruning_ratio={pruning_ratio} less {first.achieved:.1%} for tokens"
        raise ValueError(str(error).replace(f"pruning_ratio={rest}", asked)) from error
    return replace(with_tokens(wide, tokens, model), asked=pruning_ratio)


def plan_jointly(model: PreTrainedModel, scores: Scores, pruning_ratio: float, unit: str = "groups") -> Plan:
    """Heads and neurons of all layers in one ranking, which says how much of each goes (FLAP's global search).

    Raises:
        ValueError: scores of heads and of neurons in different units; see `planned`.
    """
    return planned(model, scores, pruning_ratio, parts="scored", unit=unit)


def _widths(
    a: Anatomy,
    scores: Scores,
    pruning_ratio: float,
    layers: Sequence[int],
    of: str,
    parts: str,
    unit: str,
    align: int,
    nearest: bool,
) -> tuple[int, int]:
    """Kept heads and neurons of each layer that stays, so that with whole layers about the ratio goes."""
    already = with_layers(whole_plan(a, of=of), layers, a.model).achieved
    if already > a_ratio(pruning_ratio):
        raise ValueError(
            f"The layers that go are {already:.1%} of the parameters counted, more than pruning_ratio={pruning_ratio}; "
            "keep more layers, or ask for more."
        )
    can_lose(a, "both" if parts == "scored" else parts)
    target = (pruning_ratio - already) * counted(a, of) / len(layers)
    if parts == "scored":
        heads, neurons = fill(a, target, joint_share(a, scores, target * a.layers), unit, align, nearest)
    else:
        heads, neurons = spread(a, target, parts, unit, align, nearest)
    if heads < 1 or neurons < min(1, a.neurons):
        raise ValueError(
            f"pruning_ratio={pruning_ratio} with parts={parts!r} would leave every layer without a "
            f"{'head' if heads < 1 else 'neuron'}; ask for less, or keep other layers."
        )
    return heads, neurons
