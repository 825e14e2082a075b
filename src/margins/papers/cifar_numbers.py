"""What claims on printed numbers are read from: accuracies of the large tables beside the lines that papers print."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from margins.claims import Difference, Evidence, Missing
from margins.experiments import Results
from margins.papers.cifar_reading import COLUMNS
from margins.papers.paired import share

#: A line of a printed table: the experiment, its row, and what is printed.
Line = tuple[str, str, Mapping[str, str]]


#: The lines of some printed tables, which are read only where a verdict asks for them.
Lines = Callable[[], Sequence[Line]]


def numbers(names: Sequence[str], lines: Lines, keys: Sequence[str], within: float) -> tuple[Evidence, ...]:
    """Of each line the accuracies under these printed columns minus the print, in points; an evidence a table.

    names: the experiments that the lines are about.
    """

    def read(name: str, results: Results) -> list[Difference]:
        told = {
            (row, key): float(line[key]) for one, row, line in lines() if one == name for key in keys if line.get(key)
        }
        return [
            _seeds(f"{row} - {value:g}, {COLUMNS[key]}", _accuracy(results, row, key) - value, within)
            for (row, key), value in told.items()
        ]

    return _over(names, read)


def gains(
    names: Sequence[str],
    lines: Lines,
    pairs: Sequence[tuple[str, str]],
    keys: Sequence[str],
    within: float,
    missing: Sequence[str] = (),
) -> tuple[Evidence, ...]:
    """Of pairs of rows the gain of the first over the second minus the printed gain, under these printed columns."""

    def read(name: str, results: Results) -> list[Difference]:
        told = {row: line for one, row, line in lines() if one == name}
        found = []
        for one, other in pairs:
            for key in (key for key in keys if told[one].get(key) and told[other].get(key)):
                printed = float(told[one][key]) - float(told[other][key])
                gain = _accuracy(results, one, key) - _accuracy(results, other, key)
                found.append(_seeds(f"{one} - {other}, {COLUMNS[key]}, beside {printed:+.2f}", gain - printed, within))
        return found

    return _over(names, read, missing)


def _accuracy(results: Results, row: str, key: str) -> np.ndarray:
    """(S,) in %, of all test images, so that only seeds differ."""
    return share(results, row, COLUMNS[key]).mean(1)


def _seeds(label: str, apart: np.ndarray, within: float) -> Difference:
    return Difference(label, apart, "within", within, unit="points", failed=int(np.isnan(apart).sum()))


def _over(
    names: Sequence[str], read: Callable[[str, Results], list[Difference]], missing: Sequence[str] = ()
) -> tuple[Evidence, ...]:
    """An evidence an experiment, at the scale paper."""

    def of(name: str) -> Evidence:
        return Evidence((name,), lambda at: [*read(name, at[name]), *map(Missing, missing)], since="paper")

    return tuple(map(of, names))
