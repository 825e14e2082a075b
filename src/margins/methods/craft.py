"""What crafts adversaries in training: PGD as the methods' authors run it, without the checks that an attack makes."""

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from margins import checks
from margins.attacks.geometry import STARTS, direction, random_start
from margins.attacks.pgd import OBJECTIVES, Near, kl_slope
from margins.errors import MarginsError
from margins.losses import NAMED, Loss, margin_cross_entropy
from margins.models import frozen
from margins.penalties.context import ADDED, MODES, Context, Part, Run

BOX = (0.0, 1.0)


@dataclass
class PGD(Part):
    """Gradient ascent in the run's ball from a random start; the last iterate of every sample, as training has it.

    loss: a name of `margins.attacks.pgd`, or (logits, y) -> (B,). start: a name of `geometry.STARTS`, or "none".
    mode: of the model's forwards; in "train", as some published code has it, they move BatchNorm statistics.
    steps, step_size: None for what the run's threat says (a step_size of its own does not ramp).
    floor: above 0 (l2) gradients are divided by max(length, floor) and the cross-entropy is literal, as
        `margins.attacks.pgd` has it: samples that the model is sure of then hardly leave their start.
    counted: whether `crafted["steps right"]` (B,) int64 says how many iterates, the start included and the last not,
        were classified correctly (GAIRAT's kappa).
    Costs `steps` forwards with backwards to the input alone, and with the loss "kl" a forward where no term looks at
    the clean samples in the same mode.
    """

    loss: str | Loss = "cross-entropy"
    start: str = "normal"
    mode: str = "eval"
    steps: int | None = None
    counted: bool = False
    step_size: float | None = field(default=None, metadata=ADDED)
    floor: float = field(default=0.0, metadata=ADDED)
    together = True

    def __post_init__(self):
        if not callable(self.loss):
            checks.choice("loss", self.loss, OBJECTIVES)
        checks.choice("start", self.start, ("none", *STARTS))
        checks.choice("mode", self.mode, MODES)
        if self.steps is not None:
            checks.whole("steps", self.steps, 1)
        if self.step_size is not None:
            checks.number("step_size", self.step_size, 0, above=True)
        if checks.number("floor", self.floor, 0) and self.loss != "cross-entropy":
            raise MarginsError(f"floor: above 0 the loss must be 'cross-entropy', but it is {self.loss!r}")

    def begin(self, run: Run) -> None:
        super().begin(run)
        if self.floor and run.threat.norm != 2:
            raise MarginsError(f"floor: above 0 the norm must be 2, but the threat's is {run.threat.norm}")

    def __call__(self, context: Context, at: str = "clean") -> None:
        """Set the context's x_adv and crafted."""
        threat, x, y = context.threat, context.x, context.y
        steps, step_size = self.steps or threat.steps, self.step_size or threat.step_size
        clean = context.detached("clean", self.mode) if self.loss == "kl" else x.new_zeros(len(x), 1)
        near = Near(x, y, clean, threat.norm, threat.eps, BOX, exact=False)
        here, right = x.clone(), torch.zeros_like(y)
        if self.start != "none":
            here = random_start(self.start, x, threat.norm, threat.eps, BOX, context.noise(x))
        with frozen(context.model, evaluating=self.mode == "eval"), torch.enable_grad():
            for _ in range(steps):
                here = here.detach().requires_grad_()
                logits = context.ask(here)
                (gradient,) = torch.autograd.grad(logits, here, self._slope(logits, near))
                if self.counted:
                    right += logits.argmax(1) == y
                with torch.no_grad():
                    moved = here.detach().add_(direction(gradient, threat.norm, self.floor), alpha=step_size)
                    here = near.project(moved)
        context.x_adv = here.detach()
        context.crafted = {"steps right": right, "steps": torch.full_like(right, steps)} if self.counted else {}

    def _slope(self, logits: Tensor, near: Near) -> Tensor:
        """The gradient of the loss to the logits, (B, K)."""
        logits = logits.detach()
        if self.floor:
            return logits.softmax(1).scatter_add_(1, near.y[:, None], -torch.ones_like(logits[:, :1]))
        if self.loss == "cross-entropy":  # in closed form: a third of what autograd takes for so small a tensor
            return log_odds_slope(logits, near.y)
        if self.loss == "kl":
            return kl_slope(logits, near.clean)
        loss = self.loss if callable(self.loss) else NAMED[self.loss]
        loss = loss if isinstance(loss, partial) else partial(loss)
        if loss.func is margin_cross_entropy:
            return margin_cross_entropy_slope(logits, near.y, *loss.args, **loss.keywords)
        logits.requires_grad_()
        return torch.autograd.grad(loss(logits, near.y).sum(), logits)[0]


def log_odds_slope(logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of `losses.log_odds` to the logits: the softmax over the other classes, and -1 at y."""
    y = y[:, None]
    return logits.scatter(1, y, -math.inf).softmax(1).scatter_(1, y, -1.0)


def margin_cross_entropy_slope(logits: Tensor, y: Tensor, delta: float = 0.9, divided: bool = True) -> Tensor:
    """The gradient of `losses.margin_cross_entropy` to the logits, up to rounding what autograd makes of it."""
    y = y[:, None]
    hinges = (delta - logits.gather(1, y) + logits).clamp_(min=0).mul_(2)
    if divided:
        hinges *= 1 / logits.shape[1]
    hinges.scatter_(1, y, 0.0).scatter_(1, y, -hinges.sum(1, keepdim=True))
    own = torch.zeros_like(logits).scatter_(1, y, -1.0)
    return torch.ops.aten._log_softmax_backward_data(own, logits.log_softmax(1), 1, logits.dtype).add_(hinges)
