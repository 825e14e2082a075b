"""SPSA: gradient ascent on differences of the logits along random signs, without gradients of the model.

Uesato et al. 2018 ("Adversarial risk and the dangers of evaluating against weak attacks"), section 4: simultaneous
perturbation estimates of the gradient of the margin loss, and Adam on the perturbation. Few probes make it a weak
attack; it is there to tell when gradients mislead.
"""

import math

import torch
from torch import Tensor

from margins import checks, losses
from margins.attacks.found import Bounds, InBall, Oracle, attacking, finite, misclassified
from margins.attacks.geometry import column, into_both, length
from margins.attacks.noise import Noise

#: How many probes the model is asked about at a time: what stays in the caches of a CPU, and what fills a GPU.
AT_ONCE = {"cpu": 512, "cuda": 8192}
#: Adam's constants (Kingma and Ba 2015).
BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-8


def spsa(
    model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float = math.inf,
    eps: float,
    steps: int = 20,
    samples: int = 128,
    delta: float = 0.01,
    lr: float = 0.01,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> InBall:
    """Adam with estimated gradients from x, in the ball of radius eps (norm 2 or math.inf, input units).

    x (B, ...) in `bounds`, y (B,) int64. Each step averages (L(x + delta v) - L(x - delta v)) / (2 delta) v over
    `samples` vectors v of random signs, L the margin loss, makes an Adam step of rate lr, and goes back into ball and
    box. For l2, Adam's second moment is the mean over the sample's entries, since one for each entry would turn the
    step towards the signs. The probes may leave ball and box by delta; what is returned does not. x_adv is the first
    misclassified iterate, else the last. generator: of the probes; None is seed 0.

    No backwards; 1 forward at x and steps x (2 samples + 1) forwards for each sample until it is solved. Raises
    MarginsError for bad input.
    """
    norm, eps, bounds = checks.norm(norm, (2, math.inf)), checks.number("eps", eps, 0), checks.box(bounds)
    checks.whole("steps", steps, 1)
    checks.whole("samples", samples, 1)
    checks.number("delta", delta, 0, above=True)
    checks.number("lr", lr, 0, above=True)
    checks.generator(generator)
    with attacking(model, x, y, bounds) as (oracle, _, wrong):
        noise = Noise(x, generator)
        x, x_adv, success = x.detach(), x.detach().clone(), wrong.clone()
        at_once = AT_ONCE.get(x.device.type, AT_ONCE["cuda"])
        left = (~wrong).nonzero()[:, 0]
        for row in left.split(max(1, at_once // (2 * samples))) if len(left) else ():
            here, streams, first, second = x[row], noise.keep(row), 0.0, 0.0
            for step in range(1, steps + 1):
                gradient = _estimate(oracle, here, y[row], streams, samples, delta, at_once // 2)
                first = BETA_1 * first + (1 - BETA_1) * gradient
                second = BETA_2 * second + (1 - BETA_2) * _square(gradient, norm)
                scale = (second / (1 - BETA_2**step)).sqrt() + TINY
                here = into_both(here + lr / (1 - BETA_1**step) * first / scale, x[row], norm, eps, bounds)
                solved = misclassified(oracle.logits(here), y[row])
                x_adv[row], success[row] = here, solved
                if solved.all():
                    break
                if solved.any():
                    row, here, first, second = (part[~solved] for part in (row, here, first, second))
                    streams = streams.keep(~solved)
    return InBall(x_adv, success, length(x_adv - x, norm), oracle.calls, norm, eps)


def _estimate(oracle: Oracle, x: Tensor, y: Tensor, noise: Noise, samples: int, delta: float, pairs: int) -> Tensor:
    """The estimated gradient of the margin loss at x (n, ...), from `samples` pairs of probes, `pairs` at a time."""
    total, size = torch.zeros_like(x).flatten(1), math.prod(x.shape[1:])
    for begin in range(0, samples, pairs):
        signs = noise.signs(min(pairs, samples - begin), size).to(x.dtype)
        both = x[:, None, None] + delta * torch.stack([signs, -signs], 1).reshape(len(x), 2, -1, *x.shape[1:])
        asked = oracle.logits(both.flatten(0, 2))
        value = losses.margin(asked, y.repeat_interleave(len(asked) // len(x))).reshape(len(x), 2, -1)
        total += torch.bmm((value[:, 0] - value[:, 1])[:, None], signs)[:, 0]
    return finite(total / (2 * delta * samples)).reshape(x.shape)


def _square(gradient: Tensor, norm: float) -> Tensor:
    if norm == math.inf:
        return gradient.square()
    return column(gradient.flatten(1).square().mean(1), gradient)
