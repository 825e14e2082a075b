"""AMM's regulariser as one would write it first: the graph of everything, on the whole batch (sections 3.1 and 3.3)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from margins.attacks.found import misclassified
from margins.attacks.geometry import column, length
from margins.penalties import amm
from margins.penalties.context import PLACES, Context, Part, in_mode


@dataclass
class WholeGraph(Part):
    """`DeepFoolMargin` by the straight way: DeepFool on the whole batch with the graph of everything.

    Value, gradient and settings are those. In each iteration the input gradients of all K logits are taken in a way
    that can be differentiated, those of samples that are done as well, as in Deep Defense's code; what MIN leaves out
    drops out in the end. Costs K + 1 forwards and K backwards a sample and iteration, all differentiated again.
    """

    aggregation: str = "MIN"
    shrinkage: str = "EXP"
    c: float = 2.0
    d: float = 1.0
    steps: int = 6
    overshoot: float = 0.02
    places = PLACES
    batch_wide = True
    revision = (1, amm.REVISION)

    def __call__(self, context: Context, at: str) -> Tensor:
        x, y = context.x if at == "clean" else context.x_adv, context.y
        with in_mode(context.model, "eval"), torch.enable_grad():
            distances, correct = whole_graph(context.model, x, y, self.steps, self.overshoot)
        kept = amm.kept(self.aggregation, distances, correct, y)
        return torch.where(kept, amm.terms(self.shrinkage, distances, correct, self.c, self.d), 0.0)


def whole_graph(model: nn.Module, x: Tensor, y: Tensor, steps: int, overshoot: float) -> tuple[Tensor, Tensor]:
    """The lengths (B,) of DeepFool's perturbations, overshoot included, with their graph; which samples are right."""
    x, moving = x.detach().requires_grad_(), torch.ones_like(y, dtype=torch.bool)
    total, sample, wrong = torch.zeros_like(x), torch.arange(len(x), device=x.device), None
    for _ in range(steps):
        point = x + total
        logits = model(point)
        if wrong is None:
            wrong = misclassified(logits, y)
        known = logits.detach()
        leave = torch.where(wrong, known.scatter(1, y[:, None], -math.inf).argmax(1), y)
        gradients = [torch.autograd.grad(one.sum(), point, create_graph=True)[0] for one in logits.unbind(1)]
        w = torch.stack(gradients, 1)
        w = w[sample, leave][:, None] - w
        gap = logits.gather(1, leave[:, None]) - logits
        away = gap.detach().abs() / w.detach().flatten(2).norm(dim=2)
        own = torch.zeros_like(away, dtype=torch.bool).scatter_(1, leave[:, None], True)
        others = wrong[:, None] & (torch.arange(known.shape[1], device=x.device) != y[:, None])
        towards = away.masked_fill(own | others, math.inf).argmin(1)
        gap, w = gap[sample, towards], w[sample, towards]
        move = -w * column(gap.abs() / w.square().flatten(1).sum(1), w)
        total = total + column(moving.to(x.dtype), move) * move
        with torch.no_grad():
            moving &= misclassified(model(x + (1 + overshoot) * total), y) == wrong
        if not moving.any():
            break
    return (1 + overshoot) * length(total, 2), ~wrong
