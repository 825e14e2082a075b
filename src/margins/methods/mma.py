"""MMA: adversarial training at each sample's own boundary (Ding et al. 2020, "MMA Training", and its released code)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from margins import checks
from margins.attacks.geometry import clip, column, direction, random_start
from margins.attacks.pgd import Near
from margins.errors import MarginsError
from margins.losses import cross_entropy, log_odds
from margins.methods.craft import BOX, log_odds_slope
from margins.methods.rows import Term
from margins.models import frozen
from margins.penalties.context import MODES, Context, Part, Run

#: How far the search goes beyond d_max, in multiples of it; the travel of its PGD, in multiples of a sample's radius.
BEYOND, TRAVEL = 1.05, 2.5


@dataclass
class MMACraft(Part):
    """Points near the boundary, each sample at its own distance, which it remembers from epoch to epoch.

    Right is a sample with p_y > 1/2, where the soft logit margin `losses.log_odds` is below 0; it is judged in the
    clean forward that the clean term asks for. A right sample goes by PGD on that margin through the ball of the
    radius found for it in its last epoch, then by bisection along the direction found, up to 1.05 d_max, to where the
    margin is 0. A wrong one stays where it is, with radius 0. `crafted` has "distance" (B,), the new radii in input
    units, and "counted" (B,) bool: wrong, or nearer to the boundary than d_max.

    reach: d_max in multiples of the run's eps; on CIFAR-10 (linf, 8/255) the paper has 12, 20 and 32 / 255, which are
        1.5, 2.5 and 4. least: the smallest radius of the ball, likewise (0.005 there, 0.1 at 0.3 on MNIST).
    steps: of PGD, each 2.5 / steps of the radius, from a random point; None for as many as the run's threat says.
    search_mode: of the bisection's forwards; the released code bisects in "train", which moves BatchNorm statistics.
    Points stay in the box, while the released code trains at points beyond it where the search looks at clipped ones.

    Costs, of the right samples, 2 forwards' worth a step and a forward a bisection, of which the released code has one
    more, unused. state: "radius" (N,), 0 for samples that were wrong or not yet met.
    """

    reach: float = 1.5
    least: float = 0.159375
    steps: int | None = None
    bisections: int = 10
    search_mode: str = "eval"

    def __post_init__(self):
        checks.number("reach", self.reach, 0, above=True)
        checks.number("least", self.least, 0, above=True)
        if self.least > self.reach:
            raise MarginsError(f"least must be at most reach, but is {self.least!r}, and reach is {self.reach!r}")
        if self.steps is not None:
            checks.whole("steps", self.steps, 1)
        checks.whole("bisections", self.bisections, 1)
        checks.choice("search_mode", self.search_mode, MODES)

    def begin(self, run: Run) -> None:
        self.state, self._next = {"radius": run.x.new_zeros(len(run.x))}, None

    def __call__(self, context: Context, at: str = "clean") -> None:
        """Set the context's x_adv and crafted."""
        wrong = log_odds(context.logits("clean").detach(), context.y) >= 0
        (rows,) = (~wrong).nonzero(as_tuple=True)
        found, x_adv = context.x.new_zeros(len(context.x)), context.x.clone()
        if len(rows):
            x_adv[rows], found[rows] = self._boundary(context, rows)
        self._next = context.index, found
        context.x_adv = x_adv
        context.crafted = {"distance": found, "counted": wrong | (found < self.reach * context.threat.eps)}

    def after_step(self, run: Run) -> None:
        if self._next is not None:
            index, found = self._next
            self.state["radius"][index], self._next = found, None

    def _boundary(self, context: Context, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The points (n, ...) and their distances (n,) of the samples `rows`."""
        x, y, threat = context.x[rows], context.y[rows], context.threat
        far = BEYOND * self.reach * threat.eps
        radius = self.state["radius"][context.index[rows]].clamp(self.least * threat.eps, far)
        with frozen(context.model):
            away = self._climb(context, x, y, radius) - x
        low, high = torch.zeros_like(radius), torch.full_like(radius, far)
        with frozen(context.model, evaluating=self.search_mode == "eval"), torch.no_grad():
            unit = away / column(radius, x)
            for _ in range(self.bisections):
                right = log_odds(context.ask(clip(x + column(radius, x) * unit, BOX)), y) < 0
                low, high = torch.where(right, radius, low), torch.where(right, high, radius)
                radius = (low + high) / 2
        return clip(x + column(radius, x) * unit, BOX), radius

    def _climb(self, context: Context, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
        """PGD's last iterate in each sample's own ball."""
        norm, steps = context.threat.norm, self.steps or context.threat.steps
        kind, flat = ("image", radius) if norm == 2 else ("uniform", radius[:, None])
        here = random_start(kind, x.flatten(1), norm, flat, BOX, context.noise(x)).reshape(x.shape)
        ball = radius if norm == 2 else column(radius, x)
        near = Near(x, y, x.new_zeros(len(x), 1), norm, ball, BOX, exact=False)
        step = column(TRAVEL * radius / steps, x)
        for _ in range(steps):
            with torch.enable_grad():
                here = here.detach().requires_grad_()
                logits = context.ask(here)
                (gradient,) = torch.autograd.grad(logits, here, log_odds_slope(logits.detach(), y))
            with torch.no_grad():
                here = near.project(here + step * direction(gradient, norm))
        return here


@dataclass
class Counted(Part):
    """1 for samples that are wrong or nearer to the boundary than d_max, else 0, (B,): the weight after `MMACraft`."""

    def __call__(self, context: Context, at: str) -> Tensor:
        if "counted" not in context.crafted:
            raise MarginsError("weight Counted: it needs the craft MMACraft, which says what counts")
        return context.crafted["counted"].to(context.x.dtype)


def mma_terms(clean: float = 1 / 3) -> tuple[Term, ...]:
    """MMA's loss: 1 - clean times the counted cross-entropy at the crafted points, and clean times that of the samples.

    clean: 1/3 in the released code's default, 0 for what the paper calls OMMA; both are means over the whole batch.
    """
    checks.number("clean", clean, 0, 1)
    crafted = Term(cross_entropy, "adversarial", 1 - clean, weight=Counted())
    return (crafted, Term(cross_entropy, "clean", clean)) if clean else (crafted,)
