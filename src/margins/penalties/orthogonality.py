"""LCR, the Lipschitz constant regulariser: nearly orthogonal weights (AMR section 4.2, third term of Eq. 15)."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def orthogonality(model: nn.Module, doubled: bool = False) -> Tensor:
    """The sum over the layers, the head included, of ||W W^T - I||_F^2, a number without unit.

    W (m, n) is the weight of a linear layer or a convolution, the latter flattened to (out, in x kernel). Where m > n,
    the smaller W^T W gives the same, since ||W W^T - I_m||^2 = ||W^T W - I_n||^2 + m - n: what is left at m - n is the
    floor of a layer that is wider than its input.
    doubled: layers with a bias count twice, as in the authors' code, whose loop over the parameters adds a layer's term
    again at its bias.

    Costs, a layer and step, one Gram product, min(m, n) max(m, n) min(m, n) multiplications, and as many for its
    gradient, whatever the batch. Not to be differentiated twice.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
    parts = [_Departure.apply(layer.weight.flatten(1)) for layer in layers]
    times = [2 if doubled and layer.bias is not None else 1 for layer in layers]
    return sum(time * part for time, part in zip(times, parts, strict=True))


class _Departure(torch.autograd.Function):
    """||W W^T - I||_F^2 of a matrix, whose gradient is 4 (W W^T - I) W, by the smaller Gram matrix."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        rows, columns = weight.shape
        gram = weight.T @ weight if rows > columns else weight @ weight.T
        gram.diagonal().sub_(1)
        ctx.save_for_backward(weight, gram)
        return torch.linalg.vector_norm(gram).square() + max(rows - columns, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> Tensor:
        weight, gram = ctx.saved_tensors
        product = weight @ gram if weight.shape[0] > weight.shape[1] else gram @ weight
        return product.mul_(4 * slope)
