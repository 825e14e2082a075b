"""What DeepFool promises whatever it finds: batches, shapes, counts, the model untouched, bad input refused."""

import pytest
import torch
from test_deepfool import BOTH, BOX, network
from test_untouched import Fails
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
