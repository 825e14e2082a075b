"""The logits' gradients to the input, EMR's effective weights, differentiable to the model's parameters."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins.errors import MarginsError
from margins.margin.chain import modules


def gradients(logits: Tensor, x: Tensor, along: Tensor, graph: bool = True) -> Tensor:
    """The gradients (C, B, ...) to x of along (C, B, K) times logits (B, K), all at once where `torch.vmap` can.

    Each row of the logits must depend on its own row of x alone. graph: whether they will be differentiated. Costs C
    backwards to the input, and 2 C forwards' worth more when they are.
    """

    def gradient(one: Tensor) -> Tensor:
        settings = {"retain_graph": True, "create_graph": graph, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(logits, x, one, **settings)[0]

    if len(along) > 1:
        try:
            return torch.vmap(gradient)(along)
        except RuntimeError:  # a backward of the model's own that has no rule for it
            pass
    return torch.stack([gradient(one) for one in along])


def of_chain(model: nn.Module, logits: Tensor, x: Tensor, along: Tensor) -> Tensor:
    """The same for a chain of layers whose logits (B, K) at x (B, ...) are known: the product of their weights.

    The layers are taken from the last to the first, each the transpose of what it does at x: a ReLU's and a
    max-pooling's is a choice, and has no gradient. Costs a forward without a graph, C forwards' worth, and 2 C when it
    is differentiated. Raises MarginsError for a model that is no chain, or of layers whose transpose is not known here.
    """
    transposed, z = [], x.detach()
    with torch.no_grad():
        for module in modules(model):
            z, back = _step(module, z)
            transposed.append(back)
        if z.shape != logits.shape or not torch.allclose(logits, z, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise MarginsError("route: the model does not compute what its layers do one after the other")
    g = along.flatten(0, 1)
    for back in reversed(transposed):
        g = back(g)
    return g.view(len(along), *x.shape)


def _step(module: nn.Module, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What a layer makes of z (B, ...), and the transpose of what it does there, for (C B, ...)."""
    if isinstance(module, nn.Linear):
        return module(z), lambda g: g @ module.weight
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return (out := module(z)), partial(_transposed, module, (z.shape, out.shape))
    if isinstance(module, nn.ReLU):
        return module(z), lambda g: (g.unflatten(0, (-1, len(z))) * (z > 0)).flatten(0, 1)
    if isinstance(module, nn.MaxPool2d) and not module.return_indices:
        window = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        out, place = functional.max_pool2d(z, *window, return_indices=True)
        return out, partial(_unpooled, z.shape, place.flatten(2))
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return z.flatten(1), lambda g: g.view(-1, *z.shape[1:])
    if isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and not module.training):
        return z, lambda g: g
    raise MarginsError(
        "route: the chain is known for Linear, Conv2d (padded with zeros), ReLU, MaxPool2d, Flatten, Identity and"
        f" Dropout in evaluation mode, but the model has the layer {module}; use the route 'gradients'"
    )


def _transposed(module: nn.Conv2d, shapes: tuple[torch.Size, torch.Size], g: Tensor) -> Tensor:
    (*_, height, width), (*_, rows, columns) = shapes
    missing = [
        size - ((out - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
        for size, out, stride, padding, dilation, kernel in zip(
            (height, width), (rows, columns), module.stride, module.padding, module.dilation, module.kernel_size,
            strict=True,
        )
    ]  # fmt: skip
    return functional.conv_transpose2d(
        g, module.weight, None, module.stride, module.padding, missing, module.groups, module.dilation
    )


def _unpooled(shape: torch.Size, place: Tensor, g: Tensor) -> Tensor:
    """Each number back to where it was largest; windows may overlap."""
    copies = len(g) // len(place)
    flat = g.new_zeros(*g.shape[:2], shape[2] * shape[3])
    return flat.scatter_add(2, place.repeat(copies, 1, 1), g.flatten(2)).unflatten(2, shape[2:])
