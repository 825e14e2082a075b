"""What PGD promises whatever it finds: ball and box, batches and order, the model untouched, bad input refused."""

import math
from functools import partial

import known
import pytest
import torch
from test_pgd import NORMS, Line, generator, labelled, mlp, samples

from margins import losses
from margins.attacks.pgd import cw, pgd
from margins.errors import MarginsError


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["none", "uniform", "normal", "sphere", "image", "tensor"])
def test_it_stays_in_ball_and_box_and_says_what_it_found(norm, keep, dtype, start):
    model, (x, y) = mlp().to(dtype), labelled(mlp())
    x = x.to(dtype)
    x[:, :2] = x[:, :2].round()  # at the faces of the box
    begin = torch.rand(x.shape, generator=generator(1), dtype=dtype) * 3 - 1 if start == "tensor" else start
    found = pgd(model, x, y, norm=norm, eps=0.3, steps=7, step_size=0.1, start=begin, keep=keep)
    assert found.x_adv.dtype == dtype and not found.x_adv.requires_grad
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    delta = found.x_adv - x
    assert torch.equal(found.distance, torch.linalg.vector_norm(delta, norm, dim=1))
    assert found.distance.max() <= 0.3 + 1e-6
    assert torch.equal(found.success, losses.margin(model(found.x_adv), y) >= 0)
    wrong = losses.margin(model(x), y) >= 0
    assert wrong.any() and found.success[wrong].all() and torch.equal(found.x_adv[wrong], x[wrong])
    assert (found.distance[~wrong] > 0).all()
    assert (found.norm, found.eps) == (norm, 0.3)
    if keep == "best":
        failed = ~found.success
        assert (losses.log_odds(model(found.x_adv), y) >= losses.log_odds(model(x), y) - 1e-6)[failed].all()


@pytest.mark.parametrize("norm", NORMS)
def test_batches_order_and_neighbours_change_nothing(norm):
    model, (x, y) = mlp(), labelled(mlp())
    run = partial(pgd, model, norm=norm, eps=0.2 if norm == 2 else 0.08, steps=15, step_size=0.05)
    whole, again = run(x, y, generator=generator(4)), run(x, y, generator=generator(4))
    assert torch.equal(whole.x_adv, again.x_adv)
    assert 5 < whole.success.sum() < 55
    order = torch.randperm(60, generator=generator(0))
    mixed = run(x[order], y[order], generator=generator(4))
    parts = [run(x[i], y[i], generator=generator(4)) for i in torch.arange(60).split(7)]
    for x_adv in (mixed.x_adv[order.argsort()], torch.cat([part.x_adv for part in parts])):
        torch.testing.assert_close(x_adv, whole.x_adv, rtol=0, atol=1e-6)
    other = run(x, y, generator=generator(5))
    assert not torch.equal(other.x_adv, whole.x_adv)


def test_more_samples_than_go_at_a_time_are_each_attacked_once():
    model, x = mlp(), samples(1000)
    y = model(x).argmax(1)
    run = partial(pgd, model, norm=2, eps=0.2, steps=3, step_size=0.1, keep="last")
    found = run(x, y, generator=generator(0))
    alone = run(x[700:703], y[700:703], generator=generator(0))
    torch.testing.assert_close(found.x_adv[700:703], alone.x_adv, rtol=0, atol=1e-12)
    assert found.calls.forward == 1000 * 5 and found.calls.backward == 1000 * 3


def test_gradients_that_are_not_finite_spoil_only_their_own_pixels():
    model = Line(lambda x: 10 * x[:, :1] + x[:, 1:].sqrt() - 2)  # the second pixel's gradient at 0 is infinite
    model.forward = lambda x: torch.cat([torch.zeros_like(x[:, :1]), model.logit(x)], 1)
    x, y = torch.tensor([[0.1, 0.0], [0.1, 0.0]]), torch.tensor([0, 0])
    for norm in NORMS:
        found = pgd(model, x, y, norm=norm, eps=0.2, steps=5, step_size=0.1, start="none")
        assert found.success.all() and found.x_adv.isfinite().all()


def test_nothing_to_do():
    model, (x, y) = mlp(), labelled(mlp())
    for keep in ("best", "last"):
        empty = pgd(model, x[:0], y[:0], norm=2, eps=0.1, steps=3, step_size=0.1, keep=keep)
        assert empty.x_adv.shape == (0, 6) and empty.success.shape == empty.distance.shape == (0,)
        wrong = (model(x).argmax(1) + 1) % 4
        found = pgd(model, x, wrong, norm=2, eps=0.1, steps=3, step_size=0.1, keep=keep)
        assert torch.equal(found.x_adv, x) and found.success.all() and not found.distance.any()
        assert (found.calls.forward, found.calls.backward) == (60, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": 1}, "norm must be one of 2, inf"),
        ({"eps": -0.1}, "eps"),
        ({"steps": 0}, "steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"keep": "first"}, "keep must be one of 'best', 'last'"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"loss": None}, "loss"),
        ({"start": "zero"}, "start must be one of 'none'"),
        ({"start": torch.zeros(60, 5)}, "start must be like x"),
        ({"start": torch.full((60, 6), math.nan, dtype=torch.float64)}, "start must be finite"),
        ({"start": "image", "bounds": None}, "needs bounds"),
        ({"start": "none", "loss": "kl"}, "no gradient at x"),
        ({"floor": -1.0}, "floor"),
        ({"floor": 1e-6, "norm": math.inf}, "floor must be 0 for linf"),
        ({"generator": 0}, "generator must be"),
        ({"bounds": (1, 0)}, "bounds"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_asked(wrong, message):
    model, (x, y) = mlp(), labelled(mlp())
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was asked"))
    with pytest.raises(MarginsError, match=message):
        pgd(model, x, y, **({"norm": 2, "eps": 0.1, "steps": 2, "step_size": 0.1} | wrong))


def test_x_is_checked_before_it_is_compared_with_a_start():
    model, (x, y) = mlp(), labelled(mlp())
    with pytest.raises(MarginsError, match="x must be a tensor"):
        pgd(model, x.tolist(), y, norm=2, eps=0.1, steps=1, step_size=0.1, start=x)


def test_bad_losses_are_refused():
    two, x, y = known.linear(0, classes=2)
    with pytest.raises(MarginsError, match="at least 3 classes"):
        pgd(two, x, y, norm=2, eps=0.1, steps=1, step_size=0.1, loss="dlr")
    for loss in (lambda z, y: z, lambda z, y: z.sum(), lambda z, y: y, lambda z, y: z.sum(1) * math.nan):
        with pytest.raises(MarginsError, match=r"loss\(logits, y\)"):
            pgd(two, x, y, norm=2, eps=0.1, steps=1, step_size=0.1, loss=loss)
    with pytest.raises(MarginsError, match="kappa"):
        cw(two, x, y, eps=0.1, step_size=0.1, kappa=-1.0)
