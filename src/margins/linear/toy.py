"""AMM on linear classifiers in the plane: every configuration and seed of Figure 1 trained at once (section 3.3.3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from margins.checkpoints import Checkpoint
from margins.errors import MarginsError
from margins.penalties import amm


def distances(weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (..., N) of linear classifiers `weights` (..., 3) = (w, b) at x (..., N, 2), and |score| / |w|."""
    score = (x * weights[..., None, :2]).sum(-1) + weights[..., 2:]
    return score, score.abs() / weights[..., None, :2].norm(dim=-1)


def signed_margins(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distances to the boundary, (..., N): positive where label y in {0, 1} is predicted, in input units."""
    score, distance = distances(weights, x)
    return torch.where((score > 0) == (y == 1), distance, -distance)


def train(
    pairs: Sequence[tuple[str, str]],
    x: Tensor,
    y: Tensor,
    seeds: Sequence[int],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    halve_every: int,
    momentum: float,
    weight_decay: float,
    c: float,
    d: float,
    clip: float,
    every: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[list[int], Tensor]:
    """Minimise the regulariser alone, for each (aggregation, shrinkage) pair and each seed, by SGD.

    x (S, N, 2) and y (S, N) hold each seed's training set; its seed also draws the start (uniform in +-1/sqrt 2, as
    torch's linear layer) and the order of the batches, the same for all pairs. The learning rate is halved each
    `halve_every` epochs; a gradient longer than `clip` is shortened to it, before weight decay is added.
    Returns the epochs noted (0, then each `every`, and the last) and the weights there, (T, P, S, 3), float64.
    All operations are elementwise or sums along one run, so the other runs in the stack don't change a number.
    """
    steps = x.shape[1] // batch_size if batch_size > 0 else 0
    for name, value, fits, allowed in (
        ("seeds", list(seeds), len(seeds) > 0, "at least one"),
        ("batch_size", batch_size, steps > 0, f"1 to the {x.shape[1]} samples"),
        ("epochs, halve_every, every", (epochs, halve_every, every), min(epochs, halve_every, every) > 0, "1 or more"),
        ("lr, c, d", (lr, c, d), all(math.isfinite(v) and v > 0 for v in (lr, c, d)), "finite numbers above 0"),
    ):
        if not fits:
            raise MarginsError(f"{name}: {value} given, allowed: {allowed}")
    x = x.double()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    start = torch.stack([torch.rand(3, generator=g, dtype=torch.float64) for g in generators]) * 2 - 1
    weights = (start / 2**0.5).repeat(len(pairs), 1, 1)
    velocity = torch.zeros_like(weights)
    noted, history, first = [0], [weights.clone()], 0
    if checkpoint is not None and (state := checkpoint.load("weights", "generators")) is not None:
        weights, velocity, noted, first = state["weights"], state["velocity"], state["noted"], state["epoch"]
        history = list(state["history"])
        for generator, saved in zip(generators, state["generators"], strict=True):
            generator.set_state(saved)
    for epoch in range(first, epochs):
        rate = lr * 0.5 ** (epoch // halve_every)
        order = torch.stack([torch.randperm(x.shape[1], generator=g) for g in generators])
        x_epoch = x.gather(1, order[..., None].expand(-1, -1, 2))
        y_epoch = y.gather(1, order)
        for step in range(steps):
            batch = slice(step * batch_size, (step + 1) * batch_size)
            gradient = _gradient(pairs, weights, x_epoch[:, batch], y_epoch[:, batch], c, d)
            gradient *= (clip / gradient.norm(dim=-1, keepdim=True)).clamp(max=1)
            velocity = momentum * velocity + gradient + weight_decay * weights
            weights = weights - rate * velocity
        if (epoch + 1) % every == 0 or epoch + 1 == epochs:
            noted.append(epoch + 1)
            history.append(weights.clone())
        if checkpoint is not None:
            here = epoch + 1
            checkpoint.tick(
                lambda here=here, weights=weights, velocity=velocity: {
                    "weights": weights,
                    "velocity": velocity,
                    "noted": noted,
                    "history": torch.stack(history),
                    "epoch": here,
                    "generators": [g.get_state() for g in generators],
                }
            )
    return noted, torch.stack(history)


def _gradient(pairs, weights: Tensor, x: Tensor, y: Tensor, c: float, d: float) -> Tensor:
    with torch.enable_grad():
        weights = weights.detach().requires_grad_()
        score, distance = distances(weights, x)
        correct = (score > 0) == (y == 1)
        losses = [
            amm.penalty(aggregation, shrinkage, distance[i], correct[i], y, c, d)
            for i, (aggregation, shrinkage) in enumerate(pairs)
        ]
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), weights)
    return gradient
