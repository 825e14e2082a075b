"""LMA-AT's Eqs. 28 and 29, checked numerically: perturbations, distances to the boundary, and margins that grow."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from margins import datasets, models, planar
from margins.experiments import Outcome
from margins.papers.amr import theory as plane
from margins.papers.amr.theory_networks import WIDE
from margins.training import fit

#: The net of images; the others are of the plane.
IMAGES = "MNIST, linear"
#: Directions and radii, as shares of the ball's, in which the ball around a point of the plane is searched.
ANGLES, RADII = 720, 8
#: Of the radii that shares are compared at: quantiles of the distances.
QUANTILES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def subject(kind: str, seed: int, points: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A net in float64, points x, and their exact distances to the boundary of the class that it predicts."""
    if kind == IMAGES:
        known, test = (
            datasets.load("mnist", part, size=n, seed=seed) for part, n in (("train", 2000), ("test", points))
        )
        model = models.build("linear", inputs=784, classes=10, generator=torch.Generator().manual_seed(seed))
        model, x = fit(model, known.x, known.y, epochs=5, seed=seed).double(), test.x.double()
        return model, x, _to_others(model, x)[0]
    model = plane.trained(kind, 3, seed)
    x, _ = plane.clouds(torch.Generator().manual_seed(seed), 3, points)
    with torch.no_grad():
        return model, x, planar.planar_margin(model, x, model(x).argmax(1), WIDE)


def _to_others(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a linear model the least distance (B,) to another class, and the directions (B, K, D) to all of them."""
    rows, logits = model.head.weight.detach(), model(x).detach()
    y = logits.argmax(1)
    apart = rows - rows[y][:, None]
    length = apart.norm(dim=2).scatter(1, y[:, None], 1.0)
    lead = (logits.gather(1, y[:, None]) - logits).scatter(1, y[:, None], torch.inf)
    return (lead / length).amin(1), apart / length[:, :, None]


def steps(kind: str, model: nn.Module, x: Tensor) -> Tensor:
    """Steps (B or 1, M, D) of length up to 1: those in the ball that a search for the worst one goes through."""
    if kind == IMAGES:
        return _to_others(model, x)[1]
    turns = 2 * torch.pi * torch.arange(ANGLES, dtype=torch.float64) / ANGLES
    circle = torch.stack([turns.cos(), turns.sin()], 1)
    lengths = torch.arange(1, RADII + 1, dtype=torch.float64) / RADII
    return (lengths[:, None, None] * circle).flatten(0, 1)[None]


def distances(kind: str, seed: int, points: int, drawn: int) -> Outcome:
    """Eq. 28: the share of points whose class perturbations of a size change, crafted and random, and of distances."""
    model, x, distance = subject(kind, seed, points)
    with torch.no_grad():
        y, flat = model(x).argmax(1), x.flatten(1)
    ordered = distance.sort().values
    place = (QUANTILES * points).long()
    radii = (ordered[place - 1] + ordered[place]) / 2  # between two distances, so that none is a tie
    random = torch.randn(drawn, *flat.shape, generator=torch.Generator().manual_seed(seed), dtype=flat.dtype)
    random = functional.normalize(random, dim=2).transpose(0, 1)
    shares = {"distance": [], "crafted": [], "random": []}
    for radius in radii:
        shares["distance"].append((distance <= radius).double().mean())
        for name, unit in (("crafted", steps(kind, model, x)), ("random", random)):
            with torch.no_grad():
                moved = model((flat[:, None] + radius * unit).reshape(-1, *x.shape[1:])).argmax(1).reshape(points, -1)
            fooled = (moved != y[:, None]).double()
            shares[name].append((fooled.amax(1) if name == "crafted" else fooled.mean(1)).mean())
    found = {name: 100 * torch.stack(values) for name, values in shares.items()}
    metrics = {
        "crafted: largest gap, points": (found["crafted"] - found["distance"]).abs().max(),
        "random: gap at the median distance, points": (found["distance"] - found["random"])[len(radii) // 2],
        "random: largest excess, points": (found["random"] - found["distance"]).max(),
    }
    return Outcome(metrics, curves={"radius": radii.tolist()} | {name: one.tolist() for name, one in found.items()})


def dominance(seed: int, images: int) -> dict[str, float]:
    """Eq. 29: the share of distances up to r, where every margin grows, and where only their mean does."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(3, images, generator=generator, dtype=torch.float64)
    margins = -uniform[0].log()
    r = torch.linspace(0, 10, 1001, dtype=torch.float64)

    def rise(grown: Tensor) -> Tensor:
        before, after = ((one[:, None] <= r).double().mean(0) for one in (margins, grown))
        return 100 * (after - before).max()

    uneven = margins * torch.where(uniform[2] < 0.5, 0.5, 2.0)
    return {
        "every margin grows: largest rise, points": rise(margins + uniform[1]),
        "only the mean grows: mean over that before": uneven.mean() / margins.mean(),
        "only the mean grows: largest rise, points": rise(uneven),
    }
