"""Large-margin softmax: a cross-entropy whose true logit is made smaller in training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import checks, losses
from margins.errors import MarginsError
from margins.penalties.context import PLACES, Context, Part, Run


@dataclass
class LSoftmax(Part):
    """Cross-entropy with the true logit |w_y| |f| cos(t) lowered towards |w_y| |f| psi(t) (Liu et al. 2016, Eqs. 4-7).

    psi(t) = (-1)^k cos(m t) - 2 k for the angle t in [k pi / m, (k + 1) pi / m]; k has no gradient. cos(m t) is the
    Chebyshev polynomial of cos(t), so that no arc cosine is taken and cos(t) = +-1 is a point as any other.
    margin: m; 1 is the plain softmax without bias. The logit is (lambda cos(t) + psi(t)) / (1 + lambda) of |w_y| |f|,
    where lambda falls with the steps of the optimiser: max(least, base x decay^step), or, with a power, as the authors
    do it, max(least, base x (1 + decay x step)^-power); 1000, 2.5e-5 and 35 on MNIST. base 0 for no annealing.

    Evaluation uses the plain logits. Needs a linear head without bias (`Head("bias-free")`), else MarginsError. Costs
    no forward where another term looks at the same samples.
    """

    margin: int = 4
    base: float = 100.0
    decay: float = 0.99
    power: float | None = None
    least: float = 0.0
    places = PLACES
    features = True

    def __post_init__(self):
        checks.whole("margin", self.margin, 1)
        checks.number("base", self.base, 0)
        checks.number("decay", self.decay, 0, 1)
        checks.number("least", self.least, 0)
        if self.power is not None:
            checks.number("power", self.power, 0)

    def begin(self, run: Run) -> None:
        super().begin(run)
        head = getattr(run.model, "head", None)
        if not isinstance(head, nn.Linear) or head.bias is not None or not hasattr(run.model, "features"):
            raise MarginsError(
                "LSoftmax needs a model with features and a linear head without bias:"
                ' give its row head=Head("bias-free")'
            )

    def __call__(self, context: Context, at: str) -> Tensor:
        logits, y = context.logits(at), context.y
        share = 1 / (1 + self.annealing(context.step))
        length = context.model.head.weight.norm(dim=1)[y] * context.features(at).norm(dim=1)
        cosine = logits.gather(1, y[:, None])[:, 0] / length.clamp(min=1e-12)
        drop = share * length * (cosine - self.psi(cosine))
        return losses.cross_entropy(logits - drop[:, None] * functional.one_hot(y, logits.shape[1]), y)

    def annealing(self, step: int) -> float:
        """lambda after so many steps."""
        fallen = self.decay**step if self.power is None else (1 + self.decay * step) ** -self.power
        return max(self.least, self.base * fallen)

    def psi(self, cosine: Tensor) -> Tensor:
        """psi of angles given by their cosines, elementwise: from 1 at angle 0 down to 1 - 2 m at angle pi."""
        previous, here = torch.ones_like(cosine), cosine
        for _ in range(self.margin - 1):
            previous, here = here, 2 * cosine * here - previous
        knots = cosine.new_tensor([math.cos(k * math.pi / self.margin) for k in range(1, self.margin)])
        k = (cosine.detach()[..., None] < knots).sum(-1)
        return torch.where(k % 2 == 0, here, -here) - 2 * k
