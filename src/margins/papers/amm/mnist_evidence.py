"""What AMM's claims about MNIST are read from: errors, distances and robust accuracies of the tables' last weights.

Errors are in points, on all test images; lengths in input units, pixels in [0, 1]. AMM's row is MIN+EXP.
"""

import numpy as np
from scipy.stats import kendalltau

from margins.claims import Difference, Evidence, Missing, published
from margins.experiments import Results
from margins.papers.amm.mnist import AGGREGATION, CHOSEN, LENET
from margins.papers.paired import Measure, difference, share, worst

REFERENCE, OURS = "reference", "MIN+EXP"
PAIRS = [f"{a}+{s}" for a, s in CHOSEN]
#: "Far", as half of the printed difference; at smaller scales the sign counts.
FAR = {"MIN+LIN - AVG+LIN": 0.5, "MIN+LIN - reference": 0.25}
STRONG = ("PGD cross-entropy, last", "PGD margin, last", "Race, last")
LIUNET = Missing("LiuNet")
#: Where a larger margin is to predict a smaller gap: that many nets, with a smaller error in % on training images.
NETS, FITTED = 20, 0.5


def error(results: Results, row: str) -> np.ndarray:
    """(S, N) in points whether a test image is misclassified."""
    return 100.0 - share(results, row, "clean, last")


def train_error(results: Results, row: str) -> np.ndarray:
    """(S, N) the same of training images."""
    return 100.0 - share(results, row, "clean, train, last")


def robust(results: Results, row: str) -> np.ndarray:
    """(S, N) in points whether a test image withstands PGD on both losses and Race, l2, within the table's eps."""
    return worst(results, row, *STRONG)


def deepfool(results: Results, row: str) -> np.ndarray:
    """(S, N) the length of DeepFool's perturbation of a test image, wrong ones included."""
    return lengths(results, row, "DeepFool distance, last")


def race(results: Results, row: str) -> np.ndarray:
    """(S, N) the distance of the nearest misclassified point that Race finds, 0 of a wrong image."""
    return lengths(results, row, "Race distance, last")


def lengths(results: Results, row: str, column: str) -> np.ndarray:
    """(S, N) of a column of distances; where none was found, the longest of that seed, so that means are finite."""
    found = np.abs(results.samples(row, column).astype(float))
    longest = np.max(np.where(np.isinf(found), -np.inf, found), axis=1, keepdims=True)
    return np.where(np.isinf(found), longest, found)


def printed(table: str, **row: str) -> float:
    """The error that a published table prints for the one row with these entries."""
    rows = published("amm", table)
    for name, value in row.items():
        rows = rows[rows[name] == value]
    (value,) = rows["error"]
    return float(value)


def stated(setting: str) -> float:
    """The number that begins what the paper's text says of a setting, the one whose name contains these words."""
    rows = published("amm", "settings")
    (value,) = rows[rows["setting"].str.contains(setting, regex=False)]["value"]
    return float(value.split()[0])


def _lower(experiment: str, pairs, label: str = "error", measure: Measure = error) -> Evidence:
    """That the first of each pair of rows has the lower error."""

    def read(at):
        results = at[experiment]
        return [difference(label, (results, a), (results, b), measure, "<") for a, b in pairs]

    return Evidence((experiment,), read)


def _far(one: str, other: str) -> Evidence:
    def read(at):
        results = at[AGGREGATION]
        delta = -FAR[f"{one} - {other}"] if results.scale == "paper" else 0.0
        return [difference("error", (results, one), (results, other), error, "<", delta)]

    return Evidence((AGGREGATION,), read)


def _both(*parts) -> Evidence:
    """On both nets that a laptop trains: (label, measure, relation, unit) each, of MIN+EXP minus the reference."""

    def read(at):
        return [
            difference(f"{net}, {label}", (at[name], OURS), (at[name], REFERENCE), measure, relation, unit=unit)
            for net, name in (("MLP", AGGREGATION), ("LeNet", LENET))
            for label, measure, relation, unit in parts
        ]

    return Evidence((AGGREGATION, LENET), read)


def _also(evidence: Evidence, *missing: Missing) -> Evidence:
    return Evidence(evidence.experiments, lambda at: [*evidence.read(at), *missing])


def _near(row: str, value: float, results: Results) -> Difference:
    return difference("error", (results, row), value, error, "within", 0.2)


def _reference_and_avg_lin(at):
    results = at[AGGREGATION]
    reference, worse = printed("table1", method="baseline"), printed("table1", aggregation="AVG", shrinkage="LIN")
    rise = (error(results, "AVG+LIN") - error(results, REFERENCE)).mean(1) - (worse - reference)
    label = "rise of the error - printed"
    whole = Difference(label, rise, "within", 0.2, pool=(AGGREGATION, label), unit="points")
    return [_near(REFERENCE, reference, results), _near("AVG+LIN", worse, results), whole]


def _relative_gains(at):
    """One part a pair: the relative decrease of the error against LIN with the same aggregation, minus the printed."""
    found, results = [], at[AGGREGATION]
    for aggregation in ("AVG", "MIN"):
        for shrinkage in ("INV", "EXP"):
            here, lin = (printed("table1", aggregation=aggregation, shrinkage=s) for s in (shrinkage, "LIN"))
            ours, theirs = (error(results, f"{aggregation}+{s}").mean(1) for s in (shrinkage, "LIN"))
            label = f"relative decrease of {aggregation}+{shrinkage} - printed"
            values = (1 - ours / theirs) - (1 - here / lin)
            found.append(Difference(label, values, "within", 0.1, pool=(AGGREGATION, "relative decrease")))
    return found


def _halves(at):
    results = at[AGGREGATION]
    ratio = error(results, OURS).mean(1) / error(results, REFERENCE).mean(1)
    near = _near(OURS, printed("table1", aggregation="MIN", shrinkage="EXP"), results)
    return [near, Difference("error of MIN+EXP / reference", ratio, "<", 0.62, pool=(AGGREGATION, "ratio"))]


def quantile(results: Results, row: str) -> np.ndarray:
    """(S,) the 1 % quantile of DeepFool's length over training images, signed: below 0 where they are wrong."""
    return np.quantile(results.samples(row, "DeepFool distance, train, last"), 0.01, axis=1)


def _trades(at):
    results, other = at[AGGREGATION], "AVG+EXP"
    label = "1 % quantile of the training margin"
    apart = quantile(results, OURS) - quantile(results, other)
    return [
        difference("error", (results, OURS), (results, other), error, ">"),
        Difference(f"{OURS} - {other}, {label}", apart, ">", pool=(AGGREGATION, label), unit="input units"),
    ]


def _aims(at):
    results = at[AGGREGATION]
    return [
        difference("error", (results, OURS), (results, "AVG+EXP"), error, "<"),
        difference("robust accuracy", (results, OURS), (results, "AVG+EXP"), robust, "<"),
        Missing("LeNet"),
    ]


def _predicts(at):
    """Kendall's tau, a number a seed, over the nets of all rows that fit their training images."""
    results, taus, count = at[AGGREGATION], [], 0
    rows = [row for row in results.records if not results.diverged(row).any()]
    fit, test = (np.array([measure(results, row).mean(1) for row in rows]) for measure in (train_error, error))
    margin = np.array([quantile(results, row) for row in rows])
    for seed in range(fit.shape[1]):
        kept = fit[:, seed] < FITTED
        count += kept.sum()
        taus.append(kendalltau(margin[kept, seed], (test - fit)[kept, seed]).statistic if kept.sum() > 2 else np.nan)
    label = "1 % quantile of the training margin against test minus training error"
    few = [Missing(f"{NETS - count} of {NETS} nets with fewer than {FITTED} % training errors")] if count < NETS else []
    if np.isnan(taus).any():
        return few
    return [Difference(label, np.array(taus), "<", unit="Kendall's tau"), *few]


def _train_accuracy(at):
    results = at[AGGREGATION]
    part = difference("training error", (results, OURS), (results, REFERENCE), train_error, "within", 0.5)
    return [part, Missing("ConvNet on CIFAR-10")]


EVIDENCE = {
    "amm-t1-avg-lin-worse": _lower(AGGREGATION, [(REFERENCE, "AVG+LIN")]),
    "amm-t1-reference-and-avg-lin-numbers": Evidence((AGGREGATION,), _reference_and_avg_lin),
    "amm-t1-min-lin-beats-avg-lin": _far("MIN+LIN", "AVG+LIN"),
    "amm-t1-min-lin-beats-reference": _far("MIN+LIN", REFERENCE),
    "amm-t1-nonlinear-beats-lin-avg": _lower(AGGREGATION, [("AVG+INV", "AVG+LIN"), ("AVG+EXP", "AVG+LIN")]),
    "amm-t1-nonlinear-beats-lin-min": _lower(AGGREGATION, [("MIN+INV", "MIN+LIN"), ("MIN+EXP", "MIN+LIN")]),
    "amm-t1-relative-gains-numbers": Evidence((AGGREGATION,), _relative_gains),
    "amm-t1-all-but-avg-lin-beat-reference": _lower(AGGREGATION, [(p, REFERENCE) for p in PAIRS if p != "AVG+LIN"]),
    "amm-t1-min-exp-best": _lower(AGGREGATION, [(OURS, pair) for pair in PAIRS if pair != OURS]),
    "amm-t1-min-beats-avg": _lower(AGGREGATION, [(f"MIN+{s}", f"AVG+{s}") for s in ("INV", "EXP")]),
    "amm-t1-exp-beats-inv": _lower(AGGREGATION, [(f"{a}+EXP", f"{a}+INV") for a in ("AVG", "MIN")]),
    "amm-t1-min-exp-number": Evidence((AGGREGATION,), _halves),
    "amm-s334-min-exp-trades-accuracy-for-margin": Evidence((AGGREGATION,), _trades),
    "amm-s334-min-generalizes-avg-is-robust": Evidence((AGGREGATION,), _aims),
    "amm-s32-margin-predicts-test-error": Evidence((AGGREGATION,), _predicts),
    "amm-s1-train-accuracy-similar": Evidence((AGGREGATION,), _train_accuracy),
    "amm-s1-test-accuracy-up": _also(_both(("error", error, "<", "points")), Missing("the other nets and data sets")),
    "amm-s1-amm-more-robust": _both(("robust accuracy", robust, ">", "points")),
    "amm-t3-beats-reference": _both(("error", error, "<", "points")),
    "amm-t3-margin-larger": _also(
        _both(("DeepFool", deepfool, ">", "input units"), ("Race", race, ">", "input units")), LIUNET
    ),
}
