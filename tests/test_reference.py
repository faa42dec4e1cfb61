"""Published numbers: as facts.md has them, each with its grade, and refused where something is missing."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from amp_tutorial.methods.similarity import METRICS, cka, gaussian, linear_shape, permutation, wasserstein
from amp_tutorial.reports import reference
from amp_tutorial.reports.reference import Entry, read


def entries() -> dict[str, Entry]:
    return {entry.id: entry for paper in read() for block in paper.blocks for entry in block.entries}


# Spot values, as the papers or their summaries give them: value, unit, grade.
@pytest.mark.parametrize(
    ("name", "value", "unit", "grade"),
    [
        ("amp-llama-7b-20", 64.52, "%", "second-hand"),  # AMP: LLaMA-7B, 20 %
        ("amp-llama-2-7b-30", 61.02, "%", "second-hand"),  # LLaMA-2-7B, 30 %
        ("amp-phi-1_5-30", 54.24, "%", "second-hand"),  # Phi-1.5, 30 %
        ("amp-ablation-neurons", 56.93, "%", "second-hand"),
        ("amp-ablation-heads", 37.63, "%", "second-hand"),
        ("amp-reversed", 25, "points", "second-hand"),
        ("quoted-slicegpt-llama-2-7b-30", 51.50, "%", "second-hand"),
        ("amp-lead", 1.49, "points", "abstract"),
        ("elsewhere-wanda-sp", 66.12, "%", "second-hand"),
        ("elsewhere-dense", 65.44, "%", "second-hand"),
        ("amp-code-7", 21.02, "%", "arithmetic"),
        ("amp-time-llama-2-7b", 2.34, "s", "second-hand"),
        ("transact-parameters", 1.269, "B", "arithmetic"),
        ("transact-cache", 18.75, "%", "arithmetic"),
        ("transact-phone-256", -74, "%", "figure"),
        ("consensus-flops", -78.80, "%", "abstract"),
        ("consensus-carbon", -68.75, "%", "abstract"),
        ("peers-slicegpt-50-longer", 73.5, "", "measured"),
        ("peers-wanda-sp-in-flap-s-code-50-longer", 111.9, "", "measured"),
        ("repair-amp-repair-50-longer", 80.0, "", "measured"),
        ("rotation-0-375", 66.2, "", "measured"),
        ("scoring-amp-official-code", 2.9, "s", "measured"),
    ],
)
def test_values_are_those_of_the_facts(name: str, value: float, unit: str, grade: str) -> None:
    entry = entries()[name]
    assert (entry.value, entry.unit, entry.grade) == (value, unit, grade)


def test_what_was_not_found_is_listed_and_in_no_row() -> None:
    found = {paper.name: paper for paper in read()}
    assert "Phi-2" in found["amp"].not_found and "perplexities" in found["amp"].not_found
    assert found["transact"].not_found == ["tables of accuracy"]
    amp = [entry for block in found["amp"].blocks for entry in block.entries]
    assert not any("perplexity" in entry.metric or entry.model == "Phi-2" for entry in amp)
    assert not any("accuracy" in entry.metric for block in found["transact"].blocks for entry in block.entries)


def test_the_sums_of_the_arithmetic_are_right() -> None:
    """LLaMA-2-7B: 32 layers, 32 heads of 128, 11,008 neurons, 4,096 hidden, 32,000 tokens."""
    whole = 6_738_415_616

    def left(heads: int, neurons: int) -> int:
        layer = 4 * 4096 * heads * 128 + 3 * 4096 * neurons + 2 * 4096
        return 2 * 32_000 * 4096 + 32 * layer + 4096

    assert left(32, 11_008) == whole
    for name, entry in entries().items():
        if entry.widths and entry.ours and entry.metric.startswith("parameters"):
            stays = left(**entry.widths)
            exact = 100 * (1 - stays / whole) if entry.metric == "parameters removed" else stays * 1e-9
            assert entry.ours.rounding is not None and abs(exact - entry.value) <= entry.ours.rounding, name
    assert (entries()["amp-code-7"].widths, entries()["amp-code-10"].widths) == (
        dict(heads=32 - 7, neurons=11_008 - 7 * 344),
        dict(heads=32 - 10, neurons=11_008 - 10 * 344),
    )


def test_every_entry_says_where_it_is_from_and_how_sure_it_is() -> None:
    assert len(entries()) > 100
    assert all(entry.source and entry.grade in reference.GRADES for entry in entries().values())


def small() -> dict[str, Any]:
    entry = dict(
        id="a", system="S", model="M", ratio=0.2, metric="m", value=1.0, unit="%", source="t", grade="abstract"
    )
    return dict(paper="P", blocks=[dict(title="B", entries=[entry])], not_found=[], models={})


def written(folder: Path, content: Any) -> Path:
    (folder / "p.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    (paper,) = read(written(tmp_path, small()))
    assert paper.blocks[0].entries[0].ours is None and paper.link == ""


@pytest.mark.parametrize("lost", ["id", "system", "model", "metric", "value", "unit", "source", "grade", "ratio"])
def test_an_entry_that_lacks_something_is_refused(tmp_path: Path, lost: str) -> None:
    content = small()
    del content["blocks"][0]["entries"][0][lost]
    with pytest.raises(ValueError, match="p.yaml"):
        read(written(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(grade="certain"), "grade: 'certain'"),
        (dict(value="61"), "value: '61' is not of type 'number'"),
        (dict(rato=0.3), "'rato' was unexpected"),
        (dict(ours=dict(metric="m")), "'scale' is a required property"),
        (dict(ours=dict(metric="m", scale=1)), "no hub ids"),
    ],
)
def test_an_entry_that_is_wrong_is_refused_in_one_sentence(tmp_path: Path, change: dict, says: str) -> None:
    content = small()
    content["blocks"][0]["entries"][0] |= change
    with pytest.raises(ValueError, match="p.yaml, a") as caught:
        read(written(tmp_path, content))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_id_given_twice_no_yaml_and_no_papers_are_refused(tmp_path: Path) -> None:
    content = small()
    content["blocks"][0]["entries"] *= 2
    with pytest.raises(ValueError, match="the id a is given twice"):
        read(written(tmp_path, content))
    (tmp_path / "p.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match="p.yaml cannot be read as YAML"):
        read(tmp_path)
    (tmp_path / "p.yaml").unlink()
    with pytest.raises(ValueError, match="no published numbers"):
        read(tmp_path)


# Each metric of Consensus against values known beforehand

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
