"""Square: a random search that asks the model for its logits only (Andriushchenko, Croce, Flammarion and Hein 2020).

Each query changes one square window of the perturbation, at a random place, and keeps what increases the margin loss.
The windows shrink on a fixed schedule. Without gradients it also finds what a defence only hides from them.
"""

import math

import torch
from torch import Tensor

from margins import checks, losses
from margins.attacks.found import Bounds, InBall, Oracle, attacking, parts
from margins.attacks.geometry import clip, column, length
from margins.attacks.noise import Noise

#: After so many windows the share of the entries in a window halves (the paper's schedule for 10,000 queries).
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
#: Random numbers are drawn for so many queries at once.
BLOCK = 32


def square(
    model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    eps: float,
    queries: int = 5000,
    p_init: float = 0.8,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> InBall:
    """Random search in the ball of radius eps, norm 2 or math.inf, by at most `queries` forwards a sample.

    x is (B, C, H, W); of any other shape, its entries count as one row, and windows are pieces of that row. p_init: the
    share of the entries in the first windows, halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 windows
    whatever `queries` is, as in AutoAttack. eps is in input units. Each sample has windows of its own, anywhere in the
    image, drawn from the generator. (In the published code one window serves the batch, and never touches the last row
    and column.) Where a sample was not broken, x_adv is the point of the largest margin loss.

    Costs 1 forward, and `queries` forwards for each sample until it is broken; no backwards. Raises MarginsError for
    bad input.
    """
    norm, eps, bounds = checks.norm(norm, (2, math.inf)), checks.number("eps", eps, 0), checks.box(bounds)
    checks.whole("queries", queries, 1)
    checks.number("p_init", p_init, 0, 1, above=True)
    checks.generator(generator)
    with attacking(model, x, y, bounds) as (oracle, _, wrong):
        x = x.detach()
        noise, x_adv, success = Noise(x, generator), x.clone(), wrong.clone()
        part = (~wrong).nonzero()[:, 0]
        ball = (_Linf if norm == math.inf else _L2)(x[part], eps, bounds, noise.keep(part))
        x_adv[part], success[part] = _search(oracle, x[part], y[part], ball, queries, p_init)
    return InBall(x_adv, success, length(x_adv - x, norm), oracle.calls, norm, eps)


def _search(oracle: Oracle, x: Tensor, y: Tensor, ball: "_Ball", queries: int, p_init: float) -> tuple[Tensor, Tensor]:
    """The last point (n, ...) that was better than the ones before it, and whether it is misclassified (n,)."""
    best = x.flatten(1).clone()
    found, success = best.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    left, loss = torch.arange(len(x), device=x.device), best.new_full((len(x),), -math.inf)
    for query in range(queries if len(x) else 0):
        point = ball.move(best, share(p_init, query - 1)) if query else ball.start()
        asked = torch.cat([oracle.logits(part) for part in parts(point.reshape(-1, *x.shape[1:]))])
        value = losses.margin(asked, y)
        broken = ~(value < 0)  # also where it is nan
        better = (broken | (value > loss)).nonzero()[:, 0]
        best[better], loss[better] = point[better], value[better]
        if broken.any():
            success[left[broken]], found[left[broken]] = True, point[broken]
            stay = (~broken).nonzero()[:, 0]
            left, best, loss, y = left[stay], best[stay], loss[stay], y[stay]
            ball.keep(stay)
            if not len(left):
                break
    found[left] = best
    return found.reshape(x.shape), success


def share(p_init: float, step: int) -> float:
    """The share of a sample's entries that the window of this step (from 0) covers."""
    return p_init / 2 ** sum(step > border for border in HALVED)


class _Ball:
    """The points that may be tried, of the samples that are left; points are flat, (n, C * H * W)."""

    #: The least side of a window.
    least: int

    def __init__(self, x: Tensor, eps: float, bounds: Bounds, noise: Noise):
        self.channels, self.height, self.width = x.shape[1:] if x.ndim == 4 else (1, 1, x[:1].numel())
        self.x, self.eps, self.bounds, self.noise = x.flatten(1), eps, bounds, noise
        self.drawn, self.turn, self.sides = torch.empty(0), BLOCK, (0, 0)

    def keep(self, chosen: Tensor) -> None:
        """Go on with the chosen samples (indices) only."""
        self.x, self.noise = self.x[chosen], self.noise.keep(chosen)
        if self.turn < BLOCK:
            self.drawn = self.drawn[chosen]

    def next(self, count: int) -> Tensor:
        """Random numbers in [0, 1), (n, count); always the same count."""
        if self.turn == BLOCK:
            self.drawn, self.turn = self.noise.uniform(BLOCK, count), 0
        self.turn += 1
        return self.drawn[:, self.turn - 1]

    def resize(self, part: float) -> None:
        """Windows with this share of the entries: squares, or pieces of a single row."""
        if self.height == 1:
            sides = (1, min(max(round(part * self.width), self.least), self.width))
        else:
            side = max(round(math.sqrt(part * self.height * self.width)), self.least)
            side += self.least > 1 and side % 2 == 0  # patterns have a middle
            sides = (min(side, self.height, self.width),) * 2
        if sides != self.sides:
            self.sides = sides
            entries = torch.arange(self.x.shape[1], device=self.x.device).reshape(
                self.channels, self.height, self.width
            )
            self.corner = entries[:, : sides[0], : sides[1]].flatten()  # the window at the upper left
            self.reshaped()

    def reshaped(self) -> None:
        """Called when windows have a new size."""

    def window(self, drawn: Tensor) -> Tensor:
        """The entries (n, C * tall * wide) of a window of each sample, at a place from drawn (n, 2) in [0, 1)."""
        down = (drawn[:, :1] * (self.height - self.sides[0] + 1)).long()
        along = (drawn[:, 1:2] * (self.width - self.sides[1] + 1)).long()
        return down * self.width + along + self.corner


class _Linf(_Ball):
    """Perturbations of -eps and eps, cut off at the box: stripes first, then windows of one sign a channel."""

    least = 1

    def __init__(self, x: Tensor, eps: float, bounds: Bounds, noise: Noise):
        super().__init__(x, eps, bounds, noise)
        self.faces = torch.cat((clip(self.x - eps, bounds), clip(self.x + eps, bounds)), 1)

    def keep(self, chosen: Tensor) -> None:
        super().keep(chosen)
        self.faces = self.faces[chosen]

    def start(self) -> Tensor:
        negative = self.noise.signs(self.channels, 1, self.width) < 0
        low, high = self.faces.chunk(2, 1)
        return torch.where(negative.expand(-1, -1, self.height, -1).flatten(1), low, high)

    def move(self, best: Tensor, part: float) -> Tensor:
        self.resize(part)
        drawn = self.next(2 + self.channels)
        window = self.window(drawn)
        upper = (drawn[:, 2:] < 0.5).long().repeat_interleave(math.prod(self.sides), 1)
        return best.scatter(1, window, self.faces.gather(1, window + upper * best.shape[1]))


class _L2(_Ball):
    """Perturbations of length eps, cut off at the box: a move takes what length is unused and that of two windows and
    gives it to the first window, in a pattern of two bumps of opposite sign on top of what was there."""

    least = 3

    def reshaped(self) -> None:
        self.patterns = _patterns(*self.sides, self.x).flatten(1)

    def start(self) -> Tensor:
        tall = max(min(self.height, self.width) // 5, 1) if self.height > 1 else 1
        wide = tall if self.height > 1 else max(self.width // 5, 1)
        rows, columns = self.height // tall, self.width // wide
        turned = (self.noise.uniform(1, rows, columns) < 0.5).long()
        signs = self.noise.signs(self.channels, rows, columns).to(self.x)[..., None, None]
        tiles = (_patterns(tall, wide, self.x)[turned] * signs).transpose(3, 4)
        delta = self.x.new_zeros(len(self.x), self.channels, self.height, self.width)
        top, first = (self.height - rows * tall) // 2, (self.width - columns * wide) // 2
        inner = delta[:, :, top : top + rows * tall, first : first + columns * wide]
        inner.copy_(tiles.reshape(inner.shape))
        return self.point(delta.flatten(1))

    def move(self, best: Tensor, part: float) -> Tensor:
        self.resize(part)
        drawn = self.next(5 + self.channels)
        window, other = self.window(drawn), self.window(drawn[:, 2:])
        delta = best - self.x
        unused = (self.eps**2 - delta.square().sum(1)).clamp(min=0)[:, None, None]
        old = delta.gather(1, window).unflatten(1, (self.channels, -1))
        here = old.square().sum(2, keepdim=True)
        delta.scatter_(1, window, 0.0)
        there = delta.gather(1, other).unflatten(1, (self.channels, -1)).square().sum(2, keepdim=True)
        delta.scatter_(1, other, 0.0)
        pattern = self.patterns[(drawn[:, 4] < 0.5).long()][:, None]
        sign = (drawn[:, 5:, None] < 0.5).to(delta) * 2 - 1
        new = pattern * sign + old / (here.sqrt() + 1e-12)
        size = new.square().sum(2, keepdim=True).sqrt() + 1e-12
        new *= (unused / self.channels + here + there).sqrt() / size
        return self.point(delta.scatter_(1, window, new.flatten(1)))

    def point(self, delta: Tensor) -> Tensor:
        return clip(self.x + delta * column(self.eps / length(delta, 2).clamp(min=1e-12), delta), self.bounds)


def _patterns(tall: int, wide: int, like: Tensor) -> Tensor:
    """Two bumps of opposite sign, of length 1 together: above each other, and side by side. (2, tall, wide)

    In a single row they are side by side both times.
    """
    across = torch.cat((_bump(tall, wide // 2), -_bump(tall, wide - wide // 2)), 1)
    both = torch.stack((across if tall == 1 else across.T, across))
    return (both / both[0].square().sum().sqrt()).to(like)


def _bump(tall: int, wide: int) -> Tensor:
    """(tall, wide) of length 1: the sum of 1/(k+1)^2 over k from the larger of the two distances to the centre on."""
    rows, columns = (torch.arange(n) - n // 2 for n in (tall, wide))
    distance = torch.maximum(rows.abs()[:, None], columns.abs())
    terms = 1 / torch.arange(1, max(tall // 2, wide // 2) + 2, dtype=torch.float64).square()
    bump = terms.flip(0).cumsum(0).flip(0)[distance]
    return bump / bump.square().sum().sqrt().clamp(min=1e-12)
