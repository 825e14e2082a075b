"""What a step of each method takes on the large networks, beside the floor of adversarial training (LMA, section 4.4).

On a CPU by the process's own time on one thread, on a GPU by the time that passes. Networks have their first weights,
and keep them.
"""

import copy
import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import datasets, methods, models
from margins.checkpoints import Checkpoint
from margins.claims import Difference, Evidence
from margins.datasets import Data
from margins.errors import MarginsError
from margins.experiments import Experiment, Outcome, Unit, register
from margins.methods import Row, Term
from margins.papers import cifar
from margins.papers.lma.large import AT, ours
from margins.papers.lma.short import TRADES_EMR, WARM
from margins.papers.steps import now, seconds, turns
from margins.tables.job import REVISIONS
from margins.training import Recipe
from margins.training.cost import cost

NAME = "lma/cost"
LMA, WITH_L2 = "LMA-AT", "LMA-AT, explicit l2"


def squares(model: nn.Module) -> Tensor:
    """The sum of the squares of all parameters: what an explicit l2 penalty adds to a loss."""
    return sum(parameter.square().sum() for parameter in model.parameters())


def ways() -> dict[str, Row]:
    """The methods that are compared, crafted alike but for TRADES."""
    lma = ours("ResNet-18", "cifar10")()
    return {
        "ST": methods.plain(),
        "AT": AT,
        "TRADES": methods.trades(),
        "MART": methods.mart(),
        LMA: lma,
        WITH_L2: replace(lma, terms=(*lma.terms, Term(squares, "parameters", 1e-4))),
        "AT+HE": methods.he_at(),
        "AT+IGR": methods.igr(1.0, AT),
        "AT+EMR": methods.emr(AT, *WARM),
        "TRADES+EMR": methods.emr(methods.trades(), *TRADES_EMR),
    }


def floor(model: nn.Module, data: Data, batch: int, recipe: Recipe) -> float:
    """Seconds of a step of adversarial training and nothing else: PGD's passes to the input, and one full step.

    With the recipe's precision, and compiled where that is. The median of all steps but the first and the last.
    """
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    forward = torch.compile(model) if recipe.compiled else model
    given = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    optimizer, threat, seen = torch.optim.SGD(model.parameters(), **given), cifar.THREAT, []
    device = data.x.device
    half = torch.autocast(device.type, torch.bfloat16) if recipe.precision == "bf16" else nullcontext()
    for x, y in zip(data.x.split(batch), data.y.split(batch), strict=True):
        x = x.contiguous(memory_format=torch.channels_last)
        model.eval().requires_grad_(False)
        adversary = x + 0.001 * torch.randn_like(x)
        for _ in range(threat.steps):
            adversary.requires_grad_()
            with half:
                logits = forward(adversary)
            (slope,) = torch.autograd.grad(functional.cross_entropy(logits.float(), y, reduction="sum"), adversary)
            moved = (adversary.detach() + threat.step_size * slope.sign() - x).clamp(-threat.eps, threat.eps)
            adversary = (x + moved).clamp(0, 1)
        model.train().requires_grad_(True)
        with half:
            logits = forward(adversary)
        optimizer.zero_grad()
        functional.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        seen.append(now(device))
    return statistics.median(b - a for a, b in pairwise(seen[:-1]))


def measure(config: Mapping[str, Any], rows: Mapping[str, Row], scale: str, seed: int, device: torch.device) -> Outcome:
    """Steps of all ways and of the floor on one network: medians of runs that take turns, ratios run by run."""
    settings, sizes = dict(config["model"]), config["sizes"][scale]
    model = models.build(settings.pop("name"), **settings, generator=torch.Generator().manual_seed(seed)).to(device)
    batch, steps = sizes["batch"], sizes["steps"]
    data = datasets.load("cifar10", "train", size=steps * batch, seed=seed)
    data = replace(data, x=data.x.to(device), y=data.y.to(device))
    fast = {"precision": "bf16", "compiled": True} if device.type == "cuda" else {}
    recipe = Recipe(epochs=1, batch_size=batch, lr=1e-12, weight_decay=5e-4, **fast)
    given = {"recipe": recipe, "threat": cifar.THREAT}
    timed = {name: partial(seconds, model, row, data, batch, **given) for name, row in rows.items()}
    timed["floor"] = lambda: floor(model, data, batch, recipe)
    taken, load = turns(timed, sizes["reps"])
    ratios = {f"{name}: time over AT": taken[name] / taken["AT"] for name in rows}
    ratios["AT: time over floor"] = taken["AT"] / taken["floor"]
    metrics = {name: float(np.median(values)) for name, values in ratios.items()} | {"load": load}
    few = replace(data, x=data.x[:batch], y=data.y[:batch])
    for name, took in taken.items():
        step = float(np.median(took))
        metrics |= {f"{name}: ms": 1e3 * step, f"{name}: seconds an epoch": step * 50_000 / batch}
    for name, row in rows.items():
        metrics[f"{name}: forwards"] = cost(row, model, few, threat=cifar.THREAT, batch_size=batch).forwards
    return Outcome(metrics, curves={name: values.tolist() for name, values in ratios.items()})


def _cost(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    device = torch.device("cuda" if unit.scale == "gpu" else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MarginsError("scale: gpu is about a GPU's time, and there is none here")
    return [measure(unit.config, ways(), unit.scale, unit.seed, device)]


#: Images of a step on a CPU; on a GPU 128.
BATCHES = {"ResNet-8": 100, "ResNet-18": 8, "WRN-34-10": 2}


def _config(net: str) -> dict[str, Any]:
    sizes = {
        "quick": {"batch": 2, "steps": 4, "reps": 1},
        "laptop": {"batch": BATCHES[net], "steps": 5, "reps": 3 if net == "ResNet-8" else 1},
        "gpu": {"batch": 128, "steps": 30, "reps": 5},
    }
    described = {name: row.describe() for name, row in ways().items()}
    return {"model": cifar.NETS[net].build(32, 10), "sizes": sizes, "ways": described}


register(
    Experiment(
        name=NAME,
        title="What a step of adversarial training takes on CIFAR's networks, by method and beside its floor",
        source="LMA, sections 1 and 4.4; EMR, section 5.3",
        rows={net: _config(net) for net in BATCHES},
        scales={"quick": {}, "laptop": {}, "gpu": {}},
        seeds=(0, 1, 2),
        run=_cost,
        revisions=REVISIONS | {"lma cost": 1},
        minutes={"quick": 1, "laptop": 8, "gpu": 2},
    )
)
#: What the ledger's claims name: the least that an explicit penalty costs more, and the most that LMA-AT may.
MORE, MOST = 1.02, 1.25
LARGE = ("ResNet-18", "WRN-34-10")


def _ratio(at, net: str, way: str, other: str) -> np.ndarray:
    return at[NAME].metric(net, f"{way}: time over AT") / at[NAME].metric(net, f"{other}: time over AT")


def _explicit(at) -> list[Difference]:
    more = np.log(_ratio(at, "ResNet-18", WITH_L2, LMA))
    return [Difference(f"ResNet-18: log of {WITH_L2} over {LMA}", more, ">", float(np.log(MORE)))]


def _efficient(at) -> list[Difference]:
    parts = []
    for net in LARGE:
        over = {other: np.log(_ratio(at, net, LMA, other)) for other in ("AT", "TRADES")}
        parts += [
            Difference(f"{net}: log of {LMA} over AT", over["AT"], "<", float(np.log(MOST))),
            Difference(f"{net}: log of {LMA} over TRADES", over["TRADES"], "<"),
        ]
    return parts


EVIDENCE = {
    "lma-s44-no-l2-cheaper": Evidence((NAME,), _explicit),
    "lma-s44-efficient": Evidence((NAME,), _efficient),
}
