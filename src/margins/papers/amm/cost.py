"""What a step of AMM's training costs beside a plain one: time, memory, passes (section 4.5).

On one thread, by the process's own CPU time, and by the bytes of tensors that are alive: both independent of what a
training comes to, but not of the network, which is therefore in mid-training, and stays as it is.
"""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from margins import datasets, models
from margins.attacks.found import misclassified
from margins.attacks.geometry import length
from margins.checkpoints import Checkpoint
from margins.claims import Check, Evidence
from margins.datasets import Data
from margins.experiments import Experiment, Outcome, Unit, register
from margins.methods import Row
from margins.models import Centred
from margins.papers.amm import mnist
from margins.papers.amm.second_order import gradient, regulariser, relative
from margins.papers.amm.whole_graph import WholeGraph
from margins.papers.steps import alive, seconds, turns
from margins.penalties import amm
from margins.penalties.context import in_mode
from margins.penalties.deepfool import DeepFoolMargin
from margins.penalties.paths import find
from margins.tables.job import REVISIONS
from margins.training import Recipe, train
from margins.training.cost import cost

NAME = "amm/cost"
#: Steps of a run, of which the first and the last are not timed: one warms up, the other is with the end of the epoch.
STEPS = 5
GIVEN = {"recipe": Recipe(epochs=1, lr=1e-12, clip=10.0), "threat": mnist.THREAT}
PLAIN, WHOLE = "plain", "MIN+EXP, straightforward"
#: What the paper says that AMM takes, over plain training (section 4.5).
PRINTED = {"time": (6, 14), "memory": (2, 4)}


def _row(penalty: WholeGraph) -> Row:
    """AMM with another way to the penalty, at the paper's coefficient of that pair."""
    row = mnist.amm(penalty.aggregation, penalty.shrinkage)
    plain, term = row.terms
    return replace(row, terms=(plain, replace(term, function=penalty)))


#: What is compared, all with the paper's settings for MNIST.
WAYS: dict[str, Row] = {
    PLAIN: mnist.REFERENCE,
    "MIN+EXP": mnist.OURS,
    "AVG+EXP": mnist.amm("AVG", "EXP"),
    "MIN+EXP, 3 candidates": mnist.amm("MIN", "EXP", candidates=3),
    "MIN+EXP, no second order": mnist.amm("MIN", "EXP", second_order=False),
    WHOLE: _row(WholeGraph("MIN", "EXP", *mnist.CHOSEN["MIN", "EXP"][1:])),
}


def subject(config: Mapping, seed: int) -> tuple[nn.Module, Data]:
    """A network after some epochs of plain training and some of AMM's, at the paper's rate; data for STEPS steps."""
    trained, settings = config["trained"], dict(config["model"])
    data = datasets.load(config["data"], "train", size=trained["size"], seed=seed)
    net = models.build(settings.pop("name"), **settings, generator=torch.Generator().manual_seed(seed))
    model = Centred(net, data.x.mean(0))
    recipe = Recipe(epochs=1, batch_size=trained["batch"], lr=config["lr"], weight_decay=1e-4, clip=10.0)
    for row, epochs in ((mnist.REFERENCE, trained["plain"]), (mnist.OURS, trained["amm"])):
        if epochs:
            train(
                model, _frozen(row, model), data, recipe=replace(recipe, epochs=epochs), threat=mnist.THREAT, seed=seed
            )
    few = trained["batch"] * STEPS
    return model, replace(data, x=data.x[:few], y=data.y[:few])


def _frozen(row: Row, model: nn.Module) -> Row:
    """The row as AMM has it for nets with BatchNorm, which stays as it is; plain training from scratch moves it."""
    normed = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return replace(row, recipe={**row.recipe, "frozen_norms": True}) if normed and row is not mnist.REFERENCE else row


def fewer(model: nn.Module, data: Data, batch: int, candidates: int = 3) -> dict[str, float]:
    """What looking at fewer classes changes: the paths of samples, those that MIN keeps, and the penalty's gradient."""
    _, c, d = mnist.CHOSEN["MIN", "EXP"]
    changed, kept, apart = [], [], []
    for x, y in zip(data.x.split(batch), data.y.split(batch), strict=True):
        sides = []
        for most in (None, candidates):
            part = DeepFoolMargin("MIN", "EXP", c, d, candidates=most)
            with in_mode(model, "eval"):
                paths = find(model, x, y, part.steps, part.overshoot, most)
                correct = ~misclassified(model(x).detach(), y)
            walked: list[list[int]] = [[] for _ in y]
            for step in paths.steps:
                for sample, towards in zip(step.samples.tolist(), step.towards.tolist(), strict=True):
                    walked[sample].append(towards)
            distances = length(paths.moved, 2)
            sides.append((walked, amm.kept("MIN", distances, correct, y), regulariser(part, model, x, y).mean()))
        (walked, all_kept, value), (other, few_kept, less) = sides
        changed += [one != another for one, another in zip(walked, other, strict=True)]
        kept.append((all_kept != few_kept).double().mean().item())
        apart.append(relative(gradient(less, model), gradient(value, model)).item())
    return {
        f"{candidates} candidates: samples on another path, %": 100 * statistics.mean(changed),
        f"{candidates} candidates: samples kept by one only, %": 100 * statistics.mean(kept),
        f"{candidates} candidates: relative change of the penalty's gradient, mean": statistics.mean(apart),
        f"{candidates} candidates: relative change of the penalty's gradient, largest": max(apart),
    }


def measure(config: Mapping, seed: int) -> Outcome:
    """All ways' steps on one network: medians of runs that take turns, and their ratios to plain ones run by run."""
    model, data = subject(config, seed)
    batch, rows = config["trained"]["batch"], {name: _frozen(row, model) for name, row in WAYS.items()}
    timed = {name: partial(seconds, model, row, data, batch, **GIVEN) for name, row in rows.items()}
    times, load = turns(timed, config["trained"]["reps"])
    bytes_ = {name: alive(model, row, data, batch, **GIVEN) for name, row in rows.items()}
    metrics, ratios = {}, {}
    for name, row in rows.items():
        ratios[name] = (times[name] / times[PLAIN]).tolist()
        counted = cost(row, model, data, threat=mnist.THREAT, batch_size=batch)
        metrics |= {
            f"{name}: ms": 1e3 * statistics.median(times[name]),
            f"{name}: time over plain": statistics.median(ratios[name]),
            f"{name}: forwards": counted.forwards,
            f"{name}: MiB": bytes_[name] / 2**20,
            f"{name}: memory over plain": bytes_[name] / bytes_[PLAIN],
        }
    with in_mode(model, "eval"), torch.no_grad():
        metrics["wrong samples, %"] = 100 * misclassified(model(data.x), data.y).double().mean().item()
    return Outcome(metrics | fewer(model, data, batch) | {"load": load}, curves=ratios)


def _cost(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    config = {**unit.config, "trained": unit.config["trained"][unit.scale]}
    return [measure(config, unit.seed)]


def _net(model: Mapping, data: str, lr: float, **trained) -> dict:
    """trained: images, plain epochs, AMM's, the batch of both and of the steps, and repeats; quick: a few of each."""
    quick = {"size": 20 * STEPS, "plain": 1, "amm": 1, "batch": 10, "reps": 1}
    return {"model": dict(model), "data": data, "lr": lr, "trained": {"quick": quick, "laptop": trained}}


LENET = {"name": "lenet", "shape": (1, 28, 28), "classes": 10}
CONVNET = {"name": "convnet", "shape": (3, 32, 32), "classes": 10}
RESNET = {"name": "resnet-cifar", "depth": 20, "shape": (3, 32, 32), "classes": 10}
#: The CIFAR nets learn a few images by heart, so that they err on few training images, as the nets that are fine-tuned;
#: the whole graph of a batch of a hundred would not fit into a laptop for the ResNet.
NETS = {
    "MLP": _net(mnist.MLP, "mnist", 5e-3, size=5000, plain=0, amm=3, batch=100, reps=7),
    "LeNet": _net(LENET, "mnist", 5e-3, size=5000, plain=0, amm=3, batch=100, reps=5),
    "ConvNet": _net(CONVNET, "cifar10", 5e-3, size=2000, plain=20, amm=1, batch=100, reps=2),
    "ResNet-20": _net(RESNET, "cifar10", 1e-2, size=1000, plain=20, amm=1, batch=20, reps=2),
}

register(
    Experiment(
        name=NAME,
        title="What a step of AMM's training costs beside a plain one",
        source="AMM, section 4.5",
        rows=NETS,
        scales={"quick": {}, "laptop": {}},
        seeds=mnist.SEEDS,
        run=_cost,
        settings={"ways": {name: row.describe() for name, row in WAYS.items()}, "steps": STEPS},
        revisions=REVISIONS | {"cost": 1},
        minutes={"quick": 0.2, "laptop": 5},
    )
)


def _most(what: str) -> Evidence:
    low, high = PRINTED[what]

    def read(at) -> list[Check]:
        whole, ours = (
            np.array([at[NAME].metric(net, f"{way}: {what} over plain") for net in NETS]) for way in (WHOLE, "MIN+EXP")
        )
        share = ((low <= whole) & (whole <= high)).mean(0)
        told = (
            f"{whole.min():.1f} to {whole.max():.1f}; this book's implementation {ours.min():.1f} to {ours.max():.1f}"
        )
        label = f"{WHOLE}: share of {len(NETS)} nets whose {what} is within {low} to {high} of plain ({told})"
        return [Check(label, share > 0.5, share, "> 1/2")]

    return Evidence((NAME,), read)


EVIDENCE = {"amm-s45-time-6-to-14": _most("time"), "amm-s45-memory-2-to-4": _most("memory")}
