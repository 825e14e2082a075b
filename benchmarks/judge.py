"""One rule for every library: what it returned is looked at again with our own forward, and nothing else believed."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from margins.attacks.found import misclassified
from margins.attacks.geometry import length

#: A point may lie outside of the ball by this share of eps, and of the box by this much, before it counts as no answer.
SLACK = 1e-4


@dataclass(frozen=True)
class Judged:
    """`robust` (n,) bool: no adversarial example was found; `distance` (n,), infinite there, 0 where x itself is one.

    `outside`: by how much the worst point leaves the ball, as a share of eps, or the box.
    """

    robust: np.ndarray
    distance: np.ndarray
    outside: float


@torch.no_grad()
def judge(model, x, y, x_adv, *, norm: float, eps: float | None, box: bool) -> Judged:
    """x, x_adv (n, ...), y (n,). eps None: any distance counts. Points that are not finite or too far out do not."""
    bad = ~torch.isfinite(x_adv).flatten(1).all(1)
    x_adv = torch.where(bad.reshape(-1, *[1] * (x.ndim - 1)), x, x_adv)
    distance = length(x_adv.double() - x.double(), norm)
    outside = torch.zeros_like(distance)
    if eps is not None:
        outside = ((distance - eps) / eps).clamp(min=0)
    if box:
        outside = torch.maximum(outside, (torch.maximum(-x_adv, x_adv - 1)).flatten(1).amax(1).clamp(min=0))
    at_start = misclassified(model(x), y)
    broken = at_start | (misclassified(model(x_adv), y) & (outside <= SLACK) & ~bad)
    distance = torch.where(broken, distance, math.inf)
    distance[at_start] = 0
    return Judged(~broken.numpy(), distance.numpy(), math.inf if bad.any() else outside.max().item())
