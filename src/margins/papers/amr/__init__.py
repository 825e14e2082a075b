"""AMR: the trade-off between minimum and average margin (Wu, Yu). Its experiments, and what its claims rest on."""

from margins.papers.amr import defences, logistic_evidence, networks, published_cnn_evidence

#: Tables of methods, which register themselves.
TABLES = (networks, defences)
EVIDENCE = {**logistic_evidence.EVIDENCE, **published_cnn_evidence.EVIDENCE}
