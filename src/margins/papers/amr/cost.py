"""What a step of AMR's training costs beside a plain one, its floor and other defences (section 5.3).

By the process's own CPU time on one thread, or on a GPU by the time that passes. Networks are trained a little before,
since Deep Defense's cost depends on how many samples are wrong, and stay as they are.
"""

import copy
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from margins import datasets, methods, models
from margins.attacks.found import misclassified
from margins.attacks.geometry import length
from margins.checkpoints import Checkpoint
from margins.datasets import Data
from margins.errors import MarginsError
from margins.experiments import Experiment, Outcome, Unit, register
from margins.methods import Row
from margins.papers.amm.cost import CONVNET, LENET
from margins.papers.amm.whole_graph import WholeGraph, whole_graph
from margins.papers.amr import defences, networks
from margins.papers.amr.networks import CIFAR, MNIST, SEEDS, Images
from margins.papers.steps import alive, now, seconds, turns
from margins.penalties import amm
from margins.penalties.amr import WrongMargin
from margins.penalties.context import Context
from margins.tables.job import REVISIONS
from margins.training import train
from margins.training.cost import cost
from margins.training.loop import Loop

NAME = "amr/cost"
PLAIN, AMR, RELEASED, DEFENSE, WHOLE = (
    "plain", "AMR, Eq. 15", "AMR, released", "Deep Defense", "Deep Defense, straightforward",
)  # fmt: skip
#: What is timed beside the ways: the products of the floor, and the gradient that "released" takes once an epoch.
PRODUCTS, EPOCH = "products", "epoch's gradient"
#: Adversarial training, by its steps of PGD.
ADV = {steps: f"PGD {steps}" for steps in (1, 10, 40)}
#: Samples of a batch of the training before: few, for many steps in little time.
SMALL = 16
#: Whose memory is told: the rest is not a matter of AMR.
KEPT = (PLAIN, "LCR", AMR, RELEASED)


@dataclass
class DefenseGraph(WholeGraph):
    """Deep Defense's penalty, as its code has it: DeepFool on the whole batch with the graph of everything."""

    def __call__(self, context: Context, at: str) -> Tensor:
        x = context.x if at == "clean" else context.x_adv
        distances, correct = whole_graph(context.model, x, context.y, self.steps, self.overshoot)
        return amm.terms(self.shrinkage, distances / length(x, 2), correct, self.c, self.d)


def ways(tau: float, released: float) -> dict[str, Row]:
    """What is compared, each with the paper's settings but for recipes of their own: all have the same one."""
    rows = networks.rows(tau, released)
    own = replace(methods.deep_defense(), recipe={})
    entropy, term = own.terms
    graph = DefenseGraph(**{name: getattr(term.function, name) for name in WholeGraph.__dataclass_fields__})
    return {
        PLAIN: rows["Std"],
        **{name: rows[name] for name in ("LCR", AMR, RELEASED)},
        **{name: methods.adv(steps=steps) for steps, name in ADV.items()},
        DEFENSE: own,
        WHOLE: replace(own, terms=(entropy, replace(term, function=graph))),
    }


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Those that the orthogonality penalty is about, by name: with weights (out, in) or (out, in, ...)."""
    kinds = nn.Linear | nn.modules.conv._ConvNd
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


class Products:
    """What the penalty must compute for the gradient, alone: a layer's smaller Gram matrix, and that times the weights.

    The outputs are there before. For weights (m, n) that are 2 min(m, n)^2 max(m, n) multiplications.
    """

    def __init__(self, model: nn.Module):
        weights = [layer.weight.detach().flatten(1).contiguous() for layer in layers(model).values()]
        self.outputs = [(w, w.new_empty(2 * (min(w.shape),)), torch.empty_like(w)) for w in weights]

    def __call__(self) -> None:
        for weight, gram, product in self.outputs:
            if weight.shape[0] > weight.shape[1]:
                torch.mm(weight.T, weight, out=gram)
                torch.mm(weight, gram, out=product)
            else:
                torch.mm(weight, weight.T, out=gram)
                torch.mm(gram, weight, out=product)


def multiplications(model: nn.Module, x: Tensor) -> dict[str, tuple[int, int]]:
    """By layer, in their order: those of plain training a sample, and those of `Products` a step, whatever the batch.

    x (1, ...): a sample. Training takes three passes of a layer: forward, to its weights and to its input, which the
    first layer lacks. Costs a forward.
    """
    found, named = {}, layers(model)

    def see(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        short, long = sorted(layer.weight.flatten(1).shape)
        name = next(name for name, one in named.items() if one is layer)
        found[name] = (3 if found else 2) * output[0].numel() * layer.weight[0].numel(), 2 * short**2 * long

    hooks = [layer.register_forward_hook(see) for layer in named.values()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def subject(config: Mapping, seed: int, device: torch.device) -> tuple[nn.Module, Data]:
    """A network after some epochs of plain training, and the images that it was trained on."""
    trained, settings = config["trained"], dict(config["model"])
    data = datasets.load(config["data"], "train", size=trained["size"], seed=seed)
    data = replace(data, x=data.x.to(device), y=data.y.to(device))
    model = models.build(settings.pop("name"), **settings, generator=torch.Generator().manual_seed(seed)).to(device)
    recipe = replace(networks.recipe(trained["epochs"], lr=trained["lr"]), batch_size=SMALL)
    train(model, methods.plain(), data, recipe=recipe, threat=NETS[config["net"]].images.threat, seed=seed)
    return model, data


def repeated(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds that it takes: the median of so many times after a first one."""
    took = []
    for _ in range(times + 1):
        begun = now(device)
        work()
        took.append(now(device) - begun)
    return statistics.median(took[1:])


def measure(config: Mapping, seed: int, device: torch.device) -> Outcome:
    """All ways' steps on one network: medians of runs that take turns, and ratios that are taken run by run."""
    trained, net = config["trained"], NETS[config["net"]]
    model, data = subject(config, seed, device)
    batch, steps = trained["batch"], trained["steps"]
    few = replace(data, x=data.x[: batch * steps], y=data.y[: batch * steps])
    given = {"recipe": networks.recipe(1, lr=1e-12, attack_validation=True), "threat": net.images.threat}
    rows, products = net.ways, Products(model)
    if train(copy.deepcopy(model), rows[DEFENSE], few, seed=0, **given).status != "done":
        raise MarginsError("model: samples are so far from other classes that Deep Defense's penalty is not finite")
    loop = Loop(copy.deepcopy(model), rows[RELEASED], data, given["recipe"], given["threat"], 0, None)
    (wrong,) = (part for part in loop.parts if isinstance(part, WrongMargin))
    timed = {name: lambda row=row: seconds(model, row, few, batch, **given) for name, row in rows.items()}
    timed[PRODUCTS] = lambda: repeated(products, device, steps)
    timed[EPOCH] = lambda: repeated(lambda: wrong.start_epoch(loop.told), device, 1)
    taken, load = turns(timed, trained["reps"])
    plain, floor = taken[PLAIN], taken[PLAIN] + taken[PRODUCTS]
    ratios = {"floor: time over plain": floor / plain}
    # its passes take as long as there are images, and a plain epoch as there are batches
    epoch = taken[EPOCH] * net.images.images / len(data.y)
    ratios[f"{EPOCH} over a plain epoch"] = epoch / (math.ceil(net.images.images / batch) * plain)
    metrics = {f"{PRODUCTS}: ms": 1e3 * np.median(taken[PRODUCTS])}
    one = replace(few, x=few.x[:batch], y=few.y[:batch])
    for name, row in rows.items():
        ratios |= {f"{name}: time over plain": taken[name] / plain, f"{name}: time over floor": taken[name] / floor}
        # what is done once an epoch is no part of a step
        each = tuple(term for term in row.terms if not isinstance(term.function, WrongMargin))
        counted = cost(replace(row, terms=each), model, one, threat=given["threat"], batch_size=batch)
        metrics |= {f"{name}: ms": 1e3 * np.median(taken[name]), f"{name}: forwards": counted.forwards}
    metrics |= {f"{name}: MiB": alive(model, rows[name], few, batch, **given) / 2**20 for name in KEPT}
    with torch.no_grad():
        logits = torch.cat([model(x) for x in data.x.split(1000)])
    metrics |= {name: np.median(values) for name, values in ratios.items()}
    metrics |= {"wrong samples, %": 100 * misclassified(logits, data.y).double().mean(), "load": load}
    curves = {name: values.tolist() for name, values in ratios.items()}
    return Outcome({name: float(value) for name, value in metrics.items()}, curves)


def _cost(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    device = torch.device("cuda" if unit.scale == "gpu" else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MarginsError("scale: gpu is about a GPU's time, and there is none here")
    config = {**unit.config, "net": unit.row, "trained": unit.config["trained"][unit.scale]}
    return [measure(config, unit.seed, device)]


@dataclass(frozen=True)
class Net:
    """A network of the paper's tables, with the tau of Eq. 15 and of the released code.

    size, epochs, lr: images, epochs and rate of the training before; steps: of a run, of which the first and the last
    are not timed; reps: runs of each way.
    """

    model: Mapping
    images: Images
    tau: tuple[float, float]
    size: int
    epochs: int
    steps: int
    reps: int
    lr: float = 0.01

    @property
    def ways(self) -> dict[str, Row]:
        return ways(*self.tau)

    @property
    def config(self) -> dict:
        """Of its row, by scale where it differs."""
        names = ("size", "epochs", "lr", "steps", "reps")
        laptop = {"batch": 128} | {name: getattr(self, name) for name in names}
        quick = {"batch": 16, "size": 500, "epochs": 12, "lr": self.lr, "steps": 4, "reps": 1}
        trained = {"quick": quick, "laptop": laptop, "gpu": laptop | {"steps": 12, "reps": 7}}
        described = {name: row.describe() for name, row in self.ways.items()}
        return {"model": dict(self.model), "data": self.images.data, "ways": described, "trained": trained}


#: The CIFAR nets are trained for longer on fewer images, the deep one of MNIST at a higher rate, or they err on most.
NETS = {
    "MNIST MLP": Net(networks.ONE_LAYER | {"inputs": 784}, MNIST, (5.0, 5.0), 5000, 3, 12, 7),
    "MNIST CNN": Net(networks.OF_MNIST, MNIST, (10.0, 40.0), 5000, 3, 5, 3, lr=0.05),
    "LeNet": Net(LENET, MNIST, 2 * (defences.TAU["LeNet"],), 5000, 3, 5, 3),
    "CIFAR MLP": Net(networks.ONE_LAYER | {"inputs": 3072}, CIFAR, (10.0, 10.0), 2000, 10, 8, 5),
    "CIFAR ConvNet": Net(CONVNET, CIFAR, 2 * (defences.TAU["ConvNet"],), 2000, 15, 5, 3),
}

register(
    Experiment(
        name=NAME,
        title="What a step of AMR's training costs beside a plain one and other defences",
        source="AMR, section 5.3",
        rows={name: net.config for name, net in NETS.items()},
        scales={"quick": {}, "laptop": {}, "gpu": {}},
        seeds=SEEDS,
        run=_cost,
        revisions=REVISIONS | {"cost": 1},
        minutes={"quick": 0.5, "laptop": 4, "gpu": 1},
    )
)
