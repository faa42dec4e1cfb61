"""Exercises of lesson 5, evaluation."""

import math
import statistics

from .exercises import Exercise


def perplexity(window_losses: list[float], window_tokens: list[int]) -> float:
    """Perplexity of a text in windows: each window's mean loss per token, and its number of tokens."""
    total = sum(loss * tokens for loss, tokens in zip(window_losses, window_tokens, strict=True))
    return math.exp(total / sum(window_tokens))


def standard_error(correct: list[int]) -> float:
    """Standard error of an accuracy; one entry per item, 1 if right and 0 if wrong."""
    return statistics.stdev(correct) / math.sqrt(len(correct))


def equal_neurons(heads_gone: int, head_cost: int, neuron_cost: int) -> int:
    """How many neurons are worth the parameters of so many heads (to the nearest neuron)."""
    return round(heads_gone * head_cost / neuron_cost)


EXERCISES = {
    "l5_perplexity": Exercise(
        reference=perplexity,
        cases=lambda: [([1.0, 3.0], [10, 10]), ([2.0, 1.0, 4.0], [30, 60, 10]), ([0.5], [7])],
        misconceptions={
            "You averaged perplexities. Average the losses, then exponentiate: one hard window would rule the mean.": (
                lambda losses, tokens: (
                    sum(math.exp(loss) * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
                )
            ),
            "You averaged the windows' perplexities, each counting the same. Average losses over tokens, then "
            "exponentiate.": (lambda losses, tokens: statistics.fmean(math.exp(loss) for loss in losses)),
            "You gave every window the same weight. A short window has fewer tokens and must count less.": (
                lambda losses, tokens: math.exp(statistics.fmean(losses))
            ),
            "That is the mean loss per token, in nats. Perplexity is its exponential.": (
                lambda losses, tokens: sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
            ),
            "You summed the losses without dividing by the number of tokens, so a longer text looks worse.": (
                lambda losses, tokens: math.exp(sum(loss * n for loss, n in zip(losses, tokens, strict=True)))
            ),
        },
        hints=[
            "Turn each window's mean back into a sum: mean loss times tokens.",
            "Add the sums, divide by all tokens, and only then take `math.exp`.",
        ],
    ),
    "l5_standard_error": Exercise(
        reference=standard_error,
        cases=lambda: [([1, 1, 0, 1],), ([1] * 30 + [0] * 10,), ([0, 1] * 50,)],
        misconceptions={
            "That is the standard deviation, the spread of single items. The standard error is that of their mean: "
            "divide by √n.": statistics.stdev,
            "You divided by n, not by √n. Errors of independent items partly cancel, so the mean's error falls with "
            "the root.": lambda correct: statistics.stdev(correct) / len(correct),
            "That is the variance of the mean; the standard error is its square root.": (
                lambda correct: statistics.variance(correct) / len(correct)
            ),
            "That is half a 95 % interval, 1.96 standard errors. One was asked for.": (
                lambda correct: 1.96 * statistics.stdev(correct) / math.sqrt(len(correct))
            ),
            "You took the spread with n, not n − 1. With few items that is too confident: use `statistics.stdev`.": (
                lambda correct: statistics.pstdev(correct) / math.sqrt(len(correct))
            ),
        },
        hints=[
            "`statistics.stdev` gives the spread of the single entries, 0 or 1.",
            "The mean of n independent entries spreads √n times less.",
        ],
    ),
    "l5_equal_neurons": Exercise(
        reference=equal_neurons,
        cases=lambda: [(7, 8192, 384), (3, 4 * 128 * 4096, 3 * 4096), (1, 8192, 257)],
        misconceptions={
            "You exchanged one head for one neuron. They differ in size: compare parameters.": (
                lambda heads_gone, head_cost, neuron_cost: heads_gone
            ),
            "You turned the fraction over: a head is worth many neurons.": (
                lambda heads_gone, head_cost, neuron_cost: round(heads_gone * neuron_cost / head_cost)
            ),
            "You rounded one head's worth first and multiplied after, so the rounding error grew with every head.": (
                lambda heads_gone, head_cost, neuron_cost: heads_gone * round(head_cost / neuron_cost)
            ),
            "You rounded down. The nearest number comes closer to equal parameters.": (
                lambda heads_gone, head_cost, neuron_cost: heads_gone * head_cost // neuron_cost
            ),
        },
        hints=[
            "Count parameters on both sides: heads × their cost = neurons × theirs.",
            "Solve for the neurons, and round once, at the end.",
        ],
    ),
}
