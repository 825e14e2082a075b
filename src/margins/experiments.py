"""Experiments: tables of runs, rows x seeds at a scale, declared as data; and their results, read from the records."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from margins import paths
from margins.checkpoints import Checkpoint
from margins.errors import MarginsError
from margins.records import SCALES, Record, Store, key_of


class NotRecorded(MarginsError):
    """Records that an experiment's results need are not there."""


@dataclass(frozen=True)
class Unit:
    """One row with one seed at one scale: what one record is about."""

    experiment: str
    scale: str
    row: str
    seed: int
    config: Mapping[str, Any]
    key: str

    def __str__(self) -> str:
        return f"{self.experiment} {self.scale} {self.row!r} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a unit's run returns: metrics (numbers), curves (lists of numbers) and arrays (per-sample results)."""

    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    status: str = "done"


@dataclass(frozen=True)
class Experiment:
    """A table of runs.

    A unit's configuration is `settings`, then the scale's, then the row's; a row's own `seeds` replace the
    experiment's. `run(units, checkpoint)` returns an Outcome a unit. Units with the same `stack(unit)` are run at once,
    always all of them, so that what is missing does not change a number; by default each runs alone.
    """

    name: str
    title: str
    source: str
    rows: Mapping[str, Mapping[str, Any]]
    scales: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    run: Callable[[list[Unit], Checkpoint], Iterable[Outcome]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict)
    stack: Callable[[Unit], Any] | None = None
    #: Estimated minutes on one thread for the units of one stack, by scale.
    minutes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if unknown := set(self.scales) - set(SCALES):
            raise MarginsError(f"scales of {self.name}: {', '.join(sorted(unknown))} not among {', '.join(SCALES)}")

    def row_seeds(self, row: str) -> tuple[int, ...]:
        return tuple(self.rows[row].get("seeds", self.seeds))

    def units(self, scale: str) -> list[Unit]:
        """Every unit of the table at a scale. Raises MarginsError for a scale that the experiment does not have."""
        if scale not in self.scales:
            raise MarginsError(f"scale: {self.name} has no {scale!r}; it has {', '.join(self.scales)}")
        units = []
        for row, own in self.rows.items():
            config = {**self.settings, **self.scales[scale], **{k: v for k, v in own.items() if k != "seeds"}}
            for seed in self.row_seeds(row):
                key = key_of(self.name, row, seed, scale, config, self.revisions)
                units.append(Unit(self.name, scale, row, seed, config, key))
        return units

    def groups(self, scale: str) -> list[list[Unit]]:
        """The units of a scale, those that run at once together."""
        groups: dict[Any, list[Unit]] = {}
        for unit in self.units(scale):
            groups.setdefault(unit.key if self.stack is None else self.stack(unit), []).append(unit)
        return list(groups.values())


EXPERIMENTS: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    EXPERIMENTS[experiment.name] = experiment
    return experiment


def find(name: str) -> Experiment:
    """The experiment of that name. Raises MarginsError that lists the names there are."""
    if name not in EXPERIMENTS:
        raise MarginsError(f"experiment: there is no {name!r}; there are {', '.join(sorted(EXPERIMENTS))}")
    return EXPERIMENTS[name]


class Results:
    """An experiment's records at one scale, complete: every row and every declared seed."""

    def __init__(self, experiment: Experiment, scale: str, records: Mapping[str, list[Record]], store: Store):
        self.experiment, self.scale, self.seeds, self.records = experiment, scale, experiment.seeds, records
        self._store = store

    def _of(self, row: str) -> list[Record]:
        if row not in self.records:
            raise MarginsError(f"row: {self.experiment.name} has no {row!r}; it has {', '.join(self.records)}")
        return self.records[row]

    def _each(self, row: str, kind: str, name: str, values: list[Mapping]) -> np.ndarray:
        for value in values:
            if name not in value:
                raise MarginsError(f"{kind}: {self.experiment.name} {row!r} has no {name!r}; it has {', '.join(value)}")
        return np.array([value[name] for value in values])

    def metric(self, row: str, name: str) -> np.ndarray:
        """One number a seed, shape (S,); nan where that seed diverged."""
        return self._each(row, "metric", name, [record.metrics for record in self._of(row)])

    def curve(self, row: str, name: str) -> np.ndarray:
        """One curve a seed, shape (S, T)."""
        return self._each(row, "curve", name, [record.curves for record in self._of(row)])

    def samples(self, row: str, name: str) -> np.ndarray:
        """One array a seed, shape (S, ...): per-sample results."""
        return self._each(row, "array", name, [self._store.arrays(record) for record in self._of(row)])

    def diverged(self, row: str) -> np.ndarray:
        """Which seeds diverged, shape (S,)."""
        return np.array([record.status == "diverged" for record in self._of(row)])


def results(name: str, scale: str, store: Store | None = None) -> Results:
    """The results of an experiment at a scale, from its records.

    Raises NotRecorded where a unit has none, MarginsError for an unknown name or scale or an unreadable record.
    """
    experiment, store = find(name), store or Store()
    paths.note(store.folder(name))
    records: dict[str, list[Record]] = {}
    missing = []
    for unit in experiment.units(scale):
        record = store.load(name, unit.key)
        records.setdefault(unit.row, []).append(record)
        if record is None:
            missing.append(unit)
    if missing:
        raise NotRecorded(
            f"{len(missing)} of {len(experiment.units(scale))} records of {name} at scale {scale} are missing"
            f" (first: {missing[0]}); they are made by: margins record {name} --scale {scale}"
        )
    return Results(experiment, scale, records, store)


def stale(store: Store | None = None) -> list[Record]:
    """Records that the code of today would not make: their unit exists, with another configuration or revision."""
    store = store or Store()
    old = []
    for experiment in EXPERIMENTS.values():
        current = {unit.key for scale in experiment.scales for unit in experiment.units(scale)}
        old += [record for record in store.all(experiment.name) if record.key not in current]
    return old
