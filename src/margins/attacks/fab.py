"""FAB-T: the Fast Adaptive Boundary attack on one target class after the other (Croce and Hein 2020).

A minimum-norm attack. It walks along the boundary to a class t: the gap f_y - f_t, made linear at the current point z,
gives a hyperplane; z and the original x are projected onto it within the box, both a little beyond it, and the next z
is a mean of the two points that leans to z. Before that, a z that is misclassified is drawn back towards x.
"""

import math

import torch
from torch import Tensor

from margins import checks, losses
from margins.attacks.found import Bounds, Nearest, Oracle, attacking, misclassified, parts, rivals
from margins.attacks.geometry import clip, column, dot, length
from margins.attacks.halfspace import nearest_in_halfspace

#: The paper's alpha_max (the largest weight of the projection of x), eta (beyond the plane), beta (back towards x).
LEAN, BEYOND, BACK = 0.1, 1.05, 0.9
#: The search at the end: for points at most so much further than the nearest one, rounds, points tried in each, and how
#: far beyond the boundary, as a part of the gap at x, so that rounding does not decide.
NEARLY, ROUNDS, TRIES, SURE = 1.05, 3, 3, 1e-5


def fab_t(
    model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    steps: int = 100,
    targets: int = 9,
    eps: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Nearest:
    """The misclassified point nearest to x (B, ...) that FAB meets, in norm 2 or math.inf and input units.

    steps: for each target class. targets: so many classes, or K - 1 where there are fewer, are tried: first the one
    with the largest logit at x. eps: where given, a sample found within eps leaves at once, as AutoAttack has it; for
    the others the result is the nearest point all the same. Nothing is random: `generator` has no effect.

    Two things differ from the published code. Each step linearises at the point that was just tested, and not at the
    one drawn back from it: a forward and a backward a step instead of two forwards and a backward. And the points found
    are brought closer in the end (`_closer`), where there was an overshoot of up to eta - 1.

    Costs, for each target and each sample that is left, `steps` forwards with backwards and a forward; for targets
    whose point is (nearly) the nearest so far 3 forwards with backwards and 9 forwards more. Raises MarginsError for
    bad input.
    """
    checks.norm(norm, (2, math.inf))
    checks.whole("steps", steps, 1)
    checks.whole("targets", targets, 1)
    bounds = checks.box(bounds)
    within = 0.0 if eps is None else checks.number("eps", eps, 0)
    checks.generator(generator)
    with attacking(model, x, y, bounds) as (oracle, logits, wrong):
        x = x.detach()
        order = rivals(logits, y, targets)
        x_adv, distance = x.clone(), torch.where(wrong, 0, math.inf).to(x)
        for target in order.T:
            for part in parts((distance > within).nonzero()[:, 0]):
                start, label = x[part], y[part]
                point, size = _walk(oracle, start, label, target[part], norm, steps, within, bounds)
                near = ((size > within) & (size < NEARLY * distance[part])).nonzero()[:, 0]
                for _ in range(ROUNDS if len(near) else 0):
                    point[near] = _closer(oracle, start[near], label[near], point[near], norm, bounds)
                size = torch.where(size < math.inf, length(point - start, norm), size)
                better = size < distance[part]
                x_adv[part[better]], distance[part[better]] = point[better], size[better]
    return Nearest(x_adv, distance < math.inf, distance, oracle.calls, norm)


def _walk(
    oracle: Oracle, x: Tensor, y: Tensor, target: Tensor, norm: float, steps: int, within: float, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    """The nearest misclassified point (n, ...) on the walk along the boundary to `target`, its distance (n,) or inf.

    A sample stops when it is found within that distance.
    """
    found, distance = x.clone(), x.new_full((len(x),), math.inf)
    left, z = torch.arange(len(x), device=x.device), x
    for step in range(steps + 1):
        if step < steps:
            w, gap, logits = oracle.gradient(z, y, lambda logits, y, t=target: losses.gap(logits, y, t))
        else:
            logits = oracle.logits(z)
        wrong, delta = misclassified(logits, y), z - x
        size = length(delta, norm)
        better = (wrong & (size < distance[left])).nonzero()[:, 0]
        found[left[better]], distance[left[better]] = z[better], size[better]
        if step == steps:
            break
        if (distance[left[better]] <= within).any():
            stay = (distance[left] > within).nonzero()[:, 0]
            left, x, y, target, w, gap = (part[stay] for part in (left, x, y, target, w, gap))
            wrong, delta = wrong[stay], delta[stay]
            if not len(left):
                break
        z = _step(x, delta, w, gap, wrong, norm, bounds)
    return found, distance


def _step(x: Tensor, delta: Tensor, w: Tensor, gap: Tensor, wrong: Tensor, norm: float, bounds: Bounds) -> Tensor:
    """The next point, from x + delta with the gap (n,) and its gradient w there."""
    along = dot(w, delta)
    back = torch.where(wrong, BACK, 1.0).to(x)
    delta = delta * column(back, x)
    here = BEYOND * _onto(x + delta, w, gap + (back - 1) * along, norm, bounds)
    origin = BEYOND * _onto(x, w, gap - along, norm, bounds)
    far, near = length(origin, norm), length(here, norm)
    lean = (near / (near + far).clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=LEAN)
    return clip(x + torch.lerp(delta + here, origin, column(lean, x)), bounds)


def _onto(x: Tensor, w: Tensor, gap: Tensor, norm: float, bounds: Bounds) -> Tensor:
    """The shortest step from x onto the plane gap + w . r = 0, from either side."""
    side = torch.where(gap < 0, -1.0, 1.0).to(x)
    return nearest_in_halfspace(x, w * column(side, w), gap * side, norm, bounds)


def _closer(oracle: Oracle, x: Tensor, y: Tensor, x_adv: Tensor, norm: float, bounds: Bounds) -> Tensor:
    """Misclassified points x_adv (n, ...) brought closer to x; they stay misclassified.

    The point nearest to x on the plane of the boundary, linearised at x_adv, is closer, if not always misclassified:
    the last misclassified point on the straight way there is looked for by the secant method. All points of the way
    that are not x_adv are closer, since balls are convex. On a linear model that is the nearest point of all.
    """
    w, gap, _ = oracle.gradient(x_adv, y, lambda logits, y: -losses.margin(logits, y))
    goal = clip(x + nearest_in_halfspace(x, w, (1 + SURE) * (gap - dot(w, x_adv - x)), norm, bounds), bounds)
    shorter = length(goal - x, norm) < length(x_adv - x, norm)
    way = (goal - x_adv) * column(shorter.to(x), x)
    best, good, good_gap = x_adv, torch.zeros_like(gap), gap
    bad, bad_gap = torch.ones_like(gap), torch.zeros_like(gap)  # as the linear model has it
    for _ in range(TRIES):
        share = (good_gap / (good_gap - bad_gap)).nan_to_num(0.5).clamp(0, 1)  # of the way from good to bad
        at = good + 0.95 * share * (bad - good)
        point = clip(x_adv + column(at, x) * way, bounds)
        gap = -losses.margin(oracle.logits(point), y)
        wrong = ~(gap >= 0)  # a tie is too close
        best = torch.where(column(wrong, x), point, best)
        good, good_gap = torch.where(wrong, at, good), torch.where(wrong, gap, good_gap)
        bad, bad_gap = torch.where(wrong, bad, at), torch.where(wrong, bad_gap, gap)
    return best
