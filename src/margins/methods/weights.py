"""Weights of samples in a term, from how near an adversary came: MAIL's and GAIRAT's. They carry no gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from margins import checks, losses
from margins.errors import MarginsError
from margins.penalties.context import Context, Part

FORMULAS = ("released", "paper")


@dataclass
class MAIL(Part):
    """3 x sigmoid(slope x (bias - PM)), PM = p_y - max over j != y of p_j of the adversarial sample (Wang et al. 2021).

    The probabilities are those of the forward in training mode that the loss uses, as in the released code, which
    writes PM with the opposite sign. normalised false: the released formula, whose weights are not set to a mean of 1
    but multiplied by 3; true: the paper's, sigmoid x B / its sum over the batch. PM is in [-1, 1]. Costs no forward
    where the loss looks at the adversarial samples.
    """

    slope: float
    bias: float
    normalised: bool = False

    def __post_init__(self):
        checks.number("slope", self.slope, 0)
        checks.number("bias", self.bias)

    @property
    def batch_wide(self) -> bool:
        return self.normalised

    @property
    def together(self) -> bool:
        return not self.normalised

    def __call__(self, context: Context, at: str) -> Tensor:
        p = context.logits("adversarial").detach().softmax(1)
        weight = torch.sigmoid(self.slope * (losses.margin(p, context.y) + self.bias))
        return weight / weight.mean() if self.normalised else 3 * weight


@dataclass
class GAIRAT(Part):
    """(1 + tanh(L + 5 (1 - 2 kappa / K))) / 2, divided by its mean over the batch (Zhang et al. 2021).

    kappa is how many of the K iterates that the craft differentiates at are classified correctly, the start among
    them: samples that fall at once weigh most. L is `shift`: the larger, the more equal the weights. formula: for odd
    K, the "released" code has the whole part of K / 2 in the place of K / 2, the "paper" has not. Needs a craft that
    counts, `PGD(counted=True)`, else MarginsError. Costs nothing.
    """

    shift: float = -1.0
    formula: str = "released"
    batch_wide = True

    def __post_init__(self):
        checks.number("shift", self.shift)
        checks.choice("formula", self.formula, FORMULAS)

    def __call__(self, context: Context, at: str) -> Tensor:
        if "steps right" not in context.crafted:
            raise MarginsError("GAIRAT needs a craft that counts the steps before a sample falls: PGD(counted=True)")
        right, steps = (context.crafted[name].to(context.x.dtype) for name in ("steps right", "steps"))
        half = steps / 2 if self.formula == "paper" else torch.floor(steps / 2).clamp(min=1)
        # (1 + tanh z) / 2 is sigmoid(2 z), which does not round to 0
        weight = torch.sigmoid(2 * (self.shift + 5 * (half - right) / half))
        return weight / weight.mean()
