"""MIN+LIN of a linear classifier, with all samples in one batch, against the hard-margin SVM (AMM, section 3.3.4).

Where nothing is misclassified and the nearest sample of each class is kept, Eq. 6 is minus the sum of both classes'
smallest distances over N. A bias is in one of the two with a plus and in the other with a minus: it drops out, and the
sum is the width of the gap between the classes along w, which is widest along the SVM's direction.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from margins import datasets
from margins.linear import toy
from margins.linear.svm import hard_margin_svm
from margins.papers.amm.toy import TOY
from margins.penalties import amm

#: From a smooth minimum to nearly the minimum itself, in input units.
TEMPERATURES = torch.logspace(0, -4, 9, dtype=torch.float64)


def two_classes(data: str, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """x (N, D) float64 and y (N,) of 0 and 1: the two boxes of the toy data, or images of a zero and a one."""
    chosen = {} if data == "toy2d" else {"classes": (0, 1)}
    known = datasets.load(data, "train", size=size, seed=seed, **chosen)
    return known.x.double().flatten(1), known.y


def smallest(distances: Tensor, y: Tensor, each_class: bool, temperature: float = 0.0) -> Tensor:
    """The smallest of signed distances (N,), or the sum of both classes' smallest; smooth at a temperature above 0."""
    groups = [distances[y == label] for label in (0, 1)] if each_class else [distances]
    if not temperature:
        return sum(group.min() for group in groups)
    return sum(-temperature * torch.logsumexp(-group / temperature, 0) for group in groups)


def maximise(x: Tensor, y: Tensor, each_class: bool, seed: int) -> tuple[Tensor, Tensor]:
    """The direction (D,), of length 1, and the bias with the largest smallest distance, or sum of the two classes'.

    From a random direction and the bias 0, by L-BFGS on smooth minima, the next one sharper. MIN+LIN is minus this sum
    over N where nothing is misclassified and the nearest of both classes are kept.
    """
    generator = torch.Generator().manual_seed(seed)
    w = normalize(torch.randn(x.shape[1], generator=generator, dtype=torch.float64), dim=0).requires_grad_()
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for temperature in TEMPERATURES.tolist():
        optimizer = torch.optim.LBFGS(
            [w, b],
            max_iter=300,
            history_size=20,
            tolerance_grad=1e-12,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure(optimizer=optimizer, temperature=temperature) -> Tensor:
            optimizer.zero_grad()
            value = -smallest((2 * y - 1) * (x @ w / w.norm() + b), y, each_class, temperature)
            value.backward()
            return value

        optimizer.step(closure)
    return normalize(w.detach(), dim=0), b.detach()


@dataclass(frozen=True)
class Biases:
    """MIN+LIN of one direction over all biases without a training error, evenly spaced.

    bias, margin (the smallest signed distance), value, and value's slope to the bias: (M,). low: (M,) whether the value
    is that of the best of them, but for rounding.
    """

    bias: Tensor
    margin: Tensor
    value: Tensor
    slope: Tensor

    @property
    def low(self) -> Tensor:
        return self.value - self.value.min() <= 1e-9 * self.value.abs().max()


def over_biases(w: Tensor, x: Tensor, y: Tensor, count: int, share: float = 0.2) -> Biases:
    """Of a separating direction w (D,) of length 1 and samples x (N, D), y (N,); share: of MIN's second condition."""
    score = x @ w
    low, high = -score[y == 1].min(), -score[y == 0].max()
    found = []
    for bias in low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count:
        bias.requires_grad_()
        distances = (2 * y - 1) * (score + bias)
        kept = amm.kept("MIN", distances, torch.ones_like(y, dtype=torch.bool), y, share)
        value = amm.terms("LIN", distances, torch.ones_like(kept), 1.0, 1.0)[kept].sum() / len(x)
        (slope,) = torch.autograd.grad(value, bias)
        found.append((bias.detach(), distances.detach().min(), value.detach(), slope))
    return Biases(*(torch.stack(parts) for parts in zip(*found, strict=True)))


def against_svm(data: str, size: int, seed: int, each_class: bool, biases: int) -> dict[str, Tensor]:
    """MIN+LIN's minimisers, all samples one batch and |w| = 1, against the hard-margin SVM.

    each_class: MIN as the paper has it, the nearest of each class; otherwise the nearest sample of all.
    """
    x, y = two_classes(data, size, seed)
    svm = hard_margin_svm(x, y, bias=True)
    best = normalize(torch.from_numpy(svm.weight), dim=0)
    w, b = maximise(x, y, each_class, seed)
    measured = {"angle to the SVM": torch.rad2deg(torch.arccos((w @ best).clamp(-1, 1)))}
    if not each_class:
        return measured | {"margin over the SVM's": ((2 * y - 1) * (x @ w + b)).min() / svm.margin}
    tried, loose = over_biases(w, x, y, biases), over_biases(w, x, y, biases, share=1.0)
    both = -len(x) * tried.value.min()
    return measured | {
        "least margin over the SVM's, of all biases as low": tried.margin[tried.low].min() / svm.margin,
        "largest margin over the SVM's, of all biases as low": tried.margin[tried.low].max() / svm.margin,
        "share of biases as low": tried.low.double().mean(),
        "share of biases as low, without the 20 % condition": loose.low.double().mean(),
        "largest slope to a bias as low": tried.slope[tried.low].abs().max(),
        "sum of the classes' smallest distances over twice the SVM's margin": both / (2 * svm.margin),
    }


def descent(size: int, seed: int, epochs: int, halve_every: int) -> dict[str, Tensor]:
    """MIN+LIN with weight decay by the recipe of AMM's Figure 1 but full batches, against the SVM, toy data."""
    x, y = two_classes("toy2d", size, seed)
    options = {key: TOY[key] for key in ("lr", "momentum", "weight_decay", "c", "d", "clip")}
    _, weights = toy.train(
        [("MIN", "LIN")],
        x[None],
        y[None],
        [seed],
        epochs=epochs,
        halve_every=halve_every,
        batch_size=len(x),
        every=epochs,
        **options,
    )
    w, svm = weights[-1, 0, 0], hard_margin_svm(x, y, bias=True)
    best = normalize(torch.from_numpy(svm.weight), dim=0)
    return {
        "angle to the SVM": torch.rad2deg(torch.arccos((normalize(w[:2], dim=0) @ best).clamp(-1, 1))),
        "margin over the SVM's": toy.signed_margins(w, x, y).min() / svm.margin,
    }
