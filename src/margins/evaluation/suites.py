"""Suites: the attacks of an evaluation, by name, ready to be given to `evaluate`."""

from collections.abc import Callable
from functools import partial

from margins import checks
from margins.attacks.autoattack import autoattack
from margins.attacks.found import Bounds, Found
from margins.attacks.pgd import fgsm, pgd
from margins.attacks.race import race
from margins.attacks.spsa import spsa
from margins.attacks.square import square

#: name -> steps of PGD, steps of Race, steps and queries of AutoAttack's stages
SUITES: dict[str, tuple[int, int, tuple[int, int] | None]] = {
    "quick": (20, 50, None),
    "strong": (40, 100, (50, 1000)),
    "standard": (40, 100, (100, 5000)),
}
#: Attacks that look at the outputs only.
BLACK_BOX = (square, spsa)

Attack = Callable[..., Found]


def suite(name: str, *, norm: float, eps: float, bounds: Bounds = (0.0, 1.0)) -> dict[str, Attack]:
    """The attacks of the suite "quick", "strong" or "standard" at norm (2 or math.inf) and eps (> 0, input units).

    FGSM, PGD on the cross-entropy and PGD on the margin (steps of 2.5 eps / number), Race (minimum norm), and, but for
    "quick", AutoAttack: "standard" is the published one, "strong" has half its steps and a fifth of its queries. Cost
    of a sample that nothing breaks, in forwards with backwards: quick 91, strong 1,131 and 1,000 forwards, standard
    2,081 and 5,000 forwards, and FAB's checks; one that breaks costs a fraction. Raises MarginsError for another name.
    """
    checks.choice("attacks", name, SUITES)
    pgd_steps, race_steps, auto = SUITES[name]
    given = {"norm": norm, "eps": eps, "bounds": bounds}
    ascent = partial(pgd, steps=pgd_steps, step_size=2.5 * eps / pgd_steps, **given)
    attacks: dict[str, Attack] = {
        "FGSM": partial(fgsm, **given),
        "PGD cross-entropy": partial(ascent, loss="cross-entropy"),
        "PGD margin": partial(ascent, loss="margin"),
        "Race": partial(race, norm=norm, steps=race_steps, bounds=bounds),
    }
    if auto is not None:
        attacks["AutoAttack"] = partial(autoattack, steps=auto[0], queries=auto[1], **given)
    return attacks


def is_black_box(attack: Attack) -> bool:
    """Whether a callable is one of BLACK_BOX, or a functools.partial of one."""
    while isinstance(attack, partial):
        attack = attack.func
    return attack in BLACK_BOX
