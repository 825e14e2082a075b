"""AMR: the trade-off between minimum and average margin (Wu, Yu). Its experiments, and what its claims rest on."""

from collections.abc import Mapping

from margins.claims import Evidence, each
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


def _joined(*found: Mapping[str, Evidence | tuple[Evidence, ...]]) -> dict[str, tuple[Evidence, ...]]:
    """What all of these say of each claim: of our own networks, and of the published ones."""
    evidence: dict[str, tuple[Evidence, ...]] = {}
    for one in found:
        for id_, read in one.items():
            evidence[id_] = evidence.get(id_, ()) + each(read)
    return evidence


EVIDENCE = _joined(
    logistic_evidence.EVIDENCE,
    theory_evidence.EVIDENCE,
    networks_evidence.EVIDENCE,
    networks_numbers.EVIDENCE,
    estimate_evidence.EVIDENCE,
    cost_evidence.EVIDENCE,
    defences_evidence.EVIDENCE,
    published_cnn_evidence.EVIDENCE,
)
