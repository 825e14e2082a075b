"""Every attack, margin and evaluation leaves model, input and random state as they were, whatever call of it fails."""

import pytest
import torch
from functions import FUNCTIONS, good
from torch import nn

from margins import attacks, margin
from margins.errors import MarginsError


class Fails(nn.Module):
    """BatchNorm and dropout, partly in evaluation mode, partly frozen, with a gradient; raises when asked so often."""

    def __init__(self, at=None):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5)
        )
        with torch.no_grad():
            for parameter in self.body.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=g))
        self.body.train()[2].eval()
        self.body[1].bias.requires_grad_(False)
        self.body[5].bias.grad = torch.ones(5)
        self.at, self.asked = at, 0

    def forward(self, x):
        self.asked += 1
        if self.asked == self.at:
            raise RuntimeError("planted")
        return self.body(x)


def surroundings(model, x):
    """All that has to be the same afterwards, as text and tensors."""
    modes = [module.training for module in model.modules()]
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    return modes, gradients, flags, hooks, state, x.tolist(), x.requires_grad, x.grad, torch.get_rng_state().tolist()


#: The last iterate goes another way than the best; bounds know no such model (test_certified_promises has theirs).
CALLS = [(f, {}) for f in FUNCTIONS if f is not margin.bracket] + [(attacks.pgd, {"keep": "last", "loss": "margin"})]


@pytest.mark.parametrize(("function", "more"), CALLS, ids=lambda each: getattr(each, "__name__", None))
def test_whatever_call_fails_nothing_is_changed(function, more):
    x, _ = good()
    model = Fails()
    y = torch.stack([model.eval()(x[i : i + 1]).argmax() for i in range(len(x))])  # all right: there is work to do
    model, x = Fails(), x.requires_grad_()
    before = surroundings(model, x)
    function(model, x, y, **FUNCTIONS[function], **more)
    assert surroundings(model, x) == before
    calls = model.asked
    assert calls >= (1 if function is margin.effective_margin else 2)
    for at in sorted({1, 2, 3, calls // 2, calls} & set(range(1, calls + 1))):
        model = Fails(at)
        before = surroundings(model, x)
        with pytest.raises((RuntimeError, MarginsError), match="planted"):
            function(model, x, y, **FUNCTIONS[function], **more)
        assert model.asked == at and surroundings(model, x) == before
