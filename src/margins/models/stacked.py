"""Networks of one architecture as one module, which answers each group of a batch by a network of its own."""

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from margins.errors import MarginsError
from margins.models.heads import Centred

#: Layers that mix the samples of a batch in training, or draw random numbers.
_REFUSED = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
#: How far, of the largest logit, the stack's may be from the networks' own.
TOLERANCE = 0.01


def stack(models: Sequence[nn.Module], x: Tensor) -> nn.Module:
    """A module with copies of the R networks' weights, each parameter (R, ...), that takes x (R B, ...): R groups of B.

    Group r is answered by network r, (R B, K). Dense layers are one batched product, other layers with parameters go
    through `torch.func.vmap`, and what has none sees the samples as one batch, so it must treat each by itself. x: a
    few samples, on which the stack is compared with the networks. Gradients of all orders can be had, and those of a
    group belong to its network alone.

    Raises MarginsError for no networks, the same one twice, different architectures, BatchNorm and dropout, and where
    the answers differ. Costs 2 forwards of R x len(x) samples.
    """
    _check(models)
    stacked = copy.deepcopy(models[0])
    stacked.zero_grad()
    for mine, *all_of in zip(_tensors(stacked), *map(_tensors, models), strict=True):
        mine.data = torch.stack([one.detach() for one in all_of])
    stacked = _grouped(stacked, len(models))
    with torch.no_grad():
        wanted = torch.cat([model(x) for model in models])
        try:
            found = stacked(x.repeat(len(models), *[1] * (x.ndim - 1)))
            wrong = not torch.allclose(found, wanted, 0, TOLERANCE * float(wanted.abs().max()), equal_nan=True)
        except Exception as error:  # the model's own code meets parameters of another shape
            raise MarginsError(f"models can't be stacked: {type(error).__name__}: {error}") from error
    if wrong:
        raise MarginsError("models can't be stacked: together they answer otherwise than one by one")
    return stacked


@torch.no_grad()
def unstack(stacked: nn.Module, run: int, model: nn.Module) -> nn.Module:
    """`model`, of the stacked architecture, with the weights of the network `run`."""
    for mine, all_of in zip(_tensors(model), _tensors(stacked), strict=True):
        mine.copy_(all_of[run])
    return model


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(chain(model.parameters(), model.buffers()))


def _check(models: Sequence[nn.Module]) -> None:
    if not models or len({id(model) for model in models}) < len(models):
        raise MarginsError(f"models: one or more different ones are needed, but there are {len(models)}")
    for module in models[0].modules():
        if isinstance(module, _REFUSED):
            raise MarginsError(f"models can't be stacked: {type(module).__name__} mixes samples or is random")
    if any(_layout(model) != _layout(models[0]) for model in models[1:]):
        raise MarginsError("models must have the same layers of the same sizes to be stacked, but they differ")


def _layout(model: nn.Module) -> list:
    tensors = [(one.shape, one.dtype, one.device, one.requires_grad) for one in _tensors(model)]
    return [[(name, type(module)) for name, module in model.named_modules()], tensors]


def _grouped(module: nn.Module, runs: int) -> nn.Module:
    """The module, whose parameters are stacked, with layers that know of the groups."""
    if type(module) is nn.Linear:
        return _Dense(module)
    if isinstance(module, Centred) or any(True for _ in chain(module.parameters(False), module.buffers(False))):
        return _Mapped(module, runs)
    for name, child in module.named_children():
        setattr(module, name, _grouped(child, runs))
    return module


class _Dense(nn.Module):
    """A linear layer with weight (R, K, D) and bias (R, K) or None."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(len(self.weight), -1, x.shape[-1])
        if self.bias is None:
            out = torch.bmm(groups, self.weight.mT)
        else:
            out = torch.baddbmm(self.bias[:, None], groups, self.weight.mT)
        return out.reshape(*x.shape[:-1], -1)


class _Mapped(nn.Module):
    """Any layer with stacked parameters, mapped over the groups."""

    def __init__(self, layer: nn.Module, runs: int):
        super().__init__()
        self.layer, self.runs = layer, runs

    def forward(self, x: Tensor) -> Tensor:
        own = dict(chain(self.layer.named_parameters(), self.layer.named_buffers()))
        groups = x.reshape(self.runs, -1, *x.shape[1:])
        return vmap(lambda own, x: functional_call(self.layer, own, (x,)))(own, groups).flatten(0, 1)
