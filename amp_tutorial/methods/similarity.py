"""How far apart two representations of the same tokens are: the metrics by which Consensus ranks layers.

X and Y are (tokens, features); row t of both belongs to the same token. 0 means alike, and more is further apart. What
counts as alike differs: "cka", "linear_1" and the Gaussian metrics see through a rotation of the features, "linear_0"
through any invertible map, "permutation" and "wasserstein" only through another order of them. (After "wasserstein"
the features may even belong to other tokens.)

Source of the choice: Consensus layer pruning (arXiv 2411.14345), by its official code [code]: `layer_metrics/` and the
copy of netrep in it (`LinearMetric`, `PermutationMetric`, `GaussianStochasticMetric`), which names the metrics as
`METRICS` does: after the underscore stands netrep's alpha. Defects of that code [code]: "linear" draws its rows from
`range(number of classes)`, so it aligns on 8 of the first 10 samples and measures on the other 2; the draw differs from
layer to layer; and `main.py` as released votes with two of the eight metrics only, on 10 samples of each class.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

Features = Float[np.ndarray, "tokens features"]
Labels = Int[np.ndarray, " tokens"]

NOTHING = 1e-10  # share of the largest variance below which a direction counts as empty: rounding, not signal


def cka(x: Features, y: Features) -> float:
    """1 − linear CKA: 1 − ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), centred, Frobenius norms; between 0 and 1.

    The official code does the same, without the correction for few tokens. Known defect: of independent noise CKA is
    about features / tokens and not 0, so take many more tokens than features.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    return float(1 - np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def linear_shape(x: Features, y: Features, alpha: float) -> float:
    """The angle left between X and Y after the best alignment: min over rotations T of arccos ⟨X', Y'T⟩ / ‖X'‖‖Y'‖.

    X' = X (α I + (1 − α) (XᵀX)^−½), centred. alpha = 1: X itself, rotations only (Procrustes); alpha = 0: whitened, so
    that every invertible linear map is seen through, and the angle comes from the mean canonical correlation.
    The best rotation makes ⟨X', Y'T⟩ the nuclear norm of X'ᵀY'. Between 0 and π/2.

    Deviations from the official code: aligned and measured on all tokens, not on 8 and 2 of them; directions without
    variance stay empty where netrep blows them up. Known defect: with alpha = 0 a direction that hardly varies weighs
    as much as any other, and with no more tokens than features everything is alike.
    """
    x, y = _whitened(x - x.mean(0), alpha), _whitened(y - y.mean(0), alpha)
    return _angle(float(np.linalg.norm(x.T @ y, "nuc")), x, y)


def permutation(x: Features, y: Features) -> float:
    """The angle between X and Y after the best one-to-one matching of their features, centred; 0 to π/2 and above.

    Equation: min over permutations P of arccos ⟨X, YP⟩ / ‖X‖‖Y‖, an assignment problem. As in the official code.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    inner = x.T @ y
    return _angle(float(inner[linear_sum_assignment(inner, maximize=True)].sum()), x, y)


def gaussian(
    x: Features,
    y: Features,
    labels: Labels,
    alpha: float,
    classes: int = 10,
    components: int = 32,
    steps: int = 100,
    tolerance: float = 1e-6,
) -> float:
    """Stochastic shape metric: the distance between the Gaussians that X and Y make of each class, best aligned.

    Equation: the root of min over rotations T of the mean over classes k of
    α ‖m_k − Tᵀn_k‖² + (2 − α) B²(S_k, Tᵀ R_k T), with means m, n and covariances S, R of class k in X and in Y and the
    Bures distance B²(S, R) = tr S + tr R − 2 tr (S^½ R S^½)^½. alpha = 0: covariances only; 1: the 2-Wasserstein
    distance of Gaussians; 2: means only. T and the rotations inside B are found in turn, as netrep does.

    The official code's classes are the ten of CIFAR-10. A language model's class is the next token: `labels`.

    Args:
        labels: the class of each token; the `classes` most frequent that occur twice are compared.
        components: X and Y are each taken in so many of their own leading principal components, because a step costs
            a singular value decomposition of that size for every class. What is outside them is not seen.
        steps, tolerance: stop when a step gains less than this share.

    Deviation: it starts from the rotation that aligns all tokens, where netrep aligns the means only; ten means leave
    most of that rotation open, and even X and X itself might not meet. Known defect: a local minimum.

    Raises:
        ValueError: no label occurs twice.
    """
    frequent = [label for label, count in Counter(labels.tolist()).most_common(classes) if count > 1]
    if not frequent:
        raise ValueError("No next token occurs twice in the calibration text, so there is no class; give more text.")
    x, y = _leading(x, components), _leading(y, components)
    turn, _ = orthogonal_procrustes(y, x)
    (m, s), (n, r) = _moments(x, labels, frequent), _moments(y, labels, frequent)
    loss = np.inf
    for _ in range(steps):
        u, overlap, v = np.linalg.svd(r @ turn @ s)  # of each class; the sum of `overlap` is tr (S^½ TᵀRT S^½)^½
        bures = (s**2).sum((1, 2)) + (r**2).sum((1, 2)) - 2 * overlap.sum(1)
        before, loss = loss, float(np.mean(alpha * ((m - n @ turn) ** 2).sum(1) + (2 - alpha) * bures))
        if before - loss <= tolerance * abs(loss):
            break
        turned = alpha * n.T @ m + (2 - alpha) * (r @ (u @ v) @ s).sum(0)
        left, _, right = np.linalg.svd(turned)
        turn = left @ right
    return max(min(before, loss), 0.0) ** 0.5


def wasserstein(x: Features, y: Features) -> float:
    """How far the values of X must move on the line to become those of Y, on average; in units of the features.

    All values of all tokens and features in one heap, as in the official code, not centred. Known defect: it does not
    look at which token or feature a value belongs to.
    """
    return float(wasserstein_distance(x.ravel(), y.ravel()))


METRICS: dict[str, Callable[[Features, Features, Labels], float]] = {
    "cka": lambda x, y, labels: cka(x, y),
    "linear_0": lambda x, y, labels: linear_shape(x, y, alpha=0.0),
    "linear_1": lambda x, y, labels: linear_shape(x, y, alpha=1.0),
    "permutation": lambda x, y, labels: permutation(x, y),
    "gaussian_0": lambda x, y, labels: gaussian(x, y, labels, alpha=0.0),
    "gaussian_1": lambda x, y, labels: gaussian(x, y, labels, alpha=1.0),
    "gaussian_2": lambda x, y, labels: gaussian(x, y, labels, alpha=2.0),
    "wasserstein": lambda x, y, labels: wasserstein(x, y),
}


def _angle(inner: float, x: Features, y: Features) -> float:
    return float(np.arccos(np.clip(inner / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1)))


def _whitened(x: Features, alpha: float) -> Features:
    variance, directions = np.linalg.eigh(x.T @ x)
    full = variance > NOTHING * variance[-1]
    scale = alpha + (1 - alpha) * np.where(full, np.where(full, variance, 1) ** -0.5, 0)
    return x @ (directions * scale) @ directions.T


def _leading(x: Features, components: int) -> Float[np.ndarray, "tokens components"]:
    """X in its own leading principal components, not centred: the means of the classes count."""
    _, directions = np.linalg.eigh(x.T @ x)
    return x @ directions[:, -components:]


def _moments(
    x: Features, labels: Labels, classes: list[int]
) -> tuple[Float[np.ndarray, "classes features"], Float[np.ndarray, "classes features features"]]:
    """Mean, and root of the covariance, of the tokens of each class."""
    of_class = [x[labels == label] for label in classes]
    variance, directions = np.linalg.eigh(np.stack([np.atleast_2d(np.cov(rows.T)) for rows in of_class]))
    scaled = directions * np.sqrt(np.maximum(variance, 0))[:, None, :]
    return np.stack([rows.mean(0) for rows in of_class]), scaled @ directions.transpose(0, 2, 1)
