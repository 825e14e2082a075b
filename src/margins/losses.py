"""Losses of a classifier, per sample: each takes logits (B, K) and labels y (B,) int64 and returns (B,) with its graph.

Larger means more wrong, so that an attack ascends. Nothing is reduced: only a training step reduces. Those of a pair
take (adversarial logits, clean logits, y) instead, and both logits carry gradient. Finite logits give finite values
and gradients, in float32 too, up to differences of about 1e19 where a difference is squared.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from margins.errors import MarginsError

#: Raised when a change here changes results.
REVISION = 1
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


#: What MMA calls the soft logit margin (Ding et al. 2020, section 3), with the sign of a loss.
soft_logit_margin = log_odds


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max over j != y of f_j, minus f_y: above 0 exactly where the sample is misclassified."""
    return _others(logits, y).amax(1) - _own(logits, y)


def hinge(logits: Tensor, y: Tensor) -> Tensor:
    """max(0, 1 + max over j != y of f_j - f_y): the hinge loss for several classes (Crammer and Singer 2001)."""
    return (1 + margin(logits, y)).clamp(min=0)


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


def boosted_cross_entropy(logits: Tensor, y: Tensor, guarded: bool = True) -> Tensor:
    """MART's BCE: -log p_y - log(1 - max over j != y of p_j) (Wang et al. 2020, Eq. 7; LMA Eq. 7).

    guarded: as in the released code, with log(1.0001 - p_j + 1e-12), which never falls below log(1e-4) and whose
    gradient fades there; else the paper's formula, which grows without bound as the wrong class takes all.
    """
    runner_up = _others(logits.detach(), y).argmax(1)
    if guarded:
        p = logits.softmax(1)
        rest = torch.log(1.0001 - _own(p, runner_up) + 1e-12)
    else:
        rest = _others(logits, runner_up).logsumexp(1) - logits.logsumexp(1)
    return cross_entropy(logits, y) - rest


def multi_margin(logits: Tensor, y: Tensor, delta: float = 0.9, divided: bool = True) -> Tensor:
    """LMA's L': the sum over j != y of max(0, delta - f_y + f_j)^2 (section 4.2).

    divided: by K, as torch.nn.MultiMarginLoss(p=2, margin=delta) does it, whose wording the paper uses; the literal sum
    is K times as large, so that beside the cross-entropy its weight depends on the number of classes.
    """
    hinges = (delta - _own(logits, y)[:, None] + logits).clamp(min=0).square()
    total = hinges.scatter(1, y[:, None], 0.0).sum(1)
    return total / logits.shape[1] if divided else total


def margin_cross_entropy(logits: Tensor, y: Tensor, delta: float = 0.9, divided: bool = True) -> Tensor:
    """Cross-entropy + L', what LMA crafts its adversaries with (Algorithm 1). Unlike `log_odds` it may underflow."""
    return cross_entropy(logits, y) + multi_margin(logits, y, delta, divided)


def shifted(logits: Tensor, y: Tensor, margin: float, scale: float) -> Tensor:
    """Cross-entropy after scale x margin is taken off the true logit, for logits that are scale x cosines.

    The training loss of hypersphere embedding (Pang et al. 2020) and of AM-Softmax. The released code takes the
    exponentials themselves, which overflow in float32 for scales above 88; here none does.
    """
    return cross_entropy(logits - scale * margin * functional.one_hot(y, logits.shape[1]), y)


def pairing(adversarial: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    """The mean over the classes of the logits' squared difference: adversarial logit pairing (Kannan et al. 2018)."""
    return (adversarial - clean).square().mean(1)


def pair_kl(adversarial: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    """KL(p(clean) || p(adversarial)), the regulariser of TRADES (Zhang et al. 2019), with gradient through both.

    The released code takes p(clean) itself, whose gradient is nan where it underflows: in float32 where a clean logit
    lies 104 or more below the largest. Here the logarithm is taken, and the gradient is finite.
    """
    return kl(adversarial, clean)


def mart_kl(adversarial: Tensor, clean: Tensor, y: Tensor, guarded: bool = True) -> Tensor:
    """KL(p(clean) || p(adversarial)) x (1 - p_y(clean)): MART's regulariser; no factor is detached (Wang et al. 2020).

    guarded: as in the released code, with log(p(adversarial) + 1e-12) and 1.0000001 - p_y(clean); else the paper's
    formula. As for `pair_kl`, the released code's gradient is nan where p(clean) underflows, and this one's is not.
    """
    if not guarded:
        own = -torch.expm1(-cross_entropy(clean, y))
        return kl(adversarial, clean) * own
    log_clean = clean.log_softmax(1)
    divergence = (log_clean.exp() * (log_clean - torch.log(adversarial.softmax(1) + 1e-12))).sum(1)
    return divergence * (1.0000001 - _own(log_clean, y).exp())


def mhuber(difference: Tensor, alpha: float) -> Tensor:
    """LMA's modified Huber loss, elementwise: alpha^2 (1 - cos(d / alpha)) up to |d| = alpha pi / 2, a line beyond.

    Near 0 it is d^2 / 2, beyond the knot alpha |d| + (1 - pi / 2) alpha^2; value, slope and curvature agree at the knot
    (LMA section 3; Atsague et al. 2023). 1 - cos is computed as 2 sin^2 of half the angle, so small differences count.
    """
    size = difference.abs()
    near = 2 * alpha**2 * torch.sin(difference / (2 * alpha)).square()
    return torch.where(size <= alpha * math.pi / 2, near, alpha * size + (1 - math.pi / 2) * alpha**2)


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
