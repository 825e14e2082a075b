"""What AMR says of margins in feature space, checked: Eqs. 13 and 14, and the product of spectral norms."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from margins import datasets, planar
from margins.attacks.race import race
from margins.experiments import Outcome
from margins.margin import feature_margin, logit_margin, spectral_norms
from margins.margin.chain import layers
from margins.margin.exact import ratio
from margins.margin.layers import Convolution, Dense
from margins.models import CNN, MLP, Linear, frozen
from margins.papers.amr.theory import clouds, predicted, trained
from margins.papers.measured import measured
from margins.penalties.amr import feature_scores
from margins.training.plain import fit

NAME = "amr/feature-margin"
#: A bound is violated where it is above the distance by more than this share.
SLACK = 1e-9
#: The square in which boundaries in the plane are looked for, wide enough for balls of radius 5 around the points.
WIDE = (-9.0, 9.0, -9.0, 9.0)
#: The net of the rows on images.
NET = {"data": "mnist", "training": 3000, "hidden": (100,)}


def isometric(generator: torch.Generator) -> MLP:
    """relu(R x + 20), R a rotation, and the identity as head: in WIDE, the features are as far apart as the inputs."""
    model = MLP(2, (2,), 2, generator=generator).double()
    turn = 2 * torch.pi * torch.rand(1, generator=generator, dtype=torch.float64)
    rotation = torch.cat([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (rotation, 20.0, torch.eye(2), 0.0), strict=True):
            parameter.copy_(torch.as_tensor(value))
    return model


def plane(kind: str, seed: int, points: int) -> tuple[nn.Module, Tensor]:
    """A net of the plane and points x (points, 2) of clouds, whose nearest boundaries are in WIDE.

    "trained": on three classes. "random": He's weights, no biases. "isometric": as above.
    """
    generator = torch.Generator().manual_seed(seed)
    x, _ = clouds(generator, 3, points)
    if kind == "isometric":
        return isometric(generator), x
    if kind == "trained":
        return trained("ReLU net", 3, seed), x
    while True:  # most nets have all classes, some only one
        model = MLP(2, (12, 12), 3, initial="he", generator=generator).double()
        if len(np.unique(predicted(model, x.numpy()))) > 1:
            return model, x


def images(data: str, seed: int, training: int, shown: int, hidden: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """A net after a little training, linear where hidden is empty, in float64, and some test images (shown, ...)."""
    known, test = (datasets.load(data, split, size=n, seed=seed) for split, n in (("train", training), ("test", shown)))
    generator = torch.Generator().manual_seed(seed)
    inputs = known.x[0].numel()
    model = MLP(inputs, hidden, 10, generator=generator) if hidden else Linear(inputs, 10, generator=generator)
    return fit(model, known.x, known.y, epochs=5, seed=seed).double(), test.x.double()


def lengths(model: MLP) -> float:
    """The product of the spectral norms of the layers below the head: at least Lip(Phi) (section 4.2)."""
    return float(np.prod([norm for name, norm in spectral_norms(model).items() if name != "head"]))


@torch.no_grad()
def feature_bounds(model: MLP, x: Tensor) -> dict[str, Tensor]:
    """Margins in feature space over the product of norms, (B,) each: the distance, Eq. 14, and the gap of logits."""
    y, lip = model(x).argmax(1), lengths(model)
    scores = feature_scores(model.features(x), model.head.weight)
    return {
        "distance": feature_margin(model, x, y) / lip,
        "Eq. 14": logit_margin(scores, y).abs() / lip,
        "logits": logit_margin(model(x), y) / lip,
    }


def feature_space(kind: str, seed: int, points: int, **settings) -> Outcome:
    """Those over the distance in input space: exact in the plane, that of an attack, which is no less, on images."""
    if kind == "images":
        model, x = images(seed=seed, shown=points, **settings)
        found = race(model, x, model(x).argmax(1), norm=2, steps=100, bounds=None)
        exact = found.distance
    else:
        model, x = plane(kind, seed, points)
        exact = planar.planar_margin(model, x, model(x).argmax(1), WIDE)
    bounds = feature_bounds(model, x)
    metrics = {"points": len(x), "product of norms": lengths(model)}
    for name, bound in bounds.items():
        share = bound / exact
        metrics |= {
            f"{name}: largest over the input distance": share.max(),
            f"{name}: mean over the input distance": share.mean(),
            f"{name}: violations": (share > 1 + SLACK).sum(),
        }
    arrays = {"input distance": exact.numpy()} | {name: bound.numpy() for name, bound in bounds.items()}
    return Outcome(metrics, arrays=arrays)


def rows_of(kind: str, generator: torch.Generator, classes: int, features: int) -> Tensor:
    """Rows (K, D) of length 1 of a linear head: "random", "orthonormal", "opposite" pairs, "near" each other."""
    w = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    if kind == "orthonormal":
        return torch.linalg.qr(w.T)[0].T
    if kind == "opposite":
        return nn.functional.normalize(w[:1]) * torch.tensor([[1.0], [-1.0]])
    return nn.functional.normalize(w if kind == "random" else w[:1] + 0.1 * w)


def head(kind: str, seed: int, classes: int, features: int, points: int) -> dict[str, Tensor]:
    """Eq. 14 for random features and a head of unit rows without bias, against the distance to the boundary.

    The distance is checked by its foot: the point at that distance along w_k - w_y, where the two best scores meet.
    """
    generator = torch.Generator().manual_seed(seed)
    w = rows_of(kind, generator, classes, features)
    phi = torch.randn(points, features, generator=generator, dtype=torch.float64)
    model = Linear(features, len(w), bias=False).double().requires_grad_(False)
    model.head.weight.copy_(w)
    own = model(phi).argmax(1)
    distance, printed = feature_margin(model, phi, own), logit_margin(feature_scores(phi, w), own)
    normal = w[own][:, None] - w
    gap = ratio((normal * phi[:, None]).sum(2), normal.norm(dim=2)).scatter(1, own[:, None], torch.inf)
    chosen = gap.argmin(1)
    normal = normal[torch.arange(points), chosen]
    foot = model(phi - distance[:, None] * nn.functional.normalize(normal))
    best = foot.topk(2, dim=1).values
    return {
        "largest relative difference": (printed / distance - 1).abs().max(),
        "Eq. 14 over the distance, least": (printed / distance).min(),
        "Eq. 14 over the distance, largest": (printed / distance).max(),
        "largest gap at the foot": (best[:, 0] - best[:, 1]).abs().max(),
    }


def subject(kind: str, data: str | None, seed: int) -> tuple[nn.Module, Tensor]:
    """A net and inputs (B, ...) for `product`: random, trained on a data set, or one that averages its neighbours."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(50, 1, 28, 28, generator=generator, dtype=torch.float64)
    if kind == "averaging":
        model = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(676, 2)).double()
        with torch.no_grad():
            model[0].weight.copy_(torch.rand(1, 1, 3, 3, generator=generator) + 0.5)
            model[3].weight.copy_(torch.linalg.qr(torch.ones(676, 2).double().triu())[0].T)
        return model, noise
    if kind == "random MLP":
        return MLP(784, (300, 100), 10, initial="he", generator=generator).double(), noise
    known = datasets.load(data, "train", size=1000, seed=seed)
    shape = tuple(known.x.shape[1:])
    if kind == "MLP":
        model = MLP(known.x[0].numel(), (100, 100), 10, generator=generator)
    else:
        model = CNN(shape, ((8,), (16,)), (50,), 10, padding=1, generator=generator)
    model = fit(model, known.x, known.y, epochs=3, batch_size=50, seed=seed).double()
    noise = torch.rand(50, *shape, generator=generator, dtype=torch.float64)
    return model, torch.cat([noise, known.x[:50].double()])


def operator(layer: Dense | Convolution) -> tuple[float, float]:
    """The largest singular value of the layer as a map of vectors, and of its weights flattened to (out, rest)."""
    if isinstance(layer, Convolution):
        matrix = layer.back(torch.eye(int(np.prod(layer.out_shape)), dtype=torch.float64))
    else:
        matrix = layer.weight
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    flat = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    return torch.linalg.eigvalsh(gram)[-1].sqrt().item(), flat.item()


def product(kind: str, data: str | None, seed: int) -> dict[str, float]:
    """The largest spectral norm of a Jacobian found, over the product of layers' norms: of operators, and flattened.

    ReLU stretches nothing, nor does a CNN's pooling, whose windows do not overlap.
    """
    model, x = subject(kind, data, seed)
    chain = layers(model, x)
    norms = np.array([operator(layer) for layer in chain if isinstance(layer, Dense | Convolution)])
    with frozen(model):
        asked = x.clone().requires_grad_()
        logits = model(asked)
        rows = [torch.autograd.grad(f.sum(), asked, retain_graph=True)[0].flatten(1) for f in logits.unbind(1)]
    steepest = torch.linalg.matrix_norm(torch.stack(rows, 1), 2).max().item()
    return {
        "largest Jacobian norm": steepest,
        "over the product of operator norms": steepest / norms[:, 0].prod(),
        "over the product of flattened norms": steepest / norms[:, 1].prod(),
        "operator over flattened norm, largest layer": (norms[:, 0] / norms[:, 1]).max(),
    }


ROWS: dict[str, tuple[Callable, dict]] = {
    **{f"features, {kind}": (feature_space, {"kind": kind, "points": 500}) for kind in ("trained", "random")},
    "features, isometric": (feature_space, {"kind": "isometric", "points": 500}),
    "features, MNIST": (feature_space, {"kind": "images", "points": 100, **NET}),
    **{
        f"Eq. 14, {kind}": (head, {"kind": kind, "classes": 10, "features": 50, "points": 1000})
        for kind in ("random", "orthonormal", "opposite", "near")
    },
    **{
        f"product, {kind}": (product, {"kind": kind, "data": data})
        for kind, data in (("random MLP", None), ("averaging", None), ("MLP", "mnist"), ("CNN", "mnist"))
    },
}
measured(
    ROWS,
    name=NAME,
    title="AMR's margin in feature space, checked numerically",
    source="AMR, section 4.2, Eqs. 13 and 14",
    revisions={"feature-margin": 1},
    minutes=0.1,
)
