"""AMR: the trade-off between minimum and average margin (Wu, Yu). Its experiments, and what its claims rest on."""

from margins.papers.amr import logistic_evidence, published_cnn_evidence

EVIDENCE = {**logistic_evidence.EVIDENCE, **published_cnn_evidence.EVIDENCE}
