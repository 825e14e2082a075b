"""Tables of training methods as experiments: rows x seeds, trained alike, then attacked alike."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch

from margins import checks, datasets, models
from margins.checkpoints import Checkpoint
from margins.errors import MarginsError
from margins.evaluation.given import Fooled
from margins.experiments import Experiment, Outcome, Unit, register
from margins.methods.rows import Row, describe
from margins.penalties.context import Threat
from margins.search import Search, name_of, search
from margins.tables.job import ATTACKS, REVISIONS, VALIDATION, Job
from margins.training import Recipe, obstacles

__all__ = ["Columns", "table", "tuning"]
TRAINING = "training"
#: Raised when a change of an attack changes results.
EVALUATION = 1


@dataclass(frozen=True)
class Columns:
    """An evaluation of a table: attacks on the first `images` test images of a permutation, in one record.

    attacks: name of the column -> the attack's name in `ATTACKS` as "attack", and its own settings; norm and eps are
    the table's. weights: "best" by validation, or "last". images: None for all. Raises MarginsError for settings that
    the attack does not take.
    """

    attacks: Mapping[str, Mapping[str, Any]]
    images: int | None = None
    weights: str = "best"

    def __post_init__(self):
        checks.choice("weights", self.weights, ("best", "last"))
        if self.images is not None:
            checks.whole("images", self.images, 1)
        for name, given in self.attacks.items():
            attack = ATTACKS[checks.choice(f"attack of {name}", given.get("attack"), ATTACKS)]
            rest = {key: value for key, value in given.items() if key != "attack"}
            taken = signature(attack).parameters
            ball = {key: value for key, value in {"norm": math.inf, "eps": 0.1}.items() if key in taken}
            try:
                attack(Fooled(10), torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), **ball, **rest)
            except (TypeError, MarginsError) as error:
                raise MarginsError(f"attack of {name}: {error} (norm and eps are the table's)") from None

    def settings(self) -> dict[str, Any]:
        told = {"attacks": describe(self.attacks), "images": self.images, "weights": self.weights}
        return told | {"revision": EVALUATION}


def table(
    name: str,
    *,
    title: str,
    source: str,
    model: Mapping[str, Any],
    data: str,
    validation: int,
    threat: Threat,
    rows: Mapping[str, Row],
    columns: Mapping[str, Columns],
    scales: Mapping[str, tuple[int, Recipe]],
    seeds: Sequence[int],
    images: Mapping[str, Mapping[str, int]] = {},
    minutes: Mapping[str, Any] = {},
    together: bool = False,
) -> Experiment:
    """Register a table of `rows`, each trained with every seed and then evaluated by each of `columns`.

    model: the name and settings of `models.build`. data: the name of a data set; a scale takes so many training images,
    the first of a permutation, and the `validation` ones after them are held out. threat: what is trained, validated
    and attacked against. scales: scale -> (training images, recipe). images: scale -> column -> number of test images
    there, where it is not the column's own. minutes: as of `Experiment`, with the parts "training" and the columns.
    together: whether all seeds of a row are trained at once, see `margins.training.train_together`, where the row's
    parts allow it. Numbers differ in their last digits, so the records of such rows have other keys.

    A row's and seed's records: "training" has the curves and what was chosen; each column's has, by the name of the
    attack, the robust accuracy in % and per image whether it withstood, and "clean". Names of an evaluation of the last
    weights end with ", last". The weights lie in the cache; where they are missing there, the row is trained again.
    """

    _check(data, validation, scales, model)
    names = [f"{name}{', last' * (one.weights == 'last')}" for one in columns.values() for name in one.attacks]
    if clash := sorted({name for name in names if names.count(name) > 1} | ({"clean"} & set(names))):
        raise MarginsError(f"columns: {', '.join(clash)} would name two numbers of a row")
    if not all(isinstance(row, Row) for row in rows.values()) or len(set(seeds)) < len(seeds):
        raise MarginsError("rows must be Rows, and seeds must differ")
    if unknown := sorted(set(images) - set(scales)):
        raise MarginsError(f"images: there is no scale {', '.join(unknown)}; there are {', '.join(scales)}")
    # "clean" is a column of one evaluation, of the best and of the last weights, and not of those after it
    first = {one.weights: column for column, one in reversed(columns.items())}.values()

    stacked = frozenset(label for label, row in rows.items() if together and _stackable(row))

    def run(units: list[Unit], checkpoint: Checkpoint) -> Iterable[Outcome]:
        recipe = scales[units[0].scale][1]
        jobs = [Job(rows[unit.row], recipe, threat, unit, checkpoint) for unit in units]
        return (job.training() if job.unit.part == TRAINING else job.evaluation() for job in jobs)

    def lost(unit: Unit) -> bool:
        return Job(rows[unit.row], scales[unit.scale][1], threat, unit).lost()

    run.__module__ = _caller()
    return register(
        Experiment(
            name=name,
            title=title,
            source=source,
            rows={
                label: {"method": row.describe()} | ({"together": list(seeds)} if label in stacked else {})
                for label, row in rows.items()
            },
            scales={
                scale: {
                    "size": size,
                    "recipe": describe(recipe),
                    "parts": {column: {"images": count} for column, count in images.get(scale, {}).items()},
                }
                for scale, (size, recipe) in scales.items()
            },
            settings={"model": dict(model), "data": data, "validation": validation, "threat": describe(threat)},
            parts={TRAINING: {}} | {part: one.settings() | {"first": part in first} for part, one in columns.items()},
            revisions=REVISIONS,
            seeds=tuple(seeds),
            run=run,
            minutes=minutes,
            together=stacked,
            lost=lost,
        )
    )


def tuning(
    name: str,
    *,
    title: str,
    source: str,
    candidates: Sequence[Mapping[str, Any]],
    row: Callable[..., Row],
    model: Mapping[str, Any],
    data: str,
    validation: int,
    threat: Threat,
    scales: Mapping[str, tuple[int, Recipe]],
    seeds: Sequence[int],
    minutes: Mapping[str, float] = {},
) -> Search:
    """Register a search over the settings of a row: `row(**candidate)` is trained for each, and only validated.

    The other arguments are those of `table`. Records have the best epoch's "validation PGD-10" and "validation clean"
    in %, and their curves. No test image is read.
    """
    _check(data, validation, scales, model)
    rows = {name_of(candidate): row(**candidate) for candidate in candidates}

    def run(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
        (unit,) = units
        outcome = Job(rows[unit.row], scales[unit.scale][1], threat, unit, checkpoint).training()
        kept = {metric: outcome.metrics[metric] for metric in VALIDATION}
        curves = {curve: outcome.curves[curve] for curve in VALIDATION}
        return [replace(outcome, metrics=kept, curves=curves)]

    run.__module__ = _caller()
    return register(
        search(
            candidates,
            row=lambda candidate: {"method": rows[name_of(candidate)].describe()},
            name=name,
            title=title,
            source=source,
            scales={scale: {"size": size, "recipe": describe(recipe)} for scale, (size, recipe) in scales.items()},
            settings={"model": dict(model), "data": data, "validation": validation, "threat": describe(threat)},
            revisions=REVISIONS,
            seeds=tuple(seeds),
            run=run,
            minutes=minutes,
        )
    )


def _stackable(row: Row) -> bool:
    return not obstacles(row) and (row.start is None or _stackable(row.start))


def _check(data: str, validation: int, scales: Mapping[str, tuple[int, Recipe]], model: Mapping[str, Any]) -> None:
    checks.choice("data", data, datasets.SETS)
    checks.choice("model's name", model.get("name"), models.FAMILIES)
    checks.whole("validation", validation, 1)
    most = datasets.SETS[data][1][0]
    for scale, (size, _) in scales.items():
        if most is not None and checks.whole("size", size, 1) + validation > most:
            raise MarginsError(f"{scale}: {size} images and {validation} held-out ones are more than {data}'s {most}")


def _caller() -> str:
    """The module that declares the table: processes that run a part of it import that."""
    return sys._getframe(2).f_globals["__name__"]
