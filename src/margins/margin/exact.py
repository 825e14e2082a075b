"""Margins in closed form: linear classifiers, the last layer of any classifier, and the gap between two logits."""

import math

import torch
from torch import Tensor, nn

from margins import checks, losses
from margins.errors import MarginsError
from margins.models import frozen


def linear_margin(weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor, norm: float = 2) -> Tensor:
    """Signed distance to the decision boundary of the classifier argmax(W x + b), exact (AMR, Eqs. 6 and 7).

    weight (K, D), bias (K,) or None, x (B, ...) with D entries a sample, y (B,) int64 in 0..K-1; returns (B,). A
    correct sample gets the distance, a wrong one minus the distance to the boundary of the class that it is put into.
    Raises MarginsError for other shapes and types, labels out of range, entries that are not finite, and K < 2.
    """
    dual = dual_norm(norm)
    checks.tensor("weight", weight, 2)
    x = checks.samples(x, weight.shape[1], weight.dtype)
    bias = weight.new_zeros(len(weight)) if bias is None else checks.tensor("bias", bias, 1, len(weight))
    checks.labels(y, len(x), len(weight))
    logits = x @ weight.T + bias
    prediction = logits.argmax(1)
    distance = _least(logits, _lengths(weight, dual), prediction)
    return torch.where(prediction == y, distance, -distance)


def binary_margin(weight: Tensor, bias: float | Tensor, x: Tensor, y: Tensor, norm: float = 2) -> Tensor:
    """Signed distance to the boundary of a binary linear classifier, class 1 where w x + b > 0 (AMR, section 4.1).

    weight (D,), bias a number, x (B, ...) with D entries a sample, y (B,) int64 of zeros and ones; returns (B,).
    Raises MarginsError as `linear_margin` does.
    """
    dual = dual_norm(norm)
    checks.tensor("weight", weight, 1)
    bias = checks.tensor("bias", torch.as_tensor(bias, dtype=weight.dtype, device=weight.device), 0)
    x = checks.samples(x, len(weight), weight.dtype)
    checks.labels(y, len(x), 2)
    gap = (x @ weight + bias) * (2 * y - 1)
    return ratio(gap, torch.linalg.vector_norm(weight, dual))


@torch.no_grad()
def feature_margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The l2 margin in feature space: min over j != y of ((w_y - w_j) phi(x) + b_y - b_j) / ||w_y - w_j||, (B,).

    w and b are the rows of `model.head` (a torch.nn.Linear), phi(x) is `model.features(x)`; a length in the units of
    phi. AMR's Eq. 14 with the division and the bias that make it the distance: the printed formula has neither. Without
    a graph; the model is left as it was. Cost: one forward. Raises MarginsError as `linear_margin`, and for a model
    without such a head.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear) or not callable(getattr(model, "features", None)):
        name = type(model).__name__
        raise MarginsError(f"model must have features(x) and a torch.nn.Linear called head, but {name} has not")
    checks.network(model, checks.tensor("x", x))
    checks.labels(y, len(x), head.out_features)
    with frozen(model):
        logits = checks.logits(head(model.features(x)), len(x))
    return feature_distance(logits, head.weight, y)


def feature_distance(logits: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """`feature_margin` of the logits (B, K) of a linear head with the weight (K, D). Unchecked; keeps the graph."""
    return _least(logits, _lengths(weight, 2), y)


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """f_y - max over j != y of f_j, (B,): what LMA-AT's margin loss (Eq. 12) and the "margin loss" of attacks look at.

    logits (B, K), y (B,) int64. Keeps the graph. Raises MarginsError as `linear_margin` does.
    """
    checks.logits(logits, len(logits))
    checks.labels(y, len(logits), logits.shape[1])
    return -losses.margin(logits, y)


def ratio(gap: Tensor, length: Tensor) -> Tensor:
    """gap / length, where no gap is a ratio of 0 and a gap of no slope an infinite one."""
    return torch.where(gap == 0, 0.0, gap / length)


def dual_norm(norm: float) -> float:
    """The q of 1/p + 1/q = 1; MarginsError where p is no norm."""
    norm = checks.norm(norm)
    if norm == 1:
        return math.inf
    return 1.0 if norm == math.inf else norm / (norm - 1)


def _lengths(weight: Tensor, dual: float) -> Tensor:
    """(K, K): the dual norm of w_i - w_j, row by row: K matrices at once would be large for many classes."""
    return torch.stack([torch.linalg.vector_norm(row - weight, dual, dim=1) for row in weight])


def _least(logits: Tensor, lengths: Tensor, reference: Tensor) -> Tensor:
    """min over j != r of (f_r - f_j) / lengths[r, j], for each sample's reference class r."""
    own = reference[:, None]
    rest = torch.ones_like(logits, dtype=torch.bool).scatter_(1, own, False)  # a length of 0 has no gradient to divide
    gaps = logits.gather(1, own) - logits
    gaps, lengths = (values[rest].view(len(logits), logits.shape[1] - 1) for values in (gaps, lengths[reference]))
    return ratio(gaps, lengths).amin(1)
