"""Exercises of lesson 2, importance."""

import torch
from torch import Tensor

from .exercises import Exercise


def head_importance(h: Tensor, W: Tensor, mask: Tensor) -> Tensor:
    """AMP's score of one head: the mean over real tokens of ‖h W‖₁.

    Args:
        h: the head's output, (prompts, positions, head_dim).
        W: its slice of the output projection, (hidden, head_dim).
        mask: 1 for a token and 0 for padding, (prompts, positions).
    """
    added = h @ W.T  # (prompts, positions, hidden): what the head adds to the residual stream
    norms = added.abs().sum(-1)  # (prompts, positions)
    return (norms * mask).sum() / mask.sum()


def prompt_average(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over prompts of each prompt's own mean; values and mask are (prompts, positions)."""
    per_prompt = (values * mask).sum(1) / mask.sum(1)
    return per_prompt.mean()


def _abs_too_late(h: Tensor, W: Tensor, mask: Tensor) -> Tensor:
    return ((h @ W.T * mask[..., None]).sum((0, 1)) / mask.sum()).abs().sum()


def _norms(h: Tensor, W: Tensor) -> Tensor:
    return (h @ W.T).abs().sum(-1)


def _importance_cases() -> list[tuple[Tensor, Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    whole = torch.ones(2, 3, dtype=torch.long)
    return [
        (torch.randn(3, 4, 2, generator=chance), torch.randn(6, 2, generator=chance), mask),
        (torch.randn(2, 3, 4, generator=chance), torch.randn(5, 4, generator=chance), whole),
    ]


def _average_cases() -> list[tuple[Tensor, Tensor]]:
    values = torch.tensor([[4.0, 2.0, 3.0, 7.0], [9.0, 1.0, 5.0, 5.0], [6.0, 8.0, 8.0, 8.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    return [(values, mask), (values, torch.ones_like(mask))]


EXERCISES = {
    "l2_head_importance": Exercise(
        reference=head_importance,
        cases=_importance_cases,
        misconceptions={
            "You averaged before taking the absolute value: a head that adds +5 to one token and −5 to the next then "
            "counts for nothing.": _abs_too_late,
            "You counted padding: positions where the mask is 0 hold a head output too, but no text.": (
                lambda h, W, mask: _norms(h, W).mean()
            ),
            "You left padding out of the sum but counted it in the divisor; divide by the number of tokens.": (
                lambda h, W, mask: (_norms(h, W) * mask).mean()
            ),
            "You measured h itself; the score is of h W, what reaches the residual stream through the weights.": (
                lambda h, W, mask: (h.abs().sum(-1) * mask).sum() / mask.sum()
            ),
            "That is the L2 norm (the root of the sum of squares); AMP sums absolute values.": (
                lambda h, W, mask: ((h @ W.T).norm(dim=-1) * mask).sum() / mask.sum()
            ),
            "You averaged over the hidden dimension; the L1 norm is the sum over it.": (
                lambda h, W, mask: ((h @ W.T).abs().mean(-1) * mask).sum() / mask.sum()
            ),
            "You summed over the hidden dimension before taking absolute values, so that +5 and −5 cancel.": (
                lambda h, W, mask: ((h @ W.T).sum(-1).abs() * mask).sum() / mask.sum()
            ),
        },
        hints=[
            "Three steps, in this order: project (`h @ W.T`), L1 norm over the hidden dimension, mean over tokens.",
            "After the norm there is one number for each prompt and position. Multiply by the mask, and think about "
            "what to divide by.",
        ],
    ),
    "l2_prompt_average": Exercise(
        reference=prompt_average,
        cases=_average_cases,
        misconceptions={
            "That is the mean over all tokens, where a long prompt weighs more; here each prompt has one vote.": (
                lambda values, mask: (values * mask).sum() / mask.sum()
            ),
            "You counted padding: each prompt's mean is over its own tokens only.": lambda values, mask: values.mean(),
            "You divided by the padded width; each prompt has a length of its own, `mask.sum(1)`.": (
                lambda values, mask: (values * mask).mean(1).mean()
            ),
            "You added the prompts' means up; take their mean.": (
                lambda values, mask: ((values * mask).sum(1) / mask.sum(1)).sum()
            ),
            "That is each prompt's mean; the mean of those is still to be taken.": (
                lambda values, mask: (values * mask).sum(1) / mask.sum(1)
            ),
        },
        hints=[
            "First one number for each prompt, then the mean of those numbers.",
            "The length of each prompt is `mask.sum(1)`.",
        ],
    ),
}
