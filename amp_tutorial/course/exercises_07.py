"""Exercises of lesson 7, layers."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from .exercises import Exercise

Distances = dict[str, dict[int, float]]
Score = Callable[[list[int]], dict[int, float]]


def votes(distances: Distances) -> dict[int, float]:
    """Each metric ranks the layers, 1 for the least distance; return the sum of the ranks of each layer."""
    total = dict.fromkeys(next(iter(distances.values())), 0.0)
    for of_metric in distances.values():
        for layer, rank in zip(of_metric, rankdata(list(of_metric.values())), strict=True):
            total[layer] += float(rank)
    return total


def one_at_a_time(score: Score, layers: Sequence[int], remove: int) -> list[int]:
    """Remove the layer with the lowest score, score those left again, and so on; return the layers kept.

    `score(kept)` gives the scores of the layers in `kept`, by their numbers in the dense model.
    """
    kept = list(layers)
    for _ in range(remove):
        scores = score(kept)
        kept.remove(min(kept, key=lambda layer: scores[layer]))
    return kept


def _sums(distances: Distances) -> dict[int, float]:
    first = next(iter(distances.values()))
    return {layer: sum(of_metric[layer] for of_metric in distances.values()) for layer in first}


def _from_the_top(distances: Distances) -> dict[int, float]:
    return votes({name: {i: -d for i, d in of_metric.items()} for name, of_metric in distances.items()})


def _argsorts(distances: Distances) -> dict[int, float]:
    first = next(iter(distances.values()))
    added = sum(np.argsort(list(of_metric.values())) + 1.0 for of_metric in distances.values())
    return dict(zip(first, np.asarray(added).tolist(), strict=True))


def _by_place(distances: Distances) -> dict[int, float]:
    return dict(enumerate(votes(distances).values()))


def _once(score: Score, layers: Sequence[int], remove: int) -> list[int]:
    scores = score(list(layers))
    return sorted(sorted(layers, key=lambda layer: scores[layer])[remove:])


def _place_as_depth(score: Score, layers: Sequence[int], remove: int) -> list[int]:
    return list(layers)[remove:]


def _place_as_number(score: Score, layers: Sequence[int], remove: int) -> list[int]:
    kept = list(layers)
    for _ in range(remove):
        scores = score(kept)
        place = min(range(len(kept)), key=lambda n: scores[kept[n]])
        kept.remove(place)
    return kept


def _the_best(score: Score, layers: Sequence[int], remove: int) -> list[int]:
    return one_at_a_time(lambda kept: {layer: -value for layer, value in score(kept).items()}, layers, remove)


def _alone(worth: dict[int, float]) -> Score:
    """A layer whose neighbour before it has gone is worth 10 more."""
    return lambda kept: {i: worth[i] + 10 * (i - 1 in worth and i - 1 not in kept) for i in kept}


def made_anew(names: list[str], layers: int) -> list[int]:
    """Numbers of the layers that a model of so many would have to make up, given the names in a checkpoint."""
    there = {int(name.split(".layers.")[1].split(".")[0]) for name in names if ".layers." in name}
    return sorted(set(range(layers)) - there)


def _checkpoint(*kept: int) -> list[str]:
    parts = ("self_attn.q_proj.weight", "mlp.down_proj.weight")
    return [
        "model.embed_tokens.weight",
        *(f"model.layers.{i}.{part}" for i in kept for part in parts),
        "lm_head.weight",
    ]


def _there(names: list[str]) -> set[int]:
    return {int(name.split(".")[2]) for name in names if ".layers." in name}


EXERCISES = {
    "l7_votes": Exercise(
        reference=votes,
        cases=lambda: [
            ({"a": {0: 0.9, 2: 0.1, 3: 0.5}, "b": {0: 300.0, 2: 200.0, 3: 100.0}},),
            ({"a": {0: 3.0, 1: 1.0, 2: 4.0, 5: 2.0}, "b": {0: 0.2, 1: 0.3, 2: 0.4, 5: 0.1}},),
            ({"a": {1: 5.0, 4: 7.0, 6: 6.0}},),
        ],
        misconceptions={
            "You added the distances. The metric with the largest numbers then decides alone; add ranks.": _sums,
            "Your ranks run from the greatest distance. 1 is for the least: the lowest total is the layer to go.": (
                _from_the_top
            ),
            "`argsort` says which layer stands at a place, not at which place a layer stands. That is its inverse: "
            "use `scipy.stats.rankdata`, or `argsort` of `argsort`.": _argsorts,
            "You numbered the sums by their place in the list. Some layers are gone already: keep each sum under the "
            "number of its layer.": _by_place,
        },
        hints=[
            "Go metric by metric: `scipy.stats.rankdata(list(of_metric.values()))` gives the rank of each entry.",
            "Start with 0 for every layer, and add each metric's rank under the layer's own number.",
        ],
    ),
    "l7_one_at_a_time": Exercise(
        reference=one_at_a_time,
        cases=lambda: [
            (_alone({0: 5.0, 1: 9.0, 2: 1.0, 3: 2.0, 4: 4.0}), [0, 1, 2, 3, 4], 2),
            (_alone({0: 9.0, 1: 2.0, 2: 1.0, 3: 7.0}), [0, 1, 2, 3], 1),
            (_alone({0: 9.0, 1: 5.0, 2: 6.0, 3: 1.0, 4: 3.0, 5: 2.0}), [0, 1, 2, 3, 4, 5], 3),
        ],
        misconceptions={
            "You scored once. With a layer gone the others matter more or less than before: score again.": _once,
            "You removed whatever came first: the numbers of the layers got lost when you sorted the scores.": (
                _place_as_depth
            ),
            "You took the place in the list for the number of the layer. After the first removal they differ.": (
                _place_as_number
            ),
            "You removed the layer with the highest score; the lowest is the least important.": _the_best,
        },
        hints=[
            "A loop over `range(remove)`: score what is left, find one layer, take it out.",
            "`min(kept, key=scores.get)` is a layer's number, and `kept.remove(…)` takes that number.",
        ],
    ),
    "l7_made_anew": Exercise(
        reference=made_anew,
        cases=lambda: [
            (_checkpoint(0, 1, 4, 5), 4),
            (_checkpoint(0, 2, 3), 3),
            (_checkpoint(0, 1, 2), 3),
            (_checkpoint(2, 10, 11, 12), 4),
        ],
        misconceptions={
            "Those are in the file and never read: no module has their number. Asked for is what the model lacks.": (
                lambda names, layers: sorted(_there(names) - set(range(layers)))
            ),
            "You counted: as many layers are there as are wanted, but under other numbers.": (
                lambda names, layers: list(range(len(_there(names)), layers))
            ),
            "Those are there. Asked for are those that are not.": lambda names, layers: sorted(
                _there(names) & set(range(layers))
            ),
            "Those are all that the file holds. Asked for is what it lacks, of those that the model wants.": (
                lambda names, layers: sorted(_there(names))
            ),
            "You took one digit. Layer 10 is not layer 1.": lambda names, layers: sorted(
                set(range(layers)) - {int(name.split(".layers.")[1][0]) for name in names if ".layers." in name}
            ),
            "A hole in the numbers only counts below the number of layers: those above are never asked for.": (
                lambda names, layers: sorted(set(range(max(_there(names)) + 1)) - _there(names))
            ),
        },
        hints=[
            "A model of n layers asks for the numbers 0 to n − 1. Which of them does no name hold?",
            "The number stands behind `.layers.` and before the next point; `set(range(layers))` less those.",
        ],
    ),
}
