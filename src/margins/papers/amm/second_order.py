"""The gradient of DeepFool's norm to a network's weights, by several ways (AMM, section 3.1.1)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from margins import datasets
from margins.attacks.deepfool import Step, deepfool
from margins.attacks.geometry import column, direction, length
from margins.models import CNN
from margins.penalties import amm
from margins.penalties.context import Context, Threat
from margins.penalties.deepfool import DeepFoolMargin
from margins.training.plain import fit

#: DeepFool's usual one, which the norms include.
OVERSHOOT = 0.02


def regulariser(part: DeepFoolMargin, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The terms of Eq. 6 of samples x (B, ...) with labels y (B,): (B,), with a graph to the parameters."""
    context = Context(model, x, y, torch.arange(len(x)), len(x), 0.0, 0, Threat(2, 1.0, 1.0))
    return part(context, "clean")


def attack(model: nn.Module, x: Tensor, y: Tensor, steps: int = 6) -> tuple[tuple[Step, ...], Tensor]:
    """DeepFool as the regulariser has it, without its code: the path, and the norms (B,), overshoot included."""
    settings = {"norm": 2, "steps": steps, "overshoot": OVERSHOOT, "reference": "correction", "trace": True}
    path, total = deepfool(model, x, y, **settings).path, torch.zeros_like(x)
    for step in path:
        total[step.samples] += step.move
    return path, (1 + OVERSHOOT) * length(total, 2)


def gradient(value: Tensor, model: nn.Module) -> Tensor:
    """The gradient of a number to all parameters, as one vector (P,)."""
    parts = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


@contextmanager
def moved(model: nn.Module, change: Tensor) -> Iterator[None]:
    """The parameters plus `change` (P,) within the block, as they were afterwards."""
    before = parameters_to_vector(model.parameters()).detach()
    vector_to_parameters(before + change, model.parameters())
    try:
        yield
    finally:
        vector_to_parameters(before, model.parameters())


def subject(data: str, images: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network with convolutions and max-pooling, and samples of it that are right and wrong, in float64.

    data: "random", uniform noise and random weights, or a set of images, on some of which the net was trained briefly.
    """
    generator = torch.Generator().manual_seed(seed)
    if data == "random":
        model = CNN((1, 8, 8), ((4, 4),), (10,), 4, generator=generator).double()
        x = torch.rand(images, 1, 8, 8, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            model.head.bias -= model(x).mean(0)  # or nearly all samples are of one class
            y = model(x).argmax(1)
        y[::3] = (y[::3] + 1) % 4
        return model, x, y
    known = datasets.load(data, "train", size=1000 + images, seed=seed)
    model = CNN(known.x.shape[1:], ((4,),), (32,), known.classes, generator=generator)
    fit(model, known.x[images:], known.y[images:], epochs=3, lr=1e-2, batch_size=20, seed=seed)
    return model.double(), known.x[:images].double(), known.y[:images]


def linearised(
    model: nn.Module, x: Tensor, leave: Tensor, towards: Tensor, high_order: bool = False
) -> tuple[Tensor, Tensor]:
    """The gap (n,) of two classes' logits at x, with its graph, and its input gradient (n, ...), by differentiating.

    high_order: whether the input gradient has a graph too.
    """
    x = x if x.requires_grad else x.detach().requires_grad_()
    logits = model(x)
    gap = (logits.gather(1, leave[:, None]) - logits.gather(1, towards[:, None]))[:, 0]
    (w,) = torch.autograd.grad(gap.sum(), x, create_graph=high_order, retain_graph=True)
    return gap, w


def reverse(model: CNN, x: Tensor, leave: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
    """The gap f_leave - f_towards (n,) of samples x, and its input gradient, shaped as x, without differentiating.

    The input gradient is the output of a second net that goes back through the transposes of all layers, which share
    their weights with the first (section 3.1.1). Which ReLUs are active and which pixels are a pool's largest is noted
    on the way forth, and constant. Both have a graph to the parameters, which a single differentiation goes through.
    """
    back = []
    for layer in model.body:
        if isinstance(layer, nn.Conv2d):
            back.append(partial(functional.conv_transpose2d, weight=layer.weight, padding=layer.padding))
            x = layer(x)
        elif isinstance(layer, nn.ReLU):
            active = (x > 0).to(x.dtype)
            back.append(active.mul)
            x = active * x
        elif isinstance(layer, nn.MaxPool2d):
            pooled, places = functional.max_pool2d(x, layer.kernel_size, return_indices=True)
            unpool = partial(functional.max_unpool2d, kernel_size=layer.kernel_size, output_size=x.shape)
            back.append(partial(unpool, indices=places))
            x = pooled
        elif isinstance(layer, nn.Flatten):
            back.append(partial(torch.reshape, shape=x.shape))
            x = x.flatten(1)
        else:
            back.append(partial(torch.matmul, other=layer.weight))
            x = layer(x)
    rows = model.head.weight[leave] - model.head.weight[towards]
    gap = (rows * x).sum(1) + model.head.bias[leave] - model.head.bias[towards]
    for transposed in reversed(back):
        rows = transposed(rows)
    return gap, rows


def norms(model: nn.Module, x: Tensor, path: tuple[Step, ...], linearise: Callable) -> Tensor:
    """The norms (B,) of DeepFool's perturbations, overshoot included, walked again along their path with a graph.

    linearise: `reverse`, or `linearised` with or without high order: gap and input gradient at each iterate.
    """
    total = torch.zeros_like(x)
    for step in path:
        gap, w = linearise(model, (x + total)[step.samples], step.reference, step.chosen)
        total = total.index_add(0, step.samples, w * column(-gap.abs() / w.square().flatten(1).sum(1), w))
    return (1 + OVERSHOOT) * length(total, 2)


def autograd_and_reverse(data: str, seed: int, images: int, directions: int) -> dict[str, Tensor]:
    """The gradient of AVG+EXP by differentiating twice, through the reverse net, and by central differences.

    The last are those of the attack itself, along random directions of length 1; their relative difference is that of
    all directions' slopes together.
    """
    model, x, y = subject(data, images, seed)
    correct, (path, _) = model(x).argmax(1) == y, attack(model, x, y)

    def value(lengths: Tensor) -> Tensor:
        return amm.terms("EXP", lengths, correct, 1.0, 1.0).mean()

    twice, through, without = (
        gradient(value(norms(model, x, path, linearise)), model)
        for linearise in (partial(linearised, high_order=True), reverse, linearised)
    )
    part = DeepFoolMargin("AVG", "EXP", 1.0, 1.0, 6, OVERSHOOT)
    ours = gradient(regulariser(part, model, x, y).mean(), model)
    along = torch.randn(directions, len(twice), generator=torch.Generator().manual_seed(seed), dtype=twice.dtype)
    along, slopes = functional.normalize(along), []
    for one in along:
        values = []
        for size in (1e-6, -1e-6):
            with moved(model, size * one):
                values.append(value(attack(model, x, y)[1]))
        slopes.append((values[0] - values[1]) / 2e-6)
    return {
        "relative difference of autograd and reverse net": relative(through, twice),
        "relative difference of reverse net and differences": relative(torch.stack(slopes), along @ through),
        "relative difference of autograd and the book's regulariser": relative(ours, twice),
        "relative difference without second derivatives": relative(without, twice),
        "steps of DeepFool, mean": torch.tensor(sum(len(step.samples) for step in path) / len(x)),
        "wrong samples": (~correct).sum(),
    }


def relative(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| / |b|."""
    return (a - b).norm() / b.norm()


def logit_gap(data: str, seed: int, images: int) -> dict[str, Tensor]:
    """The gradient of AVG+LIN without high-order gradients against that of gap / constant norm, one step and several.

    Of several steps: the gradient of the norm is then a sum over the steps, of the gap's gradient at that iterate, as a
    fixed point, times a number. Going back over the steps, v is the derivative of the norm to where a step led.
    """
    model, x, y = subject(data, images, seed)
    sign = (1 + OVERSHOOT) * torch.where(model(x).argmax(1) == y, -1.0, 1.0).to(x.dtype) / len(x)
    masked = [DeepFoolMargin("AVG", "LIN", 1.0, 1.0, steps, OVERSHOOT, second_order=False) for steps in (1, 6)]
    one, ours = (gradient(regulariser(part, model, x, y).mean(), model) for part in masked)
    (step,), _ = attack(model, x, y, steps=1)
    gap, w = linearised(model, x[step.samples], step.reference, step.chosen)
    single = gradient((sign[step.samples] * gap.abs() / length(w, 2)).sum(), model)

    path, _ = attack(model, x, y)
    several, full = (
        gradient((sign / (1 + OVERSHOOT) * norms(model, x, path, linearise)).sum(), model)
        for linearise in (linearised, partial(linearised, high_order=True))
    )
    steps, total = [], torch.zeros_like(x)
    for step in path:
        gap, w = linearised(model, (x + total)[step.samples], step.reference, step.chosen)
        steps.append((step.samples, gap, w))
        total[step.samples] += step.move
    v, terms = direction(total, 2), 0.0
    for rows, gap, w in reversed(steps):
        towards_w = (v[rows] * w).flatten(1).sum(1) / w.square().flatten(1).sum(1)
        factor = -gap.detach().sign() * towards_w
        terms = terms + (sign[rows] * factor * gap).sum()
        v[rows] += column(factor, w) * w
    return {
        "one step, relative difference from gap over norm": relative(one, single),
        "several steps, relative difference from the sum": relative(several, gradient(terms, model)),
        "several steps, relative difference of the book's regulariser": relative(ours, several),
        "several steps, relative difference from gap over norm": relative(several, single),
        "relative difference from the full gradient": relative(several, full),
    }
