"""What the sanity checks look at: short attacks on some samples, and the model's outputs and gradients there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import losses
from margins.attacks.found import Calls
from margins.attacks.geometry import length, random_start
from margins.attacks.noise import Noise
from margins.attacks.pgd import fgsm, pgd
from margins.attacks.square import square
from margins.evaluation import attacked
from margins.evaluation.attacked import Target
from margins.evaluation.jobs import Jobs
from margins.evaluation.result import Attacked, Cost
from margins.evaluation.suites import Attack, is_black_box
from margins.margin import Rate, rate
from margins.models import frozen

#: How many samples are probed, spread evenly over all; steps of PGD; queries of Square where the suite has none such.
SAMPLES, STEPS, QUERIES = 200, 20, 100
#: Above this length of the cross-entropy's gradient at x nothing underflows on the way: its variants find the same.
FAINT = 1e-3
#: Calls of the model on the same batch.
REPEATS = 5


@dataclass(frozen=True, eq=False)
class Findings:
    """Of n samples: what each short attack and the whole suite left over (n,), the columns of `_look` (n,).

    only_black_box: how many of `questioned` samples a black-box attack broke and no other attack of the suite; None
    where the suite has only black-box attacks. clean: the accuracy on all the
    `samples`, of so many classes.
    """

    robust: Mapping[str, Tensor]
    suite: Tensor
    looks: Mapping[str, Tensor]
    only_black_box: int | None
    questioned: int
    cost: Cost
    clean: Rate
    samples: int
    classes: int


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y as the log of 1 + exp(log-odds): its gradient underflows with its size only.

    Computed directly (`losses.cross_entropy`) the gradient also loses its direction, once 1 - p_y rounds to 0.
    """
    return functional.softplus(losses.log_odds(logits, y))


def survey(
    jobs: Jobs, target: Target, classes: int, attacks: Mapping[str, Attack], results: Mapping[str, Attacked]
) -> Findings:
    """Probe some samples, after the suite has run. What the answer is known for is not asked again.

    A sample without a faint gradient is asked one of the three cross-entropies; what is broken within 2 eps can be
    broken anywhere.
    """
    chosen = spread(len(target.x))
    some = target.keep(chosen)
    looks, look_cost = jobs.run("probe outputs", partial(_part, some), len(some.x), _COLUMNS, "probe")
    costs, probes = [look_cost], _probes(some)

    def left(name: str, rows: Tensor) -> Tensor:
        """(n,) bool, the probe leaves it; false where `rows` (n,) is."""
        attack, aimed = probes[name]
        found = attacked.run(jobs, f"probe {name!r}", attack, aimed.keep(rows), "probe")
        costs.append(_share(found.cost, rows))
        return torch.zeros_like(rows).masked_scatter(rows, found.robust)

    every, faint = torch.ones(len(some.x), dtype=torch.bool), looks["literal"] < FAINT
    robust = {name: left(name, every) for name in ("fgsm", "log-odds", "margin", "half", "double")}
    robust |= {name: torch.where(faint, left(name, faint), robust["log-odds"]) for name in ("cross-entropy", "literal")}
    robust["unbounded"] = left("unbounded", robust["double"])
    worst = target.correct & torch.stack([one.robust for one in results.values()]).all(0)
    black = {name for name, attack in attacks.items() if is_black_box(attack)}
    only, questioned = None, 0
    if white := [_without_square(results[name]) for name in attacks if name not in black]:
        unbroken = target.correct & torch.stack(white).all(0)
        if black or any("square" in one.stages for one in results.values()):
            broken = ~worst
        else:
            unbroken = unbroken[chosen]
            probes["square"] = (
                partial(square, norm=target.norm, eps=target.eps, queries=QUERIES, bounds=target.bounds), some
            )  # fmt: skip
            broken = ~left("square", unbroken)
        only, questioned = int((unbroken & broken).sum()), len(unbroken)
    total = Cost(*(sum(values) for values in zip(*(vars(cost).values() for cost in costs), strict=True)))
    return Findings(robust, worst[chosen], looks, only, questioned, total, rate(target.correct), len(target.x), classes)


def spread(samples: int) -> Tensor:
    """At most SAMPLES indices, evenly over 0..samples-1: data sorted by class are probed in every class."""
    return torch.arange(min(samples, SAMPLES)) * samples // max(min(samples, SAMPLES), 1)


def _share(cost: Cost, rows: Tensor) -> Cost:
    """The cost of a probe of the chosen rows (n,), per sample of all n."""
    share = rows.double().mean().item() if len(rows) else 0.0
    return Cost(cost.forward * share, cost.backward * share, cost.seconds)


def _without_square(result: Attacked) -> Tensor:
    """What is robust to the attack without its black-box stage, (N,) bool."""
    return result.robust | result.stages["square"] if "square" in result.stages else result.robust


def _probes(target: Target) -> dict[str, tuple[Attack, Target]]:
    """name -> (attack, what it attacks: another ball for some)."""
    given = {"norm": target.norm, "bounds": target.bounds}

    def ascent(eps: float, loss, steps: int = STEPS, norm: float = target.norm) -> tuple[Attack, Target]:
        settings = {"norm": norm, "eps": eps, "steps": steps, "step_size": 2.5 * eps / steps, "loss": loss}
        return partial(pgd, bounds=target.bounds, **settings), replace(target, eps=eps, norm=norm)

    eps, bounds = target.eps, target.bounds
    # The whole box is the same for every norm; without one, far beyond eps and the samples' own distances.
    far = 100 * eps + 10 * _width(target.x)
    everywhere = (far, target.norm) if bounds is None else (bounds[1] - bounds[0], math.inf)
    return {
        "fgsm": (partial(fgsm, eps=eps, **given), target),
        "log-odds": ascent(eps, losses.log_odds),
        "cross-entropy": ascent(eps, cross_entropy),
        "literal": ascent(eps, losses.cross_entropy),
        "margin": ascent(eps, losses.margin),
        "half": ascent(eps / 2, losses.margin, STEPS // 2),
        "double": ascent(eps * 2, losses.margin),
        "unbounded": ascent(everywhere[0], losses.margin, STEPS, everywhere[1]),
    }


def _width(x: Tensor) -> float:
    """The largest distance (l2, not less than linf) of a sample from the samples' mean; 0 of none."""
    return length(x - x.mean(0), 2).max().item() if len(x) else 0.0


#: Per sample. sum, least, most: of the outputs. repeated, split: how far the logits differ relatively from those of
#: further calls, and of a call with half the batch (nan for a batch of one). connected: autograd sees the input in the
#: outputs. literal: length of the cross-entropy's gradient at x. zero, nan: the margin's gradient is 0 at x and at a
#: start in the ball, not finite at one of them. moved: a module was in training mode, or a buffer changed.
_COLUMNS = {
    "sum": torch.float64, "least": torch.float64, "most": torch.float64, "repeated": torch.float64,
    "split": torch.float64, "connected": torch.bool, "literal": torch.float64, "zero": torch.bool,
    "nan": torch.bool, "moved": torch.bool,
}  # fmt: skip


def _part(target: Target, model: nn.Module, rows: slice, generator: torch.Generator):
    with frozen(model):
        return _look(model, target.keep(rows), generator)


def _look(model: nn.Module, target: Target, generator: torch.Generator) -> tuple[Mapping[str, Tensor], Calls]:
    """The model's outputs and gradients on one batch: 6 forwards, and 3 with backwards."""
    x, y = target.x, target.y
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        calls = torch.stack([model(x) for _ in range(REPEATS)]).double()
        middle = len(x) // 2
        halves = torch.cat([model(x[:middle]), model(x[middle:])]).double() if middle else calls[0] * math.nan
    logits = calls[0]
    size = logits.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    start = random_start("uniform", x, target.norm, target.eps, target.bounds, Noise(x, generator))
    literal, connected, _ = _gradient(model, x, y, losses.cross_entropy)
    here, _, bad = _gradient(model, x, y, losses.margin)
    there, _, worse = _gradient(model, start, y, losses.margin)
    training = any(module.training for module in model.modules())
    moved = training or any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    every = torch.ones_like(y, dtype=torch.bool)
    columns = {
        "sum": logits.sum(1), "least": logits.amin(1), "most": logits.amax(1),
        "repeated": (calls - logits).norm(dim=2).amax(0) / size, "split": (halves - logits).norm(dim=1) / size,
        "connected": every & connected, "literal": literal, "zero": (here == 0) & (there == 0), "nan": bad | worse,
        "moved": every & moved,
    }  # fmt: skip
    return columns, Calls((REPEATS + 4) * len(x), 3 * len(x))


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: losses.Loss) -> tuple[Tensor, bool, Tensor]:
    """The l2 length (B,) of the loss's gradient to x, whether there is a path for it, and where it is not finite."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = loss(model(x), y).sum()
        (gradient,) = torch.autograd.grad(value, x, allow_unused=True) if value.requires_grad else (None,)
    if gradient is None:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device), False, torch.zeros_like(y, dtype=torch.bool)
    size = length(gradient.double(), 2)
    return size.nan_to_num(math.inf), True, ~torch.isfinite(size)
