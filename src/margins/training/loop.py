"""The one training loop: any row, on data in memory, exactly resumable."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from margins import checks
from margins.checkpoints import Checkpoint
from margins.datasets import Data
from margins.errors import MarginsError
from margins.methods.rows import Phase, Row
from margins.penalties.context import Context, Run, Threat
from margins.training import processes
from margins.training.batches import Augment, batches, stream
from margins.training.fitting import fits, identity, last_batch, modes
from margins.training.recipe import Recipe
from margins.training.selection import Selection, weights

#: Raised when a change here changes results.
REVISION = 1
State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training returns.

    best, last: state dicts on the CPU, best by validation (the last where there was none). status: "done", or
    "diverged" where the loss was not finite; curves then end there. curves: name -> one number an epoch; nan in epochs
    that were not validated. chosen: the epoch of `best`, counted from 1. seconds: of all sessions together; of runs
    that were trained at once, an equal part for each. snapshots: the weights after the recipe's epochs of that name.
    """

    best: State
    last: State
    status: str
    curves: Mapping[str, list[float]]
    chosen: int
    seconds: float
    snapshots: Mapping[int, State]


def train(
    model: nn.Module,
    row: Row,
    data: Data,
    *,
    recipe: Recipe,
    threat: Threat,
    seed: int,
    validation: Data | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[str], None] | None = None,
) -> Trained:
    """Train `model` in place by `row`, and return the best and the last weights.

    data: x (N, ...) in [0, 1] and y on the model's device. validation: held-out samples; PGD-10 on them selects the
    best epoch of the row's last phase (clean accuracy, of a row that crafts nothing), then clean accuracy (PGD-10) and
    then the later one where it is equal. The row's recipe fields replace `recipe`'s.
    seed: of order, augmentation, noise and dropout; the model brings its initial weights. checkpoint: is written every
    20 s and past its deadline, when OutOfTime is raised; the same call goes on from it, bit for bit on a CPU. It is the
    caller's to `clear()` when the training has ended. progress: is told a line an epoch.
    Under torchrun every process calls this alike; each takes a part of every batch, and draws dropout's masks for it.

    Costs, a step: what the row's craft and terms say, in forwards; a plain step is 3, and each PGD step in craft 2.
    Raises MarginsError, before any step, for a row that does not fit the model or the data.
    """
    processes.join()
    checks.whole("seed", seed)
    fits(model, row, data, validation, recipe)
    loop = Loop(model, row, data, recipe.with_fields(row.recipe), threat, seed, validation)
    return loop.run(checkpoint, progress or (lambda line: None))


class Loop:
    """One training run under way: everything that is in its checkpoint."""

    channels_last = True

    def __init__(self, model, row: Row, data: Data, recipe: Recipe, threat: Threat, seed: int, validation):
        row.check(recipe.epochs)
        self.recipe, self.seed, self.data, self.seen, self.threat = recipe, seed, data, recipe.seen(data).x, threat
        self.phases = copy.deepcopy(row.phases)  # parts keep state: each run has its own
        if row.head is not None:
            row.head.put_on(model)
        self._name = partial(
            identity, copy.deepcopy(model), row, data, recipe, threat, seed, validation, (REVISION, processes.count())
        )
        self.modal, self.random = self._modes(model)
        last_batch(model, self.seen, recipe)
        self.parts = [part for phase in self.phases for part in phase.parts]
        self.model = model = processes.prepare(model, self.parts)
        self.steps = recipe.steps(len(data.x))
        uneven = not recipe.drop_last and len(data.x) % recipe.batch_size != 0
        self.told = Run(model, self.seen, data.y, data.classes, threat, recipe.batch_size, uneven, processes.count())
        self.told.combine = processes.total
        for part in self.parts:
            part.state = {}
            part.begin(self.told)
        processes.check(self.parts)
        # with the channels last convolutions are faster, on GPUs and CPUs
        self.images = self.channels_last and data.x.ndim == 4
        if self.images:
            model.to(memory_format=torch.channels_last)
        self._train_mode()
        self.forward = torch.compile(model) if recipe.compiled else None
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = recipe.optimizer(model)
        self.average = None
        if recipe.average is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
        begin = self.phases[-1].first(recipe.epochs)
        self.selection = Selection(validation, threat, row.selection, begin, recipe.attack_validation)
        self.step, self.before, self.begun = 0, 0.0, time.monotonic()
        self.curves: dict[str, list[float]] = {}
        self.sums: dict[str, Tensor] = {}

    def _modes(self, model: nn.Module) -> tuple[bool, bool]:
        return modes(model, self.seen[:2], self.phases, self.recipe)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.begun

    def run(self, checkpoint: Checkpoint | None, progress: Callable[[str], None]) -> Trained:
        finite = self._go(checkpoint, progress)
        last = weights(self._result())
        best = self.selection.weights or last
        self.model.eval()
        told = self.curves, self.selection.epoch or self.step // self.steps, self.seconds, self.selection.snapshots
        return Trained(best, last, "done" if finite else "diverged", *told)

    def _go(self, checkpoint: Checkpoint | None, progress: Callable[[str], None]) -> bool:
        """Train to the end; False where it came early, by divergence."""
        if checkpoint is not None and (state := checkpoint.load("run", "model", "step")) is not None:
            if state["run"] != self.name:
                raise MarginsError(f"{checkpoint.path}: a checkpoint of another run, with other settings; delete it")
            self._load(state)
        epochs, finite = self.recipe.epochs, True
        while finite and self.step < epochs * self.steps:
            epoch = self.step // self.steps
            self._epoch(epoch, checkpoint)
            finite = self._close(epoch)
            if finite:
                self._tick(checkpoint)
            left = self.seconds / (epoch + 1) * (epochs - epoch - 1)
            progress(f"epoch {epoch + 1} of {epochs}: {self._told()}; about {left:.0f} s left")
        return finite

    def _told(self) -> str:
        return ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.curves.items())

    @cached_property
    def name(self) -> str:
        """What a checkpoint must be of."""
        return self._name()

    def _result(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.model.modules() if self.recipe.frozen_norms else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval().requires_grad_(False)

    def _epoch(self, epoch: int, checkpoint: Checkpoint | None) -> None:
        """The rest of an epoch."""
        recipe, first = self.recipe, self.step % self.steps
        phase = [phase for phase in self.phases if epoch >= phase.first(recipe.epochs)][-1]
        if first == 0:
            self.sums = {}
            for part in phase.parts:
                part.start_epoch(self.told)
        augment = self._augment(epoch)
        for index in self._batches(epoch, first):
            if self.step % self.steps != first:
                self._tick(checkpoint)
            self._step(phase, augment, index)
            self.step += 1

    def _augment(self, epoch: int) -> Callable[[Tensor, Tensor], Tensor]:
        return Augment(self.data.x, self.recipe.crop, self.recipe.flip, self.seed, epoch, self.recipe.window)

    def _batches(self, epoch: int, first: int) -> Iterator[Tensor]:
        return batches(len(self.data.x), self.recipe.batch_size, self.recipe.drop_last, self.seed, epoch, first)

    def _step(self, phase: Phase, augment: Callable, index: Tensor) -> None:
        progress = self.step / (self.recipe.epochs * self.steps)
        context = self._context(phase, augment, index, progress)
        if phase.craft is not None:
            phase.craft(context, "clean")
        losses = []
        for name, term in zip(phase.names, phase.terms, strict=True):
            values = term.values(context)
            mean = self._mean(values, context)
            losses.append(term.scale(progress) * mean)
            self.sums[name] = self.sums.get(name, 0) + mean.detach()
        loss = sum(losses)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss, torch.ones_like(loss), inputs=self.trained)
        processes.add(parameter.grad for parameter in self.trained)
        if self.recipe.clip is not None:
            self._clip(self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.steps)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        for part in phase.parts:
            part.after_step(self.told)

    def _mean(self, values: Tensor, context: Context) -> Tensor:
        """The mean of a term's values over the batch, of which other processes may hold the rest."""
        return values.sum() / (context.total if values.ndim else self.told.processes)

    def _clip(self, longest: float) -> None:
        nn.utils.clip_grad_norm_(self.trained, longest)

    def _context(self, phase: Phase, augment: Callable, index: Tensor, progress: float) -> Context:
        total, first = len(index), processes.first(len(index))
        index = processes.share(index).to(self.data.x.device, non_blocking=True)
        x = augment(self.data.x[index], index)
        if self.images:
            x = x.contiguous(memory_format=torch.channels_last)
        return Context(
            self.model,
            x,
            self.data.y[index],
            index,
            total=total,
            first=first,
            progress=progress,
            step=self.step,
            seed=stream(self.seed, 3, self.step),
            threat=self.threat.at(progress),
            forward=self.forward,
            autocast=self.recipe.precision == "bf16",
            differentiated=phase.differentiated,
            featured=any(part.features for part in phase.parts),
            looked=phase.looked,
            modal=self.modal,
            random=self.random,
        )

    def _close(self, epoch: int) -> bool:
        """End an epoch: its means, its validation; False where a mean or a weight is not finite."""
        processes.add(self.sums.values())
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        finite = all(map(math.isfinite, means.values())) and all(p.isfinite().all() for p in self.trained)
        if finite:
            means |= self.selection.numbers(self._result, epoch + 1, self.recipe)
        self._enter(self.curves, means, epoch)
        return finite

    def _enter(self, curves: dict[str, list[float]], means: dict[str, float], epoch: int) -> None:
        """Put an epoch's numbers at the ends of the curves."""
        means["rate"] = self.optimizer.param_groups[0]["lr"]
        for name, value in means.items():
            curves.setdefault(name, [math.nan] * epoch).append(value)
        for values in curves.values():  # of a phase that is over
            values += [math.nan] * (epoch + 1 - len(values))

    def _tick(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            processes.tick(checkpoint, self._state, self.step)

    def _state(self) -> dict[str, Any]:
        return {
            "run": self.name,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "parts": [part.state for part in self.parts],
            "selection": self.selection.state(),
            "step": self.step,
            "seconds": self.seconds,
            "curves": self.curves,
            "sums": self.sums,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        device = self.data.x.device
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.state = {name: value.to(device) for name, value in saved.items()}
        self.selection.load(state["selection"])
        self.step, self.before, self.begun = state["step"], state["seconds"], time.monotonic()
        self.curves, self.sums = state["curves"], {name: value.to(device) for name, value in state["sums"].items()}
