"""How claims are read from the large tables: differences of two rows in one column or in the mean of several."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.stats import spearmanr

from margins.claims import Difference, Evidence, Missing
from margins.experiments import Results
from margins.papers.paired import Measure, difference, share

#: All attacks of LMA's tables.
ATTACKS = ("FGSM", "PGD-20", "PGD-100", "CW", "AutoAttack", "Square", "SPSA")
Read = Callable[[str, Results], list[Difference | Missing]]
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


def mean(pairs: Pairs, columns: Sequence[str], delta: float = 0.0, relation: str = ">") -> Read:
    """The same of the mean over some columns, on the images that all of them saw."""

    def read(label: str, results: Results) -> list[Difference]:
        name = f"{label}, mean of {len(columns)} columns" if len(columns) > 2 else f"{label}, {' and '.join(columns)}"
        return [difference(name, *_rows(results, pair), measured(*columns), relation, delta) for pair in pairs]

    return read


def gap(pairs: Pairs, easy: str, hard: str, relation: str, delta: float) -> Read:
    """The same of how far a column is above another."""

    def measure(results: Results, row: str) -> np.ndarray:
        first, second = (share(results, row, column) for column in (easy, hard))
        images = min(first.shape[1], second.shape[1])
        return first[:, :images] - second[:, :images]

    def read(label: str, results: Results) -> list[Difference]:
        name = f"{label}, {easy} - {hard}"
        return [difference(name, *_rows(results, pair), measure, relation, delta) for pair in pairs]

    return read


def most(pairs: Pairs, columns: Sequence[str], count: int) -> Read:
    """That at least `count` of the columns have the first of a pair ahead: the count-th largest difference."""

    def read(label: str, results: Results) -> list[Difference]:
        found = []
        for pair in pairs:
            parts = compared([pair], columns)(label, results)
            found.append(sorted(parts, key=lambda part: -np.nanmean(part.values))[count - 1])
        return found

    return read


def trend(rows: Sequence[tuple[float, str]], column: str, relation: str) -> Read:
    """Spearman's correlation of a setting with a column over rows, seed by seed."""

    def read(label: str, results: Results) -> list[Difference]:
        settings = [value for value, _ in rows]
        kept = np.array([share(results, row, column).mean(1) for _, row in rows])
        values = np.array([spearmanr(settings, one).statistic for one in kept.T])
        name = f"{label}, {column} over {len(rows)} rows"
        return [Difference(name, values, relation, unit="rank correlation", failed=int(np.isnan(values).sum()))]

    return read


def farther(pairs: Pairs, column: str = "Race distance") -> Read:
    """The median distance that an attack finds, of the first of a pair minus that of the second."""

    def read(label: str, results: Results) -> list[Difference]:
        found = []
        for one, other in pairs:
            medians = [np.median(results.samples(row, column).astype(float), axis=1) for row in (one, other)]
            values, name = medians[0] - medians[1], f"{label}, {one} - {other}, median distance"
            lost = int(np.isnan(values).sum())
            found.append(Difference(name, values, ">", unit="input units", failed=lost))
        return found

    return read


def _rows(results: Results, pair: tuple[str, str]) -> tuple[tuple[Results, str], tuple[Results, str]]:
    return (results, pair[0]), (results, pair[1])


def measured(*names: str) -> Measure:
    """(S, N) in points whether an image withstands, the mean of so many columns where there are several."""
    return lambda results, row: share(results, row, *names)
