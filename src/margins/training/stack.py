"""Several runs of one row trained at once, as one network with a group of samples for each."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from margins import checks
from margins.checkpoints import Checkpoint
from margins.datasets import Data
from margins.errors import MarginsError
from margins.methods.rows import Phase, Row
from margins.models.stacked import stack, unstack
from margins.penalties.context import Context, Threat
from margins.training import processes
from margins.training.batches import Augment, batches, stream
from margins.training.fitting import fits, modes
from margins.training.loop import Loop, Trained
from margins.training.recipe import Recipe
from margins.training.selection import Selection, weights


def train_together(
    models: Sequence[nn.Module],
    row: Row,
    data: Data,
    *,
    recipe: Recipe,
    threat: Threat,
    seeds: Sequence[int],
    validation: Data | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Trained]:
    """What `train` returns for each model with its seed, to rounding, from one training of all of them at once.

    models: as many as seeds, of one architecture, each trained in place. The other arguments are those of `train`.
    A run that diverges does not disturb the others. Each `Trained` has an equal part of the seconds. The runs are
    validated one after the other.

    Costs as many samples as R trainings one after the other, but the calls of one: it is for tiny networks and small
    batches, and for GPUs, where small networks wait for calls. On one thread of a CPU it pays for an MLP of one narrow
    layer, the more so in small batches, and for one of 800 units or for convolutional networks it does not.

    Raises MarginsError, before any step, for rows that `obstacles` finds fault with, for what
    `margins.models.stacked.stack` refuses (BatchNorm, dropout), for compiled forwards, and under several processes.
    """
    processes.join()
    if len(models) != len(seeds):
        raise MarginsError(f"seeds: {len(seeds)} are given for {len(models)} models; each model needs one")
    if found := obstacles(row):
        raise MarginsError(f"row: its runs can't be trained together because of {', '.join(found)}")
    recipe = recipe.with_fields(row.recipe)
    if recipe.compiled or processes.count() > 1:
        raise MarginsError("several runs are trained together in one process, and not compiled")
    for model, seed in zip(models, seeds, strict=True):
        checks.whole("seed", seed)
        fits(model, row, data, validation, recipe)
    loop = _Together(models, row, data, recipe, threat, seeds, validation)
    return loop.run(checkpoint, progress or (lambda line: None))


def obstacles(row: Row) -> list[str]:
    """What of a row keeps its runs from being trained together, by name: parts that need more than each sample's own
    values (states, means over the batch, forwards of some samples, parameters), and terms of the parameters."""
    parts = [type(part).__name__ for phase in row.phases for part in phase.parts if not part.together]
    return parts + [term.name for phase in row.phases for term in phase.terms if term.at == "parameters"]


class _Together(Loop):
    """Runs under way, in one stacked model; curves, selection and the end are each run's own."""

    channels_last = False  # stacked convolutions have five dimensions

    def __init__(self, models, row: Row, data: Data, recipe: Recipe, threat: Threat, seeds, validation):
        for model in models if row.head is not None else ():
            row.head.put_on(model)
        self.models, self.seeds = models, tuple(seeds)
        stacked = stack(models, recipe.seen(data).x[:4])
        super().__init__(stacked, replace(row, head=None), data, recipe, threat, seeds[0], None)
        self.row = row
        self.optimizer = recipe.optimizer(stacked, stacked=True)
        self.single = copy.deepcopy(models[0])
        by = row.selection, self.phases[-1].first(recipe.epochs), recipe.attack_validation
        self.selections = [Selection(validation, threat, *by) for _ in models]
        self.curves: list[dict[str, list[float]]] = [{} for _ in models]
        self.ended: list[dict[str, Any] | None] = [None] * len(models)

    def run(self, checkpoint: Checkpoint | None, progress: Callable[[str], None]) -> list[Trained]:
        self._go(checkpoint, progress)
        seconds = self.seconds / len(self.models)
        return [self._trained(run, seconds) for run in range(len(self.models))]

    def _trained(self, run: int, seconds: float) -> Trained:
        status = "done" if self.ended[run] is None else "diverged"
        end, selection = self.ended[run] or self._end(run), self.selections[run]
        self.models[run].load_state_dict(end["model"])
        self.models[run].eval()
        best = selection.weights or end["last"]
        chosen = selection.epoch or end["epoch"]
        return Trained(best, end["last"], status, self.curves[run], chosen, seconds, selection.snapshots)

    def _end(self, run: int) -> dict[str, Any]:
        """Where a run is now, of which a diverged one does not go on."""
        now = weights(self._single(self.model, run))
        last = now if self.average is None else weights(self._single(self._result(), run))
        return {"model": now, "last": last, "epoch": self.step // self.steps}

    def _single(self, stacked: nn.Module, run: int) -> nn.Module:
        return unstack(stacked, run, self.single)

    @cached_property
    def name(self) -> str:
        return f"{self._name()} {self.seeds}"

    def _modes(self, model: nn.Module) -> tuple[bool, bool]:
        found = modes(self.models[0], self.seen[:2], self.phases, self.recipe)
        if any(found):
            raise MarginsError("models that are random or otherwise in training can't be trained together")
        return found

    def _told(self) -> str:
        names = dict.fromkeys(name for curves in self.curves for name in curves)
        ends = {name: [f"{curves.get(name, [math.nan])[-1]:.4g}" for curves in self.curves] for name in names}
        return ", ".join(f"{name} {' / '.join(values)}" for name, values in ends.items())

    def _augment(self, epoch: int) -> Callable[[Tensor, Tensor], Tensor]:
        recipe, runs = self.recipe, len(self.seeds)
        if not recipe.crop and not recipe.flip and not recipe.window:
            return lambda x, index: x
        given = self.data.x, recipe.crop, recipe.flip
        each = [Augment(*given, seed, epoch, recipe.window) for seed in self.seeds]

        def augment(x: Tensor, index: Tensor) -> Tensor:
            groups = zip(each, x.chunk(runs), index.chunk(runs), strict=True)
            return torch.cat([one(*group) for one, *group in groups])

        return augment

    def _batches(self, epoch: int, first: int) -> Iterator[Tensor]:
        given = len(self.data.x), self.recipe.batch_size, self.recipe.drop_last
        yield from map(torch.cat, zip(*(batches(*given, seed, epoch, first) for seed in self.seeds), strict=True))

    def _context(self, phase: Phase, augment: Callable, index: Tensor, progress: float) -> Context:
        context = super()._context(phase, augment, index, progress)
        context.total = len(index) // len(self.seeds)
        context.seeds = tuple(stream(seed, 3, self.step) for seed in self.seeds)
        return context

    def _mean(self, values: Tensor, context: Context) -> Tensor:
        """(R,): each run's own."""
        return values.reshape(len(self.seeds), -1).sum(1) / context.total

    def _clip(self, longest: float) -> None:
        """Each run's gradient by itself, as `nn.utils.clip_grad_norm_` does it."""
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        length = torch.stack([one.flatten(1).norm(dim=1) for one in gradients]).norm(dim=0)
        factor = (longest / (length + 1e-6)).clamp(max=1)
        for one in gradients:
            one.mul_(factor.view(-1, *[1] * (one.ndim - 1)))

    def _close(self, epoch: int) -> bool:
        """End an epoch for each run that has not diverged; False where none is left."""
        sums = {name: values.tolist() for name, values in self.sums.items()}
        sound = torch.stack([p.isfinite().flatten(1).all(1) for p in self.trained]).all(0).tolist()
        for run, ended in enumerate(self.ended):
            if ended is not None:
                continue
            means = {name: values[run] / self.steps for name, values in sums.items()}
            finite = sound[run] and all(map(math.isfinite, means.values()))
            if finite:
                model = partial(self._single, self._result(), run)
                means |= self.selections[run].numbers(model, epoch + 1, self.recipe)
            else:
                self.ended[run] = self._end(run)
            self._enter(self.curves[run], means, epoch)
        return None in self.ended

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"selections": [one.state() for one in self.selections], "ended": self.ended}

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        self.ended = state["ended"]
        for one, saved in zip(self.selections, state["selections"], strict=True):
            one.load(saved)
