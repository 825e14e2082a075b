"""Attacks: pure functions of (model, x, y) that look for misclassified points near x, one file a family.

    within a budget eps    fgsm, pgd, cw, apgd, apgd_t, square, spsa, autoattack                   return InBall
    minimum norm           deepfool, race, fab_t                                                   return Nearest

All promise: inside the box, and inside the ball to the rounding of x + eps (1e-6 in the box (0, 1)); never worse than
no attack; the same for a given generator, in whatever batches and order the samples come, and on CPU and GPU to
rounding; the model (modes, `requires_grad`, gradients, BatchNorm statistics) as it was, after an exception too. x is
(B, ...) float32 or float64 within `bounds` ((0, 1); None for no box), y (B,) int64. Without a generator random numbers
are those of seed 0, in every call. Bad input raises MarginsError before any work is done.
"""

from margins.attacks.apgd import apgd, apgd_t
from margins.attacks.autoattack import AutoAttacked, autoattack
from margins.attacks.deepfool import Step, Traced, deepfool
from margins.attacks.fab import fab_t
from margins.attacks.found import Calls, Found, InBall, Nearest
from margins.attacks.pgd import cw, fgsm, pgd
from margins.attacks.race import race
from margins.attacks.spsa import spsa
from margins.attacks.square import square

__all__ = [
    "AutoAttacked",
    "Calls",
    "Found",
    "InBall",
    "Nearest",
    "Step",
    "Traced",
    "apgd",
    "apgd_t",
    "autoattack",
    "cw",
    "deepfool",
    "fab_t",
    "fgsm",
    "pgd",
    "race",
    "spsa",
    "square",
]
