"""Minimum and average margin of binary logistic regression: Figures 1 and 4 (AMR section 3, appendix B)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from margins import datasets
from margins.checkpoints import Checkpoint
from margins.errors import MarginsError
from margins.experiments import Experiment, Outcome, Results, Unit, register
from margins.linear.logistic import Path, adversarial, descend, descend_in_batches, margins_along
from margins.linear.svm import Svm, hard_margin_svm

#: Epochs whose margins are kept as histograms (Figure 1b); the last epoch is added.
HISTOGRAM_EPOCHS = (1, 100, 1e4, 1e6, 1e9)
#: Epochs shown as adversarial examples (Figure 1c); the last epoch is added.
EXAMPLE_EPOCHS = (1, 10, 1e3, 1e5, 1e7)
#: The share of the training images in each random subset, the replicates of a problem without a seed.
SHARE = 0.8


@dataclass(frozen=True)
class Run:
    """Logistic regression on two classes: its data, its path, the SVM of the same data, signed margins (T, N)."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    path: Path
    svm: Svm
    train: Tensor
    test: Tensor

    def at(self, epoch: float) -> int:
        """Index of the first checkpoint at or after an epoch, the last one where there is none."""
        epochs = np.array(self.path.epochs)
        return int(min(np.searchsorted(epochs, epoch * (1 - 1e-9)), len(epochs) - 1))


def run_logistic(config: Mapping, seed: int, checkpoint: Checkpoint | None = None) -> Run:
    """Train on the data that `config` names: what page and records show."""
    toy = config["data"] == "toy2d"
    if not toy and len(set(config["classes"])) != 2:
        raise MarginsError(f"classes: {list(config['classes'])} given, allowed: two different ones")
    options = {"seed": seed} if toy else {"classes": tuple(config["classes"])}
    train = datasets.load(config["data"], "train", size=config["size"], **options)
    test = datasets.load(config["data"], "test", **options)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.arange(len(train.x))
    if config["share"] < 1:
        chosen = (
            torch.randperm(len(train.x), generator=generator)[: round(config["share"] * len(train.x))].sort().values
        )
    if len(train.y[chosen].unique()) < 2:
        raise MarginsError(f"size: {config['size']} given, which leaves images of one class only; take more")
    x, y = train.x[chosen].double().flatten(1), train.y[chosen]
    x_test = test.x.double().flatten(1)
    start = None
    if config["start"]:
        start = config["start"] * torch.randn(x.shape[1], dtype=torch.float64, generator=generator)
    if "batch_size" in config:
        options = {key: config[key] for key in ("lr", "batch_size", "momentum")}
        path = descend_in_batches(x, y, epochs=config["passes"], generator=generator, checkpoint=checkpoint, **options)
    else:
        path = descend(
            x,
            y,
            lr=config["lr"],
            epochs=config["short_epochs"] if config["short"] else config["epochs"],
            growing=config["growing"],
            start=start,
            checkpoint=checkpoint,
        )
    svm = hard_margin_svm(x, y, bias=False)
    along = margins_along(path.weights, x, y), margins_along(path.weights, x_test, test.y)
    return Run(x, y, x_test, test.y, path, svm, *along)


def value_at(results: Results, row: str, name: str, epoch: float) -> np.ndarray:
    """A recorded curve's value at the first checkpoint at or after an epoch, one a replicate."""
    pairs = zip(results.curve(row, "epoch"), results.curve(row, name), strict=True)
    return np.array([values[np.searchsorted(epochs, epoch * (1 - 1e-6))] for epochs, values in pairs])


def largest_fall(results: Results, row: str, name: str, after: float) -> np.ndarray:
    """How far a recorded curve falls below its own earlier maximum from an epoch on, one number a replicate."""
    pairs = zip(results.curve(row, "epoch"), results.curve(row, name), strict=True)
    curves = [values[epochs >= after] for epochs, values in pairs]
    return np.array([(np.maximum.accumulate(values) - values).max() for values in curves])


def curves(run: Run) -> dict[str, list[float]]:
    """What changes along the path, from the first step on: margins in input units, errors in images, degrees."""
    train, test, weights = run.train[1:], run.test[1:], run.path.weights[1:]
    svm = torch.from_numpy(run.svm.weight)
    cosine = weights @ svm / (weights.norm(dim=1) * svm.norm())
    eps = train[0].abs().mean() / 2
    logits = weights.norm(dim=1, keepdim=True) * train
    measured = {
        "epoch": torch.tensor(run.path.epochs[1:]),
        "minimum margin": train.min(1).values,
        "average margin": train.abs().mean(1),
        "minimum margin on test": test.min(1).values,
        "average margin on test": test.abs().mean(1),
        "median distance on test": test.abs().median(1).values,
        "robust accuracy on test": 100 * (test > eps).double().mean(1),
        "training loss": torch.nn.functional.softplus(-logits).mean(1),
        "training errors": (train <= 0).sum(1),
        "test errors": (test <= 0).sum(1),
        "angle to the SVM": torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))),
    }
    for decile, values in enumerate(torch.quantile(train, torch.arange(1, 10).double() / 10, dim=1), start=1):
        measured[f"decile {decile}"] = values
    return {name: values.tolist() for name, values in measured.items()}


def svm_margins(run: Run) -> Tensor:
    """The SVM's signed margins of the training images, (N,)."""
    return margins_along(torch.from_numpy(run.svm.weight)[None], run.x, run.y)[0]


def transport(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance of two samples of equal size, in their unit."""
    return (a.sort().values - b.sort().values).abs().mean().item()


def examples(run: Run) -> tuple[Tensor, Tensor]:
    """Four training images (index) and their adversarial examples (epochs, 4, D): Figure 1c.

    First a zero and a one whose distance at the first epoch is nearest to the average, then those of least margin
    at the last epoch.
    """
    first, last = run.train[1], run.train[-1]
    chosen = []
    for gap in ((first.abs() - first.abs().mean()).abs(), last):
        chosen += [torch.where(run.y == label, gap, torch.inf).argmin() for label in (0, 1)]
    index = torch.stack(chosen)
    epochs = [run.at(epoch) for epoch in EXAMPLE_EPOCHS] + [len(run.path.epochs) - 1]
    return index, torch.stack([adversarial(run.path.weights[t], run.x[index]) for t in epochs])


def _logistic(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    run = run_logistic(unit.config, unit.seed, checkpoint)
    reference = svm_margins(run)
    moved = adversarial(run.path.weights[-1], run.x)
    # The shortest r with w (x + r) = 0 by another way: the minimum-norm solution of that equation, from its SVD
    least = np.linalg.lstsq(_unit(run).numpy()[None], -(run.x @ _unit(run)).numpy()[None], rcond=None)[0].T
    norm = (moved - run.x).norm(dim=1)
    metrics = {
        "images": len(run.x),
        "SVM minimum margin": run.svm.margin,
        "SVM average margin": reference.abs().mean(),
        "transport to the SVM at first": transport(run.train[1], reference) / reference.mean(),
        "transport to the SVM at last": transport(run.train[-1], reference) / reference.mean(),
        "share nearer at last": (run.train[-1].abs() < run.train[1].abs()).double().mean(),
        "share nearer at last on test": (run.test[-1].abs() < run.test[1].abs()).double().mean(),
        "largest |score| at Eq. 7's point": (moved @ _unit(run)).abs().max(),
        "largest relative difference of Eq. 7's norm": np.abs(np.linalg.norm(least, axis=1) / norm.numpy() - 1).max(),
        "steps": run.path.steps[-1],
    }
    arrays = {"first test margins": run.test[1].float().numpy(), "last test margins": run.test[-1].float().numpy()}
    if unit.row == "all images":
        chosen = [run.at(epoch) for epoch in HISTOGRAM_EPOCHS] + [len(run.path.epochs) - 1]
        index, adversaries = examples(run)
        arrays |= {
            "histogram epochs": np.array([run.path.epochs[t] for t in chosen]),
            "margins": run.train[chosen].float().numpy(),
            "SVM margins": reference.float().numpy(),
            "example epochs": np.array([run.path.epochs[run.at(e)] for e in EXAMPLE_EPOCHS] + [run.path.epochs[-1]]),
            "images": run.x[index].float().numpy(),
            "adversaries": adversaries.float().numpy(),
        }
    return [Outcome({name: float(value) for name, value in metrics.items()}, curves(run), arrays)]


def _unit(run: Run) -> Tensor:
    return run.path.weights[-1] / run.path.weights[-1].norm()


#: Full-batch gradient descent from zero, no bias, constant step (the paper gives no step size, batch size or depth).
LOGISTIC = {
    "data": "mnist",
    "classes": (0, 1),
    "lr": 0.1,
    "growing": True,
    "share": 1.0,
    "start": 0.0,
    "short": False,
}
register(
    Experiment(
        name="amr/logistic-regression",
        title="Minimum and average margin of logistic regression",
        source="AMR, section 3, Figures 1 and 4",
        rows={
            "80 % subsets": {"share": SHARE},
            "all images": {"seeds": (0,)},
            "constant step": {"growing": False, "short": True, "seeds": (0,)},
            "start of size 0.01": {"share": SHARE, "start": 0.01, "short": True},
            "start of size 1": {"share": SHARE, "start": 1.0, "short": True},
            "toy boxes": {"data": "toy2d"},
            # The recipe of the authors' code for their other models: what an epoch may have been
            "mini-batches": {"batch_size": 128, "lr": 0.01, "momentum": 0.9, "passes": 1000},
        },
        scales={
            "quick": {"size": 400, "epochs": 1e4, "short_epochs": 100.0},
            "paper": {"size": None, "epochs": 1e16, "short_epochs": 1e4},
        },
        seeds=(0, 1, 2, 3, 4),
        run=_logistic,
        settings=LOGISTIC,
        revisions={"logistic": 2},
        minutes={"quick": 0.02, "paper": 0.3},
    )
)
