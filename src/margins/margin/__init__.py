"""What a margin is: one signed number per sample, shape (B,), positive when the sample is classified correctly.

    linear_margin, binary_margin   exact distance to the decision boundary of a linear classifier   unit: of the input
    effective_margin               the same for the model linearised at x (EMR, Eq. 3)               unit: of the input
    deepfool_margin                length of the DeepFool perturbation (AMM): not below the distance unit: of the input
    lipschitz_margin               estimate of a lower bound by sampled gradients (AMR, Theorem 3)   unit: of the input
    certified_radius, bracket      proven lower bound; the same with an attack's upper bound        unit: of the input
    feature_margin                 exact distance in the space of the last layer's input             unit: of those
    logit_margin                   the gap between two logits                                        no unit

`minimum` and `average` sum margins up, `accuracy_at` tells the robust accuracy at any eps from distances.

A distance is measured in the lp norm given by `norm` (1, 2, math.inf or any other p >= 1; attacks and bounds take 2 and
math.inf). In linear models and linearised ones the dual norm of the gap's gradient divides the gap: a gap of zero is a
margin of zero; a gap that no change of the input can close (its gradient is zero) is an infinite margin with the gap's
sign.

Two conventions meet for wrong samples. AMR (Eq. 6) takes minus the distance to the boundary of the *predicted* class's
region, and so do all distances here (`planar.planar_margin` too) but two. EMR (Eq. 3) takes the true class's least
ratio, which for a wrong sample is minus the distance to the *farthest* of the class boundaries that it has to cross to
be right: `effective_margin`, `feature_margin`. On a linear model they agree for correct samples, and for wrong ones
where K = 2; else EMR's is the lower one or the same.
"""

from margins.margin.bracket import Bracket, bracket
from margins.margin.certified import certified_radius
from margins.margin.deepfool import deepfool_margin
from margins.margin.effective import effective_margin, effective_point
from margins.margin.exact import binary_margin, feature_margin, linear_margin, logit_margin
from margins.margin.lipschitz import LipschitzMargin, lipschitz_margin, spectral_norms
from margins.margin.summary import Rate, accuracy_at, average, minimum, rate

__all__ = [
    "Bracket",
    "LipschitzMargin",
    "Rate",
    "accuracy_at",
    "average",
    "binary_margin",
    "bracket",
    "certified_radius",
    "deepfool_margin",
    "effective_margin",
    "effective_point",
    "feature_margin",
    "linear_margin",
    "lipschitz_margin",
    "logit_margin",
    "minimum",
    "rate",
    "spectral_norms",
]
