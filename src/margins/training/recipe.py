"""How a network is trained, whatever the method: optimiser, schedule, data, precision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn
from torch.optim import SGD

from margins import checks
from margins.datasets import Data
from margins.errors import MarginsError
from margins.methods.rows import Steps
from margins.penalties.context import ADDED
from margins.training.batches import central

SCHEDULES = ("constant", "steps", "one-cycle")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, and everything around it.

    epochs, batch_size: of the training data; with drop_last a smaller last batch is left out.
    lr: the initial rate of "constant" and "steps", the highest of "one-cycle" (linear up in the share warm_up of the
        steps, linear down to 0; the first step's is 0, but without warm_up).
    drops: of "steps", pairs (share of the epochs, multiplier of the initial rate): ((0.5, 0.1), (0.8, 0.01)).
    weight_decay: of all parameters, or, with decay_norms false, of those of two and more dimensions only.
    clip: the largest length of the whole gradient, None for none.
    average: the decay of an exponential moving average of the weights, which is then what is validated and returned;
        None for none.
    crop, flip: augmentation, a random crop after padding by so many zeros, a horizontal flip.
    window: instead of crop, the side of a random window of the training images, which are larger than the model's; 0
        for none. Whatever is not augmented is the central window.
    frozen_norms: BatchNorm layers stay in evaluation mode, their parameters as they are.
    select_every: epochs between two validations.
    attack_validation: whether held-out samples are attacked too; without, validation costs a forward a sample.
    snapshots: the epochs, counted from 1, after which the weights are kept.
    precision: "bf16" for autocast, losses and penalties stay in float32; "float32" as torch computes it, on a GPU with
        TensorFloat-32 in convolutions.
    compiled: forwards by torch.compile, but for those that are differentiated to the input in training.
    """

    epochs: int
    batch_size: int = 128
    drop_last: bool = False
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_norms: bool = True
    schedule: str = "steps"
    drops: tuple[tuple[float, float], ...] = ()
    warm_up: float = 0.25
    clip: float | None = None
    average: float | None = None
    crop: int = 0
    flip: bool = False
    frozen_norms: bool = False
    select_every: int = 1
    precision: str = "float32"
    compiled: bool = False
    window: int = field(default=0, metadata=ADDED)
    attack_validation: bool = field(default=True, metadata=ADDED)
    snapshots: tuple[int, ...] = field(default=(), metadata=ADDED)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "select_every"):
            checks.whole(name, getattr(self, name), 1)
        checks.whole("crop", self.crop)
        if checks.whole("window", self.window) and self.crop:
            raise MarginsError(f"window: images are cropped by {self.crop} already; give one of the two")
        checks.number("lr", self.lr, 0, above=True)
        checks.number("momentum", self.momentum, 0, 1)
        checks.number("weight_decay", self.weight_decay, 0)
        checks.number("warm_up", self.warm_up, 0, 1)
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.choice("precision", self.precision, PRECISIONS)
        if self.clip is not None:
            checks.number("clip", self.clip, 0, above=True)
        if self.average is not None:
            checks.number("average", self.average, 0, 1)
        for epoch in self.snapshots:
            if checks.whole("snapshots", epoch, 1) > self.epochs:
                raise MarginsError(f"snapshots: there is no epoch {epoch} among {self.epochs}")
        object.__setattr__(self, "snapshots", tuple(sorted(set(self.snapshots))))
        if self.nesterov and not self.momentum:
            raise MarginsError("nesterov needs a momentum above 0")
        object.__setattr__(self, "drops", checks.drops("drops", self.drops))
        if self.drops and self.schedule != "steps":
            raise MarginsError(f"drops belong to the schedule 'steps', but it is {self.schedule!r}")

    def with_fields(self, given: Mapping[str, Any]) -> "Recipe":
        """The recipe with other values for some fields. Raises MarginsError for a field that there is not."""
        names = [one.name for one in fields(self)]
        if unknown := sorted(set(given) - set(names)):
            raise MarginsError(f"recipe has no {', '.join(unknown)}; it has {', '.join(names)}")
        return replace(self, **given)

    def seen(self, data: Data) -> Data:
        """The data as a model sees it where nothing is random: the central windows, as views, or all of the images.

        Raises MarginsError for images that are not square or smaller than the window.
        """
        if not self.window:
            return data
        if data.x.ndim != 4 or data.x.shape[2] != data.x.shape[3] or data.x.shape[2] < self.window:
            given = tuple(data.x.shape[1:])
            raise MarginsError(f"window must be of square images at least as large, but is {self.window} of {given}")
        return replace(data, x=central(data.x, self.window))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of that step, of as many in an epoch as `steps`."""
        progress = step / (self.epochs * steps)
        if self.schedule == "one-cycle":
            up = progress / self.warm_up if self.warm_up else 1.0
            return self.lr * min(up, (1 - progress) / max(1 - self.warm_up, 1e-12))
        return Steps(self.lr, self.drops)(step // steps / self.epochs)

    def steps(self, samples: int) -> int:
        """Steps in an epoch of so many samples. Raises MarginsError where drop_last leaves none."""
        count = samples / self.batch_size
        steps = math.floor(count) if self.drop_last else math.ceil(count)
        if not steps:
            raise MarginsError(f"batch_size: with drop_last {self.batch_size} leaves nothing of {samples} samples")
        return steps

    def optimizer(self, model: nn.Module, stacked: bool = False) -> SGD:
        """stacked: whether the parameters have one more dimension in front, of the runs."""
        most = 2 if stacked else 1  # dimensions of norms' parameters and biases
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        decayed = [p for p in trained if p.ndim > most or self.decay_norms]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}]
        if rest := [p for p in trained if p.ndim <= most and not self.decay_norms]:
            groups.append({"params": rest, "weight_decay": 0.0})
        return SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
