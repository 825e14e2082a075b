"""Race, the book's own strong minimum-norm attack: how near the nearest misclassified point is, from above.

Of the family of DDN (Rony et al. 2019) and FMN (Pintor et al. 2021): direction and norm are decoupled, and every
gradient serves both. At an iterate z near the boundary, with the gap g = f_y - f_t to a class t and its gradient w:

    p  = the point nearest to x, in the box, where the linearised gap g + w . (p - z) closes  (exact on linear models)
    z <- z + beta (p - z), then along -w to where the linearised gap is a little below 0      (beta falls step by step)

The first line looks for the nearest point of the linearised boundary (as FAB does, Croce and Hein 2020), the second
stays on the true one. How far below 0 adapts to each sample: less after a step that was misclassified, more after one
that was not. The logits' differences are what is followed, so nothing underflows where the network is confident. Which
class is nearest decides most: classes race, and the better half goes on.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from margins import checks, losses
from margins.attacks.found import Bounds, Calls, Nearest, Oracle, attacking, finite, input_gradient, parts, rivals
from margins.attacks.geometry import clip, column, direction, dot, length
from margins.attacks.noise import Noise

#: The race: so many classes at first, each for this share of the steps, then those that were nearest. With fewer steps
#: than RACING there is none, only the class is chased that seems nearest.
RACE, RACING = ((4, 0.06), (2, 0.1)), 60
#: beta at the first and at the last step, falling along half a cosine.
FIRST, LAST = 0.8, 0.03
#: The overshoot, a share of the distance: at first, its bounds, and the factors after a failure and a success.
OVERSHOOT, LEAST, MOST, MORE, LESS = 0.1, 1e-5, 0.5, 1.5, 0.5
#: Turns of Newton's method a projection; it goes on from the last one's rate.
NEWTON = 2


def race(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: float = 2,
    steps: int = 100,
    targets: int = 9,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Nearest:
    """The nearest misclassified point that is found; its distance is an upper bound of the margin.

    x (B, ...) in `bounds`, y (B,) int64; norm 2 or math.inf; distances in input units; steps: gradients, one forward
    and one backward each; targets: how many classes are raced for, at most, those with the largest logits at x. A point
    counts as misclassified only if rounding cannot undo it. On a linear model the distance is exact but for the least
    overshoot, in a box too.

    Random numbers (generator) are used where a sample has fewer than 4 classes to race for, in further starts, and
    where no gradient led to another class, as where gradients vanish: points around x, farther and farther, are tried
    then, and the way back. Cost: `steps` forwards and backwards, ranking the classes and looking at x included, and
    some 40 forwards of the samples on which gradients fail. Raises MarginsError for bad arguments, before any work.
    """
    norm, steps = checks.norm(norm, (2, math.inf)), checks.whole("steps", steps, 1)
    targets, bounds = checks.whole("targets", targets, 1), checks.box(bounds)
    checks.generator(generator)
    with attacking(model, x, y, bounds) as (oracle, logits, wrong):
        x, noise = x.detach(), Noise(x, generator)
        order = rivals(logits, y, targets)
        x_adv, success = x.clone(), wrong.clone()
        for part in parts((~wrong).nonzero()[:, 0]):
            best = _Best(oracle, x[part], y[part], norm, bounds)
            _run(best, order[part], steps, noise.keep(part))
            x_adv[part], success[part] = best.point, best.distance < math.inf
    distance = torch.where(success, length(x_adv - x, norm), math.inf)
    return Nearest(x_adv, success, distance, oracle.calls, norm)


class _Best:
    """The samples that are attacked, all of them right at x, and the nearest misclassified point met of each."""

    def __init__(self, oracle: Oracle, x: Tensor, y: Tensor, norm: float, bounds: Bounds):
        self.oracle, self.x, self.y, self.norm, self.bounds = oracle, x, y, norm, bounds
        self.point, self.distance = x.clone(), torch.full(x.shape[:1], math.inf, dtype=x.dtype, device=x.device)

    def see(self, point: Tensor, distance: Tensor, logits: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Keep the points (n, ...) of these samples that are nearer; (n,) bool, which are misclassified for sure."""
        y = self.y[rows][:, None]
        gap = logits.gather(1, y)[:, 0] - logits.scatter(1, y, -math.inf).amax(1)
        sure = ~(gap > -32 * torch.finfo(logits.dtype).eps * logits.abs().amax(1))  # more than rounding may undo
        nearer = sure & (distance < self.distance[rows])
        chosen = nearer.nonzero()[:, 0]
        at = chosen if isinstance(rows, slice) else rows[chosen]
        self.point[at], self.distance[at] = point[chosen], distance[chosen]
        return sure

    def ask(self, point: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """`see` for points whose logits are not known: n forwards."""
        return self.see(point, length(point - self.x[rows], self.norm), self.oracle.logits(point), rows)


@dataclass
class _Chase:
    """The pursuit of one class by each of the n samples: where it is and what it knows.

    target (n,) int64; point (n, ...), the iterate; overshoot (n,); rate (n,) of the last projection; reached (n,), the
    least distance at which it met a misclassified point; near (n, ...), the nearest point of the linearised boundary.
    """

    target: Tensor
    point: Tensor
    overshoot: Tensor
    rate: Tensor
    reached: Tensor
    near: Tensor

    @classmethod
    def start(cls, best: _Best, target: Tensor, noise: Noise | None = None) -> "_Chase":
        """From x, or from a random point as far from x as the nearest misclassified point that is known."""
        none, point = torch.zeros_like(best.distance), best.x
        if noise is not None:
            inputs = point[0:1].numel()
            away = (noise.normal(inputs) if best.norm == 2 else noise.signs(inputs)).to(point).reshape(point.shape)
            away *= column(best.distance.nan_to_num(posinf=0.0) / length(away, best.norm), away)
            point = clip(point + away, best.bounds)
        return cls(target, point, none + OVERSHOOT, none, none + math.inf, best.x)

    def step(self, best: _Best, beta: float) -> None:
        """One gradient, and the move of the module's docstring."""
        x, norm, target = best.x, best.norm, self.target
        w, gap, logits = best.oracle.gradient(self.point, best.y, lambda logits, y: losses.gap(logits, y, target))
        delta = self.point - x
        distance = length(delta, norm)
        sure = best.see(self.point, distance, logits)
        self.reached = torch.where(sure, self.reached.minimum(distance), self.reached)
        self.overshoot = (self.overshoot * torch.where(sure, LESS, MORE)).clamp(LEAST, MOST)
        gap, unit = _scaled(gap, w)
        towards, slope = _steepest(unit, norm)
        near, self.rate, left = _project(best, gap - dot(unit, delta), unit, towards, slope, self.rate)
        self.near = near
        beyond = self.overshoot * torch.where(distance > 0, distance * slope, gap)
        back = _over((1 - beta) * gap + beta * left + beyond, slope)
        point = torch.addcmul(self.point.lerp(near, beta), towards, column(back, x), value=-1)
        self.point = clip(point, best.bounds)


def _run(best: _Best, order: Tensor, steps: int, noise: Noise) -> None:
    """Chase the classes order (n, C): the nearest few at first, the nearest of those further, the nearest to the end.

    Where there are fewer classes than runners at first, the others start from random points.
    """
    classes, left = order.shape[1], max(1, steps - 1)  # the looks at x and at the last point make up one step
    stages = [(runners, round(share * steps)) for runners, share in (RACE if steps >= RACING else ())]
    ranking = (classes + 2) // 2  # of all classes at x: a forward and a backward for each class, in steps
    if classes > (RACE[0][0] if stages else 1) and ranking <= left / 2:
        order, left = _ranked(best, order), left - ranking
    stages.append((1, left - sum(runners * turns for runners, turns in stages)))
    done, turns = 0, sum(turns for _, turns in stages)
    chases: list[_Chase] = []
    for stage, (runners, count) in enumerate(stages):
        if stage == 1:
            _blind(best, chases[0], noise)
        chases = _nearest(best, chases, runners)
        for place in range(runners):
            if place == len(chases):
                if place == classes:
                    _blind(best, chases[0], noise)
                chases.append(_Chase.start(best, order[:, place % classes], None if place < classes else noise))
            for i in range(done, done + count):
                chases[place].step(best, LAST + (FIRST - LAST) * (1 + math.cos(math.pi * i / turns)) / 2)
        done += count
    best.ask(chases[0].point)
    _blind(best, chases[0], noise)


def _ranked(best: _Best, order: Tensor) -> Tensor:
    """The classes (n, C) by their distance in the model linearised at x: n forwards, C n backwards."""
    x, distances = best.x, []
    with torch.enable_grad():
        asked = x.detach().requires_grad_()
        logits = best.oracle.model(asked)
        for c, target in enumerate(order.unbind(1)):
            gap = losses.gap(logits, best.y, target)
            w = finite(input_gradient(gap.sum(), asked, keep=c < order.shape[1] - 1))
            gap, unit = _scaled(gap.detach(), w)
            near, *_ = _project(best, gap, unit, *_steepest(unit, best.norm), torch.zeros_like(gap))
            distances.append(torch.where(unit.flatten(1).any(1), length(near - x, best.norm), math.inf))
    best.oracle.calls += Calls(len(x), order.numel())
    return order.gather(1, torch.stack(distances, 1).argsort(dim=1, stable=True))


def _nearest(best: _Best, chases: list[_Chase], count: int) -> list[_Chase]:
    """For each sample the `count` chases that seem nearest: by the mean of what was reached and what lies ahead.

    One that met nothing misclassified counts as half as far again as it looks ahead; without a gradient it comes last.
    """
    if len(chases) <= count:
        return chases
    ahead = torch.stack([length(chase.near - best.x, best.norm) for chase in chases])
    reached = torch.stack([chase.reached for chase in chases])
    score = torch.where(reached < math.inf, reached + ahead, torch.where(ahead > 0, 3 * ahead, math.inf))
    order, every = score.argsort(dim=0, stable=True), torch.arange(score.shape[1], device=score.device)
    stacked = [torch.stack([getattr(chase, field.name) for chase in chases]) for field in fields(_Chase)]
    return [_Chase(*(values[place, every] for values in stacked)) for place in order[:count]]


def _blind(best: _Best, chase: _Chase, noise: Noise) -> None:
    """Look around where no gradient has led to another class: random points farther and farther from x, then back.

    What is found becomes the chase's point and target. Up to some 40 forwards, of these samples only.
    """
    rows = best.distance.isinf().nonzero()[:, 0]
    x, noise = best.x[rows], noise.keep(rows)
    reach = x.flatten(1).abs().amax(1).clamp(min=1) if best.bounds is None else best.bounds[1] - best.bounds[0]
    for power in range(-16, 6):
        lost = best.distance[rows].isinf().nonzero()[:, 0]
        if not len(lost):
            break
        away = (2 * noise.uniform(best.x[:1].numel()) - 1).to(x).reshape(x.shape)
        away *= column(torch.as_tensor(reach * 2 ** (power / 2)).expand(len(x)), x)
        best.ask(clip(x + away, best.bounds)[lost], rows[lost])
    rows = rows[best.distance[rows].isfinite()]
    if not len(rows):
        return
    x, far = best.x[rows], best.point[rows] - best.x[rows]
    low, high = torch.zeros_like(best.distance[rows]), torch.ones_like(best.distance[rows])
    for _ in range(20):
        middle = (low + high) / 2
        found = best.ask(x + column(middle, x) * far, rows)
        low, high = torch.where(found, low, middle), torch.where(found, middle, high)
    logits = best.oracle.logits(best.point[rows])
    chase.target = chase.target.index_copy(0, rows, logits.scatter(1, best.y[rows, None], -math.inf).argmax(1))
    chase.point = chase.point.index_copy(0, rows, best.point[rows])
    chase.reached = chase.reached.index_copy(0, rows, best.distance[rows])


def _project(best: _Best, gap: Tensor, w: Tensor, towards: Tensor, slope: Tensor, rate: Tensor):
    """The point x - rate * towards, cut off at the box, where gap (n,) + w . (it - x) closes, nearly.

    The gain grows with the rate, piecewise linearly and concavely: Newton's method, from `rate` on. A few turns are
    enough, since the next iterate goes on from there. Returns the point, the rate, and the gap that is left.
    """
    x, without = best.x, _over(gap, slope)
    rate = rate.maximum(without)
    for turn in range(NEWTON):
        straight = torch.addcmul(x, towards, column(rate, x), value=-1)
        near = clip(straight, best.bounds)
        left = gap + dot(w, near - x)
        if best.bounds is None or turn == NEWTON - 1:
            break
        gain = dot(w * towards, (straight == near).to(x.dtype))  # of the entries that are not cut off
        rate = torch.where(gain > 0, rate + left / gain, without).maximum(without)
    return near, rate, left


def _scaled(gap: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The gap (n,) and its gradient in units in which the gradient's l2 length is 1, or 0 where it vanishes."""
    unit = direction(w, 2)
    return _over(gap, dot(w, unit)).nan_to_num(0.0, 0.0, 0.0), unit


def _steepest(w: Tensor, norm: float) -> tuple[Tensor, Tensor]:
    """The direction that gains most for its length in the norm, up to a factor, and what it gains (n,)."""
    towards = w if norm == 2 else w.sign()
    return towards, dot(w, towards)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / b, 0.0)
