"""What a step of EMR's training costs beside a plain one: exact, by a probe, approximate; by classes, and by mode.

On one thread, by the process's own CPU time, and by the bytes of tensors that are alive; networks stay as they are.
"""

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from margins import datasets, methods, models
from margins.checkpoints import Checkpoint
from margins.claims import Difference, Evidence
from margins.datasets import Data
from margins.experiments import Experiment, Outcome, Unit, find, register
from margins.methods import Row
from margins.methods.rows import describe
from margins.papers.emr.networks import AT, CNN, MLP, SEEDS, THREATS, cnn
from margins.papers.steps import alive, now, seconds, turns
from margins.penalties.context import Context, Threat
from margins.penalties.emr import ApproximateEMR
from margins.tables.job import REVISIONS
from margins.training import Recipe
from margins.training.cost import cost

NAME = "emr/cost"
PLAIN, EXACT, CHAIN, PROBE, APPROXIMATE = "ST", "ST+EMR", "ST+EMR, chain", "ST+EMR, one probe", "ST+Approx-EMR"
ADVERSARIAL, BOTH = "AT", "AT+EMR"
#: Of the nets of Tables 1 and 2; of the penalty beside any of them the coefficient does not matter.
WAYS: dict[str, Row] = {
    PLAIN: methods.plain(),
    EXACT: methods.exact_emr(methods.plain(), 0.1),
    CHAIN: methods.exact_emr(methods.plain(), 0.1, route="chain"),
    PROBE: methods.exact_emr(methods.plain(), 0.1, probes=1),
    APPROXIMATE: methods.emr(methods.plain(), 0.1, 1.0),
    ADVERSARIAL: AT,
    BOTH: methods.exact_emr(AT, 0.1),
}
#: The modes of a forward; in evaluation that of a net with BatchNorm is not the loss's.
MODES = ("train", "eval")
_MODES = {PLAIN: WAYS[PLAIN]} | {mode: methods.emr(methods.plain(), 0.1, 1.0, mode=mode) for mode in MODES}
CLASSES = (2, 5, 10, 20, 50, 100)
_CLASSES = {way: WAYS[way] for way in (PLAIN, EXACT, APPROXIMATE)}
_RESNET = {"name": "resnet-cifar", "shape": (3, 32, 32), "classes": 10, "depth": 20}


def _net(model: Mapping[str, Any], table: str, ways: Mapping[str, Row], reps: int) -> tuple[dict, Mapping, Threat]:
    """The settings, ways and threat of a net for the data of one of the tables."""
    threat, told = THREATS[table], {name: row.describe() for name, row in ways.items()}
    config = {"model": dict(model), "data": find(table).settings["data"], "threat": describe(threat), "ways": told}
    sizes = {"batch": {"quick": 10, "laptop": 100}, "reps": {"quick": 1, "laptop": reps}}
    return config | sizes, ways, threat


#: Steps of a run, of which the first and the last are not timed.
STEPS = 6
_MLP = {"name": "mlp", "inputs": 784}
NETS = {
    "MNIST MLP": _net(_MLP | {"hidden": (1024,) * 4, "classes": 10}, MLP, WAYS, 5),
    "CIFAR CNN, quarter": _net(cnn(16), CNN, WAYS, 3),
    **{f"{k} classes": _net(_MLP | {"hidden": (256, 256), "classes": k}, MLP, _CLASSES, 3) for k in CLASSES},
    "ResNet-20": _net(_RESNET, CNN, _MODES, 3),
}


def alone(model: nn.Module, data: Data, batch: int, mode: str, threat: Threat) -> float:
    """Seconds of the approximate penalty by itself, forward to backward, with a forward in that mode: the median."""
    took, part = [], ApproximateEMR(1.0, mode)
    for x, y in zip(data.x.split(batch), data.y.split(batch), strict=True):
        context = Context(model.train(), x, y, torch.arange(len(x)), len(x), 0.0, 0, threat)
        begun = now(x.device)
        part(context, "clean").mean().backward()
        took.append(now(x.device) - begun)
        model.zero_grad()
    return statistics.median(took[1:])


def measure(config: Mapping[str, Any], ways: Mapping[str, Row], threat: Threat, scale: str, seed: int) -> Outcome:
    """Steps of all ways on one network, at its first weights: medians of runs that take turns, ratios run by run."""
    settings, batch = dict(config["model"]), config["batch"][scale]
    model = models.build(settings.pop("name"), **settings, generator=torch.Generator().manual_seed(seed))
    data = datasets.load(config["data"], "train", size=STEPS * batch, seed=seed)
    # labels of as many classes as the net has; what they are changes no time
    data = Data(data.x, data.y % settings["classes"], data.name, settings["classes"])
    given = {"recipe": Recipe(epochs=1, lr=1e-12, attack_validation=True), "threat": threat}
    timed = {name: partial(seconds, model, row, data, batch, **given) for name, row in ways.items()}
    timed |= {f"penalty alone, {mode}": partial(alone, model, data, batch, mode, given["threat"]) for mode in MODES}
    taken, load = turns(timed, config["reps"][scale])
    few = Data(data.x[:batch], data.y[:batch], data.name, data.classes)
    metrics = {f"penalty alone, {mode}: ms": 1e3 * float(np.median(taken[f"penalty alone, {mode}"])) for mode in MODES}
    metrics, ratios = metrics | {"load": load}, {}
    for name, row in ways.items():
        ratios[name] = (taken[name] / taken[PLAIN]).tolist()
        bytes_ = alive(model, row, data, batch, **given)
        metrics |= {
            f"{name}: ms": 1e3 * float(np.median(taken[name])),
            f"{name}: time over plain": statistics.median(ratios[name]),
            f"{name}: MiB": bytes_ / 2**20,
        }
        if name != CHAIN:  # whose products are not passes through the model, and are not counted
            counted = cost(row, model, few, threat=given["threat"], batch_size=batch)
            metrics[f"{name}: forwards"] = counted.forwards
    for name in ways:
        metrics[f"{name}: memory over plain"] = metrics[f"{name}: MiB"] / metrics[f"{PLAIN}: MiB"]
    return Outcome(metrics, curves=ratios)


def _cost(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    _, ways, threat = NETS[unit.row]
    return [measure(unit.config, ways, threat, unit.scale, unit.seed)]


register(
    Experiment(
        name=NAME,
        title="What a step of EMR's training costs beside a plain one",
        source="EMR, sections 1, 4 and 5.3",
        rows={name: config for name, (config, *_) in NETS.items()},
        scales={"quick": {}, "laptop": {}},
        seeds=SEEDS,
        run=_cost,
        revisions=REVISIONS | {"emr cost": 1},
        minutes={"quick": 0.1, "laptop": 1.5},
    )
)
#: What the ledger's claims name: how much longer, how it grows with the classes, and by how much modes may differ.
LONGER, POWER, SAME, SLOWER = 2.0, 0.7, 0.25, 1.05


def _time(at, net: str, way: str) -> np.ndarray:
    return at[NAME].metric(net, f"{way}: time over plain")


def _adversaries(at) -> list[Difference]:
    return [
        Difference(f"{net}: {ADVERSARIAL} over plain", _time(at, net, ADVERSARIAL), ">", LONGER, unit="plain steps")
        for net in ("MNIST MLP", "CIFAR CNN, quarter")
    ]


def penalty(results, k: int, way: str) -> np.ndarray:
    """What the penalty adds to a step with k classes, in ms, (S,)."""
    return results.metric(f"{k} classes", f"{way}: ms") - results.metric(f"{k} classes", f"{PLAIN}: ms")


def power(results) -> np.ndarray:
    """The exponent of the classes by which the exact penalty's time grows, by least squares, (S,)."""
    times = np.log([penalty(results, k, EXACT) for k in CLASSES])
    return np.polyfit(np.log(CLASSES), times, 1)[0]


def _classes(at) -> list[Difference]:
    growth = np.log(penalty(at[NAME], 100, APPROXIMATE) / penalty(at[NAME], 10, APPROXIMATE))
    return [
        Difference("exponent of the classes, exact", power(at[NAME]), ">", POWER),
        Difference("log of the approximation's growth, 10 to 100", growth, "within", float(np.log1p(SAME))),
    ]


def _modes(at) -> list[Difference]:
    took = {mode: at[NAME].metric("ResNet-20", f"penalty alone, {mode}: ms") for mode in MODES}
    extra = np.log(took["train"] / took["eval"])
    return [
        Difference("ResNet-20: log of the penalty's time, training over evaluation", extra, ">", float(np.log(SLOWER)))
    ]


EVIDENCE = {
    "emr-s1-at-costs-more": Evidence((NAME,), _adversaries),
    "emr-s4-exact-cost-grows-with-classes": Evidence((NAME,), _classes),
    "emr-s4-eval-mode-faster": Evidence((NAME,), _modes),
}
