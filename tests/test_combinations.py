"""Any craft with any terms, weights and head trains without nan, or is refused by a message that says why."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import data, network

from margins import losses
from margins.errors import MarginsError
from margins.methods import METHODS, PGD, Phase, Ramp, Row, Steps, Term
from margins.methods.mma import Counted, MMACraft
from margins.methods.softmax import LSoftmax
from margins.methods.weights import GAIRAT, MAIL
from margins.models.heads import Head
from margins.penalties.context import Threat
from margins.penalties.deepfool import DeepFoolMargin
from margins.penalties.emr import ApproximateEMR
from margins.penalties.gradient import InputGradient
from margins.penalties.moving_average import MovingAverage
from margins.training import Recipe, train

NETS = ("mlp", "cnn", "modal", "norm", "dropout")
#: What a refusal may say: the reasons there are, each naming what to change.
REASONS = (
    "nothing crafts them",
    "nothing crafts adversaries",
    "it needs the craft MMACraft",
    "needs a craft that counts",
    "linear head without bias",
    "at must be one of",
    "all batches must have the same size",
)

CRAFTS = st.one_of(
    st.none(),
    st.builds(
        PGD,
        loss=st.sampled_from(["cross-entropy", "kl", "margin", "cw", "dlr", losses.margin_cross_entropy]),
        start=st.sampled_from(["none", "normal", "uniform", "sphere", "image"]),
        mode=st.sampled_from(["eval", "train"]),
        steps=st.sampled_from([None, 1, 2]),
        counted=st.booleans(),
    ),
    st.builds(MMACraft, reach=st.sampled_from([0.5, 4.0]), search_mode=st.sampled_from(["eval", "train"])),
)
MAILS = st.builds(MAIL, st.sampled_from([2.0, 30.0]), st.sampled_from([-0.5, 0.05]), st.booleans())
GAIRATS = st.builds(GAIRAT, st.sampled_from([-1.0, 3.0]), st.sampled_from(["released", "paper"]))
SINGLE = st.sampled_from(
    [
        losses.cross_entropy,
        losses.boosted_cross_entropy,
        partial(losses.boosted_cross_entropy, guarded=False),
        losses.multi_margin,
        partial(losses.multi_margin, divided=False),
        partial(losses.shifted, margin=0.2, scale=10.0),
        losses.log_odds,
    ]
)
PAIRS = st.sampled_from([losses.pairing, losses.pair_kl, losses.mart_kl, partial(losses.mart_kl, guarded=False)])
PARTS = st.one_of(
    st.builds(InputGradient, st.sampled_from(["train", "eval"])),
    st.builds(ApproximateEMR, st.sampled_from([0.1, 40.0]), st.sampled_from(["train", "eval"])),
    st.builds(
        DeepFoolMargin, st.sampled_from(["AVG", "MIN"]), st.sampled_from(["LIN", "INV", "EXP"]), steps=st.just(2)
    ),
)
SOFTMAX = st.builds(LSoftmax, st.sampled_from([1, 4]))
AVERAGES = st.builds(MovingAverage, st.sampled_from([0.0, 0.2]), reading=st.sampled_from(["batch", "sample", "class"]))
COEFFICIENTS = st.sampled_from([1.0, 0.1, Steps(0.5, ((0.5, 0.1),)), Ramp(2.0, 0.5)])
HEADS = st.sampled_from([None, Head("bias-free"), Head("centred"), Head("cosine", 5.0)])


@st.composite
def phases(draw, head=None):
    """A craft, and terms that fit it and the head, but for one in ten."""
    craft = draw(CRAFTS)
    odd = draw(st.integers(0, 9)) == 0
    single = [SINGLE, PARTS] + [SOFTMAX] * (odd or head == Head("bias-free"))
    weights = [st.none()] + [MAILS] * (odd or craft is not None) + [GAIRATS] * (odd or getattr(craft, "counted", False))
    weights += [st.just(Counted())] * (odd or isinstance(craft, MMACraft))
    clean = st.builds(Term, st.one_of(single), st.just("clean"), COEFFICIENTS, st.one_of(weights))
    adversarial = st.builds(Term, st.one_of(single), st.just("adversarial"), COEFFICIENTS, st.one_of(weights))
    both = st.builds(Term, st.one_of(PAIRS, AVERAGES), st.just("both"), COEFFICIENTS, st.one_of(weights))
    kinds = [clean] + [adversarial, both] * (odd or craft is not None)
    if odd:
        kinds.append(st.builds(Term, st.one_of(PARTS, AVERAGES), st.sampled_from(PLACES), COEFFICIENTS))
    terms = draw(st.lists(st.one_of(kinds), min_size=1, max_size=3))
    return craft, (Term(losses.cross_entropy, "clean", 0.1), *terms)


@st.composite
def rows(draw):
    """What makes a row of one or two phases: it may be refused."""
    head = draw(HEADS)
    first, then = draw(phases(head)), draw(st.one_of(st.none(), phases(head)))
    return lambda: Row(*first, later=(Phase(*then, 0.5),) if then else (), head=head)


PLACES = ["clean", "adversarial", "both"]
SIZES = st.sampled_from([(8, True), (7, False), (8, False)])


def trained(row, kind, norm=math.inf, size=(8, True)):
    """Four epochs of two steps, so that late phases have theirs; the state before, and what the training returned."""
    before, model = network(kind), network(kind)
    if row.head is not None:
        row.head.put_on(before)
    count, drop_last = size
    recipe = Recipe(4, 4, drop_last=drop_last, lr=0.01, clip=10.0)
    threat = Threat(norm, 0.1 if norm == math.inf else 0.3, 0.04, 2)
    return before.state_dict(), train(model, row, data(count), recipe=recipe, threat=threat, seed=0)


def outcome(make, kind, norm, size):
    """ "trained", and then finite, or "refused", and then for one of the reasons that there are."""
    try:
        _, known = trained(make(), kind, norm, size)
    except MarginsError as error:
        assert any(reason in str(error) for reason in REASONS), error
        return "refused"
    assert known.status == "done"
    assert all(value.isfinite().all() for value in known.last.values())
    return "trained"


def test_any_combination_trains_and_stays_finite_or_is_refused():
    outcomes = []

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(rows(), st.sampled_from(NETS), st.sampled_from([2, math.inf]), SIZES)
    def check(make, kind, norm, size):
        outcomes.append(outcome(make, kind, norm, size))

    check()
    assert outcomes.count("trained") > 80 and "refused" in outcomes


@pytest.mark.parametrize("part", [InputGradient(), ApproximateEMR(), MovingAverage(), DeepFoolMargin(), LSoftmax()])
def test_a_part_of_samples_is_refused_as_a_term_of_the_parameters(part):
    with pytest.raises(MarginsError, match=f"at: {type(part).__name__} can be asked at .*, not at parameters"):
        Term(part, "parameters")


@pytest.mark.parametrize("kind", ["modal", "dropout"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_trains_nets_with_dropout_and_norms(name, kind):
    before, known = trained(replace(METHODS[name], recipe={}), kind)
    assert known.status == "done"
    assert all(value.isfinite().all() for value in known.last.values())
    assert any(not torch.equal(before[name], value) for name, value in known.last.items())
