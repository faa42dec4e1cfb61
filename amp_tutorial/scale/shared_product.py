"""Score heads without computing the output projection twice: it is the sum of what the heads add.

Exact head scores need h_n W_nᵀ of every head n, which together are a product of the size of the output projection.
While scores are taken, the projection's own output is summed from these products: `score(…, forward=shared_product)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.anatomy import Anatomy, weight_of
from ..core.criteria import projected_l1
from ..core.sums import Sums, one_pass, watching


@torch.no_grad()
def added_l1(
    h: Float[Tensor, "tokens heads d_head"],
    output: Float[Tensor, "heads d_head hidden"],
    total: Float[Tensor, "tokens hidden"],
) -> Float[Tensor, "tokens heads"]:
    """`projected_l1`, and in `total` what all heads add together."""
    scores = h.new_empty(h.shape[1], h.shape[0])
    added = h.new_empty(h.shape[0], output.shape[2])
    for n in range(h.shape[1]):
        torch.mm(h[:, n], output[n], out=added)
        total.add_(added) if n else total.copy_(added)
        torch.sum(added.abs_(), dim=-1, out=scores[n])
    return scores.T


@contextmanager
def sharing(anatomy: Anatomy, sums: Sums) -> Iterator[None]:
    """`core.sums.watching`, with attention's output projections taken from the heads' own products.

    Only of float32 weights: in half precision the sum over heads would round otherwise than the projection does.
    """
    replaced: list[tuple[Any, str, Any]] = []
    outputs = {i: anatomy.layer(i).output for i in range(anatomy.layers)}
    outputs = {i: output for i, output in outputs.items() if output is not None}
    kinds = {weight_of(output).dtype for output in outputs.values()}
    if (projected_l1, "heads") not in sums.totals or kinds != {torch.float32}:
        with watching(anatomy, sums):
            yield
        return

    def share(i: int, module: Any) -> None:
        place = "_old_forward" if "_old_forward" in vars(module) else "forward"  # the first: put aside by accelerate
        replaced.append((module, place, vars(module).get(place)))

        def project(x: Tensor) -> Tensor:
            total = x.new_empty(*x.shape[:-1], anatomy.hidden)
            flat, h = total.view(-1, anatomy.hidden), x.reshape(-1, anatomy.heads, anatomy.head_dim)
            output = weight_of(module).T.contiguous().view(anatomy.heads, anatomy.head_dim, -1)
            weights = sums.weights
            if sums.real is not None:  # all positions are projected, and padding counts for nothing
                weights = weights.new_zeros(len(h)).index_copy(0, sums.real, weights)
            for stretch in sums.stretches("heads", h, anatomy.hidden):
                per_token = added_l1(h[stretch], output, flat[stretch])
                if sums.real is not None:
                    per_token = per_token.masked_fill(
                        weights[stretch, None].to(x.device) == 0, 0.0
                    )  # whatever padding held
                sums.accumulate(i, projected_l1, "heads", weights[stretch], per_token)
            return total if module.bias is None else total.add_(module.bias)

        setattr(module, place, project)

    try:
        with watching(anatomy, sums, but=projected_l1):
            for i, output in outputs.items():
                share(i, output)
            yield
    finally:
        for module, place, own in replaced:
            if own is None:
                delattr(module, place)  # the class's own is seen again
            else:
                setattr(module, place, own)


shared_product = partial(one_pass, watching=sharing)
