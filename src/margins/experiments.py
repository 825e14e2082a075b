"""Experiments: tables of runs, rows x seeds at a scale, declared as data; and their results, read from the records."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from margins import paths
from margins.checkpoints import Checkpoint
from margins.errors import MarginsError
from margins.records import SCALES, Record, Store, key_of, outdated

#: The beginning of the facts that name the failed sanity checks of a part.
FAILED = "failed checks of "


class NotRecorded(MarginsError):
    """Records that an experiment's results need are not there."""


@dataclass(frozen=True)
class Unit:
    """One row with one seed at one scale, or one part of it: what one record is about."""

    experiment: str
    scale: str
    row: str
    seed: int
    config: Mapping[str, Any]
    key: str
    part: str = ""

    def __str__(self) -> str:
        part = f", {self.part}" if self.part else ""
        return f"{self.experiment} {self.scale} {self.row!r} seed {self.seed}{part}"


@dataclass(frozen=True)
class Outcome:
    """What a unit's run returns: metrics (numbers), curves (lists of numbers) and arrays (per-sample results).

    status is "done" or "diverged". seconds: how long it took, where the run itself knows better than the clock, since
    it was resumed or made several units at once. facts are texts that go into the record's provenance: "weights" is the
    sha256 of the network that the unit trained or evaluated, and must be the same in all parts of a row and seed.
    """

    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    status: str = "done"
    facts: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Experiment:
    """A table of runs.

    A unit's configuration is `settings`, then the scale's, then the row's; a row's own `seeds` replace the
    experiment's. `run(units, checkpoint)` returns an Outcome a unit. Units with the same `stack(unit)` are run at once,
    always all of them, so that what is missing does not change a number; by default each runs alone.

    With `parts`, name -> settings, each row and seed has a record a part, such as its training and its evaluations: an
    evaluation that is added later adds a record and leaves the others. A part's configuration is the row's, then its
    name as "part" and its own settings, for which a scale may have other values under "parts"; nothing of them is in
    the configuration of another part, so what several parts rest on belongs in `settings`. `run` is called with those
    parts of one row and seed that are missing, in their order, and yields their outcomes one after the other: each is
    recorded when it comes, and what the run was killed in is all that is lost.

    `lost(unit)`: whether what the first part left for the others, such as weights in the cache, is gone, so that `run`
    makes it again; plans count it.

    Units run in the order of `units`: every row with its first seed, then every row with its second, and so on; of the
    rows in `together`, which have parts, one call of `run` is about all seeds, one after the other.
    Raises MarginsError for unknown scales or parts, and for a part that sets again what the row's configuration holds.
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
    #: Estimated minutes on one thread for the units of one stack, by scale; with parts those of one part, or by part.
    minutes: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    together: frozenset[str] = frozenset()
    lost: Callable[[Unit], bool] = lambda unit: False

    def __post_init__(self):
        if unknown := set(self.scales) - set(SCALES):
            raise MarginsError(f"scales of {self.name}: {', '.join(sorted(unknown))} not among {', '.join(SCALES)}")
        if self.parts and self.stack is not None:
            raise MarginsError(f"stack of {self.name}: the parts of a row and seed run together, and nothing else")
        for scale in self.scales:
            self._check_parts(scale)

    def _check_parts(self, scale: str) -> None:
        given = self.scales[scale].get("parts", {})
        minutes = self.minutes.get(scale, {})
        for what, names in (("parts", given), ("minutes", minutes if isinstance(minutes, Mapping) else {})):
            if unknown := set(names) - set(self.parts):
                has = ", ".join(self.parts) or "none"
                raise MarginsError(f"{what} of {self.name} at {scale}: {', '.join(sorted(unknown))} not among {has}")
        for part, settings in self.parts.items():
            named = {"part", *settings, *given.get(part, {})}
            for row in self.rows:
                if again := named & set(self._config(scale, row)):
                    raise MarginsError(
                        f"parts of {self.name}: {part} sets {', '.join(sorted(again))}, as {row!r} does at {scale};"
                        " a part's settings need names of their own"
                    )

    def _config(self, scale: str, row: str) -> dict[str, Any]:
        general = {name: value for name, value in self.scales[scale].items() if name != "parts"}
        return {**self.settings, **general, **{name: v for name, v in self.rows[row].items() if name != "seeds"}}

    def row_seeds(self, row: str) -> tuple[int, ...]:
        return tuple(self.rows[row].get("seeds", self.seeds))

    def units(self, scale: str) -> list[Unit]:
        """Every unit of the table at a scale, in the order in which they run: all rows with their first seed first.

        Raises MarginsError for a scale that the experiment does not have.
        """
        if scale not in self.scales:
            raise MarginsError(f"scale: {self.name} has no {scale!r}; it has {', '.join(self.scales)}")
        units = []
        rounds = zip_longest(*([(row, seed) for seed in self.row_seeds(row)] for row in self.rows))
        for row, seed in (pair for pairs in rounds for pair in pairs if pair is not None):
            for part in self.parts or ("",):
                config = self._config(scale, row)
                if part:
                    own = self.scales[scale].get("parts", {}).get(part, {})
                    config |= {"part": part, **self.parts[part], **own}
                key = key_of(self.name, row, seed, scale, config, self.revisions)
                units.append(Unit(self.name, scale, row, seed, config, key, part))
        return units

    def groups(self, scale: str) -> list[list[Unit]]:
        """The units of a scale, those that one call of `run` is about together, in the order in which they run."""
        groups: dict[Any, list[Unit]] = {}
        for unit in self.units(scale):
            alone = (unit.row, None if unit.row in self.together else unit.seed)
            groups.setdefault(alone if self.stack is None else self.stack(unit), []).append(unit)
        return list(groups.values())

    def check(self, outcome: Outcome) -> None:
        """Raise MarginsError for an outcome that this kind of experiment must not have; here every one is allowed."""


EXPERIMENTS: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    EXPERIMENTS[experiment.name] = experiment
    return experiment


def find(name: str) -> Experiment:
    """The experiment of that name. Raises MarginsError that lists the names there are."""
    if name not in EXPERIMENTS:
        known = ", ".join(sorted(EXPERIMENTS)) or "none yet (import margins.papers registers the book's)"
        raise MarginsError(f"experiment: there is no {name!r}; there are {known}")
    return EXPERIMENTS[name]


class Results:
    """An experiment's records at one scale, complete: every row and every declared seed, with all parts.

    `records` holds those of each row, in the order of its seeds and, within a seed, of the parts. What is asked for by
    name is looked up in all parts. `missing` names the rows that were left out. The methods raise MarginsError for a
    row or a name that there is not, and for a name that two parts have.
    """

    def __init__(self, experiment: Experiment, scale: str, records: Mapping[str, list[Record]], store: Store):
        self.experiment, self.scale, self.seeds, self.records = experiment, scale, experiment.seeds, records
        self.missing = tuple(row for row in experiment.rows if row not in records)
        self._store = store

    def _of(self, row: str) -> list[list[Record]]:
        """The row's records, those of one seed together."""
        if row not in self.records:
            raise MarginsError(f"row: {self.experiment.name} has no {row!r}; it has {', '.join(self.records)}")
        seeds: dict[int, list[Record]] = {}
        for record in self.records[row]:
            seeds.setdefault(record.seed, []).append(record)
        return list(seeds.values())

    def _each(self, row: str, kind: str, name: str, values: Callable[[Record], Mapping]) -> list:
        found = []
        for records in self._of(row):
            parts = [values(record) for record in records]
            holding = [part for part in parts if name in part]
            if not holding and any(record.status == "diverged" for record in records):
                found.append(None)
                continue
            if not holding:
                has = ", ".join(n for part in parts for n in part)
                raise MarginsError(f"{kind}: {self.experiment.name} {row!r} has no {name!r}; it has {has}")
            if len(holding) > 1:
                raise MarginsError(f"{kind}: {self.experiment.name} {row!r} has {name!r} in {len(holding)} parts")
            found.append(holding[0][name])
        return found

    def metric(self, row: str, name: str) -> np.ndarray:
        """One number a seed, shape (S,); nan where that seed diverged."""
        return np.array(self._each(row, "metric", name, lambda record: record.metrics), dtype=float)

    def curve(self, row: str, name: str) -> np.ndarray:
        """One curve a seed, shape (S, T); nan after the end of a shorter one, such as that of a run that diverged."""
        curves = [curve or [] for curve in self._each(row, "curve", name, lambda record: record.curves)]
        longest = max(map(len, curves))
        return np.array([[*curve, *[np.nan] * (longest - len(curve))] for curve in curves])

    def samples(self, row: str, name: str) -> np.ndarray:
        """One array a seed, shape (S, ...): per-sample results; as floats and nan where a seed diverged.

        Where all did there is nothing that tells the shape: (S, 0).
        """
        found = self._each(row, "array", name, self._store.arrays)
        shape = next((one.shape for one in found if one is not None), (0,))
        return np.array([np.full(shape, np.nan) if one is None else one for one in found])

    def failed_checks(self) -> dict[tuple[str, str], dict[str, int]]:
        """Of the sanity checks that failed in an evaluation, by check and part: in how many seeds of which row."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for row, records in self.records.items():
            for record in records:
                for fact, checks in record.provenance.items():
                    for check in str(checks).split("; ") if fact.startswith(FAILED) and checks else ():
                        seeds = found.setdefault((check, fact.removeprefix(FAILED)), {})
                        seeds[row] = seeds.get(row, 0) + 1
        return found

    def diverged(self, row: str) -> np.ndarray:
        """Which seeds diverged, in any of their parts, shape (S,)."""
        return np.array([any(record.status == "diverged" for record in records) for records in self._of(row)])


def results(name: str, scale: str, store: Store | None = None, *, partial: bool = False) -> Results:
    """The results of an experiment at a scale, from its records; `partial` leaves out rows of which one is missing.

    Raises NotRecorded where a unit has none (unless partial), MarginsError for an unknown name or scale, for an
    unreadable record, and where the parts of a row and seed are about different weights.
    """
    experiment, store = find(name), store or Store()
    paths.note(store.folder(name))
    records: dict[str, list[Record]] = {row: [] for row in experiment.rows}
    missing = []
    for unit in experiment.units(scale):
        record = store.load(name, unit.key)
        records[unit.row].append(record)
        if record is None:
            missing.append(unit)
    if partial:
        records = {row: of_row for row, of_row in records.items() if None not in of_row}
    elif missing:
        raise NotRecorded(
            f"{len(missing)} of {len(experiment.units(scale))} records of {name} at scale {scale} are missing"
            f" (first: {missing[0]}); they are made by: margins record {name} --scale {scale}"
        )
    found = Results(experiment, scale, records, store)
    for row in records:
        for parts in found._of(row):
            _check_weights(parts)
    return found


def _check_weights(records: list[Record]) -> None:
    """Raise MarginsError where the parts of a row and seed name different weights; the newest record is believed."""
    if others := outdated(records):
        first = others[0]
        parts = ", ".join(r.config.get("part", "it") for r in others)
        raise MarginsError(
            f"{first.experiment} {first.scale} {first.row!r} seed {first.seed}: {parts} and what was recorded later are"
            f" about different weights; they are made anew with: margins record {first.experiment}"
            f" --scale {first.scale} --rows {shlex.quote(first.row)} --seeds {first.seed}"
        )


def stale(store: Store | None = None) -> list[Record]:
    """Records that the code of today would not make: their unit exists, with another configuration or revision."""
    store = store or Store()
    old = []
    for experiment in EXPERIMENTS.values():
        current = {unit.key for scale in experiment.scales for unit in experiment.units(scale)}
        old += [record for record in store.all(experiment.name) if record.key not in current]
    return old
