"""Normal equations of an output projection: refit what stays, and choose what stays by the error after the refit."""

import copy
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.anatomy import exact

RIDGES = tuple(10.0**-k for k in range(7))  # λ is chosen among these
JUDGES = 256  # outputs that choose it
LEAST = 1e-8  # of λ, while structures are chosen: the inverse must exist
FLOOR = 1e-12  # of an input's energy: a pivot below it is rounding, not information
SILENT = 1e-24  # of the loudest input's energy: an input below it counts as one that is always 0
DRIFT = 1e-6  # how far H C may be from the identity before C is computed anew


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
        x, y = exact(x), exact(y)
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
        """λ by the stated rule: the one of `RIDGES` with the least error on each half when solved on the other.

        Of many outputs some `JUDGES`, evenly spaced, say it for all.
        """
        if len(self.xx) < 2:
            return RIDGES[2]  # one batch alone cannot be halved
        some, found = slice(None, None, max(1, len(prior) // JUDGES)), {}
        halves = [(xx, xy[:, some].contiguous()) for xx, xy in zip(self.xx, self.xy, strict=True)]
        for ridge in RIDGES:
            fitted = (_solve(*half, prior[some], ridge) for half in halves)
            found[ridge] = sum(_error(w, *half) for w, half in zip(fitted, halves[::-1], strict=True))
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
    factor, penalty = _cholesky(xx, penalty)
    return torch.cholesky_solve(xy + penalty[:, None] * prior.T, factor).T


def _cholesky(
    xx: Float[Tensor, "features features"], penalty: Float[Tensor, " features"]
) -> tuple[Float[Tensor, "features features"], Float[Tensor, " features"]]:
    """The factor of XᵀX + diag(penalty), and the penalty that it took.

    A pivot is the part of an input's energy that no input before it explains. Where one is below `FLOOR` of that energy
    the equations are singular but for rounding: duplicates, fewer tokens than inputs, means far above the deviations.
    Then each input's penalty grows by 10 · `FLOOR` of its own energy, and by ten times as much until no pivot is.

    Raises:
        ValueError: XᵀX is not finite.
    """
    energy = xx.diagonal()
    energy = energy.clamp(min=1e-12 * float(energy.max().clamp(min=1e-300)))
    more = 0.0
    while bool(energy.isfinite().all()) and more <= 1:
        taken = penalty + more * energy
        factor, failed = torch.linalg.cholesky_ex(_damped(xx, taken))
        if bool((failed == 0) & (factor.diagonal().square() >= FLOOR * (xx.diagonal() + taken)).all()):
            return factor, taken
        more = 10 * max(FLOOR, more)
    raise ValueError(
        "The inputs of an output projection are NaN, infinite or too large to be squared; repair in float32 or "
        "bfloat16, and check the checkpoint."
    )


def eliminate(
    xx: Float[Tensor, "features features"],
    xy: Float[Tensor, "features hidden"],
    prior: Float[Tensor, "hidden features"],
    size: int,
    pools: Int[Tensor, " structures"],
    keep: int,
) -> list[int]:
    """Take structures (blocks of `size` features) away one by one, always the one that costs least after refit.

    Optimal brain surgeon for blocks: with the best W for what is left, and C the inverse of its H = XᵀX, removing block
    b adds tr(W_b C_bb⁻¹ W_bᵀ) to the squared error. Then W and C are brought up to date.

    Inputs are scaled to H_jj = 1 and a ridge of `LEAST` is added. So C exists, and no C_jj is below 1 / (1 + LEAST),
    whatever the units. Bringing up to date adds rounding to rounding. So W and C are computed anew, for what is left,
    when a sixteenth of the structures has gone since, and when H C of the block to go is further than `DRIFT` from the
    identity, or its C_bb is not positive definite.

    Args:
        pools: the pool each structure belongs to; `keep` of every pool stay.

    Raises:
        ValueError: XᵀX is not finite.
    """
    energy = xx.diagonal()
    scale = energy.clamp(min=SILENT * float(energy.max().clamp(min=1e-200))).rsqrt()
    within = torch.arange(size, device=xx.device)
    held = torch.arange(len(pools), device=xx.device)  # the structures that are left
    while True:
        rows = (held[:, None] * size + within).flatten()
        h = xx[rows][:, rows].mul_(scale[rows, None]).mul_(scale[rows])
        factor, ridge = _cholesky(h, torch.full_like(scale[rows], LEAST))
        target = xy[rows] * scale[rows, None] + (ridge / scale[rows])[:, None] * prior.T[rows]
        inverse, w = torch.cholesky_inverse(factor), torch.cholesky_solve(target, factor)
        few = max(1, len(held) - len(held) * 15 // 16)  # that go before C and W are computed anew
        left = (_single if size == 1 else _blocks)(h, ridge, inverse, w, pools[held], keep, few)
        if bool(left.all()):
            return held.tolist()
        held = held[left]


def _may_go(left: Bool[Tensor, " structures"], pools: Int[Tensor, " structures"], keep: int) -> Tensor:
    """Those that are left, of pools with more than are to stay."""
    there = torch.zeros(int(pools.max()) + 1, dtype=torch.long, device=pools.device)
    return left & (there.index_add_(0, pools, left.long())[pools] > keep)


def _single(
    h: Float[Tensor, "features features"],
    ridge: Float[Tensor, " features"],
    inverse: Float[Tensor, "features features"],
    w: Float[Tensor, "features hidden"],
    pools: Int[Tensor, " features"],
    keep: int,
    few: int,
) -> Bool[Tensor, " features"]:
    """Of single features: which are left after `few` have gone, or fewer, if rounding has grown too much.

    C and W stay as they are. What each feature gone has taken from them, uuᵀ and uvᵀ, is kept in rows, and of the rest
    only the costs are brought up to date, ‖w_j‖² and C_jj: that reads W once for a feature and writes nothing large.
    """
    us, vs = h.new_empty(few, len(h)), w.new_empty(few, w.shape[1])
    squares, diagonal = w.square().sum(1), inverse.diagonal().clone()
    left = torch.ones_like(pools, dtype=torch.bool)
    for gone in range(few):
        may_go = _may_go(left, pools, keep)
        if not bool(may_go.any()):
            break
        b = int((squares / diagonal).masked_fill(~may_go, torch.inf).argmin())
        column = inverse[b] - us[:gone, b] @ us[:gone]
        row = w[b] - us[:gone, b] @ vs[:gone]
        if gone:  # the first is exact
            one, cost = float(h[b] @ column + ridge[b] * column[b]), float(row @ row)
            if not (column[b] > 0.5 and abs(one - 1) < DRIFT and abs(cost - squares[b]) <= DRIFT * cost):
                break
        root = column[b].clamp(min=0.5).sqrt()
        us[gone], vs[gone] = torch.where(left, column / root, 0.0), row / root
        u, v = us[gone], vs[gone]
        squares += u * (u * (v @ v) - 2 * (w @ v - (vs[:gone] @ v) @ us[:gone]))
        diagonal -= u * u
        left[b] = False
    return left


def _blocks(
    h: Float[Tensor, "features features"],
    ridge: Float[Tensor, " features"],
    inverse: Float[Tensor, "features features"],
    w: Float[Tensor, "features hidden"],
    pools: Int[Tensor, " structures"],
    keep: int,
    few: int,
) -> Bool[Tensor, " structures"]:
    """The same of blocks, of which there are few: C and W are brought up to date."""
    count = len(pools)
    size = len(h) // count
    left = torch.ones_like(pools, dtype=torch.bool)
    for gone in range(few):
        may_go = _may_go(left, pools, keep)
        if not bool(may_go.any()):
            break
        blocks = inverse.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        lower, sound = _lower(blocks, left, fresh=not gone)
        added = torch.linalg.solve_triangular(lower, w.view(count, size, -1), upper=False)
        b = int(torch.linalg.vector_norm(added, dim=(1, 2)).masked_fill(~may_go, torch.inf).argmin())
        rows = slice(b * size, (b + 1) * size)
        if gone:
            product = h[rows] @ inverse[:, rows] + ridge[rows, None] * inverse[rows, rows]
            product.diagonal().sub_(1)
            if not sound or not bool(product.abs().max() < DRIFT):
                break
        # C_b = L Lᵀ: of C goes uᵀu, of W uᵀv
        u, v = (torch.linalg.solve_triangular(lower[b], part[rows], upper=False) for part in (inverse, w))
        w.addmm_(u.T, v, alpha=-1)
        inverse.addmm_(u.T, u, alpha=-1)
        for part in (w[rows], inverse[rows], inverse[:, rows]):
            part.zero_()
        left[b] = False
    return left


def _lower(
    blocks: Float[Tensor, "structures size size"], left: Bool[Tensor, " structures"], fresh: bool
) -> tuple[Float[Tensor, "structures size size"], bool]:
    """The Cholesky factor of each C_bb that is left, and whether all have one; of what is gone any."""
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    lower, failed = torch.linalg.cholesky_ex(torch.where(left[:, None, None], blocks, eye))
    if fresh:  # computing C anew would not help
        for b in failed.nonzero().flatten().tolist():
            lower[b] = _cholesky(blocks[b], torch.zeros_like(blocks[b, 0]))[0]
    return lower, not bool(failed.any())
