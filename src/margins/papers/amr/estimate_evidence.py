"""What the claims on AMR's estimate of the margin, on its tau and on the steps of its attack are read from.

Lengths are in input units, l2. An image's best distance is the shorter of Race's and DeepFool's, without a box; along a
training the table has Race's alone, in the box.
"""

import numpy as np

from margins.claims import Check, Difference, Evidence, Missing
from margins.experiments import Results
from margins.intervals import of_mean
from margins.papers.amr import more_steps, networks, networks_reading
from margins.papers.amr.estimate import (
    COUNTS,
    DEEPFOOL,
    LABELS,
    MANY,
    NAME,
    NEAR,
    NETS,
    NORM_NETS,
    NORMS,
    PATH,
    POINTS,
    RACE,
    SEARCHED,
    counts,
    tau,
)  # fmt: skip

#: A factor of 2, "close" to 1, and the same order of magnitude.
HALF, CLOSE, ORDER = 0.5, 0.2, 3.0
AMR = tuple(label for label in LABELS if label.startswith("AMR"))
CIFAR = Missing("CIFAR-10 models")


def best(results: Results, row: str) -> np.ndarray:
    """(S, N) the shortest distance found out of the predicted class, without a box; nan where a seed diverged."""
    return np.minimum(*(results.samples(row, name).astype(float) for name in (RACE, DEEPFOOL)))


def estimated(results: Results, row: str) -> np.ndarray:
    """(S, N) the estimate with all of its points, in the paper's ball."""
    return results.samples(row, PATH)[:, -1].astype(float)


def _above(label: str, row: str, shares: np.ndarray, gone: np.ndarray, pool: str) -> Difference:
    """More than half of the images have a share (S, N) above HALF: their median has."""
    above = 100.0 * (shares > HALF)
    return Difference(
        f"{row}: {label}",
        np.where(gone, np.nan, above.mean(1)),
        ">",
        50.0,
        pool=(NAME, pool),
        unit="% of images",
        images=above[~gone].mean(0),
        resolution=100.0 / shares.shape[1],
        failed=int(gone.sum()),
    )


def _each(results: Results, read) -> list[Difference]:
    """read(row, gone) of each row; of one without a seed that did not diverge only that it has none."""
    parts = []
    for row in NETS:
        gone = results.diverged(row)
        lost = Difference(row, np.full(len(gone), np.nan), ">", failed=len(gone)) if gone.all() else None
        parts.append(lost or read(row, gone))
    return parts


def _near(at):
    results = at[NAME]

    def read(row: str, gone: np.ndarray) -> Difference:
        lengths, close = best(results, row), results.samples(row, NEAR)
        share = estimated(results, row) / lengths
        told = [np.nanmedian(values[~gone]) for values in (share, close / lengths[:, : close.shape[1]])]
        rank = results.metric(row, "estimate: rank correlation")[~gone].mean()
        label = f"estimate over distance > {HALF:g} (median {told[0]:.2f}; r = distance {told[1]:.2f}; rank {rank:.2f})"
        return _above(label, row, share, gone, "near")

    return _each(results, read)


def constants(results: Results, row: str) -> np.ndarray:
    """(S, M, n) what random points find of the constant, by their number (`counts`), over what an ascent finds."""
    sampled, searched = (results.samples(row, name).astype(float) for name in (MANY, SEARCHED))
    common = min(sampled.shape[2], searched.shape[1])
    return searched[:, None, :common] / sampled[:, :, :common]  # of margins, in which constants are below the line


def _accurate(at):
    results = at[NAME]
    most = {row: COUNTS[row[:3]][results.scale]["most"] for row in NETS}

    def read(row: str, gone: np.ndarray) -> Difference:
        share = constants(results, row)
        few = counts(most[row]).index(min(1024, most[row]))
        told = f"{np.median(share[~gone, -1]):.2f}; of {counts(most[row])[few]:,} {np.median(share[~gone, few]):.2f}"
        label = f"constant of {most[row]:,} points over that of an ascent > {HALF:g} (median {told})"
        return _above(label, row, share[:, -1], gone, "sampling")

    parts: list[Difference | Missing] = [*_each(results, read)]
    if fewer := [row for row in NETS if most[row] < POINTS]:  # the largest of more points is no less
        parts.append(Missing(f"{POINTS:,} points on {'; '.join(fewer)}", exists=True))
    return parts


def signs(results: Results) -> list[tuple[str, float, float, bool]]:
    """Of each pair of rows at the last epoch, and of the last and first epoch of each row, that both measures decide.

    (the pair, difference of the mean estimate, of the mean distance, whether they have one sign). Decided: the 95 %
    interval over seeds and images excludes 0.
    """
    rows = {}
    for label in LABELS:
        if label in results.records and not results.diverged(label).any():
            estimate, distance = (
                np.abs(results.samples(label, f"{n}, along").astype(float)) for n in ("estimate", "Race")
            )
            at = [networks_reading.kept(results).index(epoch) for epoch in networks_reading.estimated(results)]
            rows[label] = [estimate, distance[:, at, : estimate.shape[2]]]
    pairs = {f"{label}, last - first": [m[:, 1] - m[:, 0] for m in both] for label, both in rows.items()}
    for k, one in enumerate(rows):
        for other in list(rows)[k + 1 :]:
            pairs[f"{one} - {other}"] = [a[:, 1] - b[:, 1] for a, b in zip(rows[one], rows[other], strict=True)]
    found = []
    for name, both in pairs.items():
        if all(np.isfinite(values).all() for values in both):
            intervals = [of_mean(values.mean(1), values.mean(0)) for values in both]
            if all(one.low > 0 or one.high < 0 for one in intervals):
                estimate, distance = (one.estimate for one in intervals)
                found.append((name, estimate, distance, estimate * distance > 0))
    return found


def _orders(at):
    parts: list[Check | Missing] = []
    for kind, name in (("MLP", networks.MLP), ("CNN", networks.CNN)):
        found = signs(at[name])
        if not found:
            parts.append(Missing(f"{kind}: a pair that both decide"))
            continue
        agree = np.array([same for *_, same in found])
        against = "; ".join(f"{pair}: {a:+.2f}, {b:+.2f}" for pair, a, b, same in found if not same)
        told = f"{agree.sum()} of {len(agree)}" + (f" (estimate and distance of {against})" if against else "")
        label = f"{kind}: pairs with one sign, of those that both decide"
        parts.append(Check(label, np.array([agree.all()]), told, "all"))
    return [*parts, CIFAR]


def _log(results: Results, row: str, name: str) -> np.ndarray:
    return np.log(results.metric(row, name))


def _product(at):
    results, name, parts = at[NORMS], "product of the norms", []
    for label in AMR:
        lenet = f"LeNet, {label}"
        beside = f" (LeNet: {results.metric(lenet, name).mean():.2f})"
        for one, other in (("MLP", "LR"), ("CNN", "MLP")):
            values = _log(results, f"{one}, {label}", name) - _log(results, f"{other}, {label}", name)
            parts.append(
                Difference(
                    f"{label}: ln of the product, {one} - {other}" + beside * (one == "CNN"),
                    values,
                    ">",
                    pool=(NORMS, "product"),
                    failed=int(np.isnan(values).sum()),
                )
            )
    return [*parts, CIFAR]


def _order_of_tau(at):
    results, parts = at[NORMS], []
    for row, net in NORM_NETS.items():
        if (chosen := tau(net)) is not None:
            product = results.metric(row, "product of the norms")
            told = f"{chosen / np.nanmean(product):.2g} by the product of norms" if np.isfinite(product).any() else ""
            values = np.log(chosen) - _log(results, row, "constant")
            label = f"{row}: ln(tau / local constant), tau {chosen:g} ({told})"
            lost = int(results.diverged(row).sum())
            parts.append(Difference(label, values, "within", np.log(ORDER), pool=(NORMS, "tau"), failed=lost))
    return [*parts, Missing("LeNetSmall; CIFAR-10 models, ConvNet")]


def unit_norms(results: Results) -> list[Check]:
    """That each layer's spectral norm is CLOSE to 1, of the MLP and the CNN with the penalty, from NORMS."""
    parts = []
    for row in (f"{kind}, {label}" for kind in ("MLP", "CNN") for label in ("LCR", *AMR)):
        far = results.metric(row, "largest |norm - 1|")
        parts.append(Check(f"{row}: largest |spectral norm - 1| of a layer", far < CLOSE, far, f"< {CLOSE:g}"))
    return parts


def _steps(at):
    (results,), parts = at.values(), []
    first, *more = (more_steps.array(steps) for steps in more_steps.STEPS)
    for row in results.records:
        gone = results.diverged(row)
        base = results.samples(row, first).astype(float)
        for name in more:
            apart = 100.0 * (results.samples(row, name).astype(float) - base)
            parts.append(
                Difference(
                    f"{row}, eps {more_steps.EPS[row[:3]]:g}: {name} - {first}",
                    apart.mean(1),
                    "within",
                    0.5,
                    pool=(more_steps.NAME, name),
                    unit="points",
                    images=None if gone.all() else apart[~gone].mean(0),
                    resolution=100.0 / apart.shape[1],
                    failed=int(gone.sum()),
                )
            )
    return parts


EVIDENCE = {
    "amr-s5-bound-near-true-distance": Evidence((NAME,), _near),
    "amr-s5-bound-orders-models": Evidence((networks.MLP, networks.CNN), _orders),
    "amr-s5-sampling-accurate": Evidence((NAME,), _accurate),
    "amr-appf-norm-product-grows-with-depth": Evidence((NORMS,), _product),
    "amr-appf-tau-order-of-lipschitz": Evidence((NORMS,), _order_of_tau),
    "amr-appf-more-steps-no-change": (
        Evidence((more_steps.NAME,), _steps),
        Evidence((more_steps.OF_CNN,), _steps, since="gpu"),
    ),
    "amr-s4-penalty-gives-unit-norms": Evidence((NORMS,), lambda at: unit_norms(at[NORMS])),
}
