"""LMA-AT's regulariser: the average by hand, and that its gradient is pairing's, shifted and scaled (float64)."""

import copy
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from small import Net
from small import data as samples
from tiny import CLASSES, D, context, gradients, network, run, slope
from torch import nn

from margins import losses
from margins.errors import MarginsError
from margins.methods.rows import Row, Term
from margins.penalties.context import Context, Part, Threat
from margins.penalties.moving_average import MovingAverage
from margins.training import Recipe, train


class Given(nn.Module):
    """A model whose logits are given, so that steps are exactly known."""

    def __init__(self, clean, adversarial):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=D))
        self.clean, self.adversarial = clean, adversarial

    def forward(self, x):
        return self.scale * (self.adversarial if x.flatten()[0] > 0.5 else self.clean)


#: All that a part asks of a run after a step: here one process does all.
ALONE = SimpleNamespace(combine=lambda value: value)


def step(clean, adversarial, index, y):
    zeros = torch.zeros(len(clean), 1, dtype=D)
    given = {"total": len(clean), "progress": 0.0, "seed": 0, "threat": Threat(2, 1.0, 1.0), "x_adv": zeros + 1}
    return Context(Given(clean, adversarial), zeros, y, index, **given)


def logits(count=4, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, CLASSES, generator=generator, dtype=D) * size


def mhuber(u, alpha):
    """The formula, entry by entry."""
    if abs(u) <= alpha * math.pi / 2:
        return alpha**2 * (1 - math.cos(u / alpha))
    return alpha * abs(u) + (1 - math.pi / 2) * alpha**2


def values(average, alpha):
    return torch.tensor([sum(mhuber(float(u), alpha) for u in row) / len(row) for row in average], dtype=D)


def begun(count=8, batch_size=4, **settings):
    part = MovingAverage(**settings)
    part.begin(run(network("mlp"), count, batch_size))
    return part


@pytest.mark.parametrize(("direction", "tau", "past"), [("algorithm", 0.3, 0.3), ("appendix", 0.3, 0.7)])
def test_by_position_both_averages_are_those_of_algorithm_1(direction, tau, past):
    part = begun(tau=tau, alpha=1.1, direction=direction)
    clean_average = adversarial_average = torch.zeros(4, CLASSES, dtype=D)
    for t in range(5):
        clean, adversarial = logits(seed=t, size=2.0)
        clean_average = past * clean_average + (1 - past) * clean
        adversarial_average = past * adversarial_average + (1 - past) * adversarial
        found = part(step(clean, adversarial, torch.arange(4) + t, torch.zeros(4, dtype=int)), "both")
        part.after_step(ALONE)
        torch.testing.assert_close(found.detach(), values(adversarial_average - clean_average, 1.1))


def test_the_average_is_the_sum_with_the_appendixs_weights():
    part, tau, steps = begun(tau=0.4, direction="appendix"), 0.4, 6
    for t in range(steps):
        part(step(*logits(seed=t), torch.arange(4), torch.zeros(4, dtype=int)), "both")
        part.after_step(ALONE)
    weights = [tau * (1 - tau) ** i for i in range(steps)]  # Eq. 24
    differences = [logits(seed=t)[1] - logits(seed=t)[0] for t in range(steps)]
    expected = sum(weight * differences[steps - 1 - i] for i, weight in enumerate(weights))
    torch.testing.assert_close(part.state["average"], expected)
    assert sum(weights) == pytest.approx(1 - (1 - tau) ** steps)


def test_by_sample_each_meets_its_own_past_and_others_stay():
    part, tau = begun(tau=0.25, alpha=50.0, reading="sample"), 0.25
    memory = torch.zeros(8, CLASSES, dtype=D)
    for t, index in enumerate([[0, 1, 2, 3], [4, 2, 6, 0], [2, 0, 7, 1]]):
        clean, adversarial = logits(seed=t)
        memory[index] = tau * memory[index] + (1 - tau) * (adversarial - clean)
        found = part(step(clean, adversarial, torch.tensor(index), torch.zeros(4, dtype=int)), "both")
        part.after_step(ALONE)
        torch.testing.assert_close(found.detach(), values(memory[index], 50.0))
    torch.testing.assert_close(part.state["average"], memory)


def test_by_class_each_meets_its_classs_mean_and_absent_classes_stay():
    part, tau = begun(tau=0.25, alpha=50.0, reading="class"), 0.25
    memory = torch.zeros(CLASSES, CLASSES, dtype=D)
    for t, y in enumerate([[0, 0, 1, 0], [2, 1, 2, 1], [0, 1, 2, 1]]):
        clean, adversarial = logits(seed=t)
        mine = torch.stack([tau * memory[c] + (1 - tau) * (adversarial - clean)[i] for i, c in enumerate(y)])
        found = part(step(clean, adversarial, torch.arange(4), torch.tensor(y)), "both")
        part.after_step(ALONE)
        torch.testing.assert_close(found.detach(), values(mine, 50.0))
        for c in set(y):
            memory[c] = torch.stack([mine[i] for i in range(4) if y[i] == c]).mean(0)
        torch.testing.assert_close(part.state["average"], memory)


@pytest.mark.parametrize("settings", [{"tau": 0.0}, {"tau": 1.0, "direction": "appendix"}])
@pytest.mark.parametrize("reading", ["batch", "sample", "class"])
def test_without_a_past_it_is_plain_pairing_and_keeps_nothing(settings, reading):
    part = begun(count=7, batch_size=4, reading=reading, alpha=1.5, **settings)  # the uneven last batch does not matter
    assert part.state == {}
    for t in range(2):
        clean, adversarial = logits(seed=t, size=4.0)
        found = part(step(clean, adversarial, torch.arange(4), torch.zeros(4, dtype=int)), "both")
        part.after_step(ALONE)
        torch.testing.assert_close(found.detach(), values(adversarial - clean, 1.5))


def filled(reading="batch", tau=0.2, alpha=5.345, size=1.0):
    """A part with a past, and that past as the six samples of a context meet it."""
    part = MovingAverage(tau, alpha, reading)
    part.begin(run(network("mlp"), 6, 6))
    generator = torch.Generator().manual_seed(8)
    average = torch.randn(part.state["average"].shape, generator=generator, dtype=D) * size
    part.state["average"] = average.clone()
    y = context(network("mlp")).y
    return part, average[y] if reading == "class" else average


@pytest.mark.parametrize("reading", ["batch", "sample", "class"])
@pytest.mark.parametrize("size", [0.5, 20.0])  # within the knot of mHuber, and beyond it
def test_the_gradient_is_pairings_at_the_shifted_difference_times_one_minus_tau(reading, size):
    model, tau = network("cnn"), 0.2
    part, past = filled(reading, tau, size=size)
    found = gradients(part(context(model), "both").mean(), model)
    now = context(model)
    d = now.logits("adversarial") - now.logits("clean")
    u = ((1 - tau) * d + tau * past).detach()
    derivative = torch.where(u.abs() <= 5.345 * math.pi / 2, 5.345 * torch.sin(u / 5.345), 5.345 * u.sign())
    expected = gradients((1 - tau) * (derivative * d).mean(1).mean(), model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_in_the_quadratic_range_it_is_pairing_scaled_by_the_square_plus_a_shift():
    model, tau, alpha = network("cnn"), 0.2, 1e5
    part, past = filled("batch", tau, alpha)
    found = gradients(part(context(model), "both").mean(), model)
    now = context(model)
    d = now.logits("adversarial") - now.logits("clean")
    pairing = gradients((d.square() / 2).mean(1).mean(), model)
    now = context(model)
    d = now.logits("adversarial") - now.logits("clean")
    shift = gradients((past * d).mean(1).mean(), model)
    for one, pair, moved in zip(found, pairing, shift, strict=True):
        torch.testing.assert_close(one, (1 - tau) ** 2 * pair + tau * (1 - tau) * moved, rtol=1e-7, atol=1e-12)


def test_over_all_pasts_of_other_images_the_expected_gradient_has_their_mean():
    """The mean of the gradient over all orders in which the past can meet the samples is that at the mean past."""
    model, tau, alpha = network("mlp"), 0.2, 1e5
    part, past = filled("batch", tau, alpha)
    total = None
    for shift in range(6):
        part.state["average"] = past.roll(shift, 0)
        one = gradients(part(context(model), "both").mean(), model)
        total = one if total is None else [a + b for a, b in zip(total, one, strict=True)]
    part.state["average"] = past.mean(0).expand(6, -1)
    for mean, expected in zip(total, gradients(part(context(model), "both").mean(), model), strict=True):
        torch.testing.assert_close(mean / 6, expected, rtol=1e-6, atol=1e-12)


def test_the_first_step_is_pairing_with_the_square_of_one_minus_tau():
    """So the control of (tau, beta) = (0.2, 86) is tau 0 with beta 0.64 x 86 = 55, up to the past's share."""
    model = network("mlp")
    part, plain = MovingAverage(0.2, 1e4), MovingAverage(0.0, 1e4)
    for one in (part, plain):
        one.begin(run(model, 6, 6))
    averaged = gradients(86 * part(context(model), "both").mean(), model)
    paired = gradients(0.64 * 86 * plain(context(model), "both").mean(), model)
    for one, other in zip(averaged, paired, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("reading", ["batch", "sample", "class"])
def test_the_gradient_is_that_of_differences(reading):
    model = network("modal").train()
    part, _ = filled(reading, 0.6, alpha=0.4)
    weights = torch.rand(6, generator=torch.Generator().manual_seed(4), dtype=D)

    def penalty():
        return (weights * part(context(model), "both")).sum().detach()

    found = gradients((weights * part(context(model), "both")).sum(), model)
    for seed in range(3):
        directions, expected = slope(penalty, model, seed)
        along = sum((g * direction).sum() for g, direction in zip(found, directions, strict=True))
        assert float(along) == pytest.approx(expected, rel=1e-6)


def test_asked_twice_in_a_step_it_answers_the_same():
    part, _ = filled("sample")
    before = part.state["average"].clone()
    first, second = (part(context(network("mlp")), "both") for _ in range(2))
    assert torch.equal(first, second) and torch.equal(part.state["average"], before)
    part.after_step(ALONE), part.after_step(ALONE)
    assert not torch.equal(part.state["average"], before)


def test_copies_keep_their_own_past():
    part, past = filled("sample")
    other = copy.deepcopy(part)
    part(context(network("mlp")), "both"), part.after_step(ALONE)
    assert torch.equal(other.state["average"], past) and not torch.equal(part.state["average"], past)


def row(part):
    return Row(Shift(), (Term(losses.cross_entropy, "adversarial"), Term(part, "both", 3.0)))


@dataclass
class Shift(Part):
    """A craft that moves all samples alike."""

    def __call__(self, context, at):
        context.x_adv = (context.x + 0.1).clamp(0, 1)


def test_trained_by_the_loop_the_past_decides():
    known, ends = samples(12), []
    for part in (MovingAverage(0.5, reading="sample"), MovingAverage(0.5, reading="class"), MovingAverage(0.0)):
        model = Net()
        trained = train(model, row(part), known, recipe=Recipe(3, 5, lr=0.1), threat=Threat(2, 0.1, 0.1), seed=0)
        assert trained.status == "done"
        ends.append(model.head.weight.detach().clone())
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_uneven_batches_are_refused_before_training_and_drop_last_mends_it():
    known, threat = samples(12), Threat(2, 0.1, 0.1)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MarginsError, match=r"drop_last, or a batch_size that divides 12 \(it is 5\)"):
        train(model, row(MovingAverage()), known, recipe=Recipe(1, 5), threat=threat, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train(model, row(MovingAverage()), known, recipe=Recipe(1, 5, drop_last=True), threat=threat, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 1.0}, "tau: with direction 'algorithm', 1.0 never lets the logits in"),
        ({"tau": 0.0, "direction": "appendix"}, "tau: with direction 'appendix', 0.0 never lets the logits in"),
        ({"tau": -0.1}, "tau must be a finite number of at least 0 and at most 1"),
        ({"alpha": 0}, "alpha must be a finite number greater than 0"),
        ({"reading": "epoch"}, "reading must be one of 'batch', 'sample', 'class'"),
        ({"direction": "text"}, "direction must be one of 'algorithm', 'appendix'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(MarginsError, match=message):
        MovingAverage(**settings)


def test_it_needs_both_places():
    with pytest.raises(MarginsError, match="at must be one of 'both', but is 'clean'"):
        begun()(context(network("mlp")), "clean")
