"""What LMA's claims for a laptop are read from on CIFAR-10: the small network, beside the table on MNIST.

AutoAttack is there the worst case of two of its four attacks.
"""

from collections.abc import Callable

import numpy as np

from margins.claims import Difference, Evidence, Missing
from margins.experiments import Results
from margins.papers.lma.short import LMA, SMALL
from margins.papers.paired import Measure, difference, share, worst

BASELINES = ("AT", "TRADES")
OTHERS = (Missing("MART"), Missing("PMHR-AT"))


def strong(results: Results, row: str) -> np.ndarray:
    """(S, N) in points whether an image withstands both stages of AutoAttack."""
    return worst(results, row, "APGD-CE", "APGD-T")


def pgd(results: Results, row: str) -> np.ndarray:
    return share(results, row, "PGD-20")


def beside_clean(attack: Measure, weigh: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Measure:
    """(S, N) what `weigh` makes of clean and robust accuracy, in points, on the images that the attack saw."""

    def measure(results: Results, row: str) -> np.ndarray:
        robust = attack(results, row)
        return weigh(share(results, row, "clean")[:, : robust.shape[1]], robust)

    return measure


def _over_baselines(name: str, measure: Measure, relation: str) -> Evidence:
    def read(at) -> list[Difference | Missing]:
        found = at[SMALL]
        parts = [difference(f"ResNet-8, {name}", (found, LMA), (found, row), measure, relation) for row in BASELINES]
        return [*parts, *OTHERS]

    return Evidence((SMALL,), read, since="laptop")


EVIDENCE = {
    "lma-abs-gap-reduced": _over_baselines("clean - PGD-20", beside_clean(pgd, np.subtract), "<"),
    "lma-abs-gap-reduced-aa": _over_baselines("clean - APGD", beside_clean(strong, np.subtract), "<"),
    "lma-abs-favourable-balance": _over_baselines(
        "mean of clean and APGD", beside_clean(strong, lambda clean, robust: (clean + robust) / 2), ">"
    ),
}
