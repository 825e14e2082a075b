"""A long evaluation goes on where it stopped to the same numbers, and never mistakes another's file for its own."""

import json
import math
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import killed_evaluation
import numpy as np
import pytest
import torch
from known import linear
from torch import nn

from margins import models
from margins.attacks.deepfool import deepfool
from margins.attacks.pgd import pgd
from margins.errors import MarginsError
from margins.evaluation import evaluate
from margins.evaluation.identity import describe

PGD = {"norm": 2, "eps": 0.1, "steps": 1, "step_size": 0.1}
NORMAL = {"norm": 2, "eps": 0.1, "attacks": {"PGD": partial(pgd, **PGD)}}


def assert_same(one, other):
    """The same numbers, bit by bit."""
    assert one.arrays().keys() == other.arrays().keys()
    assert all(np.array_equal(value, other.arrays()[name]) for name, value in one.arrays().items())
    assert one.checks == other.checks


class Interrupted(Exception):
    pass


def test_an_evaluation_goes_on_after_an_exception(tmp_path, monkeypatch):
    model, x, y = linear(3)
    calls = []
    armed = [True]
    monkeypatch.setattr("builtins.RECORDED", (calls, armed), raising=False)  # outside the attack's description

    def attack(model, x, y, generator):
        import builtins

        calls, armed = builtins.RECORDED
        calls.append(len(x))
        if armed[0] and len(calls) == 4:
            raise Interrupted
        return pgd(model, x, y, generator=generator, **PGD)

    attacks = {"first": partial(pgd, **PGD), "second": attack}
    given = {"norm": 2, "eps": 0.1, "attacks": attacks, "batch_size": 13, "resume": tmp_path / "state"}
    with pytest.raises(Interrupted):
        evaluate(model, x, y, **given)
    armed[0] = False
    result = evaluate(model, x, y, **given)
    assert calls == [2, 13, 13, 13, 13, 13, 8]  # a trial on two; the one that failed again, no other
    again = evaluate(model, x, y, **given)
    assert len(calls) == 7
    fresh = evaluate(model, x, y, **given | {"resume": None})
    for other in (again, fresh):
        assert_same(result, other)
    assert again.attacks["second"].cost == result.attacks["second"].cost


def test_a_killed_evaluation_ends_in_the_same_numbers(tmp_path):
    code = f"import killed_evaluation; killed_evaluation.run({str(tmp_path / 'state')!r}, fatal=4)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent)
    assert killed.returncode == -signal.SIGKILL
    resumed = killed_evaluation.run(tmp_path / "state")
    assert killed_evaluation.BEGUN == [13, 13, 8]  # two of the five were done, and the trial before them
    undisturbed = killed_evaluation.run(tmp_path / "other")
    assert_same(resumed, undisturbed)


def test_another_evaluation_s_file_is_never_overwritten(tmp_path):
    model, x, y = linear(3)
    state = tmp_path / "state"
    evaluate(model, x, y, **NORMAL, resume=state)
    before = state.read_bytes()
    other, other_x = linear(4)[0], x.clone()
    other_x[3, 2] = 0.25
    changes = [
        ({"eps": 0.2}, "eps"),
        ({"seed": 1}, "seed"),
        ({"norm": math.inf, "attacks": {"PGD": partial(pgd, **PGD | {"norm": math.inf})}}, "attacks, margins, norm"),
        ({"batch_size": 7}, "batch_size"),
        ({"attacks": {"pgd": partial(pgd, **PGD)}}, "attacks"),
        ({"attacks": {"PGD": partial(pgd, **PGD | {"steps": 2})}}, "attacks"),
        ({"margins": {}}, "margins"),
        ({"model": other}, "model"),
        ({"x": other_x}, "x"),
        ({"y": (y + 1) % 3}, "y"),
    ]
    for change, differ in changes:
        given = {"model": model, "x": x, "y": y, **NORMAL, "resume": state, **change}
        with pytest.raises(MarginsError, match=f"belongs to another evaluation, whose {differ} differ"):
            evaluate(given.pop("model"), given.pop("x"), given.pop("y"), **given)
        assert state.read_bytes() == before
    evaluate(model, x, y, **NORMAL, resume=state)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_state_is_never_overwritten(tmp_path, content):
    model, x, y = linear(3)
    state = tmp_path / "state"
    state.write_bytes(content)
    with pytest.raises(MarginsError, match="not the state of an evaluation"):
        evaluate(model, x, y, **NORMAL, resume=state)
    assert state.read_bytes() == content


class Warm(nn.Module):
    """A linear model whose logits are divided by a plain attribute, which no state dict and no repr shows."""

    def __init__(self, temperature, noise=0.0):
        super().__init__()
        self.model, self.temperature, self.noise = linear(3)[0], temperature, noise

    def forward(self, x):
        return self.model(x) / self.temperature + self.noise * torch.randn(len(x), 3)


def test_a_model_that_differs_in_a_plain_attribute_is_another(tmp_path):
    _, x, y = linear(3)
    given = {**NORMAL, "resume": tmp_path / "state"}
    evaluate(Warm(2.0), x, y, **given)
    for temperature in (2.01, 1.0):
        with pytest.raises(MarginsError, match="belongs to another evaluation, whose model differ"):
            evaluate(Warm(temperature), x, y, **given)
    evaluate(Warm(2.0 * (1 + 1e-7)), x, y, **given)  # as far as the last bits may differ
    noisy = {**NORMAL, "resume": tmp_path / "noisy"}
    assert_same(evaluate(Warm(2.0, 0.1), x, y, **noisy), evaluate(Warm(2.0, 0.1), x, y, **noisy))


class Own:
    def __init__(self, number):
        self.number, self.itself = number, self

    def __call__(self, model, x, y):
        return self.number


class Other(Own):
    def __call__(self, model, x, y):
        return self.number + 1


def endless(number):
    """A function that closes over itself and over what is not known yet."""

    def function(x):
        return function(x - number) if x else later

    if number < 0:
        later = 1
    return function


def test_descriptions_tell_attacks_apart():
    def make(number):
        return lambda model, x, y: number

    def scaled(x, by=2):
        return x * by

    things = [
        make(1), make(2), lambda x: x + 1, lambda x: x + 2, scaled, partial(scaled, by=3), partial(scaled, 3),
        torch.zeros(2), torch.zeros(2, 1), torch.ones(2), None, 1, 1.0, True, "1", (1,), {"a": 1}, pgd, deepfool,
        models.build("linear", inputs=2, classes=2), models.build("linear", inputs=2, classes=3), {1, 2},
        lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x], lambda x: x[..., 0], lambda x: x[..., 1], ...,
        1j, 2j, torch.float32, torch.float64, torch.device("cpu"), torch.relu, torch.tanh, np.float64(1), np.ones(2),
        np.zeros(2), endless(1), endless(2), Own(1), Own(2), Other(1), Own(1).__call__, Own(2).__call__,
        partial(pgd, loss=Own(1)), partial(pgd, loss=Own(2)), Warm(1.0), Warm(2.0),
    ]  # fmt: skip
    texts = [json.dumps(describe(thing)) for thing in things]
    assert len(set(texts)) == len(things)
    assert texts == [json.dumps(describe(thing)) for thing in things]
    with pytest.raises(MarginsError, match="resume needs attacks"):
        describe(object())
