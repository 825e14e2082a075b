"""AMM's regulariser of a network: DeepFool perturbations, differentiated through the whole attack (section 3.1)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from margins import checks
from margins.attacks.found import misclassified
from margins.attacks.geometry import length
from margins.errors import MarginsError
from margins.penalties import amm
from margins.penalties.context import ADDED, PLACES, Context, Part, Run, in_mode
from margins.penalties.paths import find, lengths

#: How far, relative to its logits, a sample's may be from those it has in another batch: rounding.
ALONE = 1e-3


@dataclass
class DeepFoolMargin(Part):
    """R(-c |D|) of correct samples, R(d |D|) of wrong ones, (B,), 0 of those that are left out (AMM, Eq. 6).

    D is the l2 DeepFool perturbation without a box, overshoot included: out of the label's class into the nearest one,
    or, of a wrong sample, from the class that it is put into to the label's. aggregation, shrinkage: see
    `margins.penalties.amm`, of whose `penalty` the mean over the batch is the value. c, d in 1 / input unit; steps: at
    most so many (the paper's u). Dropout and BatchNorm are in evaluation mode, precision is full.

    candidates: of how many classes, those of the largest logits, the boundary is looked at; None, as in the paper: all.
    second_order: false for the paper's "without high order gradients" (section 4.3.1): gaps carry the gradient, their
    input gradients are constants. Taken by its letter, with D a constant, nothing would carry any.
    normalised: Deep Defense's, |D| / |x| in the place of |D| (Eq. 5), x as the network's first layer sees it: minus
    `model.mean` where the model subtracts one. longest: what |D| is truncated at (section 3.3.2, where no number is
    given), None for nowhere: a walk from where gaps hardly depend on the input may go so far that EXP overflows.

    The gradient goes through gaps, their input gradients and all iterates (section 3.1.1). Discrete choices carry none:
    the paths, their classes and which samples are kept are found without a graph on the whole batch, and only the kept
    samples are walked again with one. The result is the gradient of the whole attack. Costs, for C candidates, C + 2
    forwards' worth a sample and step of DeepFool, but the first forward where the cross-entropy asks for it too; 6 a
    kept sample and step, 3 a first one where all are kept; and 4 a kept sample and step after its first, but of models
    that are linear but for kinks. On CPUs passes over the few that are kept or still move take more than their share;
    how much, data/benchmarks/training tells. Nan where a logit is not finite.

    Raises MarginsError for a model with fewer than two classes, and where a sample's logits depend on the others in its
    batch in evaluation mode too: its distance would be theirs as well.
    """

    aggregation: str = "MIN"
    shrinkage: str = "EXP"
    c: float = 2.0
    d: float = 1.0
    steps: int = 6
    overshoot: float = 0.02
    candidates: int | None = None
    second_order: bool = True
    normalised: bool = False
    longest: float | None = field(default=None, metadata=ADDED)
    places = PLACES
    input_grad = ("eval",)
    revision = (2, amm.REVISION)

    def __post_init__(self):
        checks.choice("aggregation", self.aggregation, amm.AGGREGATIONS)
        checks.choice("shrinkage", self.shrinkage, amm.SHRINKAGES)
        checks.number("c", self.c, 0, above=True)
        checks.number("d", self.d, 0, above=True)
        checks.whole("steps", self.steps, 1)
        checks.number("overshoot", self.overshoot, 0)
        if self.candidates is not None:
            checks.whole("candidates", self.candidates, 1)
        if self.longest is not None:
            checks.number("longest", self.longest, 0, above=True)
        for name in ("second_order", "normalised"):
            checks.choice(name, getattr(self, name), (True, False))

    @property
    def batch_wide(self) -> bool:
        return self.aggregation == "MIN"

    def begin(self, run: Run) -> None:
        super().begin(run)
        if run.classes < 2:
            raise MarginsError(f"classes: a distance to another class needs at least 2, but there is {run.classes}")
        check_alone(run.model, run.x[:2])

    def __call__(self, context: Context, at: str) -> Tensor:
        logits = context.detached(at)
        x, y = context.x if at == "clean" else context.x_adv, context.y
        if not logits.isfinite().all():  # of a training that diverges; an attack would refuse it
            return logits.new_full((len(x),), torch.nan)
        with in_mode(context.model, "eval"):
            paths = find(context.model, x, y, self.steps, self.overshoot, self.candidates, _known(context, at))
            distances, correct = (1 + self.overshoot) * length(paths.moved, 2), ~misclassified(logits, y)
            kept = amm.kept(self.aggregation, distances, correct, y)
            (chosen,) = kept.nonzero(as_tuple=True)
            size = (1 + self.overshoot) * lengths(context.model, paths, chosen, self.second_order)
        if self.normalised:
            size = size / length((x - getattr(context.model, "mean", 0.0))[chosen], 2)
        if self.longest is not None:
            size = size.clamp(max=self.longest)
        values = amm.terms(self.shrinkage, size, correct[chosen], self.c, self.d)
        return torch.zeros_like(distances).index_put((chosen,), values)


def _known(context: Context, at: str) -> tuple[Tensor, Tensor] | None:
    """The samples and their logits of a forward that a loss asks for as well, where it is one of evaluation."""
    if context.modal or context.autocast:
        return None
    logits = context.logits(at, "eval", input_grad=True)
    return context.input(at, "eval"), logits


@torch.no_grad()
def check_alone(model: torch.nn.Module, x: Tensor) -> None:
    """Raise MarginsError where a sample's logits, in evaluation mode, depend on the others of its batch x (B, ...)."""
    with in_mode(model, "eval"):
        together, alone = model(x), torch.cat([model(one[None]) for one in x])
    if (together - alone).abs().max() > ALONE * together.abs().max():
        raise MarginsError(
            "model: a sample's logits depend on the others in its batch in evaluation mode too, so that it has no"
            " distance of its own; use GroupNorm, or BatchNorm with running statistics"
        )
