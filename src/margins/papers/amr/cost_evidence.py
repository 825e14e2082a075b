"""What the claims on the cost of AMR's training are read from (section 5.3)."""

import numpy as np

from margins.claims import Difference, Evidence, Missing
from margins.experiments import Results
from margins.papers.amr.cost import ADV, AMR, DEFENSE, NAME, NETS, WHOLE

#: What "roughly the same" is read as, over plain training; and the range of what a step of PGD may take.
SAME, SLOPE = 1.5, (0.5, 1.2)
#: Those that the paper compares with the other defences.
DEFENDED = ("LeNet", "CIFAR ConvNet")


def over_plain(results: Results, net: str, way: str) -> np.ndarray:
    """The time of a way's step over that of a plain one, a number a seed, (S,)."""
    return results.metric(net, f"{way}: time over plain")


def slope(results: Results, net: str) -> np.ndarray:
    """What a step of PGD adds to adversarial training, in plain steps, by least squares (S,)."""
    return np.polyfit(list(ADV), np.stack([over_plain(results, net, name) for name in ADV.values()]), 1)[0]


def _longer(*pairs: tuple[str, str]) -> Evidence:
    """That the first of each pair takes longer than the second, on the networks of Table 2."""

    def read(at) -> list[Difference]:
        parts = []
        for net in DEFENDED:
            took = {way: np.log(over_plain(at[NAME], net, way)) for pair in pairs for way in pair}
            parts += [Difference(f"{net}: log of {a} over {b}", took[a] - took[b], ">") for a, b in pairs]
        return parts

    return Evidence((NAME,), read)


def _slopes(at) -> list[Difference]:
    return [
        Difference(f"{net}: a step of PGD", slope(at[NAME], net), relation, bound, unit="plain steps")
        for net in DEFENDED
        for relation, bound in zip("><", SLOPE, strict=True)
    ]


def _same(at) -> list[Difference | Missing]:
    parts = [
        Difference(f"{net}: {AMR} over plain", over_plain(at[NAME], net, AMR), "<", SAME, unit="plain steps")
        for net in NETS
    ]
    return [*parts, Missing("CIFAR CNN")]


EVIDENCE = {
    "amr-s53-cheaper-than-adv-and-dd": _longer((ADV[40], AMR), (DEFENSE, AMR)),
    "amr-s53-adv-costs-pgd-steps": Evidence((NAME,), _slopes),
    "amr-s53-dd-slower-than-adv": _longer((WHOLE, ADV[40]), (WHOLE, ADV[10])),
    "amr-s53-amr-costs-like-std": Evidence((NAME,), _same),
}
