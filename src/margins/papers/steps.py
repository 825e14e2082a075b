"""What a step of a row takes: the CPU time of this process, on one thread, and the bytes of tensors that are alive."""

import copy
import os
import random
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from margins.datasets import Data
from margins.methods import Row
from margins.penalties.context import Threat
from margins.training import Recipe
from margins.training.loop import Loop


class Between:
    """In the checkpoint's place, which is asked between two steps: what `look()` says at each of these moments."""

    def __init__(self, look: Callable[[], float]):
        self.look, self.seen = look, []

    def load(self, *names: str) -> None:
        return None

    def tick(self, state: Callable[[], dict]) -> None:
        self.seen.append(self.look())


class Alive(TorchDispatchMode):
    """Within the block: the bytes of tensors that are alive, `now` and at most since `restart` (`peak`).

    What is counted: storages of `known` tensors, and of all that operators return, until they are freed: weights,
    gradients, momentum, batches, activations, graphs. Not what an operator needs while it runs, nor the data set.
    """

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet()
        for tensor in known:
            self._see(tensor)

    def restart(self) -> float:
        """The peak so far, from where it begins anew."""
        peak, self.peak = self.peak, self.now
        return float(peak)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return found


def run(
    model: nn.Module, row: Row, data: Data, batch: int, look: Callable, recipe: Recipe, threat: Threat
) -> list[float]:
    """What is seen after each step of a row, one a batch; weights stay as they are. look gives a block, what to see."""
    recipe = replace(recipe, batch_size=batch).with_fields(row.recipe)
    loop = Loop(copy.deepcopy(model), row, data, recipe, threat, 0, None)
    block, seen = look(loop)
    between = Between(seen)
    with block:
        loop.run(between, lambda line: None)
    return between.seen


def now(device: torch.device) -> float:
    """Seconds on a clock: the CPU's that this process has used, or those that have passed when a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def seconds(model: nn.Module, row: Row, data: Data, batch: int, **given) -> float:
    """Seconds of a step by `now`: the median of those that are timed. given: as `run`."""
    seen = run(model, row, data, batch, lambda loop: (nullcontext(), partial(now, data.x.device)), **given)
    return statistics.median(b - a for a, b in pairwise(seen[:-1]))


def alive(model: nn.Module, row: Row, data: Data, batch: int, **given) -> float:
    """The most bytes of tensors alive at a moment of a step, see `Alive`; momentum is there from the second one on."""

    def look(loop: Loop) -> tuple:
        counted = Alive([*loop.model.parameters(), *loop.model.buffers()])
        return counted, counted.restart

    return max(run(model, row, data, batch, look, **given)[1:-1])


def turns(timed: Mapping[str, Callable[[], float]], reps: int) -> tuple[dict[str, np.ndarray], float]:
    """What each measures, so many times and in turns of random order, (reps,); and the machine's largest load."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    loads = []
    for rep in range(reps):
        for name in random.Random(rep).sample(list(timed), len(timed)):
            times[name].append(timed[name]())
            loads.append(os.getloadavg()[0])
    return {name: np.array(found) for name, found in times.items()}, max(loads)
