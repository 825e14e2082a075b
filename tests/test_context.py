"""A step's context: what is asked for twice is computed once, and only the step's own forwards move the model."""

import copy

import pytest
import torch
from tiny import D, context, network
from torch import nn

from margins.errors import MarginsError
from margins.penalties.context import Threat


def counted(model: nn.Module) -> list[bool]:
    """A list that grows by the model's mode (training?) with each of its forwards."""
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    return modes


def test_what_is_asked_twice_is_computed_once():
    model = network("modal").train()
    seen, step = counted(model), context(model)
    first = step.logits("clean")
    assert step.logits("clean") is first and len(seen) == 1
    step.logits("adversarial"), step.detached("adversarial", "train"), step.input("adversarial")
    assert len(seen) == 2
    step.logits("clean", "eval"), step.detached("clean"), step.logits("clean", "eval")
    assert seen == [True, True, False]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_net_without_dropout_and_norms_shares_one_forward_for_both_modes(kind):
    model = network(kind).train()
    seen, step = counted(model), context(model, looked=frozenset({"clean"}))
    assert step.detached("clean", "eval") is not None
    assert step.logits("clean", "eval") is step.logits("clean", "train")
    assert len(seen) == 1


def test_a_forward_that_a_part_differentiates_is_the_one_that_the_losses_use():
    model = network("modal").train()
    seen, step = counted(model), context(model, differentiated=frozenset({("clean", "train")}))
    logits = step.logits("clean")
    again = step.logits("clean", input_grad=True)
    (gradient,) = torch.autograd.grad(again[:, 0].sum(), step.input("clean"))
    assert again is logits and len(seen) == 1 and gradient.abs().max() > 0
    assert not step.x.requires_grad


def test_an_input_gradient_that_nobody_announced_costs_a_second_forward():
    model = network("mlp").train()
    seen, step = counted(model), context(model)
    torch.testing.assert_close(step.logits("clean"), step.logits("clean", input_grad=True), rtol=0, atol=0)
    assert len(seen) == 2


def test_dropout_masks_of_processes_that_share_a_batch_differ():
    model = network("dropout").train()
    first, second = (context(model, first=first).logits("clean") for first in (0, 6))
    assert not torch.equal(first, second)


def test_dropout_masks_are_the_same_in_a_step_and_differ_between_steps():
    model = network("dropout").train()
    step = context(model)
    step.x_adv = step.x.clone()
    assert torch.equal(step.logits("clean"), step.logits("adversarial"))
    assert not torch.equal(step.logits("clean"), step.logits("clean", "eval"))
    later = context(model)
    later.seed += 1
    assert not torch.equal(step.logits("clean"), later.logits("clean"))


def test_torchs_own_generator_is_left_as_it_was():
    step = context(network("dropout").train())
    before = torch.random.get_rng_state()
    step.logits("clean"), step.detached("adversarial"), step.generator().seed()
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_eval_forward_leaves_modes_and_statistics_untouched():
    model = network("modal").train()
    model.norm.eval()  # a frozen layer stays one
    before = copy.deepcopy(model.state_dict())
    step = context(model)
    expected = copy.deepcopy(model).eval()(step.x)
    torch.testing.assert_close(step.logits("clean", "eval"), expected, rtol=0, atol=0)
    assert model.training and model.dropout.training and not model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_train_forward_moves_the_statistics_once():
    model = network("norm").train()
    step = context(model)
    step.logits("clean"), step.logits("clean")
    assert model.norm.num_batches_tracked == 1


def test_modes_come_back_after_an_error():
    model = network("modal").train()
    model.head = nn.Linear(2, 3).to(D)
    with pytest.raises(RuntimeError):
        context(model).logits("clean", "eval")
    assert all(module.training for module in model.modules())


def test_detached_logits_carry_no_graph():
    model = network("mlp").train()
    step = context(model)
    assert not step.detached("clean").requires_grad
    assert step.logits("clean").requires_grad and not step.detached("clean").requires_grad


def test_features_are_what_the_head_sees():
    model = network("norm").train()
    step = context(model, featured=True)
    torch.testing.assert_close(model.head(step.features("clean")), step.logits("clean"))
    with pytest.raises(MarginsError, match="features = True"):
        context(model).features("clean")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda step: step.logits("adversarial"), "nothing crafts adversaries"),
        (lambda step: step.logits("both"), "at must be one of 'clean', 'adversarial', but is 'both'"),
        (lambda step: step.logits("clean", "test"), "mode must be one of 'train', 'eval', but is 'test'"),
    ],
)
def test_what_can_not_be_had_is_refused(ask, message):
    with pytest.raises(MarginsError, match=message):
        ask(context(network("mlp"), adversarial=False))


def test_generators_belong_to_the_step_and_the_stream():
    step = context(network("mlp"))
    draws = [torch.rand(3, generator=g) for g in (step.generator(), step.generator(), step.generator(1))]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_the_ball_grows_over_its_ramp():
    threat = Threat(2, 0.5, 0.1, 7, ramp=0.4)
    assert threat.at(0.1) == Threat(2, 0.5 * 0.25, 0.1 * 0.25, 7)
    assert threat.at(0.4) == threat.at(0.9) == Threat(2, 0.5, 0.1, 7)
    assert 0 < threat.at(0.0).eps < 1e-6
