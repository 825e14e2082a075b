"""AMM's aggregation and shrinkage against values by hand, their definitions and finite differences."""

import pytest
import torch

from margins.errors import MarginsError
from margins.penalties import amm

D = torch.float64


def test_min_keeps_the_nearest_of_each_class_if_it_is_near():
    distances = torch.tensor([0.5, 0.1, 0.9, 0.2, 0.3, 2.0, 2.1, 2.2, 2.3, 2.4], dtype=D)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    correct = torch.ones(10, dtype=torch.bool)
    # A fifth of ten are two: class 1's nearest is only the sixth, so it is left out
    assert amm.kept("MIN", distances, correct, labels).nonzero().flatten().tolist() == [1]
    assert amm.kept("MIN", distances, correct, labels, share=0.6).nonzero().flatten().tolist() == [1, 5]


def test_min_keeps_every_wrong_sample_and_compares_the_correct_ones_only():
    distances = torch.tensor([0.01, 0.2, 0.3, 5.0, 6.0], dtype=D)
    labels = torch.tensor([0, 0, 0, 1, 1])
    correct = torch.tensor([False, True, True, True, False])
    assert amm.kept("MIN", distances, correct, labels, share=0.4).tolist() == [True, True, False, False, True]


def test_of_equal_distances_the_first_is_kept():
    distances, labels = torch.full((6,), 0.7, dtype=D), torch.tensor([1, 0, 0, 1, 1, 0])
    kept = amm.kept("MIN", distances, torch.ones(6, dtype=torch.bool), labels, share=1.0)
    assert kept.nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("aggregation", amm.AGGREGATIONS)
def test_stacked_runs_are_what_they_are_alone(aggregation):
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(3, 4, 20, generator=generator, dtype=D)
    correct = torch.rand(3, 4, 20, generator=generator) < 0.8
    labels = torch.randint(0, 3, (4, 20), generator=generator).expand(3, 4, 20)
    together = amm.penalty(aggregation, "EXP", distances, correct, labels)
    for i in range(3):
        for j in range(4):
            alone = amm.penalty(aggregation, "EXP", distances[i, j], correct[i, j], labels[i, j])
            assert torch.equal(together[i, j], alone)


def test_the_order_of_the_batch_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    distances = torch.rand(30, generator=generator, dtype=D)
    correct, labels = torch.rand(30, generator=generator) < 0.7, torch.randint(0, 4, (30,), generator=generator)
    order = torch.randperm(30, generator=generator)
    kept = amm.kept("MIN", distances, correct, labels)
    assert torch.equal(kept[order], amm.kept("MIN", distances[order], correct[order], labels[order]))


def test_shrinkage_by_hand():
    t = torch.tensor([-3.0, -1.0, 0.0, 0.5, 0.95], dtype=D)
    assert torch.equal(amm.shrink("LIN", t), t)
    torch.testing.assert_close(amm.shrink("EXP", t), t.exp())
    torch.testing.assert_close(amm.shrink("INV", t), torch.tensor([0.25, 0.5, 1.0, 2.0, 20.0], dtype=D))


def test_inv_leaves_its_domain_with_an_error_and_terms_truncate_before():
    with pytest.raises(MarginsError, match="t: INV is 1 / \\(1 - t\\) and needs t below 1, but t is 4; truncate it"):
        amm.shrink("INV", torch.tensor([0.5, 4.0]))
    distances, correct = torch.tensor([3.0, 3.0], dtype=D), torch.tensor([True, False])
    torch.testing.assert_close(amm.terms("INV", distances, correct, 1.0, 1.0), torch.tensor([0.25, 20.0], dtype=D))


@pytest.mark.parametrize("shrinkage", amm.SHRINKAGES)
@pytest.mark.parametrize("aggregation", amm.AGGREGATIONS)
def test_penalty_is_the_mean_over_the_batch_of_equation_6(aggregation, shrinkage):
    generator = torch.Generator().manual_seed(2)
    distances = torch.rand(20, generator=generator, dtype=D)
    correct, labels = torch.rand(20, generator=generator) < 0.6, torch.randint(0, 2, (20,), generator=generator)
    kept = amm.kept(aggregation, distances, correct, labels)
    r = {"LIN": lambda t: t, "EXP": torch.exp, "INV": lambda t: 1 / (1 - min(t, torch.tensor(0.95, dtype=D)))}[
        shrinkage
    ]
    by_hand = sum(
        r(-2 * distance) if right else r(0.5 * distance)
        for distance, right, counts in zip(distances, correct, kept, strict=True)
        if counts
    )
    ours = amm.penalty(aggregation, shrinkage, distances, correct, labels, c=2, d=0.5)
    torch.testing.assert_close(ours, by_hand / 20, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shrinkage", amm.SHRINKAGES)
@pytest.mark.parametrize("aggregation", amm.AGGREGATIONS)
def test_gradient_by_finite_differences_and_its_sign(aggregation, shrinkage):
    generator = torch.Generator().manual_seed(3)
    distances = torch.rand(12, generator=generator, dtype=D, requires_grad=True)
    correct, labels = torch.arange(12) % 3 != 0, torch.arange(12) % 2
    (gradient,) = torch.autograd.grad(amm.penalty(aggregation, shrinkage, distances, correct, labels, d=0.8), distances)
    for i in range(12):
        step = torch.zeros(12, dtype=D)
        step[i] = 1e-6
        with torch.no_grad():
            ends = [amm.penalty(aggregation, shrinkage, distances + s * step, correct, labels, d=0.8) for s in (1, -1)]
        assert abs((ends[0] - ends[1]) / 2e-6 - gradient[i]) < 1e-8
    # Eq. 6, not the sentence above it: larger distances of correct samples are rewarded, smaller ones of wrong samples
    kept = amm.kept(aggregation, distances, correct, labels)
    assert (gradient[kept & correct] < 0).all() and (gradient[kept & ~correct] > 0).all()
    assert (gradient[~kept] == 0).all()


def test_unknown_names_are_told():
    tensors = torch.ones(2), torch.ones(2, dtype=torch.bool), torch.zeros(2)
    with pytest.raises(MarginsError, match="aggregation: 'MAX' is not one of AVG, MIN"):
        amm.penalty("MAX", "LIN", *tensors)
    with pytest.raises(MarginsError, match="shrinkage: 'SQR' is not one of LIN, EXP, INV"):
        amm.penalty("AVG", "SQR", *tensors)
