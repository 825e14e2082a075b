"""The models, one file a family.

Every model takes x of shape (B, C, H, W) in [0, 1], or (B, D) for toy data, and returns logits (B, K). `features(x)` is
what the last layer `head` sees, so `model(x)` is `head(features(x))`.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from margins.errors import MarginsError
from margins.models.centred import Centred
from margins.models.cnn import CNN
from margins.models.convnet import ConvNet
from margins.models.densenet_cifar import DenseNetCIFAR
from margins.models.imagenet import ResNet18, ResNet50, SENet50
from margins.models.lenet import LeNet, LeNetSmall
from margins.models.linear import Linear
from margins.models.liunet import LiuNet
from margins.models.mlp import MLP
from margins.models.nin import NIN
from margins.models.resnet_cifar import ResNet18CIFAR, ResNetCIFAR
from margins.models.wide_resnet import WideResNet

__all__ = [
    "CNN",
    "FAMILIES",
    "MLP",
    "NIN",
    "Centred",
    "ConvNet",
    "DenseNetCIFAR",
    "LeNet",
    "LeNetSmall",
    "Linear",
    "LiuNet",
    "ResNet18",
    "ResNet18CIFAR",
    "ResNet50",
    "ResNetCIFAR",
    "SENet50",
    "WideResNet",
    "build",
    "frozen",
]

#: Raised when a change of a model or a head changes results.
REVISION = 1
#: What `build` knows.
FAMILIES: dict[str, type[nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "cnn": CNN,
    "lenet-small": LeNetSmall,
    "lenet": LeNet,
    "convnet": ConvNet,
    "nin": NIN,
    "liunet": LiuNet,
    "resnet-cifar": ResNetCIFAR,
    "resnet-18-cifar": ResNet18CIFAR,
    "wide-resnet": WideResNet,
    "densenet-cifar": DenseNetCIFAR,
    "resnet-18": ResNet18,
    "resnet-50": ResNet50,
    "senet-50": SENet50,
}


def build(name: str, **settings) -> nn.Module:
    """The model called `name` with the settings of its class: `build("mlp", inputs=2, hidden=(16,), classes=3)`.

    Raises MarginsError for a name that is not in FAMILIES, and for a missing, unknown or impossible setting.
    """
    if name not in FAMILIES:
        raise MarginsError(f"no model is called {name!r}; there are: {', '.join(sorted(FAMILIES))}")
    signature = inspect.signature(FAMILIES[name])
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise MarginsError(f"model {name!r}: {error}; its settings are: {', '.join(signature.parameters)}") from None
    return FAMILIES[name](**settings)


@contextmanager
def frozen(model: nn.Module, evaluating: bool = True) -> Iterator[nn.Module]:
    """The model in evaluation mode and without parameter gradients, inside a `with` block.

    `evaluating` false leaves it in the mode that it is in. Afterwards, also after an exception, each module's mode and
    each parameter's `requires_grad` are as they were. BatchNorm statistics do not move in evaluation mode.
    """
    if not isinstance(model, nn.Module):
        raise MarginsError(f"model must be a torch.nn.Module, but is a {type(model).__name__}")
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        if evaluating:
            model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
