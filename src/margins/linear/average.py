"""AMR's binary linear classifier: the average-margin regulariser on the unit sphere (AMR section 4.1, Eq. 11)."""

import torch
from torch import Tensor
from torch.nn import functional

from margins import checks
from margins.errors import MarginsError
from margins.penalties.amr import hinge


def objective(weight: Tensor, x: Tensor, y: Tensor, coefficient: float, tau: float) -> Tensor:
    """(T,) the mean of Eq. 11 over samples x (N, D), y (N,) in {0, 1}, for weights (T, D) of length 1.

    log(1 + e^-a) + coefficient (H_tau - H_0)(a), a = +-w . x, which is the sample's distance to the boundary.
    """
    margins = weight @ _signed(x, y).T
    values = functional.softplus(-margins) + coefficient * (hinge(margins, tau) - hinge(margins, 0.0))
    return values.mean(1)


def average_margin_classifier(
    x: Tensor, y: Tensor, *, coefficient: float, tau: float, lr: float = 0.1, steps: int = 2000
) -> Tensor:
    """A minimiser w (D,) of `objective` with |w| = 1, in float64, by projected gradient descent without bias.

    x (N, D) or (N, ...), y (N,) in {0, 1}; coefficient and tau at least 0. The problem is not convex: the descent
    begins at the direction of the difference of the class sums, which has the largest average signed margin of all,
    and the step falls linearly from lr, over the length of the first gradient, to 0. Costs two products with x a step.
    Raises MarginsError for other labels, for classes whose sums are equal, and for settings out of range.
    """
    checks.number("coefficient", coefficient, 0)
    checks.number("tau", tau, 0)
    checks.number("lr", lr, 0, above=True)
    checks.whole("steps", steps, 1)
    if len(x) != len(y) or not ((y == 0) | (y == 1)).all():
        raise MarginsError(f"y must hold {len(x)} labels 0 and 1, but has {len(y)}: {sorted(set(y.tolist()))[:5]}")
    signed = _signed(x, y)
    if not (start := signed.sum(0)).any():
        raise MarginsError("x: the sums of both classes are equal, so there is no direction to begin with")
    weight, scale = functional.normalize(start, dim=0), None
    for step in range(steps):
        margins = signed @ weight
        slope = -torch.sigmoid(-margins) - coefficient * ((margins > 0) & (margins < tau)).double()
        gradient = signed.T @ slope / len(signed)
        scale = scale or gradient.norm().item()
        gradient -= (gradient @ weight) * weight  # along the sphere
        weight = functional.normalize(weight - lr * (1 - step / steps) / scale * gradient, dim=0)
    return weight


def _signed(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(y == 1, 1.0, -1.0)[:, None].double() * x.double().flatten(1)
