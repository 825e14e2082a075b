"""LMA-AT: a margin loss and moving averages of logits. Its experiments, and what its claims rest on."""

from margins.claims import joined
from margins.papers.lma import (
    cost,
    input_gradient,
    large_evidence,
    mnist_evidence,
    moving_average,
    ranks,
    short_evidence,
    theory_evidence,
)

EVIDENCE = joined(
    theory_evidence.EVIDENCE,
    input_gradient.EVIDENCE,
    moving_average.EVIDENCE,
    mnist_evidence.EVIDENCE,
    short_evidence.EVIDENCE,
    large_evidence.EVIDENCE,
    cost.EVIDENCE,
    ranks.EVIDENCE,
)
