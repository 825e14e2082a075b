"""FGSM, PGD and CW against linear models in closed form, exact plane geometry, and their own definitions."""

import math
from functools import partial

import known
import pytest
import torch
from torch import nn

from margins import losses, models, planar
from margins.attacks.pgd import cw, fgsm, pgd

BOX = (0.0, 1.0)
NORMS = [2, math.inf]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def mlp(seed=0, inputs=6, classes=4):
    model = models.build("mlp", inputs=inputs, hidden=(24, 24), classes=classes, generator=generator(seed)).double()
    with torch.no_grad():
        for layer in [*model.hidden, model.head]:
            layer.weight *= 2
        model.head.bias -= model(samples(500, inputs, seed)).mean(0)
    return model


def samples(count, inputs=6, seed=0):
    return torch.rand(count, inputs, generator=generator(seed + 100), dtype=torch.float64)


def labelled(model, count=60, seed=0):
    """Samples with the model's own predictions as labels, but for every seventh."""
    x = samples(count, seed=seed)
    logits = model(x).detach()
    y = logits.argmax(1)
    y[::7] = (y[::7] + 1) % logits.shape[1]
    return x, y


def middling(exact):
    """A radius at which about half of the samples that are right can be broken, and none lies on the boundary."""
    return 1.001 * exact[(exact > 0) & exact.isfinite()].median().item()


class Line(nn.Module):
    """Two classes on a line; class 1 has the logit that is given."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), self.logit(x)], 1)


@pytest.mark.parametrize("bounds", [BOX, None])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["cross-entropy", "margin", "cw"])
@pytest.mark.parametrize("start", ["none", "uniform", "sphere"])
def test_two_classes_it_reaches_the_exact_worst_point_of_ball_and_box(norm, bounds, loss, start):
    model, x, y = known.linear(3, inputs=12, classes=2)
    eps = middling(known.nearest(model, x, y, norm, bounds))
    worst = known.worst_gap(model, x, y, norm, eps, bounds)
    scale = (model.head.weight[0] - model.head.weight[1]).abs().max().item() * eps
    right = known.gaps(model, x, y)[0].amin(1) > 0
    kwargs = dict(norm=norm, eps=eps, steps=200, step_size=eps / 10, start=start, loss=loss, bounds=bounds)
    last = pgd(model, x, y, keep="last", **kwargs)
    torch.testing.assert_close(-losses.margin(model(last.x_adv), y)[right], worst[right], rtol=0, atol=1e-5 * scale)
    clear = worst.abs() > 1e-5 * scale
    assert 5 < (worst[right] < 0).sum() < right.sum() - 5
    for found in (last, pgd(model, x, y, keep="best", **kwargs)):
        assert torch.equal(found.success[clear], (~right | (worst < 0))[clear])


@pytest.mark.parametrize("bounds", [BOX, None])
@pytest.mark.parametrize("norm", NORMS)
def test_many_classes_it_succeeds_only_where_possible_and_towards_the_right_class_everywhere(norm, bounds):
    model, x, y = known.linear(5, inputs=12, classes=4)
    eps = middling(known.nearest(model, x, y, norm, bounds))
    possible = known.worst_gap(model, x, y, norm, eps, bounds) < 0
    run = partial(pgd, model, x, y, norm=norm, eps=eps, steps=200, step_size=eps / 10, start="none", bounds=bounds)
    alone = run().success
    assert not (alone & ~possible).any()
    assert (alone & possible).sum() >= 0.9 * possible.sum()
    towards = lambda target: lambda logits, y: logits[:, target] - logits.gather(1, y[:, None])[:, 0]  # noqa: E731
    assert torch.equal(torch.stack([run(loss=towards(k)).success for k in range(4)]).any(0), possible)


def test_in_the_plane_it_never_succeeds_below_the_exact_distance_and_mostly_above():
    model = models.build("mlp", inputs=2, hidden=(12,), classes=3, generator=generator(1)).double()
    with torch.no_grad():
        for layer in [*model.hidden, model.head]:
            layer.weight *= 3
        model.head.bias -= model(samples(500, 2)).mean(0)
    x = samples(30, 2, seed=7)
    y = model(x).argmax(1)
    margin = planar.planar_margin(model, x, y, (-2.0, 3.0, -2.0, 3.0))

    def found(norm, radius):
        each = zip(x.split(1), y.split(1), radius.tolist(), strict=True)
        run = partial(pgd, model, norm=norm, steps=20, bounds=None)
        return torch.cat([run(a, b, eps=eps, step_size=eps / 6).success for a, b, eps in each])

    assert not found(2, 0.999 * margin).any()
    assert not found(math.inf, 0.999 * margin / math.sqrt(2)).any()  # a square within the disc
    assert found(2, 1.05 * margin).double().mean() >= 0.75
    assert found(math.inf, 1.05 * margin).double().mean() >= 0.9  # a square around the disc


def test_one_step_is_the_formula():
    model, (x, y) = mlp(), labelled(mlp())
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(losses.cross_entropy(model(x), y).sum(), x)
    right = losses.margin(model(x), y) < 0
    step = {math.inf: gradient.sign(), 2: gradient / gradient.norm(dim=1, keepdim=True)}
    for norm in NORMS:
        found = fgsm(model, x, y, norm=norm, eps=0.1)
        expected = (x + 0.1 * step[norm]).clamp(0, 1)
        torch.testing.assert_close(found.x_adv[right], expected[right].detach(), rtol=0, atol=1e-12)
        assert not found.x_adv.requires_grad and not found.distance.requires_grad
        assert found.calls == type(found.calls)(60 + 2 * int(right.sum()), int(right.sum()))
    assert torch.equal(fgsm(model, x, y, norm=2, eps=0.0).x_adv, x)


def test_best_keeps_the_first_misclassified_iterate_and_last_the_last():
    model = Line(lambda x: 0.05 - (x - 0.28).abs())  # wrong within 0.05 of 0.28 only
    x, y = torch.tensor([[0.1]]), torch.tensor([0])
    run = partial(pgd, model, x, y, norm=math.inf, eps=0.5, step_size=0.2, start="none")
    assert run(steps=2, keep="best").x_adv.item() == pytest.approx(0.3)
    assert run(steps=9, keep="best").calls.backward == 2
    last = run(steps=2, keep="last")  # 0.1, 0.3, 0.1
    assert last.x_adv.item() == pytest.approx(0.1) and not last.success
    near = Line(lambda x: -0.02 - (x - 0.27).abs())  # never wrong; 0.3 is the best of 0.1 and 0.3
    found = pgd(near, x, y, norm=math.inf, eps=0.5, steps=4, step_size=0.2, start="none")
    assert found.x_adv.item() == pytest.approx(0.3) and not found.success


def test_an_iterate_without_an_answer_counts_as_found_whatever_its_loss():
    model = Line(lambda x: torch.where(x > 0.25, math.nan, x - 1))
    x, y = torch.tensor([[0.1]]), torch.tensor([0])
    for keep in ("best", "last"):
        found = pgd(model, x, y, norm=math.inf, eps=0.5, steps=1, step_size=0.2, start="none", keep=keep)
        assert found.success and found.x_adv.item() == pytest.approx(0.3)


def test_solved_samples_leave_the_batch_and_calls_count_what_is_left():
    model, (x, y) = mlp(), labelled(mlp())
    right = int((losses.margin(model(x), y) < 0).sum())
    last = pgd(model, x, y, norm=2, eps=0.3, steps=20, step_size=0.05, keep="last")
    best = pgd(model, x, y, norm=2, eps=0.3, steps=20, step_size=0.05)
    assert (last.calls.forward, last.calls.backward) == (60 + 21 * right, 20 * right)
    assert best.calls.backward < 0.8 * last.calls.backward
    assert (best.success | ~last.success).all()


@pytest.mark.parametrize("factor", [1e3, 1e4])
def test_confident_models_freeze_the_published_attack_and_not_ours(factor):
    model, x, y = known.linear(3, inputs=12, classes=2)
    right = known.gaps(model, x, y)[0].amin(1) > 0.05
    model, x, y = model.float(), x[right].float(), y[right]
    eps = middling(known.nearest(model.double(), x.double(), y, 2))
    exact = known.worst_gap(model, x.double(), y, 2, eps) < 0
    model.float()
    with torch.no_grad():
        model.head.weight *= factor
        model.head.bias *= factor
    run = partial(pgd, model, x, y, norm=2, eps=eps, steps=100, step_size=eps / 10, keep="last", generator=generator(0))
    frozen = run(start="none", floor=1e-6)
    assert exact.sum() > 10 and not frozen.success.any() and frozen.distance.max() < 1e-6
    for start in ("none", "uniform", "image"):
        assert torch.equal(run(start=start).success, exact)
    towards = pgd(model, x, y, norm=2, eps=eps / 10, steps=1, step_size=eps / 10, start="none", keep="last").x_adv
    assert torch.equal(run(start=towards, loss="kl").success, exact)  # away from the boundary the KL grows as well


def test_the_floor_divides_short_gradients_by_itself():
    model = models.build("linear", inputs=4, classes=2).double()
    x, y = torch.full((1, 4), 0.5, dtype=torch.float64), torch.tensor([0])
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]]) * 1e-3)
        model.head.bias.copy_(torch.tensor([1.0, 0]))
        share = 1 - model(x).softmax(1)[0, 0].item()  # the cross-entropy's gradient is share * (w_1 - w_0)
    size = share * math.sqrt(30) * 1e-3
    run = partial(pgd, model, x, y, norm=2, eps=1.0, steps=1, step_size=0.1, start="none", keep="last")
    assert run(floor=size / 2).distance.item() == pytest.approx(0.1)
    assert run(floor=size * 10).distance.item() == pytest.approx(0.01)
    assert run(floor=1.0).distance.item() == pytest.approx(0.1 * size)


def test_kl_has_the_gradient_of_kl_where_that_does_not_underflow():
    model, (x, y) = mlp(), labelled(mlp())
    begin, clean = (x + 0.05).clamp(0, 1), model(x).detach()
    point = begin.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.kl(model(point), clean).sum(), point)
    expected = (begin + 0.01 * gradient / gradient.norm(dim=1, keepdim=True)).clamp(0, 1)
    found = pgd(
        model,
        x,
        y,
        norm=2,
        eps=10,
        steps=1,
        step_size=0.01,
        start=begin,
        loss="kl",
        keep="last",
        generator=generator(0),
    )
    right = losses.margin(clean, y) < 0
    torch.testing.assert_close(found.x_adv[right], expected[right], rtol=0, atol=1e-9)


def test_kl_moves_between_points_of_which_the_model_is_certain():
    weight = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, -9.0]]) * 1e3  # gaps of thousands: exp(-gap) is 0 in float64
    model = models.build("linear", inputs=2, classes=3)
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.zero_()
    x, y = torch.tensor([[0.9, 0.9]]), torch.tensor([0])
    begin = torch.tensor([[0.8, 0.9]])
    run = partial(pgd, model, x, y, norm=2, eps=0.5, steps=1, step_size=0.1, start=begin, keep="last")
    assert run(loss="kl").x_adv[0].tolist() == pytest.approx([0.7, 0.9], abs=1e-4)  # towards the runner-up, class 1
    assert torch.equal(run(loss=lambda z, _: losses.kl(z, model(x))).x_adv, begin)


@pytest.mark.parametrize("loss", ["cross-entropy", "kl", "margin", "cw", "dlr", "margin-cross-entropy"])
def test_each_loss_is_ascended(loss):
    model, (x, y) = mlp(), labelled(mlp())
    right = losses.margin(model(x), y) < 0
    near = pgd(model, x, y, norm=2, eps=0.5, steps=5, step_size=0.01, start="normal", loss=loss, keep="last")
    far = pgd(model, x, y, norm=2, eps=0.5, steps=40, step_size=0.01, start="normal", loss=loss, keep="last")
    clean = model(x)
    value = {"kl": lambda z, y: losses.kl(z, clean), "cw": partial(losses.cw, kappa=50.0), "dlr": losses.dlr}.get(loss)
    value = value or getattr(losses, loss.replace("-", "_"))
    begin, middle, end = (value(model(at), y)[right] for at in (x, near.x_adv, far.x_adv))
    assert (begin < middle).double().mean() > 0.95 and (middle < end).double().mean() > 0.95


def test_cw_is_pgd_on_the_cw_loss():
    model, (x, y) = mlp(), labelled(mlp())
    kwargs = dict(eps=0.1, steps=5, step_size=0.03, keep="last")
    found = cw(model, x, y, **kwargs)
    assert torch.equal(found.x_adv, pgd(model, x, y, norm=math.inf, loss="cw", **kwargs).x_adv)
    assert torch.equal(found.x_adv, pgd(model, x, y, norm=math.inf, loss="margin", **kwargs).x_adv)
    flat = cw(model, x, y, **(kwargs | {"steps": 20}), kappa=0.0)  # stops where the margin loss reaches kappa
    assert not torch.equal(flat.x_adv, pgd(model, x, y, norm=math.inf, loss="margin", **(kwargs | {"steps": 20})).x_adv)
    assert cw(model, x, y, eps=0.1, step_size=0.01).calls.backward <= 20 * 60
