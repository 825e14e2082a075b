"""What AMM's claims about CIFAR-10, CIFAR-100 and SVHN are read from: the net that decides first, called LeNet.

The claims are about six nets, so that one can contradict them and not support them. Errors are those of the last
weights on all test images.
"""

import numpy as np

from margins.claims import Difference, Evidence, Missing
from margins.papers.amm.large import OURS, REFERENCE, SETS
from margins.papers.amm.mnist_evidence import deepfool, error
from margins.papers.paired import difference

NET = "LeNet"
OTHERS = Missing("NIN, LiuNet, ResNet-20, ResNet-56, DenseNet-40")


def _error(name: str) -> Evidence:
    def read(at):
        return [difference(f"{NET}, error", (at[name], OURS), (at[name], REFERENCE), error, "<"), OTHERS]

    return Evidence((name,), read)


def _margin(name: str) -> Evidence:
    """Of the mean lengths of DeepFool's perturbations, the logarithm of their ratio."""

    def read(at):
        label = f"{NET}, log ratio of DeepFool's mean distances"
        ours, theirs = (deepfool(at[name], row).mean(1) for row in (OURS, REFERENCE))
        lost = [int(at[name].diverged(row).sum()) for row in (OURS, REFERENCE)]
        ratio = np.log(ours / theirs)
        part = Difference(label, ratio, ">", pool=(name, label), failed=lost[0], opposed=lost[1])
        return [part, Missing("FMN"), OTHERS]

    return Evidence((name,), read)


EVIDENCE = {
    f"amm-t{number}-{claim}": evidence(images.experiment(NET))
    for number, images in enumerate(SETS.values(), 4)
    for claim, evidence in (("beats-reference", _error), ("margin-larger", _margin))
}
