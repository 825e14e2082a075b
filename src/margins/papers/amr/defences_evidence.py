"""What AMR's claims about other defences are read from: the tables of `defences` (Table 2)."""

from collections.abc import Sequence

import numpy as np

from margins.claims import Difference, Evidence
from margins.experiments import Results
from margins.papers.amr.defences import CONVNET, LENET, SCRATCH, SMALL, SMALL_CIFAR
from margins.papers.amr.networks import MNIST, Images
from margins.papers.amr.networks_reading import AMR, STD, Part, Read, clean, compared, leads, over, robust, seeds
from margins.papers.paired import Measure, difference

DD, ADV, PROPER = "DD", "Adv", "Adv, proper"
#: Adversarial training counts as published and as it should be.
OTHERS = (DD, ADV, PROPER)
PAIRS = [(row, other) for row in AMR for other in OTHERS]


def _at_all(images: Images) -> Measure:
    """(results, row) -> (S, N), in points, the mean over the budgets of whether an image withstands."""
    return lambda results, row: np.mean([robust(eps)(results, row) for eps in images.eps], axis=0)


def _mean(pairs: Sequence[tuple[str, str]], relation: str, delta: float = 0.0) -> Read:
    def read(label: str, images: Images, results: Results) -> list[Difference]:
        return [
            difference(f"{label}, mean over eps", (results, a), (results, b), _at_all(images), relation, delta)
            for a, b in pairs
        ]

    return read


def _beats_std(label: str, images: Images, results: Results) -> list[Part]:
    parts = leads(AMR, STD, lambda images: images.eps)(label, images, results)
    return parts + leads(AMR, STD, lambda images: images.eps[1:3], ">", 5.0)(label, images, results)


def _behind(label: str, images: Images, results: Results) -> list[Part]:
    """At the least budget and on clean images AMR is behind both."""
    return [
        difference(f"{label}, {what}", (results, other), (results, row), measure, ">")
        for row in AMR
        for other in (DD, ADV)
        for what, measure in (("clean accuracy", clean), (f"eps {images.eps[0]}", robust(images.eps[0])))
    ]


def _clean(label: str, images: Images, results: Results) -> list[Part]:
    most = 1.0 if images is MNIST else 4.0
    pairs = [(row, other) for row in AMR for other in (DD, ADV)]
    return compared(pairs, "clean accuracy", clean, "within", most, "points")(label, images, results)


def _beats_mmr(label: str, images: Images, results: Results) -> list[Part]:
    pairs = [(row, "MMR") for row in AMR]
    parts = compared(pairs, "clean accuracy", clean, ">", 0.0, "points")(label, images, results)
    return parts + leads(AMR, "MMR", lambda images: images.eps)(label, images, results)


def _raises_average(label: str, images: Images, results: Results) -> list[Part]:
    """Deep Defense's gain of the average margin of correct training images, beside those of the least and the 1 %."""
    found = {row: results.samples(row, "DeepFool distance, train, last").astype(float) for row in (DD, STD)}
    gains = {}
    for name, of in (
        ("average", lambda m: np.mean(m[m > 0])),
        ("minimum", np.min),
        ("1 % quantile", lambda m: np.quantile(m, 0.01)),
    ):
        one, other = (
            [of(margins) if np.isfinite(margins).all() else np.nan for margins in found[r]] for r in (DD, STD)
        )
        gains[name] = np.subtract(one, other)
    return [
        seeds(f"{label}, {DD} - {STD}, average margin of correct training images", gains["average"], ">"),
        *(
            seeds(f"{label}, gain of the average - gain of the {name}", gains["average"] - gains[name], ">")
            for name in ("minimum", "1 % quantile")
        ),
    ]


EVIDENCE: dict[str, tuple[Evidence, ...]] = {
    "amr-abs-regularizer-more-robust": over((LENET, CONVNET), leads(AMR, STD, lambda images: images.eps)),
    "amr-s1-margin-defences-raise-average": over((LENET,), _raises_average),
    "amr-t2-beats-std": over((LENET, CONVNET), _beats_std),
    "amr-t2-mnist-best-overall": over((LENET,), _mean(PAIRS, ">")),
    "amr-t2-mnist-behind-at-small-eps": over((LENET,), _behind),
    "amr-t2-cifar-comparable": over((CONVNET,), _mean(PAIRS, "within", 5.0)),
    "amr-t2-clean-comparable": over((LENET, CONVNET), _clean),
    "amr-s53-dd-only-fine-tuning": over((LENET,), _mean([(DD, SCRATCH)], ">")),
    "amr-t2-beats-mmr": over((SMALL, SMALL_CIFAR), _beats_mmr),
}
