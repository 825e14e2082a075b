"""What the claims on AMM's attack are read from: DeepFool and Race on trained networks (sections 1, 3.1, 3.3.4, 4.2).

Shares are in %, of images, without a box. The ConvNet of CIFAR-10 is trained without AMM only: what is said of AMM's
training there has not been run. Its first epoch and its last stand for AMM's training; the networks are those at the
end of it.
"""

import numpy as np

from margins.claims import Check, Difference, Evidence, Missing
from margins.experiments import Results
from margins.papers.amm.attack import FIRST, LIMIT, NAME, RACE, U6, U50

REFERENCES = ("MLP, reference", "LeNet, reference", "ConvNet, reference")
TRAINED = ("MLP, MIN+EXP", "LeNet, MIN+EXP")
WALKS = "train iterations, AMM's walk"
#: "About all" and "about 1 to 3", in %; how near is close.
ALL, MOST, NEAR = 99.0, 90.0, 1.25


def _share(results: Results, row: str, label: str, done: np.ndarray, least: float) -> Difference:
    """More than `least` % of images are done (S, N)."""
    gone = results.diverged(row)
    values = np.where(gone, np.nan, 100.0 * done.mean(1))
    return Difference(
        f"{row}: {label}",
        values,
        ">",
        least,
        unit="%",
        images=None if gone.all() else 100.0 * done[~gone].mean(0),
        resolution=100.0 / done.shape[1],
        failed=int(gone.sum()),
    )


def _always(at):
    results, parts = at[NAME], []
    for row in REFERENCES:
        for name in (U50, RACE):
            done = np.isfinite(results.samples(row, name))
            parts.append(_share(results, row, f"images whose prediction {name} changes", done, ALL))
    return parts


def _near(at):
    results = at[NAME]
    off = results.metric("linear", "largest |ratio - 1.02|")
    parts: list[Check | Difference] = [Check("linear: largest |ratio - 1.02|", off < 1e-6, off, "< 1e-6")]
    for row in (*REFERENCES[:2], *TRAINED, "tiny ReLU net"):
        for name in (U6, U50):
            values = results.metric(row, f"{name}: median ratio")
            failed = int(results.diverged(row).sum())
            known = "exact" if row == "tiny ReLU net" else "best known"
            label = f"{row}: {name} over the {known} distance, median"
            parts.append(Difference(label, values, "<", NEAR, pool=(NAME, "ratio", known), failed=failed))
    return parts


def _small(at):
    results = at[NAME]
    return [
        _share(results, row, "test images done within 3 iterations", results.samples(row, "test iterations") <= 3, MOST)
        for row in REFERENCES[1:]
    ]


def _lenet(at):
    results, parts = at[NAME], []
    for split in ("test", "train"):
        share = (results.samples("LeNet, reference", f"{split} iterations") <= 3).mean(1)
        parts.append(Check(f"share of all {split} images done within 3 iterations", share == 1, share, "= 1"))
    return parts


def _enough(at):
    results, parts = at[NAME], []
    for row in (name + epoch for name in TRAINED for epoch in ("", FIRST)):
        record = results.records[row][0]
        trained_on = record.config["trained"][results.scale]["size"]
        done = results.samples(row, WALKS)[:, :trained_on] <= LIMIT
        parts.append(_share(results, row, f"training images done within {LIMIT} iterations", done, ALL))
    return [*parts, Missing("ConvNet on CIFAR-10")]


EVIDENCE = {
    "amm-s1-attack-always-succeeds": Evidence((NAME,), _always),
    "amm-s1-perturbation-near-margin": Evidence((NAME,), _near),
    "amm-s31-iterations-small-data": Evidence((NAME,), _small),
    "amm-s31-iterations-lenet-all": Evidence((NAME,), _lenet),
    "amm-s42-six-iterations-enough": Evidence((NAME,), _enough),
}
