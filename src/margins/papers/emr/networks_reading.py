"""How EMR's tables of the MLP and the CNN are read: measures of a row by seed and image, the best of several rows.

A margin is the effective one of the last weights, in l2, on clean images, of those that are classified correctly: the
paper says the latter of one figure only, and its margins on training images do not fit each other (methods J.1-9).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from margins.claims import Difference, Evidence, Missing, published
from margins.experiments import Results, find
from margins.papers import paired
from margins.papers.emr.networks import CNN, DECAY, MLP, MORE, QUARTER, named
from margins.papers.paired import Measure, difference, worst

if TYPE_CHECKING:
    import pandas as pd

UNITS = "input units"
#: The name of a network in labels, and its attack.
NETS = {
    MLP: ("MLP", "PGD-20"),
    MORE: ("MLP", "PGD-20"),
    CNN: ("CNN", "PGD-10"),
    QUARTER: ("quarter CNN", "PGD-10"),
}
#: Below it, in %, a row has collapsed, and its margins are of few images.
FLOOR = 50.0
Part = Difference | Missing
Read = Callable[[str, Results], Sequence[Part]]


def printed(name: str) -> "pd.DataFrame":
    """The lines of Table 1 or 2, as text, by the label of the row that they are about."""
    lines = published("emr", "table1" if name in (MLP, MORE) else "table2")
    labels = [
        named(method.split("_")[0], float(decay))
        for method, decay in zip(lines["method"], lines["lambda_wd"], strict=True)
    ]
    return lines.set_axis(labels).rename(columns={"pgd20": "pgd", "pgd10": "pgd"})


class Collapsed(Exception):
    """All rows of some methods have collapsed or diverged, so that nothing can be compared with their best."""


def over(names: Sequence[str], read: Read) -> tuple[Evidence, ...]:
    """One evidence a network: what read(its table's name, results) says. The CNN is for a GPU."""

    def known(name: str, results: Results) -> Sequence[Part]:
        try:
            return read(name, results)
        except Collapsed as error:
            return [Missing(f"{NETS[name][0]}: {error}")]

    def of(name: str) -> Evidence:
        since = "quick" if "laptop" in find(name).scales else "gpu"
        return Evidence((name,), lambda at: known(name, at[name]), since=since)

    return tuple(map(of, names))


def decided(net: str, method: str) -> str:
    """The row of a method at the weight decay at which methods are compared."""
    return named(method, DECAY[net])


def method(row: str) -> str:
    """What a row is of, without its weight decay."""
    return row.rpartition(", ")[0]


def of(results: Results, *methods: str) -> list[str]:
    """The rows of methods that did not collapse in any seed, nor diverge."""
    rows = [row for row in results.records if method(row) in methods]
    return [row for row in rows if not results.diverged(row).any() and (clean(results, row).mean(1) > FLOOR).all()]


def best(results: Results, methods: Sequence[str], measure: Measure) -> str:
    """Of the rows of these methods, that with the largest mean: what the claims call their best weight decay.

    It is chosen by the same images that it is then judged on, in favour of whom it stands against. Raises Collapsed.
    """
    if not (rows := of(results, *methods)):
        raise Collapsed(f"no row of {' or '.join(methods)} that has not collapsed")
    return max(rows, key=lambda row: float(measure(results, row).mean()))


def clean(results: Results, row: str) -> np.ndarray:
    """(S, N) in points whether an image is classified correctly."""
    return worst(results, row, "clean, last")


def robust(results: Results, row: str) -> np.ndarray:
    """(S, N) in points whether an image withstands the paper's PGD."""
    return worst(results, row, "PGD, last")


def strong(results: Results, row: str) -> np.ndarray:
    """(S, N) in points whether an image withstands PGD on the margin and Race, on the images that those saw."""
    eps = results.experiment.settings["threat"]["eps"]
    far = results.samples(row, "Race distance, last") > eps
    return 100.0 * np.minimum(results.samples(row, "margin PGD, last").astype(float), far)


def margins(results: Results, row: str, split: str = "test") -> np.ndarray:
    """(S, E, N) effective margins at the epochs that were looked at."""
    return results.samples(row, "effective, along" + ", train" * (split == "train")).astype(float)


def average(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of those above 0: margins of images that are right."""
    right = values > 0
    return np.where(right, values, 0.0).sum(-1) / np.maximum(right.sum(-1), 1)


def margin(results: Results, row: str, split: str = "test") -> np.ndarray:
    """(S,) the mean effective margin of correct images at the last epoch."""
    return average(margins(results, row, split)[:, -1])


def seeds(label: str, values: np.ndarray, relation: str, delta: float = 0.0, unit: str = UNITS) -> Difference:
    """As paired.seeds, of margins where nothing else is said."""
    return paired.seeds(label, values, relation, delta, unit)


def wider(label: str, results: Results, one: str, other: str, delta: float = 0.0, split: str = "test") -> Difference:
    """The mean margin of a row minus that of another."""
    apart = margin(results, one, split) - margin(results, other, split)
    return seeds(f"{label}, {one} - {other}, margin on {split} images", apart, ">", delta)


def stronger(
    net: str, results: Results, one: str, other: str, relation: str = ">", delta: float = 0.0, measure: Measure = robust
) -> Difference:
    """Robust accuracy of a row minus that of another, by the paper's attack."""
    label, attack = NETS[net]
    name = f"{label}, {attack if measure is robust else 'strong attack'}"
    return difference(name, (results, one), (results, other), measure, relation, delta)
