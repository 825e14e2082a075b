"""MMA: on a linear model each sample's boundary is known; its distance is remembered, and it decides who counts."""

import copy
import math

import pytest
import torch
from tiny import D, context, data, gradients, network, run
from torch import nn

from margins.checkpoints import Checkpoint, OutOfTime
from margins.errors import MarginsError
from margins.methods.mma import Counted, MMACraft, mma_terms
from margins.methods.rows import Row
from margins.models import Linear
from margins.penalties.context import Context, Run, Threat
from margins.training import Recipe, train

INPUTS = 6


def linear(seed=0):
    """Two classes, points about the middle of the box, labels, and the gap f_y - f_other with its gradient."""
    generator = torch.Generator().manual_seed(seed)
    model = Linear(INPUTS, 2, generator=generator).to(D)
    x = 0.5 + 0.02 * torch.randn(40, INPUTS, generator=generator, dtype=D)
    with torch.no_grad():
        model.head.bias -= model(x).mean(0)
    y = torch.randint(0, 2, (40,), generator=generator)
    w = model.head.weight.detach()
    gap = (model(x).detach()[:, 0] - model(x).detach()[:, 1]) * (1 - 2 * y)
    return model, x, y, gap, w[0] - w[1]


def begun(model, x, y, threat, **settings):
    """A craft and its step on all samples at once."""
    part = MMACraft(**settings)
    part.begin(Run(model, x, y, 2, threat, len(x), False))
    return part, Context(model, x, y, torch.arange(len(x)), len(x), 0.0, 7, threat)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_on_a_linear_model_the_boundary_is_where_it_is_known_to_be(norm):
    model, x, y, gap, w = linear()
    exact = gap / (w.norm() if norm == 2 else w.abs().sum())
    right = gap > 0
    d_max = exact[right].quantile(0.7).item()
    threat = Threat(norm, d_max / 0.8, 0.01, 40)
    part, step = begun(model, x, y, threat, reach=0.8, bisections=14)
    part(step)
    far = 1.05 * d_max
    near = right & (exact < far)
    assert 5 < near.sum() < right.sum() < len(x)  # samples of every kind
    found = step.crafted["distance"]
    # The bisection halves the interval 14 times. PGD's travel of 2.5 radii ends at the corner of a linf ball, and on
    # the l2 sphere a little off the steepest direction: the boundary is met, but not where it is nearest
    off = (found - exact)[near]
    assert (off >= -far / 2**14).all() and (off <= far / 2**14 + (0.1 * exact[near] if norm == 2 else 0)).all()
    assert (found[right & ~near] >= far * (1 - 2**-13)).all() and (found[~right] == 0).all()
    assert torch.equal(step.x_adv[~right], x[~right])
    away = (step.x_adv - x).flatten(1)
    size = away.norm(dim=1) if norm == 2 else away.abs().amax(1)
    assert (size <= found + 1e-12).all()
    logits = model(step.x_adv).detach()
    assert ((logits[:, 0] - logits[:, 1]).abs()[near] <= far / 2**14 * w.abs().sum()).all()


def test_who_counts_is_wrong_or_nearer_than_d_max():
    model, x, y, gap, w = linear()
    exact = gap / w.abs().sum()
    d_max = exact[exact > 0].median().item() * 1.001
    threat = Threat(math.inf, d_max / 1.5, 0.01, 20)
    part, step = begun(model, x, y, threat, bisections=20)
    part(step)
    expected = (gap <= 0) | (exact < d_max)
    assert torch.equal(Counted()(step, "adversarial"), expected.double())
    assert not expected.all() and expected.any()


def test_the_loss_is_two_thirds_of_the_boundarys_and_a_third_of_the_clean_one():
    model, x, y, gap, w = linear()
    threat = Threat(math.inf, (gap / w.abs().sum()).abs().median().item() / 1.5, 0.01, 20)
    part, step = begun(model, x, y, threat, bisections=10)
    part(step)
    total = sum(term.coefficient * term.values(step).sum() / step.total for term in mma_terms())
    found = gradients(total, model)

    log_p = model(step.x_adv).log_softmax(1)
    far = step.crafted["distance"] >= 1.5 * threat.eps
    boundary = sum(-log_p[i, y[i]] for i in range(len(x)) if not (gap[i] > 0 and far[i])) / len(x)
    clean = nn.functional.cross_entropy(model(x), y)
    assert 0 < far.sum() < len(x)
    for one, other in zip(found, gradients(2 / 3 * boundary + clean / 3, model), strict=True):
        torch.testing.assert_close(one, other)


def test_without_a_clean_share_the_clean_term_is_gone():
    (term,) = mma_terms(0)
    assert term.coefficient == 1 and term.at == "adversarial"


def test_the_next_epochs_ball_is_the_distance_that_was_found():
    """PGD on a linear model ends on the surface of the ball: the radius shows in the place where it does."""
    model, x, y, gap, _ = linear()
    threat = Threat(math.inf, 0.1, 0.01, 5)
    part, step = begun(model, x, y, threat, reach=0.8)
    asked = []
    model.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].detach().clone()))
    part(step), part.after_step(None)
    right = gap > 0
    radius = part.state["radius"].clone()
    assert torch.equal(radius, step.crafted["distance"])
    asked.clear()
    again = Context(model, x, y, torch.arange(len(x)), len(x), 0.0, 8, threat)
    part(again)
    bisected = asked[1 + threat.steps]  # after the clean forward and the steps: at the last iterate, on the surface
    size = (bisected - x[right]).abs().amax(1)
    expected = radius[right].clamp(0.159375 * 0.1, 1.05 * 0.8 * 0.1)
    torch.testing.assert_close(size, expected)
    assert (radius[right] < 0.159375 * 0.1).any() and (radius[right] > 0.159375 * 0.1).any()


def test_what_is_remembered_belongs_to_the_sample_and_only_after_the_step():
    model, x, y, *_ = linear()
    part, _ = begun(model, x, y, Threat(math.inf, 0.1, 0.01, 5))
    index = torch.tensor([7, 3, 30])
    step = Context(model, x[index], y[index], index, 3, 0.0, 7, Threat(math.inf, 0.1, 0.01, 5))
    part(step)
    assert not part.state["radius"].any()
    other = copy.deepcopy(part)
    part.after_step(None)
    torch.testing.assert_close(part.state["radius"][index], step.crafted["distance"])
    assert part.state["radius"].count_nonzero() <= 3 and not other.state["radius"].any()


@pytest.mark.parametrize(("search_mode", "moved"), [("eval", 1), ("train", 1 + 10)])
def test_only_a_search_in_train_mode_moves_statistics(search_mode, moved):
    model = network("norm").train()
    step = context(model, adversarial=False)
    step.y = model.eval()(step.x).argmax(1)
    model.train()
    with torch.no_grad():
        model.head.weight *= 20  # or no probability is above one half
    part = MMACraft(search_mode=search_mode)
    part.begin(run(model))
    part(step)
    assert model.norm.num_batches_tracked == moved  # one is the clean forward's
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_a_batch_without_right_samples_stays_where_it_is():
    model, x, y, gap, _ = linear()
    wrong = gap <= 0
    part, step = begun(model, x[wrong], y[wrong], Threat(2, 0.1, 0.01, 3))
    part(step)
    assert torch.equal(step.x_adv, x[wrong]) and step.crafted["counted"].all()


@pytest.mark.parametrize("norm", [2, math.inf])
def test_points_stay_in_the_box(norm):
    model, x, y, *_ = linear()
    x = x.round().clamp(0, 1)
    part, step = begun(model, x, y, Threat(norm, 1.0, 0.1, 5))
    part(step)
    assert step.x_adv.min() >= 0 and step.x_adv.max() <= 1 and not torch.equal(step.x_adv, x)


class Stops(Checkpoint):
    """Stops after seven steps, in the middle of the third epoch."""

    left = 7

    def tick(self, state):
        self.left -= 1
        self.deadline = None if self.left else 0.0
        super().tick(state)


def test_a_killed_training_goes_on_with_the_same_distances(tmp_path):
    known = data(12)
    row = Row(MMACraft(reach=4.0), mma_terms())
    settings = {"recipe": Recipe(4, 4, lr=0.2), "threat": Threat(math.inf, 0.05, 0.01, 3), "seed": 0}
    whole = train(network("modal"), row, known, **settings)

    path = tmp_path / "checkpoint"
    with pytest.raises(OutOfTime):
        train(network("modal"), row, known, checkpoint=Stops(path), **settings)
    resumed = train(network("modal"), row, known, checkpoint=Checkpoint(path), **settings)
    assert all(torch.equal(value, resumed.last[name]) for name, value in whole.last.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMACraft(reach=0), "reach must be a finite number greater than 0"),
        (lambda: MMACraft(least=0), "least must be a finite number greater than 0"),
        (lambda: MMACraft(reach=1.0, least=1.5), "least must be at most reach, but is 1.5, and reach is 1.0"),
        (lambda: MMACraft(steps=0), "steps must be a whole number of at least 1"),
        (lambda: MMACraft(bisections=0), "bisections must be a whole number of at least 1"),
        (lambda: MMACraft(search_mode="test"), "search_mode must be one of 'train', 'eval'"),
        (lambda: mma_terms(1.2), "clean must be a finite number of at least 0 and at most 1"),
        (lambda: Counted()(context(network("mlp")), "adversarial"), "it needs the craft MMACraft"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(MarginsError, match=message):
        make()
