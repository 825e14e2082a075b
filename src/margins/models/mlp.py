"""The multi-layer perceptron: dense layers with ReLU between them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from margins import checks
from margins.errors import MarginsError
from margins.models.layers import draw
from margins.models.linear import check_sizes, dense, flatten

INITIAL = ("uniform", "he")


class MLP(nn.Module):
    """Dense layers of the sizes `hidden`, a ReLU after each, then a linear head.

    Takes x of shape (B, inputs) or any (B, ...) with that many entries a sample; returns logits (B, classes).
    `hidden` may be empty: the model is then linear. `generator` draws the initial weights, layer by layer from the
    input; None stands for a new generator with seed 0. initial: "uniform" in +-1/sqrt(inputs), PyTorch's, or "he":
    normal with deviation sqrt(2 / inputs), biases 0, as AMM's (its "MSRA").
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        classes: int,
        bias: bool = True,
        initial: str = "uniform",
        *,
        generator: torch.Generator | None = None,
    ):
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise MarginsError(f"hidden must be a list of layer sizes such as (16, 16), but is {hidden!r}")
        checks.choice("initial", initial, INITIAL)
        check_sizes(inputs=inputs, classes=classes, **{f"hidden[{i}]": size for i, size in enumerate(hidden)})
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        sizes = (inputs, *hidden)
        self.inputs = inputs
        self.hidden = nn.ModuleList(dense(a, b, bias, generator) for a, b in pairwise(sizes))
        self.head = dense(sizes[-1], classes, bias, generator)
        if initial == "he":
            for layer in (*self.hidden, self.head):
                draw(layer, generator)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head sees: the last hidden layer after its ReLU, (B, hidden[-1])."""
        x = flatten(x, self.inputs)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))
