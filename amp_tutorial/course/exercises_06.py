"""Exercises of lessons 6 and 6b: other answers, and when and where they are asked."""

import math
import statistics

import torch
from torch import Tensor

from .exercises import Exercise


def wanda_neurons(a: Tensor, down: Tensor) -> Tensor:
    """Wanda-sp of every neuron, from activations (tokens, neurons) and W_down (hidden, neurons).

    The mean over the hidden dimension of |W_ij|, times the root of the mean over tokens of a_j².
    """
    return down.abs().mean(0) * a.square().mean(0).sqrt()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Taylor's score of every row of a weight (out, in): the sum of |w · ∂L/∂w| over its weights."""
    return (weight * gradient).abs().sum(1)


def cheapest_first(scores: list[float], costs: list[int], budget: int) -> list[int]:
    """Which structures go: the lowest scores, as long as what they cost together is within the budget."""
    gone, spent = [], 0
    for k in sorted(range(len(scores)), key=lambda k: scores[k]):
        spent += costs[k]
        if spent > budget:
            break
        gone.append(k)
    return sorted(gone)


def without_partner(kept: list[int], head_dim: int) -> list[int]:
    """Of the dimensions kept, those whose partner under RoPE is gone: j turns with j + head_dim / 2."""
    half = head_dim // 2
    return [j for j in kept if (j + half) % head_dim not in kept]


def schedule(current: int, target: int, shots: int) -> list[int]:
    """How many are left after each shot: every shot takes an equal part of what is still too many, rounded down."""
    left = []
    for remaining in range(shots, 0, -1):
        current -= (current - target) // remaining
        left.append(current)
    return left


def _wanda_cases() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(tokens, neurons, generator=draw), torch.randn(hidden, neurons, generator=draw))
        for tokens, neurons, hidden in ((7, 4, 3), (2, 5, 6), (9, 3, 3))
    ]


def _taylor_cases() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)) for shape in ((3, 4), (5, 2), (2, 2))
    ]


def _one_by_one(scores: list[float], costs: list[int], budget: int) -> list[int]:
    gone, spent = [], 0
    for k in sorted(range(len(scores)), key=lambda k: scores[k]):
        if spent + costs[k] <= budget:
            spent += costs[k]
            gone.append(k)
    return sorted(gone)


def _equal_parts(current: int, target: int, shots: int) -> list[int]:
    return [current - (k + 1) * ((current - target) // shots) for k in range(shots)]


def _rounded_up(current: int, target: int, shots: int) -> list[int]:
    left = []
    for remaining in range(shots, 0, -1):
        current -= -((target - current) // remaining)
        left.append(current)
    return left


def told_apart(first: list[float], second: list[float]) -> str:
    """Which of two criteria loses less, by the losses of the same three seeds; "neither" if that may be noise."""
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    reach = 4.30 * statistics.stdev(gaps) / math.sqrt(3)
    middle = statistics.fmean(gaps)
    return "neither" if abs(middle) <= reach else "first" if middle < 0 else "second"


def _by_mean(first: list[float], second: list[float]) -> str:
    return "first" if statistics.fmean(first) < statistics.fmean(second) else "second"


def _unpaired(first: list[float], second: list[float]) -> str:
    reach = 4.30 * math.sqrt((statistics.variance(first) + statistics.variance(second)) / 3)
    return "neither" if abs(statistics.fmean(first) - statistics.fmean(second)) <= reach else _by_mean(first, second)


def _of_many(first: list[float], second: list[float]) -> str:
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    reach = 1.96 * statistics.stdev(gaps) / math.sqrt(3)
    return "neither" if abs(statistics.fmean(gaps)) <= reach else _by_mean(first, second)


def _every_seed(first: list[float], second: list[float]) -> str:
    wins = {a < b for a, b in zip(first, second, strict=True)}
    return "neither" if len(wins) > 1 else _by_mean(first, second)


EXERCISES = {
    "l6_wanda_neurons": Exercise(
        reference=wanda_neurons,
        cases=_wanda_cases,
        misconceptions={
            "That is the size of the activations alone. Wanda also asks what the output weights make of it.": (
                lambda a, down: a.square().mean(0).sqrt()
            ),
            "You took the mean of |a|, as AMP does. Wanda takes the root of the mean square, which rare large values "
            "raise more.": lambda a, down: down.abs().mean(0) * a.abs().mean(0),
            "You took the mean of a before its size, so plus and minus cancel.": (
                lambda a, down: down.abs().mean(0) * a.mean(0).abs()
            ),
            "You averaged the weights before taking their size, so plus and minus cancel.": (
                lambda a, down: down.mean(0).abs() * a.square().mean(0).sqrt()
            ),
            "You forgot the root: activations then count twice as much as weights (on a logarithmic scale).": (
                lambda a, down: down.abs().mean(0) * a.square().mean(0)
            ),
            "You took sums where means were asked for. The order is the same, the unit is not: it grows with the "
            "number of tokens.": lambda a, down: down.abs().sum(0) * a.square().sum(0).sqrt(),
        },
        hints=[
            "Two factors for each neuron: one from `down` (reduce over rows), one from `a` (reduce over tokens).",
            "`down.abs().mean(0)`, and the root of `a.square().mean(0)`.",
        ],
    ),
    "l6b_schedule": Exercise(
        reference=schedule,
        cases=lambda: [(32, 6, 8), (11008, 1536, 8), (8, 5, 4), (10, 4, 3)],
        misconceptions={
            "You fixed the step at the start and rounded it down, so the last shot misses the target. Divide what is "
            "still too many by the shots that remain.": _equal_parts,
            "You rounded up. TransAct's code rounds down, so that the later shots take the rest.": _rounded_up,
            "You listed what is there before each shot. Leave out the start, and end with the target.": (
                lambda current, target, shots: [current, *schedule(current, target, shots)[:-1]]
            ),
            "That is one shot: all of it goes at once.": lambda current, target, shots: [target] * shots,
            "You listed how many go. Asked for is how many are left.": (
                lambda current, target, shots: [
                    before - after
                    for before, after in zip(
                        [current, *schedule(current, target, shots)[:-1]],
                        schedule(current, target, shots),
                        strict=True,
                    )
                ]
            ),
        },
        hints=[
            "Before the first shot `remaining` is `shots`, before the last it is 1.",
            "In a loop: `current -= (current - target) // remaining`, then keep `current`.",
        ],
    ),
    "l6_told_apart": Exercise(
        reference=told_apart,
        cases=lambda: [
            ([2.10, 2.50, 2.30], [2.21, 2.60, 2.41]),  # far from each other only seed by seed
            ([2.00, 2.10, 2.05], [2.20, 2.15, 2.40]),  # every seed, and still noise
            ([2.00, 2.10, 2.05], [2.01, 2.12, 2.35]),
            ([2.30, 2.31, 2.33], [2.10, 2.12, 2.11]),
            ([2.00, 2.40, 2.10], [2.05, 2.30, 2.30]),
        ],
        misconceptions={
            "You compared the means alone. Of three seeds a mean wanders: how far does the gap wander?": _by_mean,
            "You asked whether two intervals touch. The seeds are the same on both sides: take the gap of each seed "
            "first, and what both have in common falls out.": _unpaired,
            "1.96 is for many draws. Of three, Student's t is 4.30.": _of_many,
            "The same winner at each of three seeds is no proof: by chance alone that happens one time in four.": (
                _every_seed
            ),
            "A lower loss is better: you have the winner and the loser exchanged.": (
                lambda first, second: {"first": "second", "second": "first"}.get(told_apart(first, second), "neither")
            ),
        },
        hints=[
            "`import statistics`. Take the gap of each seed: its standard error is `stdev(gaps) / math.sqrt(3)`.",
            "Noise, if the mean gap lies within 4.30 standard errors of 0; otherwise its sign tells the winner.",
        ],
    ),
    "l6_taylor": Exercise(
        reference=taylor,
        cases=_taylor_cases,
        misconceptions={
            "You added up before taking the size, so that what helps and what harms cancels.": (
                lambda weight, gradient: (weight * gradient).sum(1).abs()
            ),
            "That is the gradient alone. A steep slope at a weight of nothing foresees no change.": (
                lambda weight, gradient: gradient.abs().sum(1)
            ),
            "That is the weight alone: magnitude, which asks no loss.": lambda weight, gradient: weight.abs().sum(1),
            "You squared. The straight line foresees w · ∂L/∂w, to the first power.": (
                lambda weight, gradient: (weight * gradient).square().sum(1)
            ),
            "You took a column for each. A structure here is a row: what leads into one neuron.": (
                lambda weight, gradient: (weight * gradient).abs().sum(0)
            ),
            "A mean, where the sum is asked for: rows of other lengths could no longer be compared.": (
                lambda weight, gradient: (weight * gradient).abs().mean(1)
            ),
        },
        hints=[
            "If w became 0, the line foresees a change of −w · ∂L/∂w. Of each weight only its size counts.",
            "A product, its size, a sum over each row.",
        ],
    ),
    "l6b_cheapest_first": Exercise(
        reference=cheapest_first,
        cases=lambda: [
            ([0.5, -1.0, 0.1, 2.0], [4, 3, 3, 1], 7),
            ([0.3, 0.2, 0.1, 0.0], [5, 1, 1, 1], 2),
            ([3.0, 1.0, 2.0], [2, 9, 2], 5),
            ([-0.2, 0.9, -0.1, 0.4, 0.0], [2, 2, 3, 3, 1], 6),
        ],
        misconceptions={
            "You took the highest scores. What matters most stays.": (
                lambda scores, costs, budget: cheapest_first([-x for x in scores], costs, budget)
            ),
            "You ranked by score per parameter. FLAP ranks by score alone, and counts parameters only to know when to "
            "stop.": lambda scores, costs, budget: cheapest_first(
                [x / c for x, c in zip(scores, costs, strict=True)], costs, budget
            ),
            "You passed over what was too dear and went on. A ranking ends where the budget does.": _one_by_one,
            "The last one goes beyond the budget. Stop before it.": (
                lambda scores, costs, budget: sorted(
                    {
                        *cheapest_first(scores, costs, budget),
                        *sorted(range(len(scores)), key=lambda k: scores[k])[
                            : len(cheapest_first(scores, costs, budget)) + 1
                        ],
                    }
                )
            ),
            "You counted structures, not parameters: a head costs more than a neuron.": (
                lambda scores, costs, budget: cheapest_first(scores, [1] * len(scores), budget)
            ),
            "That is what stays.": lambda scores, costs, budget: [
                k for k in range(len(scores)) if k not in cheapest_first(scores, costs, budget)
            ],
        },
        hints=[
            "`sorted(range(len(scores)), key=lambda k: scores[k])` is the order in which they go.",
            "Add each one's cost; where the sum exceeds the budget, stop. Return the numbers in order.",
        ],
    ),
    "l6b_without_partner": Exercise(
        reference=without_partner,
        cases=lambda: [([0, 1, 4, 6], 8), ([0, 4, 1, 5], 8), ([2, 3, 9, 10, 11], 16), ([1, 5, 7], 8)],
        misconceptions={
            "You paired neighbours. RoPE here turns j with j + head_dim / 2, not 2j with 2j + 1.": (
                lambda kept, head_dim: [j for j in kept if (j ^ 1) not in kept]
            ),
            "You only looked upward: a dimension of the second half has its partner below.": (
                lambda kept, head_dim: [j for j in kept if j + head_dim // 2 not in kept]
            ),
            "Those are the ones that still have their partner.": (
                lambda kept, head_dim: [j for j in kept if (j + head_dim // 2) % head_dim in kept]
            ),
            "Half of what is kept is not half of the head: the partner is at head_dim / 2, as trained.": (
                lambda kept, head_dim: [j for j in kept if (j + len(kept) // 2) % head_dim not in kept]
            ),
        },
        hints=[
            "With head_dim 8, 1 turns with 5, and 5 with 1.",
            "`(j + head_dim // 2) % head_dim` is the partner of either.",
        ],
    ),
}
