"""AutoAttack, version "standard": four attacks that fail for different reasons, each on what the ones before left over.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
(2020): Auto-PGD on the cross-entropy, Auto-PGD with target classes, FAB with target classes, Square.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from margins import checks
from margins.attacks.apgd import apgd, apgd_t
from margins.attacks.fab import fab_t
from margins.attacks.found import Bounds, Calls, Found, InBall, Nearest, attacking
from margins.attacks.geometry import length
from margins.attacks.square import square

#: The targets of APGD-T and FAB-T.
TARGETS = 9


@dataclass(frozen=True, eq=False)
class AutoAttacked(InBall):
    """Of AutoAttack: x_adv of the first stage that broke the sample; x where none did.

    stages: name -> (B,) bool, the samples that this stage broke; none of them is in two stages, and what was
    misclassified from the start is in none.
    spent: name -> calls of this stage; `calls` is their sum and the first look at x.
    """

    stages: dict[str, Tensor]
    spent: dict[str, Calls]


def autoattack(
    model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    eps: float,
    steps: int = 100,
    queries: int = 5000,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> AutoAttacked:
    """AutoAttack standard in the ball of radius eps (norm 2 or math.inf, input units): what it can't break is robust.

    x (B, ...) in `bounds`, y (B,) int64. The stages are "apgd-ce", "apgd-t", "fab-t" (`steps` steps each, the last two
    for each of at most 9 target classes) and "square" (`queries` forwards). generator: None is seed 0. Costs for each
    sample that survives 19 x `steps` forwards and backwards, FAB's checks and `queries` forwards; less for one that is
    solved on the way. Raises MarginsError for bad input.
    """
    norm, eps, bounds = checks.norm(norm, (2, math.inf)), checks.number("eps", eps, 0), checks.box(bounds)
    checks.whole("steps", steps, 1)
    checks.whole("queries", queries, 1)
    checks.generator(generator)
    # One seed after the other from one generator: the stages' random starts differ.
    given = {"norm": norm, "bounds": bounds, "generator": generator or torch.Generator().manual_seed(0)}
    attacks: dict[str, Callable[..., Found]] = {
        "apgd-ce": partial(apgd, eps=eps, steps=steps, **given),
        "apgd-t": partial(apgd_t, eps=eps, steps=steps, targets=TARGETS, **given),
        "fab-t": partial(fab_t, eps=eps, steps=steps, targets=TARGETS, **given),
        "square": partial(square, eps=eps, queries=queries, **given),
    }
    with attacking(model, x, y, bounds) as (oracle, _, wrong):
        x = x.detach()
        x_adv, success, calls = x.clone(), wrong.clone(), oracle.calls
        stages = {name: torch.zeros_like(wrong) for name in attacks}
        spent = dict.fromkeys(attacks, Calls())
        for name, attack in attacks.items():
            left = (~success).nonzero()[:, 0]
            if not len(left):  # not every model takes an empty batch
                break
            found = attack(model, x[left], y[left])
            hit = found.success & (found.distance <= eps) if isinstance(found, Nearest) else found.success
            broken = left[hit]
            x_adv[broken], success[broken], stages[name][broken] = found.x_adv[hit], True, True
            spent[name] = found.calls
            calls += found.calls
    return AutoAttacked(x_adv, success, length(x_adv - x, norm), calls, norm, eps, stages, spent)
