"""EMR: effective margin regularization (Liu, Chan). Its experiments, and what its claims rest on."""

from margins.papers.emr import (
    approximate,
    cost,
    large_evidence,
    networks_evidence,
    networks_numbers,
    temperature,
    theory_evidence,
)

EVIDENCE = {
    **theory_evidence.EVIDENCE,
    **networks_evidence.EVIDENCE,
    **networks_numbers.EVIDENCE,
    **approximate.EVIDENCE,
    **cost.EVIDENCE,
    **large_evidence.EVIDENCE,
    **temperature.EVIDENCE,
}
