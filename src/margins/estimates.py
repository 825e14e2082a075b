"""How long runs will take: as long as those that are recorded, or as the experiment says."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import median

from margins.experiments import Experiment, Unit
from margins.records import Store


class Estimates:
    """Minutes of an experiment's units at a scale.

    The median of the recorded seconds of the same row and part, or else of the same part in all rows; where there are
    none, what the experiment declares. Reads every record of the experiment once.
    """

    def __init__(self, experiment: Experiment, scale: str, store: Store):
        self.experiment = experiment
        self._declared = experiment.minutes.get(scale)
        self._seconds: dict[tuple[str, str | None], list[float]] = {}
        for record in store.all(experiment.name):
            if record.scale == scale and "seconds" in record.provenance:
                for row in (record.row, None):
                    spent = self._seconds.setdefault((record.config.get("part", ""), row), [])
                    spent.append(record.provenance["seconds"])

    def minutes(self, unit: Unit) -> float | None:
        """Of one unit, or of the stack that it is in; None where nothing is known."""
        for row in (unit.row, None):
            if spent := self._seconds.get((unit.part, row)):
                return median(spent) / 60
        return self._declared.get(unit.part) if isinstance(self._declared, Mapping) else self._declared

    def runs(self, missing: list[Unit]) -> list[tuple[str, float | None]]:
        """What is missing of a group, as (text, minutes): the parts one by one, the units of a stack together.

        With it what is recorded, but has to be made again for it: a first part whose weights are lost.
        """
        if self.experiment.parts:
            first = next(iter(self.experiment.parts))
            made = {unit.seed for unit in missing if unit.part == first}
            lost = {unit.seed: replace(unit, part=first) for unit in missing if self.experiment.lost(unit)}
            again = [(f"{unit}, again", self.minutes(unit)) for seed, unit in lost.items() if seed not in made]
            return again + [(str(unit), self.minutes(unit)) for unit in missing]
        return [("; ".join(map(str, missing)), self.minutes(missing[0]))]


def lines(groups: list[list[Unit]], estimates: Estimates) -> list[str]:
    """What would run, each with its minutes."""
    return [f"{what}: {_text(minutes)}" for missing in groups for what, minutes in estimates.runs(missing)]


def total(groups: list[list[Unit]], estimates: Estimates, jobs: int) -> str:
    """How long all of it takes, one at a time and `jobs` at a time, as the end of a sentence; "" for unknown."""
    minutes = [[minutes for _, minutes in estimates.runs(missing)] for missing in groups]
    known = [sum(one for one in group if one is not None) for group in minutes]
    unknown = sum(group.count(None) for group in minutes)
    if unknown == sum(map(len, minutes)):
        return ""
    more = f", {_text(makespan(known, jobs))} with {jobs} jobs" if jobs > 1 else ""
    rest = f", and {unknown} of unknown length" if unknown else ""
    return f", {_text(sum(known))} on one thread{more}{rest}"


def makespan(minutes: Iterable[float], jobs: int) -> float:
    """Minutes that runs take that are begun in this order, `jobs` at a time."""
    ends = [0.0] * jobs
    for one in minutes:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def _text(minutes: float | None) -> str:
    if minutes is None:
        return "unknown"
    return f"about {minutes:.1f} minutes" if minutes >= 0.1 else "under 0.1 minutes"
