"""EMR's effective margin: the exact margin of the model linearised at x."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.found import input_gradient
from margins.attacks.geometry import column, length
from margins.margin.exact import dual_norm, ratio
from margins.models import frozen


def effective_margin(model: nn.Module, x: Tensor, y: Tensor, norm: float = 2) -> Tensor:
    """The margin of the model linearised at x (EMR, Eq. 3): min over j != y of (f_y - f_j) / ||grad(f_y - f_j)||.

    x (B, ...), y (B,) int64; returns (B,), without a graph. Exact within the linear region around x, so for linear
    models everywhere. The model runs in evaluation mode and is left as it was (modes, requires_grad, gradients,
    BatchNorm statistics), also after an exception. Cost: one forward and K - 1 gradients to the input, about K
    forwards. Raises MarginsError as `linear_margin` does, and where the logits are not finite or not of shape (B, K).
    """
    dual, margins = dual_norm(norm), []
    _linearise(model, x, y, lambda gap, gradient: margins.append(ratio(gap, length(gradient, dual))))
    return torch.stack(margins).amin(0)


def effective_point(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Where the linearised gap closes, at l2 distance |effective_margin| from x: DeepFool's first step (AMM, Eq. 3).

    Returns a tensor of x's shape; nan where the margin is infinite. Cost and errors as for `effective_margin`.
    """
    best: list[Tensor] = []

    def keep_least(gap: Tensor, gradient: Tensor) -> None:
        size = length(gradient, 2)
        found = ratio(gap, size), column(gap / size.square(), gradient) * gradient
        if best:
            closer = found[0] < best[0]
            found = torch.where(closer, found[0], best[0]), torch.where(column(closer, x), found[1], best[1])
        best[:] = found

    _linearise(model, x, y, keep_least)
    return torch.where(torch.isfinite(best[1]), x.detach() - best[1], torch.nan)


def _linearise(model: nn.Module, x: Tensor, y: Tensor, use: Callable[[Tensor, Tensor], None]) -> None:
    """Hand `use` the gap f_y - f_j (B,) and its gradient to x, for the K - 1 other classes, each sample's own in turn.

    A plain loop over one graph: on a CPU nothing is faster, and the K gradients are never in memory together.
    """
    checks.network(model, checks.tensor("x", x))
    x = x.detach().requires_grad_()
    with frozen(model), torch.enable_grad():
        logits = checks.logits(model(x), len(x))
        classes = logits.shape[1]
        checks.labels(y, len(x), classes, x.device)
        for shift in range(1, classes):
            other = (y[:, None] + shift) % classes
            gap = (logits.gather(1, y[:, None]) - logits.gather(1, other))[:, 0]
            gradient = input_gradient(gap.sum(), x, keep=shift < classes - 1)
            use(gap.detach(), gradient)
