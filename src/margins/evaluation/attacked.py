"""One attack on all samples, not taken at its word: in ball and box, and misclassified when asked again."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from margins.attacks.autoattack import AutoAttacked
from margins.attacks.found import Bounds, Calls, Found, InBall, Nearest, misclassified
from margins.attacks.geometry import length
from margins.errors import MarginsError
from margins.evaluation.jobs import Jobs
from margins.evaluation.result import Attacked
from margins.evaluation.suites import Attack
from margins.losses import margin
from margins.models import frozen

#: How far beyond ball and box rounding may carry an example, relative to the ball's radius or to 1.
SLACK = 1e-6
_COLUMNS = {"distance": torch.float64, "nearest": torch.bool, "unconfirmed": torch.bool, "stage": torch.int8}
#: Names of AutoAttack's stages, by the number that is stored; -1 for none of them, -2 for another attack.
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True, eq=False)
class Target:
    """What is attacked: samples x (N, ...) with labels y (N,), whether each is correct (N,), and the ball."""

    x: Tensor
    y: Tensor
    correct: Tensor
    norm: float
    eps: float
    bounds: Bounds

    def keep(self, chosen: Tensor | slice) -> "Target":
        return replace(self, x=self.x[chosen], y=self.y[chosen], correct=self.correct[chosen])


def run(jobs: Jobs, name: str, attack: Attack, target: Target, stream: str | None = None) -> Attacked:
    """What `attack` leaves over of the target's samples, batch by batch; `name` is the job's, as "attack 'PGD'"."""

    def part(model: nn.Module, rows: slice, generator: torch.Generator) -> tuple[Mapping[str, Tensor], Calls]:
        return _attack(model, name, attack, target.keep(rows), generator)

    found, cost = jobs.run(name, part, len(target.x), _COLUMNS, stream)
    distance = found["distance"]
    stages = {stage: found["stage"] == i for i, stage in enumerate(STAGES) if (found["stage"] > -2).any()}
    nearest = bool(found["nearest"].any())
    return Attacked(distance > target.eps, distance, nearest, stages, int(found["unconfirmed"].sum()), cost)


def keywords(function, generator: torch.Generator) -> dict[str, torch.Generator]:
    """{"generator": generator} for a callable that takes it, else {}."""
    try:
        taken = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    wanted = any(one.name == "generator" or one.kind is one.VAR_KEYWORD for one in taken)
    return {"generator": generator} if wanted else {}


def _attack(model: nn.Module, name: str, attack: Attack, target: Target, generator: torch.Generator):
    x, y = target.x, target.y
    found = attack(model, x, y, **keywords(attack, generator))
    size = _check(name, found, target)
    with frozen(model), torch.no_grad():
        logits = model(found.x_adv)
    # The nearest example lies on the boundary, where a batch of another size may round to the other side.
    tie = -margin(logits, y) <= 100 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
    broken = misclassified(logits, y) | (found.success & tie)
    correct = target.correct.to(x.device)
    nearest = isinstance(found, Nearest)
    size = size if nearest else size.clamp(max=target.eps)
    stage = torch.full_like(y, -1 if isinstance(found, AutoAttacked) else -2, dtype=torch.int8)
    if isinstance(found, AutoAttacked):
        for i, one in enumerate(STAGES):
            stage[found.stages[one] & broken & correct] = i
    columns = {
        "distance": torch.where(correct, torch.where(broken, size, math.inf), 0.0),
        "nearest": torch.full_like(y, nearest, dtype=torch.bool),
        "unconfirmed": correct & found.success & ~broken,
        "stage": stage,
    }
    return columns, found.calls + Calls(forward=len(x))


def _check(name: str, found: Found, target: Target) -> Tensor:
    """The float64 length (B,) of what was added to x. Raises MarginsError for a result out of ball or box."""
    x, eps = target.x, target.eps
    if not isinstance(found, Found):
        raise MarginsError(f"{name} must return margins.attacks.found.Found, but gave {type(found).__name__}")
    if found.norm != target.norm:
        raise MarginsError(f"{name} works in the norm {found.norm:g}, but the evaluation's is {target.norm:g}")
    if found.x_adv.shape != x.shape or not torch.isfinite(found.x_adv).all():
        raise MarginsError(f"{name} must return finite examples of the shape {tuple(x.shape)}")
    size = length(found.x_adv.double() - x.double(), target.norm)
    if target.bounds is not None and len(x):
        low, high = target.bounds
        beyond = max(low - found.x_adv.min().item(), found.x_adv.max().item() - high)
        if beyond > SLACK * max(1.0, high - low):
            raise MarginsError(f"{name} left the box {target.bounds} by {beyond:.3g}")
    if isinstance(found, InBall) and len(x) and size.max() > eps + SLACK * max(1.0, eps):
        raise MarginsError(f"{name} went {size.max():.6g} far, but eps is {eps:.6g}")
    return size
