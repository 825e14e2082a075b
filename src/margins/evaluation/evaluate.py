"""The evaluation of a classifier: attacks, margins and sanity checks, in batches, resumable."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.found import Bounds, Calls, misclassified
from margins.evaluation import attacked, given, identity, probes, sanity
from margins.evaluation.attacked import Target
from margins.evaluation.jobs import Jobs
from margins.evaluation.result import Evaluation, Measured, writable
from margins.evaluation.suites import Attack, suite
from margins.margin import effective_margin
from margins.models import frozen


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    eps: float,
    attacks: str | Mapping[str, Attack] | None = None,
    margins: Mapping[str, given.Margin] | None = None,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 100,
    seed: int = 0,
    resume: Path | str | None = None,
    progress: bool = False,
) -> Evaluation:
    """How a classifier withstands attacks of length eps, how wide its margins are, and whether to believe it.

    model: any torch.nn.Module with logits (B, K) out; evaluated in evaluation mode and left as it was.
    x: (N, ...) in `bounds` (None: no box), on the model's device and of its type. y: (N,) int64.
    norm: 2 or math.inf; eps > 0 in units of the input, less than the box's width (linf) or diagonal (l2).
    attacks: a name of `suite` (None: "strong"), or name -> callable(model, x, y) -> Found, which gets `generator=` too
        if it takes it, and the rest by functools.partial: {"PGD": partial(pgd, norm=2, eps=1, steps=9, step_size=0.3)}.
    margins: name -> callable(model, x, y) -> (B,), with `generator=` likewise; None for the effective margin. The
        distances that minimum-norm attacks find are listed with them, as "NAME distance".
    batch_size: samples at a time; the numbers don't depend on it, the costs do a little.
    seed: of all random numbers.
    resume: a file in a folder that exists; it keeps every finished batch of each attack: the same call goes on from
        there, to the same numbers. Another model (weights, or logits of the first samples), data, attack, parameter or
        version of the code in it is an error.
    progress: show a bar for each attack.

    An attack is not taken at its word: it gets copies of x and y, its examples are checked to lie in ball and box, and
    asked of the model again. Attacks and margins of your own are first tried on two samples, uncounted.
    The sanity checks attack at most 200 samples, spread evenly over x, with 71 gradient steps, 20 more for those that
    are right everywhere within 2 eps and 40 for those with a tiny cross-entropy gradient, and, where no black-box
    attack is among `attacks`, 100 queries. Costs what the attacks cost (`suite`), the checks and a few forwards a
    sample. Raises MarginsError for bad input, before any work, and for an attack that returns what it must not.
    """
    norm, eps, bounds = checks.norm(norm, (2, math.inf)), checks.number("eps", eps, 0, above=True), checks.box(bounds)
    checks.whole("batch_size", batch_size, 1)
    checks.whole("seed", seed)
    own_attacks, own_margins = isinstance(attacks, Mapping), margins is not None
    if attacks is None or isinstance(attacks, str):
        attacks = suite("strong" if attacks is None else attacks, norm=norm, eps=eps, bounds=bounds)
    margins = {"effective margin": partial(effective_margin, norm=norm)} if margins is None else margins
    checks.inside(x, bounds)
    given.callables("attacks", attacks, bounds, least=1)
    given.callables("margins", margins, bounds)
    given.names(attacks, margins)
    given.ball(x, norm, eps, bounds)
    checks.network(model, x)
    path, named = None if resume is None else writable("resume", resume), {}
    training = any(module.training for module in model.modules())
    with _kept(model), frozen(model):
        logits = given.first(model, x, y, batch_size, seed)
        if path is not None:
            settings = {"norm": norm, "eps": eps, "bounds": bounds, "batch_size": batch_size, "seed": seed}
            named = _identity(model, x, y, attacks, margins, settings)
        jobs = Jobs(model, x.device, batch_size, seed, path, named, logits, progress)
        every = Target(x, y, torch.ones(len(x), dtype=torch.bool), norm, eps, bounds)
        given.tried(jobs, every, logits, attacks if own_attacks else {}, margins if own_margins else {})
        clean, _ = jobs.run("clean", partial(_clean, x, y), len(x), {"correct": torch.bool})
        target = replace(every, correct=clean["correct"])
        results = {name: attacked.run(jobs, f"attack {name!r}", attack, target) for name, attack in attacks.items()}
        measured = {name: _measure(jobs, name, margin, x, y) for name, margin in margins.items()}
        nearest = {name: one for name, one in results.items() if one.minimum_norm}
        measured |= {f"{name} distance": Measured(one.distance, one.cost) for name, one in nearest.items()}
        findings = probes.survey(jobs, target, logits.shape[1], attacks, results)
    judged = sanity.judge(findings, results, training)
    return Evaluation(norm, eps, bounds, seed, clean["correct"], results, measured, judged, findings.cost)


def _identity(model, x: Tensor, y: Tensor, attacks, margins, settings: Mapping) -> dict[str, str]:
    parts = {"attacks": identity.describe(attacks), "margins": identity.describe(margins), **settings}
    digests = {"x": identity.digest(x), "y": identity.digest(y), "code": identity.code()}
    return {key: json.dumps(value) for key, value in parts.items()} | digests | {"model": identity.weights(model)}


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Buffers as they were, afterwards: a model may move them in evaluation mode too (and fails a check by it)."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, before[name]):
                    buffer.copy_(before[name])


def _clean(x: Tensor, y: Tensor, model: nn.Module, rows: slice, generator: torch.Generator):
    with frozen(model), torch.no_grad():
        logits = checks.logits(model(x[rows]), len(x[rows]))
    return {"correct": ~misclassified(logits, y[rows])}, Calls(forward=len(logits))


def _measure(jobs: Jobs, name: str, margin: given.Margin, x: Tensor, y: Tensor) -> Measured:
    def part(model: nn.Module, rows: slice, generator: torch.Generator):
        return given.measure(model, name, margin, x[rows], y[rows], generator)

    found, cost = jobs.run(f"margin {name}", part, len(x), {"values": torch.float64})
    return Measured(found["values"], cost)
