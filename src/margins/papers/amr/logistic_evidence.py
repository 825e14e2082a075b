"""What the claims on logistic regression are read from (AMR section 3, Figures 1 and 4, Theorem 1).

The problem is convex and starts at zero, so a seed would change nothing: the replicates are random subsets of
the images. An epoch is one step of full-batch gradient descent.
"""

import numpy as np

from margins.claims import Check, Difference, Evidence
from margins.experiments import Results
from margins.papers.amr.logistic import SHARE, value_at

NAME = "amr/logistic-regression"
SUBSETS = "80 % subsets"
#: The share of the SVM's margin that counts as reaching it, and the relative fall that counts as drastic.
REACHED, DRASTIC = 0.9, 0.2


def _trend(results: Results, row: str, name: str, after: float = 0.0) -> np.ndarray:
    """Kendall's tau of a curve with the epoch, from the epoch `after` on, one a replicate."""
    from scipy.stats import kendalltau

    pairs = zip(results.curve(row, "epoch"), results.curve(row, name), strict=True)
    return np.array([kendalltau(e[e >= after], values[e >= after]).statistic for e, values in pairs])


def _trends(row: str, names: tuple[str, ...], relation: str, after: float = 0.0):
    def parts(results: Results) -> list[Difference]:
        share = SHARE if row == SUBSETS else None
        return [
            Difference(
                f"Kendall's tau of {name} with the epoch ({row})",
                _trend(results, row, name, after),
                relation,
                pool=(NAME, f"tau of {name}"),
                unit="tau",
                # One pair of checkpoints in the other order changes tau by this much
                resolution=4 / (points := results.curve(row, "epoch").shape[1]) / (points - 1),
                fraction=share,
            )
            for name in names
        ]

    return parts


def _of_subsets(label: str, values: np.ndarray, relation: str, delta: float = 0.0, unit="input units", images=None):
    return Difference(label, values, relation, delta, pool=(NAME, label), unit=unit, images=images, fraction=SHARE)


def _largest(label: str, moves: np.ndarray, bound: np.ndarray | float, shown: str) -> Check:
    """That the largest of the moves (S, T) of each replicate is at most its bound."""
    worst = moves.max(1)
    return Check(label, worst <= bound, worst, shown)


def _after(results: Results, name: str, epoch: float) -> list[np.ndarray]:
    pairs = zip(results.curve(SUBSETS, "epoch"), results.curve(SUBSETS, name), strict=True)
    return [values[epochs >= epoch] for epochs, values in pairs]


def _zero_error(results: Results, name: str) -> np.ndarray:
    """The curve's value at the first checkpoint without a training error; nan where there is none."""
    errors = results.curve(SUBSETS, "training errors")
    values = results.curve(SUBSETS, name)
    return np.array([v[e == 0][0] if (e == 0).any() else np.nan for e, v in zip(errors, values, strict=True)])


def _converges(at):
    toy = at[NAME].curve("toy boxes", "angle to the SVM")
    ratio = toy[:, -1] / toy[:, 0]
    return [
        *_trends(SUBSETS, ("angle to the SVM",), "<")(at[NAME]),
        *_trends("toy boxes", ("angle to the SVM",), "<")(at[NAME]),
        Check("toy boxes: last angle over the first", ratio < 0.2, ratio, "< 0.2"),
    ]


def _separable(at):
    errors = at[NAME].curve("all images", "training errors").min(1)
    margin = at[NAME].metric("all images", "SVM minimum margin")
    return [
        Check("least number of training errors, all images", errors == 0, errors, "= 0"),
        Check("margin of a separating hyperplane through 0", margin > 0, margin, "> 0"),
    ]


def _minimum_rises(at):
    falls = -np.diff(at[NAME].curve(SUBSETS, "minimum margin"))
    bound = 0.01 * at[NAME].metric(SUBSETS, "SVM minimum margin")
    return [
        *_trends(SUBSETS, ("minimum margin",), ">")(at[NAME]),
        _largest("largest fall between checkpoints", falls, bound, "<= 1 % of the SVM's margin"),
    ]


def _last(at) -> str:
    """The depth of the runs, which the paper does not give, in words for a label."""
    return f"{at[NAME].curve(SUBSETS, 'epoch')[:, -1].max():.0e}"


def _reaches(at):
    ratio = at[NAME].curve(SUBSETS, "minimum margin") / at[NAME].metric(SUBSETS, "SVM minimum margin")[:, None]
    return [
        _of_subsets(f"minimum margin over the SVM's, epoch {_last(at)}", ratio[:, -1], ">", REACHED, "ratio"),
        _largest("largest minimum margin over the SVM's", ratio, 1 + 1e-9, "<= 1"),
    ]


def _drops_early(at):
    fall = 1 - value_at(at[NAME], SUBSETS, "average margin", 10) / value_at(at[NAME], SUBSETS, "average margin", 1)
    return [
        _of_subsets("relative fall of the average margin from zero, step 1 to step 10", fall, ">", DRASTIC, "share")
    ]


def _keeps_falling(at):
    rises = [np.diff(values) / values[:-1] for values in _after(at[NAME], "average margin", 10)]
    worst = np.array([rise.max() for rise in rises])
    return [
        *_trends(SUBSETS, ("average margin",), "<", after=10)(at[NAME]),
        Check("largest relative rise between checkpoints after the tenth epoch", worst <= 0.01, worst, "<= 0.01"),
    ]


def _after_zero_error(at):
    last = {name: at[NAME].curve(SUBSETS, name)[:, -1] for name in ("minimum margin", "average margin")}
    moved = {name: values - _zero_error(at[NAME], name) for name, values in last.items()}
    label = "{}: last epoch - first epoch without training error"
    return [
        _of_subsets(label.format("minimum margin"), moved["minimum margin"], ">"),
        _of_subsets(label.format("average margin"), moved["average margin"], "<"),
    ]


def _shifts_left(at):
    """Five epochs evenly spaced in log scale: each decile from the fifth on falls from one to the next."""
    last = at[NAME].curve(SUBSETS, "epoch")[:, -1].min()
    epochs = np.logspace(0, np.log10(last), 5)
    checks = []
    for decile in range(5, 10):
        steps = np.diff([value_at(at[NAME], SUBSETS, f"decile {decile}", epoch) for epoch in epochs], axis=0)
        checks.append(Check(f"decile {decile}: largest step", steps.max(0) < 0, steps.max(0), "< 0"))
    return checks


def _histogram_ends_near(at):
    first, last = (at[NAME].metric(SUBSETS, f"transport to the SVM at {when}") for when in ("first", "last"))
    return [
        _of_subsets(
            f"Wasserstein distance to the SVM's margins over their mean, epoch {_last(at)}", last, "<", 0.1, "ratio"
        ),
        _of_subsets(f"the same, epoch {_last(at)} over first", last / first, "<", 1 / 3, "ratio"),
    ]


def _majority_nearer(at):
    share = at[NAME].metric(SUBSETS, "share nearer at last")
    return [
        _of_subsets("share of training images nearer at the last epoch than at the first", share, ">", 0.5, "share")
    ]


def _closed_form(at):
    score = at[NAME].metric(SUBSETS, "largest |score| at Eq. 7's point")
    other = at[NAME].metric(SUBSETS, "largest relative difference of Eq. 7's norm")
    return [
        Check("largest |w x| / |w| at Eq. 7's point", score < 1e-6, score, "< 1e-6"),
        Check("relative difference of Eq. 7's norm from least squares, largest", other < 1e-9, other, "< 1e-9"),
    ]


def _never_rises(name: str):
    def read(at):
        # A count of images has a meaning on the paper's own data, not on a share of them
        errors = at[NAME].curve("all images", name)
        rises = errors[:, 1:] - np.minimum.accumulate(errors, axis=1)[:, :-1]
        return [_largest(f"largest rise of {name} above an earlier checkpoint, all images", rises, 1, "<= 1")]

    return Evidence((NAME,), read)


def _falls_on_both(at):
    parts = []
    for split, name in (("training", "average margin"), ("test", "average margin on test")):
        images = None
        if split == "test":
            first, last = (np.abs(at[NAME].samples(SUBSETS, f"{when} test margins")) for when in ("first", "last"))
            images = (first - last).mean(0)
        curve = at[NAME].curve(SUBSETS, name)
        label = f"average margin on {split} images: first epoch - last"
        parts.append(_of_subsets(label, curve[:, 0] - curve[:, -1], ">", images=images))
    return parts


def _read(function) -> Evidence:
    return Evidence((NAME,), function)


EVIDENCE = {
    "amr-th1-gd-converges-to-svm": _read(_converges),
    "amr-s3-01-separable": _read(_separable),
    "amr-f1a-min-margin-rises": _read(_minimum_rises),
    "amr-f1a-min-margin-reaches-svm": _read(_reaches),
    "amr-f1a-avg-margin-drops-early": _read(_drops_early),
    "amr-f1a-avg-margin-keeps-falling": _read(_keeps_falling),
    "amr-f1a-both-move-after-zero-error": _read(_after_zero_error),
    "amr-f1b-histogram-shifts-left": _read(_shifts_left),
    "amr-f1b-histogram-approaches-svm": _read(_histogram_ends_near),
    "amr-f1b-majority-pushed-to-boundary": _read(_majority_nearer),
    "amr-f1c-adversarial-less-perceptible": _read(
        lambda at: _trends(SUBSETS, ("median distance on test", "robust accuracy on test"), "<")(at[NAME])
    ),
    "amr-s3-eq7-closed-form": _read(_closed_form),
    "amr-s3-not-overfitting-lr": _never_rises("test errors"),
    "amr-appb-train-error-never-rises": _never_rises("training errors"),
    "amr-s3-falls-on-train-and-test": _read(_falls_on_both),
}
