"""Exercises of lessons 8, 8b and 8c: repair, the directions of the stream, and one budget."""

from collections.abc import Callable
from math import ceil

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


def cost_of_each(x: Tensor, old: Tensor) -> Tensor:
    """By how much the squared error grows if an input goes and all others are refitted: ‖w_j‖² / C_jj, C = (XᵀX)⁻¹."""
    inverse = torch.linalg.inv(x.T @ x)
    return old.square().sum(0) / inverse.diagonal()


def turned_reader(weight: Tensor, norm: Tensor, q: Tensor) -> Tensor:
    """A matrix (out, hidden) that reads a stream turned by q, through an RMS norm of this weight."""
    return (weight * norm) @ q


def directions_needed(x: Tensor, share: float) -> int:
    """How many principal directions of x (tokens, hidden) carry so much of its energy, at the least."""
    energy = torch.linalg.svdvals(x).square().cumsum(0)
    return int((energy < share * energy[-1]).sum()) + 1


def claim(costs: dict[str, list[float]]) -> str:
    """Whether the stream is the most sensitive place: "holds", "fails", or "in part", by the cost at each strength."""
    stream = costs["stream"]
    inside = [max(values) for values in zip(*(v for name, v in costs.items() if name != "stream"), strict=True)]
    won = sum(a > b for a, b in zip(stream, inside, strict=True))
    return "holds" if won == len(stream) else "in part" if won else "fails"


def neurons_left(total: int, ratio: float, layers: int, heads_cost: int, neurons: int, neuron_cost: int) -> int:
    """The most neurons a layer can keep, if its heads have paid `heads_cost` parameters already.

    Args:
        total: parameters of the dense model, of which at least `ratio` go.
        heads_cost: parameters that each layer saves by its heads.
    """
    owed = ratio * total / layers - heads_cost
    return neurons - max(0, ceil(owed / neuron_cost))


def winner(removed: list[float], apart: list[float], ratio: float) -> int:
    """The number of the best shape: of those that remove enough, the lowest loss on text kept apart."""
    enough = [k for k, share in enumerate(removed) if share >= ratio]
    return min(enough, key=lambda k: apart[k])


def surprise(alone: list[float], together: float) -> str:
    """Costs of parts cut alone against the cost of all cut together: "adds up" to a tenth, "worse", or "better"."""
    foreseen = sum(alone)
    if abs(together - foreseen) <= 0.1 * foreseen:
        return "adds up"
    return "worse" if together > foreseen else "better"


def _cost_cases() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((20, 4, 3), (15, 3, 5), (12, 2, 2))
    return [
        (
            torch.randn(tokens, inputs, generator=draw, dtype=torch.double)
            @ torch.ones(inputs, inputs).tril().double(),
            torch.randn(outputs, inputs, generator=draw, dtype=torch.double),
        )
        for tokens, inputs, outputs in shapes
    ]


def _turned_cases() -> list[tuple[Tensor, Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)

    def case(out: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
        q = torch.linalg.qr(torch.randn(hidden, hidden, generator=draw, dtype=torch.double)).Q
        weight, norm = (torch.randn(shape, generator=draw, dtype=torch.double) for shape in ((out, hidden), (hidden,)))
        return weight, norm, q

    return [case(3, 4), case(4, 4), case(2, 3)]


def _spectrum_cases() -> list[tuple[Tensor, float]]:
    draw = torch.Generator().manual_seed(0)

    def case(energies: list[float], share: float) -> tuple[Tensor, float]:
        q = torch.linalg.qr(torch.randn(9, len(energies), generator=draw, dtype=torch.double)).Q
        turn = torch.linalg.qr(torch.randn(len(energies), len(energies), generator=draw, dtype=torch.double)).Q
        return q * torch.tensor(energies, dtype=torch.double).sqrt() @ turn, share

    return [case([70, 20, 6, 3, 1], 0.95), case([50, 30, 20], 0.79), case([96, 2, 1, 1], 0.5), case([4, 3, 2, 1], 0.99)]


def _shape_cases() -> list[tuple[int, float, int, int, int, int]]:
    return [(1_000_000, 0.3, 6, 8_192, 256, 384), (500_000, 0.1, 4, 0, 128, 192), (900_000, 0.1, 6, 16_384, 256, 384)]


def _neurons_gone(rounding: Callable[[float], int], paid: bool = True, each: bool = True) -> Callable[..., int]:
    """The number that stays, with another way to round or with something forgotten."""

    def found(total: int, ratio: float, layers: int, heads_cost: int, neurons: int, neuron_cost: int) -> int:
        owed = ratio * total / (layers if each else 1) - (heads_cost if paid else 0)
        return neurons - max(0, rounding(owed / neuron_cost))

    return found


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
            "`torch.linalg.solve` wants one matrix on each side. Which of the terms are (in, in), which (in, out)?",
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
    "l8_cost": Exercise(
        reference=cost_of_each,
        cases=_cost_cases,
        misconceptions={
            "You divided by the Gram matrix. It is its inverse that knows what the other inputs could take over.": (
                lambda x, old: old.square().sum(0) / (x.T @ x).diagonal()
            ),
            "That is what an input writes, energy times weight. Ask what is lost after all others were refitted.": (
                lambda x, old: old.square().sum(0) * x.square().sum(0)
            ),
            "You multiplied. A large C_jj says that others can stand in for it: then it costs little.": (
                lambda x, old: old.square().sum(0) * torch.linalg.inv(x.T @ x).diagonal()
            ),
            "The weights alone: that asks nothing of the text.": lambda x, old: old.square().sum(0),
            "Squares are missing: the error is a squared one.": (
                lambda x, old: old.abs().sum(0) / torch.linalg.inv(x.T @ x).diagonal()
            ),
        },
        hints=[
            "C is `torch.linalg.inv(x.T @ x)`, and column j of `old` holds the weights of input j.",
            "‖w_j‖² is `old.square().sum(0)`; C_jj is the diagonal.",
        ],
    ),
    "l8b_turned": Exercise(
        reference=turned_reader,
        cases=_turned_cases,
        misconceptions={
            "You left the norm's weight where it was. It lies along the old axes: fold it in before you turn.": (
                lambda weight, norm, q: weight @ q
            ),
            "You turned it the other way. What reads sees x q, so it needs q on its input side.": (
                lambda weight, norm, q: (weight * norm) @ q.T
            ),
            "You turned first and folded after: then the norm's weight multiplies the new directions.": (
                lambda weight, norm, q: (weight @ q) * norm
            ),
            "You turned what the matrix gives. It is its input that was turned.": (
                lambda weight, norm, q: q[: len(weight), : len(weight)].T @ (weight * norm)
            ),
        },
        hints=[
            "The stream was x and is now x q. The norm gave (x / length) · norm, number by number.",
            "weight · (norm * x) = (weight * norm) · x, and x = q qᵀ x.",
        ],
    ),
    "l8b_directions": Exercise(
        reference=directions_needed,
        cases=_spectrum_cases,
        misconceptions={
            "You took singular values. Energy is their square.": (
                lambda x, share: (
                    int((torch.linalg.svdvals(x).cumsum(0) < share * torch.linalg.svdvals(x).sum()).sum()) + 1
                )
            ),
            "One too few: the direction that reaches the share belongs to it.": (
                lambda x, share: directions_needed(x, share) - 1
            ),
            "You counted the axes as they are. Principal directions are turned so that the first hold most.": (
                lambda x, share: (
                    int((x.square().sum(0).sort(descending=True).values.cumsum(0) < share * x.square().sum()).sum()) + 1
                )
            ),
            "Those are the directions that may go.": lambda x, share: x.shape[1] - directions_needed(x, share),
        },
        hints=[
            "`torch.linalg.svdvals(x)` gives the lengths along the principal directions, the largest first.",
            "Square, `cumsum`, and count how many sums lie below `share` of the last; one more is enough.",
        ],
    ),
    "l8b_claim": Exercise(
        reference=claim,
        cases=lambda: [
            ({"attention": [0.1, 0.3], "mlp": [0.2, 0.4], "stream": [0.5, 0.9]},),
            ({"attention": [0.1, 0.3], "mlp": [0.6, 1.4], "stream": [0.5, 0.9]},),
            ({"attention": [0.1, 0.3, 1.0], "mlp": [0.2, 0.4, 2.0], "stream": [0.5, 0.9, 1.6]},),
            ({"attention": [0.1, 0.3, 0.9], "mlp": [0.2, 1.2, 0.5], "stream": [0.15, 0.9, 0.8]},),
            ({"attention": [0.1, 0.2, 0.3], "mlp": [0.2, 0.9, 1.5], "stream": [0.3, 0.5, 0.8]},),
            ({"attention": [0.1, 0.2, 0.3], "mlp": [0.2, 0.3, 1.0], "stream": [0.1, 0.2, 3.0]},),
        ],
        misconceptions={
            "You added up over strengths: the strongest disturbance then decides alone. “In part” is an answer, too.": (
                lambda costs: "holds" if max(costs, key=lambda name: sum(costs[name])) == "stream" else "fails"
            ),
            "You compared with the mean of the other places. The claim says the stream is *the most* sensitive.": (
                lambda costs: claim(
                    {
                        "inside": [(a + b) / 2 for a, b in zip(costs["attention"], costs["mlp"], strict=True)],
                        "stream": costs["stream"],
                    }
                )  # fmt: skip
            ),
            "You looked at the weakest disturbance only.": (
                lambda costs: "holds" if costs["stream"][0] > max(costs["attention"][0], costs["mlp"][0]) else "fails"
            ),
            "Most strengths are not all of them: that is “in part”.": (
                lambda costs: {"holds": "holds", "fails": "fails"}.get(
                    claim(costs),
                    "holds"
                    if sum(
                        s > max(a, m) for s, a, m in zip(costs["stream"], costs["attention"], costs["mlp"], strict=True)
                    )
                    > len(costs["stream"]) / 2
                    else "fails",
                )
            ),
        },
        hints=[
            "At each strength: is the stream's cost above the largest of the other two?",
            "At all of them it holds, at none it fails.",
        ],
    ),
    "l8c_neurons_left": Exercise(
        reference=neurons_left,
        cases=_shape_cases,
        misconceptions={
            "You rounded down what must go: then less goes than was asked.": _neurons_gone(int),
            "You rounded to the nearest: sometimes less goes than was asked.": _neurons_gone(round),
            "You forgot what the heads have paid already.": _neurons_gone(ceil, paid=False),
            "You charged every layer with the whole model's debt: divide by the layers.": _neurons_gone(
                ceil, each=False
            ),
            "Where the heads have paid more than all that is owed, no neuron comes back.": (
                lambda total, ratio, layers, heads_cost, neurons, neuron_cost: (
                    neurons - ceil((ratio * total / layers - heads_cost) / neuron_cost)
                )
            ),
            "You counted what goes. Asked for is what stays.": (
                lambda total, ratio, layers, heads_cost, neurons, neuron_cost: max(
                    0, ceil((ratio * total / layers - heads_cost) / neuron_cost)
                )
            ),
        },
        hints=[
            "Each layer owes `ratio * total / layers`. What do neurons still have to pay?",
            "`ceil`, as at least the ratio goes; and never less than nothing.",
        ],
    ),
    "l8c_winner": Exercise(
        reference=winner,
        cases=lambda: [
            ([0.31, 0.29, 0.30], [2.4, 2.1, 2.3], 0.30),
            ([0.30, 0.35, 0.33], [2.2, 2.5, 2.1], 0.30),
            ([0.20, 0.22, 0.25], [2.0, 1.8, 1.9], 0.20),
            ([0.10, 0.09, 0.12, 0.11], [1.9, 1.2, 1.7, 1.8], 0.10),
        ],
        misconceptions={
            "That shape removes less than was asked: of course it loses less.": (
                lambda removed, apart, ratio: min(range(len(apart)), key=lambda k: apart[k])
            ),
            "You took the one that removes most. All that remove enough may compete by their loss.": (
                lambda removed, apart, ratio: max(range(len(removed)), key=lambda k: removed[k])
            ),
            "You took the highest loss.": lambda removed, apart, ratio: max(
                (k for k in range(len(removed)) if removed[k] >= ratio), key=lambda k: apart[k]
            ),
            "You took the one nearest to the ratio. The ratio is a condition, the loss decides.": (
                lambda removed, apart, ratio: min(range(len(removed)), key=lambda k: abs(removed[k] - ratio))
            ),
            "You gave the loss. Asked for is the number of the shape.": (
                lambda removed, apart, ratio: min(apart[k] for k in range(len(removed)) if removed[k] >= ratio)
            ),
        },
        hints=[
            "First keep those with `removed[k] >= ratio`.",
            "Of these, `min` with `key=lambda k: apart[k]`.",
        ],
    ),
    "l8c_surprise": Exercise(
        reference=surprise,
        cases=lambda: [
            ([0.2, 0.3], 0.52),
            ([0.2, 0.3], 0.80),
            ([0.2, 0.3], 0.40),
            ([0.1, 0.1, 0.2], 0.37),
            ([0.5, 0.4], 0.3),
        ],
        misconceptions={
            "Together they always cost more than the dearest alone. The question is whether they cost the sum.": (
                lambda alone, together: "worse" if together > max(alone) else "better"
            ),
            "You multiplied. Losses are logarithms: their costs add up.": (
                lambda alone, together: surprise([float(torch.tensor(alone).prod())], together)
            ),
            "A tenth is allowed: of the sum, both ways.": (
                lambda alone, together: "worse" if together > sum(alone) else "better"
            ),
            "You have the two exchanged: more than foreseen is worse.": (
                lambda alone, together: {"worse": "better", "better": "worse"}.get(surprise(alone, together), "adds up")
            ),
        },
        hints=[
            "Foreseen is the sum.",
            "Within a tenth of it: “adds up”. Above: “worse”.",
        ],
    ),
}
