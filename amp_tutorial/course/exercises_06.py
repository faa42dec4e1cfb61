"""Exercises of lesson 6, other answers."""

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
    "l6_schedule": Exercise(
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
            "Work on `gaps`, seed by seed. Their standard error is `statistics.stdev(gaps) / math.sqrt(3)`.",
            "Noise, if the mean gap lies within 4.30 standard errors of 0; otherwise its sign tells the winner.",
        ],
    ),
}
