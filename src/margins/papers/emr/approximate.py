"""EMR's approximation beside the exact penalty on the MLP and the CNN, each at several coefficients (section 4).

The paper's rows are in a supplement that is not available: coefficients and temperatures are ours. Of the rows of a
kind that counts which withstands PGD best on held-out images (`chosen`), never on test images.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from margins import methods
from margins.claims import Difference, Evidence
from margins.experiments import Results
from margins.methods import Row
from margins.models.heads import Head
from margins.papers import paired
from margins.papers.emr.networks import AT, CNN, DECAY, FULL, MLP, PRINTED, ROUTE, decayed, register
from margins.papers.emr.networks_reading import NETS, robust, seeds
from margins.papers.paired import difference
from margins.tables import Along

OF_MLP, OF_CNN = "emr/mlp-approximate", "emr/cnn-approximate"
NET = {OF_MLP: MLP, OF_CNN: CNN}
#: The paper's temperature of its large networks, which weighs the logits nearly alike; and the softmax's own.
WARM, SOFT = 40.0, 1.0
#: What the approximation is measured at, on all rows.
TEMPERATURES = (0.01, 0.1, 1.0, 10.0, 100.0, 1e6)


class Kind(NamedTuple):
    """Rows that differ in their coefficient alone: what the penalty is beside, its temperature, None if exact."""

    beside: str
    temperature: float | None
    centred: bool = False

    def __str__(self) -> str:
        how = "EMR" if self.temperature is None else f"Approx-EMR, t = {self.temperature:g}"
        return f"{self.beside}+{how}{', centred' if self.centred else ''}"

    def row(self, net: str, coefficient: float) -> Row:
        before = AT if self.beside == "AT" else methods.plain()
        if self.temperature is None:
            found = methods.exact_emr(before, coefficient, route=ROUTE[net])
        else:
            found = methods.emr(before, coefficient, self.temperature)
        return replace(found, head=Head("centred")) if self.centred else found


def coefficients(net: str) -> dict[Kind, tuple[float, ...]]:
    """Of the exact penalty the printed one and others about it; of the approximation those that weigh as much.

    With K logits whose gradients are as long as each other and at right angles the approximation is a K-th of the exact
    penalty where the softmax is sure, and a K^2-th of it where all weights are alike.
    """
    st, at = PRINTED[net]
    return {
        Kind("ST", None): (0.3 * st, st, 3 * st),
        Kind("ST", SOFT): (3 * st, 10 * st, 30 * st),
        Kind("ST", WARM): (30 * st, 100 * st, 300 * st),
        Kind("AT", None): (at, 3 * at),
        Kind("AT", SOFT): (10 * at, 30 * at),
        Kind("AT", WARM): (100 * at, 300 * at),
        Kind("AT", WARM, centred=True): (100 * at,),
    }


def named(kind: Kind, coefficient: float) -> str:
    return f"{kind}, {coefficient:.3g}"


def rows(net: str) -> dict[str, Row]:
    """Of all kinds, and standard and adversarial training, where the coefficient is 0; all at one weight decay."""
    penalised = {
        named(kind, value): kind.row(net, value) for kind, values in coefficients(net).items() for value in values
    }
    every = {"ST": methods.plain(), "AT": AT} | penalised
    return {label: decayed(row, DECAY[net]) for label, row in every.items()}


_OF_ROWS = {
    "cosine": {"measure": "cosine"},
    "centred cosine": {"measure": "cosine", "centred": True},
    **{f"approximate, t = {t:g}": {"measure": "approximate", "temperature": t} for t in TEMPERATURES},
}
for name, title, scales, given in (
    (OF_MLP, "an MLP on MNIST", {"laptop": (5000, 10, (1, 5, 10)), "paper": FULL[MLP]}, {"training": 3}),
    (OF_CNN, "a CNN on CIFAR-10", {"paper": FULL[CNN]}, {}),
):
    register(
        name,
        NET[name],
        f"The exact and the approximate penalty of EMR beside each other: {title}",
        "EMR, section 4",
        rows(NET[name]),
        scales,
        more={"rows": Along(_OF_ROWS, images=300, ends=True)},
        **given,
    )


def chosen(results: Results, *kinds: Kind) -> str:
    """The row of these kinds that withstands PGD best on held-out images after the last epoch, mean of the seeds."""
    known = coefficients(NET[results.experiment.name])
    having = [named(kind, value) for kind in kinds for value in known[kind]]
    return paired.chosen(results, having)


def weights(results: Results, row: str) -> np.ndarray:
    """(S,) the mean of what Eq. 5 penalises, on test images, of the last weights."""
    return results.samples(row, "weights, along")[:, -1].astype(float).mean(1)


def cosine(results: Results, row: str, centred: bool = False) -> np.ndarray:
    """(S,) the mean cosine between the gradients of two logits, on test images, of the last weights."""
    return results.samples(row, f"{'centred ' * centred}cosine, along")[:, -1].astype(float).mean(1)


def nearest(results: Results, row: str) -> str:
    """The row of adversarial training with the exact penalty whose gradients are as long as this row's, or nearly."""
    net, exact = NET[results.experiment.name], Kind("AT", None)
    length = np.log(weights(results, row).mean())
    others = [named(exact, value) for value in coefficients(net)[exact]]
    return min(others, key=lambda other: abs(np.log(weights(results, other).mean()) - length))


def _comparable(results: Results) -> list[Difference]:
    """The approximation minus the exact penalty, both at what was chosen for them."""
    net, found = NET[results.experiment.name], []
    for beside, points in (("ST", 5.0), ("AT", 2.0)):
        pair = chosen(results, Kind(beside, SOFT), Kind(beside, WARM)), chosen(results, Kind(beside, None))
        how = (">", -points) if (net, beside) == (CNN, "AT") else ("within", points)
        found.append(difference(" ".join(NETS[net]), *((results, row) for row in pair), robust, *how))
    return found


def _stronger(results: Results) -> list[Difference]:
    net = NET[results.experiment.name]
    pair = chosen(results, Kind("AT", SOFT), Kind("AT", WARM)), chosen(results, Kind("AT", None))
    return [difference(" ".join(NETS[net]), *((results, row) for row in pair), robust, ">")]


def _cosines(results: Results) -> list[Difference]:
    row, label = chosen(results, Kind("AT", WARM)), NETS[NET[results.experiment.name]][0]
    return [
        seeds(f"{label}, {row} - {other}: cosine", cosine(results, row) - cosine(results, other), "<", unit="cosine")
        for other in (nearest(results, row), "AT")
    ]


def _over(names: tuple[str, ...], read: Callable[[Results], list[Difference]]) -> tuple[Evidence, ...]:
    def of(name: str) -> Evidence:
        return Evidence((name,), lambda at: read(at[name]), since="quick" if name == OF_MLP else "gpu")

    return tuple(map(of, names))


EVIDENCE = {
    "emr-s4-cross-terms-lower-cosine": _over((OF_MLP, OF_CNN), _cosines),
    "emr-s4-approx-comparable": _over((OF_MLP, OF_CNN), _comparable),
    "emr-s4-approx-better-cnn-at": _over((OF_CNN,), _stronger),
}
