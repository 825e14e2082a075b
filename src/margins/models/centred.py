"""A network that subtracts the training data's mean from its input, so that all else sees pixels in [0, 1]."""

from torch import Tensor, nn

from margins.errors import MarginsError


class Centred(nn.Module):
    """`net(x - mean)`: x (B, ...) in [0, 1], mean (...) of one sample's shape, not trained; logits (B, K).

    Distances between inputs are the same on both sides of a subtraction. The network's last layer becomes this one's
    `head`. Raises MarginsError for a network without one.
    """

    def __init__(self, net: nn.Module, mean: Tensor):
        if not isinstance(getattr(net, "head", None), nn.Module):
            raise MarginsError(f"net must have a last layer called head, which {type(net).__name__} lacks")
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())
        self.head, net.head = net.head, nn.Identity()
        self.net = net

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (B, D)."""
        return self.net.features(x - self.mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
