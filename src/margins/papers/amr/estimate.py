"""How good AMR's estimate of the margin is: Theorem 3's sampled bound beside a proof and attacks (section 5.1, app. F).

All distances are l2, out of the predicted class, and without a box, as the estimate's ball has none.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from margins import datasets, published
from margins.attacks.deepfool import deepfool
from margins.attacks.race import race
from margins.checkpoints import Checkpoint
from margins.experiments import Experiment, Outcome, Unit, register
from margins.margin import certified_radius, feature_margin, lipschitz_margin, spectral_norms
from margins.papers.amm.attack import Net, near
from margins.papers.amr import defences, networks
from margins.papers.amr.estimate_search import searched_margin
from margins.papers.amr.published_cnn import NETWORKS
from margins.penalties.amr import AverageMargin
from margins.tables.job import PERMUTATION, REVISIONS, exact

NAME, PUBLISHED, NORMS = "amr/estimate", "amr/published-estimate", "amr/norms"
#: The paper's ball, and its number of points (appendix F).
RADIUS, POINTS = 5.0, 51_200
#: Names of arrays: the estimate by number of points (M, N), of more points on fewer images (M', n), and lengths (N,).
PATH, MANY, NEAR, SEARCHED = "estimate, by points", "estimate, many points", "radius = distance", "searched"
CERTIFIED, DEEPFOOL, RACE, IN_BOX, PRODUCT = "certified", "DeepFool", "Race", "Race in the box", "product of norms"
LENGTHS = (NEAR, SEARCHED, CERTIFIED, PRODUCT)


def counts(points: int) -> list[int]:
    """The numbers of points of an estimate's path: 1, 2, 4, ... and all."""
    return [*(2**i for i in range((points - 1).bit_length())), points]


def _norms(model: nn.Module) -> dict[str, float]:
    """As metrics, with their product and the largest distance from 1."""
    norms = spectral_norms(model)
    values = np.array(list(norms.values()))
    told = {
        "product of the norms": values.prod(),
        "largest |norm - 1|": np.abs(values - 1).max(),
        "layers": len(values),
    }
    return {f"norm of {layer}": value for layer, value in norms.items()} | told


def measure(model: nn.Module, x: Tensor, y: Tensor, sizes: Mapping[str, int], seed: int) -> Outcome:
    """Theorem 3's estimate of images x (N, ...), with labels y (N,), beside everything else that tells the distance.

    sizes: "images" N, that PATH has with "points"; and of how many, the first ones, the others are made. An array of
    fewer images is shorter. PRODUCT is the margin in feature space over the product of the norms of the layers below,
    as the paper takes them: no bound where these are convolutions. Metrics: median ratios to the shortest distance
    found without a box and rank correlations with it, processor seconds an image, spectral norms, median gap.
    """
    metrics, arrays = _norms(model), {}
    with torch.no_grad():
        logits = model(x)
    own = logits.argmax(1)
    best, second = logits.topk(2, dim=1).values.T

    def ask(name: str, images: int, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        if images:
            begun = time.process_time()
            arrays[name] = function(x[:images], own[:images])
            metrics[f"{name}: seconds an image"] = (time.process_time() - begun) / min(images, len(x))
        return arrays.get(name)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def estimate(x: Tensor, own: Tensor, points: int, radius: float = RADIUS) -> Tensor:
        return lipschitz_margin(model, x, own, radius=radius, points=points, generator=generator()).path

    def at_distance(x: Tensor, own: Tensor) -> Tensor:
        found = torch.full_like(x.flatten(1)[:, 0], torch.nan)
        for i in nearest[: len(x)].isfinite().nonzero()[:, 0]:
            found[i] = estimate(x[i : i + 1], own[i : i + 1], sizes["points"], nearest[i].item())[-1, 0]
        return found

    def found(bounds) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, own: race(model, x, own, norm=2, bounds=bounds, generator=generator()).distance

    ask(RACE, len(x), found(None))
    ask(IN_BOX, len(x), found((0.0, 1.0)))
    ask(DEEPFOOL, len(x), lambda x, own: deepfool(model, x, own, norm=2, bounds=None).distance)
    nearest = arrays[RACE].minimum(arrays[DEEPFOOL])
    ask(PATH, len(x), lambda x, own: estimate(x, own, sizes["points"]))
    ask(MANY, sizes["many"], lambda x, own: estimate(x, own, sizes["most"]))
    ask(NEAR, sizes["near"], at_distance)
    ask(SEARCHED, sizes["searched"], lambda x, own: searched_margin(model, x, radius=RADIUS, generator=generator()))
    ask(CERTIFIED, sizes["certified"], lambda x, own: certified_radius(model, x, bounds=None))
    below = metrics["product of the norms"] / metrics["norm of head"]
    ask(PRODUCT, len(x), lambda x, own: feature_margin(model, x, own).detach() / below)
    lengths = {"estimate": arrays[PATH][-1]} | {name: arrays[name] for name in LENGTHS if name in arrays}
    for name, values in lengths.items():
        metrics |= near(name, values.float(), nearest[: len(values)])
    arrays |= {"gap": best - second, "correct": own == y}
    metrics |= {"mean estimate": arrays[PATH][-1].mean(), "median gap": arrays["gap"].median()}
    kept = {name: (a.float() if a.is_floating_point() else a).cpu().numpy() for name, a in arrays.items()}
    return Outcome({name: float(value) for name, value in metrics.items()}, arrays=kept)


def run(nets: Mapping[str, Net], ask: Callable[..., Outcome]) -> Callable[[list[Unit], Checkpoint], list[Outcome]]:
    """A run of an experiment whose rows are `nets`: ask(model, x, y, sizes, seed) of the last weights."""

    def one(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
        (unit,) = units
        made, sizes = nets[unit.row].job(unit, checkpoint), unit.config["counts"][unit.scale]
        model, kept = made.model("last")
        facts = {"weights": kept["digest"]}
        if kept["status"] == "diverged":
            return [Outcome({}, status="diverged", facts=facts)]
        data = made.images("test", sizes["images"])
        with exact():
            outcome = ask(model, data.x.to(made.device), data.y.to(made.device), sizes, unit.seed)
        return [replace(outcome, facts=facts)]

    return one


def _given(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    sizes, device = unit.config["counts"][unit.scale], "cuda" if torch.cuda.is_available() else "cpu"
    data = datasets.load("mnist", "test", size=sizes["images"], seed=PERMUTATION)
    with exact():
        model = published.load(unit.config["network"]).to(device)
        return [measure(model, data.x.to(device), data.y.to(device), sizes, unit.seed)]


def norms(model: nn.Module, x: Tensor, y: Tensor, sizes: Mapping[str, int], seed: int) -> Outcome:
    """The layers' spectral norms, and the local Lipschitz constant that the estimate amounts to, median of the images.

    That is the least gap over the estimate: between the constant of the best two classes' gap and the largest of all.
    """
    with torch.no_grad():
        best, second = model(x).topk(2, dim=1).values.T
        own = model(x).argmax(1)
    generator = torch.Generator().manual_seed(seed)
    margin = lipschitz_margin(model, x, own, radius=RADIUS, points=sizes["points"], generator=generator).margin
    return Outcome(_norms(model) | {"constant": ((best - second) / margin).median().item()})


def tau(net: Net) -> float | None:
    """What the row truncates margins at; None of a row without AMR."""
    found = [term.function.tau for term in net.row.terms if isinstance(term.function, AverageMargin)]
    return found[0] if found else None


def _nets(tables: Mapping[str, tuple[str, Mapping[str, Any]]], labels: tuple[str, ...]) -> dict[str, Net]:
    return {
        f"{kind}, {label}": Net(table, label, rows[label])
        for kind, (table, rows) in tables.items()
        for label in labels
        if label in rows
    }


LABELS = ("Std", "LCR", "AMR, Eq. 15", "AMR, released")
_FIVE, _LENET = networks.rows(5.0, 5.0), defences.rows(defences.TAU["LeNet"])
_MLP, _CNN = ("MLP", (networks.MLP, _FIVE)), ("CNN", (networks.CNN, networks.OF_CNN))
NETS = _nets(dict([_MLP, _CNN]), LABELS)
NORM_NETS = _nets(dict([("LR", (networks.LR, _FIVE)), _MLP, _CNN, ("LeNet", (defences.LENET, _LENET))]), LABELS)
#: By scale: images of the estimate, its points, and of how many images the rest is made; "most" points of "many".
_QUICK = {"images": 4, "points": 16, "near": 2, "searched": 2, "many": 1, "most": 64}
_LAPTOP, _PAPER = {"points": 1024}, dict.fromkeys(("images", "near", "searched", "many"), 500)
COUNTS = {
    "MLP": {
        "quick": _QUICK | {"certified": 2},
        "laptop": _LAPTOP | {"images": 100, "near": 100, "searched": 50, "many": 20, "most": POINTS, "certified": 100},
        "paper": _LAPTOP | _PAPER | {"most": POINTS, "certified": 500},
    },
    "CNN": {  # whose bounds by proof take minutes an image
        "quick": _QUICK | {"certified": 0},
        "laptop": _LAPTOP | {"images": 24, "near": 12, "searched": 12, "many": 6, "most": 4096, "certified": 0},
        "paper": _LAPTOP | _PAPER | {"most": POINTS, "certified": 0},
    },
}
_OF_NORMS = {"quick": {"images": 4, "points": 4}} | {s: {"images": 20, "points": 64} for s in ("laptop", "paper")}
SCALES: dict[str, Any] = {"scales": {"quick": {}, "laptop": {}, "paper": {}}, "source": "AMR, section 5.1, appendix F"}
register(
    Experiment(
        name=NAME,
        title="AMR's estimate of the margin beside a proof and attacks",
        rows={row: {"trained": net.trained(), "counts": COUNTS[row[:3]]} for row, net in NETS.items()},
        seeds=networks.SEEDS,
        run=run(NETS, measure),
        revisions=REVISIONS | {"estimate": 1},
        minutes={"quick": 0.1, "laptop": 7},
        **SCALES,
    )
)
register(
    Experiment(
        name=PUBLISHED,
        title="AMR's estimate of the margins of the networks that its authors published",
        rows={
            label: {"network": name, "weights": published.NETWORKS[name].digest, "counts": COUNTS["CNN"]}
            for label, name in NETWORKS.items()
        },
        seeds=(0,),
        run=_given,
        revisions={"estimate": 1},
        minutes={"quick": 0.1, "laptop": 8},
        **SCALES,
    )
)
register(
    Experiment(
        name=NORMS,
        title="Spectral norms of the layers, and the Lipschitz constants that AMR's estimate amounts to",
        rows={row: {"trained": net.trained(), "counts": _OF_NORMS} for row, net in NORM_NETS.items()},
        seeds=networks.SEEDS,
        run=run(NORM_NETS, norms),
        revisions=REVISIONS | {"norms": 1},
        minutes={"quick": 0.05, "laptop": 0.2},
        **SCALES,
    )
)
