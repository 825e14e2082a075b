"""What AMM says of DeepFool's step and of the gradient of its norm, checked numerically (sections 3.1 to 3.1.2)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from margins import datasets
from margins.attacks.geometry import length
from margins.claims import Check, Evidence
from margins.models import MLP, Linear
from margins.papers.amm.second_order import (
    OVERSHOOT,
    attack,
    autograd_and_reverse,
    gradient,
    linearised,
    logit_gap,
    moved,
    regulariser,
)
from margins.papers.measured import measured
from margins.penalties import amm
from margins.penalties.deepfool import DeepFoolMargin
from margins.training.plain import fit

NAME = "amm/theory"
#: c and d of AVG with each shrinkage, as the paper's appendix has them (its table 1).
FACTORS = {"LIN": (4.0, 4.0), "EXP": (2.0, 2.0), "INV": (4.0, 2.0)}


def shortest(kind: str, seed: int, points: int, directions: int) -> dict[str, Tensor]:
    """DeepFool's steps of a random net against a numerical solution of Eq. 2 and against random feasible steps.

    The solution is that of the stationarity conditions of Eq. 2, a system of linear equations in the step and the
    multiplier. A feasible step is a random direction, near the solution's or far from it, as long as Eq. 2 asks.
    """
    generator = torch.Generator().manual_seed(seed)
    random = partial(torch.randn, generator=generator, dtype=torch.float64)
    model = {"linear": partial(Linear, 20), "ReLU": partial(MLP, 20, (32, 32))}[kind](5, generator=generator).double()
    x, before, found = random(points, 20), torch.zeros(points, 20, dtype=torch.float64), []
    for step in attack(model, x, model(x).argmax(1), steps=3)[0]:
        gap, w = linearised(model, (x + before)[step.samples], step.reference, step.chosen)
        found.append((gap.detach(), w, step.move))
        before[step.samples] += step.move
    gap, w, move = (torch.cat(parts) for parts in zip(*found, strict=True))
    # Where the gap is closed already, and only the overshot point is not across, DeepFool goes on instead of back
    gap, w, move = gap[gap > 0], w[gap > 0], move[gap > 0]
    system = torch.zeros(len(gap), 21, 21, dtype=torch.float64)
    system[:, :20, :20], system[:, :20, 20], system[:, 20, :20] = 2 * torch.eye(20), w, w
    solved = torch.linalg.solve(system, functional.pad(-gap[:, None], (20, 0)))[:, :20]
    least = solved.norm(dim=1)
    spread = torch.logspace(-3, 1, directions, dtype=torch.float64)[:, None, None]
    other = move + spread * least[:, None] * random(directions, len(gap), 20)
    other = other * (-gap / (other * w).sum(-1))[..., None]
    return {
        "steps compared": torch.tensor(len(gap)),
        "largest relative difference of the norm": (move.norm(dim=1) / least - 1).abs().max(),
        "largest relative residual": (((move * w).sum(1) + gap) / gap).abs().max(),
        "shortest random feasible step over Eq. 3's": (other.norm(dim=-1) / move.norm(dim=1)).min(),
        "in linf: Eq. 3's step over the shortest, least": (length(move, torch.inf) * w.abs().sum(1) / gap).min(),
    }


def sign(data: str, seed: int, images: int, batch: int, hidden: tuple[int, ...], size: float) -> dict[str, Tensor]:
    """How a gradient step of `size` on Eq. 6 changes the norms of right and wrong samples of a net in mid-training.

    Each group's term alone, and both together; means weighted by R', in input units.
    """
    known = datasets.load(data, "train", size=images + batch, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    model = MLP(known.x[0].numel(), hidden, known.classes, generator=generator)
    fit(model, known.x[batch:], known.y[batch:], epochs=1, seed=seed)
    model, x, y = model.double(), known.x[:batch].double(), known.y[:batch]
    correct = model(x).argmax(1) == y

    before, measured = attack(model, x, y)[1], {"wrong samples": (~correct).sum()}
    groups = {"correct": correct, "wrong": ~correct}
    for shrinkage, (c, d) in FACTORS.items():
        asked = before.clone().requires_grad_()
        (weight,) = torch.autograd.grad(amm.terms(shrinkage, asked, correct, c, d).sum(), asked)
        part = DeepFoolMargin("AVG", shrinkage, c, d, overshoot=OVERSHOOT)
        for stepped, chosen in {**groups, "both": torch.ones_like(correct)}.items():
            found = gradient(regulariser(part, model, x, y)[chosen].sum() / batch, model)
            with moved(model, -size * found):
                change = attack(model, x, y)[1] - before
            for group, rows in groups.items():
                if stepped in (group, "both"):
                    mean = (weight.abs() * change)[rows].sum() / weight[rows].abs().sum()
                    measured[f"{shrinkage}: step on {stepped}, change of {group}"] = mean
            if stepped != "both":  # what lowers the term: its first-order change is -size |gradient|^2
                first = (weight * change)[chosen].sum() / batch / (-size * found.square().sum())
                measured[f"{shrinkage}: change of {stepped} over the first order's"] = first
    return measured


_ROWS: dict[str, tuple[Callable, dict]] = {
    "Eq. 3, linear": (shortest, {"kind": "linear", "points": 50, "directions": 200}),
    "Eq. 3, ReLU net": (shortest, {"kind": "ReLU", "points": 50, "directions": 200}),
    "reverse net, random": (autograd_and_reverse, {"data": "random", "images": 24, "directions": 20}),
    "reverse net, MNIST": (autograd_and_reverse, {"data": "mnist", "images": 48, "directions": 20}),
    "no high order, random": (logit_gap, {"data": "random", "images": 24}),
    "no high order, MNIST": (logit_gap, {"data": "mnist", "images": 48}),
    "sign, MNIST": (
        sign,
        {"data": "mnist", "images": 3000, "batch": 200, "hidden": (800, 800), "size": 1e-4},
    ),
}

measured(
    _ROWS,
    name=NAME,
    title="DeepFool's step and the gradient of its norm, checked numerically",
    source="AMM, sections 3.1 to 3.1.2, Eqs. 2, 3 and 6",
    revisions={"theory": 1, "penalties.deepfool": DeepFoolMargin.revision},
    minutes=0.02,
)


def _below(rows: str, *names: str, bound: float) -> Callable:
    """Checks that the metrics of all rows that begin so are below a bound."""

    def read(at) -> list[Check]:
        found = {(row, n): at[NAME].metric(row, n) for row in _ROWS if row.startswith(rows) for n in names}
        return [Check(f"{row}: {n}", values < bound, values, f"< {bound:g}") for (row, n), values in found.items()]

    return read


def _exact_solution(at) -> list[Check]:
    name = "shortest random feasible step over Eq. 3's"
    found = {row: at[NAME].metric(row, name) for row in _ROWS if row.startswith("Eq. 3")}
    names = "largest relative difference of the norm", "largest relative residual"
    return [
        *_below("Eq. 3", *names, bound=1e-6)(at),
        *(Check(f"{row}: {name}", values >= 1, values, ">= 1") for row, values in found.items()),
    ]


def _signs(at) -> list[Check]:
    found = {
        (s, group): at[NAME].metric("sign, MNIST", f"{s}: step on {group}, change of {group}")
        for s in FACTORS
        for group in ("correct", "wrong")
    }
    return [
        Check(f"{s}: change of the norm, {group} samples", values * way > 0, values, f"{'>' if way > 0 else '<'} 0")
        for (s, group), values in found.items()
        for way in (1 if group == "correct" else -1,)
    ]


EVIDENCE = {
    "amm-s31-step-is-exact-solution": Evidence((NAME,), _exact_solution),
    "amm-s311-autograd-equals-reverse-net": Evidence(
        (NAME,),
        _below(
            "reverse net",
            "relative difference of autograd and reverse net",
            "relative difference of reverse net and differences",
            "relative difference of autograd and the book's regulariser",
            bound=1e-5,
        ),
    ),
    "amm-s311-no-high-order-is-logit-gap": Evidence(
        (NAME,),
        _below(
            "no high order",
            "one step, relative difference from gap over norm",
            "several steps, relative difference from the sum",
            "several steps, relative difference of the book's regulariser",
            bound=1e-5,
        ),
    ),
    "amm-s312-sign-of-the-regulariser": Evidence((NAME,), _signs),
}
