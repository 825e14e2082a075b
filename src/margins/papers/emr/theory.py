"""What EMR says of logits, effective weights and margins, checked numerically (sections 1 to 4)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from margins import datasets, losses, models, planar
from margins.attacks.geometry import column
from margins.attacks.race import race
from margins.experiments import Outcome
from margins.margin import effective_margin, logit_margin
from margins.methods.softmax import LSoftmax
from margins.models import frozen
from margins.papers.amr import theory_networks
from margins.papers.measured import measured
from margins.training.plain import fit

NAME = "emr/theory"
#: What the checks are made of: a model, its data, how many images it is trained on and for how many epochs.
NETS = {
    "linear": ({"name": "linear", "inputs": 784, "classes": 10}, "mnist", 2000, 5),
    "MLP": ({"name": "mlp", "inputs": 784, "hidden": (1024,) * 4, "classes": 10}, "mnist", 2000, 3),
    "CNN": (
        {"name": "cnn", "shape": (3, 32, 32), "blocks": ((16, 16), (32, 32)), "hidden": (64, 64), "classes": 10},
        "cifar10", 2000, 5,
    ),
    "ResNet": ({"name": "resnet-cifar", "shape": (3, 32, 32), "classes": 10, "depth": 8}, "cifar10", 1000, 3),
}  # fmt: skip
#: Factors of the logits; at the last one the loss has gone where the gap of the logits is above GAP.
FACTORS = torch.logspace(0, 2, 41, dtype=torch.float64)
GAP = 0.2


def subject(kind: str, seed: int, shown: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A net after a little training, in float64, some test images (shown, ...) and their labels."""
    settings, data, size, epochs = NETS[kind]
    known, test = (datasets.load(data, split, size=n, seed=seed) for split, n in (("train", size), ("test", shown)))
    model = models.build(**settings, generator=torch.Generator().manual_seed(seed))
    return fit(model, known.x, known.y, epochs=epochs, batch_size=50, seed=seed).double(), test.x.double(), test.y


def weights(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The effective weights (K, B, inputs) and the logits (B, K)."""
    with frozen(model):
        x = x.clone().requires_grad_()
        logits = model(x)
        found = [torch.autograd.grad(f.sum(), x, retain_graph=True)[0].flatten(1) for f in logits.unbind(1)]
    return torch.stack(found), logits.detach()


def _scaled_losses(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of FACTORS times logits (B, K), (factors, B), without cancellation."""
    gaps = logits.gather(1, y[:, None]) - logits
    gaps.scatter_(1, y[:, None], torch.inf)
    return torch.log1p((-FACTORS[:, None, None] * gaps).exp().sum(2))


def scaling(kind: str, seed: int, shown: int, margins: int) -> dict[str, Tensor | float]:
    """Figure 1a: what logits times a, by a larger head, do to the loss, its gradient, predictions and margins."""
    model, x, y = subject(kind, seed, shown)
    with torch.no_grad():
        logits = model(x)
    gap = logit_margin(logits, y)
    right, clear = gap > 0, gap > GAP
    found = _scaled_losses(logits, y)
    pull = [((a * logits).softmax(1) - functional.one_hot(y, 10)).norm(dim=1) for a in (1.0, FACTORS[-1])]
    before = effective_margin(model, x[:margins], y[:margins])
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(FACTORS[-1])
        changed = [((a * logits).argmax(1) != logits.argmax(1)).sum() for a in (0.1, 2.0, 100.0)]
        moved = (model(x).argmax(1) != logits.argmax(1)).sum()
    after = effective_margin(model, x[:margins], y[:margins])
    z = gap[clear]
    return {
        "correct": right.sum(),
        "correct: largest rise of the loss": found.diff(dim=0)[:, right].max(),
        "clear: largest loss at 100": found[-1, clear].max(),
        "clear: largest gradient at 100 over that at 1": (pull[1] / pull[0])[clear].max(),
        "clear: largest slope of the sigmoid at 100 over that at 1": ((-100 * z).sigmoid() / (-z).sigmoid()).max(),
        "wrong: share whose loss has risen at 100, %": 100 * (found[-1] > found[0])[~right].double().mean(),
        "largest relative change of the margin": (after / before - 1).abs().max(),
        "predictions that change": sum(changed) + moved,
        "correct: largest rise of the mean loss": found[:, right].mean(1).diff().max(),
    }


def homogeneous(kind: str, seed: int, shown: int) -> dict[str, Tensor]:
    """The logits of weights times a over a^L times the logits, for a net of L layers with and without its biases."""
    model, x, _ = subject(kind, seed, shown)
    layers = sum(parameter.ndim > 1 for parameter in model.parameters())
    found = {}
    with torch.no_grad():
        for name in ("with biases", "without biases"):
            apart, before = [], model(x)
            for a in (0.5, 2.0, 10.0):
                for parameter in model.parameters():
                    parameter.mul_(a)
                expected = a**layers * before
                apart.append(((model(x) - expected).norm(dim=1) / expected.norm(dim=1)).max())
                for parameter in model.parameters():
                    parameter.div_(a)
            found[f"{name}: largest relative difference"] = torch.stack(apart).max()
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.zero_()
    return found


def large_margin(margin: int, seed: int, points: int) -> dict[str, Tensor]:
    """L-Softmax of features times a: where its angular margin is kept, and where it is not; AM-Softmax beside it."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(10, 20, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (points,), generator=generator)
    spread = 0.2 * torch.rand(points, 1, generator=generator, dtype=torch.float64)
    features = functional.normalize(w[y]) + spread * torch.randn(points, 20, generator=generator, dtype=torch.float64)
    length, loss = w.norm(dim=1)[y] * features.norm(dim=1), LSoftmax(margin)
    logits = features @ w.T
    lowered = logits.scatter(1, y[:, None], (length * loss.psi(logits.gather(1, y[:, None])[:, 0] / length))[:, None])
    kept = logit_margin(lowered, y)
    found = _scaled_losses(lowered, y)
    cosines = 30 * functional.normalize(features) @ functional.normalize(w).T
    scaled = 30 * functional.normalize(1000 * features) @ functional.normalize(w).T
    additive = [losses.shifted(one, y, margin=0.35, scale=30.0) for one in (cosines, scaled)]
    clear = kept > GAP
    return {
        "kept, %": 100 * (kept > 0).double().mean(),
        "kept: largest rise of the loss": found.diff(dim=0)[:, kept > 0].max(),
        "clear: largest loss at 100": found[-1, clear].max(),
        "not kept: losses that have fallen at 100": (found[-1] < found[0])[kept < 0].sum(),
        "AM-Softmax: largest change of the loss": (additive[1] - additive[0]).abs().max(),
    }


class Kinks(TorchDispatchMode):
    """Within the block: on which side of each kink each sample is, as a list of (B, ...) in `sides`."""

    def __init__(self):
        super().__init__()
        self.sides: list[Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default):
            self.sides.append((out > 0).flatten(1))
        elif function is torch.ops.aten.max_pool2d_with_indices.default:
            self.sides.append(out[1].flatten(1))
        return out


def linear_region(kind: str, seed: int, shown: int) -> dict[str, Tensor | float]:
    """f(x + d) against W(x) (x + d) + b(x), for random d of growing length that flip no kink, and beyond."""
    model, x, _ = subject(kind, seed, shown)
    w, logits = weights(model, x)
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    d = d / column(d.flatten(1).norm(dim=1), d)
    inside, outside, reach = [], [], torch.zeros(len(x), dtype=x.dtype)
    with torch.no_grad(), frozen(model):
        with Kinks() as here:
            model(x)
        for length in torch.logspace(-6, 1, 29, dtype=x.dtype):
            with Kinks() as there:
                found = model(x + length * d)
            pairs = zip(here.sides, there.sides, strict=True)
            same = torch.stack([(a == b).all(1) for a, b in pairs]).all(0)
            linear = logits + torch.einsum("kbi,bi->bk", w, length * d.flatten(1))
            apart = (found - linear).norm(dim=1) / (1e-12 + found.norm(dim=1))
            inside.append(apart[same])
            outside.append(apart[~same])
            reach[same] = length
    return {
        "pairs without a flip": len(torch.cat(inside)),
        "no flip: largest relative difference": torch.cat(inside).max(),
        "beyond: median relative difference": torch.cat(outside).median(),
        "median length without a flip": reach.median(),
    }


def proxy(kind: str, seed: int, shown: int) -> Outcome:
    """The effective margin of correct samples over the distance to the boundary, exact or by a strong attack."""
    if kind == "plane":
        model, x = theory_networks.plane("trained", seed, shown)
        y = model(x).argmax(1)
        right = torch.ones_like(y, dtype=torch.bool)
        distance = planar.planar_margin(model, x, y, theory_networks.WIDE)
    else:
        model, x, y = subject(kind, seed, shown)
        right = model(x).argmax(1) == y
        x, y = x[right], y[right]
        if kind == "linear":
            rows = model.head.weight.detach()
            gaps = model(x).detach()
            gaps = gaps.gather(1, y[:, None]) - gaps
            others = (rows[y][:, None] - rows).norm(dim=2)
            distance = (gaps / others.scatter(1, y[:, None], 1.0)).scatter(1, y[:, None], torch.inf).amin(1)
        else:
            distance = race(model, x, y, norm=2, steps=100, bounds=None).distance
    effective = effective_margin(model, x, y)
    ratio = effective / distance
    metrics = {
        "samples": len(x),
        "within a tenth, %": 100 * ((ratio - 1).abs() <= 0.1).double().mean(),
        "largest relative difference": (ratio - 1).abs().max(),
        "median ratio": ratio.median(),
        "above the distance, %": 100 * (ratio > 1 + 1e-6).double().mean(),
    }
    arrays = {"effective": effective, "distance": distance.detach()}
    for name, values in arrays.items():  # nan of wrong samples
        arrays[name] = values.new_full(right.shape, torch.nan).masked_scatter(right, values)
    return Outcome(metrics, arrays={name: values.numpy() for name, values in arrays.items()})


def together(kind: str, seed: int, shown: int) -> dict[str, Tensor]:
    """The gradient of a logit's sum over the batch against each sample's own; and d f_i / d x_j, in both modes."""
    model, x, _ = subject(kind, seed, shown)
    w, _ = weights(model, x)
    alone = torch.cat([weights(model, one[None])[0] for one in x], 1)
    found = {"evaluation: largest relative difference": ((w - alone).norm(dim=2) / alone.norm(dim=2)).max()}
    for name in ("evaluation", "training"):
        model.train(name == "training")
        asked = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(asked)[0, 0], asked)
        found[f"{name}: largest gradient to another sample"] = gradient[1:].flatten(1).norm(dim=1).max()
    return found


def temperatures(kind: str, seed: int, shown: int) -> dict[str, Tensor | float]:
    """Eq. 7: both of its sides, and its limits, on effective weights of trained nets."""
    model, x, _ = subject(kind, seed, shown)
    w, logits = weights(model, x)
    w = w.transpose(0, 1)  # (B, K, inputs)
    products = w @ w.transpose(1, 2)

    def penalty(t: float) -> Tensor:
        return torch.einsum("bk,bki->bi", (logits / t).softmax(1), w).square().sum(1)

    sides = []
    for t in (0.1, 1.0, 40.0):
        p = (logits / t).softmax(1)
        sides.append((penalty(t) / torch.einsum("bj,bk,bjk->b", p, p, products) - 1).abs().max())
    squared = products.diagonal(dim1=1, dim2=2)
    best, second = logits.topk(2, dim=1).values.T
    clear = best - second > 0.02
    zero, own = penalty(1e-3)[clear], squared.gather(1, logits.argmax(1)[:, None])[clear, 0]
    largest, everything, all_classes = squared[clear].amax(1), penalty(1e8), products.sum((1, 2))
    exact, classes = squared.sum(1), logits.shape[1]
    return {
        "Eq. 7: largest relative difference": max(sides),
        "t = 1e-3: samples": clear.sum(),
        "t = 1e-3: largest relative difference from the predicted row": (zero / own - 1).abs().max(),
        "t = 1e-3: largest relative difference from the largest row": (zero / largest - 1).abs().max(),
        "the predicted row is the largest, %": 100 * (own >= largest).double().mean(),
        "t = 1e8: largest |K^2 penalty - sum|, over K exact": (
            (classes**2 * everything - all_classes).abs() / (classes * exact)
        ).max(),
        "t = 1e8: penalty over the sum of all products": (everything / all_classes).median(),
        "exact over approximate, t = 1": (exact / penalty(1.0)).median(),
        "exact over approximate, t = 1e8": (exact / everything).median(),
    }


def _each(name: str, function: Callable, kinds: Sequence[str], **given) -> dict[str, tuple[Callable, dict]]:
    return {f"{name}, {kind}": (function, {"kind": kind, **given}) for kind in kinds}


DEEP = ("MLP", "CNN", "ResNet")
ROWS: dict[str, tuple[Callable, dict]] = {
    **_each("scaling", scaling, DEEP, shown=500, margins=50),
    **_each("homogeneous", homogeneous, ("MLP", "CNN"), shown=200),
    **{f"L-Softmax, m = {m}": (large_margin, {"margin": m, "points": 500}) for m in (1, 2, 4)},
    **_each("linear region", linear_region, DEEP, shown=100),
    **_each("proxy", proxy, ("linear", "plane", *DEEP), shown=100),
    **_each("together", together, DEEP, shown=20),
    **_each("temperature", temperatures, DEEP, shown=200),
}
measured(
    ROWS,
    name=NAME,
    title="Logits, effective weights and effective margins, checked numerically",
    source="EMR, sections 1 to 4, Eqs. 3, 4 and 7, Figure 1a",
    revisions={"emr theory": 1},
    minutes=0.2,
)
