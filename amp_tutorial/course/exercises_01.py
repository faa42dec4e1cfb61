"""Exercises of lesson 1, anatomy."""

import torch
from torch import Tensor

from .exercises import Exercise


def head_slice(o_proj: Tensor, head: int, head_dim: int) -> Tensor:
    """W_n, the part of the output projection (hidden, heads · head_dim) that reads one head: (hidden, head_dim)."""
    return o_proj[:, head * head_dim : (head + 1) * head_dim]


def heads_of_group(group: int, heads: int, groups: int) -> list[int]:
    """Query heads that read key-value head `group`."""
    size = heads // groups
    return list(range(group * size, (group + 1) * size))


def group_cost(hidden: int, head_dim: int, heads: int, groups: int) -> int:
    """Weights that go with one KV group: its query heads, one key, one value, and its columns of the output."""
    queries = heads // groups
    matrices = queries + 1 + 1 + queries  # query, key, value, output
    return matrices * head_dim * hidden


def neuron_cost(hidden: int, gated: bool, bias: bool) -> int:
    """Parameters that go with one neuron: a row of every map into the MLP, and a column of the map out of it."""
    maps_in = 2 if gated else 1
    return maps_in * (hidden + bias) + hidden


def _strided_columns(o_proj: Tensor, head: int, head_dim: int) -> Tensor:
    return o_proj[:, head :: o_proj.shape[1] // head_dim]


def _slice_cases() -> list[tuple[Tensor, int, int]]:
    square = torch.arange(64.0).view(8, 8)
    pruned = torch.arange(48.0).view(8, 6)  # two of eight columns are gone already
    return [(square, 0, 2), (square, 1, 2), (square, 3, 2), (pruned, 2, 2)]


EXERCISES = {
    "l1_head_slice": Exercise(
        reference=head_slice,
        cases=_slice_cases,
        misconceptions={
            "You sliced rows of `o_proj`; heads live in its columns. The matrix is square, so nothing complained.": (
                lambda o_proj, head, head_dim: o_proj[head * head_dim : (head + 1) * head_dim]
            ),
            "You sliced rows of `o_proj` and turned them; heads live in its columns.": (
                lambda o_proj, head, head_dim: o_proj[head * head_dim : (head + 1) * head_dim].T
            ),
            "You took every n-th column. The columns of one head are neighbours: heads are joined one after another.": (
                _strided_columns
            ),
            "That is a single column, one of the head's dimensions; a head has `head_dim` of them.": (
                lambda o_proj, head, head_dim: o_proj[:, head]
            ),
            "You took `head_dim` columns from column `head` on; head n begins at column n · head_dim.": (
                lambda o_proj, head, head_dim: o_proj[:, head : head + head_dim]
            ),
            "You count heads from 1; the first one is head 0.": (
                lambda o_proj, head, head_dim: o_proj[:, (head - 1) * head_dim : head * head_dim]
            ),
            "The last column is missing: a slice ends before its second number.": (
                lambda o_proj, head, head_dim: o_proj[:, head * head_dim : (head + 1) * head_dim - 1]
            ),
        },
        hints=[
            "A linear map computes `x @ W.T`: its inputs are the columns of `W`. Where do the heads come in?",
            "Head 0 has columns 0 to head_dim − 1, head 1 the next head_dim, and so on.",
            "`o_proj[:, start:stop]` takes columns; only `start` and `stop` are missing.",
        ],
    ),
    "l1_heads_of_group": Exercise(
        reference=heads_of_group,
        cases=lambda: [(0, 8, 4), (3, 8, 4), (1, 32, 8), (5, 8, 8)],
        misconceptions={
            "You counted in steps of `groups`. Neighbours share: where two share one, heads 0 and 1 read group 0.": (
                lambda group, heads, groups: list(range(group, heads, groups))
            ),
            "That is one head with the group's own number, as if every query head had a key-value head of its own.": (
                lambda group, heads, groups: [group]
            ),
            "You took the number of groups for the size of one; a group has heads // groups query heads.": (
                lambda group, heads, groups: list(range(group * groups, (group + 1) * groups))
            ),
        },
        hints=[
            "How many query heads share one key-value head? `heads // groups`.",
            "They are neighbours, and group 0 begins at head 0.",
        ],
    ),
    "l1_group_cost": Exercise(
        reference=group_cost,
        cases=lambda: [(128, 16, 8, 4), (4096, 128, 32, 8), (4096, 128, 32, 32), (2048, 64, 32, 4)],
        misconceptions={
            "You gave every query head a key and a value of its own. In a group they are shared: count them once.": (
                lambda hidden, head_dim, heads, groups: 4 * (heads // groups) * head_dim * hidden
            ),
            "You left key and value out. They serve this group only, so when it goes they go too.": (
                lambda hidden, head_dim, heads, groups: 2 * (heads // groups) * head_dim * hidden
            ),
            "You left the output projection out: every query head also owns `head_dim` of its columns.": (
                lambda hidden, head_dim, heads, groups: (heads // groups + 2) * head_dim * hidden
            ),
            "That is right for one query head per group only; here `heads // groups` query heads go together.": (
                lambda hidden, head_dim, heads, groups: 4 * head_dim * hidden
            ),
            "That is the price of a whole layer's attention; one group of it is asked for.": (
                lambda hidden, head_dim, heads, groups: 2 * (heads + groups) * head_dim * hidden
            ),
            "You counted three matrices for each query head. Its own are query and output; key and value come once.": (
                lambda hidden, head_dim, heads, groups: 3 * (heads // groups) * head_dim * hidden
            ),
        },
        hints=[
            "Go through the four matrices one by one: which rows or columns are of no use any more?",
            "A row or column has `hidden` weights, and a head is `head_dim` rows or columns.",
            "`heads // groups` blocks of `q_proj`, one of `k_proj`, one of `v_proj`, `heads // groups` of `o_proj`.",
        ],
    ),
    "l1_neuron_cost": Exercise(
        reference=neuron_cost,
        cases=lambda: [(128, True, False), (128, False, True), (4096, True, False), (10, True, True)],
        misconceptions={
            "You forgot the gate: in a gated MLP a neuron has a row in `gate_proj` and a row in `up_proj`.": (
                lambda hidden, gated, bias: hidden + bias + hidden
            ),
            "You forgot the biases: every map into the MLP has one number per neuron.": (
                lambda hidden, gated, bias: (3 if gated else 2) * hidden
            ),
            "The bias of the map out belongs to no neuron: it has one number per hidden dimension, and stays.": (
                lambda hidden, gated, bias: (2 if gated else 1) * (hidden + bias) + hidden + bias
            ),
            "You left the way out of the MLP: a neuron also has a column of `hidden` weights there.": (
                lambda hidden, gated, bias: (2 if gated else 1) * (hidden + bias)
            ),
            "That is a plain MLP without biases. Ask `gated` and `bias`.": lambda hidden, gated, bias: 2 * hidden,
            "That is a gated MLP without biases. Ask `gated` and `bias`.": lambda hidden, gated, bias: 3 * hidden,
        },
        hints=[
            "A neuron is a row of each map into the MLP and a column of the map out of it. `hidden` weights each.",
            "Gated MLPs have two maps in, `gate_proj` and `up_proj`; a plain one has `fc1` alone.",
            "With biases, each map in has one more number per neuron.",
        ],
    ),
}
