"""Losses of a classifier, per sample: each takes logits (B, K) and labels y (B,) int64 and returns (B,) with its graph.

Larger means more wrong, so that an attack ascends. Nothing is reduced: only a training step reduces.
"""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from margins.errors import MarginsError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y, the training loss. Its gradient underflows where the network is confident; see `log_odds`."""
    return functional.cross_entropy(logits, y, reduction="none")


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p_y) / p_y) = log of the sum of exp f_j over j != y, minus f_y.

    A growing function of the cross-entropy, log(exp(CE) - 1): its gradient has the direction of the cross-entropy's,
    without the factor 1 - p_y that underflows for confident networks. Steps that look at the direction only, as FGSM
    and PGD do, are the same as with cross-entropy in exact arithmetic, and do not freeze.
    """
    return _others(logits, y).logsumexp(1) - _own(logits, y)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max over j != y of f_j, minus f_y: above 0 exactly where the sample is misclassified."""
    return _others(logits, y).amax(1) - _own(logits, y)


def cw(logits: Tensor, y: Tensor, kappa: float = 0.0) -> Tensor:
    """-max(f_y - max over j != y of f_j + kappa, 0): the "CW loss" of PGD evaluations, where kappa is 50.

    The margin loss up to a constant until the sample is misclassified by more than kappa; constant beyond. (In Carlini
    and Wagner's own notation, where kappa bounds the gap from the other side, the sign of kappa is the opposite.)
    """
    return -(kappa - margin(logits, y)).clamp(min=0)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The difference of logits ratio (Croce and Hein 2020): -(f_y - max f_j) / (f_(1) - f_(3)), f sorted downwards.

    Does not change when the logits are scaled. Needs K >= 3, else MarginsError.
    """
    if logits.shape[1] < 3:
        raise MarginsError(f"loss 'dlr' needs at least 3 classes, but there are {logits.shape[1]}")
    top = logits.topk(3, 1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(f_y - f_t) / (f_(1) - (f_(3) + f_(4)) / 2) for target classes t (B,): AutoAttack's APGD-T. Needs K >= 4."""
    top = logits.topk(4, 1).values
    return -gap(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def gap(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """f_y - f_t for target classes t (B,): what an attack towards t has to close. Not a loss: it falls."""
    return _own(logits, y) - _own(logits, target)


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(p_reference || p) between the softmax of two rows of logits, (B,): what TRADES crafts with."""
    return functional.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True).sum(1)


#: What attacks ascend by name: "cross-entropy" as its log-odds, which do not underflow; "cw" as in PGD evaluations.
NAMED: dict[str, Loss] = {
    "cross-entropy": log_odds,
    "margin": margin,
    "cw": partial(cw, kappa=50.0),
    "dlr": dlr,
}


def _own(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0]


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -math.inf)
