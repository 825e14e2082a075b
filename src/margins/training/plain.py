"""Plain training on tensors in memory: what pages, tests and benchmarks need of a trained network."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import checks


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Train `model` in place on cross-entropy with Adam, in shuffled batches, and return it in evaluation mode.

    x (N, ...) and y (N,) int64 on the model's device; the order of the samples comes from `seed`. The rate falls
    linearly to zero. Cost: an epoch is N forwards and full backwards. Raises MarginsError for arguments out of range.
    """
    checks.whole("epochs", epochs, 1)
    checks.whole("batch_size", batch_size, 1)
    checks.number("lr", lr, 0, above=True)
    checks.network(model, checks.tensor("x", x))
    generator = torch.Generator().manual_seed(checks.whole("seed", seed))
    optimizer = torch.optim.Adam(model.parameters(), lr)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
