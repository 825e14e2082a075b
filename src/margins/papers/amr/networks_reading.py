"""How the tables of AMR's networks are read: measures of a row an image, and evidence network by network."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import kendalltau

from margins.claims import Check, Difference, Evidence, Missing, published
from margins.experiments import Results, find
from margins.papers.amr.defences import CONVNET, LENET, SMALL, SMALL_CIFAR
from margins.papers.amr.networks import (
    ATTACK,
    CIFAR,
    CIFAR_CNN,
    CIFAR_LR,
    CIFAR_MLP,
    CNN,
    LR,
    MARGIN,
    MLP,
    MNIST,
    RACE,
    Images,
    at_eps,
)
from margins.papers.paired import Measure, difference, worst

if TYPE_CHECKING:
    import pandas as pd

STD, LCR, EQUATION, RELEASED = "Std", "LCR", "AMR, Eq. 15", "AMR, released"
#: What a claim about AMR must hold for: its equation, and the code that ran it.
AMR = (EQUATION, RELEASED)
#: A network's name in labels, and its images.
NETS: dict[str, tuple[str, Images]] = {
    LR: ("MNIST LR", MNIST),
    MLP: ("MNIST MLP", MNIST),
    CNN: ("MNIST CNN", MNIST),
    CIFAR_LR: ("CIFAR LR", CIFAR),
    CIFAR_MLP: ("CIFAR MLP", CIFAR),
    CIFAR_CNN: ("CIFAR CNN", CIFAR),
    LENET: ("LeNet", MNIST),
    CONVNET: ("ConvNet", CIFAR),
    SMALL: ("LeNetSmall, MNIST", MNIST),
    SMALL_CIFAR: ("LeNetSmall, CIFAR-10", CIFAR),
}
UNITS, ESTIMATE = "input units", "estimate"
#: A network that is right less than this times as often as in the end has hardly begun to learn.
BEGUN = 0.5
#: The paper's names of the models.
MODELS = {"mlp": "MLP", "cnn": "CNN", "lenet": "LeNet", "convnet": "ConvNet", "lenet-small": "LeNetSmall"}
Part = Difference | Check | Missing
Read = Callable[[str, Images, Results], Sequence[Part]]


def printed(table: str, name: str) -> "pd.DataFrame":
    """The lines of "table1" or "table2" of the paper that are about a network, as text, by method."""
    lines, net = published("amr", table), find(name).settings
    data = {"mnist": "MNIST", "cifar10": "CIFAR-10"}[net["data"]]
    return lines[(lines["dataset"] == data) & (lines["model"] == MODELS[net["model"]["name"]])].set_index("method")


def as_printed(row: str) -> str:
    """The method of the paper that a row is a version of."""
    return row.split(",")[0]


def count(name: str, scale: str, column: str) -> int:
    """How many images a table's column looks at."""
    declared = find(name)
    return declared.scales[scale]["parts"].get(column, declared.parts[column])["images"]


def over(names: Sequence[str], read: Read) -> tuple[Evidence, ...]:
    """One evidence a network: what read(label, images, results) says of it. What no laptop trains is for a GPU."""

    def of(name: str) -> Evidence:
        since = "quick" if "laptop" in find(name).scales else "gpu"
        return Evidence((name,), lambda at: read(*NETS[name], at[name]), since=since)

    return tuple(map(of, names))


def both(*reads: Read) -> Read:
    """What all of these say."""
    return lambda *given: [part for read in reads for part in read(*given)]


def kept(results: Results) -> list[int]:
    """The epochs that were looked at along the training."""
    return list(results.records[STD][0].config["recipe"]["snapshots"])


def epochs(results: Results, *rows: str) -> list[int]:
    """Those of `kept` at which these rows, by default standard training, are `BEGUN`, on training images, in all seeds.

    Before, a network puts nearly all images into one class: then it has no boundary, or one far from all images, and
    what falls afterwards is the distance to the first one.
    """
    right = [(results.samples(row, "gap, along, train") > 0).mean(2) for row in rows or (STD,)]
    begun = np.min([(one >= BEGUN * one[:, -1:]).all(0) for one in right], axis=0)
    return [epoch for epoch, known in zip(kept(results), begun, strict=True) if known]


def estimated(results: Results) -> list[int]:
    """The two epochs at which the paper's estimate was made: the first that was looked at, and the last."""
    config = next(record.config for record in results.records[STD] if record.config.get("part") == ESTIMATE)
    later = [epoch for epoch in config["recipe"]["snapshots"] if epoch >= config.get("begin", 1)]
    return [later[0], later[-1]]


def along(
    results: Results, row: str, what: str = RACE, split: str = "test", at: Sequence[int] | None = None
) -> np.ndarray:
    """(S, E, N) signed margins by Race, or another column, at the epochs `at`, by default the row's own `epochs`.

    nan where a seed diverged. The "estimate" was made at two epochs. An attack that found nothing counts as its longest
    way.
    """
    found = results.samples(row, f"{what}, along" + ", train" * (split == "train")).astype(float)
    if what != ESTIMATE:
        found = found[:, [kept(results).index(epoch) for epoch in (epochs(results, row) if at is None else at)]]
    longest = np.abs(found[np.isfinite(found)]).max(initial=0.0)
    return np.where(np.isinf(found), np.sign(found) * longest, found)


def last(what: str = RACE) -> Measure:
    """(results, row) -> (S, N), |m| of test images at the last epoch: what AMR's average margin is the mean of."""
    return lambda results, row: np.abs(along(results, row, what, at=kept(results)[-1:])[:, -1])


def robust(eps: float) -> Measure:
    """(results, row) -> (S, N), in points whether an image withstands PGD on the margin and Race within eps."""

    def measure(results: Results, row: str) -> np.ndarray:
        withstood = results.samples(row, f"{at_eps(MARGIN, eps)}, last").astype(float)
        far = results.samples(row, f"{RACE} distance, last")[:, : withstood.shape[1]]
        return 100.0 * np.minimum(withstood, np.where(np.isnan(far), np.nan, far > eps))

    return measure


def attacked(eps: float) -> Measure:
    """The same under the paper's attack, on the images that it saw."""
    return lambda results, row: worst(results, row, f"{at_eps(ATTACK, eps)}, last")


def clean(results: Results, row: str) -> np.ndarray:
    """(S, N) in points whether a test image is classified correctly."""
    return worst(results, row, "clean, last")


def distance(results: Results, row: str, weights: str = ", last") -> np.ndarray:
    """(S, N) Race's way to a wrong class, 0 of a wrong image; with weights "" of those that early stopping chose."""
    found = results.samples(row, f"{RACE} distance{weights}").astype(float)
    return np.where(np.isinf(found), found[np.isfinite(found)].max(initial=0.0), found)


def seeds(label: str, values: np.ndarray, relation: str, delta: float = 0.0, unit: str = UNITS, step=0.0) -> Difference:
    """A number a seed, nan of those that diverged; step: its resolution."""
    lost = int(np.isnan(values).sum())
    return Difference(label, values, relation, delta, unit=unit, resolution=step, failed=lost)


def trend(label: str, results: Results, curve: np.ndarray, relation: str) -> Difference:
    """Kendall's tau of a curve (S, E) with the epoch."""
    at = epochs(results)
    pairs = len(at) * (len(at) - 1) / 2
    taus = np.array([kendalltau(at, one).statistic for one in curve])
    return seeds(f"{label}, against the epoch", taus, relation, unit="Kendall's tau", step=2 / pairs)


def leads(
    ones: Sequence[str],
    other: str,
    budgets: Callable[[Images], Sequence[float]],
    relation: str = ">",
    delta: float = 0.0,
) -> Read:
    """Robust accuracy of each of `ones` minus that of `other`, at the budgets of a data set, the paper's beside."""

    def read(label: str, images: Images, results: Results) -> list[Difference]:
        found = []
        for row in ones:
            for eps in budgets(images):
                part = difference(f"{label}, eps {eps}", (results, row), (results, other), robust(eps), relation, delta)
                if eps in images.attacked:
                    apart = np.nanmean(attacked(eps)(results, row)) - np.nanmean(attacked(eps)(results, other))
                    part = replace(part, label=f"{part.label} (by the paper's attack {apart:+.1f})")
                found.append(part)
        return found

    return read


def compared(
    pairs: Sequence[tuple[str, str]],
    what: str,
    measure: Measure,
    relation: str = ">",
    delta: float = 0.0,
    unit: str = UNITS,
) -> Read:
    """`measure` of the first row of each pair minus that of the second."""

    def read(label: str, images: Images, results: Results) -> list[Difference]:
        return [
            difference(f"{label}, {what}", (results, a), (results, b), measure, relation, delta, unit=unit)
            for a, b in pairs
        ]

    return read
