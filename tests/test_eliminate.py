"""What stays is chosen exactly: against a refit of every candidate, for blocks of any size, on any Gram matrix."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from helpers import Shape, batch, prompts, some_plan, tiny
from torch import Tensor

import amp_tutorial as amp
from amp_tutorial.methods import normal_equations as gram
from amp_tutorial.methods.normal_equations import Normal, eliminate


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def inputs(kind: str, tokens: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (tokens, features) of a kind, and factors by which their weights are to be divided so that all matter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, features, generator=generator).double()
    x = x + 0.5 * x @ torch.randn(features, features, generator=generator).double() / features**0.5
    factors = torch.ones(features).double()
    if kind == "duplicate":
        x[:, ::3] = x[:, 1::3][:, : len(x[0, ::3])]
    if kind == "nearly duplicate":
        x[:, ::3] = x[:, 1::3][:, : len(x[0, ::3])] + 1e-5 * x[:, ::3]
    if kind == "silent":
        x[:, 1::4] = 0
    if kind in ("huge", "tiny", "both"):
        factors[::5] = 1e-5 if kind == "tiny" else 1e5
        factors[1::5] = 1e-5 if kind == "both" else 1.0
    if kind == "far from 0":
        x = x + 300
    return x * factors, factors


def with_ridge(
    x: Tensor, y: Tensor, prior: Tensor, ridge: float = gram.LEAST, silent: float = gram.SILENT
) -> tuple[Tensor, Tensor]:
    """The penalty of each weight as one token more."""
    energy = x.square().sum(0)
    root = (ridge * energy.clamp(min=silent * float(energy.max()))).sqrt()
    return torch.cat([x, root.diag()]), torch.cat([y, root[:, None] * prior.T])


def left_over(x: Tensor, y: Tensor, size: int, kept: list[int]) -> float:
    """What no weights of these structures can explain of y, by singular values of scaled columns."""
    columns = [b * size + j for b in kept for j in range(size)]
    some = x[:, columns]
    some = some / some.norm(dim=0).clamp(min=1e-300)
    return float((y - some @ torch.linalg.lstsq(some, y, rcond=1e-10, driver="gelsd").solution).square().sum())


KINDS = ("plain", "duplicate", "nearly duplicate", "silent", "huge", "tiny", "both", "far from 0", "few tokens")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_choice_is_the_one_that_trying_every_candidate_finds(kind: str, size: int, dtype: torch.dtype) -> None:
    features = 12 * size if size < 3 else 18
    x, factors = inputs(kind, 8 * size if kind == "few tokens" else 90, features)
    x = x.to(dtype).double()  # as a model in this precision gives them
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, features, generator=generator).double()
    y = x @ (weight / factors).T
    least = 1e-9 * float(y.square().sum())  # below, every choice is right
    tokens, wanted = with_ridge(x, y, weight / factors)
    gram_matrix, pools, left = (x.T @ x, x.T @ y), torch.zeros(features // size).long(), list(range(features // size))
    for keep in range(len(left) - 1, len(left) // 2 - 1, -1):  # it is greedy: each choice is one more than the last
        found = eliminate(*gram_matrix, weight / factors, size, pools, keep)
        tried = {b: left_over(tokens, wanted, size, [other for other in left if other != b]) for b in left}
        [gone] = set(left) - set(found)
        assert tried[gone] <= 1.01 * min(tried.values()) + least
        left = found
    assert len(left) == features // size // 2 and left == sorted(left)


BLOCKS = [(1, 40), (2, 20), (16, 5), (64, 4), (192, 3), (512, 2)]


@pytest.mark.parametrize(("size", "structures"), BLOCKS)
def test_blocks_of_every_size(size: int, structures: int, threads: int) -> None:
    features, generator = size * structures, torch.Generator().manual_seed(2)
    x, _ = inputs("plain", features + 100, features)
    weight = torch.randn(8, features, generator=generator).double()
    y, pools = x @ weight.T, torch.zeros(structures).long()
    xx, xy, costs = x.T @ x, x.T @ y, []
    for keep in (structures - 1, structures // 2):
        found = eliminate(xx, xy, weight, size, pools, keep)
        assert len(found) == keep and found == sorted(found)
    [gone] = set(range(structures)) - set(eliminate(xx, xy, weight, size, pools, structures - 1))
    for b in range(structures):
        others = torch.tensor([j for j in range(features) if j // size != b])
        w = torch.cholesky_solve(xy[others], torch.linalg.cholesky(xx[others][:, others]))
        costs.append(float((y - x[:, others] @ w).square().sum()))
    assert costs[gone] <= min(costs) * (1 + 1e-6)


def test_a_long_elimination_does_not_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """150 inputs of 100 tokens: C begins at 1e8 and ends near 1. Never computed anew, it would be wrong by then."""
    x, _ = inputs("nearly duplicate", 100, 150)
    weight = torch.randn(5, 150, generator=torch.Generator().manual_seed(3)).double()
    y, pools = x @ weight.T, torch.zeros(150).long()
    counted, cholesky = [0], gram._cholesky

    def count(*args: Tensor) -> tuple[Tensor, Tensor]:
        counted[0] += 1
        return cholesky(*args)

    monkeypatch.setattr(gram, "_cholesky", count)
    found = eliminate(x.T @ x, x.T @ y, weight, 1, pools, 40)
    assert 10 < counted[0] < 111  # anew now and then, not at every step
    last = eliminate(x.T @ x, x.T @ y, weight, 1, pools, 41)
    [gone] = set(last) - set(found)
    tokens, wanted = with_ridge(x, y, weight)
    costs = {b: left_over(tokens, wanted, 1, [other for other in last if other != b]) for b in last}
    assert costs[gone] <= 1.01 * min(costs.values())


def test_costs_are_brought_up_to_date_and_not_computed_anew_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 160 inputs 80 go: C is computed some eleven times, once for each sixteenth of what is left."""
    x, _ = inputs("plain", 400, 160)
    weight = torch.randn(5, 160, generator=torch.Generator().manual_seed(3)).double()
    counted, cholesky = [0], gram._cholesky

    def count(*args: Tensor) -> tuple[Tensor, Tensor]:
        counted[0] += 1
        return cholesky(*args)

    monkeypatch.setattr(gram, "_cholesky", count)
    eliminate(x.T @ x, x.T @ (x @ weight.T), weight, 1, torch.zeros(160).long(), 80)
    assert 8 <= counted[0] <= 14


def test_a_whole_layer_that_is_silent_and_one_that_is_not_finite() -> None:
    zero = torch.zeros(6, 6).double()
    assert len(eliminate(zero, zero[:, :2], torch.ones(2, 6).double(), 2, torch.zeros(3).long(), 1)) == 1
    for what in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="NaN, infinite or too large to be squared"):
            eliminate(zero + what, zero[:, :2], torch.ones(2, 6).double(), 2, torch.zeros(3).long(), 1)


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_refit_of_any_inputs_is_the_least_of_what_it_minimises(kind: str, ridge: float) -> None:
    x, factors = inputs(kind, 20 if kind == "few tokens" else 90, 30)
    generator = torch.Generator().manual_seed(4)
    prior = torch.randn(4, 30, generator=generator).double() / factors
    y = x @ prior.T + 3 * torch.randn(len(x), 4, generator=generator).double()
    normal = Normal()
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        normal.add(x[rows], y[rows])
    whole, wanted = with_ridge(x, y, prior, ridge, 1e-12)
    scaled = whole / (norms := whole.norm(dim=0).clamp(min=1e-300))
    best = torch.linalg.lstsq(scaled, wanted, rcond=1e-9, driver="gelsd").solution / norms[:, None]
    found = normal.solve(prior, ridge)
    least, ours = (float((wanted - whole @ w).square().sum()) for w in (best, found.T))
    assert bool(found.isfinite().all()) and ours <= least * (1 + 1e-3) + 1e-6 * float(y.square().sum())
    assert normal.error(found) <= normal.error(prior) and normal.ridge(prior) in gram.RIDGES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_repair_chooses_among_groups_as_wide_as_those_of_a_real_model(dtype: str, threads: int) -> None:
    """Three KV groups of 3 · 64 features, as in SmolLM2-135M, on which batched LU fails with two threads."""
    model = tiny(Shape("llama", layers=1, groups=3, group_size=3, head_dim=64, hidden=36, neurons=40, dtype=dtype))
    rows = prompts([30] * 8)
    found = amp.repair(model, some_plan(model, 6, 20), [batch(rows[:4]), batch(rows[4:])], choose=True, progress=False)
    assert [len(kept) for kept in (*found.plan.heads, *found.plan.neurons)] == [6, 20]
    assert all(fit.after <= fit.before for fit in found.fits)
    assert all(b - a in (1, 4) for a, b in itertools.pairwise(found.plan.heads[0]))  # whole groups
