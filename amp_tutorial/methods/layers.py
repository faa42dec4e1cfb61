"""Which decoder layers a model can do without: scores by layer, and plans that remove whole layers.

A score is kept under the number of its layer, from the first to the last step: the released code of Consensus sorts its
scores and then reads a place in the list as a depth, so it always removes the first removable block [code, run].
Higher is more important, as everywhere here: the layer with the lowest score goes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..core.anatomy import Anatomy, exact
from ..core.plans import OF, Plan, a_ratio, counted, one_of, whole_plan
from ..core.sums import Batch, entering, evaluating, held
from ..files.arguments import at_least_one, checked
from .depth_and_width import with_layers
from .similarity import METRICS
from .whole_layers import Pass

# Each criterion with the numbers of layers at the two ends that it leaves alone.
LAYER_CRITERIA: dict[str, tuple[int, int]] = {
    "consensus": (0, 0),
    **dict.fromkeys(METRICS, (0, 0)),  # one metric's vote alone
    "influence": (0, 0),
    "perplexity": (1, 1),
    "last": (0, 1),
    "random": (0, 0),
}
TOKENS_PER_FEATURE = 4  # the least with which representations are compared


def rank_layers(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    criterion: str = "consensus",
    layers: Sequence[int] | None = None,
    spare: tuple[int, int] | None = None,
    seed: int = 0,
    features: int = 256,
) -> dict[int, float]:
    """Score every decoder layer once; `drop_layers` scores again after each removal.

    "consensus" (arXiv 2411.14345, ported from CNNs; official code read [code]): X = final-norm hidden states of the
    calibration tokens, Y_ℓ = the same with layer ℓ skipped. Each metric of `similarity.METRICS` ranks the layers by
    the distance of X and Y_ℓ, 1 for the least; the score is the sum of the ranks, unweighted. Ties share a rank (the
    official code gives them ranks in order of depth). The class of a token is the token that follows it. Known
    defects: eight votes are not eight opinions, as three come from one metric and two from another; ranks forget by
    how much a layer differs. A metric's name alone, such as "cka", gives its distances.

    "influence" (ShortGPT, arXiv 2403.03853; official code icip-cas/ShortGPT read [code]): block influence, 1 − mean
    over tokens of cos(h, h') with h before and h' after the layer. One pass. ShortGPT scores once: use `plan_layers`
    on it for that. The official code counts padding, and takes h' of the last layer after the final norm; here
    neither. Known defect: it doesn't see what later layers make of the difference.

    "perplexity" (SLEB, arXiv 2402.09025; official code jiwonsong-dev/SLEB read [code]): perplexity of the calibration
    text with the layer skipped. As in that code the first and last layer stay, unless `spare` says otherwise. Known
    defect: greedy, and chosen on the very text by which it is measured.

    "last": the deepest first, but the very last `spare[1]` stay (a common baseline; source of the form: not found).
    "random": by chance, from the seed; the order is the same however many are gone.

    Args:
        model: a causal language model of a known family; it is not changed.
        batches: as in `score`; not read by "last" and "random".
        criterion: a name in `LAYER_CRITERIA`.
        layers: the layers still there, all others are skipped; by default all.
        spare: numbers of layers at the beginning and the end that stay; by default those of `LAYER_CRITERIA`.
        seed: of "random", and of the projection.
        features: with a wider hidden state, X and Y are projected to so many features by one random matrix with
            orthonormal columns. (The order of features, which "permutation" looks at, is then that of the projection.)
            Held at once: tokens · features · (layers + 1) values in float32, and one batch's states at every layer.

    Returns:
        The score of each layer that is there, by its number; infinite for those that are spared.

    Raises:
        ValueError: unknown criterion; layers that are not there or none to choose from; no tokens, or too few for the
            features compared; hidden states that are not finite.
    """
    if criterion not in LAYER_CRITERIA:
        raise ValueError(f"Unknown criterion {criterion!r}; choose from {', '.join(LAYER_CRITERIA)}.")
    anatomy = Anatomy.of(model)
    kept = with_layers(whole_plan(anatomy), range(anatomy.layers) if layers is None else layers, model).kept_layers
    first, last = LAYER_CRITERIA[criterion] if spare is None else spare
    at_least_one(features=features)
    candidates = kept[first : max(first, len(kept) - last)]
    if min(first, last) < 0 or not candidates:
        raise ValueError(f"spare={(first, last)} leaves none of {len(kept)} layers to choose from; spare fewer.")
    if criterion == "last":
        found = {i: -float(i) for i in candidates}
    elif criterion == "random":
        drawn = torch.rand(anatomy.layers, generator=torch.Generator().manual_seed(seed)).tolist()
        found = {i: drawn[i] for i in candidates}
    else:
        with evaluating(model):
            passes = (Pass(anatomy, batch, kept) for batch in entering(model, batches))
            if criterion == "influence":
                found = _influence(passes, candidates)
            elif criterion == "perplexity":
                found = _perplexity(passes, candidates)
            else:
                names = list(METRICS) if criterion == "consensus" else [criterion]
                distances = _distances(passes, candidates, names, features, seed)
                found = consensus(distances) if criterion == "consensus" else distances[criterion]
        for i, score in found.items():
            _sound(math.isfinite(score), i)
    return {i: found.get(i, math.inf) for i in kept}


def drop_layers(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    num_layers: int,
    criterion: str = "consensus",
    of: str = "parameters",
    progress: bool = True,
    first: Sequence[int] = (),
    **settings: Any,
) -> Plan:
    """Remove the lowest layer, score the others again without it, and so on: a plan that keeps the rest whole.

    Args:
        num_layers: how many go.
        first: of these the layers that have gone already: a search goes on where a shorter one ended.
        criterion, settings: as in `rank_layers`: spare, seed, features.
        of: what the plan's ratio refers to: all "parameters", or the "block parameters".
        progress: show a bar over the layers removed.

    Raises:
        ValueError: no layer to remove, or none left; others to go first than the model has, or more; and what
            `rank_layers` refuses.
    """
    anatomy, batches = Anatomy.of(model), held(model, batches)
    if not 1 <= num_layers < anatomy.layers:
        raise ValueError(f"num_layers={num_layers} of {anatomy.layers} is not possible: at least 1 goes and 1 stays.")
    one_of(of=(of, OF))
    kept = [i for i in range(anatomy.layers) if i not in first]
    if len(kept) + len(first) != anatomy.layers or len(first) > num_layers:
        raise ValueError(
            f"first={list(first)} must name at most {num_layers} of the layers 0 to {anatomy.layers - 1}, each once."
        )
    for _ in tqdm(range(len(first), num_layers), desc="Removed", unit="layer", disable=not progress):
        kept.remove(_order(checked(rank_layers)(model, batches, criterion, layers=kept, **settings))[0])
    return with_layers(whole_plan(anatomy, of=of, criterion=criterion), kept, model)


def plan_layers(
    model: PreTrainedModel,
    scores: Mapping[int, float],
    pruning_ratio: float | None = None,
    keep: int | None = None,
    of: str = "parameters",
    criterion: str = "hand",
) -> Plan:
    """Choose the layers that stay by scores given once: the highest; heads and neurons stay whole.

    For depth and width on one budget: `plan_with_layers(model, scores, pruning_ratio, plan_layers(…).layers)`.

    Args:
        scores: of every layer by its number, as `rank_layers` gives them. Of equals the deeper goes first.
        pruning_ratio: share of parameters to remove; as many layers go as come nearest to it.
        keep: or the number of layers that stay.
        of: what the ratio refers to: all "parameters", or the "block parameters".

    Raises:
        ValueError: neither or both ways of asking; scores of other layers than the model has, or NaN; a ratio that is
            none, or less than half of a layer; no layer left; or layers to go that are to stay (infinite scores).
    """
    anatomy = Anatomy.of(model)
    if (pruning_ratio is None) == (keep is None):
        raise ValueError("Say either pruning_ratio=… or keep=….")
    one_of(of=(of, OF))
    if set(scores) != set(range(anatomy.layers)) or any(map(math.isnan, scores.values())):
        raise ValueError(f"Give one score for each layer from 0 to {anatomy.layers - 1}, by its number, and none NaN.")
    order, costs = _order(scores), anatomy.layer_parameters
    if pruning_ratio is not None:
        a_ratio(pruning_ratio)
        total = counted(anatomy, of)
        gone = [sum(costs[i] for i in order[:n]) / total for n in range(anatomy.layers + 1)]
        keep = anatomy.layers - min(range(len(gone)), key=lambda n: abs(gone[n] - pruning_ratio))
        if keep == anatomy.layers:
            raise ValueError(
                f"pruning_ratio={pruning_ratio} is less than half of a layer, which is {gone[1]:.1%}; ask for more."
            )
    if keep is None or not 1 <= keep <= anatomy.layers:
        raise ValueError(f"That would keep {keep} of {anatomy.layers} layers; keep 1 to {anatomy.layers}.")
    goes = order[: anatomy.layers - keep]
    if spared := sorted(i for i in goes if scores[i] == math.inf):
        raise ValueError(f"That would take layers {spared}, which are to stay; keep more layers, or spare fewer.")
    whole = whole_plan(anatomy, of=of, asked=pruning_ratio, criterion=criterion)
    return with_layers(whole, order[len(goes) :], model)


def consensus(distances: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """Add up the ranks, 1 for the least, that each metric gives the layers."""
    layers = list(next(iter(distances.values())))
    votes = [rankdata([of_metric[i] for i in layers]) for of_metric in distances.values()]
    return dict(zip(layers, np.sum(votes, axis=0).tolist(), strict=True))


def _order(scores: Mapping[int, float]) -> list[int]:
    """Layers in the order in which they go: the lowest score first, of equals the deeper."""
    return sorted(scores, key=lambda i: (scores[i], -i))


def _influence(passes: Iterable[Pass], candidates: Sequence[int]) -> dict[int, float]:
    sums, tokens = dict.fromkeys(candidates, 0.0), 0
    for one in passes:
        mask = one.mask.to(one.final.device)
        tokens += int(mask.sum())
        for i in candidates:
            cosine = F.cosine_similarity(one.before[i][mask].float(), one.after[i][mask].float(), dim=-1)
            sums[i] += float((1 - exact(cosine)).sum())
    return {i: total / _some(tokens) for i, total in sums.items()}


def _perplexity(passes: Iterable[Pass], candidates: Sequence[int]) -> dict[int, float]:
    sums, tokens = dict.fromkeys(candidates, 0.0), 0
    for one in passes:
        labels = one.ids[:, 1:][one.followed[:, :-1]]
        tokens += len(labels)
        for i in candidates:
            with one.without(i):
                logits = one.of_tokens(one.run(one.model).logits)
            sums[i] += float(exact(F.cross_entropy(logits, labels.to(logits.device), reduction="none")).sum())
    return {i: math.exp(min(total / _some(tokens), 700)) for i, total in sums.items()}


def _distances(
    passes: Iterable[Pass], candidates: Sequence[int], names: Sequence[str], features: int, seed: int
) -> dict[str, dict[int, float]]:
    """Of each metric: the distance between the whole model's features and those without each layer."""
    whole, without, labels = [], {i: [] for i in candidates}, []  # type: ignore[var-annotated]
    for one in passes:
        hidden = one.final.shape[-1]
        generator = torch.Generator().manual_seed(seed)
        narrow = torch.linalg.qr(torch.randn(hidden, features, generator=generator)).Q if hidden > features else None

        def seen(final: Tensor, one: Pass = one, narrow: Tensor | None = narrow) -> Tensor:
            rows = one.of_tokens(final).cpu()
            return rows if narrow is None else rows @ narrow

        whole.append(seen(one.final))
        labels.append(one.ids[:, 1:][one.followed[:, :-1]])
        for i in candidates:
            with one.without(i):
                without[i].append(seen(one.run(one.model.base_model).last_hidden_state))
    tokens = _some(sum(map(len, whole)))
    if tokens < TOKENS_PER_FEATURE * whole[0].shape[1]:
        raise ValueError(
            f"{tokens} calibration tokens are too few to compare {whole[0].shape[1]} features; give at least "
            f"{TOKENS_PER_FEATURE} tokens for each, or say features={max(1, tokens // TOKENS_PER_FEATURE)}."
        )
    classes = torch.cat(labels).cpu().numpy()
    x, ys = torch.cat(whole), {i: torch.cat(rows) for i, rows in without.items()}
    for i, y in ys.items():
        _sound(all(bool(rows.isfinite().all() and (rows != rows[0]).any()) for rows in (x, y)), i)
    return {
        name: {i: METRICS[name](x.double().numpy(), y.double().numpy(), classes) for i, y in ys.items()}
        for name in names
    }


def _sound(good: bool, layer: int) -> None:
    if not good:
        raise ValueError(
            f"What the model computes with or without layer {layer} is NaN, infinite or the same for every token; use "
            "float32 or bfloat16, and check the checkpoint and the calibration text."
        )


def _some(tokens: int) -> int:
    if not tokens:
        raise ValueError("The calibration batches hold no tokens that others follow; give some text.")
    return tokens
