"""What is given to `evaluate`, tried before any work: the ball, the model, each attack and margin."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.found import Bounds, Calls, misclassified
from margins.errors import MarginsError
from margins.evaluation import attacked
from margins.evaluation.attacked import Target
from margins.evaluation.jobs import Jobs, seeded
from margins.evaluation.suites import Attack

Margin = Callable[..., Tensor]


class Fooled(nn.Module):
    """`classes` equal logits for everything: misclassified, so that an attack ends after its own checks."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.flatten(1).sum(1, keepdim=True) + x.new_zeros(self.classes)


def ball(x: Tensor, norm: float, eps: float, bounds: Bounds) -> None:
    """Raise MarginsError where the ball around every point of the box holds all of it."""
    if bounds is None:
        return
    width = bounds[1] - bounds[0]
    what, most = ("width", width) if norm == math.inf else ("diagonal", width * math.sqrt(math.prod(x.shape[1:])))
    if eps >= most:
        meant = f"; was {eps:g}/255 meant?" if width == 1 else ""
        allowed = f"less than the {what} {most:g} of the box {bounds}"
        raise MarginsError(f"eps must be {allowed}, but is {eps:g} and spans the whole box{meant}")


def callables(name: str, given, bounds: Bounds, least: int = 0) -> None:
    """Raise MarginsError unless `given` maps names to functions that can be called with model, x and y."""
    good = isinstance(given, Mapping) and all(isinstance(key, str) and callable(one) for key, one in given.items())
    if not good or len(given) < least:
        allowed = f"a mapping of names to callables{' (at least one)' * least}"
        raise MarginsError(f"{name} must be {allowed}, but is {given!r}")
    for key, one in given.items():
        function, before, keywords = _unpacked(one)
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some built-in functions have none
            continue
        try:
            bound = signature.bind(
                *before, None, None, None, **attacked.keywords(function, torch.Generator()) | keywords
            )
        except TypeError as error:
            raise MarginsError(
                f"{name}[{key!r}] must be callable as f(model, x, y), but {error}: give its other arguments by"
                " functools.partial, or wrap it, as in lambda model, x, y: ..."
            ) from None
        bound.apply_defaults()
        if ours(one) and bounds is not None and "bounds" in bound.arguments:
            box = checks.box(bound.arguments["bounds"])
            if box is None or box[0] < bounds[0] or box[1] > bounds[1]:
                raise MarginsError(
                    f"{name}[{key!r}] has bounds={box}: give the attack bounds={bounds}, the evaluation's"
                )


def names(attacks: Mapping[str, Attack], margins: Mapping[str, Margin]) -> None:
    """Raise MarginsError where a margin has the name under which an attack's distances are listed."""
    if clash := sorted({f"{name} distance" for name in attacks} & set(margins)):
        raise MarginsError(f"margins has {clash[0]!r}, the name of that attack's own distances: choose another name")


def ours(attack: Attack) -> bool:
    """Whether it is an attack of this package, or a functools.partial of one."""
    return str(getattr(_unpacked(attack)[0], "__module__", "")).startswith("margins.attacks")


def _unpacked(function: Callable) -> tuple[Callable, tuple, dict]:
    """What a functools.partial calls, with its arguments: inspect.signature hides a keyword that is unknown."""
    before, keywords = (), {}
    while isinstance(function, partial):
        before, keywords, function = function.args + before, function.keywords | keywords, function.func
    return function, before, keywords


def first(model: nn.Module, x: Tensor, y, batch_size: int, seed: int) -> Tensor:
    """The logits (B, K) of the first batch: one forward, the first that the model sees.

    Raises MarginsError where the model fails on x, does not return logits, or y are no labels for them.
    """
    batch = x[:batch_size]
    with torch.no_grad(), seeded(seed, "first", x.device):
        try:
            found = model(batch)
        except MarginsError:
            raise
        except Exception as error:
            why = str(error).strip() or "no message"
            raise MarginsError(
                f"model failed on x of shape {tuple(batch.shape)}: {type(error).__name__}: {why}"
            ) from error
        logits = checks.logits(found, len(batch))
    if isinstance(y, Tensor) and y.device != x.device:
        raise MarginsError(f"y must be on x's device {x.device}, but is on {y.device}")
    checks.labels(y, len(x), logits.shape[1])
    return logits


def tried(
    jobs: Jobs, whole: Target, logits: Tensor, attacks: Mapping[str, Attack], margins: Mapping[str, Margin]
) -> None:
    """Call each attack and margin, as it will be called, on the first two samples that are right, else the first two.

    The package's own attacks are asked with a model that is wrong already, which costs nothing, the others with the
    model. Those of which a resumed evaluation has a batch are left out. Raises MarginsError for what comes back.
    """
    right = ~misclassified(logits, whole.y[: len(logits)])
    rows = (right if right.any() else torch.ones_like(right)).nonzero()[:2, 0]
    few = Target(whole.x[rows], whole.y[rows], right[rows].cpu(), whole.norm, whole.eps, whole.bounds)
    parts = {
        f"attack {name!r}": partial(
            attacked.once, Fooled(logits.shape[1]) if ours(one) else jobs.model, f"attack {name!r}", one, few
        )
        for name, one in attacks.items()
    } | {f"margin {name}": partial(measure, jobs.model, name, one, few.x, few.y) for name, one in margins.items()}
    for name, part in parts.items():
        if len(rows) and not jobs.begun(name):
            with seeded(jobs.seed, name, whole.x.device) as generator:
                part(generator)


def measure(model: nn.Module, name: str, margin: Margin, x: Tensor, y: Tensor, generator: torch.Generator):
    """{"values": what `margin` says (B,)} and what it asked of the model; MarginsError for another result."""
    with _counted(model) as calls:
        values = margin(model, x.clone(), y.clone(), **attacked.keywords(margin, generator))
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.shape != y.shape:
        given = f"a {values.dtype} tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else (
            f"a {type(values).__name__}"
        )  # fmt: skip
        raise MarginsError(
            f"margin {name!r} must return a tensor of floating-point numbers of shape {tuple(y.shape)}, but returned"
            f" {given}: give a function of model, x and y that returns signed margins (B,)"
        )
    return {"values": values}, Calls(*calls)


@contextmanager
def _counted(model: nn.Module) -> Iterator[list[int]]:
    """[forwards, backwards] in samples: calls of the model, and gradients that come back through its output."""
    calls = [0, 0]

    def back(gradient: Tensor) -> None:
        calls[1] += len(gradient)

    def forward(module: nn.Module, given: tuple, output) -> None:
        if isinstance(output, Tensor) and output.ndim:
            calls[0] += len(output)
            if output.requires_grad:
                output.register_hook(back)

    handle = model.register_forward_hook(forward)
    try:
        yield calls
    finally:
        handle.remove()
