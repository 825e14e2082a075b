"""EMR's approximation for many classes: the length of one weighted input gradient (EMR section 4, Eq. 7)."""

from dataclasses import dataclass

from torch import Tensor

from margins import checks
from margins.penalties.context import MODES, PLACES, Context, Part
from margins.penalties.gradient import squared_gradient


@dataclass
class ApproximateEMR(Part):
    """||grad_x h_i||^2 of each sample, (B,), in (logit / input unit)^2, where h = sum_j p_j f_j (EMR, Eq. 7).

    p = softmax(f / temperature), no gradient goes through it. As the temperature falls, only the predicted class's
    gradient is left; as it grows, the mean logit's, which neither the softmax nor a margin sees.
    mode: of the forward; "eval" as in the paper and its code, so that BatchNorm treats each sample alone.

    The authors' code differentiates the batch's mean of h and sums the squares over the batch: its lambda is 128 times
    a coefficient of ours for its batches of 128 (3.0 is 0.0234, 1.0 is 0.0078).

    Costs 4 forwards' worth, the double backward included, or 5 with BatchNorm, whose second derivative is slow; 3 where
    a term looks at the same samples in the same mode, or the net has only one.
    """

    temperature: float = 1.0
    mode: str = "eval"
    places = PLACES
    together = True

    def __post_init__(self):
        checks.number("temperature", self.temperature, 0, above=True)
        checks.choice("mode", self.mode, MODES)

    @property
    def input_grad(self) -> tuple[str, ...]:
        return (self.mode,)

    def __call__(self, context: Context, at: str) -> Tensor:
        logits = context.logits(at, self.mode, input_grad=True)
        share = (logits.detach() / self.temperature).softmax(1)
        return squared_gradient((share * logits).sum(1), context.input(at, self.mode))
