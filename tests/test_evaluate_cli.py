"""`margins evaluate`: from a model's name and a file of weights to a table, and what it refuses."""

import argparse
import json
import math
import pickle
import sys

import numpy as np
import pytest
import torch

from margins import cli, datasets, models, training
from margins.errors import MarginsError
from margins.evaluation import suites, weights

SPEC = "mlp(inputs=64, hidden=[32], classes=10)"
LINE = ["evaluate", SPEC, "--data", "digits", "--size", "40", "--attacks", "quick"]


@pytest.fixture(scope="module")
def model():
    data = datasets.load("digits")
    return training.fit(models.build("mlp", inputs=64, hidden=(32,), classes=10), data.x, data.y, epochs=10, lr=3e-3)


@pytest.fixture(scope="module")
def state(model, tmp_path_factory):
    """The weights as a state dict."""
    path = tmp_path_factory.mktemp("weights") / "mlp.pt"
    torch.save(model.state_dict(), path)
    return path


def test_from_weights_to_a_table_and_files(state, tmp_path, capsys):
    line = [*LINE, "--weights", str(state), "--eps", "8/255", "--json", str(tmp_path / "result.json")]
    assert cli.main(line) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{SPEC} on digits\n40 samples, linf eps 0.0313725")
    assert "worst case" in said and "15 passed, 0 failed" in said
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["samples"] == 40 and content["eps"] == 8 / 255 and content["norm"] == "inf"
    with np.load(tmp_path / "result.npz") as file:
        assert file["robust"].mean() == content["robust"]["estimate"] <= content["clean"]["estimate"]


def test_a_failed_check_has_its_own_exit_status(state, tmp_path, monkeypatch, capsys):
    code = (
        "from margins import models\nfrom margins.evaluation.broken import SoftmaxOutput\n\n"
        "class Names:\n    @staticmethod\n    def make():\n"
        "        return SoftmaxOutput(models.build('mlp', inputs=64, hidden=(32,), classes=10))\n"
    )
    (tmp_path / "my_own_model.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    saved = {f"model.{name}": value for name, value in torch.load(state, weights_only=True).items()}
    np.savez(tmp_path / "weights.npz", **{name: value.numpy() for name, value in saved.items()})
    line = ["evaluate", "my_own_model:Names.make", *LINE[2:], "--weights", "weights.npz", "--norm", "2", "--eps", "0.5"]
    assert cli.main(line) == cli.DOUBTED == 4
    assert "FAILED probabilities as outputs" in capsys.readouterr().out


def test_it_resumes(state, tmp_path, capsys):
    line = [*LINE, "--weights", str(state), "--eps", "0.1", "--resume", str(tmp_path / "state")]
    assert cli.main(line) == cli.main(line) == 0
    assert cli.main([*line, "--seed", "1"]) == 1
    out, err = capsys.readouterr()
    first, second = (part for part in out.split(SPEC) if part)
    assert first == second  # times, too: nothing was run again
    assert "belongs to another evaluation, whose seed differ" in err


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.3", 0.3), ("1e-2", 0.01), ("1", 1.0)])
def test_radii(text, value):
    assert cli.radius(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "8/0", "a", "1/2/3", "inf", "nan", "", "/255"])
def test_what_is_no_radius(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a number above 0 such as"):
        cli.radius(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"MODEL": "mlp"}, "model must be package.module:name or a model of the book"),
        ({"MODEL": "mlp(64)"}, "model must be package.module:name or a model of the book"),
        ({"MODEL": "mlp(inputs=open('x'))"}, "model must be package.module:name or a model of the book"),
        ({"MODEL": "mlp(**{})"}, "settings"),
        ({"MODEL": "resnet(depth=3)"}, "no model is called 'resnet'"),
        ({"MODEL": "mlp(inputs=64)"}, "missing a required argument"),
        ({"MODEL": "no_such_module:model"}, "could not be imported: No module named 'no_such_module'"),
        ({"MODEL": "math:no_such_name"}, "could not be imported"),
        ({"MODEL": ":model"}, "could not be imported"),
        ({"MODEL": "math:pi"}, "must be or return a torch.nn.Module, but is float"),
        ({"MODEL": "model.pt"}, "a pickled model is code that runs when it is loaded, and is refused"),
        ({}, "has random weights: give trained ones with --weights FILE"),
        ({"MODEL": "torch.nn:Flatten", "--size": "4000"}, "size=4000"),
        ({"MODEL": "torch.nn:Linear"}, "calling it without arguments raised TypeError: Linear.__init__() missing"),
        ({"MODEL": "torch.nn:LSTM"}, "calling it without arguments raised"),
        ({"MODEL": "torch.nn:Tanh"}, "logits must have the shape (20, K)"),
        ({"--json": "no/such/a.json"}, "--json no/such/a.json: there is no folder no/such"),
        ({"--resume": "no/such/a"}, "--resume no/such/a: there is no folder no/such"),
        ({"--resume": "."}, "--resume must be the name of a file, but . is a folder"),
        ({"--weights": "none.pt"}, "there is no such file"),
        ({"--weights": "weights.bin"}, "the format must be one of"),
    ],
)
def test_what_a_user_gets_wrong(given, said, capsys):
    arguments = {"--data": "digits", "--eps": "0.1", "--size": "20", **given}
    model = arguments.pop("MODEL", SPEC)
    assert cli.main(["evaluate", model, *(part for pair in arguments.items() for part in pair)]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("margins: ") and said in err


@pytest.mark.parametrize(
    "option",
    [
        "--norm 1", "--eps 0", "--size 0", "--json result.txt", "--seed x", "--seed -1", "--attacks fast",
        "--data imagenet", "--data toy2d",
    ],
)  # fmt: skip
def test_a_wrong_command_line_ends_with_2(option):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*LINE, "--eps", "0.1", *option.split()])
    assert exit_.value.code == 2


class Trap:
    """Does something when it is unpickled."""

    def __reduce__(self):
        return print, ("the trap was sprung",)


def save_text(path, model):
    path.write_text("no weights")


def save_nothing(path, model):
    path.write_bytes(b"")


def save_model(path, model):
    torch.save(model, path)


def save_trap(path, model):
    torch.save({"head.weight": Trap()}, path)


def save_pickle(path, model):
    path.write_bytes(pickle.dumps({"head.weight": Trap()}))


def save_objects(path, model):
    with path.open("wb") as file:
        np.savez(file, weight=np.array([Trap()], dtype=object))


def save_list(path, model):
    torch.save(list(model.parameters()), path)


def save_checkpoint(path, model):
    torch.save({"epoch": 3, "weights": model.state_dict()}, path)


def save_half(path, model):
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:3000])


def save_other_names(path, model):
    torch.save({f"other.{name}": value for name, value in model.state_dict().items()}, path)


@pytest.mark.parametrize(
    ("save", "suffix", "said"),
    [
        (save_model, ".pt", "not tensors alone; it may hold pickled code, which would run when it is loaded, and is"),
        (save_trap, ".pth", "not tensors alone"),
        (save_pickle, ".pt", "not tensors alone"),
        (save_pickle, ".npz", "not tensors alone"),
        (save_objects, ".npz", "not tensors alone"),
        (save_text, ".pt", "not tensors alone|unreadable"),
        (save_text, ".npz", "not tensors alone|unreadable"),
        (save_nothing, ".pt", "unreadable"),
        (save_half, ".pt", "unreadable"),
        (save_list, ".pt", "must be a state dict, that is names and tensors, or .* but is list"),
        (save_checkpoint, ".pt", "but is the entries epoch, weights: save model.state_dict"),
        (save_other_names, ".pt", "don't fit the model: .*other.head.weight"),
    ],
)
def test_files_of_weights_that_are_refused(model, tmp_path, capsys, save, suffix, said):
    path = tmp_path / f"weights{suffix}"
    save(path, model)
    with pytest.raises(MarginsError, match=f"(?s){said}"):
        weights.load(models.build("mlp", inputs=64, hidden=(32,), classes=10), path)
    assert "the trap was sprung" not in capsys.readouterr().out


def test_weights_of_each_format_are_the_same(model, state, tmp_path):
    np.savez(tmp_path / "weights.npz", **{name: value.numpy() for name, value in model.state_dict().items()})
    paths = [state, tmp_path / "weights.npz"]
    safetensors = tmp_path / "weights.safetensors"
    try:
        from safetensors.torch import save_file
    except ImportError:
        safetensors.write_bytes(b"")
        with pytest.raises(MarginsError, match="needs the package safetensors"):
            weights.load(models.build("mlp", inputs=64, hidden=(32,), classes=10), safetensors)
    else:
        save_file(model.state_dict(), safetensors)
        paths.append(safetensors)
    for path in paths:
        loaded = weights.load(models.build("mlp", inputs=64, hidden=(32,), classes=10), path)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("entry", weights.CHECKPOINT)
@pytest.mark.parametrize("prefix", ["", *weights.PREFIXES])
def test_checkpoints_are_unwrapped(model, tmp_path, entry, prefix):
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, entry: state, "optimizer": {"lr": 0.1}}, tmp_path / "all.pt")
    loaded = weights.load(models.build("mlp", inputs=64, hidden=(32,), classes=10), tmp_path / "all.pt")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_model_that_fails_or_cannot_be_imported_is_no_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_that_fails.py").write_text(
        "from torch import nn\n\ndef wide():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3, 10))\n"
    )
    (tmp_path / "own_with_an_error.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, said in (
        ("own_that_fails:wide", "model failed on x of shape (20, 1, 8, 8): RuntimeError: "),
        ("own_with_an_error:model", "could not be imported: ZeroDivisionError"),
    ):
        assert cli.main(["evaluate", name, "--data", "digits", "--size", "20", "--eps", "0.1"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("margins: model") and said in err and "Traceback" not in err


def test_help_names_the_exit_statuses_and_the_data(capsys):
    assert set(cli.SUITES) == set(suites.SUITES) and set(cli.IMAGES) == set(datasets.SETS) - {"toy2d"}
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in cli.IMAGES) and "4 evaluated, but" in said and "example:" in said


def test_models_by_name():
    assert isinstance(weights.find("linear(inputs=4, classes=3)"), models.Linear)
    assert weights.find(" cnn(shape=(1, 8, 8), blocks=[[4]], hidden=[], classes=3) ").shape == (1, 8, 8)
    assert isinstance(weights.find("torch.nn:Identity"), torch.nn.Identity)
    assert math.prod(weights.find("mlp(inputs=2, hidden=(), classes=2, bias=False)").head.weight.shape) == 4
