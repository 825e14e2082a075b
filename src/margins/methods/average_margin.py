"""AMR and what it is compared with: its readings, the Lipschitz penalty alone, adversarial training as it was run.

Costs as in `margins.methods.baselines`.
"""

from dataclasses import replace
from functools import partial

from margins import checks
from margins.methods.baselines import CE, at, plain
from margins.methods.craft import PGD
from margins.methods.rows import Ramp, Row, Term
from margins.penalties.amr import AverageMargin, WrongMargin
from margins.penalties.mmr import LinearRegions
from margins.penalties.orthogonality import orthogonality

#: Of a margin term: (its reading, whether the features' margin with rows of length 1 is meant, whether errors have the
#: concave part too). "literal" is Eq. 15; the others the released code's, in the order of `AverageMargin`'s account.
TERMS = {
    "literal": ("truncated", True, False),
    "released": ("hinge", False, True),
    "hinge": ("hinge", False, False),
    "shifted": ("shifted", False, False),
}
#: The attack library of AMR's code divides a gradient by its length, but at least by this (methods C.1).
FLOOR = 1e-6


def lcr(beta: float = 1e-3, doubled: bool = False) -> Row:
    """Standard training + beta x the orthogonality penalty of all layers: AMR's Lipschitz constant regularisation.

    doubled: layers with a bias count twice, as in the authors' code. Costs 3, and the penalty's own (`orthogonality`).
    """
    source = "AMR, section 5.3; watml/rob-margin"
    return replace(plain(), terms=(Term(CE, "clean"), *_orthogonal(beta, doubled)), source=source)


def amr(
    tau: float, coefficient: float = 0.1, beta: float = 1e-3, reading: str = "literal", doubled: bool = False
) -> Row:
    """AMR, Eq. 15: cross-entropy + coefficient x the average margin's loss + beta x the orthogonality penalty.

    reading: of `TERMS`. "literal" is the equation; "released" the code that trained the published MNIST networks (the
    hinge of raw logits, and its concave part linearised once an epoch), "hinge" that of the CIFAR MLP (without it),
    "shifted" that of the CIFAR CNN, which is zero for correct samples. tau, coefficient: see `AverageMargin`. beta 0:
    the margin term alone. Costs 3, and as `lcr`; "released" less than 3 more an epoch.
    """
    kind, normalised, concave = TERMS[checks.choice("reading", reading, TERMS)]
    terms = [Term(CE, "clean"), Term(AverageMargin(tau, kind, normalised), "clean", coefficient)]
    if concave:
        terms.append(Term(WrongMargin(), "parameters", coefficient))
    return Row(None, (*terms, *_orthogonal(beta, doubled)), source="AMR, Eq. 15; watml/rob-margin")


def adv(step_size: float | None = 0.01, steps: int = 40) -> Row:
    """Adversarial training as AMR compares with it: PGD from a random image, shrunk onto the ball. Costs 3 + 2 steps.

    With the published step size, 40 steps reach no further than 0.4 from the start, whatever the ball, and they stand
    still where the gradient of the cross-entropy is shorter than FLOOR. step_size None: a proper one, the threat's own
    step size without a floor.
    """
    floor = 0.0 if step_size is None else FLOOR
    row = at(PGD(start="image", steps=steps, step_size=step_size, floor=floor))
    return replace(row, source="AMR, section 5.3 and appendix F")


def mmr(coefficient: float = 3.0, regions: float = 0.45, boundaries: float = 0.45, ramp: float = 0.1, **more) -> Row:
    """Cross-entropy + MMR's term, which grows to its coefficient in the first share `ramp` of the training.

    more, cost: of `LinearRegions`. Defaults: the released LeNetSmall for MNIST in l2; for CIFAR-10 1.5, 0.2 and 0.2.
    """
    part = LinearRegions(regions, boundaries, **more)
    schedule = Ramp(checks.number("coefficient", coefficient), ramp)
    source = "Croce, Andriushchenko and Hein 2019; max-andr/provable-robustness-max-linear-regions"
    note = "AMR's Table 2 names neither norm nor lambda nor gamma: those of the released l2 model"
    return Row(None, (Term(CE, "clean"), Term(part, "clean", schedule)), source=source, note=note)


def _orthogonal(beta: float, doubled: bool) -> tuple[Term, ...]:
    if not checks.number("beta", beta, 0):
        return ()
    doubled = checks.choice("doubled", doubled, (True, False))
    return (Term(partial(orthogonality, doubled=True) if doubled else orthogonality, "parameters", beta),)
