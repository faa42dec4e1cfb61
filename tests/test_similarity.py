"""Each metric of Consensus against values known beforehand."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from amp_tutorial.methods.similarity import METRICS, cka, gaussian, linear_shape, permutation, wasserstein

TOKENS, FEATURES = 400, 6
ROTATION_BLIND = ("cka", "linear_0", "linear_1", "gaussian_0", "gaussian_1", "gaussian_2")


def drawn(seed: int, tokens: int = TOKENS, features: int = FEATURES) -> np.ndarray:
    """Features that differ in scale, mix, and are not centred."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(features, features)) * np.arange(1, features + 1)
    return rng.normal(size=(tokens, features)) @ mix + rng.normal(size=features)


def classes(seed: int, tokens: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, tokens)


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_alike_is_zero(seed: int) -> None:
    """Identity and another order: all metrics. A rotation: all but two. An invertible map: one."""
    x, labels, rng = drawn(seed), classes(seed), np.random.default_rng(seed)
    order, turn = rng.permutation(FEATURES), ortho_group.rvs(FEATURES, random_state=seed)
    invertible = turn @ np.diag(rng.uniform(0.5, 3, FEATURES)) @ ortho_group.rvs(FEATURES, random_state=seed + 1)
    for name, metric in METRICS.items():
        assert metric(x, x.copy(), labels) == pytest.approx(0, abs=1e-5), name
        assert metric(x, x[:, order], labels) == pytest.approx(0, abs=1e-5), name
        rotated = metric(x, x @ turn, labels)
        assert (rotated < 1e-5) == (name in ROTATION_BLIND), name
        assert (metric(x, x @ invertible, labels) < 1e-5) == (name == "linear_0"), name


@settings(max_examples=20)
@given(st.integers(0, 999), st.floats(0.1, 20), st.integers(1, 50))
def test_scale_and_shift_do_not_turn(seed: int, scale: float, shift: int) -> None:
    """The metrics that are angles see neither; the others see both."""
    x, labels = drawn(seed), classes(seed)
    for name in ("cka", "linear_0", "linear_1", "permutation"):
        assert METRICS[name](x, x * scale + shift, labels) == pytest.approx(0, abs=1e-5), name
    assert wasserstein(x, x + shift) == pytest.approx(shift)
    assert wasserstein(x, x - shift) == pytest.approx(shift)


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_distances_are_symmetric_and_grow_with_noise(seed: int) -> None:
    x, labels, noise = drawn(seed), classes(seed), drawn(seed + 1000)
    for name, metric in METRICS.items():
        assert metric(x, noise, labels) == pytest.approx(metric(noise, x, labels), rel=1e-2, abs=1e-9), name
        if name != "wasserstein":  # sees no tokens, and noise of the same kind has the same values
            assert 0 < metric(x, x + 0.01 * noise, labels) < metric(x, noise, labels), name


@pytest.mark.parametrize(("tokens", "features"), [(200, 10), (1000, 10), (1000, 40)])
def test_cka_of_independent_noise(tokens: int, features: int) -> None:
    """White X and Y: E‖XᵀY‖² = n d², ‖XᵀX‖² is near n² d (1 + d/n): CKA is about d / (n + d)."""
    rng = np.random.default_rng(0)
    found = [1 - cka(*rng.normal(size=(2, tokens, features))) for _ in range(400)]  # 14 % off at most each
    assert np.mean(found) == pytest.approx(features / (tokens + features), rel=0.05)


def test_cka_by_its_definition_over_pairs_of_tokens() -> None:
    """HSIC of the two tokens × tokens similarity matrices, centred on both sides."""
    x, y = drawn(1, 50), drawn(2, 50)
    centre = np.eye(50) - 1 / 50
    k, q = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert cka(x, y) == pytest.approx(1 - (k * q).sum() / np.sqrt((k * k).sum() * (q * q).sum()))


def test_linear_shape_by_trying_every_turn_in_the_plane() -> None:
    """And every turn after a reflection."""
    x, y = drawn(3, features=2), drawn(4, features=2)
    a, b = x - x.mean(0), y - y.mean(0)
    tried = []
    for angle in np.linspace(0, 2 * np.pi, 4001):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        tried += [(a * (b @ turn)).sum(), (a * (b @ np.diag([1, -1]) @ turn)).sum()]
    expected = np.arccos(max(tried) / np.linalg.norm(a) / np.linalg.norm(b))
    assert linear_shape(x, y, alpha=1.0) == pytest.approx(expected, abs=1e-5)


def test_whitened_shape_is_the_mean_canonical_correlation() -> None:
    x, y = drawn(5), drawn(5) + 5 * drawn(6)
    a, b = np.linalg.qr(x - x.mean(0))[0], np.linalg.qr(y - y.mean(0))[0]
    correlations = np.linalg.svd(a.T @ b, compute_uv=False)
    assert linear_shape(x, y, alpha=0.0) == pytest.approx(np.arccos(correlations.mean()))


def test_directions_without_variance_are_left_out() -> None:
    x = drawn(7)
    padded = np.hstack([x, np.zeros((TOKENS, 2))])
    assert linear_shape(padded, padded @ ortho_group.rvs(8, random_state=0), alpha=0.0) == pytest.approx(0, abs=1e-5)


def test_permutation_by_trying_all() -> None:
    x, y = drawn(8, features=4), drawn(9, features=4)
    a, b = x - x.mean(0), y - y.mean(0)
    cosine = max((a * b[:, list(p)]).sum() for p in permutations(range(4))) / np.linalg.norm(a) / np.linalg.norm(b)
    assert permutation(x, y) == pytest.approx(np.arccos(cosine))


def exactly(mean: np.ndarray, covariance: np.ndarray, tokens: int, seed: int) -> np.ndarray:
    """Rows whose own mean and covariance are exactly these."""
    rows = np.random.default_rng(seed).normal(size=(tokens, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return rows @ np.real(sqrtm(covariance)) + mean


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_gaussian_of_known_covariances(alpha: float) -> None:
    """One class, diagonal covariances in the same order: already aligned; Bures is the distance of deviations."""
    s, r = np.array([9.0, 4.0, 1.0]), np.array([16.0, 4.0, 0.25])
    m, n = np.array([30.0, 0, 0]), np.array([33.0, 0, 0])
    noise = exactly(np.zeros(3), np.eye(3), 300, seed=0)
    x, y = noise * np.sqrt(s) + m, noise * np.sqrt(r) + n
    bures = ((np.sqrt(s) - np.sqrt(r)) ** 2).sum()
    expected = np.sqrt(alpha * 9 + (2 - alpha) * bures)
    assert gaussian(x, y, np.zeros(300, dtype=int), alpha) == pytest.approx(expected, rel=1e-3)


def test_gaussian_is_no_more_than_without_alignment_and_less_than_any_rotation_tried() -> None:
    """The Bures distance written with matrix roots, under rotations by chance and under none."""
    labels = classes(1)
    x, y = drawn(10, features=3), drawn(11, features=3)

    def bures(s: np.ndarray, r: np.ndarray) -> float:
        root = np.real(sqrtm(s))
        return float(np.trace(s) + np.trace(r) - 2 * np.trace(np.real(sqrtm(root @ r @ root))))

    def aligned(turn: np.ndarray) -> float:
        terms = []
        for label in range(5):
            a, b = x[labels == label], y[labels == label] @ turn
            terms.append(((a.mean(0) - b.mean(0)) ** 2).sum() + bures(np.cov(a.T), np.cov(b.T)))
        return float(np.sqrt(np.mean(terms)))

    tried = min(aligned(ortho_group.rvs(3, random_state=seed)) for seed in range(40))
    assert gaussian(x, y, labels, alpha=1.0) <= min(tried, aligned(np.eye(3))) + 1e-3


def test_gaussian_needs_a_class() -> None:
    with pytest.raises(ValueError, match="No next token occurs twice"):
        gaussian(drawn(0), drawn(1), np.arange(TOKENS), alpha=1.0)
