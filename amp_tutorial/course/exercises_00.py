"""Exercises of lesson 0, the quick tour."""

import torch
from torch import Tensor

from .exercises import Exercise


def share_of_blocks(remove: float, parameters: int, block_parameters: int) -> float:
    """Share of the blocks that must go, so that `remove` of all parameters goes."""
    return remove * parameters / block_parameters


def keep_best(scores: Tensor, keep: int) -> list[int]:
    """Positions of the `keep` highest scores, in ascending order."""
    best = torch.argsort(scores, descending=True)[:keep]
    return sorted(best.tolist())


def ship(plans: dict[str, tuple[float, float, float]], megabytes: float, milliseconds: float) -> str | None:
    """The most accurate plan that fits into the memory and the time; None if none does."""
    fits = {name: plan for name, plan in plans.items() if plan[0] <= megabytes and plan[1] <= milliseconds}
    return max(fits, key=lambda name: fits[name][2], default=None)


PLANS = {  # megabytes, milliseconds for a token, accuracy
    "layers 30 %": (375.0, 22.0, 0.49),
    "layers 20 %": (425.0, 25.0, 0.57),
    "neurons 30 %": (370.0, 28.0, 0.58),
    "dense": (540.0, 31.0, 0.62),
    "neurons 20 %": (430.0, 29.0, 0.60),
}


Plans = dict[str, tuple[float, float, float]]


def _most(plans: Plans, place: int, sign: int = 1) -> str | None:
    return max(plans, key=lambda name: sign * plans[name][place], default=None)


def _within(plans: Plans, place: int, most: float) -> Plans:
    return {name: plan for name, plan in plans.items() if plan[place] <= most}


def _fits(plans: Plans, megabytes: float, milliseconds: float) -> Plans:
    return _within(_within(plans, 0, megabytes), 1, milliseconds)


def _score_cases() -> list[tuple[Tensor, int]]:
    scores = torch.tensor([0.7, 0.1, 0.9, 0.4, 0.2, 0.8, 0.3, 0.6])
    return [(scores, 5), (scores.flip(0), 2), (torch.tensor([3.0, 1.0, 2.0]), 1)]


EXERCISES = {
    "l0_share_of_blocks": Exercise(
        reference=share_of_blocks,
        cases=lambda: [(0.30, 1_000_000, 800_000), (0.10, 500, 250), (0.25, 100, 100)],
        misconceptions={
            "That is the share of all parameters. Embeddings stay whole, so the blocks must give more.": (
                lambda remove, parameters, block_parameters: remove
            ),
            "You turned the fraction over: the blocks are the smaller part, so their share must be the larger.": (
                lambda remove, parameters, block_parameters: remove * block_parameters / parameters
            ),
            "That is the share of the blocks that stays; the question is what goes.": (
                lambda remove, parameters, block_parameters: 1 - remove * parameters / block_parameters
            ),
        },
        hints=[
            "How many parameters must go in all? Count them first, as a number and not as a share.",
            "All of them come out of the blocks: divide that number by the parameters of the blocks.",
        ],
    ),
    "l0_keep_best": Exercise(
        reference=keep_best,
        cases=_score_cases,
        misconceptions={
            "You kept the lowest scores. A high score means important: that is the control, not the method.": (
                lambda scores, keep: sorted(torch.argsort(scores)[:keep].tolist())
            ),
            "Those are the ones that go; asked for are those that stay.": (
                lambda scores, keep: sorted(torch.argsort(scores, descending=True)[keep:].tolist())
            ),
            "You gave the scores themselves; a plan needs the positions of the heads that have them.": (
                lambda scores, keep: torch.sort(scores, descending=True).values[:keep].tolist()
            ),
            "You sorted the scores and then read places in the sorted list as heads; `argsort` keeps the two apart.": (
                lambda scores, keep: list(range(keep))
            ),
            "The right heads, but ordered by score; a plan lists them in ascending order, so that plans compare.": (
                lambda scores, keep: torch.argsort(scores, descending=True)[:keep].tolist()
            ),
        },
        hints=[
            "`torch.argsort(scores, descending=True)` gives positions, the most important first.",
            "Take the first `keep` of them, then put those in ascending order with `sorted`.",
        ],
    ),
    "l0_ship": Exercise(
        reference=ship,
        cases=lambda: [
            (PLANS, 450.0, 26.0),
            (PLANS, 400.0, 40.0),
            (PLANS, 600.0, 40.0),
            (PLANS, 450.0, 23.0),
            (PLANS, 100.0, 9.0),
        ],
        misconceptions={
            "You took the most accurate of all. It does not fit this phone: leave out what is too large or too slow.": (
                lambda plans, megabytes, milliseconds: _most(plans, 2)
            ),
            "You looked at the memory alone. A plan that fits may still be too slow.": (
                lambda plans, megabytes, milliseconds: _most(_within(plans, 0, megabytes), 2)
            ),
            "You looked at the time alone. A plan that is quick may still be too large.": (
                lambda plans, megabytes, milliseconds: _most(_within(plans, 1, milliseconds), 2)
            ),
            "You took the smallest. Smaller than needed costs answers and buys nothing.": (
                lambda plans, megabytes, milliseconds: _most(plans, 0, -1)
            ),
            "You took the quickest. Quicker than needed costs answers and buys nothing.": (
                lambda plans, megabytes, milliseconds: _most(plans, 1, -1)
            ),
            "You took the first that fits. Of those that fit the most accurate is asked for.": (
                lambda plans, megabytes, milliseconds: next(iter(_fits(plans, megabytes, milliseconds)), None)
            ),
            "You took the smallest of those that fit. What fits, fits: take the most accurate.": (
                lambda plans, megabytes, milliseconds: _most(_fits(plans, megabytes, milliseconds), 0, -1)
            ),
        },
        hints=[
            "Two steps: which plans fit at all, and which of those is best?",
            "Keep those with `plan[0] <= megabytes and plan[1] <= milliseconds`; then `max(…, default=None)`.",
        ],
    ),
}
