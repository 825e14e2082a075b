"""Theorem 3 of AMR, checked: gaps over local Lipschitz constants, exact ones, sampled ones, and of linear models."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from margins import planar
from margins.attacks.race import race
from margins.errors import MarginsError
from margins.experiments import Outcome
from margins.margin import linear_margin, lipschitz_margin
from margins.margin.exact import ratio
from margins.papers.amr.theory import clouds, trained
from margins.papers.amr.theory_networks import NET, SLACK, WIDE, images, plane
from margins.papers.measured import measured

NAME = "amr/lipschitz"
#: Radii of the balls in the plane, and those of them with sampled constants: with so many points.
RADII = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0]
SAMPLED = {"radii": [0.5, 5.0], "points": [1, 16, 1024]}


def to_polygon(x: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """The distance (B,) of each x (B, 2) to a convex polygon (V, 2), counter-clockwise; 0 inside."""
    sides = np.stack([polygon, np.roll(polygon, -1, 0)], 1)
    along, towards = sides[:, 1] - sides[:, 0], x[:, None] - sides[:, 0]
    inside = (along[:, 0] * towards[..., 1] - along[:, 1] * towards[..., 0] >= 0).all(1)
    return np.where(inside, 0.0, np.linalg.norm(planar.nearest(x, sides) - x, axis=1))


def exact_bounds(model: nn.Module, x: Tensor, radii: list[float]) -> Tensor:
    """Theorem 3's right side (R, B) for each radius, with exact local Lipschitz constants, of a net of the plane.

    f_c - f_j is affine on each linear region, so that its Lipschitz constant in a ball is the largest gradient among
    the regions that the ball meets. Raises MarginsError for a ball that is not all in WIDE.
    """
    if (largest := x.abs().max().item() + max(radii)) > WIDE[1]:
        raise MarginsError(f"radii: a ball reaches to {largest:.3g}, allowed: within {WIDE[1]:g} of 0 on either axis")
    parts, points = planar.regions(model, WIDE), x.numpy()
    logits = model(x).detach()
    own = logits.argmax(1)
    away = torch.from_numpy(np.stack([to_polygon(points, part.polygon) for part in parts], 1))
    weights = torch.from_numpy(np.stack([part.weight for part in parts]))  # (P, K, 2)
    slopes = (weights[:, :, None] - weights[:, None]).norm(dim=3)[:, own].transpose(0, 1)  # (B, P, K)
    gaps, found = logits.gather(1, own[:, None]) - logits, []
    for radius in radii:
        lipschitz = torch.where((away < radius)[..., None], slopes, 0.0).amax(1)
        bound = ratio(gaps, lipschitz).scatter(1, own[:, None], torch.inf)
        found.append(bound.amin(1).clamp(max=radius))
    return torch.stack(found)


def lower_bound(kind: str, seed: int, points: int, radii: list[float], sampled: dict[str, int]) -> Outcome:
    """Theorem 3 with exact local constants, and with the largest gradient of a few random points, in the plane."""
    model, x = plane(kind, seed, points)
    own = model(x).argmax(1)
    exact = planar.planar_margin(model, x, own, WIDE)
    shares = exact_bounds(model, x, radii) / exact
    metrics = {
        "points": len(x),
        "linear regions": len(planar.regions(model, WIDE)),
        "largest over the distance": shares.max(),
        "violations": (shares > 1 + SLACK).sum(),
    }
    for radius in sampled["radii"]:
        at = radii.index(radius)
        metrics[f"radius {radius:g}: mean over the distance"] = shares[at].mean()
        for count in sampled["points"]:
            generator = torch.Generator().manual_seed(seed)
            estimate = lipschitz_margin(model, x, own, radius=radius, points=count, generator=generator).margin / exact
            name = f"radius {radius:g}, {count} points"
            metrics |= {
                f"{name}: violations": (estimate > 1 + SLACK).sum(),
                f"{name}: above the bound": (estimate > shares[at] * (1 + SLACK)).sum(),
                f"{name}: largest over the distance": estimate.max(),
            }
    return Outcome(metrics, curves={"radius": radii, "mean over the distance": shares.mean(1).tolist()})


def sampled_on_images(seed: int, points: list[int], radii: list[float], **settings) -> dict[str, Tensor]:
    """Theorem 3 with sampled constants, as the paper's margins are, against the distance to what an attack finds.

    An estimate above it is proven to be no bound; one below may be none either.
    """
    model, x = images(seed=seed, **settings)
    own = model(x).argmax(1)
    nearest = race(model, x, own, norm=2, steps=100, bounds=None).distance
    found = {"images": len(x), "mean distance found": nearest.mean()}
    for radius in radii:
        generator = torch.Generator().manual_seed(seed)
        path = lipschitz_margin(model, x, own, radius=radius, points=max(points), generator=generator)
        for count in points:
            share = path.path[path.counts.index(count)] / nearest
            found |= {
                f"radius {radius:g}, {count} points: violations": (share > 1 + SLACK).sum(),
                f"radius {radius:g}, {count} points: mean over the distance": share.mean(),
            }
    return found


def linear_case(data: str, seed: int, radii: list[float], **settings) -> dict[str, Tensor]:
    """Theorem 3 for a linear model, one gradient a sample, against the closed form, capped at the radius."""
    if data == "clouds":
        model, (x, _) = trained("linear", 3, seed), clouds(torch.Generator().manual_seed(seed + 1), 3, 500)
    else:
        model, x = images(data, seed, hidden=(), **settings)
    own = model(x).argmax(1)
    exact = linear_margin(model.head.weight.detach(), model.head.bias.detach(), x, own)
    found = {"samples": len(x), "largest distance": exact.max()}
    for radius in radii:
        bound, capped = lipschitz_margin(model, x, own, radius=radius, points=1).margin, exact >= radius
        found |= {
            f"radius {radius:g}: capped": capped.sum(),
            f"radius {radius:g}: largest relative difference": (bound / exact.clamp(max=radius) - 1).abs().max(),
        }
    return found


ROWS: dict[str, tuple[Callable, dict]] = {
    **{
        f"plane, {kind}": (lower_bound, {"kind": kind, "points": 500, "radii": RADII, "sampled": SAMPLED})
        for kind in ("trained", "random")
    },
    "sampled, MNIST": (sampled_on_images, {"points": [1, 16, 256], "radii": [0.5, 5.0], "shown": 50, **NET}),
    "linear, MNIST": (linear_case, {"data": "mnist", "training": 3000, "shown": 500, "radii": [0.5, 5.0]}),
    "linear, plane": (linear_case, {"data": "clouds", "radii": [0.5, 5.0]}),
}
measured(
    ROWS,
    name=NAME,
    title="AMR's lower bound of the distance, checked numerically",
    source="AMR, section 5.1, Theorem 3, Eq. 16",
    revisions={"lipschitz": 1},
    minutes=0.1,
)
