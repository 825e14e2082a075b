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
from margins.margin import deepfool_margin
from margins.methods.rows import Row, describe
from margins.penalties.context import Threat
from margins.search import Search, name_of, search
from margins.tables.along import Along
from margins.tables.job import ATTACKS, DEEPFOOL, REVISIONS, VALIDATION, Job
from margins.training import Recipe, obstacles

__all__ = ["Along", "Columns", "table", "tuning"]
TRAINING = "training"
#: Raised when a change of an attack changes results.
EVALUATION = 1


@dataclass(frozen=True)
class Columns:
    """An evaluation of a table: attacks on the first `images` test images of a permutation, in one record.

    attacks: name of the column -> the attack's name in `ATTACKS` as "attack", and its own settings; the norm is the
    table's, and so is eps where none is given here. weights: "best" by validation, or "last". images: None for all.
    deepfool: settings of `deepfool_margin` but norm, {} for its own, where that distance is measured too. split:
    "train" for the first images that the row was trained on, with their true labels. Raises MarginsError for no
    attack, and for settings that one does not take.
    """

    attacks: Mapping[str, Mapping[str, Any]]
    images: int | None = None
    weights: str = "best"
    deepfool: Mapping[str, Any] | None = None
    split: str = "test"
    eps: float | None = None

    def __post_init__(self):
        if self.eps is not None:
            checks.number("eps", self.eps, 0, above=True)
        checks.choice("weights", self.weights, ("best", "last"))
        checks.choice("split", self.split, datasets.SPLITS)
        if not self.attacks:
            raise MarginsError("attacks must be at least one: an evaluation of distances alone has no accuracy")
        if self.images is not None:
            checks.whole("images", self.images, 1)
        for name, given in self.attacks.items():
            attack = ATTACKS[checks.choice(f"attack of {name}", given.get("attack"), ATTACKS)]
            # as they are recorded, from where they are read again
            rest = {key: value for key, value in describe(given).items() if key != "attack"}
            taken = signature(attack).parameters
            norm = 2 if given.get("floor") else math.inf  # a floor is for l2 only
            ball = {key: value for key, value in {"norm": norm, "eps": 0.1}.items() if key in taken}
            try:
                attack(Fooled(10), torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), **ball, **rest)
            except (TypeError, MarginsError) as error:
                raise MarginsError(f"attack of {name}: {error} (norm is the table's, eps too or Columns.eps)") from None
        if self.deepfool is not None:
            try:
                deepfool_margin(Fooled(10), torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), **self.deepfool)
            except (TypeError, MarginsError) as error:
                raise MarginsError(f"deepfool: {error}") from None

    @property
    def ending(self) -> str:
        """What the names of its numbers end with."""
        return ", train" * (self.split == "train") + ", last" * (self.weights == "last")

    @property
    def names(self) -> list[str]:
        """Of its attacks and distances, as they are recorded."""
        return [f"{name}{self.ending}" for name in (*self.attacks, *[DEEPFOOL] * (self.deepfool is not None))]

    def settings(self) -> dict[str, Any]:
        told = {"attacks": describe(self.attacks), "images": self.images, "weights": self.weights}
        told |= {} if self.deepfool is None else {"deepfool": describe(dict(self.deepfool))}
        told |= {} if self.eps is None else {"eps": self.eps}
        return told | ({} if self.split == "test" else {"split": self.split}) | {"revision": EVALUATION}


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
    columns: Mapping[str, Columns | Along],
    scales: Mapping[str, tuple[int, Recipe]],
    seeds: Sequence[int],
    images: Mapping[str, Mapping[str, int]] = {},
    minutes: Mapping[str, Any] = {},
    together: bool = False,
    centre: bool = False,
    random_labels: float = 0.0,
    resize: int | None = None,
) -> Experiment:
    """Register a table of `rows`, each trained with every seed and then evaluated by each of `columns`.

    A column is an evaluation of trained weights, `Columns`, or of those along the training, `Along`.

    model: the name and settings of `models.build`. data: the name of a data set; a scale takes so many training images,
    the first of a permutation, and the `validation` ones after them are held out. threat: what is trained, validated
    and attacked against. scales: scale -> (training images, recipe). images: scale -> column -> number of test images
    there, where it is not the column's own. minutes: as of `Experiment`, with the parts "training" and the columns.
    together: whether all seeds of a row are trained at once, see `margins.training.train_together`, where the row's
    parts allow it. Numbers differ in their last digits, so the records of such rows have other keys.
    centre: whether the network subtracts the mean of its training images, each pixel's own (`models.Centred`).
    random_labels: the share of the training images whose label is replaced by a random one, which may be the true one.
    resize: images are enlarged to that many pixels a side (bilinearly). Training sees random windows as large as the
    model's images, which the recipes' `window` must be; validation, tests and the mean that is subtracted take the
    central one.

    A row's and seed's records: "training" has the curves and what was chosen; each column's has, by the name of the
    attack, the robust accuracy in % and per image whether it withstood, and "clean"; the distances of minimum-norm
    attacks as "NAME distance", and DeepFool's as "DeepFool distance", their mean in input units and per image, negative
    for an image that was wrong, infinite where none was found; the mean is over the lengths of those that were. Names
    of an evaluation of the last weights end with ", last", on training images with ", train" before that. The weights
    lie in the cache; where they are missing there, the row is trained again.
    """

    _check(data, validation, scales, model, resize)
    names = [name for one in columns.values() for name in one.names]
    if clash := sorted({name for name in names if names.count(name) > 1} | ({"clean"} & set(names))):
        raise MarginsError(f"columns: {', '.join(clash)} would name two numbers of a row")
    if not all(isinstance(row, Row) for row in rows.values()) or len(set(seeds)) < len(seeds):
        raise MarginsError("rows must be Rows, and seeds must differ")
    for row in rows.values():
        for _, recipe in scales.values():
            row.check(recipe.with_fields(row.recipe).epochs)
    if unknown := sorted(set(images) - set(scales)):
        raise MarginsError(f"images: there is no scale {', '.join(unknown)}; there are {', '.join(scales)}")
    checks.number("random_labels", random_labels, 0, 1)
    # "clean" is a column of one evaluation of each kind, and not of those after it
    first = {one.ending: column for column, one in reversed(columns.items()) if isinstance(one, Columns)}.values()
    settings = _settings(model, data, validation, threat, centre=centre, random_labels=random_labels, resize=resize)

    stacked = frozenset(label for label, row in rows.items() if together and _stackable(row))

    def run(units: list[Unit], checkpoint: Checkpoint) -> Iterable[Outcome]:
        recipe = scales[units[0].scale][1]
        jobs = [Job(rows[unit.row], recipe, threat, unit, checkpoint) for unit in units]
        return (_outcome(job, columns.get(job.unit.part)) for job in jobs)

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
            settings=settings,
            parts={TRAINING: {}}
            | {
                part: one.settings() | ({"first": part in first} if isinstance(one, Columns) else {})
                for part, one in columns.items()
            },
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
    centre: bool = False,
    random_labels: float = 0.0,
    resize: int | None = None,
) -> Search:
    """Register a search over the settings of a row: `row(**candidate)` is trained for each, and only validated.

    The other arguments are those of `table`. Records have the best epoch's "validation PGD-10" and "validation clean"
    in %, and their curves. No test image is read.
    """
    checks.number("random_labels", random_labels, 0, 1)
    _check(data, validation, scales, model, resize)
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
            settings=_settings(
                model, data, validation, threat, centre=centre, random_labels=random_labels, resize=resize
            ),
            revisions=REVISIONS,
            seeds=tuple(seeds),
            run=run,
            minutes=minutes,
        )
    )


def _outcome(job: Job, column: Columns | Along | None) -> Outcome:
    if column is None:
        return job.training()
    return job.evaluation() if isinstance(column, Columns) else column.outcome(job)


def _stackable(row: Row) -> bool:
    return not obstacles(row) and (row.start is None or _stackable(row.start))


def _settings(model: Mapping[str, Any], data: str, validation: int, threat: Threat, **more) -> dict[str, Any]:
    """Of a table's units; what is off is not named, as in records of before there was such a setting."""
    told = {"model": dict(model), "data": data, "validation": validation, "threat": describe(threat)}
    return told | {name: value for name, value in more.items() if value}


def _check(data: str, validation: int, scales: Mapping[str, tuple[int, Recipe]], model, resize: int | None) -> None:
    checks.choice("data", data, datasets.SETS)
    checks.choice("model's name", model.get("name"), models.FAMILIES)
    checks.whole("validation", validation, 1)
    most = datasets.SETS[data][1][0]
    for scale, (size, _) in scales.items():
        if most is not None and checks.whole("size", size, 1) + validation > most:
            raise MarginsError(f"{scale}: {size} images and {validation} held-out ones are more than {data}'s {most}")
    side = 0 if resize is None else model.get("shape", (0,))[-1]
    if resize is not None:
        checks.whole("resize", resize, max(side, 1))
    for scale, (_, recipe) in scales.items():
        if recipe.window != side:
            raise MarginsError(f"{scale}: with resize={resize} the recipe's window must be {side}, not {recipe.window}")


def _caller() -> str:
    """The module that declares the table: processes that run a part of it import that."""
    return sys._getframe(2).f_globals["__name__"]
