"""What LMA's claims are read from on the small network: on known accuracies, each verdict as it must be."""

import numpy as np
import pytest

from margins import papers
from margins.experiments import find
from margins.papers.lma import mnist, short
from margins.papers.lma.short_evidence import EVIDENCE
from margins.verdicts import page

S, N = 3, 1000


class Results:
    """Clean, PGD-20, APGD-CE and APGD-T accuracies in % of LMA-AT, others."""

    experiment = find(short.SMALL)

    def __init__(self, lma, **others):
        self.rows = {short.LMA: lma} | {name: others.get(name, (60, 40, 38, 36)) for name in ("AT", "TRADES")}

    def diverged(self, row):
        return np.zeros(S, dtype=bool)

    def samples(self, row, column):
        share = self.rows[row][("clean", "PGD-20", "APGD-CE", "APGD-T").index(column)]
        count = N if column in ("clean", "PGD-20") else N // 2
        return (np.arange(count) * 7 + np.arange(S)[:, None]) % count < share / 100 * count


def parts(id_, found):
    return EVIDENCE[id_].read({short.SMALL: found})


def outcome(id_, found):
    return page({"c": parts(id_, found)}, "laptop")["c"].outcome


def test_gaps_and_balance_are_those_of_lma_at_and_the_baselines():
    found = Results((60, 50, 48, 44))
    gap, *_ = parts("lma-abs-gap-reduced", found)
    assert gap.values == pytest.approx([10 - 20] * S) and gap.relation == "<"
    strong, *_ = parts("lma-abs-gap-reduced-aa", found)
    assert strong.values == pytest.approx([16 - 24] * S, abs=0.3)
    balance, *_ = parts("lma-abs-favourable-balance", found)
    assert balance.values == pytest.approx([52 - 48] * S, abs=0.3) and balance.relation == ">"


@pytest.mark.parametrize("id_", EVIDENCE)
def test_what_is_missing_keeps_a_claim_from_being_supported_and_not_from_being_contradicted(id_):
    assert outcome(id_, Results((60, 50, 48, 44))) == "undecided"
    assert outcome(id_, Results((60, 25, 22, 20))) == "contradicted"


def test_the_claims_are_read_from_both_data_sets():
    for id_ in EVIDENCE:
        names = {name for one in papers.EVIDENCE[id_] for name in one.experiments}
        assert {mnist.NAME, short.SMALL} <= names
