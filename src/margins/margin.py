"""What a margin is: one signed number per sample, shape (B,), positive when the sample is classified correctly.

    linear_margin, binary_margin   exact distance to the decision boundary of a linear classifier   unit: of the input
    effective_margin               the same for the model linearised at x (EMR, Eq. 3)               unit: of the input
    feature_margin                 exact distance in the space of the last layer's input             unit: of those
    logit_margin                   the gap between two logits                                        no unit

A distance is measured in the lp norm given by `norm` (1, 2, math.inf or any other p >= 1); the dual norm of the gap's
gradient divides the gap. A gap of zero is a margin of zero; a gap that no change of the input can close (its gradient
is zero) is an infinite margin with the gap's sign.

Two conventions meet for wrong samples. AMR (Eq. 6) takes minus the distance to the boundary of the *predicted* class's
region: `linear_margin` and `planar.planar_margin`. EMR (Eq. 3) takes the true class's least ratio, which for a wrong
sample is minus the distance to the *farthest* of the class boundaries that it has to cross to be right:
`effective_margin`, `feature_margin`. On a linear model they agree for correct samples, and for wrong ones where K = 2;
else EMR's is the lower one or the same.
"""

import math

import torch
from torch import nn

from margins import checks
from margins.errors import MarginsError
from margins.models import frozen


def linear_margin(weight, bias, x, y, norm: float = 2) -> torch.Tensor:
    """Signed distance to the decision boundary of the classifier argmax(W x + b), exact (AMR, Eqs. 6 and 7).

    weight (K, D), bias (K,) or None, x (B, ...) with D entries a sample, y (B,) int64 in 0..K-1; returns (B,). A
    correct sample gets the distance, a wrong one minus the distance to the boundary of the class that it is put into.
    Raises MarginsError for other shapes and types, labels out of range, entries that are not finite, and K < 2.
    """
    dual = _dual(norm)
    checks.tensor("weight", weight, 2)
    x = checks.samples(x, weight.shape[1])
    bias = weight.new_zeros(len(weight)) if bias is None else checks.tensor("bias", bias, 1, len(weight))
    checks.labels(y, len(x), len(weight))
    logits = x @ weight.T + bias
    prediction = logits.argmax(1)
    distance = _least(logits, _lengths(weight, dual), prediction)
    return torch.where(prediction == y, distance, -distance)


def binary_margin(weight, bias, x, y, norm: float = 2) -> torch.Tensor:
    """Signed distance to the boundary of a binary linear classifier, class 1 where w x + b > 0 (AMR, section 4.1).

    weight (D,), bias a number, x (B, ...) with D entries a sample, y (B,) int64 of zeros and ones; returns (B,).
    Raises MarginsError as `linear_margin` does.
    """
    dual = _dual(norm)
    checks.tensor("weight", weight, 1)
    bias = checks.tensor("bias", torch.as_tensor(bias, dtype=weight.dtype, device=weight.device), 0)
    x = checks.samples(x, len(weight))
    checks.labels(y, len(x), 2)
    gap = (x @ weight + bias) * (2 * y - 1)
    return _ratio(gap, torch.linalg.vector_norm(weight, dual))


def effective_margin(model: nn.Module, x, y, norm: float = 2) -> torch.Tensor:
    """The margin of the model linearised at x (EMR, Eq. 3): min over j != y of (f_y - f_j) / ||grad(f_y - f_j)||.

    x (B, ...), y (B,) int64; returns (B,), without a graph. Exact within the linear region around x, so for linear
    models everywhere. The model runs in evaluation mode and is left as it was (modes, requires_grad, gradients,
    BatchNorm statistics), also after an exception. Cost: one forward and K - 1 gradients to the input, about K
    forwards. Raises MarginsError as `linear_margin` does, and where the logits are not finite or not of shape (B, K).
    """
    return _linearise(model, x, y, norm)[0]


def effective_point(model: nn.Module, x, y) -> torch.Tensor:
    """Where the linearised gap closes, at l2 distance |effective_margin| from x: DeepFool's first step (AMM, Eq. 3).

    Returns a tensor of x's shape; nan where the margin is infinite. Cost and errors as for `effective_margin`.
    """
    _, gap, gradient = _linearise(model, x, y, 2)
    step = (gap / gradient.flatten(1).square().sum(1)).reshape(-1, *[1] * (x.ndim - 1)) * gradient
    return torch.where(torch.isfinite(step), x.detach() - step, torch.nan)


@torch.no_grad()
def feature_margin(model: nn.Module, x, y) -> torch.Tensor:
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
    x = checks.tensor("x", x)
    checks.labels(y, len(x), head.out_features)
    with frozen(model):
        logits = checks.logits(head(model.features(x)), len(x))
    return _least(logits, _lengths(head.weight, 2), y)


def logit_margin(logits, y) -> torch.Tensor:
    """f_y - max over j != y of f_j, (B,): what LMA-AT's margin loss (Eq. 12) and the "margin loss" of attacks look at.

    logits (B, K), y (B,) int64. Keeps the graph. Raises MarginsError as `linear_margin` does.
    """
    checks.logits(logits, len(logits))
    checks.labels(y, len(logits), logits.shape[1])
    label = y[:, None]
    return logits.gather(1, label)[:, 0] - logits.scatter(1, label, -math.inf).amax(1)


def minimum(margins) -> float:
    """AMR's minimum margin (section 2): the least signed margin. margins (B,), B >= 1, not nan; else MarginsError."""
    return _margins(margins).min().item()


def average(margins) -> float:
    """AMR's average margin (section 2): the mean of |margin|, so wrong samples count with their distance, unsigned."""
    return _margins(margins).abs().mean().item()


def _linearise(model, x, y, norm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Effective margin (B,), and the gap (B,) and gradient (x's shape) of the class that attains it."""
    dual = _dual(norm)
    x = checks.tensor("x", x).detach().requires_grad_()
    with frozen(model), torch.enable_grad():
        logits = checks.logits(model(x), len(x))
        classes = logits.shape[1]
        checks.labels(y, len(x), classes)
        best = None
        for shift in range(1, classes):  # the other classes in turn, each sample from its own label on
            gap = (logits.gather(1, y[:, None]) - logits.gather(1, (y[:, None] + shift) % classes))[:, 0]
            gradient = _gradient(gap, x, keep=shift < classes - 1)
            gap = gap.detach()
            margin = _ratio(gap, torch.linalg.vector_norm(gradient.flatten(1), dual, dim=1))
            if best is None:
                best = margin, gap, gradient
                continue
            closer = margin < best[0]
            shaped = closer.reshape(-1, *[1] * (x.ndim - 1))
            best = (
                torch.where(closer, margin, best[0]),
                torch.where(closer, gap, best[1]),
                torch.where(shaped, gradient, best[2]),
            )
    return best


def _gradient(gap, x, keep: bool) -> torch.Tensor:
    if not gap.requires_grad:  # logits that do not depend on the input
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(gap.sum(), x, retain_graph=keep, allow_unused=True, materialize_grads=True)
    return gradient


def _ratio(gap, length):
    return torch.where(gap == 0, 0.0, gap / length)


def _lengths(weight, dual: float) -> torch.Tensor:
    """(K, K): the dual norm of w_i - w_j, row by row: K matrices at once would be large for many classes."""
    return torch.stack([torch.linalg.vector_norm(row - weight, dual, dim=1) for row in weight])


def _least(logits, lengths, reference) -> torch.Tensor:
    """min over j != r of (f_r - f_j) / lengths[r, j], for each sample's reference class r."""
    ratio = _ratio(logits.gather(1, reference[:, None]) - logits, lengths[reference])
    return ratio.scatter(1, reference[:, None], math.inf).amin(1)


def _dual(norm: float) -> float:
    norm = checks.norm(norm)
    if norm == 1:
        return math.inf
    return 1.0 if norm == math.inf else norm / (norm - 1)


def _margins(margins) -> torch.Tensor:
    if not isinstance(margins, torch.Tensor) or margins.ndim != 1 or not len(margins) or margins.isnan().any():
        raise MarginsError("margins must be a tensor of shape (B,) with B >= 1 and no nan")
    return margins
