"""The store of runs: one JSON file a record, written atomically, with its arrays in an .npz beside it."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from margins import paths
from margins.errors import MarginsError
from margins.files import atomic

#: The named scales, smallest first. `paper` is the published setting, every number of it.
SCALES = ("quick", "laptop", "gpu", "paper")
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One finished run: what was asked for, what came out, and where it comes from.

    `metrics` are numbers (nan for what a diverged run does not have), `curves` lists of numbers, `arrays` the sha256 of
    the .npz beside the record; `status` is "done" or "diverged".
    """

    key: str
    experiment: str
    row: str
    seed: int
    scale: str
    config: Mapping[str, Any]
    revisions: Mapping[str, int]
    status: str
    metrics: Mapping[str, float]
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    arrays: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def key_of(experiment: str, row: str, seed: int, scale: str, config: Mapping, revisions: Mapping) -> str:
    """The record's name: a hash of everything that decides the outcome."""
    identity = [experiment, row, seed, scale, config, revisions]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def outdated(records: Sequence[Record]) -> list[Record]:
    """Of the parts of one row and seed, those that are about other weights than the newest one.

    The same training on another machine ends in other last digits: what was measured of them does not fit together.
    """
    named = sorted((r for r in records if "weights" in r.provenance), key=lambda r: r.provenance["recorded"])
    return [r for r in named if r.provenance["weights"] != named[-1].provenance["weights"]]


class Store:
    """The records below a folder, `data/results` by default: <paper>/<experiment>/<key>.json."""

    def __init__(self, root: Path | str | None = None):
        self.root = Path(root) if root is not None else paths.DATA / "results"

    def folder(self, experiment: str) -> Path:
        return self.root / experiment

    def path(self, experiment: str, key: str) -> Path:
        return self.folder(experiment) / f"{key}.json"

    def save(self, record: Record, arrays: Mapping[str, np.ndarray]) -> Record:
        """Write a record; the arrays first, so that a record without its arrays never exists. Raises MarginsError."""
        path = self.path(record.experiment, record.key)
        if bad := [name for name, value in record.metrics.items() if math.isinf(value)]:
            raise MarginsError(f"metrics: {', '.join(bad)} of {record.experiment} {record.row!r} is infinite")
        content = asdict(record)
        content["metrics"] = {name: None if math.isnan(value) else value for name, value in record.metrics.items()}
        content["curves"] = {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in record.curves.items()
        }
        if arrays:
            content["arrays"] = _write(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays))
        lines = (f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in content.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        _write(path, lambda file: file.write(text.encode()))
        return self.read(path)

    def read(self, path: Path) -> Record:
        """The record at `path`. Raises MarginsError for one that is unreadable; it is never overwritten."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["metrics"] = {k: math.nan if v is None else float(v) for k, v in content["metrics"].items()}
            content["curves"] = {k: [math.nan if v is None else v for v in vs] for k, vs in content["curves"].items()}
            record = Record(**content)
            if record.format != FORMAT or record.key != path.stem:
                raise ValueError(f"it says format {record.format} and key {record.key}")
            named = (record.experiment, record.row, record.seed, record.scale, record.config, record.revisions)
            if key_of(*named) != record.key:
                raise ValueError("its configuration is not the one that its key stands for")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MarginsError(
                f"{path}: unreadable record ({error}). Restore it (git checkout -- {path}) or move it away; nothing was"
                " changed"
            ) from error
        return record

    def load(self, experiment: str, key: str) -> Record | None:
        """The record of that key, or None where there is none."""
        path = self.path(experiment, key)
        return self.read(path) if path.exists() else None

    def has(self, experiment: str, key: str) -> bool:
        """Whether the record of that key is there, with its arrays."""
        record = self.load(experiment, key)
        return record is not None and (record.arrays is None or self.path(experiment, key).with_suffix(".npz").exists())

    def all(self, experiment: str) -> list[Record]:
        """Every record of an experiment, current or not, in the order of their keys."""
        return [self.read(path) for path in sorted(self.folder(experiment).glob("*.json"))]

    def arrays(self, record: Record) -> dict[str, np.ndarray]:
        """The record's arrays, checked against the digest that it holds. Raises MarginsError where they differ."""
        if record.arrays is None:
            return {}
        path = self.path(record.experiment, record.key).with_suffix(".npz")
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != record.arrays:
                raise ValueError("its digest is not the one in the record")
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise MarginsError(
                f"{path}: unreadable arrays of a record ({error}). Restore them (git checkout -- {path}), or delete the"
                " record beside them and record it again; nothing was changed"
            ) from error


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> str:
    with atomic(path) as file:
        write(file)
    return hashlib.sha256(path.read_bytes()).hexdigest()
