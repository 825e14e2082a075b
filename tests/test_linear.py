"""Linear classifiers: the exact SVM, AMM's toy training, gradient descent on logistic regression."""

import numpy as np
import pytest
import torch

from margins import datasets
from margins.errors import MarginsError
from margins.linear import logistic, toy
from margins.linear.svm import hard_margin_svm
from margins.margin import binary_margin
from margins.papers.amm.toy import PAIRS, TOY, angles, mean_difference, toy_data

D = torch.float64


def boxes(seed=0):
    (x, y) = toy_data(200, [seed])["train"]
    return x[0], y[0]


def test_svm_in_closed_form():
    x = np.array([[2.0, 1.0], [3.0, -5.0], [-1.0, 4.0], [-6.0, 0.0]])
    y = np.array([1, 1, 0, 0])
    fit = hard_margin_svm(x[[0, 2]], y[[0, 2]], bias=True)  # two points: their perpendicular bisector
    direction = x[0] - x[2]
    np.testing.assert_allclose(
        fit.weight / np.linalg.norm(fit.weight), direction / np.linalg.norm(direction), rtol=1e-6
    )
    assert fit.margin == pytest.approx(np.linalg.norm(direction) / 2, rel=1e-6)
    through_zero = hard_margin_svm(np.array([[1.0, 2.0], [-3.0, 1.0]]), np.array([1, 0]), bias=False)
    # min |w| with w (1, 2) >= 1 and w (3, -1) >= 1: both constraints bind
    np.testing.assert_allclose(through_zero.weight, np.linalg.solve([[1, 2], [3, -1]], [1, 1]), rtol=1e-9)


def test_svm_agrees_with_scikit_learn():
    from sklearn.svm import SVC

    x, y = (part.numpy() for part in boxes())
    reference = SVC(kernel="linear", C=1e7, tol=1e-9).fit(x, y)
    norm = np.linalg.norm(reference.coef_)
    ours = hard_margin_svm(x, y, bias=True)
    margin = (np.where(y == 1, 1, -1) * (x @ reference.coef_[0] + reference.intercept_)).min() / norm
    assert ours.margin == pytest.approx(margin, rel=1e-5)
    assert ours.margin >= margin * (1 - 1e-9)
    np.testing.assert_allclose(ours.weight / np.linalg.norm(ours.weight), reference.coef_[0] / norm, atol=1e-4)
    both = np.vstack([x, -x]), np.r_[y, 1 - y]  # symmetric: the bias is zero, as without one
    centred = SVC(kernel="linear", C=1e7, tol=1e-9).fit(*both)
    ours = hard_margin_svm(x, y, bias=False)
    assert ours.margin == pytest.approx(1 / np.linalg.norm(centred.coef_), rel=1e-4)


def test_svm_says_what_is_wrong():
    with pytest.raises(MarginsError, match="can't be separated by a hyperplane through 0"):
        hard_margin_svm(np.array([[1.0, 0], [2.0, 0]]), np.array([0, 1]), bias=False)
    with pytest.raises(MarginsError, match="can't be separated"):
        hard_margin_svm(np.array([[0.0], [1.0], [2.0]]), np.array([0, 1, 0]), bias=True)
    with pytest.raises(MarginsError, match=r"shapes \(2, 1\) and \(3,\) given"):
        hard_margin_svm(np.zeros((2, 1)), np.zeros(3), bias=True)


def test_toy_distances_are_exact():
    weights = torch.tensor([3.0, 4.0, -10.0], dtype=D)
    x, y = torch.tensor([[2.0, 1.0], [0.0, 0.0], [2.0, 4.0]], dtype=D), torch.tensor([1, 0, 0])
    torch.testing.assert_close(toy.signed_margins(weights, x, y), torch.tensor([0.0, 2.0, -2.4], dtype=D))


def test_the_three_forms_of_a_linear_margin_agree():
    generator = torch.Generator().manual_seed(0)
    x, y = boxes()
    for w in torch.randn(5, 3, generator=generator, dtype=D):
        exact = binary_margin(w[:2], w[2], x, y)
        torch.testing.assert_close(toy.signed_margins(w, x, y), exact)
        no_bias = binary_margin(w[:2], 0.0, x, y)
        torch.testing.assert_close(logistic.margins_along(w[None, :2], x, y)[0], no_bias)


SHORT = {key: TOY[key] for key in TOY if key != "size"} | {"epochs": 12, "every": 4}


def test_toy_runs_do_not_depend_on_what_runs_beside_them():
    (x, y) = toy_data(40, [3, 8])["train"]
    noted, together = toy.train(list(PAIRS.values()), x, y, [3, 8], **SHORT)
    assert noted == [0, 4, 8, 12] and together.shape == (4, 6, 2, 3)
    for p, pair in enumerate(PAIRS.values()):
        _, alone = toy.train([pair], x[1:], y[1:], [8], **SHORT)
        assert torch.equal(alone[:, 0, 0], together[:, p, 1])


def test_toy_training_is_torch_sgd():
    """One run against torch's own optimiser and gradient clipping, step by step."""
    (x, y) = toy_data(40, [5])["train"]
    _, ours = toy.train([("AVG", "EXP")], x, y, [5], **SHORT | {"clip": 0.05, "halve_every": 5})
    generator = torch.Generator().manual_seed(5)
    start = (torch.rand(3, generator=generator, dtype=D) * 2 - 1) / 2**0.5
    w = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    for _ in range(12):
        for batch in torch.randperm(80, generator=generator).split(20):
            score = x[0, batch] @ w[:2] + w[2]
            distance = score.abs() / w[:2].norm()
            right = (score > 0) == (y[0, batch] == 1)
            loss = torch.where(right, (-distance).exp(), distance.exp()).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([w], 0.05)
            optimizer.step()
        scheduler.step()
    torch.testing.assert_close(ours[-1, 0, 0], w.detach(), rtol=1e-4, atol=1e-6)


def test_mean_difference_is_what_average_distances_ask_for():
    x, y = boxes(2)
    direction = mean_difference(x, y)
    torch.testing.assert_close(direction, x[y == 1].mean(0) - x[y == 0].mean(0))
    assert angles(torch.tensor([1.0, 1, 5], dtype=D), torch.tensor([1.0, 0], dtype=D)) == pytest.approx(45)


def digits():
    data = datasets.load("digits", "train", classes=(0, 1))
    return data.x.double().flatten(1), data.y


def test_descent_is_gradient_descent():
    x, y = digits()
    path = logistic.descend(x, y, lr=0.1, epochs=30, growing=False, per_decade=4)
    assert path.steps == [0, 1, 2, 4, 6, 10, 18, 30]
    assert path.epochs == pytest.approx(path.steps)
    w = torch.zeros(64, dtype=D, requires_grad=True)
    sign = torch.where(y == 1, 1.0, -1.0)
    for _ in range(30):
        loss = torch.nn.functional.softplus(-sign * (x @ w)).mean()
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - 0.1 * gradient).detach().requires_grad_()
    torch.testing.assert_close(path.weights[-1], w.detach(), rtol=1e-10, atol=1e-12)


def test_growing_steps_follow_the_same_path_and_reach_the_svm():
    x, y = digits()
    grown = logistic.descend(x, y, lr=0.1, epochs=1e30, growing=True)
    constant = logistic.descend(x, y, lr=0.1, epochs=3000, growing=False)
    for moment in (300, 3000):
        i = np.searchsorted(grown.epochs, moment)
        # interpolate the grown path to the moment, in log time
        part = (np.log(moment) - np.log(grown.epochs[i - 1])) / np.log(grown.epochs[i] / grown.epochs[i - 1])
        w = (1 - part) * grown.weights[i - 1] + part * grown.weights[i]
        reference = constant.weights[np.searchsorted(constant.epochs, moment * (1 - 1e-9))]
        cosine = torch.nn.functional.cosine_similarity(w, reference, dim=0)
        assert torch.rad2deg(torch.arccos(cosine.clamp(max=1))) < 1
    svm = hard_margin_svm(x, y, bias=False)
    margin = logistic.margins_along(grown.weights, x, y).min(1).values
    assert 0.95 * svm.margin < margin[-1] <= svm.margin * (1 + 1e-9)


def test_leaving_out_negligible_samples_changes_nothing(monkeypatch):
    x, y = digits()
    quick = logistic.descend(x, y, lr=0.1, epochs=1e12, growing=True)
    monkeypatch.setattr(logistic, "_NEGLIGIBLE", 0.0)
    whole = logistic.descend(x, y, lr=0.1, epochs=1e12, growing=True)
    assert quick.steps == whole.steps
    torch.testing.assert_close(quick.weights, whole.weights, rtol=1e-9, atol=1e-9)


def test_batches_are_torch_sgd_and_one_batch_is_gradient_descent():
    x, y = digits()
    options = {"lr": 0.1, "momentum": 0.0, "generator": torch.Generator().manual_seed(0)}
    one = logistic.descend_in_batches(x, y, epochs=6, batch_size=len(x), **options)
    whole = logistic.descend(x, y, lr=0.1, epochs=6, growing=False)
    assert one.epochs == whole.epochs and one.steps == whole.steps
    torch.testing.assert_close(one.weights, whole.weights, rtol=1e-9, atol=1e-12)
    runs = [
        logistic.descend_in_batches(
            x, y, lr=0.01, epochs=3, batch_size=100, momentum=0.9, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert runs[0].steps == [0, 3, 6, 9] and torch.equal(runs[0].weights, runs[1].weights)
    assert not torch.equal(runs[0].weights, runs[2].weights)
    w = torch.zeros(64, dtype=D, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.01, momentum=0.9, nesterov=True)
    order = torch.Generator().manual_seed(1)
    for _ in range(3):
        for batch in torch.randperm(len(x), generator=order).split(100):
            optimizer.zero_grad()
            torch.nn.functional.softplus(-(2 * y[batch] - 1) * (x[batch] @ w)).mean().backward()
            optimizer.step()
    torch.testing.assert_close(runs[0].weights[-1], w.detach(), rtol=1e-9, atol=1e-12)


def test_equation_7_lands_on_the_boundary_at_the_margin():
    x, y = digits()
    weight = torch.randn(64, dtype=D, generator=torch.Generator().manual_seed(0))
    moved = logistic.adversarial(weight, x)
    assert (moved @ weight).abs().max() < 1e-12
    distance = logistic.margins_along(weight[None], x, y)[0].abs()
    torch.testing.assert_close((moved - x).norm(dim=1), distance)
