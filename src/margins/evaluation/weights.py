"""A model and its weights from what a user names, without running code that came with a file of weights."""

import ast
import importlib
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from margins.errors import MarginsError
from margins.models import FAMILIES, build

#: Entries of a checkpoint that are its state dict, and what wrappers put before every name.
CHECKPOINT, PREFIXES = ("state_dict", "model_state_dict", "model"), ("module.", "_orig_mod.")
FORMATS = (".safetensors", ".npz", ".pt", ".pth")


def find(spec: str) -> nn.Module:
    """The model that `spec` names: "package.module:name", or a model of the book such as "mlp(inputs=784, ...)".

    `name` is a torch.nn.Module, or is called without arguments and returns one; the module is imported (its code runs:
    it is the user's own), also from the current folder. Of the book's models: a family of `margins.models.FAMILIES`
    with its settings as keywords. Raises MarginsError for anything else, a file of a pickled model among it.
    """
    if Path(spec).suffix in (".pkl", ".pickle", *FORMATS):
        raise MarginsError(
            f"model {spec!r} is a file: a pickled model is code that runs when it is loaded, and is refused. Name the"
            " model as package.module:name, and give its weights with --weights"
        )
    return _imported(spec) if ":" in spec else _built(spec)


def load(model: nn.Module, path: Path | str) -> nn.Module:
    """Copy the weights of a file into `model`, in place, and return it. The file can run no code.

    .safetensors (where that package is installed), .npz (one array a name) and .pt or .pth (what torch.save made of
    model.state_dict()), with the names and shapes of model.state_dict(). A checkpoint that holds the state dict as one
    of CHECKPOINT is unwrapped, and names lose the prefixes that DataParallel and torch.compile gave them. Raises
    MarginsError for other formats, pickled models, damaged files, and names and shapes that differ.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise MarginsError(f"weights {path}: the format must be one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise MarginsError(f"weights {path}: there is no such file")
    try:
        state = _read(path)
    except MarginsError:
        raise
    except Exception as error:  # each format has its own kinds for a damaged file, and for one that holds more
        if isinstance(error, pickle.UnpicklingError) or "pickle" in str(error):  # their advice is to load it anyway
            raise MarginsError(
                f"weights {path}: not tensors alone; it may hold pickled code, which would run when it is loaded, and"
                " is refused. Save model.state_dict() with torch.save, where the file comes from"
            ) from None
        why = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise MarginsError(f"weights {path}: unreadable ({why})") from error
    state = _unwrapped(state)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        held = f"the entries {', '.join(map(str, state))}" if isinstance(state, Mapping) else type(state).__name__
        raise MarginsError(
            f"weights {path}: must be a state dict, that is names and tensors, or a checkpoint that holds one as"
            f" {', '.join(CHECKPOINT)}, but is {held}: save model.state_dict() alone"
        )
    for prefix in PREFIXES:
        if state and all(str(name).startswith(prefix) for name in state) and not any(
            name.startswith(prefix) for name in model.state_dict()
        ):  # fmt: skip
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise MarginsError(f"weights {path} don't fit the model: {error}") from None
    return model


def _unwrapped(state):
    """The state dict of a checkpoint; what is no checkpoint as it is."""
    if isinstance(state, Mapping):
        inner = [state[key] for key in CHECKPOINT if isinstance(state.get(key), Mapping)]
        if len(inner) == 1:
            return inner[0]
    return state


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise MarginsError(f"weights {path}: reading this format needs the package safetensors") from None
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _imported(spec: str) -> nn.Module:
    module, _, name = spec.partition(":")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise MarginsError(f"model {spec!r} could not be imported: {error}") from error
    except Exception as error:  # the user's own code: whatever it raises
        raise MarginsError(f"model {spec!r} could not be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, nn.Module) and callable(found):
        try:
            found = found()
        except Exception as error:
            raise MarginsError(
                f"model {spec!r} could not be made: calling it without arguments raised {type(error).__name__}:"
                f" {error}; name a torch.nn.Module, or a function without arguments that returns one"
            ) from error
    if not isinstance(found, nn.Module):
        raise MarginsError(f"model {spec!r} must be or return a torch.nn.Module, but is {type(found).__name__}")
    return found


def _built(spec: str) -> nn.Module:
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise MarginsError(
            f"model must be package.module:name or a model of the book with its settings, such as"
            f" 'mlp(inputs=784, hidden=[1024, 1024], classes=10)' ({', '.join(FAMILIES)}), but is {spec!r}"
        ) from None
    return build(call.func.id, **settings)
