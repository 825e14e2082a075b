"""What LMA's moving average of logits adds to pairing the current ones, measured (LMA section 4.3, Algorithm 1)."""

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from margins import models
from margins.checkpoints import Checkpoint
from margins.claims import Check, Evidence
from margins.experiments import Experiment, Outcome, Unit, register
from margins.penalties.context import Context, Run, Threat
from margins.penalties.moving_average import READINGS, MovingAverage

NAME = "lma/moving-average"
#: Algorithm 1's reading: the tensor of the batch before, other images at the same positions.
ALGORITHM = "batch"
EPOCHS, CLASSES, INPUTS = 3, 10, 20
#: So small are the steps to the "adversaries" that all differences of logits lie in mHuber's quadratic range.
SMALL = 1e-3
_BALL = Threat(norm=2, eps=1.0, step_size=1.0)


def batches(images: int, batch: int, epochs: int, seed: int) -> list[Tensor]:
    """The images' numbers in the batches of some epochs, each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(images, generator=generator) for _ in range(epochs)]
    return [index for order in orders for index in order.split(batch)]


def without_net(images: int, logits: int, batch: int, seed: int) -> Run:
    """A run whose differences of logits are given, not computed: images of random classes."""
    y = torch.randint(CLASSES, (images,), generator=torch.Generator().manual_seed(seed))
    return Run(torch.nn.Identity(), torch.zeros(images, 1, dtype=torch.float64), y, logits, _BALL, batch, uneven=False)


def step(d: Tensor, index: Tensor, y: Tensor) -> SimpleNamespace:
    """A step of such a run: these images' d (B, logits), adversarial minus clean; y: the classes of all images."""
    return SimpleNamespace(
        logits={"adversarial": d, "clean": torch.zeros_like(d)}.__getitem__, index=index, y=y[index], first=0
    )


def own_share(part: MovingAverage, images: int, batch: int, seed: int) -> float:
    """The weight of an image's own earlier logits in the average that it meets, as a share of all weights.

    The differences of logits are unit vectors, one an image, and averaging is linear: the entries of an average are
    the weights of the images in it. Mean over the images of the last epoch.
    """
    run = without_net(images, images, batch, seed)
    part.begin(run)
    shares = []
    for index in batches(images, batch, EPOCHS, seed):
        seen = step(torch.eye(images, dtype=torch.float64)[index], index, run.y)
        part(seen, "both")
        weights = part.past * part.met(seen)
        shares.append(weights.gather(1, index[:, None])[:, 0] / weights.sum(1))
        part.after_step(run)
    return torch.cat(shares[-(images // batch) :]).mean().item()


def gradients_apart(part: MovingAverage, images: int, batch: int, seed: int) -> float:
    """The largest relative difference of the penalty's gradient from w^2 g(d) + w (1 - w) D grad d, w = 1 - past."""
    generator = torch.Generator().manual_seed(seed)
    model = models.build("mlp", inputs=INPUTS, hidden=(16,), classes=CLASSES, generator=generator).double()
    x = torch.rand(images, INPUTS, generator=generator, dtype=torch.float64)
    x_adv = x + SMALL * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y, w, worst = torch.randint(CLASSES, (images,), generator=generator), 1 - part.past, 0.0
    run = Run(model, x, y, CLASSES, _BALL, batch, uneven=False)
    part.begin(run)
    for index in batches(images, batch, EPOCHS, seed):
        context = Context(model, x[index], y[index], index, len(index), 0.0, 0, _BALL, x_adv=x_adv[index])
        met = part.met(context)
        penalty = _gradient(part(context, "both").mean(), model)
        d = model(x_adv[index]) - model(x[index])
        formula = _gradient(((w**2 * d.detach() + w * (1 - w) * met) * d).mean(), model)
        worst = max(worst, ((penalty - formula).norm() / formula.norm()).item())
        part.after_step(run)
    return worst


def _gradient(value: Tensor, model: torch.nn.Module) -> Tensor:
    return parameters_to_vector(torch.autograd.grad(value, list(model.parameters())))


def measure(config: Mapping, reading: str, seed: int) -> dict[str, float]:
    """What one row measures: page and records show the same."""
    part = MovingAverage(tau=config["tau"], reading=reading)
    given = config["images"], config["batch"], seed
    return {
        "gradients, largest relative difference": gradients_apart(part, *given),
        "weight of an image's own logits, %": 100 * own_share(part, *given),
    }


def _run(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    (unit,) = units
    return [Outcome(measure(unit.config, unit.row, unit.seed))]


register(
    Experiment(
        name=NAME,
        title="What LMA's moving average of logits adds to pairing the current ones",
        source="LMA, section 4.3, Algorithm 1",
        rows={reading: {} for reading in READINGS},
        scales={"quick": {"images": 200, "batch": 20}},
        settings={"tau": 0.2},
        seeds=(0, 1, 2),
        run=_run,
        revisions={"moving average": MovingAverage.revision},
        minutes={"quick": 0.01},
    )
)


def _same_images(at) -> list[Check]:
    results = at[NAME]
    apart, own = ("gradients, largest relative difference", "weight of an image's own logits, %")
    parts = [
        Check(f"{reading}: {apart}", values < 1e-5, values, "< 1e-5")
        for reading in (ALGORITHM, "sample")
        for values in (results.metric(reading, apart),)
    ]
    values = results.metric(ALGORITHM, own)
    return [*parts, Check(f"Algorithm 1 ({ALGORITHM}): {own}", values > 50, values, "> 50")]


EVIDENCE = {"lma-s1-ema-is-scaled-pairing": Evidence((NAME,), _same_images)}
