"""Projected gradient ascent in a ball: FGSM, PGD, and PGD on the "CW loss".

Goodfellow, Shlens and Szegedy 2015 (FGSM); Madry et al. 2018 (PGD). A step of fixed length goes along the direction of
steepest ascent, then back into the box and the ball.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from margins import checks, losses
from margins.attacks.found import SOLVED, Bounds, InBall, Oracle, attacking, misclassified, parts
from margins.attacks.geometry import STARTS, clip, column, direction, into_both, length, random_start
from margins.attacks.noise import Noise
from margins.errors import MarginsError
from margins.losses import Loss

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, y, logits at x) -> (B,)


def fgsm(
    model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    eps: float,
    loss: str | Loss = "cross-entropy",
    bounds: Bounds = (0.0, 1.0),
) -> InBall:
    """One step of length eps from x along the gradient's direction (its sign for linf), then into the box.

    Arguments, units and errors as in `pgd`. Costs 2 forwards and 1 forward with its backward a sample that is not
    misclassified already.
    """
    return _attack(model, x, y, norm, eps, 1, eps, "none", loss, "last", 0.0, bounds, None)


def pgd(
    model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    eps: float,
    steps: int,
    step_size: float,
    start: str | Tensor = "uniform",
    loss: str | Loss = "cross-entropy",
    keep: str = "best",
    floor: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> InBall:
    """Gradient ascent with steps of length step_size in the ball of radius eps (norm 2 or math.inf, input units).

    x (B, ...) in `bounds`, y (B,) int64.
    start: "none" (x itself), "uniform" (in the ball; of an l2 ball of many dimensions nearly all is surface, and from
    there few steps find less than from near x), "normal" (0.001 x standard normal), "sphere" (at distance eps; for linf
    a corner of the ball), "image" (a uniform image of the box, shrunk onto the ball) or a tensor like x; moved into
    ball and box.
    loss: what is ascended: "cross-entropy" (as `losses.log_odds`: the same directions, but it does not freeze where the
    cross-entropy underflows), "kl" (KL(p(x) || p(x_adv)), not from start "none", where its gradient is zero),
    "margin", "cw" (kappa 50), "dlr" (K >= 3), "margin-cross-entropy" (LMA's sum), or (logits, y) -> (B,).
    keep: "best" stops each sample at its first misclassified iterate, and is otherwise the iterate of the largest loss;
    "last" is the last iterate whatever it is, as published protocols have it. Where x is misclassified it is x.
    floor: above 0 (l2 only) gradients are divided by max(length, floor) and "cross-entropy" and "kl" are computed
    literally: confident samples then hardly leave their start. Some published numbers come from it (floor 1e-6).
    generator: of random starts; None is seed 0 in every call, so for restarts pass one generator to all of them.

    Costs 1 forward at x, and, where that is right, `steps` forwards with backwards and 1 last forward; with keep "best"
    for a sample until it is solved, or soon after. Raises MarginsError for bad input.
    """
    checks.number("step_size", step_size, 0, above=True)
    return _attack(model, x, y, norm, eps, steps, step_size, start, loss, keep, floor, bounds, generator)


def cw(
    model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 20,
    step_size: float,
    kappa: float = 50.0,
    start: str | Tensor = "uniform",
    keep: str = "best",
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> InBall:
    """What evaluations of adversarial training call "CW": linf PGD on `losses.cw` with that kappa.

    Not the minimum-norm attack of Carlini and Wagner (2017), whose loss it borrows. Arguments, units, cost and errors
    as in `pgd`.
    """
    checks.number("kappa", kappa, 0)
    loss = partial(losses.cw, kappa=kappa)
    return pgd(
        model, x, y, norm=math.inf, eps=eps, steps=steps, step_size=step_size, start=start, loss=loss, keep=keep,
        bounds=bounds, generator=generator,
    )  # fmt: skip


def _kl(logits: Tensor, y: Tensor, clean: Tensor) -> Tensor:
    """KL(p(x) || p(x_adv)), whose gradient is `kl_slope`."""
    value = losses.kl(logits.detach().double(), clean.double()).to(logits.dtype)
    return value + (kl_slope(logits.detach(), clean) * (logits - logits.detach())).sum(1)


def kl_slope(logits: Tensor, clean: Tensor) -> Tensor:
    """The gradient of KL(p(x) || p(x_adv)) to x_adv's logits, scaled, sample by sample, so that it does not underflow.

    The gradient is p - q, q = p(x). Both are multiplied by the same number, found in the logarithm, and the entry of
    q's top class is minus the sum of the others, since 1 - tiny would round to 1. What is left: p = q has no gradient,
    and the value (which only ranks iterates) rounds to 0 where both are certain of the same class.
    """
    p, q = logits.double().log_softmax(1), clean.double().log_softmax(1)
    top = q.argmax(1, keepdim=True)
    scale = torch.maximum(p, q).scatter(1, top, -math.inf).amax(1, keepdim=True)
    slope = ((p - scale).exp() - (q - scale).exp()).scatter(1, top, 0)
    return slope.scatter(1, top, -slope.sum(1, keepdim=True)).to(logits.dtype)


def _plain(loss: Loss) -> Objective:
    return lambda logits, y, clean: loss(logits, y)


OBJECTIVES = {name: _plain(loss) for name, loss in losses.NAMED.items()} | {
    "kl": _kl,
    "margin-cross-entropy": _plain(losses.margin_cross_entropy),
}
_LITERAL = OBJECTIVES | {
    "cross-entropy": _plain(losses.cross_entropy),
    "kl": lambda logits, y, clean: losses.kl(logits, clean),
}


def _attack(model, x, y, norm, eps, steps, step_size, start, loss, keep, floor, bounds, generator) -> InBall:
    """Check the arguments, then climb, from a start, with every sample that is not misclassified already."""
    norm, eps, bounds = checks.norm(norm, (2, math.inf)), checks.number("eps", eps, 0), checks.box(bounds)
    checks.whole("steps", steps, 1)
    checks.choice("keep", keep, ("best", "last"))
    checks.generator(generator)
    if checks.number("floor", floor, 0) and norm == math.inf:
        raise MarginsError(f"floor must be 0 for linf, whose steps are the gradient's signs, but is {floor!r}")
    objective = _objective(loss, floor)
    _check_start(start, x, loss, bounds)
    with attacking(model, x, y, bounds) as (oracle, logits, wrong):
        checks.tensor("loss(logits, y)", objective(logits, y, logits).detach(), 1, len(y))
        noise = Noise(x, generator) if isinstance(start, str) and start != "none" else None
        x, x_adv, success = x.detach(), x.detach().clone(), wrong.clone()
        climb, exact = _best if keep == "best" else _last, not floor and bounds is not None
        for rows in parts((~wrong).nonzero()[:, 0]):
            near = Near(x[rows], y[rows], logits[rows], norm, eps, bounds, exact)
            if noise is not None:
                here = random_start(start, near.x, norm, eps, bounds, noise.keep(rows))
            else:
                here = near.x if isinstance(start, str) else into_both(start.detach()[rows], near.x, norm, eps, bounds)
            x_adv[rows], success[rows] = climb(_Ascent(oracle, objective, step_size, floor), near, here, steps)
    return InBall(x_adv, success, length(x_adv - x, norm), oracle.calls, norm, eps)


def _objective(loss: str | Loss, floor: float) -> Objective:
    if callable(loss):
        return _plain(loss)
    checks.choice("loss", loss, OBJECTIVES)
    return (_LITERAL if floor else OBJECTIVES)[loss]


def _check_start(start: str | Tensor, x, loss: str | Loss, bounds: Bounds) -> None:
    if isinstance(start, Tensor):
        checks.tensor("x", x)
        if checks.tensor("start", start).shape != x.shape or start.dtype != x.dtype or start.device != x.device:
            raise MarginsError(
                f"start must be like x, {x.dtype} of shape {tuple(x.shape)} on {x.device},"
                f" but is {start.dtype} of shape {tuple(start.shape)} on {start.device}"
            )
        return
    checks.choice("start", start, ("none", *STARTS))
    if start == "image" and bounds is None:
        raise MarginsError("start 'image' draws from the box, so it needs bounds")
    if start == "none" and loss == "kl":
        raise MarginsError("loss 'kl' has no gradient at x itself, so it needs another start than 'none'")


class Near:
    """Samples that climb together: x (n, ...), y (n,), the logits at x (n, K), and the ball about x within the box."""

    def __init__(self, x: Tensor, y: Tensor, clean: Tensor, norm: float, eps: float, bounds: Bounds, exact: bool):
        self.x, self.y, self.clean = x, y, clean
        self.norm, self.eps, self.bounds, self.exact = norm, eps, bounds, exact
        if norm == math.inf:
            self.low, self.high = clip(x - eps, bounds), clip(x + eps, bounds)
        self.scale = torch.ones_like(clean[:, 0])

    def __len__(self) -> int:
        return len(self.x)

    def keep(self, chosen: Tensor) -> "Near":
        samples = self.x[chosen], self.y[chosen], self.clean[chosen]
        other = Near(*samples, self.norm, self.eps, self.bounds, self.exact)
        other.scale = self.scale[chosen]
        return other

    def project(self, here: Tensor) -> Tensor:
        """Into the box and into the ball, overwriting `here`.

        For l2: into the box, then into the ball, as is usual. That pulls pixels off the faces of the box that belong
        there, by about step_size / eps of their way, at every step anew. Unless the published protocol is asked for
        (`exact` is false), what is moved is therefore first shrunk by as much as was still needed in the last steps, so
        that soon nothing is pulled any more: while the gradient does not turn, the limit is that of the true
        projection, `into_both`, without its cost.
        """
        if self.norm == math.inf:
            return here.clamp_(self.low, self.high)
        here = torch.addcmul(self.x, here.sub_(self.x), column(self.scale, here))
        delta = _clip(here, self.bounds).sub_(self.x)
        size = length(delta, 2)
        ratio = self.eps / size.clamp(min=torch.finfo(size.dtype).tiny)
        if self.exact:
            self.scale = (self.scale * ratio).clamp(max=1)
        return _clip(torch.addcmul(self.x, delta, column(ratio.clamp(max=1), delta)), self.bounds)


def _clip(here: Tensor, bounds: Bounds) -> Tensor:
    return here if bounds is None else here.clamp_(*bounds)


@dataclass(frozen=True)
class _Ascent:
    """Steps of a fixed length up the gradient of an objective."""

    oracle: Oracle
    objective: Objective
    step_size: float
    floor: float

    def ask(self, near: Near, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient, the loss and the logits."""
        return self.oracle.gradient(here, near.y, lambda logits, y: self.objective(logits, y, near.clean))

    def step(self, near: Near, here: Tensor, gradient: Tensor) -> Tensor:
        return near.project(torch.add(here, direction(gradient, near.norm, self.floor), alpha=self.step_size))


def _last(ascent: _Ascent, near: Near, here: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The last iterate, and whether it is misclassified."""
    for _ in range(steps):
        here = ascent.step(near, here, ascent.ask(near, here)[0])
    return here, ascent.oracle.wrong(here, near.y)


def _best(ascent: _Ascent, near: Near, here: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The first misclassified iterate, else that of the largest loss (x among them), and whether it is one."""
    point, solved = near.x.clone(), torch.zeros_like(near.y, dtype=torch.bool)
    row = torch.arange(len(near), device=here.device)
    top = ascent.objective(near.clean, near.y, near.clean).detach()
    for k in range(steps + 1):
        if k < steps:
            gradient, value, logits = ascent.ask(near, here)
        else:
            logits = ascent.oracle.logits(here)
            value = ascent.objective(logits, near.y, near.clean).detach()
        wrong = misclassified(logits, near.y)
        better = ~solved[row] & (wrong | (value >= top[row]))
        rows = row[better]
        point[rows], top[rows] = here[better], value[better]
        solved[row] |= wrong
        going = ~solved[row]
        if k == steps or not going.any():
            break
        if going.sum() <= (1 - SOLVED) * len(row):
            near, row, here, gradient = near.keep(going), row[going], here[going], gradient[going]
        here = ascent.step(near, here, gradient)
    return point, solved
