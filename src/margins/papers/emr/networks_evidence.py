"""What EMR's claims about the MLP and the CNN are read from: Tables 1 and 2, Figures 1b to 1d and 2 (section 3)."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from margins.claims import Evidence, Missing
from margins.experiments import Results
from margins.papers.emr.networks import CNN, MLP, TWO, named
from margins.papers.emr.networks_reading import (
    UNITS,
    Part,
    average,
    best,
    decided,
    margin,
    margins,
    method,
    of,
    over,
    robust,
    seeds,
    strong,
    stronger,
    wider,
)

ST, SOFTMAX, EMR, AT, AT_SOFTMAX, AT_EMR = "ST", "ST+LSoftmax", "ST+EMR", "AT", "AT+LSoftmax", "AT+EMR"
BOTH = (MLP, CNN)
#: Training accuracy, in %, from which on images count as learned.
LEARNED = {MLP: 95.0, CNN: 80.0}
#: From there on the loss has to fall, the weights to rise and the margin not to rise by these factors.
LOSS, WEIGHTS, MARGIN = 5.0, 1.5, 1.25
#: Training accuracy, in %, below which a training has failed.
FAILS = 20.0


def _decay_is_not_enough(net: str, results: Results) -> list[Part]:
    """Standard training at each weight decay against adversarial training, by both attacks."""
    at = best(results, [AT], robust)
    rows = of(results, ST)
    return [stronger(net, results, row, at, "<", -10.0, measure) for measure in (robust, strong) for row in rows]


def _together(net: str, results: Results) -> list[Part]:
    both, alone = decided(net, AT_EMR), decided(net, EMR)
    return [stronger(net, results, both, best(results, [AT], robust)), stronger(net, results, both, alone)]


def _predicts(net: str, results: Results) -> list[Part]:
    """Spearman's correlation of mean margin and robust accuracy over the rows, seed by seed."""
    rows = of(results, ST, SOFTMAX, EMR, AT, AT_SOFTMAX, AT_EMR)
    lengths = np.array([margin(results, row) for row in rows])
    kept = np.array([robust(results, row).mean(1) for row in rows])
    values = np.array([spearmanr(a, b).statistic for a, b in zip(lengths.T, kept.T, strict=True)])
    return [seeds(f"{net}: margin and robustness over {len(rows)} rows", values, ">", 0.8, "rank correlation")]


def _grows(net: str, results: Results) -> list[Part]:
    """Standard training without weight decay, from where its images are learned to the end: loss, weights, margin."""
    row = named(ST, 0.0)
    at = np.array(results.records[row][0].config["recipe"]["snapshots"])
    found = margins(results, row, "train")
    right = 100.0 * (found > 0).mean(2)
    learned = right > LEARNED[net]
    first, who = learned.argmax(1), np.arange(len(found))
    loss = results.curve(row, "cross_entropy at clean")[:, at - 1]
    weights = results.samples(row, "weights, along, train").astype(float).mean(2) ** 0.5
    margin = average(found)
    lost = ~learned.any(1)

    def ratio(curve: np.ndarray) -> np.ndarray:
        return np.where(lost, np.nan, np.log(curve[:, -1] / curve[who, first]))

    return [
        seeds(f"{net}, {row}: log of the loss, last over learned", ratio(loss), "<", -np.log(LOSS), "log"),
        seeds(f"{net}, {row}: log of the effective weights", ratio(weights), ">", np.log(WEIGHTS), "log"),
        seeds(f"{net}, {row}: log of the margin", ratio(margin), "<", np.log(MARGIN), "log"),
    ]


def _like_adversarial(net: str, results: Results) -> list[Part]:
    one, other = decided(net, EMR), best(results, [AT], robust)
    share = margin(results, one) / margin(results, other) - 1
    return [seeds(f"{net}, {one} over {other}: margin, - 1", share, "within", 0.1, "share")]


def _robust_like_adversarial(net: str, results: Results) -> list[Part]:
    return [stronger(net, results, decided(net, EMR), best(results, [AT], robust), "within", 8.0)]


def _decay_widens(clearly: float):
    def read(net: str, results: Results) -> list[Part]:
        most = named(ST, 1e-2)
        return [
            wider(net, results, most, named(ST, 0.0), clearly),
            wider(net, results, most, named(ST, 1e-4)),
        ]

    return read


def _of_softmax(net: str, results: Results) -> list[tuple[str, str]]:
    """L-Softmax and standard training at each weight decay that both have."""
    rows = [
        row
        for row in results.records
        if method(row) == SOFTMAX and f"{ST}{row.removeprefix(SOFTMAX)}" in results.records
    ]
    return [(row, f"{ST}{row.removeprefix(SOFTMAX)}") for row in rows]


def _softmax_widens(net: str, results: Results) -> list[Part]:
    """At each weight decay; of the CNN on test images."""
    splits = ("test", "train") if net == MLP else ("test",)
    return [wider(net, results, *pair, split=split) for pair in _of_softmax(net, results) for split in splits]


def _softmax_does_not(net: str, results: Results) -> list[Part]:
    return [
        seeds(
            f"{net}, {one} - {other}, margin on {split} images",
            margin(results, one, split) - margin(results, other, split), "<", 0.03, UNITS,
        )
        for one, other in _of_softmax(net, results)
        for split in ("test", "train")
    ]  # fmt: skip


def _softmax_is_no_stronger(net: str, results: Results) -> list[Part]:
    return [stronger(net, results, *pair, "<", 1.0) for pair in _of_softmax(net, results)]


def _two_fails(net: str, results: Results) -> list[Part | Missing]:
    """Of the one annealing that was tried; a training that diverged has no image right."""
    right = 100.0 * (margins(results, TWO, "train")[:, -1] > 0).mean(1)
    return [seeds(f"{net}, {TWO}: training accuracy", right, "<", FAILS, "%"), Missing("other annealings, m = 3 and 4")]


def _widest(one: str, others: Sequence[str], splits: Sequence[str] = ("test", "train")):
    """A method's margin against that of each row of others."""

    def read(net: str, results: Results) -> list[Part]:
        rows = of(results, *others)
        return [wider(net, results, decided(net, one), row, split=split) for row in rows for split in splits]

    return read


def _wider_than_best(splits: Sequence[str]):
    """Adversarial training with EMR against the best of both baselines, by the paper's attack."""

    def read(net: str, results: Results) -> list[Part]:
        others = [best(results, [other], robust) for other in (AT, AT_SOFTMAX)]
        return [wider(net, results, decided(net, AT_EMR), row, split=split) for row in others for split in splits]

    return read


def _below(net: str, results: Results) -> list[Part]:
    """Each weight decay of standard training against L-Softmax at its best, and EMR."""
    others = (best(results, [SOFTMAX], robust), decided(net, EMR))
    return [stronger(net, results, row, other, "<", -8.0) for other in others for row in of(results, ST)]


def _beats(one: str, others: Sequence[str], delta: float = 0.0):
    """A method's robust accuracy against that of each of others at its best weight decay."""

    def read(net: str, results: Results) -> list[Part]:
        rows = [best(results, [other], robust) for other in others]
        return [stronger(net, results, decided(net, one), row, ">", delta) for row in rows]

    return read


def _needs_decay(net: str, results: Results) -> list[Part]:
    return [stronger(net, results, decided(net, EMR), named(EMR, 0.0), ">", 2.0)]


def _smaller_gain(net: str, results: Results) -> list[Part]:
    """The gain over the best baseline, in standard minus in adversarial training: robust accuracy, and margin."""
    pairs = [
        (decided(net, one), best(results, others, robust))
        for one, others in ((EMR, (ST, SOFTMAX)), (AT_EMR, (AT, AT_SOFTMAX)))
    ]

    def gain(measure) -> np.ndarray:
        one, other = (measure(results, a) - measure(results, b) for a, b in pairs)
        return one - other

    return [
        seeds(f"{net}: gain of robust accuracy", gain(lambda r, row: robust(r, row).mean(1)), ">", 0.0, "points"),
        seeds(f"{net}: gain of the margin", gain(margin), ">"),
    ]


EVIDENCE: dict[str, tuple[Evidence, ...]] = {
    "emr-s1-wd-alone-not-robust": over(BOTH, _decay_is_not_enough),
    "emr-s1-emr-and-at-complementary": over(BOTH, _together),
    "emr-s2-lsoftmax-helps-cnn-margin": over((CNN,), _softmax_widens),
    "emr-s3-margin-predicts-robustness": over(BOTH, _predicts),
    "emr-s3-lsoftmax-m2-diverges": over((CNN,), _two_fails),
    "emr-s3-loss-falls-margin-does-not": over(BOTH, _grows),
    "emr-f1b-emr-margin-like-at": over((MLP,), _like_adversarial),
    "emr-f1b-emr-robust-like-at": over((MLP,), _robust_like_adversarial),
    "emr-f1c-wd-margin-cifar": over((CNN,), _decay_widens(0.09)),
    "emr-f1d-wd-margin-mnist": over((MLP,), _decay_widens(0.25)),
    "emr-f2-lsoftmax-helps-mlp": over((MLP,), _softmax_widens),
    "emr-f2-lsoftmax-not-cnn": over((CNN,), _softmax_does_not),
    "emr-f2-emr-highest-margin": over(BOTH, _widest(EMR, (ST, SOFTMAX))),
    "emr-t1-wd-below-lsoftmax-emr": over((MLP,), _below),
    "emr-t1-emr-beats-lsoftmax": over((MLP,), _beats(EMR, (SOFTMAX,), 10.0)),
    "emr-t2-lsoftmax-no-benefit-cnn": over((CNN,), _softmax_is_no_stronger),
    "emr-t2-emr-improves-cnn": over((CNN,), _beats(EMR, (ST, SOFTMAX), 5.0)),
    "emr-t12-emr-needs-wd": over(BOTH, _needs_decay),
    "emr-t1-at-emr-robust": over((MLP,), _beats(AT_EMR, (AT, AT_SOFTMAX))),
    "emr-t2-at-emr-robust": over((CNN,), _beats(AT_EMR, (AT, AT_SOFTMAX))),
    "emr-f2-at-margin-mlp": over((MLP,), _wider_than_best(("test",))),
    "emr-f2-at-margin-cnn": over((CNN,), _wider_than_best(("test", "train"))),
    "emr-t12-gain-smaller-in-at": over(BOTH, _smaller_gain),
}
