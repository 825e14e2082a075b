"""Auto-PGD: gradient ascent that chooses its own step, plain and with target classes.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
(2020), Algorithm 1: a step of 2 eps with momentum, halved at checkpoints where the loss no longer rises; the search
then goes on from the best point. Solved samples leave the batch, which changes nothing for the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from margins import checks, losses
from margins.attacks.found import SOLVED, Bounds, InBall, Oracle, attacking, misclassified, parts, rivals
from margins.attacks.geometry import column, direction, into_both, length, random_start
from margins.attacks.noise import Noise
from margins.losses import Loss

#: The weight of the new step against the momentum of the last one (the paper's alpha).
MOMENTUM = 0.75
#: The share of steps between two checkpoints that must raise the loss, else the step is halved.
RHO = 0.75

_Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, y, target) -> (B,)


def apgd(
    model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    eps: float,
    steps: int = 100,
    loss: str | Loss = "cross-entropy",
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> InBall:
    """Auto-PGD in the ball of radius eps (norm 2 or math.inf, input units), each restart on what is left.

    x (B, ...) in `bounds`, y (B,) int64. loss: "cross-entropy" (as `losses.log_odds`, the same order and directions, so
    that it does not freeze where the cross-entropy underflows), "margin", "cw" (kappa 50), "dlr" (K >= 3), or
    (logits, y) -> (B,) to ascend. generator: of the starts; None is seed 0. Where it fails, x_adv is the point of the
    largest loss. Costs steps forwards and backwards and one forward for each restart and sample until it is solved.
    Raises MarginsError for bad input.
    """
    ascend = loss if callable(loss) else losses.NAMED[checks.choice("loss", loss, losses.NAMED)]
    checks.whole("restarts", restarts, 1)

    def plan(logits: Tensor) -> tuple[Tensor, _Objective]:
        checks.tensor("loss(logits, y)", ascend(logits, y).detach(), 1, len(y))
        return y[:, None].expand(-1, restarts), lambda logits, y, _: ascend(logits, y)

    return _rounds(model, x, y, norm, eps, steps, bounds, generator, plan)


def apgd_t(
    model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    eps: float,
    steps: int = 100,
    targets: int = 9,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> InBall:
    """Auto-PGD towards one class after the other, on what is left, on the targeted difference of logits ratio.

    The targets are the `targets` classes (at most K - 1) of the largest logits at x but for y, largest first. With
    fewer than 4 classes, where that ratio has no meaning, the loss is f_t - f_y. Arguments, units and errors as in
    `apgd`; costs steps forwards and backwards and one forward for each target and sample until it is solved.
    """
    checks.whole("targets", targets, 1)

    def plan(logits: Tensor) -> tuple[Tensor, _Objective]:
        return rivals(logits, y, targets), _away if logits.shape[1] < 4 else losses.targeted_dlr

    return _rounds(model, x, y, norm, eps, steps, bounds, generator, plan)


def _away(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -losses.gap(logits, y, target)


def checkpoints(steps: int) -> list[int]:
    """w_j = ceil(p_j steps), p = 0, 0.22, then p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), up to `steps`."""
    percent, stride = [22], 22
    while percent[-1] < 100:
        stride = max(stride - 3, 6)
        percent.append(percent[-1] + stride)
    return sorted({w for p in percent if (w := -(-p * steps // 100)) <= steps})


def _rounds(model, x, y, norm, eps, steps, bounds, generator, plan) -> InBall:
    """An ascent for each column of the planned targets (B, R), from a new start, on what is not yet solved."""
    norm, eps, bounds = checks.norm(norm, (2, math.inf)), checks.number("eps", eps, 0), checks.box(bounds)
    checks.whole("steps", steps, 1)
    checks.generator(generator)
    with attacking(model, x, y, bounds) as (oracle, logits, wrong):
        x, (targets, objective) = x.detach(), plan(logits)
        ascent = _Ascent(oracle, objective, norm, eps, bounds, steps)
        x_adv, success = x.clone(), wrong.clone()
        best = objective(logits, y, targets[:, 0]).detach()
        left = (~wrong).nonzero()[:, 0]
        noise = Noise(x, generator).keep(left)
        for target in targets.T:
            starts = random_start("sphere" if norm == 2 else "uniform", x[left], norm, eps, bounds, noise)
            for part in parts(torch.arange(len(left), device=x.device)):
                rows = left[part]
                point, top, solved = ascent.run(x[rows], y[rows], target[rows], starts[part])
                better = solved | (top > best[rows])
                x_adv[rows[better]], best[rows[better]] = point[better], top[better]
                success[rows] = solved
            open_ = ~success[left]
            noise, left = noise.keep(open_), left[open_]
    return InBall(x_adv, success, length(x_adv - x, norm), oracle.calls, norm, eps)


@dataclass
class _State:
    """What an ascent remembers of each sample, (B, ...)."""

    row: Tensor  # its place in the result
    x: Tensor
    y: Tensor
    target: Tensor
    here: Tensor
    before: Tensor  # the iterate before
    value: Tensor  # the loss here
    best: Tensor  # the iterate of the largest loss so far, its gradient and its loss
    slope: Tensor
    top: Tensor
    step: Tensor
    rises: Tensor  # how many steps raised the loss since the last checkpoint
    checked: Tensor  # the largest loss at the last checkpoint
    halved: Tensor  # whether the step was halved there

    def keep(self, chosen: Tensor) -> "_State":
        return _State(**{name: value[chosen] for name, value in vars(self).items()})

    def note(self, gradient: Tensor, value: Tensor) -> None:
        """Take the gradient and the loss here into account."""
        self.rises += value > self.value
        better = (value > self.top).nonzero()[:, 0]
        self.best[better], self.slope[better] = self.here[better], gradient[better]
        self.top, self.value = torch.maximum(value, self.top), value

    def check(self, gradient: Tensor, since: int) -> Tensor:
        """At a checkpoint: halve the steps that don't pay and go back to the best point; the gradient to go on with.

        They don't pay where fewer than RHO of the steps since the last checkpoint raised the loss, or where the step
        was not halved there and the largest loss is still the same.
        """
        halve = (self.rises < RHO * since) | (~self.halved & (self.top <= self.checked))
        self.step = torch.where(halve, self.step / 2, self.step)
        self.here = torch.where(column(halve, self.here), self.best, self.here)
        self.value = torch.where(halve, self.top, self.value)
        self.rises, self.checked, self.halved = torch.zeros_like(self.rises), self.top, halve
        return torch.where(column(halve, self.here), self.slope, gradient)


@dataclass(frozen=True)
class _Ascent:
    oracle: Oracle
    objective: _Objective
    norm: float
    eps: float
    bounds: Bounds
    steps: int

    def run(self, x: Tensor, y: Tensor, target: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From `start`: the first misclassified iterate, else that of the largest loss; its loss; whether solved."""
        low = x.new_full(y.shape, -math.inf)
        point, top, solved = start.clone(), low.clone(), torch.zeros_like(y, dtype=torch.bool)
        state = _State(
            row=torch.arange(len(x), device=x.device), x=x, y=y, target=target, here=start, before=start, value=-low,
            best=start.clone(), slope=torch.zeros_like(x), top=low, step=torch.full_like(low, 2 * self.eps),
            rises=torch.zeros_like(y), checked=low, halved=solved.clone(),
        )  # fmt: skip
        marks, last = checkpoints(self.steps), 0
        for k in range(self.steps + 1):
            gradient, value, wrong = self.ask(state, k < self.steps)
            fresh = wrong & ~solved[state.row]
            if fresh.any():
                rows = state.row[fresh]
                point[rows], top[rows], solved[rows] = state.here[fresh], value[fresh], True
                going = ~solved[state.row]
                if going.sum() <= (1 - SOLVED) * len(going):
                    state, gradient, value = state.keep(going), gradient[going], value[going]
                    if not len(state.row):
                        break
            state.note(gradient, value)
            if k in marks:
                gradient, last = state.check(gradient, k - last), k
            if k < self.steps:
                self.move(state, gradient, MOMENTUM if k else 1.0)
        failed = ~solved[state.row]
        point[state.row[failed]], top[state.row[failed]] = state.best[failed], state.top[failed]
        return point, top, solved

    def ask(self, state: _State, slope: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient (a dummy where no slope is asked for), the loss (-inf for nan), and whether misclassified."""
        y, target = state.y, state.target
        if slope:
            gradient, value, logits = self.oracle.gradient(state.here, y, lambda z, y: self.objective(z, y, target))
        else:
            gradient, logits = state.slope, self.oracle.logits(state.here)
            value = self.objective(logits, y, target).detach()
        return gradient, torch.where(value.isnan(), -math.inf, value), misclassified(logits, y)

    def move(self, state: _State, gradient: Tensor, weight: float) -> None:
        """A step of steepest ascent and back, then averaged with the last step (the paper's two updates of a step)."""
        here, x = state.here, state.x
        aim = torch.addcmul(here, column(state.step, here), direction(gradient, self.norm))
        aim = into_both(aim, x, self.norm, self.eps, self.bounds)
        moved = torch.lerp(here, aim, weight).add_(here - state.before, alpha=1 - weight)
        state.before, state.here = here, into_both(moved, x, self.norm, self.eps, self.bounds)
