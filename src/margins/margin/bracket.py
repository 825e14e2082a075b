"""Where the true margin lies: a proven bound below, the best attack above."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.deepfool import deepfool
from margins.attacks.found import Bounds, Calls, attacking
from margins.attacks.race import race
from margins.errors import MarginsError
from margins.margin.certified import certified_radius


@dataclass(frozen=True, eq=False)
class Bracket:
    """lower <= margin <= upper: the signed distance of each sample to the boundary of the predicted class, in the box.

    lower, upper: (B,) float64, in input units. Of a correct sample, lower is the certified radius and upper the length
    of the shortest perturbation found (inf for none): it is proven robust for eps < lower, and broken at eps >= upper.
    Of a wrong sample, lower is minus that length and upper minus that radius. calls: those of the attacks.
    """

    lower: Tensor
    upper: Tensor
    calls: Calls


def bracket(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: float = 2,
    steps: int = 100,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Bracket:
    """The signed distance to the decision boundary (AMR, Eq. 6), from both sides, in l2 or linf.

    x (B, ...) in the box, y (B,) int64. Below: `certified_radius`. Above: the nearer one of what `race`, with so many
    steps, and `deepfool` find for the predicted class. Cost: theirs; the certified radius is the larger part by far.
    Raises MarginsError as they do, and where an attack reaches below a certified radius by more than rounding: the
    model is then not the function that its layers say (random or stateful, say).
    """
    norm, steps, bounds = checks.norm(norm, (2, math.inf)), checks.whole("steps", steps, 1), checks.box(bounds)
    checks.generator(generator)
    with attacking(model, x, y, bounds) as (_, logits, _):
        prediction = logits.argmax(1)
    radius = certified_radius(model, x, norm=norm, bounds=bounds)
    attacks = [
        race(model, x, prediction, norm=norm, steps=steps, bounds=bounds, generator=generator),
        deepfool(model, x, prediction, norm=norm, bounds=bounds),
    ]
    nearest = torch.stack([found.distance for found in attacks]).amin(0).double()
    rounding = torch.finfo(x.dtype).eps ** 0.5
    if (broken := radius > nearest * (1 + rounding) + rounding).any():
        i = int(broken.nonzero()[0])
        raise MarginsError(
            f"sample {i} has another class at distance {nearest[i]:.4g}, within its certified radius {radius[i]:.4g}: "
            "model does not compute the same each time, or differs from its layers"
        )
    radius, right = torch.minimum(radius, nearest), prediction == y
    return Bracket(
        torch.where(right, radius, -nearest), torch.where(right, nearest, -radius), attacks[0].calls + attacks[1].calls
    )
