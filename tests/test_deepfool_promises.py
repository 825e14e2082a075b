"""What DeepFool promises whatever it finds: batches, shapes, counts, the model untouched, bad input refused."""

import pytest
import torch
from test_deepfool import BOTH, BOX, network
from torch import nn

from margins.attacks.deepfool import deepfool
from margins.errors import MarginsError


@BOTH
@pytest.mark.parametrize("bounds", [BOX, None])
def test_samples_do_not_see_each_other(norm, bounds):
    model, x, y = network(batch=300)
    whole = deepfool(model, x, y, norm=norm, bounds=bounds)
    for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(70):
        found = deepfool(model, x[part], y[part], norm=norm, bounds=bounds)
        assert torch.allclose(found.x_adv, whole.x_adv[part], atol=1e-9)
        assert torch.allclose(found.distance, whole.distance[part], atol=1e-9)
        assert torch.equal(found.success, whole.success[part])


def test_shapes_types_and_counts():
    model, x, y = network(dtype=torch.float32)
    image = nn.Sequential(nn.Flatten(), model)
    found = deepfool(image, x.reshape(-1, 2, 5), y, bounds=BOX)
    assert found.x_adv.shape == (40, 2, 5)
    assert found.x_adv.dtype == found.distance.dtype == torch.float32
    assert not found.x_adv.requires_grad
    assert torch.equal(found.success, image(found.x_adv).argmax(1) != y)
    empty = deepfool(model, x[:0], y[:0], trace=True)
    assert (empty.x_adv.shape, empty.path) == ((0, 10), ())
    one = deepfool(model, x, y, steps=1)
    assert (one.calls.forward, one.calls.backward) == (40 + 2 * 35, 4 * 35)
    assert deepfool(model, x, y, candidates=2, steps=1).calls.backward == 2 * 35
    assert deepfool(model, x, y, candidates=99, steps=1).calls.backward == 4 * 35


class Fails(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
        self.at, self.asked = at, 0

    def forward(self, x):
        self.asked += 1
        if self.asked == self.at:
            raise RuntimeError("planted")
        return self.body(x)


@pytest.mark.parametrize("at", [None, 1, 2, 3])
def test_the_model_is_as_it_was(at):
    torch.manual_seed(0)
    model, x = Fails(at).train(), torch.rand(20, 4)
    model.body[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, y = torch.get_rng_state(), torch.zeros(20, dtype=torch.int64)
    if at is None:
        deepfool(model, x, y)
    else:
        with pytest.raises(RuntimeError, match="planted"):
            deepfool(model, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"norm": 1}, "norm must be one of 2, inf"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"overshoot": -0.1}, "overshoot must be a finite number of at least 0"),
        ({"reference": "truth"}, "reference must be one of 'label', 'prediction', 'correction'"),
        ({"linearise_at": "x"}, "linearise_at must be one of 'plain', 'overshot'"),
        ({"candidates": 0}, "candidates must be a whole number of at least 1"),
        ({"bounds": (1, 0)}, "bounds must be"),
        ({"bounds": (0.0, 0.5)}, "x must lie in the box"),
    ],
)
def test_bad_arguments_are_named_before_any_work(given, words):
    model = Fails(1)
    with pytest.raises(MarginsError, match=words):
        deepfool(model, torch.rand(3, 4), torch.tensor([0, 1, 2]), **given)
    assert model.asked == 0
