"""EMR: effective margin regularization (Liu, Chan). Its experiments, and what its claims rest on."""

from margins.papers.emr import networks, theory_evidence

__all__ = ["EVIDENCE", "networks"]

EVIDENCE = {**theory_evidence.EVIDENCE}
