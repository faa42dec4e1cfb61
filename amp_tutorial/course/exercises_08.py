"""Exercises of lesson 8, better than AMP."""

import torch
from torch import Tensor

from .exercises import Exercise


def refit(x: Tensor, y: Tensor, old: Tensor, ridge: float) -> Tensor:
    """The weight (out, in) that maps x (tokens, in) to y (tokens, out) best; the ridge pulls it towards the old one."""
    gram = x.T @ x
    penalty = ridge * gram.diagonal()
    return torch.linalg.solve(gram + penalty.diag(), x.T @ y + penalty[:, None] * old.T).T


def target(dense_before: Tensor, dense_adds: Tensor, own_before: Tensor) -> Tensor:
    """What a module of the pruned model should add, so that the stream leaves it as in the dense model."""
    return dense_before + dense_adds - own_before


def _refit_cases() -> list[tuple[Tensor, Tensor, Tensor, float]]:
    draw = torch.Generator().manual_seed(0)

    def case(tokens: int, inputs: int, outputs: int, ridge: float) -> tuple[Tensor, Tensor, Tensor, float]:
        shapes = (tokens, inputs), (tokens, outputs), (outputs, inputs)
        x, y, old = (torch.randn(shape, generator=draw, dtype=torch.double) for shape in shapes)
        return x * torch.arange(1, inputs + 1), y, old, ridge  # inputs of different energy

    return [case(20, 3, 4, 0.5), case(12, 4, 2, 0.1), case(9, 3, 3, 0.0)]


def _solved(x: Tensor, y: Tensor, penalty: Tensor, prior: Tensor) -> Tensor:
    return torch.linalg.solve(x.T @ x + penalty.diag(), x.T @ y + penalty[:, None] * prior.T).T


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(0)


def _target_cases() -> list[tuple[Tensor, Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(shape, generator=draw) for _ in range(3)) for shape in ((2, 3), (4, 2))]  # type: ignore[misc]


EXERCISES = {
    "l8_refit": Exercise(
        reference=refit,
        cases=_refit_cases,
        misconceptions={
            "You pulled the weight towards zero. The penalty is on the change, w' − w, so the old weight stands on the "
            "right-hand side too.": (lambda x, y, old, ridge: _solved(x, y, ridge * _energy(x), torch.zeros_like(old))),
            "You added the same ridge to every input. Here it is measured in each input's own energy, the diagonal of "
            "the Gram matrix.": (lambda x, y, old, ridge: _solved(x, y, ridge * torch.ones_like(x[0]), old)),
            "You left the ridge out. With few tokens the fit then follows their noise.": (
                lambda x, y, old, ridge: _solved(x, y, torch.zeros_like(x[0]), old)
            ),
            "That is plain ridge regression. Here the penalty is in each input's energy, and on the change w' − w.": (
                lambda x, y, old, ridge: _solved(x, y, ridge * torch.ones_like(x[0]), torch.zeros_like(old))
            ),
            "Your weight is (in, out). A linear map keeps it the other way round: transpose at the end.": (
                lambda x, y, old, ridge: refit(x, y, old, ridge).T
            ),
        },
        hints=[
            "Set the derivative by W' to zero: (XᵀX + D) W'ᵀ = XᵀY + D Wᵀ. What is D?",
            "D is diagonal: `ridge * (x.T @ x).diagonal()`. `torch.linalg.solve` takes both sides; transpose what it "
            "gives.",
        ],
    ),
    "l8_target": Exercise(
        reference=target,
        cases=_target_cases,
        misconceptions={
            "That is what the dense module adds. It leaves the stream as wrong as it came: make up for the lack too.": (
                lambda dense_before, dense_adds, own_before: dense_adds
            ),
            "That is the stream after the module. The module adds to what is there already: subtract it.": (
                lambda dense_before, dense_adds, own_before: dense_before + dense_adds
            ),
            "The sign is turned: where the own stream has too little, the module must add more.": (
                lambda dense_before, dense_adds, own_before: dense_adds + own_before - dense_before
            ),
            "That is only what is lacking on the way in. The module has its own work to do as well.": (
                lambda dense_before, dense_adds, own_before: dense_before - own_before
            ),
        },
        hints=[
            "Write down the stream after the module, in the dense model and in the pruned one. Make them equal.",
            "own_before + target = dense_before + dense_adds.",
        ],
    ),
}
