"""What an evaluation says of a model where the answer is known, and what it refuses."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from known import linear, nearest
from torch import nn

import margins
from margins import models
from margins.attacks.deepfool import deepfool
from margins.attacks.found import InBall
from margins.attacks.pgd import pgd
from margins.errors import MarginsError
from margins.evaluation import evaluate

EPS = {2: 0.12, math.inf: 0.06}
BOX = (0.0, 1.0)


def suite(norm, eps):
    """Exact on a linear model with two classes, and quick."""
    steps = {"steps": 40, "step_size": eps / 8}
    return {
        "PGD": partial(pgd, norm=norm, eps=eps, loss="margin", **steps),
        "DeepFool": partial(deepfool, norm=norm, overshoot=1e-6, bounds=BOX),
    }


@pytest.fixture(scope="module")
def known():
    """A linear model of two classes and its evaluation in l2 with batches of 13."""
    model, x, y = linear(3, classes=2)
    return model, x, y, evaluate(model, x, y, norm=2, eps=EPS[2], attacks=suite(2, EPS[2]), batch_size=13)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_on_a_linear_model_the_numbers_are_the_exact_ones(norm):
    model, x, y = linear(3, classes=2)
    eps = EPS[norm]
    result = evaluate(model, x, y, norm=norm, eps=eps, attacks=suite(norm, eps))
    exact = nearest(model, x, y, norm)
    clear = (exact / eps - 1).abs() > 1e-3
    assert clear.sum() > 55 and 0.2 < (exact > eps).double().mean() < 0.8
    assert torch.equal(result.correct, model(x).argmax(1) == y)
    for attack in result.attacks.values():
        assert torch.equal(attack.robust[clear], (exact > eps)[clear])
    assert torch.equal(result.robust[clear], (exact > eps)[clear])
    assert torch.allclose(result.attacks["DeepFool"].distance, exact, rtol=1e-4)
    assert torch.allclose(result.margins["DeepFool distance"].values, exact, rtol=1e-4)
    radii = torch.tensor([0.3, 0.7, 1.5]) * eps
    assert torch.allclose(result.accuracy_at(radii), (exact > radii[:, None]).double().mean(1), atol=1.1 / len(x))
    assert result.accuracy_at([eps]).item() == result.accuracy.estimate
    assert result.accuracy_at([0]).item() == result.clean.estimate
    assert not result.failed


def test_worst_case_is_taken_sample_by_sample():
    model, x, y = linear(3, classes=2)

    def half(model, x, y, which):
        found = deepfool(model, x, y, norm=2, overshoot=1e-3, bounds=BOX)
        mine = (x[:, 0] > 0.5) == which  # each attack breaks one half only
        x_adv = torch.where(mine[:, None], found.x_adv, x)
        distance = torch.where(mine, found.distance, math.inf)
        return replace(found, x_adv=x_adv, success=found.success & mine, distance=distance)

    attacks = {"left": partial(half, which=False), "right": partial(half, which=True)}
    result = evaluate(model, x, y, norm=2, eps=1.0, attacks=attacks)
    left, right = (attack.robust for attack in result.attacks.values())
    assert torch.equal(result.robust, left & right)
    assert result.accuracy.estimate < min(a.accuracy.estimate for a in result.attacks.values())
    assert torch.equal(result.distance, torch.minimum(*(attack.distance for attack in result.attacks.values())))


def test_numbers_do_not_depend_on_the_batches(known):
    model, x, y, small = known
    large = evaluate(model, x, y, norm=2, eps=EPS[2], attacks=suite(2, EPS[2]), batch_size=1000)
    assert torch.equal(small.robust, large.robust)
    for name, attack in small.attacks.items():
        assert torch.allclose(attack.distance, large.attacks[name].distance, rtol=1e-9)
    names = [check.name for check in small.checks]
    assert names == [check.name for check in large.checks] and len(set(names)) == len(names) == 15


def test_costs_are_counted_in_passes_a_sample():
    model, x, y = linear(3, classes=2)
    right = y == model(x).argmax(1)
    attack = partial(pgd, norm=2, eps=1e-6, steps=7, step_size=1e-6)
    result = evaluate(model, x[right], y[right], norm=2, eps=1e-6, attacks={"PGD": attack})
    cost = result.attacks["PGD"].cost
    assert cost.forward == 1 + 7 + 1 + 1  # at x, the steps, the last point; and our question whether it is so
    assert cost.backward == 7 and cost.seconds > 0


def test_the_result_as_text_frame_json_and_arrays(known, tmp_path):
    *_, result = known
    text = str(result)
    assert "PGD" in text and "worst case" in text and "sanity checks" in text and "DeepFool distance" in text
    frame = result.frame()
    assert list(frame.index) == ["no attack", "PGD", "DeepFool", "worst case"]
    assert frame.loc["worst case", "accuracy"] == pytest.approx(100 * result.accuracy.estimate)
    result.save(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["robust"]["estimate"] == result.accuracy.estimate and content["norm"] == 2
    assert content["attacks"]["DeepFool"]["kind"] == "minimum norm"
    assert content["curve"]["accuracy"][20] == result.accuracy.estimate  # at eps itself
    with np.load(tmp_path / "result.npz", allow_pickle=False) as file:
        assert np.array_equal(file["robust"], result.robust.numpy())
        assert np.array_equal(file["attack: DeepFool: distance"], result.attacks["DeepFool"].distance.numpy())
    with pytest.raises(MarginsError, match="json"):
        result.save(tmp_path / "result.txt")


def test_no_samples():
    model, x, y = linear(3)
    result = evaluate(model, x[:0], y[:0], norm=2, eps=0.1, attacks=suite(2, 0.1))
    assert math.isnan(result.accuracy.estimate) and result.robust.shape == (0,)
    assert {check.status for check in result.checks} == {"not applicable"}
    assert isinstance(str(result), str) and json.dumps(result.to_dict(), allow_nan=False)


class Moody(nn.Module):
    """Goes into training mode in forward, as some published networks do, and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        self.train()
        self.count += 1
        return self.layers(x)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_state_are_left_as_they_were(fails):
    class Failing(Exception):
        pass

    def failing(model, x, y):
        model(x)
        raise Failing

    model, (_, x, y) = Moody().double(), linear(0)
    model.layers[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    attacks = {"PGD": suite(2, 0.1)["PGD"]} | ({"failing": failing} if fails else {})
    if fails:
        with pytest.raises(Failing):
            evaluate(model, x, y, norm=2, eps=0.1, attacks=attacks)
    else:
        result = evaluate(model, x, y, norm=2, eps=0.1, attacks=attacks)
        assert "evaluation mode" in [check.name for check in result.failed]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def moved(by, success=True, norm=2, eps=0.1):
    """An attack that adds `by` to each entry and claims success."""

    def attack(model, x, y):
        x_adv = x + by
        distance = torch.linalg.vector_norm(x_adv - x, norm, dim=1)
        claims = torch.full_like(y, success, dtype=torch.bool)
        return InBall(x_adv, claims, distance, pgd(model, x[:0], y[:0], **PGD).calls, norm, eps)

    return attack


PGD = {"norm": 2, "eps": 0.1, "steps": 1, "step_size": 0.1}
NORMAL = {"norm": 2, "eps": 0.1, "attacks": {"PGD": partial(pgd, **PGD)}}


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (moved(0.2), "'mine' went 0.56"),
        (moved(-0.03), "'mine' left the box"),
        (moved(math.nan), "finite examples"),
        (moved(0.0, norm=math.inf), "'mine' works in the norm inf"),
        (lambda model, x, y: x, "must return margins.attacks.found.Found, but gave Tensor"),
        (lambda model, x, y: deepfool(model, x[:1], y[:1]), r"must return x_adv as a tensor torch.float64 \(2, 8\)"),
    ],
)
def test_an_attack_that_breaks_the_rules_is_an_error(attack, said):
    model, x, y = linear(3)
    x = x.clamp(0.02, 0.7)
    with pytest.raises(MarginsError, match=said):
        evaluate(model, x, y, norm=2, eps=0.1, attacks={"mine": attack})


def test_a_claimed_success_does_not_count_where_the_model_disagrees():
    model, x, y = linear(3)
    result = evaluate(model, x.clamp(0, 0.9), y, norm=2, eps=0.1, attacks={"liar": moved(0.0)})
    assert torch.equal(result.robust, result.correct)
    assert result.attacks["liar"].unconfirmed == result.correct.sum()
    assert "examples confirmed" in [check.name for check in result.failed]


def test_what_is_misclassified_stays_so_though_an_attack_mends_it():
    model, x, y = linear(3, classes=2)
    attacks = {"DeepFool": partial(deepfool, reference="prediction", bounds=BOX)}
    result = evaluate(model, x, y, norm=2, eps=0.01, attacks=attacks)
    wrong = ~result.correct
    assert wrong.sum() > 5 and (model(deepfool(model, x, y, reference="prediction").x_adv).argmax(1) == y)[wrong].all()
    assert not result.robust[wrong].any() and (result.distance[wrong] == 0).all()
    assert result.attacks["DeepFool"].unconfirmed == 0


def test_margins_of_your_own():
    model, x, y = linear(3)
    result = evaluate(model, x, y, **NORMAL, margins={"mine": lambda model, x, y: x[:, 0]})
    assert list(result.margins) == ["mine"] and torch.equal(result.margins["mine"].values, x[:, 0])
    with pytest.raises(MarginsError, match="margin 'mine' must return a tensor of floating-point numbers of shape"):
        evaluate(model, x, y, **NORMAL, margins={"mine": lambda model, x, y: 1.0})


BAD = [
    ({"norm": 1}, "norm must be one of"),
    ({"norm": "2"}, "norm must be a number"),
    ({"eps": -0.1}, "eps must be a finite number greater than 0"),
    ({"eps": 0}, "eps must be a finite number greater than 0"),
    ({"eps": math.nan}, "eps must be"),
    ({"attacks": "fast"}, "attacks must be one of 'quick', 'strong', 'standard'"),
    ({"attacks": {}}, "attacks must be a mapping of names to callables"),
    ({"attacks": {"PGD": 3}}, "attacks must be a mapping"),
    ({"attacks": [pgd]}, "attacks must be a mapping"),
    ({"margins": {3: pgd}}, "margins must be a mapping"),
    ({"bounds": (1, 0)}, "bounds must be"),
    ({"bounds": (0, 0.5)}, "x must lie in the box"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    ({"batch_size": 2.0}, "batch_size must be"),
    ({"seed": -1}, "seed must be"),
    ({"model": lambda x: x}, "model must be a torch.nn.Module"),
    ({"model": models.build("linear", inputs=8, classes=3)}, "model computes in torch.float32"),
    ({"model": nn.Identity()}, "y must lie in 0..7, but goes from 0 to 9"),
    ({"x": torch.zeros(4, 8, dtype=torch.int64)}, "x must be a tensor of floating-point numbers"),
    ({"x": torch.full((4, 8), math.nan).double()}, "x must be finite"),
    ({"x": np.zeros((4, 8))}, "x must be a tensor"),
    ({"y": torch.zeros(4)}, "y must be int64"),
    ({"y": torch.zeros(5, dtype=torch.int64)}, r"y must be int64 of shape \(4,\)"),
    ({"y": [0, 1, 2, 3]}, "y must be int64"),
    ({"y": torch.tensor([0, 1, 2, 3])}, "y must lie in 0..2"),
    ({"y": torch.zeros(4, dtype=torch.int64, device="meta")}, "y"),
    ({"model": nn.Sequential(nn.Flatten(0))}, "logits must have the shape"),
]


@pytest.mark.parametrize(("change", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_bad_input_is_a_clear_error_before_any_work(change, said, tmp_path):
    model, x, y = linear(3)
    given = {"model": model, "x": x[:4], "y": y[:4], "resume": tmp_path / "state", **NORMAL, **change}
    if isinstance(change.get("model"), nn.Identity):
        given["y"] = torch.tensor([0, 1, 2, 9])
    with pytest.raises(MarginsError, match=said):
        evaluate(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert not list(tmp_path.iterdir())


def test_without_a_box():
    model, x, y = linear(3, classes=2)
    attacks = {"DeepFool": partial(deepfool, overshoot=1e-6)}
    result = evaluate(model, 3 * x - 1, y, norm=2, eps=0.1, attacks=attacks, bounds=None)
    exact = nearest(model, 3 * x - 1, y, 2, None)
    assert torch.allclose(result.distance, exact, rtol=1e-4)
    assert not result.failed


def test_progress(capsys):
    model, x, y = linear(3)
    evaluate(model, x, y, **NORMAL, batch_size=30, progress=True)
    assert "attack 'PGD': 100%" in capsys.readouterr().err


def test_it_is_the_package_s_own_name():
    assert margins.evaluate is evaluate
    code = "import sys, margins; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
