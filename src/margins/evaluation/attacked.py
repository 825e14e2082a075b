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
        return once(model, name, attack, target.keep(rows), generator)

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


def once(
    model: nn.Module, name: str, attack: Attack, target: Target, generator: torch.Generator
) -> tuple[Mapping[str, Tensor], Calls]:
    """One batch: _COLUMNS (B,), and the attack's calls with our question. The attack gets copies of x and y.

    Raises MarginsError for a result that is not as promised, and, with the attack's name, where the attack does.
    """
    x, y = target.x, target.y
    try:
        found = attack(model, x.clone(), y.clone(), **keywords(attack, generator))
    except MarginsError as error:
        raise MarginsError(f"{name}: {error}") from error
    except Exception as error:
        error.add_note(f"This was {name} of margins.evaluate, on x of shape {tuple(x.shape)}.")
        raise
    size = _check(name, found, target)
    with frozen(model), torch.no_grad():
        logits = model(found.x_adv)
    # The nearest example lies on the boundary, where a batch of another size may round to the other side.
    tie = -margin(logits, y) <= 100 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
    broken = misclassified(logits, y) | (found.success & tie)
    correct = target.correct.to(x.device)
    nearest = isinstance(found, Nearest)
    size = size if nearest else size.clamp(max=target.eps)  # `_check` let pass what rounding adds, no more
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
    """The float64 length (B,) of what was added to x. Raises MarginsError for a result out of ball or box.

    What is no `Nearest` is a budget attack, whose points must lie in the ball and whose own eps must not be smaller.
    """
    x, eps = target.x, target.eps
    if not isinstance(found, Found):
        raise MarginsError(f"{name} must return margins.attacks.found.Found, but gave {type(found).__name__}")
    if found.norm != target.norm:
        raise MarginsError(f"{name} works in the norm {found.norm}, but the evaluation's is {target.norm:g}")
    _tensor(name, "x_adv", found.x_adv, x)
    _tensor(name, "success", found.success, torch.ones_like(target.y, dtype=torch.bool))
    if not torch.isfinite(found.x_adv).all():
        raise MarginsError(f"{name} must return finite examples, but x_adv has entries that are nan or infinite")
    if not isinstance(found.calls, Calls):
        raise MarginsError(f"{name} must return margins.attacks.found.Calls as calls, but gave {found.calls!r}")
    size = length(found.x_adv.double() - x.double(), target.norm)
    if target.bounds is not None and len(x):
        low, high = target.bounds
        beyond = max(low - found.x_adv.min().item(), found.x_adv.max().item() - high)
        if beyond > SLACK * max(1.0, abs(low), abs(high)):
            advice = f"give the attack bounds={target.bounds}, or clamp its examples"
            raise MarginsError(f"{name} left the box {target.bounds} by {beyond:.3g}: {advice}")
    rounding = torch.finfo(x.dtype).eps * max(1.0, found.x_adv.abs().max().item()) if len(x) else 0.0
    rounding *= x[0].numel() ** 0.5 if len(x) and target.norm == 2 else 1
    if not isinstance(found, Nearest) and len(x) and size.max() > eps + SLACK * max(1.0, eps) + rounding:
        advice = "; only margins.attacks.found.Nearest, of minimum-norm attacks, may" * (type(found) is Found)
        raise MarginsError(f"{name} went {size.max():.6g} far, but eps is {eps:.6g}{advice}")
    if isinstance(found, InBall) and found.eps < eps * (1 - SLACK):
        raise MarginsError(
            f"{name} searched within eps {found.eps:.6g} only, but the evaluation's is {eps:.6g}: give both the same"
            " eps, in units of the input"
        )
    return size


def _tensor(name: str, part: str, value, like: Tensor) -> None:
    if isinstance(value, Tensor) and (value.shape, value.dtype, value.device) == (like.shape, like.dtype, like.device):
        return
    given = (
        f"{value.dtype} {tuple(value.shape)} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
    )
    wanted = f"{like.dtype} {tuple(like.shape)} on {like.device}"
    raise MarginsError(f"{name} must return {part} as a tensor {wanted}, but gave {given}")
