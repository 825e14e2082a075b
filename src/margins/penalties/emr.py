"""EMR: the lengths of the logits' input gradients, exact, by random probes, and of one weighted sum (Eqs. 5 and 7)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from margins import checks
from margins.errors import MarginsError
from margins.penalties.context import MODES, PLACES, Context, Part, in_mode
from margins.penalties.gradient import squared_gradient
from margins.penalties.jacobian import gradients, of_chain
from margins.penalties.paths import at_once

ROUTES = ("gradients", "chain")
#: The stream of a step's random numbers that probes are drawn from; another is a craft's.
PROBES = 1


@dataclass
class EMR(Part):
    """sum_k ||grad_x f_k||^2 of each sample, (B,), in (logit / input unit)^2: of EMR, Eq. 5 is the mean over samples.

    The squared Frobenius norm of the effective weights W(x). Biases, which section 3 appends to x, are not in it: the
    paper's own sentence on how it is computed asks for input gradients.

    probes: None for all K gradients; or a number n of random signs v of the classes for each sample: the mean of
    ||grad_x (v f)||^2 over n of them has the same expectation, and the variance 2 sum_{j != k} (w_j w_k)^2 / n.
    route: "gradients" differentiates the logits twice, for any model; "chain" multiplies the weights of the layers, at
    the kinks of x, for the models that `margins.penalties.jacobian.of_chain` takes apart. The values are the same.
    mode: of the forward, as for `ApproximateEMR`.

    Costs 3 forwards' worth a class, or a probe, beside a cross-entropy that looks at the same samples in the same mode,
    and else 1 more: of K = 10, a plain step of 3 becomes 33, with one probe 6. The chain always takes that 1. On a CPU
    some classes of a net of dense layers are taken at once, those of one with convolutions one by one.
    Raises MarginsError where the route "chain" does not fit the model.
    """

    probes: int | None = None
    route: str = "gradients"
    mode: str = "eval"
    places = PLACES
    together = True

    def __post_init__(self):
        if self.probes is not None:
            checks.whole("probes", self.probes, 1)
        checks.choice("route", self.route, ROUTES)
        checks.choice("mode", self.mode, MODES)

    @property
    def input_grad(self) -> tuple[str, ...]:
        return (self.mode,) if self.route == "gradients" else ()

    def __call__(self, context: Context, at: str) -> Tensor:
        if self.route == "chain":
            if context.autocast:
                raise MarginsError("route: 'chain' computes in full precision, but the recipe asks for bfloat16")
            x, logits = context.x if at == "clean" else context.x_adv, context.detached(at, self.mode)
            with in_mode(context.model, self.mode):
                found = of_chain(context.model, logits, x, self._along(context, logits, x))
        else:
            logits, x = context.logits(at, self.mode, input_grad=True), context.input(at, self.mode)
            along = self._along(context, logits, x).split(at_once(context.model, x))
            found = torch.cat([gradients(logits, x, some) for some in along])
        return found.square().flatten(2).sum((0, 2))

    def _along(self, context: Context, logits: Tensor, x: Tensor) -> Tensor:
        """(C, B, K): what is differentiated, as sums of logits."""
        batch, classes = logits.shape
        if self.probes is None:
            return torch.eye(classes, dtype=x.dtype, device=x.device)[:, None].expand(classes, batch, classes)
        signs = context.noise(x, PROBES).signs(self.probes, classes).to(logits.dtype)
        return signs.transpose(0, 1) / self.probes**0.5


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
