"""The CNNs that AMR's authors published, under their attack and under others: Table 1, MNIST CNN (AMR section 5.3)."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from margins import datasets, losses, published
from margins.attacks.autoattack import autoattack
from margins.attacks.deepfool import deepfool
from margins.attacks.found import Calls, attacking
from margins.attacks.geometry import length, random_start
from margins.attacks.noise import Noise
from margins.attacks.pgd import pgd
from margins.attacks.race import race
from margins.checkpoints import Checkpoint
from margins.experiments import Experiment, Outcome, Results, Unit, register
from margins.margin import spectral_norms
from margins.methods.average_margin import FLOOR
from margins.papers.amr import networks

NAME = "amr/published-cnn"
#: The rows of Table 1, and the networks.
NETWORKS = {"Std": "mnist-cnn-std", "LCR": "mnist-cnn-lcr", "AMR": "mnist-cnn-amr"}
#: The budgets of Table 1, l2 in input units.
EPS = (0.5, 1.0, 1.5, 2.0)
#: Less than `FLOOR`, with which the authors' attack library divides short gradients.
TINY = 1e-30
#: The images that every attack saw.
COMMON = 500

#: The paper's attack as its authors' code has it.
PAPER = networks.PAPER | {"images": COMMON}
#: With gradients this short all steps of the paper's attack together are as long as one step should be.
STILL = FLOOR / PAPER["steps"]
#: A step is 2.5 / steps of the budget: enough to cross the ball and to turn.
MARGIN = {
    "attack": "pgd",
    "loss": "margin",
    "start": "uniform",
    "keep": "best",
    "steps": 100,
    "travel": 2.5,
    "floor": 0.0,
    "images": 2000,
}
AUTO = {"attack": "autoattack", "steps": 100, "queries": 5000, "images": COMMON, "batch": 50}
#: Attacks within a budget, and the budgets that they are run at.
BUDGET = {
    "paper's attack": (PAPER, (1.0, 2.0)),
    "tiny floor": (PAPER | {"floor": TINY}, (2.0,)),
    "no floor": (PAPER | {"floor": 0.0}, (2.0,)),  # which is also not the literal cross-entropy, but the log-odds
    "margin loss": (MARGIN, EPS),
    "AutoAttack": (AUTO, (2.0,)),
}
#: Those that are meant to fail: they have no part in the worst case.
WEAK = ("paper's attack", "tiny floor")
#: Minimum-norm attacks: a distance per image is an answer for every budget.
NEAREST = {
    "Race": {"attack": "race", "steps": 100, "images": 2000},
    "DeepFool": {"attack": "deepfool", "steps": 50, "overshoot": 0.02, "images": 2000},
}
#: The budget at which the printed numbers are claims, and the images there: more where the printed share is nearer to
#: one half and its interval wider.
PRINTED_EPS, PRINTED_IMAGES = 2.0, {"Std": 1000, "LCR": 2000, "AMR": 500}


def row(network: str, attack: str, eps: float | None = None) -> str:
    """The row's name: `row("AMR", "margin loss", 2.0)`, `row("AMR", "Race")`, `row("AMR", "no attack")`."""
    return f"{network}: {attack}" if eps is None else f"{network}: {attack}, eps {eps}"


def robust(results: Results, network: str, attack: str, eps: float) -> np.ndarray:
    """(N,) bool, whether each image is classified correctly and the attack found nothing within eps."""
    if attack in BUDGET:
        return results.samples(row(network, attack, eps), "robust")[0]
    (distance,), (correct,) = (results.samples(row(network, attack), name) for name in ("distance", "correct"))
    return correct & (distance > eps)


def worst(results: Results, network: str, eps: float) -> np.ndarray:
    """(N,) bool, whether each image withstands every attack but WEAK that was run at eps, on those that all saw."""
    attacks = [attack for attack, (_, run_at) in BUDGET.items() if eps in run_at and attack not in WEAK] + [*NEAREST]
    found = [robust(results, network, attack, eps) for attack in attacks]
    seen = min(map(len, found))
    return np.all([kept[:seen] for kept in found], axis=0)


def distances(results: Results, network: str) -> np.ndarray:
    """(N,) the shortest way found out of the class that each image is put into: an upper bound of |m|, input units."""
    return np.min([results.samples(row(network, attack), "distance")[0] for attack in NEAREST], axis=0)


def measure(config: Mapping, seed: int, checkpoint: Checkpoint | None = None) -> tuple[dict[str, np.ndarray], Calls]:
    """What one row measures, an image: arrays (N,), and the calls of the model. What page and records show.

    robust (bool): classified correctly and not broken; of AutoAttack also what each stage broke.
    correct (bool), distance (float32): classified correctly; the way out of the class that the image is put into.
    Without an attack: correct; gap and feature margin, the least difference of logits from the top class, and the same
    over |w_c - w_k|; gradient and gradient at the start, the length of the input gradient of the cross-entropy at the
    image and where the paper's attack of the largest budget starts. All in float64: float32 loses short gradients.

    The images are the first of a permutation of the test set: its first half in the file's own order is the harder one.
    Batches end alike wherever they begin, so a run that was interrupted goes on with the same numbers.
    """
    model = published.load(config["network"]).to(memory_format=torch.channels_last)
    size = _least(config["images"], config["most_images"])
    data = datasets.load("mnist", "test", size=size, seed=config["permutation"])
    state = checkpoint.load("arrays", "calls") if checkpoint else None
    arrays: dict[str, Tensor] = state["arrays"] if state else {}
    calls = Calls(*state["calls"]) if state else Calls()
    for first in range(len(next(iter(arrays.values()), ())), len(data.x), config["batch"]):
        x, y = (part[first : first + config["batch"]] for part in (data.x, data.y))
        generator = torch.Generator().manual_seed(seed)  # noise belongs to the image, not to its batch
        found, spent = _ASK[config["attack"]](model, x, y, config, generator)
        arrays = {name: torch.cat([arrays[name], value]) if arrays else value for name, value in found.items()}
        calls += spent
        if checkpoint:
            checkpoint.tick(lambda a=arrays, c=calls: {"arrays": a, "calls": [c.forward, c.backward]})
    return {name: value.numpy() for name, value in arrays.items()}, calls


def _least(given: int, most: int | None) -> int:
    return given if most is None else min(given, most)


def _pgd(model: nn.Module, x: Tensor, y: Tensor, config: Mapping, generator: torch.Generator):
    steps = _least(config["steps"], config["most_steps"])
    step_size = config["step_size"] if "step_size" in config else config["travel"] * config["eps"] / steps
    options = {name: config[name] for name in ("eps", "loss", "start", "keep", "floor")}
    found = pgd(model, x, y, norm=2, steps=steps, step_size=step_size, generator=generator, **options)
    return {"robust": ~found.success}, found.calls


def _autoattack(model: nn.Module, x: Tensor, y: Tensor, config: Mapping, generator: torch.Generator):
    options = {name: _least(config[name], config["most_steps"]) for name in ("steps", "queries")}
    found = autoattack(model, x, y, norm=2, eps=config["eps"], generator=generator, **options)
    return {"robust": ~found.success, **found.stages}, found.calls


def _nearest(attack: Callable, options: Mapping, model: nn.Module, x: Tensor, y: Tensor, config: Mapping):
    with torch.no_grad():
        label = model(x).argmax(1)
    steps = _least(config["steps"], config["most_steps"])
    found = attack(model, x, label, norm=2, steps=steps, bounds=(0.0, 1.0), **options)
    return {"correct": label == y, "distance": found.distance}, found.calls


def _race(model: nn.Module, x: Tensor, y: Tensor, config: Mapping, generator: torch.Generator):
    return _nearest(race, {"generator": generator}, model, x, y, config)


def _deepfool(model: nn.Module, x: Tensor, y: Tensor, config: Mapping, generator: torch.Generator):
    return _nearest(deepfool, {"overshoot": config["overshoot"]}, model, x, y, config)


def _look(model: nn.Module, x: Tensor, y: Tensor, config: Mapping, generator: torch.Generator):
    model, x = model.double(), x.double()
    with attacking(model, x, y, (0.0, 1.0)) as (oracle, logits, wrong):
        start = random_start(PAPER["start"], x, 2, EPS[-1], (0.0, 1.0), Noise(x, generator))
        gradients = [length(oracle.gradient(at, y, losses.cross_entropy)[0], 2) for at in (x, start)]
    top = logits.argmax(1, keepdim=True)
    gaps = logits.gather(1, top) - logits
    apart = torch.cdist(model.head.weight.detach()[top[:, 0]], model.head.weight.detach())
    least = [values.scatter(1, top, torch.inf).amin(1) for values in (gaps, gaps / apart)]
    found = {"correct": ~wrong, "gap": least[0], "feature margin": least[1]}
    return found | {"gradient": gradients[0], "gradient at the start": gradients[1]}, oracle.calls


_ASK = {"pgd": _pgd, "autoattack": _autoattack, "race": _race, "deepfool": _deepfool, "none": _look}


def _published(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    arrays, calls = measure(unit.config, unit.seed, checkpoint)
    count = len(next(iter(arrays.values())))
    metrics = {
        "images": count,
        "forwards an image": calls.forward / count,
        "backwards an image": calls.backward / count,
    }
    if "robust" in arrays:
        metrics["robust accuracy"] = 100 * arrays["robust"].mean()
    if "distance" in arrays:
        metrics |= {
            f"robust accuracy, eps {eps}": 100 * (arrays["correct"] & (arrays["distance"] > eps)).mean() for eps in EPS
        }
    if "gradient" in arrays:
        metrics |= {
            "accuracy": 100 * arrays["correct"].mean(),
            "median gap": np.median(arrays["gap"]),
            "images with a gradient below the floor": 100 * (arrays["gradient"] < FLOOR).mean(),
            "images that stand still": 100 * (arrays["gradient at the start"] < STILL).mean(),
        } | _norms(unit.config["network"])
    return [Outcome(metrics, arrays=arrays)]


def _norms(network: str) -> dict[str, float]:
    """Of the layers, by the names in the published file."""
    norms = spectral_norms(published.load(network)).values()
    return {f"norm of {layer}": n for layer, n in zip(published.NETWORKS[network].layers, norms, strict=True)}


def _rows() -> dict[str, dict]:
    rows = {}
    for label, name in NETWORKS.items():
        network = {"network": name, "weights": published.NETWORKS[name].digest}
        rows[row(label, "no attack")] = network | {"attack": "none", "images": 10_000, "precision": "float64"}
        for attack, (config, budgets) in BUDGET.items():
            for eps in budgets:
                rows[row(label, attack, eps)] = network | config | {"eps": eps}
        rows[row(label, "paper's attack", PRINTED_EPS)]["images"] = PRINTED_IMAGES[label]
        for attack, config in NEAREST.items():
            rows[row(label, attack)] = network | config
    return rows


register(
    Experiment(
        name=NAME,
        title="The authors' MNIST CNNs under their attack and under others",
        source="AMR, section 5.3, Table 1",
        rows=_rows(),
        scales={
            "quick": {"most_images": 10, "most_steps": 10},
            "paper": {"most_images": None, "most_steps": None},
        },
        seeds=(0,),
        run=_published,
        settings={"permutation": 0, "batch": 100},
        revisions={"attacks": 1},
        minutes={"quick": 0.01, "paper": 4.0},
    )
)
