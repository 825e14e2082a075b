"""Penalties of input gradients, IGR and EMR's approximation, against closed forms, plain formulas and differences."""

import pytest
import torch
from tiny import CLASSES, D, context, differences, gradients, network

from margins.errors import MarginsError, Unshareable
from margins.methods.rows import Term
from margins.models import Linear
from margins.penalties.emr import ApproximateEMR
from margins.penalties.gradient import InputGradient
from margins.training import processes

PARTS = [InputGradient(), InputGradient("eval"), ApproximateEMR(), ApproximateEMR(0.3, "train"), ApproximateEMR(40.0)]


def value(part, model, at="clean", **settings):
    return part(context(model, **settings), at)


def linear():
    return Linear(16, CLASSES, generator=torch.Generator().manual_seed(2)).to(D)


def test_on_a_linear_model_igr_is_the_length_of_a_difference_of_rows():
    model, step = linear(), context(linear())
    w, p = model.head.weight.detach(), model(step.x).softmax(1).detach()
    expected = [((p[i, :, None] * w).sum(0) - w[step.y[i]]).square().sum() for i in range(len(step.y))]
    torch.testing.assert_close(InputGradient()(context(model), "clean").detach(), torch.stack(expected))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_on_a_linear_model_approximate_emr_is_the_length_of_the_mean_row(temperature):
    model, step = linear(), context(linear())
    w, f = model.head.weight.detach(), model(step.x_adv).detach()
    products = w @ w.T  # Eq. 7: the sum over j and k of p_j p_k <w_j, w_k>
    p = torch.exp(f / temperature) / torch.exp(f / temperature).sum(1, keepdim=True)
    expected = [sum(p[i, j] * p[i, k] * products[j, k] for j in range(3) for k in range(3)) for i in range(len(f))]
    found = ApproximateEMR(temperature)(context(model), "adversarial")
    torch.testing.assert_close(found.detach(), torch.stack(expected))


def test_the_limits_of_the_temperature_are_the_predicted_row_and_the_mean_row():
    model = network("cnn")
    step = context(model)
    x = step.x.clone().requires_grad_()
    logits = model(x)
    predicted = torch.autograd.grad(logits.amax(1).sum(), x, retain_graph=True)[0].flatten(1).square().sum(1)
    mean = torch.autograd.grad(logits.mean(1).sum(), x)[0].flatten(1).square().sum(1)
    torch.testing.assert_close(value(ApproximateEMR(1e-4), model).detach(), predicted)
    torch.testing.assert_close(value(ApproximateEMR(1e9), model).detach(), mean)


def rows(model, x):
    """The input gradients of all logits of one sample, (K, inputs), as constants."""
    x = x[None].clone().requires_grad_()
    return torch.stack([torch.autograd.grad(f, x, retain_graph=True)[0].flatten() for f in model(x)[0]])


@pytest.mark.parametrize("kind", ["mlp", "cnn", "modal"])
@pytest.mark.parametrize("at", ["clean", "adversarial"])
def test_values_are_those_of_single_samples(kind, at):
    model = network(kind).eval()
    step = context(model)
    x = step.x if at == "clean" else step.x_adv
    igr, emr = [], []
    for i in range(len(x)):
        w, f = rows(model, x[i]), model(x[i][None])[0].detach()
        igr.append(((f.softmax(0) @ w) - w[step.y[i]]).square().sum())
        emr.append(((f / 2.5).softmax(0) @ w).square().sum())
    model.train()
    torch.testing.assert_close(value(InputGradient("eval"), model, at).detach(), torch.stack(igr))
    torch.testing.assert_close(value(ApproximateEMR(2.5), model, at).detach(), torch.stack(emr))


def test_the_released_codes_sums_are_the_mean_over_the_batch_size():
    """lambda of the authors' code in ours: lambda / (2 B) for IGR, lambda / B for EMR."""
    model = network("cnn").eval()
    step = context(model)
    x = step.x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(x), step.y)
    igr = 0.5 * torch.autograd.grad(loss, x)[0].square().sum()
    torch.testing.assert_close(value(InputGradient(), model).mean().detach() / (2 * 6), igr)
    logits = model(x)
    mean = (logits * (logits / 40).softmax(1).detach()).sum(1).mean()
    emr = torch.autograd.grad(mean, x)[0].square().sum()
    torch.testing.assert_close(value(ApproximateEMR(40.0), model).mean().detach() / 6, emr)


@pytest.mark.parametrize("part", PARTS, ids=repr)
@pytest.mark.parametrize("kind", ["mlp", "modal"])
def test_gradients_to_the_parameters_are_those_of_differences(part, kind):
    model = network(kind).train()
    fixed = context(model).detached("clean", part.mode)  # the weights p of EMR are constants
    mean = torch.rand(6, generator=torch.Generator().manual_seed(4), dtype=D)

    def penalty():
        step = context(model)
        logits = step.logits("clean", part.mode, input_grad=True)
        if isinstance(part, InputGradient):
            values = -logits.log_softmax(1)[torch.arange(6), step.y]
        else:
            values = ((fixed / part.temperature).softmax(1) * logits).sum(1)
        (w,) = torch.autograd.grad(values.sum(), step.input("clean", part.mode))
        return (mean * w.flatten(1).square().sum(1)).sum()

    found = gradients((mean * value(part, model)).sum(), model)
    for one, expected in zip(found, differences(penalty, model), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("part", [InputGradient(), InputGradient("eval"), ApproximateEMR()], ids=repr)
def test_a_batch_in_two_parts_has_the_same_values(part):
    model = network("mlp" if part == InputGradient() else "modal").train()
    whole = value(part, model, count=6)
    half = context(model, count=6)
    half.x, half.y = half.x[2:5], half.y[2:5]
    torch.testing.assert_close(part(half, "clean"), whole[2:5])


def test_shifting_all_logits_alike_changes_emr_but_not_igr():
    model, moved = network("mlp"), network("mlp")
    with torch.no_grad():
        moved.head.weight += torch.linspace(-1, 1, 6, dtype=D)  # the same row added to each: softmax stays as it is
    torch.testing.assert_close(value(InputGradient(), moved), value(InputGradient(), model))
    assert (value(ApproximateEMR(1e9), moved) - value(ApproximateEMR(1e9), model)).abs().min() > 0.01


@pytest.mark.parametrize("part", [InputGradient(), ApproximateEMR()], ids=repr)
def test_the_penalty_takes_the_losss_forward_where_there_is_one_mode(part):
    model = network("cnn")
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    step = context(model, differentiated=frozenset(("clean", mode) for mode in part.input_grad))
    part(step, "clean"), step.logits("clean")
    assert len(seen) == 1


def test_emr_leaves_the_statistics_and_igr_in_train_mode_moves_them_once():
    model = network("norm").train()
    value(ApproximateEMR(), model)
    assert model.norm.num_batches_tracked == 0
    value(InputGradient(), model)
    assert model.norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ApproximateEMR(0.0), "temperature must be a finite number greater than 0"),
        (lambda: ApproximateEMR(float("inf")), "temperature must be a finite number greater than 0"),
        (lambda: ApproximateEMR(mode="test"), "mode must be one of 'train', 'eval'"),
        (lambda: InputGradient("both"), "mode must be one of 'train', 'eval'"),
        (lambda: InputGradient()(context(network("mlp")), "both"), "at must be one of 'clean', 'adversarial'"),
        (lambda: Term(ApproximateEMR(), "both"), "ApproximateEMR can be asked at clean, adversarial, not at both"),
        (lambda: Term(InputGradient(), "parameters"), "InputGradient can be asked at clean, adversarial, not at par"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(MarginsError, match=message):
        make()


def test_over_several_processes_norms_can_be_differentiated_twice_in_eval_only(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    for part in (InputGradient(), ApproximateEMR(mode="train")):
        with pytest.raises(Unshareable, match=f"mode of {type(part).__name__}: .* differentiated twice in 'eval' only"):
            processes.prepare(network("norm"), [part])
        assert processes.prepare(net := network("dropout"), [part]) is net
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = processes.prepare(network("norm"), [InputGradient("eval"), ApproximateEMR()])
    assert isinstance(found.norm, torch.nn.SyncBatchNorm)
