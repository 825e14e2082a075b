"""AMM's Theorems 3.1 and 3.2 in the plane, where covers can be built and margins are exact (section 3.2)."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from margins.claims import Check, Evidence
from margins.experiments import Outcome
from margins.models import MLP, Linear
from margins.papers.amm.partition import distances, draw, grid, violations
from margins.papers.measured import measured
from margins.training.plain import fit

NAME = "amm/generalisation"
#: A square's side over its diagonal.
SIDE = 0.5**0.5


def bound(cells: float, n: int, delta: float) -> float:
    """Eq. 9 for the 0/1 loss (M = 1), K = cells, epsilon(S_n) = 0 and n points: holds with probability 1 - delta."""
    return math.sqrt((2 * cells * math.log(2) + 2 * math.log(1 / delta)) / n)


def cover_at_least(dimension: int, gamma: float) -> float:
    """log10 of how many balls of radius gamma / 2 every cover of the unit cube has at least: by their volume."""
    half = dimension / 2
    ball = half * math.log(math.pi) + dimension * math.log(gamma / 2) - math.lgamma(half + 1)
    return -ball / math.log(10)


def robust_partition(kind: str, seed: int, points: int, least: float, flipped: float, samples: int) -> Outcome:
    """Theorem 3.1 on one random set and net, with gamma just below the smallest margin, and three times the largest."""
    drawn = draw(kind, seed, points, least, flipped)
    smallest, largest = drawn.margins.min(), drawn.margins.max()
    columns, rows = grid(2, 2, 0.999 * smallest)
    compared, found = violations(drawn, 0.999 * smallest, samples, seed)
    met, against = violations(drawn, 3 * largest, samples, seed)
    factors = np.geomspace(0.25, 3 * largest / smallest, 12)
    shares = [np.divide(*violations(drawn, factor * smallest, samples, seed)[::-1]) for factor in factors]
    return Outcome(
        {
            "smallest margin": smallest,
            "cells": 2 * columns * rows,
            "wrong training points": int(drawn.wrong(drawn.x, drawn.y).sum()),
            "samples compared": compared,
            "violations": found,
            "control: samples compared": met,
            "control: violations": against,
        },
        {"gamma over the smallest margin": factors.tolist(), "share of violations": [float(s) for s in shares]},
    )


def generalisation(
    kind: str, seed: int, draws: int, points: int, flipped: float, gamma: float, delta: float
) -> Outcome:
    """Theorem 3.2: the gap of test and training loss against Eq. 9, over training sets of `points` points.

    The input space is that of `squares`: each of its squares is a cell, so that K is twice their number, whatever the
    sample is. All squares are as likely. Inside a disc the label is 1, for "linear" on one side of a line, and a share
    `flipped` of the labels is wrong. A net may learn those of a square where they are the majority: its training loss
    is then below its test loss. epsilon(S_n) is 0 where all training margins are above gamma (Theorem 3.1), and
    counts as 1, the most that it can be, elsewhere.
    """
    centres, within = squares(gamma)
    truth = (centres.norm(dim=1) < 0.8 if kind == "ReLU" else centres @ torch.tensor([1.0, 0.4]).double() > 0.1).long()
    gaps, eps = [], []
    for k in range(draws):
        generator = torch.Generator().manual_seed(seed * draws + k)
        at = torch.randint(len(centres), (points,), generator=generator)
        offset = torch.rand(points, 2, generator=generator, dtype=torch.float64) - 0.5
        x = centres[at] + SIDE * gamma * offset
        y = torch.where(torch.rand(points, generator=generator) < flipped, 1 - truth[at], truth[at])
        model = Linear(2, 2, generator=generator) if kind == "linear" else MLP(2, (32,), 2, generator=generator)
        fit(model, x.float(), y, epochs=100, batch_size=50, lr=0.02, seed=k)
        model = model.double()
        with torch.no_grad():
            train = (model(x).argmax(1) != y).double().mean()
            missed = (model(within.flatten(0, 1)).argmax(1).view(within.shape[:2]) != truth[:, None]).double().mean()
        test = flipped + (1 - 2 * flipped) * missed  # a label is flipped by chance, wherever the point is
        eps.append(float(distances(model, x).min() <= gamma))
        gaps.append((test - train).item())
    gaps, eps = np.array(gaps), np.array(eps)
    bounds = eps + bound(2 * len(centres), points, delta)
    return Outcome(
        {
            "K": 2 * len(centres),
            "share of violations": (np.abs(gaps) > bounds).mean(),
            "bound where Theorem 3.1 applies": bound(2 * len(centres), points, delta),
            "share of draws where it applies": (eps == 0).mean(),
            "mean of test loss - training loss": gaps.mean(),
            "largest gap": np.abs(gaps).max(),
            "gap over the bound, 95 % of the draws": np.quantile(np.abs(gaps) / bounds.min(), 0.95),
        },
        arrays={"gaps": gaps, "eps": eps},
    )


def squares(gamma: float) -> tuple[Tensor, Tensor]:
    """Centres (25, 2) of small squares, as wide across as gamma and half a unit apart, and points within each."""
    lattice = torch.linspace(-1, 1, 5, dtype=torch.float64)
    centres = torch.cartesian_prod(lattice, lattice)
    inside = torch.linspace(-0.5, 0.5, 3, dtype=torch.float64)
    return centres, centres[:, None] + SIDE * gamma * torch.cartesian_prod(inside, inside)


def covering(seed: int, points: int, delta: float, steps: int) -> Outcome:
    """The cells of the square and of the toy boxes, and Eq. 9 with them, for gamma from small to large."""
    gammas = np.geomspace(0.02, 4, steps)
    curves, metrics = {"gamma": gammas.tolist()}, {}
    for name, (width, height, boxes) in {"square": (2, 2, 1), "toy boxes": (0.02, 6, 2)}.items():
        cells = np.array([2 * boxes * math.prod(grid(width, height, gamma)) for gamma in gammas])
        bounds = np.array([bound(k, points, delta) for k in cells])
        curves |= {f"{name}: K": cells.tolist(), f"{name}: bound": bounds.tolist()}
        metrics |= {f"{name}: largest rise of K": np.diff(cells).max(), f"{name}: most cells": cells.max()}
        metrics |= {f"{name}: largest rise of the bound": np.diff(bounds).max(), f"{name}: least cells": cells.min()}
    return Outcome(metrics, curves)


_SETS = {"points": 200, "least": 0.1, "flipped": 0.1, "samples": 100_000, "seeds": tuple(range(20))}
_DRAWS = {"draws": 200, "points": 200, "flipped": 0.3, "gamma": 0.002, "delta": 0.05}
_ROWS: dict[str, tuple[Callable, dict]] = {
    "Theorem 3.1, linear": (robust_partition, {"kind": "linear", **_SETS}),
    "Theorem 3.1, ReLU net": (robust_partition, {"kind": "ReLU", **_SETS}),
    "Theorem 3.2, linear": (generalisation, {"kind": "linear", **_DRAWS}),
    "Theorem 3.2, ReLU net": (generalisation, {"kind": "ReLU", **_DRAWS}),
    "covering numbers": (covering, {"points": 400, "delta": 0.05, "steps": 1000, "seeds": (0,)}),
}

measured(
    _ROWS,
    name=NAME,
    title="Margins, robust partitions and the generalization bound, in the plane",
    source="AMM, section 3.2, Theorems 3.1 and 3.2",
    revisions={"generalisation": 1},
    minutes=0.1,
)


def _partition(at) -> list[Check]:
    results, checks = at[NAME], []
    for row in ("Theorem 3.1, linear", "Theorem 3.1, ReLU net"):
        names = "samples compared", "violations", "control: violations"
        compared, found, against = (results.metric(row, name) for name in names)
        checks += [
            Check(f"{row}: samples in a cell with a training point", compared > 0, compared, "> 0"),
            Check(f"{row}: of these, with another loss", found == 0, found, "= 0"),
            Check(f"{row}: the same with three times the largest margin", against > 0, against, "> 0, the control"),
        ]
    return checks


def _share(at) -> list[Check]:
    delta, draws = _DRAWS["delta"], _DRAWS["draws"]
    allowed = delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    found = {row: at[NAME].metric(row, "share of violations") for row in _ROWS if row.startswith("Theorem 3.2")}
    return [
        Check(f"{row}: gap above the bound", v < allowed, v, f"< {allowed:.3f} of the draws")
        for row, v in found.items()
    ]


def _falls(at) -> list[Check]:
    names = [f"{name}: largest rise of {what}" for name in ("square", "toy boxes") for what in ("K", "the bound")]
    found = {name: at[NAME].metric("covering numbers", name) for name in names}
    return [Check(name, values <= 0, values, "<= 0") for name, values in found.items()]


EVIDENCE = {
    "amm-th31-margin-gives-robust-partition": Evidence((NAME,), _partition),
    "amm-th32-generalization-bound": Evidence((NAME,), _share),
    "amm-s32-bound-falls-with-margin": Evidence((NAME,), _falls),
}
