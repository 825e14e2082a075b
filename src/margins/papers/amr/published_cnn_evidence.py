"""What the claims on the MNIST CNNs of Table 1 are read from: the networks of AMR's authors (section 5.3).

Each network is one, not a method trained several times: the intervals are over images, and a verdict is about these
weights. Robust accuracies are the worst case over all attacks but WEAK, on the images that all of those saw; labels
give the paper's attack beside it. Of networks without published weights the claims are read from `networks`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from margins.claims import Check, Difference, Evidence, Missing, published
from margins.experiments import Results
from margins.papers.amr.published_cnn import BUDGET, EPS, NAME, NETWORKS, PRINTED_EPS, distances, robust, row, worst

PAPER, OTHERS = "paper's attack", Missing("MLP; CIFAR-10 models")
#: Beside parts that are read from networks trained here.
WHOSE = "the authors' CNN"
#: How far a layer's spectral norm may be from 1 to be called close to it.
CLOSE = 0.2


def _of_images(label: str, images: np.ndarray, relation: str, delta: float = 0.0, unit: str = "points") -> Difference:
    """The mean of one number an image, of given weights."""
    return Difference(
        f"{WHOSE}: {label}",
        np.array([images.mean()]),
        relation,
        delta,
        unit=unit,
        images=images,
        resolution=100 / len(images) if unit == "points" else 0.0,
        these_weights=True,
    )


def _points(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(N,) difference of two shares an image, in points, on the images that both have."""
    seen = min(len(ours), len(theirs))
    return 100.0 * (ours[:seen].astype(float) - theirs[:seen])


def _lead(results: Results, one: str, other: str, eps: float, relation: str, delta: float = 0.0) -> Difference:
    """Robust accuracy of one network minus that of another, in the worst case."""
    label = f"{one} - {other}, eps {eps}, worst case"
    if eps in BUDGET[PAPER][1]:
        paper = _points(*(robust(results, network, PAPER, eps) for network in (one, other))).mean()
        label += f" (by the paper's attack {paper:+.1f})"
    return _of_images(label, _points(worst(results, one, eps), worst(results, other, eps)), relation, delta)


def _longer(results: Results, one: str, other: str) -> Difference:
    ways = distances(results, one) - distances(results, other)
    return _of_images(f"{one} - {other}, mean distance by minimum-norm attacks", ways, ">", unit="input units")


def _printed(network: str) -> float:
    """The robust accuracy that Table 1 prints for this network at the largest eps, in per cent."""
    table = published("amr", "table1")
    (number,) = table.query("dataset == 'MNIST' and model == 'CNN' and method == @network")[f"pgd_eps{PRINTED_EPS}"]
    return float(number)


def _as_printed(what: str, kept: Callable[[Results, str], np.ndarray]):
    def read(results: Results) -> list[Difference]:
        return [
            _of_images(
                f"{network}, eps {PRINTED_EPS}, {what}: measured - printed",
                100.0 * kept(results, network) - _printed(network),
                "within",
                3.0,
            )
            for network in NETWORKS
        ]

    return read


def _approximates(results: Results) -> list[Difference]:
    parts = [
        _of_images(
            f"{network}, eps {eps}: paper's attack - worst case",
            _points(robust(results, network, PAPER, eps), worst(results, network, eps)),
            "<",
            2.0,
        )
        for network in NETWORKS
        for eps in BUDGET[PAPER][1]
    ]
    return parts


def _clean(results: Results) -> list[Difference]:
    ours, theirs = (results.samples(row(network, "no attack"), "correct")[0] for network in ("AMR", "Std"))
    return [_of_images("AMR - Std, clean test accuracy", _points(ours, theirs), "within", 1.0)]


def _unit_norms(results: Results) -> list[Check | Missing]:
    parts: list[Check | Missing] = []
    for network in ("LCR", "AMR"):
        record = results.records[row(network, "no attack")][0]
        norms = np.array([value for name, value in record.metrics.items() if name.startswith("norm of ")])
        far = np.abs(norms - 1).max()
        label = f"{WHOSE}: {network}: largest |spectral norm - 1| of a layer"
        parts.append(Check(label, np.array([far < CLOSE]), far, f"< {CLOSE}", these_weights=True))
    return parts


def _features(results: Results) -> list[Difference | Missing]:
    ours, theirs = (results.samples(row(network, "no attack"), "feature margin")[0] for network in ("AMR", "LCR"))
    margins = _of_images("AMR - LCR, mean margin of the features", ours - theirs, ">", unit="feature units")
    return [_longer(results, "AMR", "LCR"), margins, OTHERS]


def _at(read: Callable[[Results], Sequence[Difference | Check | Missing]]) -> Evidence:
    return Evidence((NAME,), lambda at: read(at[NAME]), fixed="paper")


EVIDENCE = {
    "amr-abs-regularizer-more-robust": _at(lambda results: [_lead(results, "AMR", "Std", eps, ">") for eps in EPS]),
    "amr-s4-penalty-gives-unit-norms": _at(_unit_norms),
    "amr-s4-raises-input-margin-through-features": _at(_features),
    "amr-f3-avg-margin-higher": _at(lambda results: [_longer(results, "AMR", "Std")]),
    "amr-t1-comparable-to-lcr-small-eps": _at(lambda results: [_lead(results, "AMR", "LCR", 0.5, "within", 2.0)]),
    "amr-t1-beats-lcr-large-eps": _at(lambda results: [_lead(results, "AMR", "LCR", eps, ">") for eps in EPS[1:]]),
    "amr-t1-lcr-helps-at-small-eps": _at(lambda results: [_lead(results, "LCR", "Std", 0.5, ">")]),
    "amr-t1-lcr-worse-than-std-at-large-eps": _at(
        lambda results: [_lead(results, "Std", "LCR", 2.0, ">"), Missing("MLP; CIFAR-10 models", exists=True)]
    ),
    "amr-t1-margin-term-needed": _at(lambda results: [_longer(results, "AMR", "LCR")]),
    "amr-t1-avg-margin-highest": _at(lambda results: [_longer(results, "AMR", "LCR"), _longer(results, "LCR", "Std")]),
    "amr-t1-clean-kept-cnn": _at(_clean),
    "amr-t1-numbers-cnn": _at(
        _as_printed(PAPER, lambda results, network: robust(results, network, PAPER, PRINTED_EPS))
    ),
    "amr-t1-cnn-true-robustness": _at(
        _as_printed("worst case", lambda results, network: worst(results, network, PRINTED_EPS))
    ),
    "amr-s53-pgd1000-good-approximation": _at(_approximates),
}
