"""Normal equations of an output projection: refit what stays, and choose what stays by the error after the refit."""

import copy
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

RIDGES = tuple(10.0**-k for k in range(7))  # λ is chosen among these
LEAST = 1e-8  # of λ, while structures are chosen: the inverse must exist


class Normal:
    """Normal equations of Y ≈ X Wᵀ, in float64, halved by alternate batches so that λ can be tried on the other half.

    The refit is W' = argmin ‖Y − X W'ᵀ‖² + λ Σ_j ‖x_j‖² ‖w'_j − w_j‖² with the old weights w as prior.

    Memory: 16 · features · (features + hidden) bytes, of one projection at a time; with all copies up to four times as
    much while it is solved. For 11,008 features and a hidden size of 4,096, the largest of LLaMA-2-7B: 2.7 and 10.6 GB.
    """

    def __init__(self, bias: bool = False) -> None:
        self.bias = bias  # one more feature, which is always 1
        self.xx: list[Tensor] = []  # (features, features) of each half
        self.xy: list[Tensor] = []  # (features, hidden)
        self.yy, self.batches, self.tokens = 0.0, 0, 0

    def add(self, x: Float[Tensor, "tokens features"], y: Float[Tensor, "tokens hidden"]) -> None:
        x, y = x.double(), y.double()
        if self.bias:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        half, self.batches, self.tokens = self.batches % 2, self.batches + 1, self.tokens + len(x)
        self.yy += float(y.square().sum())
        if half == len(self.xx):
            self.xx.append(x.T @ x)
            self.xy.append(x.T @ y)
        else:
            self.xx[half] += x.T @ x
            self.xy[half] += x.T @ y

    @property
    def sums(self) -> tuple[Float[Tensor, "features features"], Float[Tensor, "features hidden"]]:
        """XᵀX and XᵀY of all batches."""
        return reduce(torch.add, self.xx), reduce(torch.add, self.xy)

    def centred(self) -> tuple[Float[Tensor, "features features"], Float[Tensor, "features hidden"]]:
        """XᵀX and XᵀY; with a bias of deviations from the means, because the bias takes those."""
        xx, xy = self.sums
        if not self.bias:
            return xx, xy
        mean = xx[:-1, -1:] / xx[-1, -1]
        return xx[:-1, :-1] - mean * xx[-1:, :-1], xy[:-1] - mean * xy[-1:]

    def of(self, kept: Int[Tensor, " kept"]) -> "Normal":
        """The equations of some features alone."""
        part = copy.copy(self)
        part.xx = [xx[kept][:, kept] for xx in self.xx]
        part.xy = [xy[kept] for xy in self.xy]
        return part

    def error(self, w: Float[Tensor, "hidden features"]) -> float:
        """‖Y − X wᵀ‖² / ‖Y‖²."""
        return _error(w, *self.sums, self.yy) / max(self.yy, 1e-300)

    def solve(self, prior: Float[Tensor, "hidden features"], ridge: float) -> Float[Tensor, "hidden features"]:
        return _solve(*self.sums, prior, ridge)

    def ridge(self, prior: Float[Tensor, "hidden features"]) -> float:
        """λ by the stated rule: the one of `RIDGES` with the least error on each half when solved on the other."""
        if len(self.xx) < 2:
            return RIDGES[2]  # one batch alone cannot be halved
        found = {}
        for ridge in RIDGES:
            fitted = (_solve(xx, xy, prior, ridge) for xx, xy in zip(self.xx, self.xy, strict=True))
            found[ridge] = sum(
                _error(w, xx, xy) for w, xx, xy in zip(fitted, self.xx[::-1], self.xy[::-1], strict=True)
            )
        return min(found, key=found.__getitem__)


def _error(w: Tensor, xx: Tensor, xy: Tensor, yy: float = 0.0) -> float:
    return float((w * (w @ xx)).sum() - 2 * (w * xy.T).sum()) + yy


def _damped(xx: Tensor, penalty: Tensor) -> Tensor:
    system = xx.clone()
    system.diagonal().add_(penalty)
    return system


def _solve(xx: Tensor, xy: Tensor, prior: Tensor, ridge: float) -> Tensor:
    energy = xx.diagonal()
    penalty = ridge * energy.clamp(min=1e-12 * float(energy.max().clamp(min=1e-300)))  # silent inputs keep their weight
    factor = torch.linalg.cholesky(_damped(xx, penalty))
    return torch.cholesky_solve(xy + penalty[:, None] * prior.T, factor).T


def eliminate(
    xx: Float[Tensor, "features features"],
    xy: Float[Tensor, "features hidden"],
    prior: Float[Tensor, "hidden features"],
    size: int,
    pools: Int[Tensor, " structures"],
    keep: int,
) -> list[int]:
    """Take structures (blocks of `size` features) away one by one, always the one that costs least after refit.

    Optimal brain surgeon for blocks: with the best W for what is left, and C the inverse of its XᵀX, removing block b
    adds tr(W_b C_bb⁻¹ W_bᵀ) to the squared error. Then W and C are brought up to date.

    Args:
        pools: the pool each structure belongs to; `keep` of every pool stay.
    """
    energy = xx.diagonal()
    penalty = LEAST * energy.clamp(min=1e-6 * float(energy.max().clamp(min=1e-300)))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(xx, penalty)))
    w = (inverse @ (xy + penalty[:, None] * prior.T)).T
    count = len(pools)
    left = torch.ones(count, dtype=torch.bool, device=xx.device)
    filler = torch.eye(size, dtype=xx.dtype, device=xx.device)
    while True:
        there = torch.zeros(int(pools.max()) + 1, dtype=torch.long, device=xx.device).index_add(0, pools, left.long())
        may_go = left & (there[pools] > keep)
        if not bool(may_go.any()):
            return left.nonzero().flatten().tolist()
        blocks = inverse.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        columns = w.T.view(count, size, -1)
        solved = torch.linalg.solve(torch.where(left[:, None, None], blocks, filler), columns)
        cost = (columns * solved).sum((1, 2)).masked_fill(~may_go, torch.inf)
        b = int(cost.argmin())
        gone = slice(b * size, (b + 1) * size)
        step = torch.linalg.solve(inverse[gone, gone], inverse[gone])
        w -= w[:, gone] @ step
        inverse -= inverse[:, gone] @ step
        left[b] = False
