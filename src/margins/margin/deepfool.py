"""AMM's margin of a network: the length of the DeepFool perturbation."""

import torch
from torch import Tensor, nn

from margins.attacks.deepfool import deepfool
from margins.attacks.found import Bounds, attacking


def deepfool_margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: float = 2,
    steps: int = 50,
    overshoot: float = 0.02,
    bounds: Bounds = None,
) -> Tensor:
    """The length of the DeepFool perturbation (AMM, Eqs. 2-4), signed: an upper bound of the distance, (B,).

    x (B, ...), y (B,) int64; norm 2 or math.inf. Each sample is moved out of the class that it is put into; the margin
    is the length of that move, times -1 where that class was wrong. So does Deep Defense's code measure test samples,
    and so means AMR's Eq. 6. The length that a wrong sample takes to become right, which AMM trains with, is
    `deepfool(..., reference="correction")`. The overshoot counts, as in that code: on a linear model the result is
    1 + overshoot times the exact distance (without a box). AMM reports lengths without a box, after at most 6 steps;
    where the class has not changed after `steps` the margin is infinite.

    Cost and errors: `deepfool`'s, and a forward.
    """
    settings = {"norm": norm, "steps": steps, "overshoot": overshoot, "bounds": bounds}
    found = deepfool(model, x, y, reference="prediction", **settings)
    with attacking(model, x, y, bounds) as (_, logits, _):
        right = logits.argmax(1) == y
    return torch.where(right, found.distance, -found.distance)
