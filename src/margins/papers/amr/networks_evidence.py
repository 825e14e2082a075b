"""What AMR's claims about its networks are read from: the tables of `networks`, each network by itself.

Decided are: robust accuracies by the strongest of PGD on the margin and Race, with the paper's attack beside; margins
by Race, out of the predicted class and within [0, 1], and by the paper's own estimate where it was made.
"""

import numpy as np
from scipy.stats import spearmanr

from margins.claims import Difference, Evidence, Missing
from margins.experiments import Results
from margins.papers.amr.networks import CIFAR_CNN, CIFAR_LR, CIFAR_MLP, CNN, LR, MLP, VALIDATION, Images
from margins.papers.amr.networks_reading import (
    AMR,
    LCR,
    STD,
    UNITS,
    Part,
    Read,
    along,
    attacked,
    both,
    clean,
    compared,
    distance,
    epochs,
    last,
    leads,
    over,
    robust,
    seeds,
    trend,
)
from margins.papers.paired import difference

MLPS = (MLP, CIFAR_MLP)
#: The networks of Table 1, and of Figure 3; and those whose average margin is claimed to fall.
TABLE1, ALL = (MLP, CNN, CIFAR_MLP, CIFAR_CNN), (LR, MLP, CNN, CIFAR_LR, CIFAR_MLP, CIFAR_CNN)
FALLING = (MLP, CIFAR_MLP, CIFAR_CNN)
#: The epoch that is called early: the first of LR, the last of the nets' kept ones up to this.
EARLY = 5
#: Test and training error have levelled off where they are within so many points of their last values.
LEVEL = 0.5


def _least(results: Results, row: str, what: str, split: str) -> np.ndarray:
    """(S, E) the minimum margin."""
    return along(results, row, what, split).min(2)


def _average(results: Results, row: str, what: str = "Race", split: str = "test") -> np.ndarray:
    """(S, E) the average margin, of |m|."""
    return np.abs(along(results, row, what, split)).mean(2)


def _change(curve: np.ndarray) -> np.ndarray:
    return curve[:, -1] - curve[:, 0]


def _rises(label: str, images: Images, results: Results) -> list[Part]:
    """The minimum margin: its trend on training images by Race, and by the estimate, of which both ends are known."""
    return [
        trend(f"{label}, minimum margin of training images", results, _least(results, STD, "Race", "train"), ">"),
        seeds(
            f"{label}, minimum of the estimate, last - first", _change(_least(results, STD, "estimate", "test")), ">"
        ),
    ]


def _falls(label: str, images: Images, results: Results) -> list[Part]:
    """The average margin: its trend by Race, its ends by the estimate."""
    return [
        trend(f"{label}, average margin", results, _average(results, STD), "<"),
        seeds(f"{label}, mean of the estimate, last - first", _change(_average(results, STD, "estimate")), "<"),
    ]


def _robustness_falls(label: str, images: Images, results: Results) -> list[Part]:
    """The share of test images with a signed margin above a middle eps, as the signed margins along the way say it."""
    eps = images.eps[1]
    kept = 100.0 * (along(results, STD) > eps).mean(2)
    return [trend(f"{label}, robust accuracy at {eps}", results, kept, "<")]


def _trades(label: str, images: Images, results: Results) -> list[Part]:
    """Clean accuracy and average margin, last minus early."""
    at = epochs(results)
    early = 0 if "LR" in label else max(i for i, epoch in enumerate(at) if epoch <= EARLY)
    margins = along(results, STD)
    right, length = 100.0 * (margins > 0).mean(2), np.abs(margins).mean(2)
    step = 100 / margins.shape[2]
    return [
        seeds(f"{label}, accuracy, last - epoch {at[early]}", right[:, -1] - right[:, early], ">", 0.0, "points", step),
        seeds(f"{label}, average margin, last - epoch {at[early]}", length[:, -1] - length[:, early], "<"),
    ]


def _after_level(label: str, images: Images, results: Results) -> list[Part]:
    """Average margin at the last epoch minus that at the first with errors as good as the last."""
    errors = [100.0 * (along(results, STD, "gap", split) < 0).mean(2) for split in ("train", "test")]
    level = np.all([np.abs(error - error[:, -1:]) <= LEVEL for error in errors], axis=0)
    average, first = _average(results, STD), level.argmax(1)
    values = average[:, -1] - average[np.arange(len(first)), first]
    at = sorted({epochs(results)[i] for i in first})
    return [seeds(f"{label}, average margin, last - level (epoch {', '.join(map(str, at))})", values, "<")]


def _better_indicator(label: str, images: Images, results: Results) -> list[Part]:
    """Spearman's correlation with the robust accuracy at a middle eps over rows and epochs: average minus minimum."""
    eps, rows = images.eps[1], [row for row in results.records if not results.diverged(row).any()]
    margins = np.concatenate([along(results, row) for row in rows], 1)  # (S, rows and epochs, N)
    least = np.concatenate([along(results, row, split="train").min(2) for row in rows], 1)
    kept, average = (margins > eps).mean(2), np.abs(margins).mean(2)
    values = [
        spearmanr(a, k).statistic - spearmanr(m, k).statistic for a, m, k in zip(average, least, kept, strict=True)
    ]
    text = f"{label}, average - minimum margin, over {kept.shape[1]} nets"
    return [seeds(text, np.array(values), ">", unit="rank correlation")]


def _early(ones: tuple[str, ...], weights: str, other_weights: str) -> Read:
    """Race's distances of rows minus those of standard training; weights ", last", or "" of early stopping."""

    def read(label: str, images: Images, results: Results) -> list[Part]:
        found = []
        for row in ones:
            mine, std = distance(results, row, weights), distance(results, STD, other_weights)
            both = min(mine.shape[1], std.shape[1])  # the first images of the same permutation
            values = mine[:, :both] - std[:, :both]
            lost = np.isnan(values).any(1)
            names = [f"{one}{'' if w else ', stopped early'}" for one, w in ((row, weights), (STD, other_weights))]
            found.append(
                Difference(
                    f"{label}, {names[0]} - {names[1]}, distance",
                    np.where(lost, np.nan, values.mean(1)),
                    ">",
                    unit=UNITS,
                    images=values[~lost].mean(0) if not lost.all() else None,
                    failed=int(lost.sum()),
                )
            )
        return found

    return read


def _no_sacrifice(label: str, images: Images, results: Results) -> list[Part]:
    """The relative change of AMR's average margin, and its change beside standard training's."""
    found = []
    for row in AMR:
        at = epochs(results, row, STD)
        curve, std = (np.abs(along(results, one, at=at)).mean(2) for one in (row, STD))
        relative = 100.0 * _change(curve) / curve[:, 0]
        found += [
            seeds(f"{label}, {row}, relative change of the average margin", relative, ">", -5.0, "%"),
            seeds(f"{label}, {row} - {STD}, change of the average margin", _change(curve) - _change(std), ">"),
        ]
    return found


def _no_overfitting(label: str, images: Images, results: Results) -> list[Part]:
    """Held-out error: the mean of the last five epochs minus the least mean of five."""
    errors = 100.0 - results.curve(STD, "validation clean")
    means = np.stack([np.convolve(one, np.ones(5) / 5, "valid") for one in errors])
    most, step = 0.3 if images.data == "mnist" else 1.0, 100 / (5 * VALIDATION)
    return [seeds(f"{label}, held-out error, end - least", means[:, -1] - means.min(1), "<", most, "points", step)]


def _shifts_left(label: str, images: Images, results: Results) -> list[Part]:
    """Median and upper quartile of the signed margins, last minus first."""
    return [
        seeds(f"{label}, {name} on {split} images, last - first", _change(np.quantile(margins, q, axis=2)), "<")
        for split in ("train", "test")
        for margins in [along(results, STD, split=split)]
        for name, q in (("median", 0.5), ("upper quartile", 0.75))
    ]


def _approximates(label: str, images: Images, results: Results) -> list[Part]:
    """The paper's attack minus the worst case of all, on the images that it saw."""
    found = []
    for row in (STD, LCR, *AMR):
        for eps in images.attacked:
            apart = attacked(eps)(results, row)
            apart = apart - np.minimum(apart, robust(eps)(results, row)[:, : apart.shape[1]])
            lost = np.isnan(apart).any(1)
            found.append(
                Difference(
                    f"{label}, {row}, eps {eps}: paper's attack - worst case",
                    np.where(lost, np.nan, apart.mean(1)),
                    "<",
                    2.0,
                    unit="points",
                    images=apart[~lost].mean(0) if not lost.all() else None,
                    resolution=100 / apart.shape[1],
                    failed=int(lost.sum()),
                )
            )
    return found


def _exception(label: str, images: Images, results: Results) -> list[Part]:
    """The true distance falls, the estimate does not."""
    bound = _change(_average(results, STD, "estimate"))
    return [
        trend(f"{label}, average margin", results, _average(results, STD), "<"),
        seeds(f"{label}, mean of the estimate, last - first", bound, ">"),
    ]


def _of_cnn(label: str, images: Images, results: Results) -> list[Part]:
    eps = images.eps[-1]
    part = difference(f"{label}, eps {eps}", (results, STD), (results, LCR), robust(eps), ">")
    return [part, Missing("MLP; CIFAR-10 models", exists=True)]


def _costs_accuracy(label: str, images: Images, results: Results) -> list[Part]:
    return compared([(STD, row) for row in (*AMR, LCR)], "clean accuracy", clean, ">", 1.0, "points")(
        label, images, results
    )


STEPS = [*((row, LCR) for row in AMR), (LCR, STD)]
OVER_STD, OVER_LCR = [(row, STD) for row in AMR], [(row, LCR) for row in AMR]


def _by_both(pairs: list[tuple[str, str]]) -> Read:
    """That the first of each pair has the larger average margin, by Race and by the estimate."""
    return both(
        compared(pairs, "average margin", last()),
        compared(pairs, "mean of the estimate", last("estimate")),
    )


EVIDENCE: dict[str, tuple[Evidence, ...]] = {
    "amr-abs-min-margin-rises": over(TABLE1, _rises),
    "amr-abs-avg-margin-falls": over(FALLING, both(_falls, _robustness_falls)),
    "amr-abs-accuracy-robustness-tradeoff": over((LR, CIFAR_LR, *FALLING), _trades),
    "amr-abs-regularizer-more-robust": over(TABLE1, leads(AMR, STD, lambda images: images.eps)),
    "amr-f2-min-margin-rises-cifar": over((CIFAR_LR, CIFAR_MLP, CIFAR_CNN), _rises),
    "amr-f2-avg-margin-falls-cifar": over((CIFAR_LR, CIFAR_MLP, CIFAR_CNN), _falls),
    "amr-f8-histograms-shift-left-cifar": over((CIFAR_LR, CIFAR_MLP, CIFAR_CNN), _shifts_left),
    "amr-s52-avg-falls-after-error-saturates": over((LR, CIFAR_LR, *FALLING), _after_level),
    "amr-s52-avg-is-better-indicator": over(TABLE1, _better_indicator),
    "amr-s52-early-stopping-helps": over(TABLE1, _early((STD,), "", ", last")),
    "amr-s52-early-stopping-not-enough": over(TABLE1, _early(AMR, ", last", "")),
    "amr-f3-no-sacrifice": over(ALL, _no_sacrifice),
    "amr-f3-avg-margin-higher": over(ALL, _by_both(OVER_STD)),
    "amr-t1-comparable-to-lcr-small-eps": over(TABLE1, leads(AMR, LCR, lambda images: images.eps[:1], "within", 2.0)),
    "amr-t1-beats-lcr-large-eps": over(TABLE1, leads(AMR, LCR, lambda images: images.eps[1:])),
    "amr-t1-lcr-helps-at-small-eps": over(TABLE1, leads((LCR,), STD, lambda images: images.eps[:1])),
    "amr-t1-lcr-worse-than-std-at-large-eps": over((CNN,), _of_cnn),
    "amr-t1-margin-term-needed": over(TABLE1, _by_both(OVER_LCR)),
    "amr-t1-avg-margin-highest": over(TABLE1, _by_both(STEPS)),
    "amr-t1-clean-cost-mlp": over(MLPS, _costs_accuracy),
    "amr-t1-clean-kept-cnn": over(
        (CNN, CIFAR_CNN), compared(OVER_STD, "clean accuracy", clean, "within", 1.0, "points")
    ),
    "amr-s53-pgd1000-good-approximation": over(TABLE1, _approximates),
    "amr-f5-no-overfitting-nets": over(ALL, _no_overfitting),
    "amr-f6-min-margin-rises-mnist": over((LR, MLP, CNN), _rises),
    "amr-f6-avg-margin-falls-mnist": over((LR, MLP), _falls),
    "amr-appc-exception-is-estimation-error": over((CNN,), _exception),
    "amr-f7-histograms-shift-left-mnist": over((LR, MLP), _shifts_left),
}
