"""Exercises of lesson 3, surgery."""

import torch
from torch import Tensor

from .exercises import Exercise


def cut_output(o_proj: Tensor, kept_heads: list[int], head_dim: int) -> Tensor:
    """The output projection (hidden, heads · head_dim) without the removed heads: their columns go."""
    columns = [head * head_dim + j for head in kept_heads for j in range(head_dim)]
    return o_proj[:, columns]


def cut_key(k_proj: Tensor, kept_heads: list[int], group_size: int, head_dim: int) -> Tensor:
    """The key projection (groups · head_dim, hidden) with the rows of those groups that still serve a query head."""
    groups = sorted({head // group_size for head in kept_heads})
    rows = [group * head_dim + j for group in groups for j in range(head_dim)]
    return k_proj[rows]


def neurons_to_remove(target: int, heads_removed: int, head_dim: int, hidden: int) -> int:
    """Neurons to remove from one layer, so that heads and neurons together come to `target` parameters.

    Multi-head attention (query, key, value, output) and a gated MLP (gate, up, down), without biases.
    """
    head_cost = 4 * head_dim * hidden
    neuron_cost = 3 * hidden
    return round((target - heads_removed * head_cost) / neuron_cost)


def _output_cases() -> list[tuple[Tensor, list[int], int]]:
    square = torch.arange(64.0).view(8, 8)
    wide = torch.arange(48.0).view(6, 8)
    return [(square, [0, 3], 2), (square, [1], 4), (wide, [0, 1, 2], 2)]


def _key_cases() -> list[tuple[Tensor, list[int], int, int]]:
    four_groups = torch.arange(64.0).view(8, 8)  # 4 groups of head_dim 2, for 8 query heads
    return [
        (four_groups, [0, 1, 2, 3], 2, 2),
        (four_groups, [0, 1, 6, 7], 2, 2),
        (four_groups, [0, 1, 3], 1, 2),
    ]


def _budget_cases() -> list[tuple[int, int, int, int]]:
    return [(44_271_360, 7, 128, 4096), (100_000, 6, 16, 128), (50_200, 3, 16, 128)]


def _query_rows(k_proj: Tensor, kept_heads: list[int], group_size: int, head_dim: int) -> Tensor:
    return k_proj[[head * head_dim + j for head in kept_heads for j in range(head_dim)]]


def _repeated_rows(k_proj: Tensor, kept_heads: list[int], group_size: int, head_dim: int) -> Tensor:
    return k_proj[[head // group_size * head_dim + j for head in kept_heads for j in range(head_dim)]]


EXERCISES = {
    "l3_cut_output": Exercise(
        reference=cut_output,
        cases=_output_cases,
        misconceptions={
            "You sliced rows of `o_proj`; heads live in its columns.": (
                lambda o_proj, kept_heads, head_dim: o_proj[
                    [h * head_dim + j for h in kept_heads for j in range(head_dim)]
                ]
            ),
            "You kept one column for each head; a head has `head_dim` of them.": (
                lambda o_proj, kept_heads, head_dim: o_proj[:, kept_heads]
            ),
            "You kept the columns of the first heads, whichever the plan keeps.": (
                lambda o_proj, kept_heads, head_dim: o_proj[:, : len(kept_heads) * head_dim]
            ),
            "You kept the columns of the heads that go.": (
                lambda o_proj, kept_heads, head_dim: o_proj[
                    :, [c for c in range(o_proj.shape[1]) if c // head_dim not in kept_heads]
                ]
            ),
            "You zeroed the removed heads' columns: that is a mask, and the matrix is as large as before.": (
                lambda o_proj, kept_heads, head_dim: (
                    o_proj * torch.tensor([float(c // head_dim in kept_heads) for c in range(o_proj.shape[1])])
                )
            ),
        },
        hints=[
            "`o_proj.weight` is (out, in), and the heads are its input.",
            "Head n owns the columns n · head_dim to (n + 1) · head_dim − 1. Collect them, then index the second axis.",
        ],
    ),
    "l3_cut_key": Exercise(
        reference=cut_key,
        cases=_key_cases,
        misconceptions={
            "You kept query-head indices for `k_proj`; its rows belong to KV groups, and head n reads group "
            "n // group_size.": _query_rows,
            "You kept a group's rows once for each of its query heads; the group is shared, so it is kept once.": (
                _repeated_rows
            ),
            "You kept one row for each group; a group has `head_dim` of them.": (
                lambda k_proj, kept_heads, group_size, head_dim: k_proj[sorted({h // group_size for h in kept_heads})]
            ),
        },
        hints=[
            "Which group does query head n read? There are `group_size` heads to a group.",
            "Several heads share a group: a set holds each group once. Sort it, then take `head_dim` rows for each.",
        ],
    ),
    "l3_neurons_to_remove": Exercise(
        reference=neurons_to_remove,
        cases=_budget_cases,
        misconceptions={
            "You took a head to be worth one neuron; it is worth 4 · head_dim / 3 of them.": (
                lambda target, heads_removed, head_dim, hidden: round(target / (3 * hidden) - heads_removed)
            ),
            "You left out that the heads have paid a part of the target already.": (
                lambda target, heads_removed, head_dim, hidden: round(target / (3 * hidden))
            ),
            "You rounded down. The nearest number comes closer to the target.": (
                lambda target, heads_removed, head_dim, hidden: (
                    (target - heads_removed * 4 * head_dim * hidden) // (3 * hidden)
                )
            ),
            "You counted one matrix for a neuron; with a gate there are three.": (
                lambda target, heads_removed, head_dim, hidden: round(
                    (target - heads_removed * 4 * head_dim * hidden) / hidden
                )
            ),
            "You counted three matrices for a head; there are four: query, key, value and output.": (
                lambda target, heads_removed, head_dim, hidden: round(
                    (target - heads_removed * 3 * head_dim * hidden) / (3 * hidden)
                )
            ),
            "You counted two matrices for a neuron; with a gate there are three.": (
                lambda target, heads_removed, head_dim, hidden: round(
                    (target - heads_removed * 4 * head_dim * hidden) / (2 * hidden)
                )
            ),
        },
        hints=[
            "What does one head cost in parameters, and one neuron?",
            "Subtract what the heads paid from the target; neurons make up for the rest.",
        ],
    ),
}
