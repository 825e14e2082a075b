"""Logistic regression without bias by full-batch gradient descent, deep enough to see its limit (AMR section 3)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from margins.checkpoints import Checkpoint
from margins.errors import MarginsError

#: Samples whose share of the gradient is below float64 rounding are left out until the next look at all of them.
_NEGLIGIBLE = 1e-17
#: Steps between two looks at all samples and at the curvature.
_LOOK = 25


@dataclass(frozen=True)
class Path:
    """A training run at its checkpoints: steps taken, steps of constant size that they amount to, weights (T, D)."""

    steps: list[int]
    epochs: list[float]
    weights: Tensor


def descend(
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    epochs: float,
    growing: bool,
    per_decade: int = 8,
    start: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
) -> Path:
    """Gradient descent on the mean logistic loss of x (N, D) with labels y (N,) in {0, 1}, in float64.

    One epoch is one step of size `lr`. The loss falls like 1 / t and its curvature with it, so that steps of constant
    size get absurdly short; with `growing` a step is lr times (largest eigenvalue of the first Hessian over that of the
    present one), never less than lr: as long, against the curvature, as the first. Both follow the gradient flow; the
    clock is the sum of the steps over lr. Checkpoints are even in log epochs, `per_decade`, the first after one.
    Cost: one product with x and one with its transpose a step, of those samples that matter at float64 precision.
    """
    for name, value, least in (("lr", lr, 0), ("epochs", epochs, 0.99)):
        if not (math.isfinite(value) and value > least):
            raise MarginsError(f"{name}: {value} given, allowed: finite, {'above 0' if least == 0 else 'at least 1'}")
    x = x.double().flatten(1)
    used = (x != 0).any(0)
    signed = torch.where(y == 1, 1.0, -1.0)[:, None].double() * x[:, used]
    count = len(signed)
    w = torch.zeros(signed.shape[1], dtype=torch.float64) if start is None else start.double()[used]
    state = {"w": w, "u": torch.ones_like(w), "curvature": 0.0, "rate": lr, "clock": 0.0, "step": 0}
    state |= {"steps": [0], "epochs": [0.0], "weights": [w]}
    if checkpoint is not None and (saved := checkpoint.load(*state)) is not None:
        state = saved
    rows = signed
    while state["clock"] < epochs:
        if state["step"] % _LOOK == 0:
            rows = _look(signed, state, lr if growing else None)
        pull = torch.sigmoid(-(rows @ state["w"]))
        state["w"] = state["w"] + (state["rate"] / count) * (rows.T @ pull)
        state["clock"] += state["rate"] / lr
        state["step"] += 1
        if state["epochs"][-1] < _due(state["clock"], per_decade) or state["clock"] >= epochs:
            state["steps"].append(state["step"])
            state["epochs"].append(state["clock"])
            state["weights"].append(state["w"])
        # Only at a look, so that a run that goes on from here looks again at the same step
        if checkpoint is not None and state["step"] % _LOOK == 0:
            checkpoint.tick(lambda: dict(state))
    weights = torch.zeros(len(state["weights"]), x.shape[1], dtype=torch.float64)
    weights[:, used] = torch.stack(state["weights"])
    return Path(state["steps"], state["epochs"], weights)


def descend_in_batches(
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    momentum: float,
    generator: torch.Generator,
    per_decade: int = 8,
    checkpoint: Checkpoint | None = None,
) -> Path:
    """The same from zero by mini-batches with Nesterov's momentum, as the AMR authors' code trains; torch's SGD.

    An epoch is one pass over the samples, in an order drawn from `generator`; the last, smaller batch counts as well.
    """
    x, sign = x.double().flatten(1), torch.where(y == 1, 1.0, -1.0).double()
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=lr, momentum=momentum, nesterov=momentum > 0)
    kept, first = {"epochs": [0.0], "steps": [0], "weights": [w.detach().clone()]}, 0
    if (
        checkpoint is not None
        and (saved := checkpoint.load("kept", "epoch", "w", "generator", "optimizer")) is not None
    ):
        kept, first = saved["kept"], saved["epoch"]
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        with torch.no_grad():
            w.copy_(saved["w"])
    batches = math.ceil(len(x) / batch_size)
    for epoch in range(first, epochs):
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            pull = torch.sigmoid(-sign[batch] * (x[batch] @ w.detach()))
            w.grad = -(x[batch].T @ (pull * sign[batch])) / len(batch)
            optimizer.step()
        if kept["epochs"][-1] < _due(epoch + 1, per_decade) or epoch + 1 == epochs:
            kept["epochs"].append(float(epoch + 1))
            kept["steps"].append((epoch + 1) * batches)
            kept["weights"].append(w.detach().clone())
        if checkpoint is not None:
            state = {"kept": kept, "epoch": epoch + 1, "w": w.detach(), "generator": generator.get_state()}
            checkpoint.tick(lambda state=state: state | {"optimizer": optimizer.state_dict()})
    return Path(kept["steps"], kept["epochs"], torch.stack(kept["weights"]))


def _due(epochs: float, per_decade: int) -> float:
    """The last of the epochs evenly spaced in the logarithm, `per_decade`, that has been reached."""
    return 10 ** (math.floor(1e-9 + per_decade * math.log10(epochs)) / per_decade)


def _look(signed: Tensor, state: dict, lr: float | None) -> Tensor:
    """The rows that matter now; sets the step size from the curvature when `lr` is given (power iteration, warm)."""
    pull = torch.sigmoid(-(signed @ state["w"]))
    keep = pull > _NEGLIGIBLE * pull.mean()
    rows = signed if keep.all() else signed[keep]
    if lr is not None:
        curve = torch.sigmoid(rows @ state["w"]) * torch.sigmoid(-(rows @ state["w"])) / len(signed)
        for _ in range(3 if state["step"] else 30):
            u = rows.T @ (curve * (rows @ state["u"]))
            size = u.norm().item()
            state["u"] = u / size
        state["curvature"] = state["curvature"] or size
        state["rate"] = max(lr, lr * state["curvature"] / size)
    return rows


def margins_along(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distances (T, N) of x (N, D) to the boundaries of `weights` (T, D), in input units, in closed form."""
    signed = torch.where(y == 1, 1.0, -1.0)[:, None].double() * x.double().flatten(1)
    norm = weights.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, weights @ signed.T / norm, 0.0)


def adversarial(weight: Tensor, x: Tensor) -> Tensor:
    """Eq. 7: the point of the boundary of `weight` (D,) nearest to each x (N, ...), in its shape; no box."""
    flat = x.double().flatten(1)
    moved = flat - (flat @ weight / weight.square().sum())[:, None] * weight
    return moved.reshape(x.shape)
