"""What decides the numbers of an evaluation, described so that two descriptions differ when the numbers could."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

import torch
from torch import Tensor, nn

from margins import attacks
from margins.errors import MarginsError

#: The rooms of the package that decide the numbers.
ROOMS = ("losses", "models", "attacks", "margin", "evaluation")


def digest(value: Tensor) -> str:
    """sha256 of a tensor's type, shape and bytes."""
    raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + raw.tobytes()).hexdigest()


def weights(model: nn.Module) -> str:
    """sha256 of a model's class, its printed structure, and its parameters and buffers."""
    state = {name: digest(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    return _hash([_name(type(model)), repr(model), state])


def code() -> str:
    """sha256 of the package's files that an evaluation runs, as they lie on the disk."""
    package = Path(attacks.__file__).parents[1]
    files = [path for room in ROOMS for path in (*package.glob(f"{room}.py"), *package.glob(f"{room}/*.py"))]
    return _hash({str(path.relative_to(package)): _hash(path.read_text(encoding="utf-8")) for path in files})


def describe(value: object) -> object:
    """`value`, an attack or an argument of one, as JSON: functions with their code and what they close over.

    What a function reads from elsewhere, as globals and files, is not part of it. Raises MarginsError for an object of
    another kind.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, nn.Module):
        return weights(value)
    if isinstance(value, Mapping):
        return {str(key): describe(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [describe(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, partial):
        return {"call": describe(value.func), "args": describe(value.args), "keywords": describe(value.keywords)}
    if isinstance(value, CodeType):
        return [value.co_code.hex(), describe(value.co_names), describe(value.co_consts)]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
        return [_name(value), *map(describe, parts)]
    if isinstance(value, type):
        return _name(value)
    raise MarginsError(
        f"resume needs attacks and margins that can be told apart from others: functions, functools.partial, numbers,"
        f" strings, tensors and modules; {value!r} is a {type(value).__name__}"
    )


def _name(value) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
