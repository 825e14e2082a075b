"""A model taken apart into the layers that bounds are known for."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from margins import checks, models
from margins.errors import MarginsError
from margins.margin.layers import Convolution, Dense, Layer, Pool, Relu, patches

_KNOWN = (
    "bounds are proven only for chains of Linear, Conv2d (padded with zeros, not dilated), ReLU, MaxPool2d (neither), "
    "Flatten, Dropout and Identity, in torch.nn.Sequential or a model of margins.models, that end in a Linear"
)


def layers(model: nn.Module, x: Tensor) -> list[Layer]:
    """The model, made for samples such as x (B, ...), as a list of layers that ends in a Dense.

    Raises MarginsError for layers that are not known here, and where the layers do not compute what the model does at
    x. A maximum of rectified numbers is the rectified maximum: pooling comes first, and fewer neurons need a bound.
    """
    shape, chain = tuple(x.shape[1:]), []
    for module in modules(model):
        layer, shape = _layer(module, shape, x.device)
        if isinstance(layer, Pool) and chain and isinstance(chain[-1], Relu):
            chain.insert(-1, layer)
        elif layer is not None:
            chain.append(layer)
    if not chain or not isinstance(chain[-1], Dense):
        raise MarginsError(f"model does not end in a Linear: {_KNOWN}")
    with models.frozen(model), torch.no_grad():
        expected = checks.logits(model(x), len(x))
    z = x.double().flatten(1)
    for layer in chain:
        z = layer.forward(z)
    rounding = torch.finfo(x.dtype).eps ** 0.5
    if expected.shape != z.shape or ((expected - z).abs() > rounding * (1 + z.abs().amax(1, keepdim=True))).any():
        raise MarginsError(f"model does not compute what its layers do one after the other: {_KNOWN}")
    return chain


def modules(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a Sequential or a chain of `margins.models`, in order; of another model itself."""
    if type(model) is nn.Sequential:
        for child in model:
            yield from modules(child)
    elif type(model) in (models.Linear, models.MLP):
        yield nn.Flatten()
        for hidden in getattr(model, "hidden", ()):
            yield hidden
            yield nn.ReLU()
        yield model.head
    elif type(model) is models.CNN:
        yield from model.body
        yield model.head
    else:
        yield model


def _layer(module: nn.Module, shape: tuple[int, ...], device: torch.device) -> tuple[Layer | None, tuple[int, ...]]:
    """The module for inputs of that shape, and the shape that it puts out; None for one that changes no number."""
    kind = type(module)
    if kind in (nn.Identity, nn.Dropout, nn.Dropout2d):
        return None, shape
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return None, (math.prod(shape),)
    if kind is nn.ReLU:
        return Relu(), shape
    if kind is nn.Linear and shape == (module.in_features,):
        return Dense(*_parameters(module)), (module.out_features,)
    if kind is nn.Conv2d and len(shape) == 3 and _plain(module):
        layer = Convolution(*_parameters(module), shape, module.stride, module.padding, module.groups)
        return layer, layer.out_shape
    if kind is nn.MaxPool2d and len(shape) == 3 and _plain(module):
        layer = Pool.of(shape, _pair(module.kernel_size), _pair(module.stride), device)
        return layer, tuple(patches(shape, layer.kernel, layer.stride, device).shape[:3])
    raise MarginsError(f"model has the layer {module} for inputs of shape {shape}, but {_KNOWN}")


def _plain(module: nn.Conv2d | nn.MaxPool2d) -> bool:
    if _pair(module.dilation) != (1, 1):
        return False
    if isinstance(module, nn.MaxPool2d):
        return _pair(module.padding) == (0, 0) and not module.ceil_mode and not module.return_indices
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _parameters(module: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    weight = module.weight.detach().double()
    return weight, weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple) else (value, value)
