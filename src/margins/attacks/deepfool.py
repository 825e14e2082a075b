"""DeepFool (Moosavi-Dezfooli et al. 2016): step to the linearised model's nearest boundary until the class changes.

The conventions in which papers and libraries differ are parameters. The same in all: at an iterate, each candidate
class k closes its gap f_r - f_k to the reference class r in a shortest step of the linearised model, and the shortest
of these steps is taken. On a linear model the first step is exact.
"""

import math
from dataclasses import dataclass, fields
from itertools import zip_longest

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.found import (
    Bounds,
    Calls,
    Nearest,
    Oracle,
    attacking,
    finite,
    input_gradient,
    misclassified,
    parts,
    rivals,
)
from margins.attacks.geometry import clip, column, dot, length
from margins.attacks.halfspace import nearest_in_halfspace

REFERENCES = ("label", "prediction", "correction")
ITERATES = ("plain", "overshot")


@dataclass(frozen=True, eq=False)
class Step:
    """One iteration of DeepFool, of the n samples that were still moving.

    samples: (n,) int64, which of the batch they are; row i of the others belongs to samples[i].
    reference, chosen: (n,) int64, the class that is left and the class k* whose linearised boundary is nearest.
    move: (n, ...) the step r, without overshoot.
    """

    samples: Tensor
    reference: Tensor
    chosen: Tensor
    move: Tensor


@dataclass(frozen=True, eq=False)
class Traced(Nearest):
    """Of `deepfool(..., trace=True)`: also the path, all that it takes to walk it again with a graph.

    Without a box, the iterate of a step is x plus the moves before it ("plain"), or x plus 1 + overshoot times those
    ("overshot"), and the perturbation is 1 + overshoot times the sum of all moves, whether the class changed or not.
    """

    path: tuple[Step, ...]


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: float = 2,
    steps: int = 50,
    overshoot: float = 0.02,
    reference: str = "label",
    linearise_at: str = "plain",
    candidates: int | None = None,
    bounds: Bounds = None,
    trace: bool = False,
) -> Nearest:
    """A short perturbation that changes the class, by steps to the linearised model's nearest boundary (AMM, Eqs. 2-4).

    x (B, ...), y (B,) int64; norm 2 or math.inf; distances in input units; at most `steps` steps. The overshoot is part
    of the result: on a linear model without a box the distance is 1 + overshoot times the exact one.

    reference: what happens to a sample that is misclassified at x.
        "label"       nothing, as in every attack: x_adv is x, at distance 0;
        "prediction"  y is not looked at, every sample is moved out of the class that it is in (the authors' code);
        "correction"  it is moved into its class y, the only candidate, out of the class that it is put into at the
                      iterate (Deep Defense, AMM).
        With the last two, success means that the class changed so, and distance is the length of that move.
    linearise_at: an iterate is x plus the sum of the steps ("plain": Deep Defense, AMM), or x plus 1 + overshoot times
        it ("overshot": the authors' code). What is tested and returned is the overshot point in both.
    candidates: of how many classes, at most, the boundary is looked at: those of the largest logits at x; None: all.
    bounds: None for no box, as in the papers. In a box the first step is the one without it, cut off. Each further one
        closes the linearised gap exactly within the box, saturated pixels taking no part, so that the steps do not
        creep; the chosen class is the one whose point is then nearest to x. Exact on linear models too, but for the
        overshoot.
    trace: return the path too, as Traced.

    Samples leave the batch when their class has changed, and when no candidate's gap can be made smaller. A sample that
    failed has x_adv = x and an infinite distance. Cost: for a sample and a step 2 forwards and as many backwards as
    there are candidates. Raises MarginsError for bad arguments, before any work.
    """
    norm, steps = checks.norm(norm, (2, math.inf)), checks.whole("steps", steps, 1)
    overshoot, bounds = checks.number("overshoot", overshoot, 0), checks.box(bounds)
    checks.choice("reference", reference, REFERENCES)
    checks.choice("linearise_at", linearise_at, ITERATES)
    if candidates is not None:
        checks.whole("candidates", candidates, 1)
    rules = _Rules(norm, steps, overshoot, linearise_at == "plain", bounds, trace)
    with attacking(model, x, y, bounds) as (oracle, logits, wrong):
        x = x.detach()
        leave = logits.argmax(1) if reference == "prediction" else y
        order = rivals(logits, leave, candidates or oracle.classes)
        first = torch.ones_like(wrong) if reference == "prediction" else ~wrong
        walks = [_walk(oracle, x, part, leave, order, rules) for part in parts(first.nonzero()[:, 0])]
        if reference == "correction":
            walks += [_walk(oracle, x, part, None, y[:, None], rules) for part in parts(wrong.nonzero()[:, 0])]
    x_adv, success = x.clone(), wrong & (reference == "label")
    for samples, found, changed, _ in walks:
        x_adv[samples[changed]], success[samples] = found[changed], changed
    result = x_adv, success, torch.where(success, length(x_adv - x, norm), math.inf), oracle.calls, norm
    if not trace:
        return Nearest(*result)
    return Traced(*result, tuple(_join(steps) for steps in zip_longest(*(path for *_, path in walks))))


@dataclass(frozen=True)
class _Rules:
    """What is the same for all samples."""

    norm: float
    steps: int
    overshoot: float
    plain: bool
    bounds: Bounds
    trace: bool


def _walk(oracle: Oracle, x: Tensor, samples: Tensor, leave: Tensor | None, towards: Tensor, rules: _Rules):
    """Walk n samples (indices) out of their class `leave` (B,), or, with None, into the class towards[:, 0].

    towards: (B, C), the candidates. Returns `samples`, the overshot points (n, ...), whether the class changed there
    (n,), and the path.
    """
    x, towards, leave = x[samples], towards[samples], None if leave is None else leave[samples]
    iterate, reached, path = x.clone(), x.clone(), []
    here, changed = torch.arange(len(x), device=x.device), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for step in range(rules.steps):
        if not len(here):
            break
        point, reference = iterate[here], None if leave is None else leave[here]
        reference, chosen, near = _linearise(oracle, x[here], point, reference, towards[here], rules, first=step == 0)
        going = chosen >= 0
        here, point, near = here[going], point[going], near[going]
        if rules.trace:
            path.append(Step(samples[here], reference[going], chosen[going], near - point))
        tested = clip(torch.lerp(x[here] if rules.plain else point, near, 1 + rules.overshoot), rules.bounds)
        iterate[here], reached[here] = near if rules.plain else tested, tested
        logits = oracle.logits(tested)
        done = ~misclassified(logits, towards[here, 0]) if leave is None else misclassified(logits, leave[here])
        changed[here] = done
        here = here[~done]
    return samples, reached, changed, path


def _linearise(
    oracle: Oracle, x: Tensor, point: Tensor, leave: Tensor | None, towards: Tensor, rules: _Rules, first: bool
):
    """The class left (n,), the candidate whose linearised boundary is nearest (n,), -1 for none, and the point there.

    A gap that is closed at the iterate, but not at the overshot point, is taken by its absolute value (as in the
    authors' code): the walk goes on in the same direction.
    """
    least = torch.full(point.shape[:1], math.inf, dtype=point.dtype, device=point.device)
    chosen, near = torch.full_like(least, -1, dtype=torch.int64), point.clone()
    count = towards.shape[1]
    with torch.enable_grad():
        asked = point.detach().requires_grad_()
        logits = oracle.model(asked)
        leave = logits.detach().scatter(1, towards, -math.inf).argmax(1) if leave is None else leave
        gaps = logits.gather(1, leave[:, None]) - logits.gather(1, towards)
        for c, gap in enumerate(gaps.unbind(1)):
            w = finite(input_gradient(gap.sum(), asked, keep=c < count - 1))
            gap = gap.detach().abs()
            away = gap if rules.bounds is None else gap + dot(w, x - point)
            without = away / length(w, 2 if rules.norm == 2 else 1)  # no candidate is nearer than without the box
            rows = (without < least).nonzero()[:, 0]
            there, size = _nearest(x[rows], point[rows], w[rows], gap[rows], rules, first)
            better = size < least[rows]
            rows = rows[better]
            least[rows], chosen[rows], near[rows] = size[better], towards[rows, c], there[better]
    oracle.calls += Calls(len(point), count * len(point))
    return leave, chosen, near


def _nearest(x: Tensor, point: Tensor, w: Tensor, gap: Tensor, rules: _Rules, first: bool):
    """Where to step from `point` to close the gap (n,) with gradient w, and how near that class counts as, (n,).

    Without a box that is the length of the step. In it, the distance from x to where the gap closes; gaps that close
    nowhere in the box come after all others, and infinite is what no step makes smaller.
    """
    norm, bounds = rules.norm, rules.bounds
    free = nearest_in_halfspace(point, w, gap, norm, None)
    if bounds is None:
        return point + free, torch.where(dot(w, free) < 0, length(free, norm), math.inf)
    cut, step = clip(point + free, bounds), nearest_in_halfspace(point, w, gap, norm, bounds)
    there = clip(point + step, bounds)
    open_ = gap + dot(w, step) > 1e-5 * gap
    diameter = (bounds[1] - bounds[0]) * (math.prod(x.shape[1:]) ** 0.5 if norm == 2 else 1)
    size = torch.where(dot(w, step) < 0, length(there - x, norm) + diameter * open_, math.inf)
    return cut if first else torch.where(column(open_, x), cut, there), size


def _join(steps: tuple[Step | None, ...]) -> Step:
    """The same iteration of different samples' walks, as one."""
    steps = [step for step in steps if step is not None]
    return Step(*(torch.cat([getattr(step, field.name) for step in steps]) for field in fields(Step)))
