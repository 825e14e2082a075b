"""EMR: effective margin regularization (Liu, Chan). Its experiments, and what its claims rest on."""

from margins.papers.emr import cost, networks_evidence, theory_evidence

EVIDENCE = {**theory_evidence.EVIDENCE, **networks_evidence.EVIDENCE, **cost.EVIDENCE}
