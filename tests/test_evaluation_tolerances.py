"""Each sanity check fails beyond its tolerance and passes within it, given what the probes found."""

from dataclasses import replace

import pytest
import torch

from margins.evaluation import probes, sanity
from margins.evaluation.result import Cost
from margins.margin import Rate, rate


def findings(n=100, **changed):
    """Findings without a fault, but for those given: name -> how many samples a probe left, or a column."""
    left = {"fgsm": 60, "half": 70, "double": 20, "unbounded": 0}
    left |= dict.fromkeys(("log-odds", "cross-entropy", "literal", "margin"), 50)
    left |= {key.replace("_", "-"): value for key, value in changed.items() if isinstance(value, int)}
    robust = {key: torch.arange(n) < count for key, count in left.items()}
    yes, no, zero = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool), torch.zeros(n)
    looks = {"sum": zero, "least": zero - 1, "most": zero + 1, "repeated": zero, "split": zero, "literal": zero + 1}
    looks |= {"connected": yes, "zero": no, "nan": no, "moved": no}
    suite = robust.pop("suite", torch.arange(n) < 45)
    return probes.Findings(robust, suite, looks, 0, n, Cost(0, 0, 0), Rate(0.8, 0.7, 0.9), n, 10)


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        ({}, []),
        ({"fgsm": 45}, []),  # 5 broken by FGSM alone: by chance in 3 of 100 runs
        ({"fgsm": 44}, ["one step against many"]),
        ({"double": 51}, []),
        ({"double": 52}, ["accuracy falls with eps"]),
        ({"half": 48}, ["accuracy falls with eps"]),
        ({"unbounded": 1}, []),
        ({"unbounded": 2}, ["unbounded attack"]),
        ({"suite": 52}, []),
        ({"suite": 53}, ["margin loss"]),
        ({"cross_entropy": 52}, []),
        ({"cross_entropy": 53}, ["vanishing gradients"]),
        ({"cross_entropy": 60, "log_odds": 60, "literal": 60}, []),  # a poor guide, but not by underflow
        ({"cross_entropy": 60, "margin": 58}, []),  # what is lost is found by no other loss either
        ({"literal": 80}, []),
    ],
)
def test_tolerances(change, caught):
    found = sanity.judge(findings(**change), {}, False)
    assert [check.name for check in found if check.status == "failed"] == caught


def test_a_single_sample_of_a_small_set_is_no_failure():
    for change in ({"fgsm": 9}, {"unbounded": 1}, {"suite": 11}):
        base = {"fgsm": 10, "half": 12, "double": 5, "suite": 10, "log_odds": 10, "literal": 10}
        found = sanity.judge(findings(20, **base | {"cross_entropy": 10, "margin": 10} | change), {}, False)
        assert all(check.status == "passed" for check in found)


@pytest.mark.parametrize(
    ("right", "n", "classes", "status"),
    [
        (20, 100, 10, "passed"), (15, 100, 10, "failed"), (10, 100, 10, "failed"), (0, 1000, 10, "failed"),
        (6, 10, 10, "passed"), (2, 10, 10, "passed"), (1, 10, 10, "failed"), (12, 20, 2, "passed"),
        (10, 20, 2, "failed"), (0, 9, 10, "not applicable"), (600, 1000, 2, "passed"), (520, 1000, 2, "failed"),
    ],
)  # fmt: skip
def test_an_accuracy_of_chance_is_a_failure(right, n, classes, status):
    clean = rate(torch.arange(n) < right)
    found, *others = sanity.judge(replace(findings(), clean=clean, samples=n, classes=classes), {}, False)
    assert (found.name, found.status) == ("clean accuracy", status)
    assert {one.status for one in others} == {"passed"}


def test_notes():
    def notes(**change):
        return {check.name for check in sanity.judge(findings(**change), {}, False) if check.note}

    assert notes() == set()
    assert notes(literal=80) == {"vanishing gradients"}
    assert notes(log_odds=60, cross_entropy=60, literal=60) == {"margin loss"}


def test_one_step_and_black_box_are_judged_by_what_they_add():
    found = sanity.judge(replace(findings(), only_black_box=2), {}, False)
    assert [check.name for check in found if check.status == "failed"] == ["black box against white box"]
    found = sanity.judge(replace(findings(), only_black_box=1), {}, False)
    assert all(check.status != "failed" for check in found)


@pytest.mark.parametrize(
    ("outputs", "status"),
    [
        (lambda z: z, "passed"),
        (lambda z: z - z.mean(1, keepdim=True), "passed"),  # a centred head
        (lambda z: z.softmax(1), "failed"),
        (lambda z: 10 * z.softmax(1), "failed"),
        (lambda z: z.sigmoid(), "failed"),
        (lambda z: z.relu(), "passed"),
    ],
)
def test_outputs_that_look_like_probabilities(outputs, status):
    z = outputs(torch.randn(100, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3)
    base = findings()
    looks = dict(base.looks) | {"sum": z.sum(1), "least": z.amin(1), "most": z.amax(1)}
    found = {check.name: check.status for check in sanity.judge(replace(base, looks=looks), {}, False)}
    assert found["probabilities as outputs"] == status
