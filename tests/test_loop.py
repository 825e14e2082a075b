"""The training loop: plain SGD done by hand is what it does, and each of its choices does what it says."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from small import THREAT, Net, data, recipe
from torch.nn import functional

from margins import losses
from margins.errors import MarginsError
from margins.methods.craft import PGD
from margins.methods.rows import Phase, Ramp, Row, Steps, Term
from margins.penalties.context import Part, Threat
from margins.training import train
from margins.training.batches import batches

STANDARD = Row(None, (Term(losses.cross_entropy, "clean"),))
AT = Row(PGD(), (Term(losses.cross_entropy),))


def run(row=STANDARD, model=None, on=None, seed=0, threat=THREAT, validation=None, **given):
    model = model or Net()
    trained = train(model, row, on or data(), recipe=recipe(**given), threat=threat, seed=seed, validation=validation)
    return model, trained


def by_hand(model, on, row_loss, epochs, batch_size, rates, momentum=0.9, weight_decay=0.0, nesterov=False, clip=None):
    """SGD as torch's documentation writes it."""
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    step = 0
    for epoch in range(epochs):
        for index in batches(len(on.x), batch_size, False, 0, epoch):
            loss = row_loss(model, on.x[index], on.y[index])
            gradients = list(torch.autograd.grad(loss, list(model.parameters())))
            if clip is not None:
                size = torch.cat([g.flatten() for g in gradients]).norm()
                gradients = [g * min(1.0, clip / (size + 1e-6)) for g in gradients]
            with torch.no_grad():
                for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                    g = g + weight_decay * p
                    v.mul_(momentum).add_(g)
                    p -= rates[step] * (g + momentum * v if nesterov else v)
            step += 1
    return model


def plain_loss(model, x, y):
    return functional.cross_entropy(model(x), y)


def same(a, b, tolerance=1e-12):
    return all(
        torch.allclose(p, q, rtol=tolerance, atol=tolerance)
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "given",
    [{}, {"weight_decay": 0.1}, {"nesterov": True}, {"clip": 0.3}, {"clip": 1e6, "weight_decay": 0.01}],
    ids=str,
)
def test_standard_training_is_sgd_by_hand(given):
    model, trained = run(**given)
    other = by_hand(Net(), data(), plain_loss, 2, 10, [0.1] * 8, **given)
    assert same(model, other)
    assert trained.status == "done" and trained.chosen == 2


def test_a_smaller_last_batch_counts_by_its_own_size_and_can_be_dropped():
    on = data(25)
    assert same(run(on=on)[0], by_hand(Net(), on, plain_loss, 2, 10, [0.1] * 6))
    seen = [index for epoch in range(2) for index in batches(25, 10, True, 0, epoch)]
    assert [len(index) for index in seen] == [10, 10, 10, 10]
    assert not same(run(on=on)[0], run(on=on, drop_last=True)[0])


def test_rates_of_the_schedules():
    steps = replace(recipe(), schedule="steps", epochs=10, drops=((0.5, 0.1), (0.8, 0.01)))
    rates = [steps.rate(step, 3) for step in range(30)]
    assert rates == [0.1] * 15 + [0.1 * 0.1] * 9 + [0.1 * 0.01] * 6
    cycle = replace(recipe(), schedule="one-cycle", epochs=10, warm_up=0.25)
    found = [cycle.rate(step, 4) for step in range(41)]
    assert found[0] == 0 and found[10] == pytest.approx(0.1) and found[40] == pytest.approx(0)
    assert found[5] == pytest.approx(0.05) and found[25] == pytest.approx(0.05)
    assert same(run(schedule="one-cycle")[0], by_hand(Net(), data(), plain_loss, 2, 10, [
        0.1 * min(k / 8 / 0.25, (1 - k / 8) / 0.75) for k in range(8)
    ]))  # fmt: skip


def test_the_average_of_weights_is_returned_and_the_model_goes_on_without_it():
    model, trained = run(average=0.5)
    plain, _ = run()
    assert same(model, plain)
    states = [by_hand_steps(count) for count in range(1, 9)]
    average = {name: value.clone() for name, value in states[0].items()}
    for state in states[1:]:
        average = {name: 0.5 * average[name] + 0.5 * state[name] for name in average}
    assert all(torch.allclose(trained.last[name], average[name], rtol=1e-9) for name in average)


def by_hand_steps(count):
    """The state after `count` steps, from the start."""
    fresh, done = Net(), 0
    optimizer = torch.optim.SGD(fresh.parameters(), 0.1, 0.9)
    for epoch in range(2):
        for index in batches(40, 10, False, 0, epoch):
            if done < count:
                optimizer.zero_grad()
                plain_loss(fresh, data().x[index], data().y[index]).backward()
                optimizer.step()
                done += 1
    return fresh.state_dict()


def test_norms_and_biases_without_decay():
    on, zero = data(), Row(None, (Term(losses.cross_entropy, "clean", coefficient=0.0),))
    model, _ = run(zero, Net(norm=True), on, weight_decay=0.5, decay_norms=False, momentum=0.0)
    before, after = Net(norm=True), model
    for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True):
        factor = (1 - 0.1 * 0.5) ** 8 if p.ndim > 1 else 1.0
        assert torch.allclose(q, factor * p, rtol=1e-10), name


def test_frozen_norms_stay_in_evaluation_mode_and_as_they_are():
    start = Net(norm=True)
    model, _ = run(AT, copy.deepcopy(start), frozen_norms=True)
    for name, value in model.state_dict().items():
        if name.startswith("body.3"):
            assert torch.equal(value, start.state_dict()[name]), name
    assert not torch.equal(model.head.weight, start.head.weight)


def test_pgd_training_is_pgd_by_hand():
    """From x itself: three steps of the gradient's sign, each into ball and box, then a step of SGD."""

    def attacked(model, x, y):
        here = x.clone()
        for _ in range(3):
            here = here.detach().requires_grad_()
            (g,) = torch.autograd.grad(functional.cross_entropy(model(here), y, reduction="sum"), here)
            here = (here + 0.025 * g.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
        return functional.cross_entropy(model(here.detach()), y)

    row = Row(PGD(start="none"), (Term(losses.cross_entropy),))
    assert same(run(row)[0], by_hand(Net(), data(), attacked, 2, 10, [0.1] * 8))


def test_the_ball_grows_in_the_ramp():
    seen = []

    class Watch(Part):
        def __call__(self, context, at):
            seen.append((context.threat.eps, (context.x_adv - context.x).abs().max().item()))
            return losses.cross_entropy(context.logits(at), context.y)

    run(Row(PGD(start="uniform"), (Term(Watch()),)), threat=Threat(math.inf, 0.1, 0.1, 3, ramp=0.5))
    assert [eps for eps, _ in seen] == pytest.approx([1e-7, 0.025, 0.05, 0.075] + [0.1] * 4)
    assert all(far <= eps * (1 + 1e-9) for eps, far in seen)


def test_coefficients_and_phases_follow_the_progress():
    steps, ramp = Steps(2.0, ((0.5, 0.1), (0.75, 0.0))), Ramp(4.0, until=0.5)
    assert [steps(p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1)] == [2, 2, 0.2, 0.2, 0, 0]
    assert [ramp(p) for p in (0, 0.25, 0.5, 1)] == [0, 2, 4, 4]
    later = (Phase(PGD(), (Term(losses.cross_entropy),), begin=0.5),)
    row = replace(STANDARD, later=later)
    _, trained = run(row, epochs=4)
    assert [math.isnan(v) for v in trained.curves["cross_entropy at clean"]] == [False, False, True, True]
    assert [math.isnan(v) for v in trained.curves["cross_entropy at adversarial"]] == [True, True, False, False]


@pytest.mark.parametrize("changes", [((0.9, 0.01), (0.6, 0.1)), ((60, 0.1),), ((0.5, -1.0),), (0.6, 0.1), 0.6])
def test_changes_of_a_coefficient_are_in_order_and_shares_of_the_training(changes):
    for wrong in (lambda: Steps(1.0, changes), lambda: recipe(drops=changes)):
        with pytest.raises(MarginsError, match=r"must be pairs \(share of the training, multiplier\)"):
            wrong()


@pytest.mark.parametrize("until", [0, -0.5, 1.5, math.nan])
def test_a_ramp_ends_within_the_training(until):
    with pytest.raises(MarginsError, match="until must be a finite number greater than 0 and at most 1"):
        Ramp(1.0, until)


def test_a_last_batch_of_one_that_norms_cannot_be_trained_on_is_told_beforehand():
    with pytest.raises(MarginsError, match="batch_size: 13 leaves one of 40 samples for the last batch"):
        run(STANDARD, Net(norm=True), batch_size=13)
    run(STANDARD, Net(norm=True), batch_size=13, drop_last=True, epochs=1)
    run(STANDARD, Net(), batch_size=13, epochs=1)


def test_a_term_of_the_parameters_may_be_a_plain_number():
    constant = Term(lambda model: 2.0, "parameters", 3.0)
    nets = [run(replace(STANDARD, terms=(*STANDARD.terms, *more)), epochs=1) for more in ((), (constant,))]
    assert same(nets[0][0], nets[1][0], 0)
    assert list(nets[1][1].curves.values())[1] == [2.0]


def test_selection_takes_the_best_epoch_by_validation_and_the_later_of_equals():
    held = data(30, seed=5)
    model, trained = run(AT, validation=held, epochs=6, lr=0.5)
    robust = trained.curves["validation PGD-10"]
    score = list(zip(robust, trained.curves["validation clean"], strict=True))
    assert trained.chosen == max(range(6), key=lambda e: (score[e], e)) + 1
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.last.items())
    short = run(AT, validation=held, epochs=6, lr=0.5, select_every=4)[1].curves["validation PGD-10"]
    assert [math.isnan(v) for v in short] == [True, True, True, False, True, False]
    assert short[3] == robust[3] and short[5] == robust[5]


def test_the_validation_changes_no_weight_of_the_training():
    assert same(run(AT, validation=data(30, seed=5))[0], run(AT)[0], 0)


def test_a_diverged_run_ends_and_says_so():
    model, trained = run(epochs=50, lr=1e200)
    assert trained.status == "diverged"
    assert len(trained.curves["cross_entropy at clean"]) < 50
    assert not model.training


def test_the_seed_decides_all_and_the_global_state_nothing():
    noisy = Row(PGD(start="uniform"), (Term(losses.cross_entropy),))
    nets = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        nets.append(run(noisy, Net(dropout=True), seed=seed)[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert same(nets[0], nets[1], 0) and not same(nets[0], nets[2])


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.5}, "momentum"),
        ({"schedule": "cosine"}, "schedule"),
        ({"schedule": "constant", "drops": ((0.5, 0.1),)}, "drops"),
        ({"drops": ((0.8, 0.1), (0.5, 0.01))}, "drops"),
        ({"clip": 0.0}, "clip"),
        ({"average": 2.0}, "average"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov"),
        ({"precision": "fp8"}, "precision"),
        ({"drop_last": True, "batch_size": 100}, "batch_size"),
    ],
    ids=str,
)
def test_a_bad_recipe_is_refused_by_name(given, name):
    with pytest.raises(MarginsError, match=name):
        run(**given)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Row(None, (Term(losses.cross_entropy),)), "craft"),
        (lambda: Row(PGD(), ()), "terms"),
        (lambda: Term(3.0), "function"),
        (lambda: Term(losses.cross_entropy, "everywhere"), "at"),
        (lambda: Term(losses.cross_entropy, coefficient=math.nan), "coefficient"),
        (lambda: Term(losses.cross_entropy, weight=losses.cross_entropy), "weight"),
        (lambda: Phase(PGD(), (Term(losses.cross_entropy),), begin=1.5), "begin"),
        (lambda: replace(AT, later=(Phase(None, STANDARD.terms), Phase(None, STANDARD.terms))), "later"),
        (lambda: PGD(loss="hinge"), "loss"),
        (lambda: PGD(start="here"), "start"),
        (lambda: Threat(math.inf, -1.0, 0.1), "eps"),
        (lambda: run(Row(None, (Term(lambda logits, y: logits.mean(), "clean"),))), "must return"),
        (lambda: run(replace(STANDARD, recipe={"learning_rate": 1.0})), "learning_rate"),
        (lambda: run(model=Net(classes=4)), "a logit for each of the 3 classes, but has 4"),
        (lambda: run(on=replace(data(), x=data().x + 1)), "box"),
        (lambda: run(validation=data(classes=2)), "a logit for each of the 2 classes"),
    ],
)
def test_a_bad_row_is_refused_by_name(make, name):
    with pytest.raises(MarginsError, match=name):
        make()
