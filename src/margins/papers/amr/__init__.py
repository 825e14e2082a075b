"""AMR: the trade-off between minimum and average margin (Wu, Yu). Its experiments, and what its claims rest on."""

from margins.claims import joined
from margins.papers.amr import (
    cost_evidence,
    defences_evidence,
    estimate_evidence,
    logistic_evidence,
    networks_evidence,
    networks_numbers,
    published_cnn_evidence,
    theory_evidence,
)

EVIDENCE = joined(
    logistic_evidence.EVIDENCE,
    theory_evidence.EVIDENCE,
    networks_evidence.EVIDENCE,
    networks_numbers.EVIDENCE,
    estimate_evidence.EVIDENCE,
    cost_evidence.EVIDENCE,
    defences_evidence.EVIDENCE,
    published_cnn_evidence.EVIDENCE,
)
