"""AMM's regulariser of a network: the same as the whole attack with its graph, at every turn of it."""

import copy
from itertools import chain

import pytest
import torch
from tiny import CLASSES, D, context, gradients, network, slope

from margins.attacks.deepfool import deepfool
from margins.errors import MarginsError
from margins.models import Centred, Linear
from margins.penalties import amm
from margins.penalties.deepfool import DeepFoolMargin
from margins.penalties.paths import find

KINDS = [("AVG", "LIN"), ("AVG", "INV"), ("AVG", "EXP"), ("MIN", "LIN"), ("MIN", "INV"), ("MIN", "EXP")]


def naive(model, x, y, steps=6, overshoot=0.02, constant=False):
    """DeepFool of one sample with the graph of everything: (1 + overshoot) |D|, whether it is right, and its steps.

    constant: without a graph of the gaps' gradients.
    """
    x = x[None].requires_grad_()
    correct, total = bool(model(x)[0].argmax() == y), torch.zeros_like(x)
    taken = 0
    for _ in range(steps):
        taken += 1
        point = x + total
        f = model(point)[0]
        if correct:
            leave, others = y, [k for k in range(len(f)) if k != y]
        else:
            leave, others = f.detach().scatter(0, y, -torch.inf).argmax(), [y]
        moves = []
        for k in others:
            (w,) = torch.autograd.grad(f[k] - f[leave], point, create_graph=True)
            w = w.detach() if constant else w
            moves.append((f[k] - f[leave]).abs() / w.norm() * w / w.norm())
        total = total + min(moves, key=lambda move: float(move.detach().norm()))
        out = model(x + (1 + overshoot) * total)[0].argmax()
        if (out != y) == correct:
            break
    return (1 + overshoot) * total.norm(), correct, taken


def whole(part, model, x, y, constant=False):
    """The penalty of the batch from the naive attack, and how many steps each sample took."""
    found = [naive(model, one, label, part.steps, part.overshoot, constant) for one, label in zip(x, y, strict=True)]
    distances, correct = torch.stack([d for d, *_ in found]), torch.tensor([c for _, c, _ in found])
    return amm.penalty(part.aggregation, part.shrinkage, distances, correct, y, part.c, part.d), [s for *_, s in found]


def flat(value, model):
    return torch.cat([g.flatten() for g in gradients(value, model)])


@pytest.fixture(scope="module")
def nets():
    """Nets whose samples take one to several steps of DeepFool, some of the samples wrong."""
    found = {}
    for kind in ("mlp", "cnn", "modal"):
        model = network(kind).eval()
        step = context(model, count=12)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1.5
            x = step.x
            model.head.bias -= model(x).mean(0)  # or nearly all samples are of one class
            y = model(x).argmax(1)
            y[::4] = (y[::4] + 1) % CLASSES
        found[kind] = model, y
    return found


@pytest.mark.parametrize("kind", ["mlp", "cnn", "modal"])
@pytest.mark.parametrize(("aggregation", "shrinkage"), KINDS)
def test_value_and_gradient_are_those_of_the_whole_attack(nets, kind, aggregation, shrinkage):
    model, y = nets[kind]
    part = DeepFoolMargin(aggregation, shrinkage, c=1.3, d=0.4)
    step = context(model, count=12)
    step.y = y
    expected, steps = whole(part, model.eval(), step.x, y)
    found = part(step, "clean").mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    ours, theirs = flat(found, model), flat(expected, model)
    assert (ours - theirs).abs().max() <= 1e-8 * theirs.abs().max()
    assert max(steps) > 1  # or the recursion is not met


def test_a_run_that_ends_at_its_last_step_counts_as_far_as_it_came(nets):
    model, y = nets["cnn"]
    part = DeepFoolMargin("AVG", "LIN", steps=1)
    step = context(model, count=12)
    step.y = y
    expected, _ = whole(part, model, step.x, y)
    torch.testing.assert_close(part(step, "clean").mean(), expected, rtol=1e-9, atol=0)


def test_on_a_linear_model_the_distance_is_exact():
    model = Linear(16, CLASSES, generator=torch.Generator().manual_seed(2)).to(D)
    step = context(model, count=12)
    found = DeepFoolMargin("AVG", "LIN", c=2.0, d=3.0)(step, "clean")
    w, f = model.head.weight.detach(), model(step.x).detach()
    for i, y in enumerate(step.y.tolist()):
        if f[i].argmax() == y:
            distance = min((f[i, y] - f[i, k]) / (w[y] - w[k]).norm() for k in range(CLASSES) if k != y)
            torch.testing.assert_close(found[i].detach(), -2.0 * 1.02 * distance)
        else:  # with the truth as the only candidate and the prediction re-read, a step or several
            torch.testing.assert_close(found[i].detach(), 3.0 * naive(model, step.x[i], step.y[i])[0].detach())


def test_the_gradient_is_that_of_differences_of_the_attack_itself(nets):
    model, y = nets["mlp"]
    part = DeepFoolMargin("MIN", "EXP")

    def penalty():
        step = context(model, count=12)
        step.y = y
        return part(step, "clean").mean()

    found = gradients(penalty(), model)
    for seed in range(5):
        directions, expected = slope(penalty, model, seed)
        along = sum((g * direction).sum() for g, direction in zip(found, directions, strict=True))
        assert float(along) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("aggregation", ["AVG", "MIN"])
def test_of_a_curved_model_later_steps_bend_what_earlier_ones_do(aggregation, second_order):
    """A smooth net, whose second derivatives to the input are not zero, with several steps a sample."""
    generator = torch.Generator().manual_seed(4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in model.to(D).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.6)
        step = context(model, count=12)
        model[3].bias -= model(step.x).mean(0)
        step.y = model(step.x).argmax(1)
        step.y[::4] = (step.y[::4] + 1) % CLASSES
    part = DeepFoolMargin(aggregation, "EXP", second_order=second_order)
    expected, steps = whole(part, model, step.x, step.y, constant=not second_order)
    assert max(steps) > 2
    found = part(step, "clean").mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    ours, theirs = flat(found, model), flat(expected, model)
    assert (ours - theirs).abs().max() <= 1e-8 * theirs.abs().max()


@pytest.mark.parametrize("kind", ["mlp", "cnn", "modal"])
def test_without_second_order_gaps_alone_carry_the_gradient(nets, kind):
    model, y = nets[kind]
    part, step = DeepFoolMargin("AVG", "EXP", second_order=False), context(model, count=12)
    step.y = y
    expected, steps = whole(part, model, step.x, y, constant=True)
    found = part(step, "clean").mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    ours, theirs = flat(found, model), flat(expected, model)
    assert (ours - theirs).abs().max() <= 1e-8 * theirs.abs().max() and max(steps) > 1


def test_paths_are_those_of_the_attack(nets):
    """The attack of `margins.attacks` walks right and wrong samples one group after the other, class by class."""
    for model, y in nets.values():
        x, model = context(model, count=12).x, model.eval()
        for candidates in (None, 1):
            attack = {"reference": "correction", "trace": True, "steps": 6, "candidates": candidates}
            expected = deepfool(model, x, y, **attack).path
            found = find(model, x, y, 6, 0.02, candidates)
            moved = torch.zeros_like(x)
            for step in expected:
                moved[step.samples] += step.move
            torch.testing.assert_close(found.moved, moved, rtol=1e-9, atol=1e-12)
            taken = [zip(*map(torch.Tensor.tolist, (p.samples, p.reference, p.chosen)), strict=True) for p in expected]
            ours = [zip(*map(torch.Tensor.tolist, (p.samples, p.leave, p.towards)), strict=True) for p in found.steps]
            assert sorted(chain(*ours)) == sorted(chain(*taken))


def test_many_wrong_samples_walk_by_themselves_to_the_same_end(nets):
    model, y = nets["mlp"]
    x, wrong = context(model, count=12).x, (y + 1) % CLASSES
    wrong[:3] = model(x[:3]).argmax(1)
    together = find(model, x, wrong, 6, 0.02)
    alone = torch.cat([find(model, one[None], label[None], 6, 0.02).moved for one, label in zip(x, wrong, strict=True)])
    torch.testing.assert_close(together.moved, alone, rtol=1e-9, atol=1e-12)


def test_normalised_distances_are_divided_by_the_length_of_what_the_first_layer_sees(nets):
    model, y = nets["mlp"]
    centred = Centred(copy.deepcopy(model), torch.full((1, 4, 4), 0.3, dtype=D))
    for net, mean in ((model, 0.0), (centred, 0.3)):
        values = []
        for normalised in (False, True):
            step = context(net, count=12)
            step.y = y
            values.append(DeepFoolMargin("AVG", "LIN", c=1.0, d=1.0, normalised=normalised)(step, "clean"))
        sizes = (context(net, count=12).x - mean).flatten(1).norm(dim=1)
        torch.testing.assert_close(values[1], values[0] / sizes)


def test_second_derivatives_matter(nets):
    """Without them the gradient is another one: the comparison with the whole attack would see it."""
    model, y = nets["mlp"]
    part, step = DeepFoolMargin("AVG", "LIN"), context(model, count=12)
    full, masked = (flat(whole(part, model, step.x, y, constant)[0], model) for constant in (False, True))
    assert (full - masked).norm() > 0.1 * full.norm()


def test_left_out_samples_are_zero_and_kept_ones_are_not():
    model = network("mlp")
    step = context(model, count=12)
    values = DeepFoolMargin("MIN", "EXP")(step, "clean")
    correct = model(step.x).argmax(1) == step.y
    assert (values[~correct] > 1).all() and 0 < (values[correct] > 0).sum() <= max(1, round(0.2 * 12))


def test_dropout_and_norms_are_those_of_evaluation():
    model = network("modal").train()
    step = context(model)
    found = DeepFoolMargin("AVG", "EXP")(step, "clean")
    assert model.training and model.norm.num_batches_tracked == 0
    model.eval()
    torch.testing.assert_close(DeepFoolMargin("AVG", "EXP")(context(model), "clean"), found)


def test_single_samples_add_up_without_an_aggregation():
    model = network("cnn")
    part, step = DeepFoolMargin("AVG", "EXP"), context(model)
    whole = part(step, "adversarial")
    step = context(model)
    step.x_adv, step.y = step.x_adv[1:3], step.y[1:3]
    torch.testing.assert_close(part(step, "adversarial"), whole[1:3])
    assert not part.batch_wide and DeepFoolMargin("MIN").batch_wide


class Slow(torch.autograd.Function):
    """A ReLU whose backward is its own, as of an extension."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


def test_a_backward_of_the_models_own_is_asked_class_by_class(nets):
    model, y = nets["mlp"]
    own = copy.deepcopy(model)
    own.features = lambda x: Slow.apply(own.hidden[1](Slow.apply(own.hidden[0](x.flatten(1)))))
    values = []
    for net in (model, own):
        step = context(net, count=12)
        step.y = y
        value = DeepFoolMargin("AVG", "EXP")(step, "clean").mean()
        values.append((value.detach(), flat(value, net)))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_tie_has_no_length_and_a_finite_gradient():
    model = Linear(16, CLASSES).to(D)
    with torch.no_grad():
        model.head.weight.copy_(torch.arange(CLASSES * 16).reshape(CLASSES, 16) % 7)
        model.head.bias.copy_(-model.head.weight.sum(1) / 2)
    step = context(model, count=1)
    step.x, step.y = torch.full_like(step.x, 0.5), torch.tensor([1])  # all logits are 0
    value = DeepFoolMargin("AVG", "LIN")(step, "clean").sum()
    assert value == 0 and all(g.isfinite().all() for g in gradients(value, model))


def test_a_diverged_model_gives_nan_and_no_error():
    model = network("mlp")
    with torch.no_grad():
        model.head.weight *= torch.nan
    assert DeepFoolMargin()(context(model), "clean").isnan().all()


def test_a_dead_model_has_no_distance_and_a_finite_gradient():
    model = network("mlp")
    with torch.no_grad():
        model.hidden[0].bias -= 100
    values = DeepFoolMargin("AVG", "EXP")(context(model), "clean")
    assert torch.equal(values, torch.ones_like(values))
    assert all(g.isfinite().all() for g in gradients(values.mean() + model(context(model).x).sum(), model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregation": "MAX"}, "aggregation must be one of 'AVG', 'MIN', but is 'MAX'"),
        ({"shrinkage": "exp"}, "shrinkage must be one of 'LIN', 'EXP', 'INV'"),
        ({"c": 0}, "c must be a finite number greater than 0"),
        ({"d": -1.0}, "d must be a finite number greater than 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"candidates": 0}, "candidates must be a whole number of at least 1"),
        ({"longest": 0}, "longest must be a finite number greater than 0"),
        ({"second_order": 2}, "second_order must be one of True, False"),
        ({"overshoot": -0.1}, "overshoot must be a finite number of at least 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(MarginsError, match=message):
        DeepFoolMargin(**settings)


def test_distances_are_truncated_at_the_longest(nets):
    model, y = nets["mlp"]
    step = context(model, count=12)
    step.y = y
    found = [naive(model.eval(), x, label) for x, label in zip(step.x, y, strict=True)]
    distances, correct = torch.stack([d for d, *_ in found]), torch.tensor([right for _, right, _ in found])
    longest = distances.mean().item()
    part = DeepFoolMargin("AVG", "EXP", c=1.3, d=0.4, longest=longest)
    expected = amm.penalty("AVG", "EXP", distances.clamp(max=longest), correct, y, 1.3, 0.4)
    torch.testing.assert_close(part(step, "clean").mean(), expected, rtol=1e-9, atol=0)
    ours, theirs = flat(part(step, "clean").mean(), model), flat(expected, model)
    assert (ours - theirs).abs().max() <= 1e-8 * theirs.abs().max()


def test_a_walk_of_a_wrong_sample_may_be_too_long_for_exp():
    model = Linear(16, 2).to(D)
    with torch.no_grad():
        model.head.weight.copy_(1e-4 * torch.eye(2, 16))  # the gap is 1, and hardly depends on the input
        model.head.bias.copy_(torch.tensor([1.0, 0.0]))
    step = context(model, count=4)
    step.y = torch.ones(4, dtype=torch.long)
    far = DeepFoolMargin("MIN", "EXP")(step, "clean")
    assert far.isinf().all()
    near = DeepFoolMargin("MIN", "EXP", longest=2.0)(step, "clean")
    torch.testing.assert_close(near, torch.full_like(near, 2.0).exp())
