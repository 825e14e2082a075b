"""What is looked at before the first step: whether model, data and row fit together, and what kind of model it is."""

import copy
import json

import torch
from torch import Tensor, nn

from margins import checks
from margins.datasets import Data
from margins.errors import MarginsError
from margins.evaluation.identity import digest
from margins.evaluation.identity import weights as digest_of_weights
from margins.methods.craft import BOX
from margins.methods.rows import Phase, Row, describe
from margins.models import frozen
from margins.penalties.context import Threat, kinds
from margins.training.recipe import Recipe


def fits(model: nn.Module, row: Row, data: Data, validation: Data | None, recipe: Recipe) -> None:
    """Raise MarginsError where model, row and data don't fit together; two samples are asked of the model."""
    if not isinstance(row, Row):
        raise MarginsError(f"row must be a Row, such as margins.methods.trades(), but is {row!r}")
    if row.start is not None:
        raise MarginsError("start: train that row first, load its weights, and give replace(row, start=None)")
    for name, given in (("data", data), ("validation", validation)):
        if given is None and name == "validation":
            return
        if not isinstance(given, Data):
            raise MarginsError(f"{name} must be a margins.datasets.Data, but is a {type(given).__name__}")
        if name == "data":
            data = given = recipe.with_fields(row.recipe).seen(data)
        try:
            _fits(model, given)
        except MarginsError as error:
            raise MarginsError(f"{name}: {error}") from error
        if given.x.shape[1:] != data.x.shape[1:]:
            shapes = tuple(given.x.shape[1:]), tuple(data.x.shape[1:])
            raise MarginsError(f"{name}: a sample has the shape {shapes[0]}, but one of data {shapes[1]}")


def _fits(model: nn.Module, data: Data) -> None:
    checks.network(model, checks.inside(data.x, BOX))
    if not len(data.x):
        raise MarginsError("there must be at least one sample")
    checks.labels(data.y, len(data.x), data.classes, data.x.device)
    with frozen(model), torch.no_grad():
        logits = checks.logits(model(data.x[:2]), len(data.x[:2]))
    if logits.shape[1] != data.classes:
        raise MarginsError(f"model must have a logit for each of the {data.classes} classes, but has {logits.shape[1]}")


def modes(model: nn.Module, x: Tensor, phases: tuple[Phase, ...], recipe: Recipe) -> tuple[bool, bool]:
    """Whether the model computes something else in training than in evaluation, and whether it is random in training.

    Told by its layers and by asking a copy of it about two samples x three times, since a model may do without layers
    what they do. Raises MarginsError for a random model that is to be compiled where a penalty differentiates its
    input: compiled forwards draw other numbers than those that are differentiated twice, which can't be compiled.
    """
    twin = copy.deepcopy(model)
    answers = []
    with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():
        for seed, training in ((0, True), (1, True), (0, False)):
            torch.manual_seed(seed)
            answers.append(twin.train(training)(x))
    by_layer = kinds(model)
    modal = by_layer[0] or not torch.equal(answers[0], answers[2])
    random = by_layer[1] or not torch.equal(answers[0], answers[1])
    if recipe.compiled and random and any(phase.differentiated for phase in phases):
        raise MarginsError("compiled: a model with dropout and a penalty on input gradients can't be compiled")
    return modal, random


def last_batch(model: nn.Module, x: Tensor, recipe: Recipe) -> None:
    """Raise MarginsError where an epoch's last batch has one sample, on which nets with BatchNorm can't be trained."""
    if recipe.drop_last or recipe.frozen_norms or len(x) % recipe.batch_size != 1:
        return
    try:
        copy.deepcopy(model).train()(x[:1])
    except ValueError as error:
        raise MarginsError(
            f"batch_size: {recipe.batch_size} leaves one of {len(x)} samples for the last batch, on which the model"
            f" can't be trained ({error}): choose another, or drop_last"
        ) from None


def identity(model, row: Row, data: Data, recipe: Recipe, threat: Threat, seed: int, validation, more: tuple) -> str:
    """Everything that decides the outcome of a training, and `more`, as text: what a checkpoint must be of."""
    sets = [data.x, data.y] if validation is None else [data.x, data.y, validation.x, validation.y]
    told = [row.describe(), *map(describe, (recipe, threat, more)), seed]
    return json.dumps([*told, digest_of_weights(model), *map(digest, sets)])
