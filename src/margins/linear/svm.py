"""The hard-margin support vector machine, exactly: the reference for the largest minimum margin."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from margins.errors import MarginsError

#: The bias is the weight of a constant feature of this size, so its share in the norm is 1e-8 of what it would be.
_BIAS_FEATURE = 1e4


@dataclass(frozen=True)
class Svm:
    """weight (D,), bias, and the margin: the least signed distance, in input units."""

    weight: np.ndarray
    bias: float
    margin: float


def hard_margin_svm(x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, bias: bool) -> Svm:
    """The separating hyperplane with the largest minimum margin, of x (N, D) with labels y (N,) in {0, 1}.

    Least-distance programming by non-negative least squares (Lawson and Hanson 1974, chapter 23): no tolerance to
    choose, a second or two for 12,000 images. `bias` False keeps the hyperplane through the origin. Raises MarginsError
    where the classes can't be separated.
    """
    from scipy.optimize import nnls

    x, y = np.asarray(x, dtype=np.float64), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1] or not set(np.unique(y)) <= {0, 1}:
        raise MarginsError(
            f"x, y: shapes {x.shape} and {y.shape} given; (N, D) and (N,) with labels 0 and 1 are needed"
        )
    signed = np.where(y == 1, 1.0, -1.0)[:, None] * (np.c_[x, np.full(len(x), _BIAS_FEATURE)] if bias else x)
    used = (signed != 0).any(0)  # pixels that are never on have weight zero
    equations = np.vstack([signed[:, used].T, np.ones(len(signed))])
    target = np.zeros(len(equations))
    target[-1] = 1
    weights, _ = nnls(equations, target, maxiter=20 * len(signed))
    residual = equations @ weights - target
    solution = np.zeros(signed.shape[1])
    if residual[-1] < 0:
        solution[used] = -residual[:-1] / residual[-1]
    weight, offset = (solution[:-1], solution[-1] * _BIAS_FEATURE) if bias else (solution, 0.0)
    norm = np.linalg.norm(weight)
    if not norm > 0 or not (signed @ solution > 0).all():
        raise MarginsError("x, y: the two classes can't be separated by a hyperplane" + ("" if bias else " through 0"))
    margin = np.where(y == 1, 1.0, -1.0) * (x @ weight + offset) / norm
    return Svm(weight, float(offset), float(margin.min()))
