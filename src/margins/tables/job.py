"""One row of a table with one seed: its training, where it is needed, and its evaluations."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import datasets, losses, models, paths
from margins.attacks.apgd import apgd, apgd_t
from margins.attacks.autoattack import autoattack
from margins.attacks.pgd import cw, fgsm, pgd
from margins.attacks.race import race
from margins.attacks.spsa import spsa
from margins.attacks.square import square
from margins.checkpoints import Checkpoint, OutOfTime
from margins.datasets import Data
from margins.evaluation import evaluate, identity
from margins.experiments import FAILED, Outcome, Unit
from margins.files import atomic
from margins.margin import deepfool_margin
from margins.methods.rows import Row
from margins.penalties.context import Threat
from margins.training import Recipe, Trained, loop, processes, train, train_together

#: Subsets, of training and of test images, begin a permutation drawn with this seed: the same for every row and seed.
PERMUTATION = 0
#: Images at a time in an evaluation. One that is out of time loses the batch under way, which takes AutoAttack long.
BATCH, AUTOATTACK_BATCH = 250, 100
#: Of what decides the trained weights beside a row's own parts.
REVISIONS = {"training": loop.REVISION, "losses": losses.REVISION, "models": models.REVISION}
#: What of a unit's configuration decides the trained weights.
_DECIDES = (
    "method", "model", "data", "size", "validation", "recipe", "threat", "together", "centre", "random_labels",
    "resize",
)  # fmt: skip
#: The column of `deepfool_margin`.
DEEPFOOL = "DeepFool distance"
ATTACKS = {
    "fgsm": fgsm, "pgd": pgd, "cw": cw, "apgd": apgd, "apgd-t": apgd_t, "autoattack": autoattack, "square": square,
    "spsa": spsa, "race": race,
}  # fmt: skip
#: The curves of a training that tell of held-out images.
VALIDATION = ("validation PGD-10", "validation clean")


@dataclass(eq=False)
class Job:
    """One row with one seed: its training, where it is needed, and its evaluations.

    Where the unit's configuration names seeds that are trained "together", the first that needs its weights trains all
    of them, and the others find theirs in the cache. Without a checkpoint it can only be asked what is `lost`.
    """

    row: Row
    recipe: Recipe
    threat: Threat
    unit: Unit
    checkpoint: Checkpoint | None = None

    def __post_init__(self):
        processes.join()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def training(self) -> Outcome:
        """Train, keep the weights in the cache, and tell what happened along the way; of weights that are there too."""
        together, kept = self.unit.config.get("together", ()), self._weights(self.row, self.unit.seed)
        curves, chosen = kept["curves"], kept["chosen"]
        metrics = {"best epoch": chosen}
        for name in VALIDATION:
            curve = curves.get(name, [math.nan] * chosen)  # one that diverged at once has none
            metrics |= {name: curve[chosen - 1], f"{name}, last": curve[-1]}
        if kept["status"] == "diverged":
            metrics = dict.fromkeys(metrics, math.nan)
        curves = {name: [math.nan] for name in VALIDATION} | curves
        facts = {"weights": kept["digest"]} | ({"runs at once": str(len(together))} if together else {})
        return Outcome(metrics, curves, status=kept["status"], facts=facts, seconds=kept["seconds"])

    def lost(self) -> bool:
        """Whether the weights are not in the cache, so that they must be trained, again if they were before."""
        return not self._path(self.row, self.unit.seed).exists()

    def model(self, weights: str | int) -> tuple[nn.Module, dict[str, Any]]:
        """The network with its "best" or "last" weights, in evaluation mode, and what the cache has beside them.

        A number is an epoch of the recipe's snapshots; 0 is the network before its training.

        That is the "status" of the training, "done" or "diverged", its "curves", and the "digest" of all weights.
        Trains the network where the cache does not have it.
        """
        kept = self._weights(self.row, self.unit.seed)
        if weights != 0:
            state = kept["snapshots"][weights] if isinstance(weights, int) else kept[weights]
        elif self.row.start is not None:
            state = self._weights(self.row.start, self.unit.seed)["best"]
        else:
            return self._model(self.row, self.unit.seed).eval(), kept
        return self._with(state), kept

    def images(self, split: str, count: int) -> Data:
        """The first images of the table's permutation of "test" or "train", as the network sees them."""
        return self.recipe.seen(self._loaded(split, count))

    def evaluation(self) -> Outcome:
        """Attack the best or the last weights on test images. Every column of a diverged row is nan.

        Of several processes the first one does it, since an evaluation is not split.
        """
        kept = self._weights(self.row, self.unit.seed)
        return processes.alone(lambda: self._evaluated(kept))

    def _evaluated(self, kept: Mapping[str, Any]) -> Outcome:
        unit, config, begun = self.unit, self.unit.config, time.monotonic()
        split = config.get("split", "test")
        ending = ", train" * (split == "train") + ", last" * (config["weights"] == "last")
        facts = {"weights": kept["digest"]}
        if kept["status"] == "diverged":
            distances = [f"{name} distance" for name, one in config["attacks"].items() if one["attack"] == "race"]
            names = [*["clean"] * config["first"], *config["attacks"], *distances, *[DEEPFOOL] * ("deepfool" in config)]
            metrics = {f"{name}{ending}": math.nan for name in names}
            return Outcome(metrics, status="diverged", facts=facts, seconds=0.0)
        model = self._with(kept[config["weights"]])
        most = config["size"] if split == "train" else len(datasets.load(config["data"], split).y)
        images = config["images"] or most  # all of them in that order too
        test = self.images(split, images)
        # other code or other weights go on from nothing, and would be refused
        name = _hash([identity.code(), kept["digest"]])
        resume = self.checkpoint.path.with_name(f"{unit.key}-{name}.npz")
        resume.parent.mkdir(parents=True, exist_ok=True)
        heavy = any(given["attack"] == "autoattack" for given in config["attacks"].values())
        with stopping(model, self.checkpoint), exact():
            result = evaluate(
                model, test.x.to(self.device), test.y.to(self.device), norm=self.threat.norm,
                eps=self._eps, attacks=self._attacks(config["attacks"]), margins=self._distances(config),
                batch_size=AUTOATTACK_BATCH if heavy else BATCH, seed=unit.seed, resume=resume,
            )  # fmt: skip
        for path in resume.parent.glob(f"{unit.key}-*.npz"):
            path.unlink()
        withstood = {"clean": result.correct} | {name: one.robust for name, one in result.attacks.items()}
        if not config["first"]:
            del withstood["clean"]
        metrics = {f"{name}{ending}": 100 * kept.double().mean().item() for name, kept in withstood.items()}
        distances = {f"{name}{ending}": one.values for name, one in result.margins.items()}
        metrics |= {name: values[values.isfinite()].abs().mean().item() for name, values in distances.items()}
        metrics[f"images of {unit.part}"] = len(test.x)
        facts |= {f"{FAILED}{unit.part}": "; ".join(one.name for one in result.failed)}
        arrays = {f"{name}{ending}": kept.numpy() for name, kept in withstood.items()}
        arrays |= {name: values.float().numpy() for name, values in distances.items()}
        return Outcome(metrics, arrays=arrays, facts=facts, seconds=time.monotonic() - begun)

    def _attacks(self, columns: Mapping[str, Mapping[str, Any]]) -> dict[str, partial]:
        ball = {"norm": self.threat.norm, "eps": self._eps}
        attacks = {}
        for name, given in columns.items():
            attack = ATTACKS[given["attack"]]
            taken = {key: value for key, value in ball.items() if key in signature(attack).parameters}
            attacks[name] = partial(attack, **taken, **{key: value for key, value in given.items() if key != "attack"})
        return attacks

    @property
    def _eps(self) -> float:
        return self.unit.config.get("eps", self.threat.eps)

    def _distances(self, config: Mapping[str, Any]) -> dict[str, partial]:
        if "deepfool" not in config:
            return {}
        return {DEEPFOOL: partial(deepfool_margin, norm=self.threat.norm, **config["deepfool"])}

    @property
    def _seeds(self) -> Sequence[int]:
        """Of the runs that are trained at once."""
        return self.unit.config.get("together", (self.unit.seed,))

    def _weights(self, row: Row, seed: int) -> dict[str, Any]:
        path = self._path(row, seed)
        if processes.shared(path.exists()):  # the first process writes it
            return processes.alone(lambda: torch.load(path, weights_only=True))
        return self._train(row)[seed]

    def _path(self, row: Row, seed: int) -> Path:
        """Where the weights lie: the name holds all that decides them."""
        config = {name: self.unit.config[name] for name in _DECIDES if name in self.unit.config}
        config |= {"method": row.describe()}
        return paths.CACHE / "weights" / f"{_hash([config, seed, self.unit.scale, self.device.type, REVISIONS])}.pt"

    def _model(self, row: Row, seed: int) -> nn.Module:
        settings = dict(self.unit.config["model"])
        generator = torch.Generator().manual_seed(seed)
        model = models.build(settings.pop("name"), **settings, generator=generator)
        if self.unit.config.get("centre"):
            model = models.Centred(model, self.recipe.seen(self._data()[0]).x.mean(0).cpu())
        return (model if row.head is None else row.head.put_on(model)).to(self.device)

    def _with(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The row's network with these weights, in evaluation mode."""
        model = self._model(self.row, self.unit.seed)
        model.load_state_dict(state)
        return model.eval()

    def _train(self, row: Row) -> dict[int, dict[str, Any]]:
        """Train a row, after the row that it starts from, and write each seed's weights: in one file, or not at all."""
        made = [self._model(row, seed) for seed in self._seeds]
        if row.start is not None:
            begun = [self._weights(row.start, seed) for seed in self._seeds]
            if any(kept["status"] == "diverged" for kept in begun):  # no row goes on from there
                ended = {"status": "diverged", "curves": {}, "seconds": 0.0, "snapshots": {}}
                return {seed: kept | ended for seed, kept in zip(self._seeds, begun, strict=True)}
            for model, kept in zip(made, begun, strict=True):
                model.load_state_dict(kept["best"])
        data, held_out = self._data()
        run = train_together if "together" in self.unit.config else _train_each
        checkpoint = self.checkpoint.beside(self._path(row, self._seeds[0]).stem)
        trained = run(
            made, replace(row, head=None, start=None), data, recipe=self.recipe, threat=self.threat, seeds=self._seeds,
            validation=held_out, checkpoint=checkpoint, progress=self.checkpoint.say,
        )  # fmt: skip
        found = {}
        for seed, one in zip(self._seeds, trained, strict=True):
            kept = {name: getattr(one, name) for name in ("best", "last", "status", "curves", "chosen", "snapshots")}
            found[seed] = kept | {"digest": _digest([one.best, one.last]), "seconds": one.seconds}
            if processes.rank() == 0:
                with atomic(self._path(row, seed)) as file:
                    torch.save(found[seed], file)
        return found

    def _data(self) -> tuple[Data, Data]:
        """The training images and, from the same permutation of the training split, the held-out ones."""
        size, held = self.unit.config["size"], self.unit.config["validation"]
        data = self._loaded("train", size + held)
        x, y = data.x.to(self.device), data.y.to(self.device)
        if noisy := round(size * self.unit.config.get("random_labels", 0.0)):  # the images are in a random order
            drawn = torch.randint(data.classes, (noisy,), generator=torch.Generator().manual_seed(PERMUTATION))
            y = torch.cat([drawn.to(self.device), y[noisy:]])
        return replace(data, x=x[:size], y=y[:size]), self.recipe.seen(replace(data, x=x[size:], y=y[size:]))

    def _loaded(self, split: str, size: int) -> Data:
        """The first images of the permutation, enlarged where the table says so."""
        data = datasets.load(self.unit.config["data"], split, size=size, seed=PERMUTATION)
        if (side := self.unit.config.get("resize")) is None:
            return data
        x = functional.interpolate(data.x, size=(side, side), mode="bilinear", align_corners=False)
        return replace(data, x=x.clamp_(0, 1))  # which rounding may leave


def _train_each(models: Sequence[nn.Module], *given, seeds: Sequence[int], **settings) -> list[Trained]:
    """What `train_together` does, one run after the other."""
    return [train(model, *given, seed=seed, **settings) for model, seed in zip(models, seeds, strict=True)]


def _hash(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _digest(states: Sequence[Mapping[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for state in states:
        for name, value in state.items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + value.numpy().tobytes())
    return found.hexdigest()


@contextmanager
def stopping(model: nn.Module, checkpoint: Checkpoint) -> Iterator[None]:
    """Within the block a forward past the deadline raises OutOfTime; finished batches lie in a file."""

    def late(*_) -> None:
        if checkpoint.deadline is not None and time.monotonic() > checkpoint.deadline:
            raise OutOfTime

    hook = model.register_forward_pre_hook(late)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def exact() -> Iterator[None]:
    """Evaluation in full float32: no TensorFloat-32 in convolutions on a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
