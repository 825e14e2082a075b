"""AMM's aggregation and shrinkage: from distances to the regulariser (AMM section 3.3, Eqs. 5 and 6).

Both are pure functions of (distances, correct, labels), the same for the toy page and for networks. All shapes may
have leading dimensions, so that many small runs are trained at once; the last one is the batch.
"""

import torch
from torch import Tensor

from margins.errors import MarginsError

AGGREGATIONS = ("AVG", "MIN")
SHRINKAGES = ("LIN", "EXP", "INV")
#: INV is R(t) = 1 / (1 - t), so t must stay below 1; the paper truncates large norms at a threshold it does not give.
INV_LIMIT = 0.95
#: Raised when a change here changes results.
REVISION = 1


def kept(aggregation: str, distances: Tensor, correct: Tensor, labels: Tensor, share: float = 0.2) -> Tensor:
    """Which samples enter the regulariser: a mask of shape (..., B). It carries no gradient (section 3.3.1).

    AVG keeps every sample. MIN keeps every misclassified sample, and a correctly classified one if its distance is the
    smallest of its class and among the smallest `share` of the batch. Both conditions look at correctly classified
    samples only (the letter of the paper would let a misclassified one take the place); of equal distances the first
    in the batch is kept.
    """
    if aggregation not in AGGREGATIONS:
        raise MarginsError(f"aggregation: {aggregation!r} is not one of {', '.join(AGGREGATIONS)}")
    if aggregation == "AVG":
        return torch.ones_like(correct)
    batch = distances.shape[-1]
    far = torch.where(correct, distances.detach(), torch.inf)
    position = torch.arange(batch, device=distances.device)
    # nearer[..., i, j]: sample j is nearer to the boundary than sample i, or as near and earlier in the batch
    nearer = far.unsqueeze(-2) < far.unsqueeze(-1)
    nearer |= (far.unsqueeze(-2) == far.unsqueeze(-1)) & (position < position.unsqueeze(-1))
    same_class = labels.unsqueeze(-2) == labels.unsqueeze(-1)
    nearest_of_class = ~(nearer & same_class).any(-1)
    near = nearer.sum(-1) < max(1, round(share * batch))
    return ~correct | (nearest_of_class & near)


def shrink(shrinkage: str, t: Tensor) -> Tensor:
    """R(t), elementwise and increasing (section 3.3.2): LIN t, EXP e^t, INV 1 / (1 - t), which needs t below 1.

    Raises MarginsError for INV with a larger t: there it is negative, and its sign would turn the regulariser around.
    """
    if shrinkage not in SHRINKAGES:
        raise MarginsError(f"shrinkage: {shrinkage!r} is not one of {', '.join(SHRINKAGES)}")
    if shrinkage == "LIN":
        return t
    if shrinkage == "EXP":
        return t.exp()
    if (t >= 1).any():
        raise MarginsError(f"t: INV is 1 / (1 - t) and needs t below 1, but t is {t.max().item():.4g}; truncate it")
    return 1 / (1 - t)


def terms(shrinkage: str, distances: Tensor, correct: Tensor, c: float, d: float) -> Tensor:
    """R(-c D) of correct samples, R(d D) of wrong ones, as `penalty` has them; INV's d D is truncated at INV_LIMIT."""
    t = torch.where(correct, -c * distances, d * distances)
    return shrink(shrinkage, t.clamp(max=INV_LIMIT) if shrinkage == "INV" else t)


def penalty(
    aggregation: str, shrinkage: str, distances: Tensor, correct: Tensor, labels: Tensor, c: float = 1.0, d: float = 1.0
) -> Tensor:
    """The regulariser of Eq. 6, shape (...): the mean over the batch of R(-c D) if correct, R(d D) if not.

    `distances` (..., B) are the perturbations' norms, not negative, in input units; `correct` (..., B) is bool;
    `labels` (..., B) the classes. The mean is over the whole batch also where MIN leaves samples out (the paper sets
    their term to zero). A correct sample's term falls as its distance grows, a wrong one's as it shrinks: the
    equations' sign; the sentence above them says the reverse.
    """
    values = terms(shrinkage, distances, correct, c, d)
    return torch.where(kept(aggregation, distances, correct, labels), values, 0.0).mean(-1)
