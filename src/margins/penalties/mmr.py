"""MMR: distances to the boundaries of a ReLU network's linear region (Croce, Andriushchenko and Hein 2019)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from margins import checks
from margins.errors import MarginsError
from margins.margin.exact import dual_norm
from margins.models import MLP, Centred, Linear
from margins.models.cnn import OfImages
from margins.penalties.context import PLACES, Context, Part, Run, in_mode

#: Numbers of a tensor of slopes in memory at a time.
NUMBERS = 2**21
#: Where a layer's input has fewer channels, convolutions of a CPU are slower than products of matrices.
FEW = 8
_KNOWN = (
    "MMR is for chains of Linear and Conv2d (padded with zeros, neither dilated nor grouped), a ReLU after each but the"
    " last, a Linear; Flatten, Dropout and Identity may stand between. Pooling has boundaries that MMR does not know"
)


@dataclass
class LinearRegions(Part):
    """mean of max(0, 1 - d / regions) over near units + mean of max(0, 1 - d_k / boundaries) over classes k, (B,).

    d = |z| / |grad_x z| is a hidden ReLU unit's distance from the sample to where the unit switches, as long as no
    other has: the least one bounds the linear region around the sample. d_k = (f_y - f_k) / |grad_x (f_y - f_k)|, for
    the K - 1 classes that are not the label's, is the distance to where they tie, negative where k is ahead. regions
    and boundaries are the paper's gamma_B and gamma_D, in input units. What x doesn't move counts 0.
    Near are a share of all hidden units: those of the least d, of each sample its own. The share goes linearly from the
    first to the second of `share` during training, at least 1 unit. norm: of the distance, 2 or math.inf.

    The released code (max-andr/provable-robustness-max-linear-regions) divides the sum over classes by K, not K - 1,
    changes the share after an epoch, not a step, and takes the whole filter as a first convolution's gradient where the
    padding cuts it, which puts units at the rim too near.

    The gradient goes through z, gaps and lengths of gradients, not through which units are near or positive. Distances
    are found without a graph: a backward a hidden unit and sample, through the patch of the layers before that the unit
    sees; a first layer's is its weights, the same for all samples. Only K - 1 gaps, and near units within `regions`,
    are differentiated, for 3 and 4 such backwards each, in parts, so that memory is bounded. The forward is the part's
    own. Dropout is in evaluation mode.
    Raises MarginsError for networks other than such chains: see `boundary_distances`.
    """

    regions: float
    boundaries: float
    share: tuple[float, float] = (0.1, 0.02)
    norm: float = 2
    places = PLACES

    def __post_init__(self):
        checks.number("regions", self.regions, 0, above=True)
        checks.number("boundaries", self.boundaries, 0, above=True)
        if not isinstance(self.share, tuple | list) or len(self.share) != 2:
            raise MarginsError(f"share must be two numbers, of the beginning and the end, but is {self.share!r}")
        self.share = tuple(checks.number(f"share[{i}]", one, 0, 1) for i, one in enumerate(self.share))
        checks.norm(self.norm, (2, math.inf))

    def begin(self, run: Run) -> None:
        super().begin(run)
        if run.classes < 2:
            raise MarginsError(f"classes: a distance to another class needs at least 2, but there is {run.classes}")
        _Unfolded(run.model, run.x[:2], self.norm).check(run.model, run.x[:2])

    def count(self, units: int, progress: float) -> int:
        """How many of so many hidden units are near at that share of the training."""
        first, last = (int(share * units) for share in self.share)
        return min(units, max(1, int(first + (last - first) * progress)))

    def __call__(self, context: Context, at: str) -> Tensor:
        x = context.x if at == "clean" else context.x_adv
        net = _Unfolded(context.model, x, self.norm)
        if not net.z[-1].isfinite().all():  # of a training that diverges
            return x.new_full((len(x),), torch.nan)
        value = (1 - net.boundaries(context.y) / self.boundaries).clamp(min=0).mean(1)
        known = net.distances()
        count = self.count(known.shape[1], context.progress)
        nearest, units = known.topk(count, largest=False, sorted=False)
        sample, place = (nearest < self.regions).nonzero(as_tuple=True)
        for chosen, distances in net.chosen(sample, units[sample, place]):
            value = value.index_add(0, sample[chosen], (1 - distances / self.regions) / count)
        return value


def boundary_distances(model: nn.Module, x: Tensor, norm: float = 2) -> Tensor:
    """|z| / |grad_x z| of every hidden ReLU unit, (B, U) in input units: the boundaries of the linear region around x.

    x (B, ...); z is what the ReLU is given. Units are in the order of their layers, and of `flatten(1)` within one. The
    least of a row is the exact distance to where another linear piece begins; of farther units the boundary may bend
    before. Infinite for a unit that x doesn't move. norm: of the distance, 2 or math.inf. Without a graph, dropout in
    evaluation mode. Costs a backward a unit, through the patch that it sees; a first layer's are nearly free.

    Raises MarginsError for networks other than a Linear, MLP or LeNetSmall of margins.models, a Centred one of these,
    or such a chain in torch.nn.Sequential: pooling, whose own boundaries MMR has no distance to, is refused.
    """
    checks.network(model, checks.tensor("x", x))
    checks.norm(norm, (2, math.inf))
    with torch.no_grad():
        net = _Unfolded(model, x, norm)
        net.check(model, x[:2])
        return net.distances()


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution of images; a dense layer's kernel is as large as its image. weight (O, C, h, w), bias (O,)."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == self.weight.shape[2:] and self.padding == (0, 0):
            return functional.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def back(self, slopes: Tensor) -> Tensor:
        """Slopes (n, O, h, w) to patches of the output as slopes to the patches of the padded input that they see."""
        if slopes.shape[2:] == (1, 1):
            return (slopes.flatten(1) @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        if self.weight.shape[1] >= FEW:
            return functional.conv_transpose2d(slopes, self.weight, stride=self.stride)
        _, side = self.seen(slopes.shape[2:])
        columns = self.weight.flatten(1).T @ slopes.flatten(2)
        return functional.fold(columns, side, self.weight.shape[2:], stride=self.stride)

    def seen(self, side, shift=(0, 0)) -> tuple[tuple[int, int], tuple[int, int]]:
        """How far before the input's corner the patch begins that one of the output, `shift` before its, sees; size."""
        begins = tuple(one * step + pad for one, step, pad in zip(shift, self.stride, self.padding, strict=True))
        kernel = self.weight.shape[2:]
        return begins, tuple((one - 1) * step + k for one, step, k in zip(side, self.stride, kernel, strict=True))


class _Unfolded:
    """A network at samples x: what its layers put out, with a graph to the parameters, and which units are positive."""

    def __init__(self, model: nn.Module, x: Tensor, norm: float):
        flat, waiting = x.ndim != 4, False  # waiting: for the ReLU of the last layer
        x = x - model.mean if isinstance(model, Centred) else x
        x = x.flatten(1)[:, :, None, None] if flat else x
        self.dual, self.layers, self.z, self.masks = dual_norm(norm), [], [], [torch.ones_like(x[:1])]
        for module in _modules(model):
            if type(module) in (nn.Identity, nn.Dropout, nn.Dropout2d):
                continue
            if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
                flat = True
            elif type(module) is nn.ReLU and waiting:
                x, waiting = x.relu(), False
                self.masks.append((x.detach() > 0).to(x.dtype))
            else:
                layer = None if waiting else _layer(module, x.shape[1:], flat)
                if layer is None:
                    shape = tuple(x.shape[1:])
                    raise MarginsError(f"model has the layer {module} where {shape} numbers come in: {_KNOWN}")
                x, waiting = layer.forward(x), True
                self.layers.append(layer)
                self.z.append(x)
        if not waiting or not flat:
            raise MarginsError(f"model does not end in a Linear: {_KNOWN}")

    @torch.no_grad()
    def check(self, model: nn.Module, x: Tensor) -> None:
        """Raise MarginsError where the model does not compute what its layers do, at x, the first samples."""
        with in_mode(model, "eval"):
            expected = checks.logits(model(x), len(x))
        found = self.z[-1][: len(x), :, 0, 0]
        rounding = torch.finfo(x.dtype).eps ** 0.5 * (1 + found.abs().amax(1, keepdim=True))
        if expected.shape != found.shape or ((expected - found).abs() > rounding).any():
            raise MarginsError(f"model does not compute what its layers do one after the other: {_KNOWN}")

    @torch.no_grad()
    def distances(self) -> Tensor:
        """(B, U) of all hidden units."""
        found = [self.z[-1].flatten(1)[:, :0]]
        for number, z in enumerate(self.z[:-1]):
            seen = self._windows(number)
            size = _widest(seen) * z[0].numel()
            parts = [[one if len(one) == 1 else one[i] for one in seen] for i in _parts(len(z) if number else 1, size)]
            sizes = torch.cat([self._sizes(number, self.layers[number].weight, part) for part in parts])
            found.append(_ratio(z.abs().flatten(1), sizes.transpose(1, 2).flatten(1)))
        return torch.cat(found, 1)

    def chosen(self, sample: Tensor, unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The distances, with a graph, of hidden units (n,) at samples (n,): which of the n, and theirs, by layer."""
        for number, z in enumerate(self.z[:-1]):
            (chosen,) = ((unit >= 0) & (unit < z[0].numel())).nonzero(as_tuple=True)
            here, place = sample[chosen], unit[chosen]
            unit = unit - z[0].numel()
            gap = z.flatten(1)[here, place].abs()
            channel, position = place // z[0, 0].numel(), place % z[0, 0].numel()
            seen = self._windows(number)
            if not number:
                yield chosen, _ratio(gap, self._sizes(0, self.layers[0].weight, seen)[0, position, channel])
                continue
            for i in _parts(len(chosen), _widest(seen)):
                ask = partial(self._of, number, seen, here[i], position[i], channel[i])
                sizes = checkpoint(ask, use_reentrant=False, preserve_rng_state=False)
                yield chosen[i], _ratio(gap[i], sizes)

    def boundaries(self, y: Tensor) -> Tensor:
        """(B, K - 1) the signed distances, with a graph, to where other classes tie with the label's."""
        logits, weight = self.z[-1].flatten(1), self.layers[-1].weight
        classes = logits.shape[1]
        others = (y[:, None] + torch.arange(1, classes, device=y.device)) % classes
        gap = logits.gather(1, y[:, None]) - logits.gather(1, others)
        last = len(self.layers) - 1
        sizes = self._sizes(last, weight[y][:, None, None] - weight[others][:, None], self._windows(last))
        return _ratio(gap, sizes[:, 0])

    def _of(self, number: int, seen: list[Tensor], sample: Tensor, position: Tensor, channel: Tensor) -> Tensor:
        """The lengths of the gradients (n,) of a layer's units at samples, positions and channels (n,)."""
        row, column = position // seen[0].shape[2], position % seen[0].shape[2]
        patches = [one[sample if len(one) > 1 else 0, row, column][:, None] for one in seen]
        return self._sizes(number, self.layers[number].weight[channel][:, None, None], patches)[:, 0, 0]

    def _sizes(self, number: int, slopes: Tensor, seen: list[Tensor]) -> Tensor:
        """The lengths (b, P, O) of gradients to x, of units at P positions of a layer, by their slopes to its input.

        slopes broadcast to (b, P, O, C, h, w); seen: of `_windows`, or with positions in a row, (b, P, C, h, w).
        """
        first, *others = (one.flatten(1, -4) for one in seen)
        slopes = slopes * first[:, :, None]
        for layer, mask in zip(reversed(self.layers[:number]), others, strict=True):
            places = slopes.shape[:3]
            slopes = layer.back(slopes.flatten(0, 2)).unflatten(0, places) * mask[:, :, None]
        return torch.linalg.vector_norm(slopes.flatten(3), self.dual, dim=3)

    def _windows(self, number: int) -> list[Tensor]:
        """What units see from each position of a layer, (B, rows, columns, C, h, w), of its input and of those before.

        1 where a unit lets its number through, 0 where not and in the padding; of x, of a batch of 1, 1 within it.
        """
        rows, columns = self.z[number].shape[2:]
        side, begins, jump, found = (1, 1), (0, 0), (1, 1), []
        for layer, mask in zip(reversed(self.layers[: number + 1]), reversed(self.masks[: number + 1]), strict=True):
            begins, side = layer.seen(side, begins)
            jump = tuple(one * step for one, step in zip(jump, layer.stride, strict=True))
            sizes = zip((rows, columns), jump, side, begins, mask.shape[2:], strict=True)
            top, left = ((begin, (count - 1) * step + one - begin - size) for count, step, one, begin, size in sizes)
            patches = functional.pad(mask, (*left, *top)).unfold(2, side[0], jump[0]).unfold(3, side[1], jump[1])
            found.append(patches.permute(0, 2, 3, 1, 4, 5))
        return found


def _ratio(gap: Tensor, size: Tensor) -> Tensor:
    """gap / size, infinite where the size is 0, with a gradient of 0 there."""
    return torch.where(size > 0, gap / torch.where(size > 0, size, 1.0), math.inf)


def _widest(seen: list[Tensor]) -> int:
    """The most numbers of a patch."""
    return max(math.prod(one.shape[3:]) for one in seen)


def _parts(count: int, size: int) -> list[slice]:
    """Of so many, each of that size, the slices to take at a time."""
    step = max(1, NUMBERS // size)
    return [slice(begin, begin + step) for begin in range(0, count, step)]


def _layer(module: nn.Module, shape: torch.Size, flat: bool) -> _Layer | None:
    """The module for inputs of that shape, flattened or not; None for one that is not known here."""
    if type(module) is nn.Linear and flat and module.in_features == shape.numel():
        return _Layer(module.weight.unflatten(1, shape), module.bias)
    if type(module) is not nn.Conv2d or flat or module.in_channels != shape[0]:
        return None
    plain = module.padding_mode == "zeros" and module.groups == 1 and module.dilation == (1, 1)
    if not plain or isinstance(module.padding, str):
        return None
    return _Layer(module.weight, module.bias, module.stride, module.padding)


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """The layers as they follow one another, of those models whose forward is known."""
    if type(model) is nn.Sequential:
        for child in model:
            yield from _modules(child)
    elif type(model) in (Linear, MLP):
        yield nn.Flatten()
        for hidden in getattr(model, "hidden", ()):
            yield hidden
            yield nn.ReLU()
        yield model.head
    elif isinstance(model, OfImages):
        yield from model.body
        yield model.head
    elif type(model) is Centred:
        yield from _modules(model.net)
        yield model.head
    else:
        yield model
