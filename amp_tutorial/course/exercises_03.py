"""Exercises of lessons 3 and 3b: surgery, and its museum."""

from collections.abc import Callable

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


def agrees(found: Tensor, wanted: Tensor, mask: Tensor) -> bool:
    """Whether logits (batch, length, words) agree at the real tokens, to 1e-5 of the largest wanted one."""
    real = mask.bool()
    far = (found[real] - wanted[real]).abs().max()
    return bool(far <= 1e-5 * wanted[real].abs().max())  # False for NaN, too


def without_rows(weight: Tensor, bias: Tensor, kept: list[int]) -> tuple[Tensor, Tensor]:
    """A linear layer (out, in) that keeps some of its outputs: rows of the weight, and their biases."""
    return weight[kept], bias[kept]


def diagnosis(stops: bool, same_each_load: bool, as_the_mask: bool, first_label_is_bos: bool) -> str:
    """What to look at first: "shapes", "config", "plan or indices", "rows" of training, or "nothing"."""
    if stops:
        return "shapes"
    if not same_each_load:
        return "config"
    if not as_the_mask:
        return "plan or indices"
    return "rows" if first_label_is_bos else "nothing"


def _logit_cases() -> list[tuple[Tensor, Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    wanted = 20 * torch.randn(2, 4, 5, generator=draw)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    padded, below, above, lost, rounded, nearly = (wanted.clone() for _ in range(6))
    padded[0, 0] += 3  # where nobody reads
    below[1, 2, 3] -= 0.005
    above[1, 2, 3] += 0.005
    lost[1, 1, 1] = torch.nan
    rounded += 1e-4 * torch.rand(wanted.shape, generator=draw)  # as float32 does to logits of this size
    nearly += 2e-6
    negative = -wanted.abs() - 1
    cases = [(x, wanted, mask) for x in (wanted, padded, below, above, lost, rounded, nearly)]
    return [*cases, (negative, negative, mask)]


def _everywhere(found: Tensor, wanted: Tensor, mask: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


def _diagnosis_cases() -> list[tuple[bool, bool, bool, bool]]:
    yes_no = [(1, 1, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 1, 1, 1), (0, 1, 1, 0), (0, 1, 0, 1)]
    return [(bool(a), bool(b), bool(c), bool(d)) for a, b, c, d in yes_no]


def _asks(*order: str) -> Callable[..., str]:
    """A diagnosis that looks at its questions in another order, or at fewer."""

    def found(stops: bool, same_each_load: bool, as_the_mask: bool, first_label_is_bos: bool) -> str:
        yes = {
            "shapes": stops,
            "config": not same_each_load,
            "plan or indices": not as_the_mask,
            "rows": first_label_is_bos,
        }
        return next((name for name in order if yes[name]), "nothing")

    return found


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
    "l3b_agrees": Exercise(
        reference=agrees,
        cases=_logit_cases,
        misconceptions={
            "You compare the padding, too. What stands there is read by nobody, and may differ.": _everywhere,
            "A signed difference: where the found logit is far below, it passes. Take the size first.": (
                lambda found, wanted, mask: bool(
                    (found - wanted)[mask.bool()].max() <= 1e-5 * wanted[mask.bool()].abs().max()
                )
            ),
            "NaN passes: no comparison with it is true, so `not (far > …)` is. Ask for what must hold.": (
                lambda found, wanted, mask: (
                    not bool((found - wanted)[mask.bool()].abs().max() > 1e-5 * wanted[mask.bool()].abs().max())
                )
            ),
            "1e-5 alone is less than float32 can hold at logits of this size: take it of the largest logit.": (
                lambda found, wanted, mask: bool((found - wanted)[mask.bool()].abs().max() <= 1e-5)
            ),
            "Nothing is equal to the last bit once a product was taken in another order: allow for rounding.": (
                lambda found, wanted, mask: bool((found == wanted)[mask.bool()].all())
            ),
            "A mean hides one wrong logit among many right ones. Look at the worst.": (
                lambda found, wanted, mask: bool(
                    (found - wanted)[mask.bool()].abs().mean() <= 1e-5 * wanted[mask.bool()].abs().max()
                )
            ),
            "That the same word comes first is not agreement: logits may be off by much and leave it there.": (
                lambda found, wanted, mask: bool((found.argmax(-1) == wanted.argmax(-1))[mask.bool()].all())
            ),
        },
        hints=[
            "`found[mask.bool()]` keeps the real tokens. What is the worst difference there, in size?",
            "Write what must hold, `far <= 1e-5 * largest`: then NaN, which is never `<=`, fails.",
        ],
    ),
    "l3b_without_rows": Exercise(
        reference=without_rows,
        cases=lambda: [
            (torch.arange(12.0).view(4, 3), torch.tensor([10.0, 20.0, 30.0, 40.0]), [1, 3]),
            (torch.arange(9.0).view(3, 3), torch.tensor([1.0, 2.0, 3.0]), [0, 2]),
        ],
        misconceptions={
            "You kept the whole bias: that is the crash of the exhibit.": lambda weight, bias, kept: (
                weight[kept],
                bias,
            ),
            "You kept the first biases. They belong to other outputs.": (
                lambda weight, bias, kept: (weight[kept], bias[: len(kept)])
            ),
            "You cut columns: those are the inputs.": lambda weight, bias, kept: (weight[:, kept], bias),
            "You dropped the bias. It runs, and is another layer.": (
                lambda weight, bias, kept: (weight[kept], torch.zeros(len(kept)))
            ),
            "You kept what should go.": lambda weight, bias, kept: (
                weight[[k for k in range(len(bias)) if k not in kept]],
                bias[[k for k in range(len(bias)) if k not in kept]],
            ),
        },
        hints=[
            "Row k of the weight and number k of the bias make output k.",
            "The same index for both.",
        ],
    ),
    "l3b_diagnosis": Exercise(
        reference=diagnosis,
        cases=_diagnosis_cases,
        misconceptions={
            "You never ask whether two loads agree. As long as weights are drawn anew, no other question has an "
            "answer.": _asks("shapes", "plan or indices", "rows"),
            "You look at the training rows before the model. A wrong cut spoils every loss after it.": (
                _asks("shapes", "config", "rows", "plan or indices")
            ),
            "You never compare with the mask. Perplexity alone would only say “pruning hurt”.": (
                _asks("shapes", "config", "rows")
            ),
            "You look at indices first. What is drawn anew at every load differs from the mask as well.": (
                _asks("shapes", "plan or indices", "config", "rows")
            ),
            "A model that computes what its mask computes can still be trained on rows that are wrong.": (
                _asks("shapes", "config", "plan or indices")
            ),
        },
        hints=[
            "In what order do the questions make sense? What can't run can't be compared.",
            "First what stops, then what each load makes anew, then what differs from the mask, then the rows.",
        ],
    ),
}
