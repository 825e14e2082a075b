"""LMA-AT's regulariser: mHuber between moving averages of the adversarial and the clean logits (section 4.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from margins import checks, losses
from margins.errors import MarginsError
from margins.penalties.context import Context, Part, Run

READINGS = ("batch", "sample", "class")
DIRECTIONS = ("algorithm", "appendix")


@dataclass
class MovingAverage(Part):
    """mHuber of the moving average of d = f(x_adv) - f(x), mean over the classes, per sample (B,); at "both".

    The average is linear, so only that of the difference is kept: D_t = tau D_(t-1) + (1 - tau) d_t from D_0 = 0, no
    gradient through D_(t-1). Both logits of d carry gradient. tau = 0 is plain mHuber pairing and keeps no state.
    direction: "algorithm" as above, with tau in [0, 1) (Algorithm 1); "appendix" swaps tau and 1 - tau, with tau in
        (0, 1] (Appendix A, Eq. 18), so that tau = 1 is plain pairing. Below, tau is the share of the past.
    reading: whose D_(t-1) a sample meets, which the paper leaves open. "batch": the sample's at the same position of
        the batch before, another image (Algorithm 1 to the letter). "sample": its own, of the epoch before. "class": of
        its class, the mean of D over the class's samples in the last batch that had any.

    What it amounts to: with H' the derivative of mHuber, the gradient of a sample's value to the parameters is
        (1 - tau) x mean over classes of H'((1 - tau) d + tau D_(t-1)) grad d,
    that of pairing at a shifted and shrunk difference. In mHuber's quadratic range, H'(u) = u, that is (1 - tau)^2
    times the gradient of pairing, plus tau (1 - tau) D_(t-1) grad d, where D_(t-1) is of other images ("batch"): in
    expectation about a mean of D. So the control of (tau, beta) is (0, (1 - tau)^2 beta): 86 and 0.2 become 55. D_t is
    the sum over s < t of (1 - tau) tau^s d_(t-s); the weights sum to 1 - tau^t (Appendix A, Eq. 24).

    Costs nothing beside the forwards of both; memory batch x K, N x K or K x K. Raises MarginsError for "batch" where
    the last batch of an epoch is smaller.
    """

    tau: float = 0.2
    alpha: float = 5.345
    reading: str = "batch"
    direction: str = "algorithm"
    places = ("both",)
    shared = True

    def __post_init__(self):
        checks.choice("reading", self.reading, READINGS)
        checks.choice("direction", self.direction, DIRECTIONS)
        checks.number("alpha", self.alpha, 0, above=True)
        checks.number("tau", self.tau, 0, 1)
        if self.past == 1:
            raise MarginsError(f"tau: with direction {self.direction!r}, {self.tau} never lets the logits in")

    @property
    def past(self) -> float:
        """The share of D_(t-1) in D_t."""
        return self.tau if self.direction == "algorithm" else 1 - self.tau

    def begin(self, run: Run) -> None:
        self.state, self._next = {}, None
        if not self.past:
            return
        if self.reading == "batch" and run.uneven:
            raise MarginsError(
                f"reading 'batch' goes by the position in the batch, so all batches must have the same size: use"
                f" drop_last, or a batch_size that divides {len(run.x)} (it is {run.batch_size}), or another reading"
            )
        rows = {"batch": run.batch_size, "sample": len(run.x), "class": run.classes}[self.reading]
        self.state["average"] = run.x.new_zeros(rows, run.classes)

    def __call__(self, context: Context, at: str) -> Tensor:
        checks.choice("at", at, self.places)
        average = context.logits("adversarial") - context.logits("clean")
        if self.past:
            average = self.past * self.met(context) + (1 - self.past) * average
            self._next = self._rows(context), average.detach()
        return losses.mhuber(average, self.alpha).mean(1)

    def met(self, context: Context) -> Tensor:
        """D_(t-1) of each sample, (B, K): the state that it meets."""
        return self.state["average"][self._rows(context)]

    def _rows(self, context: Context) -> Tensor:
        if self.reading == "batch":
            return context.first + torch.arange(len(context.y), device=context.y.device)
        return context.index if self.reading == "sample" else context.y

    def after_step(self, run: Run) -> None:
        """Keep the step's average: only now, so that a part which is asked twice in a step answers the same."""
        if self._next is None:
            return
        (rows, average), self._next = self._next, None
        known = self.state["average"]
        new = run.combine(torch.zeros_like(known).index_add(0, rows, average))
        met = run.combine(known.new_zeros(len(known), 1).index_add(0, rows, torch.ones_like(average[:, :1])))
        self.state["average"] = torch.where(met > 0, new / met.clamp(min=1), known)
