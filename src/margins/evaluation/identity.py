"""What decides the numbers of an evaluation, described so that two descriptions differ when the numbers could."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType

import numpy as np
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
    """sha256 of a model's class, its printed structure, and its parameters and buffers; its outputs see `Jobs`."""
    state = {name: digest(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    return _hash([_name(type(model)), repr(model), state])


def code() -> str:
    """sha256 of the package's files that an evaluation runs, as they lie on the disk."""
    package = Path(attacks.__file__).parents[1]
    files = [path for room in ROOMS for path in (*package.glob(f"{room}.py"), *package.glob(f"{room}/*.py"))]
    return _hash({str(path.relative_to(package)): _hash(path.read_text(encoding="utf-8")) for path in files})


def describe(value: object, above: tuple[int, ...] = ()) -> object:
    """`value`, an attack or an argument of one, as JSON: functions with their code and what they close over.

    Objects that can be called, and dataclasses, are told by their class's code and their attributes. What a function
    reads from elsewhere, as globals and files, is not part of it. above: the identities of what holds `value`, so that
    a function that closes over itself has an end. Raises MarginsError for an object of another kind.
    """
    if value is None or value is Ellipsis or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device | np.generic):
        return repr(value)
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, type):
        return _name(value)
    if id(value) in above:
        return f"the {len(above) - above.index(id(value))}th above"
    deeper = partial(describe, above=(*above, id(value)))
    if isinstance(value, nn.Module):
        own = {name: _plain(vars(module)) for name, module in value.named_modules()}
        return [weights(value), own]
    if isinstance(value, Mapping):
        return {str(key): deeper(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [deeper(one) for one in value]
    if isinstance(value, partial):
        return {"call": deeper(value.func), "args": deeper(value.args), "keywords": deeper(value.keywords)}
    if isinstance(value, CodeType):
        return [value.co_code.hex(), deeper(value.co_names), deeper(value.co_consts)]
    if isinstance(value, FunctionType):
        cells = [_held(cell) for cell in value.__closure__ or ()]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
        return [_name(value), *map(deeper, parts)]
    if isinstance(value, MethodType):
        return [deeper(value.__func__), deeper(value.__self__)]
    if isinstance(value, BuiltinFunctionType):
        return _name(value)
    if hasattr(value, "__dict__") and (callable(value) or is_dataclass(value)):
        code = {name: deeper(one) for name, one in vars(type(value)).items() if isinstance(one, FunctionType)}
        return [_name(type(value)), code, deeper(vars(value))]
    raise MarginsError(
        f"resume needs attacks and margins that can be told apart from others: functions, functools.partial, numbers,"
        f" strings, tensors, modules and objects that can be called; {value!r} is a {type(value).__name__}"
    )


def _plain(attributes: Mapping[str, object]) -> dict[str, str]:
    """A module's attributes that are neither tensors nor modules, but for its mode, which an evaluation sets."""
    kinds = bool | int | float | str
    return {k: repr(v) for k, v in attributes.items() if isinstance(v, kinds) and k != "training"}


def _held(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing yet"


def _name(value) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
