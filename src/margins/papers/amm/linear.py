"""What AMM says of linear classifiers and of its shrinkage functions, checked numerically (sections 3.2 and 3.3.2)."""

import torch

from margins import datasets
from margins.checkpoints import Checkpoint
from margins.claims import Check, Evidence
from margins.experiments import Experiment, Outcome, Unit, register
from margins.linear import toy
from margins.linear.svm import hard_margin_svm
from margins.papers.amm.toy import angles, mean_difference, toy_data
from margins.penalties import amm


def _scale_free(x, y, seed: int) -> dict[str, float]:
    """The largest relative change of Eq. 11 when (w, b) is multiplied by 0.01 to 100."""
    w = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    factors = torch.logspace(-2, 2, 41, dtype=torch.float64)
    score, distance = toy.distances(factors[:, None] * w, x)
    values = amm.penalty("AVG", "LIN", distance, (score > 0) == (y == 1), y)
    return {"largest relative change": (values / values[20] - 1).abs().max()}  # factor 1 is the middle one


def _mean_direction(x, y, seed: int) -> dict[str, float]:
    """Minimise Eq. 11 over directions by a fine search; the angle to the class means, and what the bias changes."""
    turn = torch.linspace(0, 2 * torch.pi, 36_001, dtype=torch.float64)[:-1]
    biases = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    values = []
    for bias in biases:
        w = torch.stack([turn.cos(), turn.sin(), torch.full_like(turn, float(bias))], -1)
        values.append(-toy.signed_margins(w, x, y).sum(-1))
    values = torch.stack(values)
    best = turn[values[1].argmin()]
    direction = torch.stack([best.cos(), best.sin(), torch.zeros_like(best)])
    return {
        "angle to the class means": angles(direction, mean_difference(x, y)),
        "largest relative change with the bias": ((values - values[1]).abs().max() / values[1].abs().max()),
    }


def _mean_direction_images(x, y, seed: int) -> dict[str, float]:
    """The same on MNIST's zeros and ones, as many of each, by L-BFGS from a random start; bias -1, 0 and 2."""
    data = datasets.load("mnist", "train", classes=(0, 1))
    half = int(data.y.bincount().min())
    x = torch.cat([data.x[data.y == label][:half] for label in (0, 1)]).double().flatten(1)
    y = torch.arange(2).repeat_interleave(half)
    start = torch.randn(x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    w = (start / start.norm()).requires_grad_()

    def value(bias: float) -> torch.Tensor:
        score = x @ w / w.norm() + bias
        return amm.penalty("AVG", "LIN", score.abs(), (score > 0) == (y == 1), y)

    optimizer = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-13, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = value(0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        means = x[half:].mean(0) - x[:half].mean(0)
        cosine = w @ means / (w.norm() * means.norm())
        values = torch.stack([value(bias) for bias in (-1.0, 0.0, 2.0)])
        return {
            "angle to the class means": torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))),
            "largest relative change with the bias": (values / values[1] - 1).abs().max(),
        }


def _mean_margin(x, y, seed: int) -> dict[str, float]:
    """The smallest margin of the mean-difference classifier with the best bias for it, over the SVM's."""
    direction = mean_difference(x, y)
    score = x @ direction / direction.norm()
    gap = score[y == 1].min() - score[y == 0].max()  # the best bias lies in the middle, also where classes overlap
    return {"margin over the SVM's": gap / 2 / hard_margin_svm(x, y, bias=True).margin}


def _shrinkage(x, y, seed: int) -> dict[str, float]:
    """Value and slope of R(-t) for distances t far out and near, for each shrinkage."""
    measured = {}
    for name in amm.SHRINKAGES:
        t = torch.tensor([1e-3, 0.5, 1.0, 2.0, 4.0, 1e6], dtype=torch.float64, requires_grad=True)
        value = amm.shrink(name, -t)
        (slope,) = torch.autograd.grad(value.sum(), t)
        measured[f"{name}: |R(-t)| at t = 1e6"] = value[-1].detach().abs()
        measured[f"{name}: |dR/dt| at t = 1e6"] = slope[-1].abs()
        measured[f"{name}: largest ratio of successive |dR/dt|"] = (
            (slope[1:].abs() / slope[:-1].abs()).nan_to_num(0).max()
        )
        measured[f"{name}: least ratio of successive |dR/dt|"] = (
            (slope[1:].abs() / slope[:-1].abs()).nan_to_num(0).min()
        )
    return measured


_LINEAR = {
    "Eq. 11 under scaling": _scale_free,
    "Eq. 12's minimiser": _mean_direction,
    "Eq. 12's minimiser, MNIST": _mean_direction_images,
    "mean difference": _mean_margin,
    "shrinkage": _shrinkage,
}


def _linear(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    data = toy_data(unit.config["size"], [unit.seed])["train"]
    return [Outcome({k: float(v) for k, v in _LINEAR[unit.row](data[0][0], data[1][0], unit.seed).items()})]


register(
    Experiment(
        name="amm/linear",
        title="What AMM says of linear classifiers and of its shrinkage functions, checked numerically",
        source="AMM, sections 3.2 and 3.3.2",
        rows={row: {} for row in _LINEAR} | {"shrinkage": {"seeds": (0,)}},
        scales={"paper": {"size": 200}},
        seeds=(0, 1, 2),
        run=_linear,
        revisions={"linear": 2, "penalties.amm": amm.REVISION},
        minutes={"paper": 0.01},
    )
)


def _below(*rows: str, **bounds: float):
    def read(at):
        measured = {(row, name): at["amm/linear"].metric(row, name) for row in rows for name in bounds}
        return [
            Check(f"{row}: {name}", values < bounds[name], values, f"< {bounds[name]:g}")
            for (row, name), values in measured.items()
        ]

    return Evidence(("amm/linear",), read)


def _never_vanishes(at):
    value = {s: at["amm/linear"].metric("shrinkage", f"{s}: |R(-t)| at t = 1e6") for s in amm.SHRINKAGES}
    slope = {s: at["amm/linear"].metric("shrinkage", f"{s}: |dR/dt| at t = 1e6") for s in amm.SHRINKAGES}
    return [
        Check("LIN: |R(-t)| at t = 1e6", value["LIN"] >= 1e6, value["LIN"], ">= 1e6, unbounded"),
        Check("LIN: |dR/dt| at t = 1e6", slope["LIN"] == 1, slope["LIN"], "= 1, constant"),
        *(Check(f"{s}: |R(-t)| at t = 1e6", value[s] < 1e-5, value[s], "< 1e-5") for s in ("EXP", "INV")),
        *(Check(f"{s}: |dR/dt| at t = 1e6", slope[s] < 1e-5, slope[s], "< 1e-5") for s in ("EXP", "INV")),
    ]


def _weights_small(at):
    most = {
        s: at["amm/linear"].metric("shrinkage", f"{s}: largest ratio of successive |dR/dt|") for s in amm.SHRINKAGES
    }
    least = at["amm/linear"].metric("shrinkage", "LIN: least ratio of successive |dR/dt|")
    name = "|dR/dt| over that at the next smaller distance"
    return [
        *(Check(f"{s}: largest {name}", most[s] < 1, most[s], "< 1, falling") for s in ("EXP", "INV")),
        Check(f"LIN: largest {name}", most["LIN"] == 1, most["LIN"], "= 1, constant"),
        Check(f"LIN: least {name}", least == 1, least, "= 1, constant"),
    ]


EVIDENCE = {
    "amm-s32-linear-regulariser-scale-free": _below("Eq. 11 under scaling", **{"largest relative change": 1e-6}),
    "amm-s32-avg-lin-is-mean-difference": _below(
        "Eq. 12's minimiser",
        "Eq. 12's minimiser, MNIST",
        **{"angle to the class means": 0.1, "largest relative change with the bias": 1e-6},
    ),
    "amm-s32-avg-lin-poor-global-margin": _below("mean difference", **{"margin over the SVM's": 0.5}),
    "amm-s332-lin-never-vanishes": Evidence(("amm/linear",), _never_vanishes),
    "amm-s332-shrinkage-weights-small-margins": Evidence(("amm/linear",), _weights_small),
}
