"""How claims are read from the large tables: differences of two rows in one column or in the mean of several."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.stats import f_oneway, spearmanr

from margins.claims import Check, Difference, Evidence, Missing
from margins.experiments import Results
from margins.intervals import LEVEL, holm, of_mean
from margins.papers.paired import Measure, difference, seeds, share

#: The papers' columns, as they are called here.
COLUMNS = {
    "clean": "clean", "fgsm": "FGSM", "pgd10": "PGD-10", "pgd20": "PGD-20", "pgd100": "PGD-100", "cw": "CW",
    "autoattack": "AutoAttack", "square": "Square", "spsa": "SPSA",
}  # fmt: skip
#: All attacks of LMA's tables.
ATTACKS = ("FGSM", "PGD-20", "PGD-100", "CW", "AutoAttack", "Square", "SPSA")
Read = Callable[[str, Results], list[Difference | Check | Missing]]
Pairs = Sequence[tuple[str, str]]


def over(names: Iterable[str], *reads: Read, missing: Sequence[str] = (), since: str = "gpu") -> tuple[Evidence, ...]:
    """One evidence a table: what each read(label, results) says of it, and what is missing in all of them."""

    def of(name: str) -> Evidence:
        def parts(at):
            found = [part for read in reads for part in read(name.partition("/")[2], at[name])]
            return [*found, *map(Missing, missing)]

        return Evidence((name,), parts, since=since)

    return tuple(map(of, names))


def compared(pairs: Pairs, columns: Sequence[str], relation: str = ">", delta: float = 0.0) -> Read:
    """The first of each pair minus the second, in each column."""

    def read(label: str, results: Results) -> list[Difference]:
        return [
            difference(f"{label}, {name}", *_rows(results, pair), measured(name), relation, delta)
            for pair in pairs
            for name in columns
        ]

    return read


def apart(rows: Sequence[str], one: str, other: str, first: Measure | None = None) -> Read:
    """Of each row one column minus another, on the images that both saw; first: what stands for the first column."""
    measure = _between(first or measured(one), measured(other))

    def read(label: str, results: Results) -> list[Difference]:
        return [difference(f"{label}, {one} - {other}", (results, row), 0.0, measure, ">") for row in rows]

    return read


def mean(pairs: Pairs, columns: Sequence[str], delta: float = 0.0, relation: str = ">") -> Read:
    """The same of the mean over some columns, on the images that all of them saw."""

    def read(label: str, results: Results) -> list[Difference]:
        name = f"{label}, mean of {len(columns)} columns" if len(columns) > 2 else f"{label}, {' and '.join(columns)}"
        return [difference(name, *_rows(results, pair), measured(*columns), relation, delta) for pair in pairs]

    return read


def gap(pairs: Pairs, easy: str, hard: str, relation: str, delta: float) -> Read:
    """The same of how far a column is above another."""

    measure = _between(measured(easy), measured(hard))

    def read(label: str, results: Results) -> list[Difference]:
        name = f"{label}, {easy} - {hard}"
        return [difference(name, *_rows(results, pair), measure, relation, delta) for pair in pairs]

    return read


def most(pairs: Pairs, columns: Sequence[str], count: int, delta: float = 0.0) -> Read:
    """That at least `count` of the columns have the first of a pair ahead: the count-th largest difference."""

    def read(label: str, results: Results) -> list[Difference]:
        found = []
        for pair in pairs:
            parts = compared([pair], columns, delta=delta)(label, results)
            found.append(sorted(parts, key=lambda part: -np.nanmean(part.values))[count - 1])
        return found

    return read


def no_loss(pairs: Pairs, columns: Sequence[str]) -> Read:
    """That in no column the interval of a pair's difference lies below 0."""

    def read(label: str, results: Results) -> list[Check]:
        found = []
        for pair in pairs:
            lost = []
            for name, part in zip(columns, compared([pair], columns)(label, results), strict=True):
                kept = ~np.isnan(part.values)
                high = of_mean(part.values[kept], part.images, part.resolution).high if kept.sum() > 1 else np.nan
                lost += [name] if not high >= 0 else []
            name = f"{label}, {pair[0]} - {pair[1]}: columns with a loss"
            found.append(Check(name, np.array([not lost]), ", ".join(lost) or "none", "none"))
        return found

    return read


def spread(rows: Sequence[str], columns: Sequence[str], least: float) -> Read:
    """That over rows the means of at least one column are further apart than `least` and than seeds explain.

    The latter by an F test at the 5 % level, with Holm's correction over the columns.
    """

    def read(label: str, results: Results) -> list[Check]:
        means = {name: [share(results, row, name).mean(1) for row in rows] for name in columns}
        widest = {name: np.ptp([one.mean() for one in values]) for name, values in means.items()}
        p = dict(zip(means, holm([float(f_oneway(*values).pvalue) for values in means.values()]), strict=True))
        told = ", ".join(f"{name} {widest[name]:.2f} (p {p[name]:.2g})" for name in columns)
        held = any(widest[name] > least and p[name] < LEVEL for name in columns)
        return [
            Check(f"{label}, largest minus smallest mean over {len(rows)} rows", np.array([held]), told, f"> {least:g}")
        ]

    return read


def narrow(rows: Sequence[str], columns: Sequence[str], supported: float, contradicted: float) -> Read:
    """That the least half width of a 95 % interval over seeds is small: by two bounds, undecided between them."""

    def read(label: str, results: Results) -> list[Check]:
        halves = []
        for row in rows:
            for name in columns:
                interval = of_mean(share(results, row, name).mean(1))
                halves.append((interval.high - interval.low) / 2)
        held = np.array([min(halves) <= bound for bound in (supported, contradicted)])
        return [Check(f"{label}, least half width", held, f"{min(halves):.3f} points", f"<= {supported:g}")]

    return read


def trend(rows: Sequence[tuple[float, str]], column: str, relation: str) -> Read:
    """Spearman's correlation of a setting with a column over rows, seed by seed."""

    def read(label: str, results: Results) -> list[Difference]:
        settings = [value for value, _ in rows]
        kept = np.array([share(results, row, column).mean(1) for _, row in rows])
        values = np.array([spearmanr(settings, one).statistic for one in kept.T])
        name = f"{label}, {column} over {len(rows)} rows"
        return [seeds(name, values, relation, unit="rank correlation")]

    return read


def farther(pairs: Pairs, column: str = "Race distance") -> Read:
    """The median distance that an attack finds, of the first of a pair minus that of the second."""

    def read(label: str, results: Results) -> list[Difference]:
        found = []
        for one, other in pairs:
            medians = [np.median(results.samples(row, column).astype(float), axis=1) for row in (one, other)]
            values, name = medians[0] - medians[1], f"{label}, {one} - {other}, median distance"
            found.append(seeds(name, values, ">", unit="input units"))
        return found

    return read


def along(pairs: Pairs, column: str, relation: str, unit: str) -> Read:
    """The same of what is measured of images along the training, at its end."""

    def measure(results: Results, row: str) -> np.ndarray:
        return results.samples(row, f"{column}, along")[:, -1].astype(float)

    def read(label: str, results: Results) -> list[Difference]:
        return [difference(f"{label}, {column}", *_rows(results, pair), measure, relation, unit=unit) for pair in pairs]

    return read


def _between(one: Measure, other: Measure) -> Measure:
    """One column minus another, on the images that both saw."""

    def measure(results: Results, row: str) -> np.ndarray:
        first, second = one(results, row), other(results, row)
        images = min(first.shape[1], second.shape[1])
        return first[:, :images] - second[:, :images]

    return measure


def _rows(results: Results, pair: tuple[str, str]) -> tuple[tuple[Results, str], tuple[Results, str]]:
    return (results, pair[0]), (results, pair[1])


def measured(*names: str) -> Measure:
    """(S, N) in points whether an image withstands, the mean of so many columns where there are several."""
    return lambda results, row: share(results, row, *names)
