"""Exercises of lesson 4, recovery."""

import torch
from torch import Tensor

from .exercises import Exercise


def merge(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """The weight (out, in) with the adapter added: `a` is (rank, in), `b` is (out, rank)."""
    rank = a.shape[0]
    return weight + alpha / rank * (b @ a)


def labels(prompt: list[int], response: list[int]) -> list[int]:
    """One label for each token of prompt and response; −100 where nothing is to be learnt."""
    return [-100] * len(prompt) + response


def closed(pruned: float, recovered: float, dense: float, dense_tuned: float) -> float:
    """Share of the gap that recovery closed; 1 means as good as the dense model that was trained alike."""
    return (recovered - pruned) / (dense_tuned - pruned)


def _merge_cases() -> list[tuple[Tensor, Tensor, Tensor, float]]:
    draw = torch.Generator().manual_seed(0)

    def case(rows: int, columns: int, rank: int, alpha: float) -> tuple[Tensor, Tensor, Tensor, float]:
        shapes = (rows, columns), (rank, columns), (rows, rank)
        weight, a, b = (torch.randn(shape, generator=draw) for shape in shapes)
        return weight, a, b, alpha

    return [case(6, 6, 2, 16.0), case(4, 6, 3, 8.0), case(5, 3, 1, 2.0), case(4, 4, 4, 16.0)]


EXERCISES = {
    "l4_merge": Exercise(
        reference=merge,
        cases=_merge_cases,
        misconceptions={
            "You forgot the scaling alpha / r. Without it a change of rank also changes the size of the update.": (
                lambda weight, a, b, alpha: weight + b @ a
            ),
            "You scaled by alpha alone; it is alpha / r, so that a larger rank does not mean a larger update.": (
                lambda weight, a, b, alpha: weight + alpha * (b @ a)
            ),
            "You took the rank from the wrong axis: `a` is (rank, in), so the rank is `a.shape[0]`.": (
                lambda weight, a, b, alpha: weight + alpha / a.shape[1] * (b @ a)
            ),
            "You returned the update alone. Merged, it is added to the weight.": (
                lambda weight, a, b, alpha: alpha / a.shape[0] * (b @ a)
            ),
            "You multiplied in the other order: `a @ b` is (rank, rank). Down to the rank comes first: `b @ a`.": (
                lambda weight, a, b, alpha: weight + alpha / a.shape[0] * (a @ b)
            ),
        },
        hints=[
            "The update must have the shape of the weight, (out, in). Which product of `a` and `b` has it?",
            "`b @ a` is (out, rank) times (rank, in). Scale it by alpha over the rank.",
        ],
    ),
    "l4_labels": Exercise(
        reference=labels,
        cases=lambda: [([0, 14, 15, 16], [21, 1]), ([0], [7, 8, 9, 1]), ([0, 5, 5], [5, 5, 1])],
        misconceptions={
            "You trained on the prompt too. Its labels must be −100, which the loss skips.": (
                lambda prompt, response: prompt + response
            ),
            "You masked the response and train on the prompt: the other way round.": (
                lambda prompt, response: prompt + [-100] * len(response)
            ),
            "You left the prompt's places out. Labels stand token by token under the inputs: mask, don't shorten.": (
                lambda prompt, response: list(response)
            ),
            "You shifted the labels by one place. The loss does that itself, so a shift here makes it two.": (
                lambda prompt, response: [-100] * (len(prompt) - 1) + response + [-100]
            ),
            "You masked with 0. That is a real token (here it is BOS); the loss skips −100.": (
                lambda prompt, response: [0] * len(prompt) + response
            ),
        },
        hints=[
            "The list of labels is as long as prompt and response together.",
            "−100 once for every token of the prompt, then the response as it is.",
        ],
    ),
    "l4_closed": Exercise(
        reference=closed,
        cases=lambda: [(0.50, 0.70, 0.90, 0.95), (0.60, 0.60, 0.80, 0.90), (9.0, 5.0, 4.0, 3.0)],
        misconceptions={
            "You measured against the untouched dense model. It had no training, so it is no fair ceiling: use the "
            "dense model that was trained alike.": (
                lambda pruned, recovered, dense, dense_tuned: (recovered - pruned) / (dense - pruned)
            ),
            "That is what is left in the end, not what was closed: subtract where the pruned model began.": (
                lambda pruned, recovered, dense, dense_tuned: recovered / dense_tuned
            ),
            "That is the gain itself. Divide it by the gap there was to close.": (
                lambda pruned, recovered, dense, dense_tuned: recovered - pruned
            ),
            "That is the share of the dense model's score, which was never all lost; of the gap it is more or less.": (
                lambda pruned, recovered, dense, dense_tuned: recovered / dense
            ),
            "That is the share of the gap that stays open.": (
                lambda pruned, recovered, dense, dense_tuned: (dense_tuned - recovered) / (dense_tuned - pruned)
            ),
        },
        hints=[
            "Draw a line from 'pruned' to the ceiling. How far along it does 'recovered' lie?",
            "The gain divided by the gap. The ceiling had the same training: `dense_tuned`.",
        ],
    ),
}
