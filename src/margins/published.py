"""The networks that AMR's authors published: where they are looked for, how they are checked, made from their files.

They belong to their authors and state no licence, so they are not part of the book: a reader fetches the files from the
authors' repository and converts them once, `python -m margins.published FILE OUT`. The records that rest on them are in
the book and need none of this.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from margins import paths
from margins._sources import NotAvailable, roots
from margins.errors import MarginsError
from margins.files import atomic
from margins.models import build

#: The folder below a root (MARGINS_DATA, then the cache), and where the files come from.
FOLDER = "amr-official"
REPOSITORY, COMMIT = "https://github.com/watml/rob-margin", "d79e1972bfcb7c5e379a23c7d47922db9d174bb4"


@dataclass(frozen=True)
class Network:
    """One published network: the authors' file, what tells it from any other, and the model that it becomes.

    original: SHA-256 of the authors' file; digest: of the arrays, see `digest`.
    accuracy: the test accuracy that the authors' file states, in per cent.
    layers: the authors' names, in the order of our model's.
    """

    file: str
    original: str
    digest: str
    accuracy: float
    family: str
    settings: Mapping[str, Any]
    layers: tuple[str, ...]


_CNN = (
    "cnn",
    {"shape": (1, 28, 28), "blocks": ((32, 32), (64, 64)), "hidden": (200, 200), "classes": 10},
    ("conv1", "conv2", "conv3", "conv4", "fc1", "fc2", "fc3"),
)
NETWORKS = {
    "mnist-cnn-std": Network(
        "Model/MNISTCNN_00200.tar",
        "6ebf41f9848570d72b3d46f2acf4657a23dde59a723688b50fc4c5d317af0084",
        "b7b1768c6c7dc1aaa1b49df70d7d99afb4d8590f3a58bccc2e89b4e4b496860c",
        99.14, *_CNN,
    ),
    "mnist-cnn-lcr": Network(
        "Model/MNISTCNN_constraint_00200.tar",
        "658976fb88f2498ed1c48575a1751424add180c93aa47e5b14927afacc409729",
        "a1bb8141cda0ee50897a81410e6a2c7e56cee8bd32d93152e475e1035a343fbd",
        99.29, *_CNN,
    ),
    "mnist-cnn-amr": Network(
        "Model/MNISTCNN_reg_00200.tar",
        "a2de832e82f921f781d50eaf2527fc6060ad14795ca3dfe6ca2cae7a764ba653",
        "7ff31dbd9108dd7adf5c0615f77718294c08697a36081542e33b8f95a3043b80",
        99.25, *_CNN,
    ),
    "mnist-lr-std": Network(
        "Model/MNISTLR_01000.tar",
        "8ac33b82f2c80e73dfbf1a315e52ced0b03ad4a1dbf3645ec311100a25c3c7e0",
        "d1f6d62fd51f8f9b7da389fb2c8d94da678ed9a720f494736be1b8c9123e8b67",
        92.55, "linear", {"inputs": 784, "classes": 10}, ("fc",),
    ),
}  # fmt: skip


def load(name: str) -> nn.Module:
    """The published network `name`, one of `NETWORKS`, in evaluation mode.

    Raises MarginsError for an unknown name and for a file that holds something else, and its kind NotAvailable, which
    says how to get the file, where there is none.
    """
    path = _find(name)
    if path is None:
        raise _not_available(name)
    network = NETWORKS[name]
    try:
        with open(path, "rb") as packed, np.load(packed, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise MarginsError(f"{path} can't be read ({error}); delete it, and convert {network.file} again") from error
    if (found := digest(arrays)) != network.digest:
        raise MarginsError(
            f"{path} does not hold {name}: its arrays have the SHA-256 {found} instead of {network.digest};"
            f" it was left untouched. Replace it with what {network.file} of {REPOSITORY} is converted to"
        )
    model = build(network.family, **network.settings)
    names = [f"{layer}.{kind}" for layer in network.layers for kind in ("weight", "bias")]
    pairs = zip(model.state_dict(), names, strict=True)
    model.load_state_dict({ours: torch.from_numpy(arrays[theirs]) for ours, theirs in pairs})
    return model.eval()


def available(name: str) -> bool:
    """Whether there is a file for the network; what it holds is checked when it is loaded."""
    return _find(name) is not None


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and contents of the arrays, in the order of their names.

    Of the contents and not of the file, whose bytes depend on who packed it.
    """
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    return found.hexdigest()


def convert(file: Path, out: Path) -> str:
    """Write the arrays of an authors' file to `out` (.npz) and return the network's name in `NETWORKS`.

    The file is known by its SHA-256 before it is opened, and opened by torch.load without code in it (weights_only).
    Raises MarginsError for any other file.
    """
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise MarginsError(f"{file} can't be read: {error.strerror}") from error
    names = {network.original: name for name, network in NETWORKS.items()}
    if found not in names:
        there = ", ".join(network.file for network in NETWORKS.values())
        raise MarginsError(
            f"{file} has the SHA-256 {found}, which is none of {there} of {REPOSITORY} at commit {COMMIT}"
        )
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state_dict"]
    arrays = {key: value.numpy() for key, value in state.items()}
    with atomic(out) as target:
        np.savez_compressed(target, **arrays)
    return names[found]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m margins.published FILE OUT`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m margins.published", description=convert.__doc__.splitlines()[0])
    name, network = next(iter(NETWORKS.items()))
    parser.add_argument("file", type=Path, help=f"a file of {REPOSITORY}, such as {network.file}")
    parser.add_argument("out", type=Path, help=f"FOLDER/{FOLDER}/{name}.npz, FOLDER being what MARGINS_DATA names")
    given = parser.parse_args(arguments)
    try:
        name = convert(given.file, given.out)
    except MarginsError as error:
        print(f"margins: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {name}")
    return 0


def _find(name: str) -> Path | None:
    if name not in NETWORKS:
        raise MarginsError(f"name={name!r}: no such published network; there are {', '.join(NETWORKS)}")
    for root in roots():
        # Noted where it is missing too: a page that did without is executed again when it appears.
        path = paths.note(root / FOLDER / f"{name}.npz")
        if path.is_file():
            return path
    return None


def _not_available(name: str) -> NotAvailable:
    file = NETWORKS[name].file
    looked = ", ".join(str(root / FOLDER / f"{name}.npz") for root in roots())
    return NotAvailable(
        f"{name} was not found: looked at {looked}. It is {file} of {REPOSITORY} at commit {COMMIT[:7]}; fetch that"
        f" and convert it: python -m margins.published {Path(file).name} {roots()[0] / FOLDER / name}.npz"
    )


if __name__ == "__main__":
    sys.exit(main())
