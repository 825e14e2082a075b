"""DeepFool: its conventions against a plain reference, linear models, its path, and the box."""

import math
from functools import partial

import pytest
import torch
from known import crossing
from torch import nn

from margins import datasets, models, planar
from margins.attacks.deepfool import Traced, deepfool

BOTH = pytest.mark.parametrize("norm", [2, math.inf])
BOX = (0.0, 1.0)
network = partial(crossing, inputs=10, hidden=(24, 24), scale=2)


def plain_deepfool(model, x, leave, norm, steps, overshoot, overshot, classes, target=None):
    """One sample, one gradient at a time: the total step without overshoot, whether the class changed, the classes."""
    total, chosen = torch.zeros_like(x), []
    order = [k for k in model(x[None])[0].argsort(descending=True).tolist() if k != leave][:classes]

    def changed(point):
        winner = model(point[None])[0].argmax().item()
        return winner == target if target is not None else winner != leave

    for _ in range(steps):
        point = (x + total * (1 + overshoot if overshot else 1)).requires_grad_()
        logits = model(point[None])[0]
        reference, candidates = leave, order
        if target is not None:
            reference, candidates = (
                max((k for k in range(len(logits)) if k != target), key=lambda k: logits[k]),
                [target],
            )
        best = math.inf, None, None
        for k in candidates:
            (w,) = torch.autograd.grad(logits[k] - logits[reference], point, retain_graph=True)
            gap = (logits[k] - logits[reference]).abs().item()
            size = gap / torch.linalg.vector_norm(w, 2 if norm == 2 else 1).item()
            if size < best[0]:
                best = size, k, size * (w / w.norm() if norm == 2 else w.sign())
        total, _ = total + best[2], chosen.append((reference, best[1]))
        if changed(x + (1 + overshoot) * total):
            return total, True, chosen
    return total, False, chosen


# The conventions


@BOTH
@pytest.mark.parametrize("overshot", [False, True])
@pytest.mark.parametrize(
    ("reference", "candidates", "steps"), [("prediction", None, 50), ("label", 2, 50), ("label", None, 1)]
)
def test_it_walks_as_a_plain_reference_does(norm, overshot, reference, candidates, steps):
    model, x, y = network()
    found = deepfool(
        model, x, y, norm=norm, steps=steps, reference=reference, candidates=candidates,
        linearise_at="overshot" if overshot else "plain", trace=True,
    )  # fmt: skip
    prediction = model(x).argmax(1)
    several = 0
    for i in range(len(x)):
        if reference == "label" and prediction[i] != y[i]:
            assert torch.equal(found.x_adv[i], x[i])
            assert (found.success[i], found.distance[i]) == (True, 0)
            continue
        leave = prediction[i].item()
        total, success, chosen = plain_deepfool(model, x[i], leave, norm, steps, 0.02, overshot, candidates or 9)
        assert found.success[i] == success
        assert torch.allclose(found.x_adv[i], x[i] + 1.02 * total * success, atol=1e-12)
        path = [
            (s.reference[s.samples == i].item(), s.chosen[s.samples == i].item()) for s in found.path if i in s.samples
        ]
        assert path == chosen
        several += len(path) > 1
    assert several > 5 or steps == 1
    if reference == "prediction":
        assert torch.equal(found.success, model(found.x_adv).argmax(1) != prediction)


def test_iterates_of_the_two_conventions_differ():
    model, x, y = network()
    both = [deepfool(model, x, y, linearise_at=at).distance for at in ("plain", "overshot")]
    assert not torch.allclose(*both)
    assert torch.allclose(*both, rtol=0.1)


@BOTH
def test_correction_moves_wrong_samples_into_their_class_and_leaves_the_others_path_alone(norm):
    model, x, y = network(batch=80)
    wrong = model(x).argmax(1) != y
    found = deepfool(model, x, y, norm=norm, steps=20, reference="correction", trace=True)
    plain = deepfool(model, x, y, norm=norm, steps=20)
    assert wrong.sum() == 10
    assert torch.equal(found.x_adv[~wrong], plain.x_adv[~wrong])
    assert torch.equal(plain.x_adv[wrong], x[wrong])
    assert found.success.sum() >= 78
    assert torch.equal((model(found.x_adv).argmax(1) == y)[wrong], found.success[wrong])
    changing = 0
    for i in wrong.nonzero()[:, 0].tolist():
        total, success, chosen = plain_deepfool(model, x[i], None, norm, 20, 0.02, False, 9, target=y[i].item())
        assert found.success[i] == success
        assert torch.allclose(found.x_adv[i], x[i] + 1.02 * total * success, atol=1e-9)
        if success:
            assert torch.allclose(found.distance[i], torch.linalg.vector_norm(1.02 * total, norm))
        steps = [step for step in found.path if i in step.samples]
        assert [(s.reference[s.samples == i].item(), s.chosen[s.samples == i].item()) for s in steps] == chosen
        changing += len({reference for reference, _ in chosen}) > 1
    assert changing > 0  # the class that is left is read anew at each iterate


@pytest.mark.parametrize("linearise_at", ["plain", "overshot"])
@pytest.mark.parametrize("steps", [2, 50])
def test_the_path_is_all_that_the_perturbation_takes_and_can_be_walked_with_a_graph(linearise_at, steps):
    model, x, y = network(batch=80)
    found = deepfool(model, x, y, steps=steps, reference="correction", linearise_at=linearise_at, trace=True)
    assert isinstance(found, Traced)
    assert not any(t.requires_grad for step in found.path for t in (step.move, step.chosen))
    assert 1 < len(found.path) <= steps
    factor = 1.02 if linearise_at == "overshot" else 1.0
    delta = torch.zeros_like(x)
    for step in found.path:  # as AMM's penalty does: one gradient of the chosen gap an iteration, with its graph
        rows = step.samples
        assert len(rows) == len(rows.unique())
        point = (x[rows] + factor * delta[rows]).requires_grad_()
        logits = model(point)
        gap = (logits.gather(1, step.reference[:, None]) - logits.gather(1, step.chosen[:, None]))[:, 0]
        (w,) = torch.autograd.grad(gap.sum(), point, create_graph=True)
        move = -(gap.abs() / w.square().sum(1))[:, None] * w
        assert move.requires_grad
        assert torch.allclose(move, step.move, atol=1e-12)
        delta = delta.index_add(0, rows, move)
    assert torch.allclose((x + 1.02 * delta)[found.success], found.x_adv[found.success], atol=1e-12)
    assert (found.success.sum() >= 78) == (steps == 50)
    (slope,) = torch.autograd.grad(delta.norm(), model.head.weight)
    assert slope.abs().sum() > 0


# What is exactly known


def test_no_shorter_than_the_exact_distance_of_the_plane():
    model, x, _ = network(3, inputs=2, classes=3, batch=60)
    y = model(x).argmax(1)
    exact = planar.planar_margin(model, x, y, (-9.0, 10.0, -9.0, 10.0))
    found = deepfool(model, x, y, overshoot=1e-5)
    assert found.success.all()
    assert (found.distance >= exact * (1 - 1e-9)).all()
    assert (found.distance <= exact * (1 + 1e-4)).double().mean() > 0.2  # where x's own linear region ends in it
    assert (found.distance <= exact * 1.2).double().mean() > 0.7


# The box


@BOTH
@pytest.mark.parametrize("linearise_at", ["plain", "overshot"])
def test_it_does_not_creep_at_the_faces_of_the_box(norm, linearise_at):
    digits = datasets.load("digits", "test")
    x, y = digits.x[:100].double().flatten(1), digits.y[:100]
    model = models.build(
        "mlp", inputs=64, hidden=(64,), classes=10, generator=torch.Generator().manual_seed(0)
    ).double()
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    train = datasets.load("digits", "train")
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(train.x.double().flatten(1)), train.y).backward()
        optimiser.step()
    x = x.round()  # every pixel at a face: half of all directions are blocked
    y = model(x).argmax(1)
    found = deepfool(model, x, y, norm=norm, bounds=BOX, linearise_at=linearise_at)
    free = deepfool(model, x, y, norm=norm, linearise_at=linearise_at)
    assert found.success.all()
    assert (model(found.x_adv).argmax(1) != y).all()
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    assert found.calls.backward < 9 * 3.5 * len(x)
    assert (found.distance > 1.1 * free.distance).double().mean() > 0.5


def test_far_from_the_faces_the_box_changes_nothing():
    model, x, y = network()
    wide = deepfool(model, x, y, bounds=(-99.0, 99.0))
    assert torch.allclose(wide.x_adv, deepfool(model, x, y).x_adv, atol=1e-9)


class Curved(nn.Module):
    """A gap that closes in the box, but not as it looks from x."""

    def forward(self, x):
        return torch.stack((1 - x[:, 0] ** 8, x[:, 0] * 0), 1)


@BOTH
def test_where_the_linearised_gap_closes_nowhere_in_the_box_it_goes_on(norm):
    x, y = torch.tensor([[0.3, 0.5]], dtype=torch.float64), torch.tensor([0])
    found = deepfool(Curved(), x, y, norm=norm, bounds=(0.0, 1.5))
    assert found.success.all()
    assert torch.allclose(found.distance, torch.tensor([1.2], dtype=torch.float64))  # moved to the face of the box


def test_gaps_that_nothing_closes_leave_the_batch():
    model = models.build("linear", inputs=3, classes=3).double()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0, 0]))
    x = torch.rand(4, 3, dtype=torch.float64)
    for bounds in (None, BOX):
        found = deepfool(model, x, torch.tensor([0, 0, 1, 0]), bounds=bounds, trace=True)
        assert found.success.tolist() == [False, False, True, False]
        assert found.distance.tolist() == [math.inf, math.inf, 0, math.inf]
        assert torch.equal(found.x_adv, x)
        assert (found.calls.forward, found.calls.backward) == (4 + 3, 6)
