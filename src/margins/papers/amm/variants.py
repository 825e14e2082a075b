"""Other ways to train Table 1's MLP: first order, the hinge loss, Deep Defense, other strengths of the regulariser."""

from dataclasses import replace

import numpy as np

from margins import losses, methods
from margins.claims import Difference, Evidence, Missing
from margins.experiments import Results
from margins.methods.baselines import plain
from margins.methods.regularised import DEEP_DEFENSE
from margins.papers.amm.mnist import AGGREGATION, REFERENCE, amm, register
from margins.papers.amm.mnist_evidence import OURS, deepfool, error, printed, race
from margins.papers.amm.mnist_evidence import REFERENCE as PLAIN
from margins.papers.paired import difference

GRADIENTS, HINGE, DEFENSE, STRENGTH = "amm/gradients", "amm/hinge", "amm/deep-defense", "amm/strength"
FIRST, ON, DEFENDED = "MIN+EXP, first order", "reference, fine-tuned", "Deep Defense"

register(
    GRADIENTS,
    {FIRST: amm("MIN", "EXP", second_order=False)},
    "AMM without high-order gradients on MNIST",
    "AMM, section 4.3.1, Table 2 and Figure 3",
    minutes=6,
)
register(
    HINGE,
    {
        "reference, hinge": replace(plain(), terms=(methods.Term(losses.hinge, "clean"),)),
        "MIN+EXP, hinge": amm("MIN", "EXP", loss=losses.hinge),
    },
    "AMM with the hinge loss on MNIST",
    "AMM, section 3.3.4",
    minutes=7,
)
register(
    DEFENSE,
    # as many epochs at the same rate, without the regulariser
    {ON: replace(plain(), start=REFERENCE, recipe=DEEP_DEFENSE), DEFENDED: methods.deep_defense(start=REFERENCE)},
    "Deep Defense on MNIST",
    "AMM, section 3.1; Yan et al. 2018",
    minutes=2,
)
#: MIN keeps a tenth of the correct samples of a batch at most, so that its lambda weighs a tenth of AVG's, and its c
#: differs too: rows in which each has the other's strength.
OTHER_STRENGTHS = {
    "MIN+EXP, lambda 320": methods.amm(320.0, aggregation="MIN", shrinkage="EXP", c=2.0, d=1.0),
    "AVG+EXP, lambda 3.2": methods.amm(3.2, aggregation="AVG", shrinkage="EXP", c=2.0, d=2.0),
    "MIN+LIN, c 4": methods.amm(1.0, aggregation="MIN", shrinkage="LIN", c=4.0, d=4.0),
}
register(
    STRENGTH,
    OTHER_STRENGTHS,
    "AMM's aggregations at each other's strength on MNIST",
    "AMM, section 3.3.3, Table 1",
    minutes=8,
)


def _against(
    experiment: str, label: str, one: str, other: tuple[str, str], measure, relation: str, unit: str = "points"
):
    """One difference of a row here to one of another table."""

    def read(at):
        return [difference(label, (at[experiment], one), (at[other[0]], other[1]), measure, relation, unit=unit)]

    return Evidence((experiment, AGGREGATION), read)


def _helps(at):
    delta = 0.28 if at[GRADIENTS].scale == "paper" else 0.0
    return [difference("error", (at[GRADIENTS], FIRST), (at[AGGREGATION], OURS), error, ">", delta)]


def _number(at):
    value = printed("table2", method="w/o high order gradients")
    return [difference("error", (at[GRADIENTS], FIRST), value, error, "within", 0.2)]


def _same(at):
    return [difference("error", (at[HINGE], "MIN+EXP, hinge"), (at[AGGREGATION], OURS), error, "within", 0.1)]


def _defended(at):
    ours = at[DEFENSE], DEFENDED
    return [
        difference("error", ours, (at[AGGREGATION], PLAIN), error, "<"),
        difference("error", ours, (at[DEFENSE], ON), error, "<"),
        Missing("LeNet"),
    ]


def _medians(results: Results, row: str) -> np.ndarray:
    return np.median(race(results, row), axis=1)


def _farther(at):
    ratio = np.log(_medians(at[DEFENSE], DEFENDED) / _medians(at[AGGREGATION], PLAIN))
    return [Difference("log of Race's median distance, Deep Defense / reference", ratio, ">"), Missing("LeNet")]


EVIDENCE = {
    "amm-t2-no-high-order-beats-reference": _against(GRADIENTS, "error", FIRST, (AGGREGATION, PLAIN), error, "<"),
    "amm-t2-high-order-helps": Evidence((GRADIENTS, AGGREGATION), _helps),
    "amm-t2-number-without-high-order": Evidence((GRADIENTS,), _number),
    "amm-s311-no-high-order-weaker-on-margin": _against(
        GRADIENTS, "DeepFool", FIRST, (AGGREGATION, OURS), deepfool, "<", "input units"
    ),
    "amm-s334-loss-choice-irrelevant": Evidence((HINGE, AGGREGATION), _same),
    "amm-s32-dd-clean-accuracy-up": Evidence((DEFENSE, AGGREGATION), _defended),
    "amm-s31-dd-helps-against-cw": Evidence((DEFENSE, AGGREGATION), _farther),
}
