"""What the claims on LMA-AT are read from at laptop scale: the table on MNIST (LMA, abstract, sections 1, 4.3 and 5.3).

LMA-AT, TRADES and MART stand there with the beta that held-out images chose, of as many candidates each: the papers'
were tuned for other networks and data. The moving average is Algorithm 1's: of the batch before, weighed by tau. It
is judged against both controls: without it at the beta chosen for that, and at what is left of LMA-AT's own.
Baselines are those of the paper's headline; PMHR-AT has no code and no exact formula, so that what is claimed of all
of them can be contradicted here, or stay undecided, but not be supported.
"""

from functools import partial

import numpy as np

from margins.claims import Evidence, Missing
from margins.experiments import Results
from margins.papers import paired
from margins.papers.lma.mnist import NAME
from margins.papers.paired import share

LMA, ALONE, SCALED = "LMA-AT", "LMA-AT, tau 0", "LMA-AT, tau 0, scaled beta"
BASELINES = ("AT", "TRADES", "MART")
OTHERS = Missing("PMHR-AT")
#: How much clean accuracy, in points, may be lost where robustness is gained: the noise of a seed.
SLACK = 0.5
#: Clean accuracy, in %, below which a network has collapsed: one that predicts a single class has about a tenth.
COLLAPSED = 20.0


def collapsed(results: Results, row: str, column: str = "clean") -> np.ndarray:
    """(S,) in which seeds the row predicts hardly more than one class: its gap to any attack is small, for nothing."""
    return 100.0 * results.samples(row, column).mean(1) < COLLAPSED


def gap(results: Results, row: str, *, attack: str) -> np.ndarray:
    """(S, N) clean minus robust accuracy an image, in points."""
    robust = results.samples(row, attack)
    return 100.0 * (results.samples(row, "clean")[:, : robust.shape[1]].astype(float) - robust)


def difference(results: Results, label: str, one: str, other: str, measure, relation: str, delta: float = 0.0):
    """`paired.difference` of two rows of the table, in which a seed that collapsed is lost as one that diverged."""
    return paired.difference(label, (results, one), (results, other), measure, relation, delta, lost=_lost)


def _lost(results: Results, row: str) -> np.ndarray:
    return results.diverged(row) | collapsed(results, row)


def _gaps(attack: str):
    def read(at):
        measure = partial(gap, attack=attack)
        parts = [difference(at[NAME], f"clean - {attack}", LMA, row, measure, "<") for row in BASELINES]
        return [*parts, OTHERS]

    return read


def _balance(at):
    def half(results: Results, row: str) -> np.ndarray:
        return share(results, row, "clean", "AutoAttack")

    parts = [difference(at[NAME], "mean of clean and AutoAttack", LMA, row, half, ">") for row in BASELINES]
    return [*parts, OTHERS]


def _averaging(at):
    def robust(results: Results, row: str) -> np.ndarray:
        return share(results, row, "AutoAttack")

    def clean(results: Results, row: str) -> np.ndarray:
        return share(results, row, "clean")

    return [
        difference(at[NAME], "AutoAttack", LMA, ALONE, robust, ">"),
        difference(at[NAME], "clean", LMA, ALONE, clean, ">", -SLACK),
        difference(at[NAME], "AutoAttack", LMA, SCALED, robust, ">"),
    ]


EVIDENCE = {
    "lma-abs-gap-reduced": Evidence((NAME,), _gaps("PGD-20")),
    "lma-abs-gap-reduced-aa": Evidence((NAME,), _gaps("AutoAttack")),
    "lma-abs-favourable-balance": Evidence((NAME,), _balance),
    "lma-s1-logit-averaging-helps": Evidence((NAME,), _averaging),
}
