"""What the numbers of EMR's Tables 1 and 2 are read from: the same rows at the paper's scale."""

import numpy as np

from margins.claims import Difference
from margins.experiments import Results
from margins.papers.emr.networks import CNN, MLP, MORE
from margins.papers.emr.networks_reading import (
    NETS,
    Read,
    clean,
    margin,
    over,
    printed,
    robust,
    seeds,
    strong,
)

#: A printed margin is met within this share of it.
SHARE = 0.1


def numbers(of_attack: float, of_clean: float) -> Read:
    """Each printed row: accuracy by the paper's attack and clean, in points, and mean test margin, minus the print.

    Both are of all test images, so that only seeds differ.
    """

    def read(net: str, results: Results) -> list[Difference]:
        found, (label, attack), paper = [], NETS[net], printed(net)
        for row in (row for row in paper.index if row in results.records):
            told = paper.loc[row]
            by_attack, right, width = (float(told[column]) for column in ("pgd", "clean", "m_test"))
            name = f"{label}, {row}"
            true = f"(in the worst case {np.nanmean(strong(results, row)):.1f})"
            found += [
                seeds(
                    f"{name} - {by_attack:g}, {attack} {true}",
                    robust(results, row).mean(1) - by_attack, "within", of_attack, "points",
                ),
                seeds(f"{name} - {right:g}, clean", clean(results, row).mean(1) - right, "within", of_clean, "points"),
                seeds(f"{name} - {width:g}, test margin", margin(results, row) - width, "within", SHARE * width),
            ]  # fmt: skip
        return found

    return read


EVIDENCE = {
    "emr-t1-numbers": over((MLP, MORE), numbers(3.0, 0.5)),
    "emr-t2-numbers": over((CNN,), numbers(2.0, 2.0)),
}
