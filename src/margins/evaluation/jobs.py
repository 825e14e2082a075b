"""The parts of an evaluation, a job and a batch at a time, kept in a file so that a killed one goes on.

The randomness of a part comes from the evaluation's seed and the job's stream alone: what ran before, in this process
or in one that was killed, changes nothing.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
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


class Jobs:
    """Runs jobs on batches of `batch_size`; with a path each finished batch is written, and not run again.

    identity: names and short texts of all that decides the numbers. Raises MarginsError for a file of another identity,
    or one that is no such file; it is never overwritten.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        batch_size: int,
        seed: int,
        path: Path | None,
        identity: Mapping[str, str],
        progress: bool,
    ):
        self.model, self.device, self.batch_size, self.seed = model, device, batch_size, seed
        self.path, self.identity, self.progress = path, dict(identity), progress
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
                    np.savez(file, identity=json.dumps(self.identity), **{f"part {k}": v for k, v in store.items()})
        forward, backward, seconds = cost.sum(0).tolist()
        found = {key: torch.from_numpy(store[f"{name}: {key}"].copy()) for key in columns}
        return found, Cost(forward / max(samples, 1), backward / max(samples, 1), seconds)

    def _part(self, part: Part, rows: slice, stream: str) -> tuple[Mapping[str, Tensor], tuple[float, float, float]]:
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {stream}".encode()).digest()[:7])
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):  # a randomised model draws from the global state, which is not ours to move
            torch.default_generator.manual_seed(seed)
            for device in cuda:
                torch.cuda.default_generators[device.index].manual_seed(seed)
            start = time.perf_counter()
            values, calls = part(self.model, rows, torch.Generator().manual_seed(seed))
            for device in cuda:
                torch.cuda.synchronize(device)
            return values, (calls.forward, calls.backward, time.perf_counter() - start)

    def _bar(self, name: str, left: np.ndarray, batches: int):
        if not self.progress:
            return left
        from tqdm import tqdm

        return tqdm(left, desc=name, unit="batch", initial=batches - len(left), total=batches)

    def _load(self, path: Path) -> dict[str, np.ndarray]:
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                stored = {name.removeprefix("part "): file[name] for name in file.files if name != "identity"}
                identity = json.loads(str(file["identity"]))
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
            raise MarginsError(
                f"resume {path}: not the state of an evaluation ({type(error).__name__}: {error}); name another file,"
                " or delete this one to start anew"
            ) from error
        other = sorted(key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key))
        if other:
            raise MarginsError(
                f"resume {path}: belongs to another evaluation, whose {', '.join(other)} differ; nothing was changed."
                " Name another file, or delete this one"
            )
        return stored
