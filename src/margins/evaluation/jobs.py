"""The parts of an evaluation, a job and a batch at a time, kept in a file so that a killed one goes on.

The randomness of a part comes from the evaluation's seed and the job's stream alone: what ran before, in this process
or in one that was killed, changes nothing.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from margins.attacks.found import Calls
from margins.errors import MarginsError
from margins.evaluation.result import Cost
from margins.files import atomic

#: (model, rows of the samples, generator) -> columns (B,) by name, calls
Part = Callable[[nn.Module, slice, torch.Generator], tuple[Mapping[str, Tensor], Calls]]


#: Of the first batch's logits so many rows are kept, and compared up to this share of the largest.
ROWS, CLOSE = 16, 1e-4


@contextmanager
def seeded(seed: int, stream: str, device: torch.device) -> Iterator[torch.Generator]:
    """A generator of this seed and stream; the global state, which a randomised model draws from, is seeded meanwhile.

    It is as it was afterwards.
    """
    number = int.from_bytes(hashlib.sha256(f"{seed} {stream}".encode()).digest()[:7])
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(number)
        for one in cuda:
            torch.cuda.default_generators[one.index].manual_seed(number)
        yield torch.Generator().manual_seed(number)


class Jobs:
    """Runs jobs on batches of `batch_size`; with a path each finished batch is written, and not run again.

    identity: names and short texts of all that decides the numbers. logits (B, K): the model's on the first samples;
    weights don't tell models apart that differ in a plain attribute. Compared with a tolerance, as threads may change
    the last bits. Raises MarginsError for a file of another identity, or one that is no such file; it is never
    overwritten.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        batch_size: int,
        seed: int,
        path: Path | None,
        identity: Mapping[str, str],
        logits: Tensor,
        progress: bool,
    ):
        self.model, self.device, self.batch_size, self.seed = model, device, batch_size, seed
        self.path, self.identity, self.progress = path, dict(identity), progress
        self.logits = logits[:ROWS].detach().double().cpu().numpy()
        self.stored: dict[str, np.ndarray] = {}
        if path is not None and path.exists():
            self.stored = self._load(path)

    def run(
        self, name: str, part: Part, samples: int, columns: Mapping[str, torch.dtype], stream: str | None = None
    ) -> tuple[dict[str, Tensor], Cost]:
        """The columns (samples,) on the CPU that `part` returns batch by batch, and what they cost.

        stream: jobs of one stream draw the same random numbers; the name by default.
        """
        batches = -(-samples // self.batch_size)
        store = self.stored
        if f"{name}: done" not in store:
            store |= {f"{name}: {key}": torch.zeros(samples, dtype=kind).numpy() for key, kind in columns.items()}
            store |= {f"{name}: done": np.zeros(batches, bool), f"{name}: cost": np.zeros((batches, 3))}
        done, cost = store[f"{name}: done"], store[f"{name}: cost"]
        for batch in self._bar(name, np.flatnonzero(~done), batches):
            rows = slice(batch * self.batch_size, min((batch + 1) * self.batch_size, samples))
            values, cost[batch] = self._part(part, rows, stream or name)
            for key in columns:
                store[f"{name}: {key}"][rows] = values[key].detach().cpu().numpy()
            done[batch] = True
            if self.path is not None:
                with atomic(self.path) as file:
                    parts = {f"part {key}": value for key, value in store.items()}
                    np.savez(file, identity=json.dumps(self.identity), logits=self.logits, **parts)
        forward, backward, seconds = cost.sum(0).tolist()
        found = {key: torch.from_numpy(store[f"{name}: {key}"].copy()) for key in columns}
        return found, Cost(forward / max(samples, 1), backward / max(samples, 1), seconds)

    def begun(self, name: str) -> bool:
        """Whether a batch of this job was done, in this process or in the one that left the file."""
        return bool(self.stored.get(f"{name}: done", np.zeros(0)).any())

    def _part(self, part: Part, rows: slice, stream: str) -> tuple[Mapping[str, Tensor], tuple[float, float, float]]:
        with seeded(self.seed, stream, self.device) as generator:
            start = time.perf_counter()
            values, calls = part(self.model, rows, generator)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return values, (calls.forward, calls.backward, time.perf_counter() - start)

    def _bar(self, name: str, left: np.ndarray, batches: int):
        if not self.progress:
            return left
        from tqdm import tqdm

        return tqdm(left, desc=name, unit="batch", initial=batches - len(left), total=batches)

    def _load(self, path: Path) -> dict[str, np.ndarray]:
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                stored = {name.removeprefix("part "): file[name] for name in file.files if name[:5] == "part "}
                identity = json.loads(str(file["identity"]))
                logits = file["logits"] if "logits" in file.files else np.zeros(0)
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
            raise MarginsError(
                f"resume {path}: not the state of an evaluation ({type(error).__name__}: {error}); name another file,"
                " or delete this one to start anew"
            ) from error
        other = {key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key)}
        near = CLOSE * np.abs(self.logits).max(initial=0)
        same_data = not other & {"x", "y", "batch_size", "seed"}
        if same_data and (logits.shape != self.logits.shape or np.abs(logits - self.logits).max(initial=0) > near):
            other.add("model")
        if other:
            differ = f"whose {', '.join(sorted(other))} differ"
            raise MarginsError(
                f"resume {path}: belongs to another evaluation, {differ}; nothing was changed. Name another file, or"
                " delete this one"
            )
        return stored
