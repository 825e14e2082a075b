"""AMM's regulariser of a network: DeepFool perturbations, differentiated through the whole attack (section 3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.deepfool import Step, deepfool
from margins.attacks.found import misclassified
from margins.attacks.geometry import column, length
from margins.penalties import amm
from margins.penalties.context import PLACES, Context, Part, in_mode


@dataclass
class DeepFoolMargin(Part):
    """R(-c |D|) of correct samples, R(d |D|) of wrong ones, (B,), 0 of those that are left out (AMM, Eq. 6).

    D is the l2 DeepFool perturbation without a box, overshoot included: out of the label's class into the nearest one,
    or, of a wrong sample, from the class that it is put into to the label's. aggregation, shrinkage: see
    `margins.penalties.amm`, of whose `penalty` the mean over the batch is the value. c, d in 1 / input unit; steps: at
    most so many (the paper's u). Dropout and BatchNorm are in evaluation mode, precision is full.

    The gradient goes through gaps, their input gradients and all iterates (section 3.1.1). Discrete choices carry none:
    the paths, their classes and which samples are kept are found without a graph on the whole batch, and only the kept
    samples are walked again with one. The result is the gradient of the whole attack. Costs, for K classes, K + 1
    forwards' worth a sample and step of DeepFool, 6 a kept sample and step, and a forward or two. On CPUs passes over
    the few that are kept or still move take more than their share; how much, data/benchmarks/training tells. Nan where
    a logit is not finite.
    """

    aggregation: str = "MIN"
    shrinkage: str = "EXP"
    c: float = 2.0
    d: float = 1.0
    steps: int = 6
    overshoot: float = 0.02
    places = PLACES
    revision = (1, amm.REVISION)

    def __post_init__(self):
        checks.choice("aggregation", self.aggregation, amm.AGGREGATIONS)
        checks.choice("shrinkage", self.shrinkage, amm.SHRINKAGES)
        checks.number("c", self.c, 0, above=True)
        checks.number("d", self.d, 0, above=True)
        checks.whole("steps", self.steps, 1)
        checks.number("overshoot", self.overshoot, 0)

    @property
    def batch_wide(self) -> bool:
        return self.aggregation == "MIN"

    def __call__(self, context: Context, at: str) -> Tensor:
        logits = context.detached(at)
        x, y = context.x if at == "clean" else context.x_adv, context.y
        if not logits.isfinite().all():  # of a training that diverges; an attack would refuse it
            return logits.new_full((len(x),), torch.nan)
        settings = {"steps": self.steps, "overshoot": self.overshoot, "reference": "correction", "trace": True}
        path = deepfool(context.model, x, y, norm=2, bounds=None, **settings).path
        moved = torch.zeros_like(x)
        for step in path:
            moved[step.samples] += step.move
        correct = ~misclassified(logits, y)
        distances = (1 + self.overshoot) * length(moved, 2)
        kept = amm.kept(self.aggregation, distances, correct, y)
        (chosen,) = kept.nonzero(as_tuple=True)
        with in_mode(context.model, "eval"):
            walked = (1 + self.overshoot) * length(walk(context.model, x, chosen, path), 2)
        values = amm.shrink(self.shrinkage, torch.where(correct[chosen], -self.c * walked, self.d * walked))
        return torch.zeros_like(distances).index_put((chosen,), values)


def walk(model: nn.Module, x: Tensor, chosen: Tensor, path: tuple[Step, ...]) -> Tensor:
    """The sums of DeepFool's l2 moves of the chosen samples (n,) of x (B, ...), without overshoot, with their graph.

    path: of `deepfool(..., norm=2, linearise_at="plain", bounds=None, trace=True)`. Each move is written as a function
    of the model, |gap| w / |w|^2 with w the gap's gradient at the iterate, which is one of the moves before.
    Costs 2 forwards' worth a sample and step, and 4 more to differentiate.
    """
    start, place = x[chosen].detach().requires_grad_(), torch.full((len(x),), -1, device=x.device)
    place[chosen] = torch.arange(len(chosen), device=x.device)
    moved = torch.zeros_like(start)
    for step in path:
        asked = place[step.samples] >= 0
        rows, leave, towards = place[step.samples[asked]], step.reference[asked], step.chosen[asked]
        if not len(rows):
            break
        point = start[rows] + moved[rows]
        logits = model(point)
        gap = (logits.gather(1, leave[:, None]) - logits.gather(1, towards[:, None]))[:, 0]
        (w,) = torch.autograd.grad(gap.sum(), point, create_graph=True)
        move = w * column(-gap.abs() / w.square().flatten(1).sum(1), w)
        moved = moved.index_add(0, rows, move)
    return moved
