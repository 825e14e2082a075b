"""Searches for settings on a validation split: the candidates are an experiment's rows, declared before any run."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from margins.errors import MarginsError
from margins.experiments import Experiment, Outcome, Results

#: What the name of every metric, curve and array of a search begins with.
VALIDATION = "validation"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high; log: drawn evenly on the logarithmic scale, so low > 0. Raises MarginsError."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        if not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0):
            least = "0 < low" if self.log else "low"
            raise MarginsError(f"range: from {self.low!r} to {self.high!r} given, {least} < high is needed")

    def draw(self, generator: random.Random) -> float:
        """A number of three significant digits, so that a row's name says all of it."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + (high - low) * generator.random()
        return min(max(float(f"{math.exp(value) if self.log else value:.3g}"), self.low), self.high)


#: Setting -> the values that it may take.
Space = Mapping[str, Sequence[Any] | Range]


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of the values, the last setting varying fastest. Raises MarginsError for a `Range`."""
    if ranges := [name for name, values in space.items() if isinstance(values, Range)]:
        raise MarginsError(f"space: {', '.join(ranges)} is a range, which a grid has no values of; draw candidates")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def draw(space: Space, count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """`count` different random candidates, the same for the same seed on every machine and version of Python.

    Each setting is drawn on its own, evenly from its values or as its `Range` says. Raises MarginsError where the space
    has fewer candidates.
    """
    generator = random.Random(seed)  # only random() is the same in all versions
    found: dict[str, dict[str, Any]] = {}
    for _ in range(1000 * count):
        if len(found) == count:
            break
        candidate = {
            name: values.draw(generator) if isinstance(values, Range) else values[int(len(values) * generator.random())]
            for name, values in space.items()
        }
        found.setdefault(name_of(candidate), candidate)
    if len(found) < count:
        raise MarginsError(f"count: {count} candidates asked for, but the space has about {len(found)}")
    return list(found.values())


def name_of(candidate: Mapping[str, Any]) -> str:
    """A row's name, as "lr 0.1, beta 6"."""
    return ", ".join(f"{name} {value}" for name, value in candidate.items())


@dataclass(frozen=True)
class Search(Experiment):
    """An experiment whose rows are candidates. Its runs report what they measured on a validation split, nothing else.

    A run that returns a metric, curve or array whose name does not begin with "validation" fails with a MarginsError: a
    number that was measured on test data has no place in what a choice rests on. On a cluster the runs are Ray Tune
    trials.
    """

    def check(self, outcome: Outcome) -> None:
        names = [*outcome.metrics, *outcome.curves, *outcome.arrays]
        if other := [name for name in names if not name.startswith(VALIDATION)]:
            raise MarginsError(f"{self.name} is a search: {', '.join(other)} must begin with {VALIDATION!r}")


def search(
    candidates: Sequence[Mapping[str, Any]],
    *,
    row: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    **declared: Any,
) -> Search:
    """The search over candidates from `grid` or `draw`; the row of each is `row(candidate)`, by default itself.

    declared: what else an `Experiment` declares. Raises MarginsError for no candidates or two of the same name.
    """
    rows = {name_of(candidate): row(candidate) for candidate in candidates}
    if not rows or len(rows) < len(candidates):
        raise MarginsError(f"candidates: {len(candidates)} given with {len(rows)} names; at least one, all different")
    return Search(rows=rows, **declared)


def best(results: Results, metric: str) -> str:
    """The row with the highest mean of a metric over its seeds; of equal ones the first declared.

    A candidate of which a seed diverged is not chosen. Raises MarginsError for results that are not a search's, and
    where no candidate is left.
    """
    if not isinstance(results.experiment, Search):
        raise MarginsError(f"results: {results.experiment.name} is not a search, and nothing is chosen by its results")
    means = {row: float(results.metric(row, metric).mean()) for row in results.records}
    means = {row: mean for row, mean in means.items() if not (np.isnan(mean) or results.diverged(row).any())}
    if not means:
        raise MarginsError(f"{metric}: every candidate of {results.experiment.name} diverged")
    return max(means, key=means.__getitem__)
