"""The last layers that methods put on a model: what they compute, and that they keep its weights."""

import pytest
import torch

from margins.errors import MarginsError
from margins.models import build
from margins.models.heads import Head


def mlp():
    return build("mlp", inputs=4, hidden=(5,), classes=3).double()


def x():
    return torch.rand(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_bias_free_head_is_the_plain_one_without_its_bias():
    plain, model = mlp(), Head("bias-free").put_on(mlp())
    torch.testing.assert_close(model(x()), plain(x()) - plain.head.bias)
    assert model.head.bias is None and "head.bias" not in model.state_dict()


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_cosine_head_is_scale_times_the_cosine_of_features_and_rows(scale):
    plain, model = mlp(), Head("cosine", scale).put_on(mlp())
    f, w = plain.features(x()), plain.head.weight
    cosine = (f @ w.T) / f.norm(dim=1, keepdim=True) / w.norm(dim=1)
    torch.testing.assert_close(model(x()), scale * cosine)
    with torch.no_grad():
        model.head.weight.mul_(7)
    torch.testing.assert_close(model(x()), scale * cosine)


def test_a_centred_head_has_logits_of_mean_zero_and_the_same_softmax():
    plain, model = mlp(), Head("centred").put_on(mlp())
    torch.testing.assert_close(model(x()).mean(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(model(x()).softmax(1), plain(x()).softmax(1))
    torch.testing.assert_close(model(x()), plain(x()) - plain(x()).mean(1, keepdim=True))


def test_what_has_no_linear_head_and_what_is_no_head_is_refused():
    with pytest.raises(MarginsError, match="head"):
        Head("cosine").put_on(torch.nn.Sequential(torch.nn.Linear(4, 3)))
    with pytest.raises(MarginsError, match="kind"):
        Head("square")
    with pytest.raises(MarginsError, match="scale"):
        Head("bias-free", 2.0)
    with pytest.raises(MarginsError, match="scale"):
        Head("cosine", 0.0)
