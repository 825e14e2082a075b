"""A measure of `Along`: how a network responds to being attacked, between an image and its adversary."""

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.found import attacking
from margins.attacks.pgd import pgd
from margins.losses import cross_entropy
from margins.margin import effective_margin, logit_margin

#: At the adversary of the true label, and between an image and the adversary of its predicted one.
THERE = ("probability gap", "effective margin")
BETWEEN = ("logits", "logits, relative", "probabilities", "linearity")
#: The mean largest probability to which logits are scaled before probabilities of two networks are compared.
CONFIDENCE = 0.75
#: The scale is looked for from 2^-RANGE to 2^RANGE, in so many halvings.
RANGE, HALVINGS = 20.0, 60


def response(
    model: nn.Module, x: Tensor, y: Tensor, *, of: str, norm: float, eps: float, step_size: float, steps: int = 20
) -> Tensor:
    """(B,) a number of the last iterate x' of PGD on the cross-entropy, from a uniform start.

    of: at the adversary of y, x itself where that is misclassified, "probability gap", the true class's probability
    minus the largest other one, or "effective margin", in input units of the norm. Between x and the adversary of the
    class predicted there, so that all images move: "logits", the squared change of the logits, mean over the classes;
    "logits, relative", that over the variance of x's logits over the classes; "probabilities", the l1 change of the
    softmax; "linearity", by how much the cross-entropy is off its linearisation at x (Qin et al. 2019). The last two
    are of logits at the `confident` scale. eps, step_size: in input units.

    Costs `steps` + 4 forwards and `steps` + 1 backwards, of the effective margin K - 1 more. Raises MarginsError as
    `pgd` does.
    """
    checks.choice("of", of, THERE + BETWEEN)
    with torch.no_grad():
        before = model(x)
    label = y if of in THERE else before.argmax(1)
    moved = pgd(model, x, label, norm=norm, eps=eps, step_size=step_size, steps=steps, keep="last").x_adv
    if of == "effective margin":
        return effective_margin(model, moved, y, norm)
    if of == "linearity":
        return _bend(model, x, moved, label, confident(before))
    with torch.no_grad():
        after = model(moved)
    if of == "probability gap":
        return logit_margin(after.softmax(1), y)
    if of == "probabilities":
        scale = confident(before)
        return ((scale * after).softmax(1) - (scale * before).softmax(1)).abs().sum(1)
    change = (after - before).square().mean(1)
    return change if of == "logits" else change / before.var(1, correction=0)


def _bend(model: nn.Module, x: Tensor, moved: Tensor, label: Tensor, scale: float) -> Tensor:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(scale * logits, y)

    with attacking(model, x, label, None) as (oracle, _, _):
        slope, here, _ = oracle.gradient(x, label, loss)
        there = loss(oracle.logits(moved), label)
    return (there - here - (slope * (moved - x)).flatten(1).sum(1)).abs()


def confident(logits: Tensor, confidence: float = CONFIDENCE) -> float:
    """The scale of logits (B, K) at which the largest probability is `confidence` on average over the batch.

    It rises with the scale, from 1 / K on.
    """
    low, high = -RANGE, RANGE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        reached = (2**middle * logits).softmax(1).amax(1).mean() >= confidence
        low, high = (low, middle) if reached else (middle, high)
    return 2**high
