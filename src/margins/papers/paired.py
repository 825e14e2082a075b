"""Differences between two rows of tables, paired by seed and image: what most claims are read from."""

from collections.abc import Callable, Sequence

import numpy as np

from margins.claims import Difference
from margins.experiments import Results
from margins.intervals import Interval, of_mean

#: What is validated along a training, and chosen by.
HELD_OUT = "validation PGD-10"
#: A row of an experiment's results.
Of = tuple[Results, str]
#: (results, row) -> (S, N), a number a seed and image; nan where a seed diverged.
Measure = Callable[[Results, str], np.ndarray]


def share(results: Results, row: str, *columns: str) -> np.ndarray:
    """(S, N) the mean of columns an image, in %, on the images that all of them have; nan where a seed diverged."""
    found = [results.samples(row, column) for column in columns]
    images = min(column.shape[1] for column in found)
    return 100.0 * np.mean([column[:, :images].astype(float) for column in found], axis=0)


def worst(results: Results, row: str, *columns: str) -> np.ndarray:
    """(S, N) in % whether an image withstood all of some attacks on the same images; nan where a seed diverged."""
    return 100.0 * np.min([results.samples(row, column).astype(float) for column in columns], axis=0)


def difference(
    label: str,
    one: Of,
    other: Of | float,
    measure: Measure,
    relation: str,
    delta: float = 0.0,
    *,
    unit: str = "points",
    lost: Callable[[Results, str], np.ndarray] | None = None,
) -> Difference:
    """`measure` of one row minus that of another, or minus a number, paired by seed and image.

    lost: (results, row) -> (S,), the seeds that count as diverged, by default those that did. Accuracies are in points,
    of which an image is the smallest step; lengths have none. Differences with the same first experiment and label pool
    their variances.
    """
    rows = [one] if isinstance(other, float) else [one, other]
    gone = [results.diverged(row) if lost is None else lost(results, row) for results, row in rows]
    kept = ~np.any(gone, axis=0)
    values, images = np.full(len(kept), np.nan), None
    if kept.any():
        apart = (measure(*one) - (other if isinstance(other, float) else measure(*other)))[kept]
        values[kept], images = apart.mean(1), apart.mean(0)
    against = f"{other:g}" if isinstance(other, float) else other[1]
    return Difference(
        f"{one[1]} - {against}, {label}",
        values,
        relation,
        delta,
        pool=(one[0].experiment.name, label),
        unit=unit,
        images=images,
        resolution=100 / len(images) if unit == "points" and images is not None else 0.0,
        failed=int(gone[0].sum()),
        opposed=0 if len(gone) == 1 else int(gone[1].sum()),
    )


def seeds(label: str, values: np.ndarray, relation: str, delta: float = 0.0, unit: str = "points") -> Difference:
    """A number a seed, nan of those that diverged, where images add no variance or are not the same ones."""
    return Difference(label, values, relation, delta, unit=unit, failed=int(np.isnan(values).sum()))


def mean(results: Results, row: str, measure: Measure, unit: str = "points") -> Interval:
    """The interval of a row's mean over seeds and images; of its seeds that did not diverge."""
    values = measure(results, row)[~results.diverged(row)]
    return of_mean(values.mean(1), values.mean(0), 100 / values.shape[1] if unit == "points" else 0.0)


def said(interval: Interval, digits: int = 2) -> str:
    """A mean and half of its interval, as 1.79 ± 0.06, on one line."""
    return f"{interval.estimate:.{digits}f}\u00a0±\u00a0{interval.high - interval.estimate:.{digits}f}"


def chosen(results: Results, rows: Sequence[str]) -> str:
    """Of these rows the one that withstands PGD best on held-out images after the last epoch, mean of the seeds.

    One of which a seed diverged is chosen only where there is no other.
    """
    sound = [row for row in rows if not results.diverged(row).any()]
    return max(sound or rows, key=lambda row: results.curve(row, HELD_OUT)[:, -1].mean() if sound else 0.0)
