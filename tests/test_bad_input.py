"""Bad input to every attack, margin and evaluation: a clear MarginsError before any work, or a documented result.

A kind is one thing wrong with one argument; `hypothesis` draws pairs of a function and a kind, and samples besides.
"""

import math

import pytest
import torch
from functions import EACH, FUNCTIONS, good, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from margins import attacks, margin, models
from margins.errors import MarginsError


class Counted(nn.Module):
    """A small network that counts how often it was asked, with an output that may be broken on purpose."""

    def __init__(self, spoil=lambda logits: logits):
        super().__init__()
        self.body = models.build("mlp", inputs=12, hidden=(8,), classes=5)
        self.spoil, self.asked = spoil, 0

    def forward(self, x):
        self.asked += 1
        return self.spoil(self.body(x))


def put(index, value):
    def change(tensor):
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


#: What is wrong with x, with y, with the model (a function of the good one), with an argument (its value).
X = {
    "a list": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "integers": lambda x: x.long(),
    "bytes": lambda x: (x * 255).to(torch.uint8),
    "booleans": lambda x: x > 0.5,
    "complex": lambda x: x.to(torch.complex64),
    "None": lambda x: None,
    "one nan": put((2, 0, 1, 1), math.nan),
    "one infinity": put((2, 0, 1, 1), math.inf),
    "one minus infinity": put((2, 0, 1, 1), -math.inf),
    "above the box": put((2, 0, 1, 1), 1.01),
    "below the box": put((2, 0, 1, 1), -0.01),
    "in 0..255": lambda x: x * 255,
    "one dimension": lambda x: x[:, 0, 0, 0],
    "no dimension": lambda x: x.sum() / 100,
    "other precision": lambda x: x.double(),
    "half precision": lambda x: x.half(),
    "another device": lambda x: x.to("meta"),
    "fewer pixels": lambda x: x[:, :, :2],
    "fewer samples than y": lambda x: x[:4],
}
Y = {
    "a list": lambda y: y.tolist(),
    "None": lambda y: None,
    "floats": lambda y: y.float(),
    "32 bits": lambda y: y.int(),
    "booleans": lambda y: y > 2,
    "one label": lambda y: y[0],
    "a column": lambda y: y[:, None],
    "one-hot": lambda y: nn.functional.one_hot(y, 5),
    "fewer": lambda y: y[:4],
    "more": lambda y: torch.cat([y, y]),
    "negative": put(3, -1),
    "too large": put(3, 5),
    "far too large": put(3, 2**40),
    "another device": lambda y: y.to("meta"),
}
MODEL = {
    "None": lambda: None,
    "a function": lambda: lambda x: x.flatten(1),
    "a class": lambda: nn.Linear,
    "a state dict": lambda: Counted().state_dict(),
    "another device": lambda: Counted().to("meta"),
    "other precision": lambda: Counted().double(),
    "one output": lambda: Counted(lambda z: z[:, :1]),
    "no class dimension": lambda: Counted(lambda z: z[:, 0]),
    "a map of outputs": lambda: Counted(lambda z: z[:, :, None]),
    "a tuple": lambda: Counted(lambda z: (z, z)),
    "a dict": lambda: Counted(lambda z: {"logits": z}),
    "labels": lambda: Counted(lambda z: z.argmax(1)),
    "integer logits": lambda: Counted(lambda z: (z * 10).long()),
    "nan logits": lambda: Counted(lambda z: z * math.nan),
    "one nan logit": lambda: Counted(lambda z: z.index_fill(1, torch.tensor([1]), math.nan)),
    "infinite logits": lambda: Counted(lambda z: z + math.inf),
    "one sample for all": lambda: Counted(lambda z: z[:1]),
    "the batch's mean": lambda: Counted(lambda z: z.mean(0)),
    "twice the samples": lambda: Counted(lambda z: torch.cat([z, z])),
}
NUMBERS = {"None": None, "text": "0.1", "nan": math.nan, "infinity": math.inf, "negative": -0.1, "a bool": True}
COUNTS = {"None": None, "text": "3", "a float": 3.0, "nan": math.nan, "zero": 0, "negative": -1, "a bool": True}
ARGUMENTS = {
    "eps": NUMBERS | {"a list": [0.1]},
    "step_size": NUMBERS | {"zero": 0.0},
    "radius": NUMBERS | {"zero": 0.0},
    "steps": COUNTS,
    "samples": COUNTS,
    "queries": COUNTS,
    "points": COUNTS,
    "targets": COUNTS,
    "restarts": COUNTS,
    "norm": {"zero": 0, "half": 0.5, "text": "2", "linf": "linf", "three": 3, "nan": math.nan, "None": None},
    "bounds": {
        "reversed": (1.0, 0.0),
        "empty": (0.5, 0.5),
        "three": (0, 0.5, 1),
        "one": (1.0,),
        "a number": 1.0,
        "text": "01",
        "nan": (0.0, math.nan),
    },
    "loss": {"unknown": "hinge", "a number": 1.0, "None": None},
    "start": {"unknown": "zero", "a number": 0.5, "another shape": torch.zeros(6, 12), "None": None},
    "keep": {"unknown": "first", "None": None},
    "generator": {"a seed": 0, "text": "0"},
}
KINDS = [
    *(("x", name) for name in X),
    *(("y", name) for name in Y),
    *(("model", name) for name in MODEL),
    *((argument, name) for argument, values in ARGUMENTS.items() for name in values),
]
#: What is allowed after all: (function, argument, name) -> why.
ALLOWED = {
    (margin.effective_margin, "norm", "three"): "any p >= 1",
    (attacks.fab_t, "eps", "None"): "its default",
} | {
    (function, "x", name): "there is no box by default"
    for function in (attacks.deepfool, margin.deepfool_margin, margin.effective_margin, margin.lipschitz_margin)
    for name in ("above the box", "below the box", "in 0..255")
}


def accepts(function, argument):
    import inspect

    return argument in inspect.signature(function).parameters


CASES = [(f, *kind) for f in FUNCTIONS for kind in KINDS if accepts(f, kind[0])]


def test_there_are_a_hundred_kinds_for_every_function_that_has_the_arguments():
    assert len(KINDS) >= 100
    assert {argument for _, argument, _ in CASES} == {"x", "y", "model", *ARGUMENTS}


@settings(max_examples=1500, deadline=None)
@given(case=st.sampled_from(CASES), batch=st.integers(1, 6))
def test_bad_input_is_refused_before_any_work(case, batch):
    function, argument, name = case
    x, y = good()
    model, arguments = Counted(), dict(FUNCTIONS[function])
    if argument == "x":
        x = X[name](x)
    elif argument == "y":
        y = Y[name](y)
    elif argument == "model":
        model, x, y = MODEL[name](), x[: max(batch, 2)], y[: max(batch, 2)]
    else:
        arguments[argument] = ARGUMENTS[argument][name]
    if (function, argument, name) in ALLOWED:
        function(model, x, y, **arguments)
        return
    with pytest.raises(MarginsError) as raised:
        function(model, x, y, **arguments)
    assert len(str(raised.value)) > 20
    allowed = 1 if argument in ("x", "y", "model") else 0  # the shapes and classes that only the model knows
    assert getattr(model, "asked", 0) <= allowed


@EACH
def test_an_empty_batch_gives_an_empty_result(function):
    x, y = good()
    model = Counted().body if function is margin.bracket else Counted()  # bounds know the book's models
    found = function(model, x[:0], y[:0], **FUNCTIONS[function])
    assert len(values(function, found)) == 0


@EACH
def test_a_model_in_training_mode_is_asked_in_evaluation_mode_and_left_as_it_was(function):
    class Moody(Counted):
        def forward(self, x):
            assert not self.training
            return super().forward(x)

    x, y = good()
    model = Moody().train()
    if function is margin.bracket:
        model = models.build("mlp", inputs=12, hidden=(8,), classes=5).train()  # bounds know the book's models
    function(model, x, y, **FUNCTIONS[function])
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_refused_with_the_remedy(function, dtype):
    x, y = good()
    model = Counted().to(dtype)
    with pytest.raises(MarginsError, match=r"x must be float32 or float64, but is torch\.b?float16: call \.float\(\)"):
        function(model, x.to(dtype), y, **FUNCTIONS[function])
    assert model.asked == 0


@EACH
def test_logits_of_autocast_are_refused(function):
    x, y = good()
    with torch.autocast("cpu"), pytest.raises(MarginsError, match=r"logits must be float32 or float64.*leave autocast"):
        function(Counted(), x, y, **FUNCTIONS[function])


@EACH
def test_without_gradients_nothing_is_said_to_be_robust(function):
    x, y = good()
    model = Counted()
    with torch.inference_mode(), pytest.raises(MarginsError, match="inference_mode"):
        function(model, x, y, **FUNCTIONS[function])
    with torch.inference_mode():
        x = x.clone()
    with pytest.raises(MarginsError, match="inference_mode"):
        function(model, x, y, **FUNCTIONS[function])
    assert model.asked == 0


@EACH
def test_no_grad_makes_no_difference(function):
    x, y = good()
    model = Counted().body if function is margin.bracket else Counted()  # bounds know the book's models
    known = values(function, function(model, x, y, **FUNCTIONS[function]))
    with torch.no_grad():
        assert torch.equal(values(function, function(model, x, y, **FUNCTIONS[function])), known)
