"""Ranks of the class that an image falls to: by hand, as recorded, and what the claims read."""

import numpy as np
import pytest
import torch
from real import needs

from margins.experiments import find
from margins.papers.lma import ranks
from margins.recording import record
from margins.records import Store
from margins.verdicts import page


def test_ranks_are_among_the_wrong_classes():
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0]] * 4 + [[0.0, 1.0, 3.0, 2.0]])
    y, fallen = torch.tensor([0, 0, 0, 0, 0]), torch.tensor([2, 3, 1, 0, 2])
    # the last one's normal network is wrong itself: its favourite is the most probable wrong class
    assert ranks.ranks(logits, y, fallen).tolist() == [2, 3, 4, 1, 2]
    assert ranks.ranks(logits[:1], torch.tensor([2]), torch.tensor([0])).tolist() == [2]


@needs("cifar10")
@pytest.mark.parametrize("row", ranks.ATTACKS)
def test_ranks_are_recorded_of_the_tables_networks(row, tmp_path):
    assert record(ranks.SMALL, scale="quick", rows=(row,), seeds=(0,), results=tmp_path) == 0
    unit = next(u for u in find(ranks.SMALL).units("quick") if (u.row, u.seed) == (row, 0))
    found = Store(tmp_path).load(ranks.SMALL, unit.key)
    rank = Store(tmp_path).arrays(found)["rank"]
    assert found.status == "done" and rank.shape == (20,) and rank.min() >= 1 and rank.max() <= 10
    assert found.metrics["misclassified, %"] == pytest.approx(100 * (rank > 1).mean())


class Results:
    """Of 100 misclassified images so many at each rank, and 50 that withstand."""

    def __init__(self, **counts):
        self.counts = counts

    def samples(self, row, name):
        one = np.repeat([1, *range(2, 11)], [50, *self.counts[row.replace("-", "")]])
        return np.stack([np.roll(one, s) for s in range(3)])


FALLING = (30, 20, 15, 10, 9, 6, 4, 3, 3)


def outcome(id_, **counts):
    return page({"c": list(ranks.EVIDENCE[id_].read({ranks.NAME: Results(**counts)}))}, "gpu")["c"].outcome


def test_claims_are_read_from_shares_of_the_misclassified():
    assert ranks.shares(Results(PGD20=FALLING), "PGD-20")[0].tolist() == list(map(float, FALLING))
    flat = (5, 6, 7, 8, 20, 20, 14, 10, 10)
    for id_ in ranks.EVIDENCE:
        assert outcome(id_, PGD20=FALLING, CW=FALLING) == "supported"
    assert outcome("lma-f1-second-to-fifth", PGD20=FALLING, CW=flat) == "contradicted"
    assert outcome("lma-f1-decreasing-ranks", PGD20=FALLING, CW=flat) == "contradicted"
    assert outcome("lma-f1-both-attacks", PGD20=FALLING, CW=flat) == "contradicted"
