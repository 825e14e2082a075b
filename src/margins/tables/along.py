"""What is measured of a network along its training: at the epochs whose weights the recipe keeps."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import checks, datasets, losses
from margins.attacks.found import attacking
from margins.attacks.geometry import length
from margins.attacks.race import race
from margins.errors import MarginsError
from margins.experiments import Outcome
from margins.margin import deepfool_margin, effective_margin, lipschitz_margin, logit_margin
from margins.methods.rows import describe
from margins.models import frozen
from margins.penalties.jacobian import gradients
from margins.tables.job import BATCH, Job, exact, stopping
from margins.tables.response import response
from margins.training import processes

#: Of `effective_weights`.
PARTS = ("all", "seen", "mean")
#: Raised when a change of a measure changes results.
REVISION = 1


def race_margin(model: nn.Module, x: Tensor, y: Tensor, *, norm: float, steps: int = 100, box: bool = True) -> Tensor:
    """(B,) the distance that `race` finds out of the predicted class, in input units; negative where that is wrong.

    box: whether only points of [0, 1] count.
    """
    with torch.no_grad():
        label = model(x).argmax(1)
    found = race(model, x, label, norm=norm, steps=steps, bounds=(0.0, 1.0) if box else None).distance
    return torch.where(label == y, found, -found)


def estimate(model: nn.Module, x: Tensor, y: Tensor, *, radius: float = 5.0, points: int = 1024) -> Tensor:
    """(B,) AMR's estimate of the margin, see `margins.margin.lipschitz_margin`."""
    return lipschitz_margin(model, x, y, radius=radius, points=points).margin


def gap(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) the logit of the true class minus the best other one."""
    with torch.no_grad():
        return logit_margin(model(x), y)


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) the l2 length of the cross-entropy's input gradient, computed in float64, which loses no short one."""
    single = next(model.parameters()).dtype
    model = model.double()
    try:
        with attacking(model, x.double(), y, None) as (oracle, _, _):
            return length(oracle.gradient(x.double(), y, losses.cross_entropy)[0], 2)
    finally:
        model.to(single)


def probability(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) the softmax's probability of the true class; times `gradient`, the length of its own input gradient."""
    with torch.no_grad():
        return (-losses.cross_entropy(model(x), y)).exp()


def effective_weights(model: nn.Module, x: Tensor, y: Tensor, *, part: str = "all") -> Tensor:
    """(B,) the squared l2 lengths of all logits' input gradients, summed: what EMR's Eq. 5 penalises.

    part: "all", or one of its two summands, "seen" by the softmax and by margins, of the gradients minus their mean,
    and "mean", K times the mean's.
    """
    rows = _rows(model, x)
    mean = rows.mean(1, keepdim=True)
    kept = {"all": rows, "seen": rows - mean, "mean": mean.expand_as(rows)}[checks.choice("part", part, PARTS)]
    return kept.square().sum((1, 2))


def effective_cosine(model: nn.Module, x: Tensor, y: Tensor, *, centred: bool = False) -> Tensor:
    """(B,) the mean cosine of the input gradients of two logits, over all pairs; a gradient of length 0 has 0 to all.

    centred: of the gradients minus their mean over the logits, which neither the softmax nor a margin sees. For K that
    are alike it is -1 / (K - 1).
    """
    rows = _rows(model, x)
    rows = functional.normalize(rows - rows.mean(1, keepdim=True) if centred else rows, dim=2)
    classes = rows.shape[1]
    return (rows.sum(1).square().sum(1) - rows.square().sum((1, 2))) / (classes * (classes - 1))


def approximate_weights(model: nn.Module, x: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    """(B,) what EMR's Eq. 7 penalises at that temperature: the squared length of the weighted mean logit's gradient."""
    with torch.no_grad():
        share = (model(x) / temperature).softmax(1)
    return (share[:, :, None] * _rows(model, x)).sum(1).square().sum(1)


def _rows(model: nn.Module, x: Tensor) -> Tensor:
    """(B, K, D) the input gradients of all logits. Costs a forward and K backwards."""
    with frozen(model), torch.enable_grad():
        x = x.clone().requires_grad_()
        logits = model(x)
        one = torch.eye(logits.shape[1], dtype=logits.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
        return gradients(logits, x, one, graph=False).flatten(2).transpose(0, 1)


MEASURES: dict[str, Callable[..., Tensor]] = {
    "deepfool": deepfool_margin, "race": race_margin, "estimate": estimate, "effective": effective_margin,
    "weights": effective_weights, "cosine": effective_cosine, "approximate": approximate_weights, "gap": gap,
    "gradient": gradient, "probability": probability, "response": response,
}  # fmt: skip


@dataclass(frozen=True)
class Along:
    """An evaluation of a table: numbers of each image at the epochs that the recipe keeps (`Recipe.snapshots`).

    measures: name of the column -> the name in `MEASURES` as "measure", and its own settings; the norm is the table's
    where none is given.
    images: of the first of a permutation of the `split`, "train" for those that the row was trained on, with their true
    labels. ends: whether only the first and the last of the epochs are looked at. begin: the first epoch that is; 0
    is the network before its training, beside those that the recipe keeps.

    Recorded are arrays (epochs, images) by the name with ", along", and ", along, train" of training images, of the
    epochs `epochs(recipe.snapshots)`, infinite where an attack found nothing; and the mean length of the last. Raises
    MarginsError for settings that are not taken.
    """

    measures: Mapping[str, Mapping[str, Any]]
    images: int
    split: str = "test"
    ends: bool = False
    begin: int = 1

    def __post_init__(self):
        checks.whole("begin", self.begin, 0)
        checks.choice("split", self.split, datasets.SPLITS)
        checks.whole("images", self.images, 1)
        for name, given in self.measures.items():
            taken = signature(MEASURES[checks.choice(f"measure of {name}", given.get("measure"), MEASURES)]).parameters
            if unknown := sorted(set(given) - {"measure"} - set(taken)):
                raise MarginsError(f"measure of {name}: {', '.join(unknown)} not among {', '.join(taken)}")

    @property
    def ending(self) -> str:
        """What the names of its numbers end with."""
        return ", along" + ", train" * (self.split == "train")

    @property
    def names(self) -> list[str]:
        return [f"{name}{self.ending}" for name in self.measures]

    def settings(self) -> dict[str, Any]:
        told = {"measures": describe(self.measures), "images": self.images, "split": self.split}
        told |= ({"ends": True} if self.ends else {}) | ({"begin": self.begin} if self.begin != 1 else {})
        return told | {"along": REVISION}

    def epochs(self, snapshots: tuple[int, ...]) -> tuple[int, ...]:
        """Those that are looked at, of a recipe's."""
        known = (0, *snapshots) if self.begin == 0 else snapshots
        later = tuple(epoch for epoch in known if epoch >= self.begin) or snapshots[-1:]
        return tuple(sorted({later[0], later[-1]})) if self.ends else later

    def outcome(self, job: Job) -> Outcome:
        """The numbers of one row and seed. Every one of a diverged row is nan."""
        return processes.alone(lambda: self._outcome(job))

    def _outcome(self, job: Job) -> Outcome:
        begun = time.monotonic()
        epochs = self.epochs(tuple(job.unit.config["recipe"]["snapshots"]))
        _, kept = job.model("last")
        facts = {"weights": kept["digest"]}
        if kept["status"] == "diverged":
            return Outcome(dict.fromkeys(self.names, math.nan), status="diverged", facts=facts, seconds=0.0)
        data = job.images(self.split, min(job.unit.config["images"], job.unit.config["size"]))
        rows: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for epoch in epochs:
            model, _ = job.model(epoch)
            with stopping(model, job.checkpoint), exact():
                for name, given in zip(self.names, self.measures.values(), strict=True):
                    rows[name].append(self._ask(model, data.x, data.y, given, job))
        arrays = {name: torch.stack(values).float().cpu().numpy() for name, values in rows.items()}
        last = {name: abs(values[-1][np.isfinite(values[-1])]) for name, values in arrays.items()}
        metrics = {name: float(values.mean()) for name, values in last.items() if len(values)}
        metrics["epochs looked at"] = len(epochs)
        return Outcome(metrics, arrays=arrays, facts=facts, seconds=time.monotonic() - begun)

    def _ask(self, model: nn.Module, x: Tensor, y: Tensor, given: Mapping[str, Any], job: Job) -> Tensor:
        measure = MEASURES[given["measure"]]
        settings = {name: value for name, value in given.items() if name != "measure"}
        if "norm" in signature(measure).parameters:
            settings.setdefault("norm", job.threat.norm)
        parts = zip(x.to(job.device).split(BATCH), y.to(job.device).split(BATCH), strict=True)
        return torch.cat([measure(model, *part, **settings) for part in parts])
