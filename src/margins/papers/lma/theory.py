"""What LMA-AT says of its losses, of averages and of margins, checked numerically (sections 3, 4, appendices)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from margins import datasets, losses, models
from margins.attacks.pgd import pgd
from margins.experiments import Outcome
from margins.margin import logit_margin
from margins.papers.lma import large, mnist
from margins.papers.lma.moving_average import CLASSES, batches, step, without_net
from margins.papers.lma.theory_margins import IMAGES, distances, dominance
from margins.papers.measured import measured
from margins.penalties.context import Threat
from margins.penalties.moving_average import DIRECTIONS, READINGS, MovingAverage
from margins.training import train

NAME = "lma/theory"
#: Of mHuber: Table 15's smallest, the paper's choice, and Table 15's largest. The margin of L'.
ALPHAS, DELTA = (large.ALPHAS[0], large.ALPHA["ResNet-18"], large.ALPHAS[-1]), 0.9
#: So far from a knot, relative to it, its two sides are looked at.
NEAR = 1e-12
#: Of the net whose violations are counted.
BALL = Threat(math.inf, eps=0.1, step_size=0.025, steps=10, ramp=0.3)
#: Its violations are counted in bins up to here; the last bin has all that are larger.
BINS, WIDEST = 30, 3.0
#: A logit's difference that is minor, and one that is not.
MINOR, MAJOR = 0.1, 10.0


def derivatives(loss: Callable[[Tensor], Tensor], d: Tensor) -> tuple[Tensor, ...]:
    """An elementwise loss of d (N,), its slope and its curvature."""
    d = d.clone().requires_grad_()
    value = loss(d)
    (slope,) = torch.autograd.grad(value.sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    return value.detach(), slope.detach(), curvature


def huber(d: Tensor, alpha: float) -> Tensor:
    return functional.huber_loss(d, torch.zeros_like(d), reduction="none", delta=alpha)


def _alphas(seed: int, drawn: int) -> list[float]:
    """Those of the paper, and some at random in (0.5, 10)."""
    random = torch.rand(drawn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [*ALPHAS, *(0.5 + 9.5 * random).tolist()]


def knots(seed: int, drawn: int) -> dict[str, float]:
    """How far value, slope and curvature jump where mHuber and Huber's loss become lines, on both sides of zero."""
    found = {}
    for name, loss, place in (("mHuber", losses.mhuber, math.pi / 2), ("Huber", huber, 1.0)):
        jumps = []
        for alpha in _alphas(seed, drawn):
            ends = alpha * place * torch.tensor([1 - NEAR, 1 + NEAR], dtype=torch.float64)
            for d in (ends, -ends):
                before = derivatives(lambda d, loss=loss, alpha=alpha: loss(d, alpha), d)
                jumps.append(torch.stack(before).diff(dim=1).abs()[:, 0])
        value, slope, curvature = torch.stack(jumps).unbind(1)
        found |= {f"{name}: largest jump of value and slope": torch.cat([value, slope]).max()}
        found |= {f"{name}: largest jump of the curvature": curvature.max()}
        found |= {f"{name}: largest |jump of the curvature - 1|": (curvature - 1).abs().max()}
    return found


def outliers(seed: int, drawn: int) -> dict[str, float]:
    """The slopes of MSE, MAE and mHuber: far from zero, and on the two sides of it."""
    far, zero = torch.logspace(-3, 6, 91, dtype=torch.float64), torch.tensor([-NEAR, NEAR], dtype=torch.float64)
    kinds = {"MSE": torch.square, "MAE": torch.abs}
    slopes, jumps = (
        {name: torch.func.vmap(torch.func.grad(loss))(d) for name, loss in kinds.items()} for d in (far, zero)
    )
    alphas = _alphas(seed, drawn)
    mhuber = {a: lambda d, a=a: losses.mhuber(d, a) for a in alphas}
    return {
        "MSE: least slope over |d|": (slopes["MSE"] / far).min(),
        "MAE: largest slope": slopes["MAE"].max(),
        "MAE: jump of the slope at 0": jumps["MAE"].diff().abs().max(),
        "mHuber: largest slope over alpha": max(derivatives(loss, far)[1].max() / a for a, loss in mhuber.items()),
        "mHuber: jump of the slope at 0": max(
            derivatives(loss, zero)[1].diff().abs().max() for loss in mhuber.values()
        ),
    }


def sensitivity(seed: int, points: int) -> dict[str, float]:
    """Table 15's smallest alpha against its largest, at minor differences and beside a large one."""
    d = MINOR * torch.rand(points, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    d, large = d.clamp(min=1e-4), torch.full((points,), MAJOR, dtype=torch.float64)
    (small, wide), (small_far, wide_far) = (
        [derivatives(lambda d, a=a: losses.mhuber(d, a), at)[:2] for a in (ALPHAS[0], ALPHAS[-1])] for at in (d, large)
    )
    value, slope = (one / other for one, other in zip(small, wide, strict=True))
    relative = (small[1] / small_far[1]) / (wide[1] / wide_far[1])
    return {
        "minor: largest ratio of values": value.max(),
        "minor: least ratio of values": value.min(),
        "minor: largest ratio of slopes": slope.max(),
        "minor: least ratio of slopes": slope.min(),
        "minor over large: least ratio of slopes": relative.min(),
    }


def hinges(seed: int, points: int) -> dict[str, float]:
    """The example of section 4.2 by L' of one wrong class at a time; the sign of delta - f_y + f_j at random logits."""

    def root(others: list[float]) -> Tensor:
        logits = torch.tensor([[12.0, *others]], dtype=torch.float64)
        return losses.multi_margin(logits, torch.tensor([0]), 8.0, divided=False).sqrt()[0]

    logits = 5 * torch.randn(points, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = logits.argmax(1)
    lead = logits.gather(1, y[:, None]) - logits
    quantity = (DELTA - lead)[lead >= DELTA]
    return {
        "example: largest difference from 0 and 7": (root([-6.0]) - 0).abs().maximum((root([11.0]) - 7).abs()),
        "true logit leads: pairs": len(quantity),
        "true logit leads: delta - f_y + f_j is positive, %": 100 * (quantity > 0).double().mean(),
        "true logit leads: largest delta - f_y + f_j": quantity.max(),
    }


def violations(seed: int, size: int, epochs: int, shown: int, steps: int) -> Outcome:
    """By how much adversaries violate the margin of L', and the differences of logits, on a net that LMA-AT trained."""
    known, test = (datasets.load("mnist", split, size=n, seed=seed) for split, n in (("train", size), ("test", shown)))
    model = models.build("mlp", inputs=784, hidden=(200,), classes=10, generator=torch.Generator().manual_seed(seed))
    train(model, mnist.ROWS["LMA-AT"], known, recipe=mnist.recipe(epochs), threat=BALL, seed=seed)
    ball = {"norm": BALL.norm, "eps": BALL.eps, "step_size": BALL.eps / 8}
    adversaries = pgd(model.eval(), test.x, test.y, steps=steps, keep="last", **ball)  # as in training, to the end
    with torch.no_grad():
        logits, clean = model(adversaries.x_adv), model(test.x)
    over = DELTA + logits - logits.gather(1, test.y[:, None])
    over.scatter_(1, test.y[:, None], -torch.inf)
    found, right, d = over[over > 0], logit_margin(logits, test.y) > 0, (logits - clean).abs()
    metrics = {
        "correct, %": 100 * right.double().mean(),
        "violations an image": len(found) / len(test.y),
        "violations below 0.5, %": 100 * (found < 0.5).double().mean(),
        "violations below 1, %": 100 * (found < 1).double().mean(),
        "correct: largest violation": over[right].max(),
        "largest violation": found.max(),
        "differences beyond mHuber's knot, %": 100 * (d > ALPHAS[1] * math.pi / 2).double().mean(),
        "largest difference": d.max(),
    }
    counts = torch.histc(found.clamp(max=WIDEST), bins=BINS, min=0.0, max=WIDEST)
    return Outcome(metrics, curves={"violations, %": (100 * counts / len(found)).tolist()})


def expansion(tau: float, direction: str, seed: int, steps: int) -> dict[str, float]:
    """The average of one image's random logits against Eq. 24's sum, and its weights."""
    part = MovingAverage(tau=tau, direction=direction, reading="sample")
    d = torch.randn(steps, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    now = 1 - part.past
    weights = now * part.past ** torch.arange(steps, dtype=torch.float64)  # the latest first
    worst = 0.0
    for t, average in enumerate(_averages(part, d)):
        expected = (weights[: t + 1].flip(0)[:, None] * d[: t + 1]).sum(0)
        worst = max(worst, (average - expected).abs().max().item())
    found = _averages(MovingAverage(tau=tau, direction=direction, reading="sample"), torch.eye(steps).double())[-1]
    return {
        "largest difference from the sum": worst,
        "weight of the current logits": found[-1],
        "largest weight over the one after it": (found[:-1] / found[1:]).max(),
        "|sum of the weights - (1 - past^steps)|": (found.sum() - (1 - part.past**steps)).abs(),
    }


def _averages(part: MovingAverage, d: Tensor) -> list[Tensor]:
    """The averages (K,) of one image after each of its differences of logits d (T, K)."""
    run, found = without_net(1, d.shape[1], 1, 0), []
    part.begin(run)
    for one in d:
        part(step(one[None], torch.zeros(1, dtype=torch.int64), run.y), "both")
        part.after_step(run)
        found.append(part.state["average"][0])
    return found


def history(reading: str, seed: int, images: int, batch: int, epochs: int) -> dict[str, float]:
    """Of an image's logits in the epochs before the last, how many have a weight in the average that it meets.

    Each image has in each epoch a unit vector of its own, so that an average's entries are weights.
    """
    part = MovingAverage(reading=reading)
    run = without_net(images, images * epochs, batch, seed)
    part.begin(run)
    lags, own, unit = [], [], torch.eye(images * epochs, dtype=torch.float64)
    for at, index in enumerate(batches(images, batch, epochs, seed)):
        epoch = at * batch // images
        now = step(unit[epoch * images + index], index, run.y)
        if epoch == epochs - 1:
            weights = part.met(now).reshape(batch, epochs, images)
            lags.append(weights[torch.arange(batch), :epoch, index])
            own.append(lags[-1].sum(1) / weights.sum((1, 2)))
        part(now, "both")
        part.after_step(run)
    lag = torch.cat(lags)
    return {
        "own earlier logits with a weight, %": 100 * (lag > 0).double().mean(),
        "latest logits are the image's own, %": 100 * (lag[:, -1] > (1 - part.past) * (1 - 1e-9)).double().mean(),
        "weight of all own logits, %": 100 * torch.cat(own).mean(),
    }


ROWS = {
    "knots": (knots, {"drawn": 20}),
    "outliers": (outliers, {"drawn": 20}),
    "sensitivity": (sensitivity, {"points": 200}),
    "hinges": (hinges, {"points": 1000}),
    "violations": (violations, {"size": 5000, "epochs": 10, "shown": 1000, "steps": 20}),
    **{
        f"expansion, tau {tau:g}, {direction}": (expansion, {"tau": tau, "direction": direction, "steps": 40})
        for tau in (0.1, 0.2, 0.9)
        for direction in DIRECTIONS
    },
    **{f"history, {one}": (history, {"reading": one, "images": 100, "batch": 10, "epochs": 4}) for one in READINGS},
    **{
        f"distances, {kind}": (distances, {"kind": kind, "points": 200, "drawn": 20})
        for kind in ("linear", "ReLU net", IMAGES)
    },
    "dominance": (dominance, {"images": 1000}),
}
measured(
    ROWS,
    name=NAME,
    title="Losses, averages of logits and margins, checked numerically",
    source="LMA, sections 3 and 4, Eqs. 24, 28 and 29, appendices A and B",
    revisions={"lma theory": 1, "moving average": MovingAverage.revision},
    minutes=0.1,
)
