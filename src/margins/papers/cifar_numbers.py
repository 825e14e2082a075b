"""How claims on printed numbers are read: accuracies of the large tables beside the lines that papers print."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from margins.claims import Difference
from margins.experiments import Results
from margins.papers.cifar_reading import COLUMNS, Pairs, Read
from margins.papers.paired import seeds, share

#: A line of a printed table: the experiment, its row, and what is printed.
Line = tuple[str, str, Mapping[str, str]]
#: The lines of some printed tables, which are read only where a verdict asks for them.
Lines = Callable[[], Sequence[Line]]


def numbers(lines: Lines, keys: Sequence[str], within: float) -> Read:
    """Of each line of the experiment the accuracies under these printed columns minus the print, in points."""

    def read(label: str, results: Results) -> list[Difference]:
        own = _own(lines, results)
        told = {(row, key): float(line[key]) for row, line in own for key in keys if line.get(key)}
        return [
            seeds(f"{row} - {value:g}, {COLUMNS[key]}", _accuracy(results, row, key) - value, "within", within)
            for (row, key), value in told.items()
        ]

    return read


def gains(lines: Lines, pairs: Pairs, keys: Sequence[str], within: float) -> Read:
    """Of pairs of rows the gain of the first over the second minus the printed gain, under these printed columns."""

    def read(label: str, results: Results) -> list[Difference]:
        told, found = dict(_own(lines, results)), []
        for one, other in pairs:
            for key in (key for key in keys if told[one].get(key) and told[other].get(key)):
                printed = float(told[one][key]) - float(told[other][key])
                gain = _accuracy(results, one, key) - _accuracy(results, other, key)
                name = f"{one} - {other}, {COLUMNS[key]}, beside {printed:+.2f}"
                found.append(seeds(name, gain - printed, "within", within))
        return found

    return read


def _own(lines: Lines, results: Results) -> list[tuple[str, Mapping[str, str]]]:
    """The rows and lines that are about these results."""
    return [(row, line) for name, row, line in lines() if name == results.experiment.name]


def _accuracy(results: Results, row: str, key: str) -> np.ndarray:
    """(S,) in %, of all test images, so that only seeds differ."""
    return share(results, row, COLUMNS[key]).mean(1)
