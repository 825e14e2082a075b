"""The input gradient of the true class's probability along training on the cross-entropy (LMA, appendix A, 8.2.1)."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from margins import methods
from margins.claims import Difference, Evidence
from margins.experiments import Results
from margins.methods import PGD
from margins.papers.emr.networks import cnn
from margins.papers.lma import mnist, short
from margins.penalties.context import Threat
from margins.tables import Along, Columns, table

MNIST, CIFAR = "lma/input-gradient-mnist", "lma/input-gradient-cifar10"
NETS = {MNIST: "MLP", CIFAR: "CNN"}
#: From here on a probability counts as saturated: its gradient vanishes with the scale of the logits alone.
SATURATED = 0.99
KEPT = (1, 2, 3, 5, 10)
ROWS = {"ST": methods.plain(), "AT": methods.at(PGD())}
#: The measures whose product is the length.
PARTS = ("probability", "gradient")

#: Accuracy on clean images, of ten classes, from which on a network has learned anything.
LEARNED = 0.2
_MLP = {"name": "mlp", "inputs": 784, "hidden": (1024,), "classes": 10}
_BALLS = {MNIST: Threat(math.inf, eps=0.1, step_size=0.025, steps=10, ramp=0.3), CIFAR: short.SMALL_THREAT}
_DECLARED = {
    MNIST: ("mnist", _MLP, 10_000, mnist.recipe, {"training": 1.5}),
    CIFAR: ("cifar10", cnn(16), 5_000, lambda epochs: short.recipe(epochs, 0.02, batch_size=50), {"training": 6}),
}
for name, (data, model, size, recipe, minutes) in _DECLARED.items():
    attack = {"attack": "pgd", "steps": 20, "step_size": _BALLS[name].eps / 8}
    table(
        name,
        title=f"Input gradients of probabilities along the training of {NETS[name]}s",
        source="LMA, appendix A, section 8.2.1",
        model=model,
        data=data,
        validation=200,
        threat=_BALLS[name],
        rows=ROWS,
        columns={
            "test": Columns({"PGD-20": attack}, images=1000, weights="last"),
            "along": Along({part: {"measure": part} for part in PARTS}, images=1000, begin=0),
        },
        scales={
            "quick": (200, replace(recipe(2), snapshots=(1, 2))),
            "laptop": (size, replace(recipe(10), snapshots=KEPT)),
        },
        images={"quick": {"test": 20, "along": 20}},
        seeds=(0, 1, 2),
        minutes={"quick": 0.1, "laptop": minutes | {"test": 0.3, "along": 0.3}},
    )


def lengths(results: Results, row: str) -> tuple[np.ndarray, np.ndarray]:
    """(S, E, N) the l2 lengths of the gradients of p_y, p_y times the cross-entropy's; and whether p_y is saturated."""
    probability, gradient = (results.samples(row, f"{part}, along").astype(float) for part in PARTS)
    return probability * gradient, probability >= SATURATED


def learned(results: Results, row: str) -> np.ndarray:
    """(S,) whether the network has learned anything: one that guesses hardly reacts to its input."""
    return results.samples(row, "clean, last").astype(float).mean(1) >= LEARNED


def means(results: Results, row: str) -> dict[str, np.ndarray]:
    """(S, E) their means over all images, and over those that are not saturated at that epoch.

    nan of a seed whose network learned nothing.
    """
    found, saturated = lengths(results, row)
    found = np.where(learned(results, row)[:, None, None], found, np.nan)
    count = (~saturated).sum(2)
    kept = np.where(saturated, 0.0, found).sum(2) / np.where(count, count, np.nan)
    return {"all images": found.mean(2), "not saturated": kept}


def _falls(row: str, name: str) -> Evidence:
    def read(at) -> list[Difference]:
        parts, label = [], f"networks that learn, {NETS[name]}, {row}"
        lost = int((~learned(at[name], row)).sum())
        for which, mean in means(at[name], row).items():
            change, unit = mean[:, -1] - mean[:, 0], "per input unit"
            # what did not learn speaks neither for the claim nor against it
            parts.append(Difference(f"{label}, {which}: length, end - start", change, "<", unit=unit, opposed=lost))
        return parts

    return Evidence((name,), read, since="laptop")


def _on_both(read: Callable[[str], Evidence]) -> tuple[Evidence, ...]:
    return tuple(read(name) for name in NETS)


EVIDENCE = {
    "lma-a2-ce-reduces-input-gradient": _on_both(lambda name: _falls("ST", name)),
    "lma-a2-at-reduces-input-gradient": _on_both(lambda name: _falls("AT", name)),
}
