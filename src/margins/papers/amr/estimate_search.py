"""Theorem 3 with a search for the steepest place of the ball, in place of random points: how good are those?"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from margins import checks
from margins.attacks.found import attacking, input_gradient, rivals
from margins.attacks.geometry import direction, into_ball, length, random_start
from margins.attacks.noise import Noise
from margins.margin.exact import ratio


class Smooth(TorchFunctionMode):
    """Within the block a ReLU is a softplus of this sharpness, log(1 + exp(sharpness z)) / sharpness."""

    def __init__(self, sharpness: float):
        super().__init__()
        self.sharpness = sharpness

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.relu, functional.relu):
            return functional.softplus(args[0], self.sharpness)
        return function(*args, **(kwargs or {}))


def _slope(model: nn.Module, z: Tensor, own: Tensor, rival: Tensor, graph: bool = False) -> Tensor:
    """(B,) the length of grad(f_own - f_rival) at z."""
    logits = model(z)
    gap = logits.gather(1, own[:, None]) - logits.gather(1, rival[:, None])
    (found,) = torch.autograd.grad(gap.sum(), z, create_graph=graph)
    return length(found, 2)


def climb(
    model: nn.Module,
    x: Tensor,
    own: Tensor,
    rival: Tensor,
    start: Tensor,
    *,
    radius: float,
    steps: int,
    sharpness: float,
) -> Tensor:
    """(B,) the largest ||grad(f_own - f_rival)|| that an ascent on it meets in the ball of this radius about x, l2.

    Of a ReLU net that length is constant between its kinks. So the steps, ever shorter, follow its gradient for the net
    with softplus instead; what they meet is measured on the net itself. A local search: a lower bound of the constant.
    Cost a step: 2 forwards, 2 gradients to the input and one of a gradient.
    """
    z, largest = start.detach(), torch.zeros_like(x.flatten(1)[:, 0])
    with torch.enable_grad():
        for step in range(steps + 1):
            z = z.requires_grad_()
            largest = largest.maximum(_slope(model, z, own, rival).detach())
            with Smooth(sharpness):
                up = input_gradient(_slope(model, z, own, rival, graph=True).sum(), z)
            move = 0.3 * radius * (1 - step / steps) * direction(up, 2)
            z = into_ball(z.detach() + move, x, 2, radius)
    return largest


def searched_margin(
    model: nn.Module,
    x: Tensor,
    *,
    radius: float = 5.0,
    steps: int = 100,
    sharpness: float = 5.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B,) Theorem 3's bound with the constant that `climb` finds instead of random points, at most `radius`, l2.

    For the two best classes, two climbs, from x and from a random point of the ball. The constant is too small if
    anything, and a third class could have the lower ratio: this too is an estimate from above, of a lower bound of the
    distance. x (B, ...). Cost: 2 (steps + 1) times that of a step of `climb`. Raises MarginsError for bad arguments.
    """
    radius, steps = checks.number("radius", radius, 0, above=True), checks.whole("steps", steps, 1)
    sharpness = checks.number("sharpness", sharpness, 0, above=True)
    checks.generator(generator)
    with attacking(model, x, torch.zeros(len(x), dtype=torch.int64, device=x.device), None) as (_, logits, _):
        own = logits.argmax(1)
        rival = rivals(logits, own, 1)[:, 0]
        settings = {"radius": radius, "steps": steps, "sharpness": sharpness}
        starts = (x, random_start("uniform", x, 2, radius, None, Noise(x, generator)))
        slopes = [climb(model, x, own, rival, start, **settings) for start in starts]
    gap = (logits.gather(1, own[:, None]) - logits.gather(1, rival[:, None]))[:, 0]
    return ratio(gap, torch.maximum(*slopes)).clamp(max=radius)
