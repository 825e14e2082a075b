"""Broken defences are each caught by name, sound models raise no alarm, and every check can fail."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from margins import datasets, losses, models, training
from margins.attacks.found import Calls, InBall
from margins.attacks.pgd import fgsm, pgd
from margins.attacks.square import square
from margins.evaluation import evaluate, probes
from margins.evaluation.broken import BROKEN, SaturatedLogits

EPS = {math.inf: 0.1, 2: 0.5}
SIZE = 100


def hardened(model, x, y):
    """Trained on PGD's examples in linf 0.1."""
    optimizer, generator = torch.optim.Adam(model.parameters(), 2e-3), torch.Generator().manual_seed(0)
    for _ in range(8):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            found = pgd(model, x[rows], y[rows], norm=math.inf, eps=0.1, steps=4, step_size=0.04)
            optimizer.zero_grad()
            functional.cross_entropy(model(found.x_adv), y[rows]).backward()
            optimizer.step()
    return model.eval()


def certain(model, x):
    """Its logits times what makes half of their gaps exceed 20, whatever a machine has made of its training."""
    largest, second = model(x).detach().topk(2).values.T
    return SaturatedLogits(model, 20 / (largest - second).median().item())


def mlp(hidden):
    return models.build("mlp", inputs=64, hidden=hidden, classes=10)


@pytest.fixture(scope="module")
def sound():
    data = datasets.load("digits")
    cnn = models.build("cnn", shape=(1, 8, 8), blocks=((8,), (16,)), hidden=(32,), classes=10, padding=1)
    return {
        "mlp": training.fit(mlp((64, 64)), data.x, data.y, epochs=15, lr=3e-3),
        "cnn": training.fit(cnn, data.x, data.y, epochs=12, lr=1e-2),
        "overconfident": certain(training.fit(mlp((64, 64, 64)), data.x, data.y, epochs=100, lr=2e-2), data.x),
        "adversarially trained": hardened(mlp((64, 64)), data.x, data.y),
    }


def assess(model, attacks="quick", norm=math.inf, size=SIZE, **given):
    data = datasets.load("digits", "test", size=size)
    return evaluate(model, data.x, data.y, norm=norm, eps=EPS[norm], attacks=attacks, **given)


def failed(result):
    return [check.name for check in result.failed]


def check(result, name):
    return next(check for check in result.checks if check.name == name)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "overconfident", "adversarially trained"])
def test_sound_models_raise_no_alarm(sound, name, norm):
    result = assess(sound[name], norm=norm)
    assert not failed(result)
    assert 0.1 < result.accuracy.estimate < result.clean.estimate - 0.1  # or no check had anything to look at
    assert {check.status for check in result.checks} == {"passed"}


@pytest.mark.parametrize("name", ["overconfident", "adversarially trained"])
def test_sound_models_raise_no_alarm_under_the_default_suite(sound, name):
    result = assess(sound[name], None, size=40)
    assert not failed(result) and "AutoAttack" in result.attacks
    stages = result.attacks["AutoAttack"].stages
    assert list(stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    broken = torch.stack(list(stages.values())).any(0)
    assert torch.equal(broken, result.correct & ~result.attacks["AutoAttack"].robust)


def test_the_overconfident_model_is_that(sound):
    """Its cross-entropy gradients are tiny, those of twice its logits nearly all; what attacks find is the same."""
    for scale, share in ((1, 40), (2, 70), (1000, 90)):
        result = assess(SaturatedLogits(sound["overconfident"], scale))
        found = check(result, "vanishing gradients")
        assert found.numbers["small"] > share and "is below 1e-06 for" in found.measured
        assert failed(result) == (["vanishing gradients"] if scale == 1000 else [])
        assert bool(found.note) == (scale < 1000)  # the cross-entropy as libraries compute it falls short


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_defences_are_caught_by_name(sound, name, norm):
    defence, caught = BROKEN[name]
    result = assess(defence(sound["mlp"]), norm=norm)
    assert caught in failed(result)
    text = str(result)
    assert f"FAILED {caught}" in text and check(result, caught).advice in text
    sound_ones = {other for _, other in BROKEN.values()} - {caught}
    assert not sound_ones & set(failed(result))  # no other fault is claimed


def test_broken_defences_are_caught_under_the_default_suite(sound):
    result = assess(SaturatedLogits(sound["mlp"]), None, size=40)
    assert failed(result) == ["vanishing gradients"]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_defences_classify_as_what_they_wrap(sound, name):
    data = datasets.load("digits", "test")
    plain, defended = sound["mlp"], BROKEN[name][0](sound["mlp"]).eval()
    agree = (plain(data.x).argmax(1) == defended(data.x).argmax(1)).double().mean()
    assert agree > 0.8
    weights = {key.removeprefix("model."): value for key, value in defended.state_dict().items()}
    assert all(torch.equal(value, weights[key]) for key, value in plain.state_dict().items())


def test_the_careful_cross_entropy_is_the_cross_entropy():
    logits = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    y = torch.arange(50) % 6
    careful, plain = probes.cross_entropy(logits, y), losses.cross_entropy(logits, y)
    assert torch.allclose(careful, plain)
    gradients = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (careful, plain)]
    assert torch.allclose(*gradients)
    confident = torch.tensor([[60.0, 0.0, 1.0]], requires_grad=True)  # p_y rounds to 1 in float32
    (gradient,) = torch.autograd.grad(probes.cross_entropy(confident, torch.tensor([0])).sum(), confident)
    assert gradient[0, 0] < 0 and gradient.sum().abs() < 1e-6 * gradient.abs().max()
    (gradient,) = torch.autograd.grad(losses.cross_entropy(confident, torch.tensor([0])).sum(), confident)
    assert gradient[0, 0] == 0  # what the note is about


def nothing(model, x, y):
    """Finds nothing."""
    return InBall(x, torch.zeros_like(y, dtype=torch.bool), torch.zeros(len(x)), Calls(), math.inf, 0.1)


def test_an_attack_that_finds_nothing_is_caught(sound):
    """By Square and by PGD on the margin, though the model is sound."""
    result = assess(sound["mlp"], {"nothing": nothing})
    assert failed(result) == ["margin loss", "black box against white box"]
    assert result.accuracy.estimate == result.clean.estimate


def test_black_boxes_of_the_suite_are_asked_first(sound):
    attack = partial(square, norm=math.inf, eps=0.1, queries=100)
    result = assess(sound["mlp"], {"nothing": nothing, "Square": attack})
    broken = (result.attacks["nothing"].robust & ~result.attacks["Square"].robust).double().mean().item()
    assert check(result, "black box against white box").numbers["points"] == pytest.approx(100 * broken)
    assert "black box against white box" in failed(result)
    alone = check(assess(sound["mlp"], {"Square": attack}), "black box against white box")
    assert alone.status == "not applicable"


def test_a_cross_entropy_suite_on_saturated_logits_is_caught(sound):
    literal = partial(pgd, norm=math.inf, eps=0.1, steps=20, step_size=0.0125, loss=losses.cross_entropy)
    model = BROKEN["saturated logits"][0](sound["mlp"])
    result = assess(model, {"PGD": literal})
    assert {"vanishing gradients", "margin loss", "black box against white box"} <= set(failed(result))
    assert result.accuracy.estimate > assess(model).accuracy.estimate + 0.1


class Batchwise(nn.Module):
    """Normalises with the batch's own statistics, in evaluation mode too."""

    def __init__(self, model):
        super().__init__()
        self.model, self.norm = model, nn.BatchNorm1d(10, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.model(x)) if len(x) > 1 else self.model(x)


def test_outputs_that_depend_on_the_batch(sound):
    result = assess(Batchwise(sound["mlp"]))
    assert "outputs depend on the batch" in failed(result) and "randomised outputs" not in failed(result)
    name = "outputs depend on the batch"
    assert check(assess(sound["mlp"], batch_size=1, size=3), name).status == "not applicable"
    random = BROKEN["random layer"][0](sound["mlp"])
    assert check(assess(random), name).status == "not applicable"


def test_training_mode_is_handled_and_said(sound):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, affine=False), nn.Dropout(0.5), sound["mlp"]).train()
    result = assess(model)
    found = check(result, "evaluation mode")
    assert found.status == "passed" and "given in training mode" in found.measured
    assert not {"randomised outputs", "outputs depend on the batch"} & set(failed(result))
    assert model.training and model[1].num_batches_tracked == 0


def test_nonsense_is_caught(sound):
    """Labels that belong to other samples, weights that nobody trained."""
    data = datasets.load("digits", "test", size=SIZE)
    given = {"norm": 2, "eps": 0.5, "attacks": "quick"}
    assert "clean accuracy" in failed(evaluate(sound["mlp"], data.x, (data.y + 3) % 10, **given))
    result = evaluate(mlp((64, 64)), data.x, data.y, **given)
    assert "clean accuracy" in failed(result) and "wrong normalisation, labels or weights?" in str(result)


def test_the_probed_samples_are_spread_over_sorted_classes(sound):
    assert probes.spread(0).tolist() == [] and probes.spread(3).tolist() == [0, 1, 2]
    assert torch.equal(probes.spread(200), torch.arange(200)) and probes.spread(360)[-1] == 358
    data = datasets.load("digits", "test")
    order = data.y.argsort(stable=True)
    assert data.y[order][probes.spread(360)].bincount(minlength=10).min() >= 18

    class Half(nn.Module):
        """No gradient for the last five classes' images, which come last."""

        def forward(self, x):
            found = sound["mlp"](x)
            late = found.argmax(1) > 4
            return torch.where(late[:, None], found.detach(), found)

    x, y = data.x[order], data.y[order]
    result = evaluate(Half(), x, y, norm=math.inf, eps=0.1, attacks={"FGSM": partial(fgsm, norm=math.inf, eps=0.1)})
    share = check(result, "zero gradients").numbers["share"]
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("eps", [0.1, 0.01])
def test_the_checks_cost_about_what_the_quick_suite_does(sound, eps):
    data = datasets.load("digits", "test", size=SIZE)
    for name in ("mlp", "cnn", "adversarially trained"):
        result = evaluate(sound[name], data.x, data.y, norm=math.inf, eps=eps, attacks="quick", margins={})
        backward = sum(attack.cost.backward for attack in result.attacks.values())
        assert result.check_cost.backward < backward + 5
        assert result.check_cost.forward < backward + 5 + probes.QUERIES + probes.REPEATS + 20


def test_what_is_known_is_not_asked_again(sound, monkeypatch):
    """Without a tiny gradient the three cross-entropies are one, and find the same where each is asked."""
    given = assess(sound["mlp"])
    monkeypatch.setattr(probes, "FAINT", math.inf)
    asked = assess(sound["mlp"])
    for one, other in zip(given.checks, asked.checks, strict=True):
        assert one.status == other.status
    assert given.check_cost.backward < asked.check_cost.backward - 5


def test_fgsm_stands_in_the_suite(sound):
    result = assess(sound["mlp"], {"FGSM": partial(fgsm, norm=math.inf, eps=0.1)})
    assert "margin loss" in failed(result)  # one step alone is too weak to be believed
