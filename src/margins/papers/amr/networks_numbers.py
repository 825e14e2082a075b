"""What the numbers that AMR prints of its networks are read from: the same networks at the paper's scale.

AMR is here the released code, which made the printed numbers, and for the CIFAR CNN its shifted clamp.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from margins.claims import Difference, Evidence
from margins.experiments import Results
from margins.papers.amr.defences import CONVNET, LENET
from margins.papers.amr.networks import CIFAR_CNN, CIFAR_LR, CIFAR_MLP, CNN, LR, MLP, Images
from margins.papers.amr.networks_evidence import TABLE1
from margins.papers.amr.networks_reading import (
    ESTIMATE,
    LCR,
    RELEASED,
    STD,
    UNITS,
    Part,
    Read,
    along,
    as_printed,
    attacked,
    last,
    over,
    printed,
    robust,
    seeds,
)
from margins.papers.paired import difference

SHIFTED = "AMR, shifted"
#: A printed margin is met within this share of it, or this length where that is more.
SHARE, LENGTH = 0.1, 0.02
#: The estimate of the MNIST CNN: where the paper has it, a little wider, and the fall that is still none.
LOW, HIGH, FALL = 0.85, 1.2, 0.05


def ran(results: Results) -> str:
    """The row of the code that made the paper's AMR."""
    return SHIFTED if results.experiment.name == CIFAR_CNN else RELEASED


def accuracies(table: str, others: Sequence[str], delta: float) -> Read:
    """By the paper's attack within the largest budget, minus the print; the worst case of stronger ones beside."""

    def read(label: str, images: Images, results: Results) -> list[Difference]:
        eps, paper, found = images.eps[-1], printed(table, results.experiment.name), []
        for row in (*others, ran(results)):
            told = float(paper.loc[as_printed(row), f"pgd_eps{eps}"])
            part = difference(f"{label}, eps {eps}", (results, row), told, attacked(eps), "within", delta)
            true = np.nanmean(robust(eps)(results, row))
            found.append(replace(part, label=f"{part.label} (in the worst case {true:.1f})"))
        return found

    return read


def _average(label: str, images: Images, results: Results) -> list[Difference]:
    """The mean of the estimate minus the print; Race's beside."""
    paper, found = printed("table1", results.experiment.name), []
    for row in (STD, LCR, ran(results)):
        told = float(paper.loc[as_printed(row), "avg_margin"])
        name, most = f"{label}, mean of the estimate", max(SHARE * told, LENGTH)
        part = difference(name, (results, row), told, last(ESTIMATE), "within", most, unit=UNITS)
        found.append(replace(part, label=f"{part.label} (by Race {np.nanmean(last()(results, row)):.2f})"))
    return found


def factor(least: float, most: float) -> Read:
    """The released code's mean of the estimate over standard training's, seed by seed, minus the middle of a range."""

    def read(label: str, images: Images, results: Results) -> list[Part]:
        ours, std = (last(ESTIMATE)(results, row).mean(1) for row in (ran(results), STD))
        middle, half = (least + most) / 2, (most - least) / 2
        name = f"{label}, average margin of {ran(results)} over {STD}'s, - {middle:g}"
        return [seeds(name, ours / std - middle, "within", half, "times")]

    return read


def _does_not_fall(label: str, images: Images, results: Results) -> list[Part]:
    """The estimate's means at the two epochs at which it was made, and its change."""
    curve = np.abs(along(results, STD, ESTIMATE)).mean(2)
    middle, half = (LOW + HIGH) / 2, (HIGH - LOW) / 2
    return [
        *(
            seeds(f"{label}, mean of the estimate, {name} epoch, - {middle:g}", curve[:, at] - middle, "within", half)
            for name, at in (("first", 0), ("last", -1))
        ),
        seeds(f"{label}, mean of the estimate, last - first", curve[:, -1] - curve[:, 0], ">", -FALL),
    ]


EVIDENCE: dict[str, tuple[Evidence, ...]] = {
    "amr-t1-numbers-mlp": over((MLP, CIFAR_MLP), accuracies("table1", (STD, LCR), 3.0)),
    "amr-t1-numbers-cnn-cifar": over((CIFAR_CNN,), accuracies("table1", (STD, LCR), 3.0)),
    "amr-t1-numbers-avg-margin": over(TABLE1, _average),
    "amr-t2-dd-adv-numbers": over((LENET, CONVNET), accuracies("table2", (STD, "DD", "Adv"), 4.0)),
    "amr-f3-lr-mlp-factor-2-to-3": over((LR, MLP, CIFAR_LR, CIFAR_MLP), factor(1.8, 3.3)),
    "amr-f3-cnn-factor-1.5-to-2": over((CNN, CIFAR_CNN), factor(1.35, 2.2)),
    "amr-f6-cnn-exception": over((CNN,), _does_not_fall),
}
