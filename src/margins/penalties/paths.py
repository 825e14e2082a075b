"""DeepFool's paths on a batch, and the gradient of their lengths to the model's parameters (AMM, section 3.1).

The attack is that of `margins.attacks.deepfool` with norm 2, no box and the reference "correction", for training: all
classes' gradients at once, right and wrong samples in the same passes, and a forward at x that others use as well.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from margins.attacks.found import misclassified, rivals
from margins.attacks.geometry import column, dot, length
from margins.penalties.jacobian import gradients
from margins.penalties.kinks import piecewise_linear

#: Samples x classes whose gradients are taken in one backward: as many as matrix products of a CPU like, and of a model
#: with convolutions, as a batch has anyway. A GPU would only wait for the next backward.
ROWS = {"cpu": 300, "cpu, convolutions": 100, "cuda": 1000}


def at_once(model: nn.Module, x: Tensor) -> int:
    """Of how many classes the gradients to x (B, ...) are taken in one backward."""
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    rows = ROWS["cuda" if x.is_cuda else "cpu, convolutions" if convolutions else "cpu"]
    return max(1, rows // len(x))


@dataclass(frozen=True, eq=False)
class Step:
    """A step of DeepFool, of the n samples that were still moving.

    samples: (n,) which of the batch. leave, towards: (n,) the class left and the one whose linearised boundary it went
    to. gap: (n,) the logit of the first minus that of the second, and w (n, ...) its gradient to the input, at `point`
    (n, ...). The step is -|gap| w / |w|^2, without overshoot (Eq. 3).
    """

    samples: Tensor
    leave: Tensor
    towards: Tensor
    gap: Tensor
    w: Tensor
    point: Tensor

    @property
    def move(self) -> Tensor:
        return -self.w * column(self.gap.abs() / self.w.square().flatten(1).sum(1), self.w)

    def of(self, chosen: Tensor) -> "Step":
        """The same of those for which `chosen` (n,) is true."""
        return self if chosen.all() else Step(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Paths:
    """Where DeepFool took B samples: moved (B, ...), the sum of a sample's steps without overshoot, and the steps.

    A sample's steps are in their order. curved: whether gaps may have second derivatives to the input. known: x and
    its logits, with a graph, where the first of the steps took them and was one of all samples.
    """

    moved: Tensor
    steps: tuple[Step, ...]
    curved: bool = True
    known: tuple[Tensor, Tensor] | None = None


def find(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    overshoot: float,
    candidates: int | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> Paths:
    """The paths, of at most `steps` steps, of samples x (B, ...) with labels y (B,); model in evaluation mode.

    A correctly classified sample goes out of its class towards the nearest of the `candidates` classes of the largest
    logits at x (None: all others), a wrong one from the class that it is put into at the iterate to its label's. It
    stops when that has happened at the overshot point.
    known: x with requires_grad, and its logits (B, K) with a graph to it, where there are any.

    Costs, for C candidates, C + 2 forwards' worth a sample and step, 3 of a wrong one; 1 less at x where it is known.
    """
    logits = known[1].detach() if known else model(x).detach()
    wrong = misclassified(logits, y)
    order = rivals(logits, y, candidates or logits.shape[1])
    walk = _Walk(model, x, y, wrong, order, steps, overshoot)
    if wrong.sum() * (order.shape[1] - 1) > len(x):  # wrong samples have one candidate only
        walk.go((~wrong).nonzero()[:, 0])
        walk.go(wrong.nonzero()[:, 0])
    else:
        walk.go(torch.arange(len(x), device=x.device), known)
        if known and len(walk.path[0].samples) == len(x):
            return Paths(walk.moved, tuple(walk.path), walk.curved, known)
    return Paths(walk.moved, tuple(walk.path), walk.curved)


class _Walk:
    """The paths of all samples so far."""

    def __init__(self, model, x: Tensor, y: Tensor, wrong: Tensor, order: Tensor, steps: int, overshoot: float):
        self.model, self.x, self.y, self.wrong, self.order = model, x, y, wrong, order
        self.steps, self.overshoot = steps, overshoot
        self.moved, self.path = torch.zeros_like(x), []
        self.curved = False

    def go(self, here: Tensor, known: tuple[Tensor, Tensor] | None = None) -> None:
        """Walk the samples `here` (n,) together, the first step from `known` where that is given."""
        for number in range(self.steps):
            if not len(here):
                return
            point, logits = (None, None) if number or known is None else known
            if point is None:
                point = (self.x[here] + self.moved[here]).requires_grad_()
                with torch.enable_grad():
                    logits = self.model(point)
            self.curved = self.curved or not piecewise_linear(logits, point)
            y, wrong = self.y[here], self.wrong[here]
            leave = torch.where(wrong, logits.detach().scatter(1, y[:, None], -math.inf).argmax(1), y)
            towards = torch.where(wrong[:, None], y[:, None], self.order[here])
            towards = towards[:, :1] if wrong.all() else towards
            found, gap, w = nearest(logits, point, leave, towards, at_once(self.model, point))
            step = Step(here, leave, found, gap, w, point.detach()).of(found >= 0)
            here = step.samples
            self.path.append(step)
            self.moved[here] += step.move
            if number + 1 < self.steps:
                with torch.no_grad():
                    tested = self.model(self.x[here] + (1 + self.overshoot) * self.moved[here])
                here = here[misclassified(tested, self.y[here]) == self.wrong[here]]


def nearest(
    logits: Tensor, point: Tensor, leave: Tensor, towards: Tensor, at_once: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which of `towards` (n, C) has the nearest linearised boundary with `leave` (n,), in l2.

    logits (n, K) have a graph to point (n, ...), which takes a backward for each of the C, `at_once` of them together.
    Returns the class (n,), -1 where no gap depends on the input, its gap (n,) and the gap's gradient (n, ...).
    """
    count, classes = logits.shape
    gaps = (logits.gather(1, leave[:, None]) - logits.gather(1, towards)).detach()
    least, chosen = torch.full_like(gaps[:, 0], math.inf), torch.full_like(leave, -1)
    best_gap, best, sample = torch.zeros_like(least), None, torch.arange(count, device=point.device)
    for part, gap in zip(towards.T.split(at_once), gaps.T.split(at_once), strict=True):
        direction = logits.new_zeros(len(part), count, classes)
        direction[:, sample, leave] = 1.0
        direction.scatter_(2, part[:, :, None], -1.0)
        w = gradients(logits, point, direction, graph=False)
        squared = torch.linalg.vecdot(w.flatten(2), w.flatten(2))
        if not torch.isfinite(squared).all():  # the model's own doing: such an entry counts as 0
            w = w.nan_to_num(0.0, 0.0, 0.0)
            squared = torch.linalg.vecdot(w.flatten(2), w.flatten(2))
        size, which = torch.where(squared > 0, gap.abs() / squared.sqrt(), math.inf).min(0)
        nearer = size < least
        w, part, gap = w[which, sample], part[which, sample], gap[which, sample]
        best = w if best is None else torch.where(column(nearer, w), w, best)
        least, chosen = torch.where(nearer, size, least), torch.where(nearer, part, chosen)
        best_gap = torch.where(nearer, gap, best_gap)
    return chosen, best_gap, best


def lengths(model: nn.Module, paths: Paths, chosen: Tensor, second_order: bool = True) -> Tensor:
    """The l2 lengths of `paths.moved` of the chosen samples (n,), with their gradient to the model's parameters, (n,).

    The gradient is that of the whole attack, through gaps, their input gradients w and all iterates. With the paths
    known it needs no graph of them: a change of a step r = -|gap| w / |w|^2 at a fixed point is, along u,
        u dr = a dgap + v dw,  a = -sign(gap) u w / |w|^2,  v = -|gap| / |w|^2 (u - 2 (u w) w / |w|^2),
    so that all steps of all samples are one batch. u is the direction of the whole move, plus, for each later step, the
    gradient of its own a gap + v w to its point, which is where the earlier ones led: a w where gaps are piecewise
    linear. second_order: whether w depends on the model; else only gaps do (section 4.3.1), and v is 0.
    Costs 6 forwards' worth a sample and step, and of a curved model 4 more a step that is not the first; without second
    order 3 in all. Of the first steps of all samples it takes the known graph, which saves 3 each where the loss
    goes through it as well.
    """
    place = torch.full((len(paths.moved),), -1, device=chosen.device)
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    steps = [step for step in (step.of(place[step.samples] >= 0) for step in paths.steps) if len(step.samples)]
    moved = paths.moved[chosen]
    size = length(moved, 2)
    u = moved / column(size.clamp(min=torch.finfo(size.dtype).tiny), moved)  # a tie has length 0, and no direction
    if not steps:
        return size
    later, seen = [], torch.zeros_like(chosen, dtype=torch.bool)
    for step in steps:
        rows = place[step.samples]
        later.append(seen[rows])
        seen[rows] = True
    parts = []
    for step, again in zip(reversed(steps), reversed(later), strict=True):
        rows = place[step.samples]
        squared = step.w.square().flatten(1).sum(1)
        along = dot(u[rows], step.w) / squared
        a = -step.gap.sign() * along
        v = (2 * column(along, step.w) * step.w - u[rows]) * column(step.gap.abs() / squared, step.w)
        parts.append((rows, step, a, v if second_order else None))
        if again.any():
            curve = v[again] if second_order and paths.curved else None
            u[rows[again]] += _to_the_point(model, step.of(again), a[again], curve)
    changes = torch.zeros_like(size)
    if paths.known and len(chosen) == len(paths.moved):
        rows, step, a, v = parts.pop()
        changes = changes.index_add(0, rows, _linear(*paths.known, step.leave, step.towards, a, v))
    if parts:
        rows, a = (torch.cat([part[i] for part in parts]) for i in (0, 2))
        point, leave, towards = (
            torch.cat([getattr(part[1], name) for part in parts]) for name in ("point", "leave", "towards")
        )
        v = torch.cat([part[3] for part in parts]) if second_order else None
        changes = changes.index_add(0, rows, _linear(*_forward(model, point), leave, towards, a, v))
    return size + changes - changes.detach()


def _forward(model: nn.Module, point: Tensor) -> tuple[Tensor, Tensor]:
    """The point (n, ...), with requires_grad, and its logits (n, K), with a graph to it and to the model."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        return point, model(point)


@torch.enable_grad()
def _linear(point: Tensor, logits: Tensor, leave: Tensor, towards: Tensor, a: Tensor, v: Tensor | None) -> Tensor:
    """a gap + v w, (n,), with a graph to model and point; a (n,) and v (n, ...), None for 0, are constants."""
    gap = (logits.gather(1, leave[:, None]) - logits.gather(1, towards[:, None]))[:, 0]
    if v is None:
        return a * gap
    (w,) = torch.autograd.grad(gap.sum(), point, create_graph=True)
    return a * gap + dot(v, w)


def _to_the_point(model: nn.Module, step: Step, a: Tensor, v: Tensor | None) -> Tensor:
    """The gradient of a gap + v w to the point, (n, ...): a w, and of curved models what w changes along v."""
    if v is None:
        return column(a, step.w) * step.w
    point, logits = _forward(model, step.point)
    return torch.autograd.grad(_linear(point, logits, step.leave, step.towards, a, v).sum(), point)[0]
