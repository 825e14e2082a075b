"""Whose terms the regulariser is made of: MIN+LIN against the SVM, MIN's few samples, LIN's far ones (section 3.3)."""

from collections.abc import Callable

import torch
from torch import Tensor

from margins import datasets
from margins.claims import Check, Difference, Evidence
from margins.models import MLP
from margins.papers.amm.min_lin import against_svm, descent
from margins.papers.amm.second_order import OVERSHOOT, attack, gradient, regulariser
from margins.papers.amm.theory import FACTORS
from margins.papers.measured import measured
from margins.penalties import amm
from margins.penalties.deepfool import DeepFoolMargin
from margins.training.plain import fit

NAME = "amm/terms"


def trained(data: str, seed: int, images: int, batch: int, hidden: tuple[int, ...]) -> tuple[MLP, Tensor, Tensor]:
    """A net after two epochs of plain training, now in float64, and the first `batch` of its training images."""
    known = datasets.load(data, "train", size=images, seed=seed)
    model = MLP(known.x[0].numel(), hidden, known.classes, generator=torch.Generator().manual_seed(seed))
    fit(model, known.x, known.y, epochs=2, seed=seed)
    return model.double(), known.x[:batch].double(), known.y[:batch]


def nonzero(data: str, seed: int, images: int, batch: int, batches: int, hidden: tuple[int, ...]) -> dict[str, Tensor]:
    """Of the correct samples of some batches, the share whose distance has a nonzero slope in the regulariser."""
    model, x, y = trained(data, seed, images, batch * batches, hidden)
    with torch.no_grad():
        correct = model(x).argmax(1) == y
    _, distances = attack(model, x, y)

    def share(value: Callable[[Tensor], Tensor]) -> Tensor:
        asked = distances.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(asked), asked)
        return (slope[correct] != 0).double().mean()

    def per_batch(asked: Tensor) -> Tensor:
        parts = zip(*(part.split(batch) for part in (asked, correct, y)), strict=True)
        return sum(amm.penalty("MIN", "EXP", *part) for part in parts)

    return {
        "correct samples": correct.sum(),
        "classes": model.head.out_features,
        "smallest of all: share": share(lambda asked: amm.shrink("EXP", -asked[correct].min())),
        "MIN a batch: share": share(per_batch),
        "AVG: share": share(lambda asked: amm.penalty("AVG", "EXP", asked, correct, y)),
    }


def far_tenth(data: str, seed: int, images: int, batch: int, hidden: tuple[int, ...]) -> dict[str, Tensor]:
    """The share of AVG's term, and of its gradients' norms, of the tenth of correct samples with the largest norms."""
    model, x, y = trained(data, seed, images, batch, hidden)
    with torch.no_grad():
        correct = model(x).argmax(1) == y
    x, y = x[correct], y[correct]
    _, norms = attack(model, x, y)
    # R(-c D) has the gradient -c R'(-c D) dD/dw, whose norm needs that of dD/dw only once
    lin = DeepFoolMargin("AVG", "LIN", 1.0, 1.0, overshoot=OVERSHOOT)
    slopes = torch.stack(
        [gradient(regulariser(lin, model, x[k : k + 1], y[k : k + 1])[0], model).norm() for k in range(len(x))]
    )
    far = norms >= norms.topk(max(1, round(len(x) / 10))).values.min()
    measured = {"correct samples": len(x), "mean norm of the tenth over that of all": norms[far].mean() / norms.mean()}
    for shrinkage, (c, _) in FACTORS.items():
        asked = norms.clone().requires_grad_()
        term = amm.terms(shrinkage, asked, torch.ones_like(far), c, 1.0)
        (weight,) = torch.autograd.grad(term.sum(), asked)
        for what, parts in (("value", term.detach().abs()), ("gradient", weight.abs() * slopes)):
            measured[f"{shrinkage}: share of {what}"] = parts[far].sum() / parts.sum()
    return measured


_NET = {"data": "mnist", "images": 6000, "hidden": (800, 800)}
_ROWS: dict[str, tuple[Callable, dict]] = {
    "MIN+LIN, toy": (against_svm, {"data": "toy2d", "size": 200, "each_class": True, "biases": 1001}),
    "MIN+LIN, MNIST": (against_svm, {"data": "mnist", "size": 2000, "each_class": True, "biases": 101}),
    "smallest of all, toy": (against_svm, {"data": "toy2d", "size": 200, "each_class": False, "biases": 1001}),
    "smallest of all, MNIST": (against_svm, {"data": "mnist", "size": 2000, "each_class": False, "biases": 101}),
    "MIN+LIN by descent, toy": (descent, {"size": 200, "epochs": 20_000, "halve_every": 5000}),
    "who counts": (nonzero, {**_NET, "batch": 100, "batches": 5}),
    "who dominates": (far_tenth, {**_NET, "batch": 200, "seeds": (0, 1, 2, 3, 4)}),
}

measured(
    _ROWS,
    name=NAME,
    title="Whose terms AMM's regulariser is made of",
    source="AMM, sections 3.3.1, 3.3.2 and 3.3.4",
    revisions={"terms": 1, "penalties.deepfool": DeepFoolMargin.revision},
    minutes=0.1,
)


def _svm(at) -> list[Check]:
    checks = []
    for kind, margin in (
        ("MIN+LIN", "least margin over the SVM's, of all biases as low"),
        ("smallest of all", "margin over the SVM's"),
    ):
        for data in ("toy", "MNIST"):
            row = f"{kind}, {data}"
            angle, ratio = (at[NAME].metric(row, name) for name in ("angle to the SVM", margin))
            checks.append(Check(f"{row}: angle to the SVM", angle < 1, angle, "< 1 degree"))
            checks.append(Check(f"{row}: {margin}", abs(ratio - 1) < 0.01, ratio, "0.99 to 1.01"))
    return checks


def _few(at) -> list[Check]:
    counted = _ROWS["who counts"][1]
    found = {name: at[NAME].metric("who counts", name) for name in ("smallest of all: share", "MIN a batch: share")}
    correct, classes, everyone = (
        at[NAME].metric("who counts", name) for name in ("correct samples", "classes", "AVG: share")
    )
    one, batch = found.values()
    most = classes * counted["batches"] / correct
    return [
        Check("smallest of all: share x correct samples", abs(one * correct - 1) < 1e-9, one * correct, "= 1"),
        Check("MIN a batch: share over classes / batch", batch <= most, batch / most, "<= 1"),
        Check("AVG: share", everyone == 1, everyone, "= 1"),
    ]


def _dominates(at) -> list[Difference]:
    share = {s: at[NAME].metric("who dominates", f"{s}: share of value") for s in FACTORS}
    return [
        Difference(f"share of value: LIN - {s}", share["LIN"] - share[s], ">", 0.1, pool=(NAME, "share"))
        for s in ("EXP", "INV")
    ]


EVIDENCE = {
    "amm-s334-min-lin-is-svm": Evidence((NAME,), _svm),
    "amm-s331-full-min-zero-gradient": Evidence((NAME,), _few),
    "amm-s332-lin-dominated-by-robust": Evidence((NAME,), _dominates),
}
