"""What a user gives to an evaluation is refused before any work, or handed on unharmed."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from known import linear
from torch import nn

from margins import margin
from margins.attacks.autoattack import autoattack
from margins.attacks.deepfool import deepfool
from margins.attacks.found import Calls, Found, InBall, Nearest
from margins.attacks.pgd import pgd
from margins.errors import MarginsError
from margins.evaluation import evaluate
from margins.evaluation.attacked import SLACK

PGD = partial(pgd, norm=2, eps=0.1, steps=2, step_size=0.1)


def found(kind, x, x_adv, y, *more, norm=2):
    return kind(x_adv, torch.ones_like(y, dtype=torch.bool), torch.zeros(len(y)), Calls(), norm, *more)


class Asked(nn.Module):
    """Counts the samples it sees."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x):
        self.seen += len(x)
        return self.model(x)


def refused(said, error=MarginsError, **given):
    """The evaluation is refused before anything but the first batch and trials on two samples."""
    model, x, y = linear(3)
    model = Asked(model)
    base = {"norm": 2, "eps": 0.1, "attacks": {"PGD": PGD}, "margins": {}, "batch_size": 5}
    with pytest.raises(error, match=said):
        evaluate(given.pop("model", model), given.pop("x", x), y, **base | given)
    assert model.seen <= 5 + 4 * 20 < len(x) + 50


@pytest.mark.parametrize("far", [0.11, 0.3])
def test_a_plain_found_must_lie_in_the_ball(far):
    model, x, y = linear(3)
    x = x.clamp(0, 0.5)

    def attack(model, x, y, kind):
        x_adv = PGD(model, x, y, eps=far, step_size=far).x_adv
        return found(kind, x, x_adv, y)

    refused("'mine' went 0.* far, but eps is 0.1; only margins.attacks.found.Nearest", x=x,
            attacks={"mine": partial(attack, kind=Found)})  # fmt: skip
    result = evaluate(model, x, y, norm=2, eps=0.1, attacks={"mine": partial(attack, kind=Nearest)}, margins={})
    reached = result.correct & torch.isfinite(result.distance)
    assert (result.distance[reached] > 0.1).any() and torch.equal(
        result.robust[reached], result.distance[reached] > 0.1
    )


@pytest.mark.parametrize("kind", [Found, InBall])
def test_no_distance_is_cut_by_more_than_rounding(kind):
    model, x, y = linear(3)
    x = x.clamp(0, 0.5)

    def attack(model, x, y):
        x_adv = x.clone()
        x_adv[:, 0] += 0.1 + SLACK / 2
        return found(kind, x, x_adv, y, *((0.1,) if kind is InBall else ()))

    result = evaluate(model, x, y, norm=2, eps=0.1, attacks={"mine": attack}, margins={})
    assert (
        result.distance[result.distance > 0].amin() >= 0.1
        and (result.distance.isinf() | (result.distance <= 0.1)).all()
    )


def test_each_attack_and_margin_gets_copies():
    model, x, y = linear(3)
    before = x.clone(), y.clone()

    def attack(model, x, y):
        result = PGD(model, x, y)
        x.zero_()
        y.zero_()
        return result

    def mine(model, x, y):
        x.zero_()
        return y.double()

    given = {"norm": 2, "eps": 0.1, "batch_size": 7}
    result = evaluate(model, x, y, attacks={"mine": attack, "PGD": PGD}, margins={"mine": mine}, **given)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    alone = evaluate(model, x, y, attacks={"PGD": PGD}, margins={}, **given)
    assert torch.equal(result.robust, alone.robust) and not alone.robust.equal(alone.correct)


def test_a_smaller_eps_or_another_norm_of_an_attack_is_refused():
    said = r"attack 'A' searched within eps 0.000392157 only, but the evaluation's is 0.1"
    refused(said, attacks={"PGD": PGD, "A": partial(PGD, eps=0.1 / 255)})
    refused(said, attacks={"A": lambda model, x, y: PGD(model, x, y, eps=0.1 / 255)})
    refused("searched within eps 0.05", attacks={"A": partial(autoattack, norm=2, eps=0.05)})
    refused("works in the norm inf, but the evaluation's is 2", attacks={"PGD": PGD, "A": partial(PGD, norm=math.inf)})
    model, x, y = linear(3)
    near = partial(PGD, eps=0.1 * (1 - SLACK / 2))  # rounding
    assert evaluate(model, x, y, norm=2, eps=0.1, attacks={"PGD": near}, margins={})


def altered(**change):
    def attack(model, x, y):
        return replace(PGD(model, x, y), **change)

    return attack


class Nothing:
    def __call__(self, model, x):
        raise AssertionError


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (partial(pgd, norm=2, eps=0.1), r"attacks\['A'\] must be callable as f\(model, x, y\), but missing"),
        (lambda model, x: x, r"attacks\['A'\] must be callable .* too many positional arguments"),
        (Nothing(), "must be callable"),
        (partial(PGD, stesp=3), "got an unexpected keyword argument 'stesp'"),
        (partial(PGD, steps=0), "attack 'A': steps must be a whole number of at least 1"),
        (partial(PGD, loss="hinge"), "attack 'A': loss must be"),
        (lambda model, x, y: None, "must return margins.attacks.found.Found, but gave NoneType"),
        (
            altered(success=torch.ones(2)),
            r"must return success as a tensor torch.bool \(2,\) on cpu, but gave torch.fl",
        ),
        (altered(success=torch.ones(2, 1) > 0), "must return success as"),
        (altered(success=True), "must return success as .* but gave bool"),
        (altered(x_adv=torch.zeros(2, 8)), "must return x_adv as a tensor torch.float64"),
        (altered(x_adv=[0.0]), "but gave list"),
        (altered(calls=3), "must return margins.attacks.found.Calls as calls, but gave 3"),
        (deepfool, r"has bounds=None: give the attack bounds=\(0.0, 1.0\)"),
        (partial(PGD, bounds=(0, 2)), r"has bounds=\(0.0, 2.0\): give"),
    ],
)
def test_an_attack_that_cannot_be_called_or_returns_the_wrong_thing(attack, said):
    refused(said, attacks={"PGD": PGD, "A": attack})


def test_an_example_out_of_the_box_says_what_to_do():
    leaves = lambda model, x, y: found(InBall, x, x - 0.03, y, 0.1)  # noqa: E731
    refused(r"left the box \(0.0, 1.0\) by 0.02.*: give the attack bounds=\(0.0, 1.0\)", attacks={"A": leaves})


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (margin.certified_radius, r"margins\['M'\] must be callable as f\(model, x, y\), but too many .* lambda model"),
        (lambda model, x, y: y, r"margin 'M' must return .* shape \(2,\), but returned a torch.int64 tensor"),
        (lambda model, x, y: x, r"but returned a torch.float64 tensor of shape \(2, 8\)"),
        (lambda model, x, y: {"lower": x}, "but returned a dict: give a function of model, x and y"),
        (lambda model, x, y: 1.0, "but returned a float"),
    ],
)
def test_a_margin_that_returns_something_else(measure, said):
    refused(said, margins={"M": measure})


def test_a_margin_may_not_have_the_name_of_an_attack_s_distances():
    refused("margins has 'PGD distance'", margins={"PGD distance": lambda model, x, y: x[:, 0]})


def test_another_error_of_an_attack_keeps_its_kind_and_gets_its_name():
    def attack(model, x, y):
        return {}["lost"]

    with pytest.raises(KeyError) as raised:
        evaluate(*linear(3), norm=2, eps=0.1, attacks={"A": attack})
    assert "attack 'A' of margins.evaluate" in raised.value.__notes__[0]


def test_the_trial_of_the_package_s_attacks_does_not_ask_the_model():
    _, x, y = linear(3)
    model = Asked(linear(3)[0])
    given = {"norm": 2, "eps": 0.1, "margins": {}, "batch_size": 60}
    evaluate(model, x, y, attacks={"A": partial(autoattack, norm=2, eps=0.1, queries=10, steps=2)}, **given)
    first = model.seen
    model.seen = 0
    own = lambda model, x, y: autoattack(model, x, y, norm=2, eps=0.1, queries=10, steps=2)  # noqa: E731
    evaluate(model, x, y, attacks={"A": own}, **given)
    assert first < model.seen


def wrapped(function):
    class Wrapped(nn.Module):
        def forward(self, x):
            return function(linear(3)[0](x))

    return Wrapped()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda z: {"logits": z}, "model returned a dict"),
        (lambda z: z[:, 0], r"logits must have the shape \(5, K\) with K >= 2"),
        (lambda z: z[:, :1], r"logits must have the shape \(5, K\) with K >= 2"),
        (lambda z: z.reshape(7, -1), r"model failed on x of shape \(5, 8\): RuntimeError: shape"),
        (lambda z: z.no_such_thing, r"model failed on x of shape \(5, 8\): AttributeError: .*no_such_thing"),
    ],
)
def test_a_model_that_fails_or_returns_no_logits(function, said):
    refused(said, model=wrapped(function))


@pytest.mark.parametrize(
    ("norm", "eps", "bounds", "said"),
    [
        (
            math.inf,
            8,
            (0, 1),
            r"less than the width 1 of the box .*, but is 8 and spans the whole box; was 8/255 meant\?",
        ),
        (math.inf, 1, (0, 1), "spans the whole box"),
        (2, 3, (0, 1), "less than the diagonal 2.82843 of the box"),
    ],
)
def test_a_ball_that_holds_the_box_is_refused(norm, eps, bounds, said):
    refused(said, norm=norm, eps=eps, bounds=bounds, attacks="quick")


def test_files_into_folders_that_do_not_exist_are_refused(tmp_path):
    refused("resume .*: there is no folder", resume=tmp_path / "no" / "state.npz")
    refused("resume must be the name of a file, but .* is a folder", resume=tmp_path)
    refused("resume must be the name of a file, but is 3", resume=3)
    result = evaluate(*linear(3), norm=2, eps=0.1, attacks={"PGD": PGD}, margins={})
    with pytest.raises(MarginsError, match=r"path .*: there is no folder"):
        result.save(tmp_path / "no" / "result.json")
    assert not list(tmp_path.iterdir())
