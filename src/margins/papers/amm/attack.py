"""What AMM says of its attack: how often, how fast and how near DeepFool gets (sections 1, 3.1, 3.3.4 and 4.2)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from margins import datasets
from margins.attacks.deepfool import deepfool
from margins.attacks.geometry import length
from margins.attacks.race import race
from margins.checkpoints import Checkpoint
from margins.experiments import Experiment, Outcome, Unit, find, register
from margins.margin import linear_margin
from margins.methods import Row
from margins.methods.rows import describe
from margins.models import Linear
from margins.papers.amm import large, mnist
from margins.papers.amm.partition import draw
from margins.penalties.context import Threat
from margins.tables import TRAINING
from margins.tables.job import REVISIONS, Job
from margins.training import Recipe
from margins.training.plain import fit

NAME = "amm/attack"
#: The table of the ConvNet, which the paper calls LeNet there.
CIFAR = "amm/cifar10-lenet"
#: The paper's u, and one that is as good as none.
LIMIT, STEPS, OVERSHOOT = 6, 50, 0.02
#: Within how many iterations the share of images is told.
WITHIN = (1, 2, 3, LIMIT)
#: Images at a time, so that the paths of all of them need not be kept.
BATCH = 1000
U6, U50, RACE = f"DeepFool, u = {LIMIT}", f"DeepFool, u = {STEPS}", "Race"
FIRST = ", first epoch"


@dataclass(frozen=True, eq=False)
class Walks:
    """DeepFool on N samples, without a box: iterations (N,) until the class changed, STEPS + 1 for never; the lengths
    (N,) of the perturbation after at most LIMIT and STEPS of them, the second infinite where the class never changed.
    """

    iterations: Tensor
    early: Tensor
    distance: Tensor


@torch.no_grad()
def walks(model: nn.Module, x: Tensor, y: Tensor, reference: str = "prediction") -> Walks:
    """DeepFool's walks from x (N, ...), y (N,), out of the predicted class or, with "correction", as AMM trains.

    Costs, for K classes, K + 1 forwards' worth a sample and iteration.
    """
    parts = [_walks(model, *part, reference) for part in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    return Walks(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _walks(model: nn.Module, x: Tensor, y: Tensor, reference: str) -> tuple[Tensor, Tensor, Tensor]:
    settings = {"norm": 2, "steps": STEPS, "overshoot": OVERSHOOT, "reference": reference, "trace": True}
    found = deepfool(model, x, y, **settings)
    iterations, moved = torch.zeros_like(y), torch.zeros_like(x)
    for number, step in enumerate(found.path):
        iterations[step.samples] += 1
        if number < LIMIT:
            moved[step.samples] += step.move
    iterations[~found.success] = STEPS + 1
    return iterations, (1 + OVERSHOOT) * length(moved, 2), found.distance


def raced(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """Race's distances (N,), without a box, out of the predicted class; infinite where it found no other class."""
    generator = torch.Generator().manual_seed(seed)
    return race(model, x, classes(model, x), norm=2, bounds=None, generator=generator).distance


def within(iterations: Tensor, split: str) -> dict[str, float]:
    """The shares of images, in %, whose class changed within so many iterations; percentiles of their number."""
    shares = {f"{split}: within {k}": 100 * (iterations <= k).double().mean().item() for k in WITHIN}
    ends = {f"{split}: {q}th percentile": float(np.percentile(iterations.cpu(), q)) for q in (5, 95)}
    return shares | ends | {f"{split}: longest": float(iterations.max())}


def near(name: str, distance: Tensor, best: Tensor) -> dict[str, float]:
    """How near distances (N,) are to the best known ones: the median ratio, and Spearman's rank correlation."""
    kept = (distance.isfinite() & (best > 0)).cpu()
    distance, best = distance.cpu()[kept], best.cpu()[kept]
    ranks = torch.stack([one.argsort().argsort().double() for one in (distance, best)])  # lengths have no ties
    told = {"median ratio": (distance / best).median(), "rank correlation": torch.corrcoef(ranks)[0, 1]}
    return {f"{name}: {what}": value.item() for what, value in told.items()}


@dataclass(frozen=True)
class Net:
    """A row of a table whose trained network is attacked; `scales`: of the table, at the scales of this experiment.

    epochs: other ones than the table's, by the scale of this experiment.
    """

    table: str
    label: str
    row: Row
    scales: tuple[tuple[str, str], ...] = (("quick", "quick"), ("laptop", "laptop"), ("paper", "paper"))
    epochs: tuple[tuple[str, int], ...] = ()

    def trained(self) -> dict[str, dict]:
        """What decides the weights, by scale: the configuration of the row's training."""
        found, epochs = {}, dict(self.epochs)
        for scale, of in self.scales:
            config = next(
                dict(unit.config)
                for unit in find(self.table).units(of)
                if unit.row == self.label and unit.part == TRAINING
            )
            del config["part"]
            if scale in epochs:
                config["recipe"] = {**config["recipe"], "epochs": epochs[scale]}
            found[scale] = describe(config)
        return found

    def job(self, unit: Unit, checkpoint: Checkpoint | None = None) -> Job:
        """The table's job of the row's training, which finds or makes its weights; `trained` is in the unit."""
        config = unit.config["trained"][unit.scale]
        recipe, threat = (
            kind(**{name: _number(value) for name, value in config[which].items() if name != "kind"})
            for which, kind in (("recipe", Recipe), ("threat", Threat))
        )
        return Job(self.row, recipe, threat, replace(unit, config=config), checkpoint)


def _number(value: object) -> object:
    """The value of a described field: infinity is described by its name."""
    return math.inf if value == "inf" else value


_ONE = tuple((scale, 1) for scale in ("quick", "laptop", "paper"))
#: A first epoch is that of the longer training: its rate, its batches. The ConvNet is trained for as long as a laptop
#: has: an eighth of the paper's epochs, with the drops of the rate at the same shares, on 20,000 images.
NETS = {
    "MLP, reference": Net(mnist.AGGREGATION, "reference", mnist.REFERENCE),
    "MLP, MIN+EXP": Net(mnist.AGGREGATION, "MIN+EXP", mnist.OURS),
    "LeNet, reference": Net(mnist.LENET, "reference", mnist.REFERENCE),
    "LeNet, MIN+EXP": Net(mnist.LENET, "MIN+EXP", mnist.OURS),
    "ConvNet, reference": Net(
        CIFAR,
        large.REFERENCE,
        mnist.REFERENCE,
        scales=(("quick", "quick"), ("laptop", "gpu"), ("paper", "paper")),
        epochs=(("laptop", 20),),
    ),
    f"MLP, MIN+EXP{FIRST}": Net(mnist.AGGREGATION, "MIN+EXP", mnist.OURS, epochs=_ONE),
    f"LeNet, MIN+EXP{FIRST}": Net(mnist.LENET, "MIN+EXP", mnist.OURS, epochs=_ONE),
}


@torch.no_grad()
def classes(model: nn.Module, x: Tensor) -> Tensor:
    """The predicted classes (N,) of samples x (N, ...)."""
    return torch.cat([model(part).argmax(1) for part in x.split(BATCH)])


def measure(unit: Unit, checkpoint: Checkpoint) -> Outcome:
    """DeepFool and Race on a trained network."""
    made, config = NETS[unit.row].job(unit, checkpoint), unit.config
    model, kept = made.model("last")
    facts = {"weights": kept["digest"]}
    if kept["status"] == "diverged":
        return Outcome({}, status="diverged", facts=facts)
    metrics, arrays = {}, {}
    for split in ("test", "train"):
        data = made.images(split, config[split] or len(datasets.load(made.unit.config["data"], split).y))
        x, y = data.x.to(made.device), data.y.to(made.device)
        found = walks(model, x, y)
        metrics |= within(found.iterations, split)
        arrays[f"{split} iterations"] = found.iterations
        if split == "train":
            continue
        x, few = x[: config["images"]], slice(config["images"])
        strong = raced(model, x, unit.seed)
        distances = {U6: found.early[few], U50: found.distance[few], RACE: strong}
        best = strong.minimum(found.distance[few])
        for name, distance in distances.items():
            metrics |= near(name, distance, best)
            arrays[name] = distance.float()
    # AMM walks wrong samples into their class; right ones it walks as before
    iterations = found.iterations.clone()
    (wrong,) = (classes(model, x) != y).nonzero(as_tuple=True)
    if len(wrong):
        iterations[wrong] = walks(model, x[wrong], y[wrong], "correction").iterations
    metrics |= within(iterations, "train, AMM's walk") | {"wrong training images": float(len(wrong))}
    arrays["train iterations, AMM's walk"] = iterations
    arrays = {name: (a.byte() if a.dtype == torch.int64 else a).cpu().numpy() for name, a in arrays.items()}
    return Outcome({name: float(value) for name, value in metrics.items()}, arrays=arrays, facts=facts)


def linear(unit: Unit, checkpoint: Checkpoint) -> Outcome:
    """A linear net of two classes of digits, in float64, whose distances are known."""
    data = datasets.load("digits", "train", classes=(0, 1))
    net = Linear(64, 2, generator=torch.Generator().manual_seed(unit.seed))
    model = fit(net, data.x, data.y, epochs=20, seed=unit.seed).double()
    head, x = model.head, data.x.double()
    exact = linear_margin(head.weight.detach(), head.bias.detach(), x, data.y).abs()
    ratio = torch.stack([walks(model, x, data.y).early, walks(model, x, data.y).distance]) / exact
    far = {"largest |ratio - 1.02|": (ratio - (1 + OVERSHOOT)).abs().max().item()}
    return Outcome(_exact(model, x, data.y, exact, unit.seed) | far)


def tiny(unit: Unit, checkpoint: Checkpoint) -> Outcome:
    """A net of 16 ReLUs in the plane, in float64, whose distances `margins.planar` finds."""
    drawn = draw("ReLU", unit.seed, unit.config["points"], 0.0, 0.0)
    return Outcome(_exact(drawn.model, *map(torch.from_numpy, (drawn.x, drawn.y, drawn.margins)), unit.seed))


def _exact(model: nn.Module, x: Tensor, y: Tensor, exact: Tensor, seed: int) -> dict[str, float]:
    found = walks(model, x, y)
    ways = {U6: found.early, U50: found.distance, RACE: raced(model, x, seed)}
    told = [near(name, distance, exact) for name, distance in ways.items()]
    return {name: value for one in told for name, value in one.items()} | within(found.iterations, "points")


#: The rows whose exact distances are known, in the order of the page.
EXACT: dict[str, tuple[Callable[[Unit, Checkpoint], Outcome], dict]] = {
    "linear": (linear, {}),
    "tiny ReLU net": (tiny, {"points": 200, "seeds": tuple(range(20))}),
}


def _attack(units: list[Unit], checkpoint: Checkpoint) -> Iterable[Outcome]:
    (unit,) = units
    run = EXACT[unit.row][0] if unit.row in EXACT else measure
    return [run(unit, checkpoint)]


register(
    Experiment(
        name=NAME,
        title="How often, how fast and how near DeepFool gets",
        source="AMM, sections 1, 3.1, 3.3.4 and 4.2",
        rows={row: {"trained": net.trained()} for row, net in NETS.items()}
        | {row: settings for row, (_, settings) in EXACT.items()},
        # test images that Race attacks too; those that DeepFool's iterations are counted on, None for all
        scales={
            "quick": {"images": 50, "test": 100, "train": 100},
            "laptop": {"images": 1000, "test": 10_000, "train": 20_000},
            "paper": {"images": 1000, "test": 10_000, "train": None},
        },
        seeds=mnist.SEEDS,
        run=_attack,
        revisions=REVISIONS | {"attack": 1},
        minutes={"quick": 0.1, "laptop": 5},
    )
)
