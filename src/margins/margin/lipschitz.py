"""AMR's margin of a network: a lower bound of the distance, from the largest gradient among random points around x."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.found import attacking, input_gradient
from margins.attacks.geometry import column, length
from margins.attacks.noise import Noise
from margins.margin.exact import ratio

_ROUND = 16  # draws a sample at a time: a constant, so that a sample's stream does not depend on its batch
_NUMBERS = 2**19  # the input entries in one batch: what bounds the memory


@dataclass(frozen=True, eq=False)
class LipschitzMargin:
    """The estimate, and how it fell with the number of random points.

    margin: (B,) signed, after all points. path: (M, B), row i the estimate after the first counts[i] points; counts are
    1, 2, 4, ... and the number of points asked for. A path that still falls says that the margin is too large.
    """

    margin: Tensor
    counts: tuple[int, ...]
    path: Tensor


def lipschitz_margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float = 5.0,
    points: int = 1024,
    generator: torch.Generator | None = None,
) -> LipschitzMargin:
    """AMR's Theorem 3: min over j != c of (f_c - f_j)(x) / L_j, at most `radius`, in l2; c is the predicted class.

    L_j is the Lipschitz constant of f_c - f_j in the ball of that radius about x, estimated as the paper does, by the
    largest ||grad(f_c - f_j)|| at random points of the ball, uniform in it and not confined to the box. A maximum over
    some points can only be too small, so this is an *estimate* of a lower bound of the distance, from above, and no
    bound itself. Exact for a linear model, from the first point on (up to `radius`). The paper: radius 5, 51,200 points
    for each j; here the K - 1 maxima look at the same points.

    x (B, ...), y (B,) int64; the margin is positive for a correct sample and negative for a wrong one (AMR, Eq. 6; its
    average margin is `average`, of absolute values). Cost a sample: points x (1 forward and K - 1 gradients to the
    input). Memory is bounded, whatever the number of points. Raises MarginsError as `effective_margin` does.
    """
    radius = checks.number("radius", radius, 0, above=True)
    points = checks.whole("points", points, 1)
    checks.generator(generator)
    counts = (*(2**i for i in range((points - 1).bit_length())), points)
    with attacking(model, x, y, None) as (_, logits, _):
        noise, prediction = Noise(x, generator), logits.argmax(1)
        size = max(1, _NUMBERS // (_ROUND * math.prod(x.shape[1:])))
        paths = []
        for part in torch.arange(len(x), device=x.device).split(size):
            lengths = _largest(model, x[part], prediction[part], noise.keep(part), radius, counts)
            gaps = _gaps(logits[part], prediction[part])
            paths.append(ratio(gaps, lengths).amin(2).clamp(max=radius))
    path = torch.cat(paths, 1)
    path = torch.where(prediction == y, path, -path)
    return LipschitzMargin(path[-1], counts, path)


def spectral_norms(model: nn.Module) -> dict[str, float]:
    """The spectral norm of each layer's weights, a convolution's flattened to (outputs, the rest), by its name.

    Layers are those whose weights have two dimensions or more. AMR's penalty flattens them too, though that is the norm
    of a convolution as a map only where its kernel is 1 x 1. Cost: a singular value decomposition a layer.
    """
    weights = {name.removesuffix(".weight"): w for name, w in model.named_parameters() if w.ndim > 1}
    return {name: torch.linalg.matrix_norm(w.detach().flatten(1), 2).item() for name, w in weights.items()}


def _largest(model, x: Tensor, prediction: Tensor, noise: Noise, radius: float, counts: tuple[int, ...]) -> Tensor:
    """(M, B, K - 1): the largest length of the gaps' gradients among the first counts[i] points around each x."""
    largest, seen, rows = None, 0, []
    for count in counts:
        while seen < count:
            draws = min(_ROUND, count - seen)
            around = _in_ball(x, noise, draws, radius)
            lengths = _gradient_lengths(model, around.flatten(0, 1), prediction.repeat_interleave(draws))
            lengths = lengths.unflatten(0, (len(x), draws)).amax(1)
            largest = lengths if largest is None else torch.maximum(largest, lengths)
            seen += draws
        rows.append(largest)
    return torch.stack(rows)


def _in_ball(x: Tensor, noise: Noise, draws: int, radius: float) -> Tensor:
    """(B, draws, ...): points uniform in the l2 ball, a random direction times radius U^(1/d)."""
    direction = noise.normal(draws, *x.shape[1:]).to(x.dtype).flatten(0, 1)
    share = noise.uniform(draws).to(x.dtype).flatten() ** (1 / math.prod(x.shape[1:]))
    size = length(direction, 2).clamp(min=torch.finfo(x.dtype).tiny)
    step = direction * column(radius * share / size, direction)
    return x[:, None] + step.unflatten(0, (len(x), draws))


def _gradient_lengths(model, x: Tensor, prediction: Tensor) -> Tensor:
    """(B, K - 1): the l2 length of grad(f_c - f_j), from class c + 1 around to c - 1."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        gaps = _gaps(model(x), prediction)
        last = gaps.shape[1] - 1
        return torch.stack([length(input_gradient(gaps[:, j].sum(), x, j < last), 2) for j in range(last + 1)], 1)


def _gaps(logits: Tensor, reference: Tensor) -> Tensor:
    """(B, K - 1): f_c - f_j for the other classes, from c + 1 around to c - 1."""
    classes = logits.shape[1]
    others = (reference[:, None] + torch.arange(1, classes, device=logits.device)) % classes
    return logits.gather(1, reference[:, None]) - logits.gather(1, others)
