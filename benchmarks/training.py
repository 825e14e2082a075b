"""Steps of training beside what they compute: every method, on one thread, against its forwards and its passes.

make bench ARGS="training" for all, ARGS="training --help" for what can be chosen.
"""

import argparse
import copy
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.comparison import committed, provenance
from benchmarks.report import plain
from margins import datasets, models, paths, training
from margins.datasets import Data
from margins.files import atomic
from margins.methods import METHODS, Row
from margins.penalties.context import Threat
from margins.training.cost import MEASURED, Cost, cost

NETS = {
    "mlp-800": ("mlp", {"inputs": 784, "hidden": (800, 800), "classes": 10}),
    "lenet-small": ("lenet-small", {"shape": (1, 28, 28), "classes": 10}),
}
THREAT = Threat(math.inf, 0.1, 0.025, 10)
#: Samples of a step; steps of a run, of which the first and the last are not timed; samples the net is trained on.
BATCH, STEPS, TRAIN = 100, 6, 5000
#: The weights stay as they are, so that every step does the same.
RECIPE = training.Recipe(epochs=1, batch_size=BATCH, lr=1e-12)


def options(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=training", description="Steps of training, on one thread.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--reps", type=int, default=5, help="runs of each, default %(default)s; 4 steps of a run count")
    parser.add_argument("--record", action="store_true", help="write to data/benchmarks; needs a clean checkout")
    parser.add_argument("--show", action="store_true", help="print what is recorded, run nothing")
    given = parser.parse_args(arguments)
    if given.reps < 1:
        parser.error("--reps has to be at least 1")
    if given.record and given.methods != list(METHODS):
        parser.error("--record is of all methods")
    return given


def main(arguments=None) -> int:
    given = options(arguments)
    if given.show:
        shown = [table(json.loads(path.read_text())) for path in sorted(MEASURED.glob("*.json"))]
        print("\n\n".join(shown) or f"nothing is recorded in {MEASURED} yet")
        return 0
    if given.record and not committed():
        return 1
    torch.set_num_threads(1)
    for net in given.nets:
        model, data = prepare(net)
        record = {"net": net, **measure(model, data, given.methods, given.reps), **provenance()}
        print(table(record), end="\n\n", flush=True)
        save(record, MEASURED if given.record else paths.CACHE / "bench" / "results" / "training")
    return 0


def prepare(net: str) -> tuple[nn.Module, Data]:
    """The net, trained a little, since some methods do less for samples that it gets wrong; and data for its steps."""
    family, settings = NETS[net]
    data = datasets.load("mnist", "train", size=TRAIN)
    model = training.fit(models.build(family, **settings), data.x, data.y, epochs=2)
    return model, replace(data, x=data.x[: BATCH * STEPS], y=data.y[: BATCH * STEPS])


class Clock:
    """CPU seconds of whole steps, in the place of the checkpoint, which is asked between two steps."""

    def __init__(self, between: Callable[[], None]):
        self.between, self.seconds, self.since = between, [], None

    def load(self, *names: str) -> None:
        return None

    def tick(self, state: Callable[[], dict]) -> None:
        if self.since is not None:
            self.seconds.append(time.process_time() - self.since)
        self.between()
        self.since = time.process_time()


class Bare:
    """The passes themselves, on so many samples, with nothing around them."""

    def __init__(self, model: nn.Module, data: Data):
        self.model, self.fixed = copy.deepcopy(model), copy.deepcopy(model).requires_grad_(False)
        self.x, self.y, self.parameters = data.x, data.y, list(self.model.parameters())
        if self.x.ndim == 4:  # as the loop has them
            self.x = self.x.contiguous(memory_format=torch.channels_last)
            for net in (self.model, self.fixed):
                net.to(memory_format=torch.channels_last)
        self.optimizer = RECIPE.optimizer(self.model)
        self.runs = {"forward": self.forward, "input": self.input, "full": self.full, "twice": self.twice}

    def forward(self, x, y):
        with torch.no_grad():
            self.model(x)

    def input(self, x, y):
        x = x.detach().requires_grad_()
        torch.autograd.grad(functional.cross_entropy(self.fixed(x), y), x)

    def full(self, x, y):
        self.optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(self.model(x), y), inputs=self.parameters)

    def twice(self, x, y):
        self.optimizer.zero_grad()
        x = x.detach().requires_grad_()
        loss = functional.cross_entropy(self.model(x), y)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        torch.autograd.backward(loss + gradient.square().sum(), inputs=self.parameters)

    def seconds(self, kind: str, samples: int) -> float:
        """CPU seconds of a pass with the forward that it needs, and for "twice" also the backwards; of "step", SGD."""
        x, y = self.x[:samples], self.y[:samples]
        start = time.process_time()
        self.optimizer.step() if kind == "step" else self.runs[kind](x, y)
        return time.process_time() - start


def kinds(counted: Cost) -> list[tuple[str, int]]:
    """What has to be timed for the passes of a row: whole batches, and each kind on each number of samples."""
    sizes = sorted({samples for _, samples in counted.passes} | {BATCH})
    found = [(kind, samples) for samples in sizes for kind in ("forward", "input", "full")]
    # the step after "full", which leaves gradients
    return [*found, ("step", BATCH), *(("twice", samples) for kind, samples in counted.passes if kind == "twice")]


def bare_seconds(counted: Cost, took: dict[tuple[str, int], float]) -> float:
    """What the passes of a step take by themselves, and the optimiser's step."""
    total = took["step", BATCH]
    for (kind, samples), times in counted.passes.items():
        forward = took["forward", samples]
        single = took[kind, samples] - (forward if kind != "forward" else 0)
        if kind == "twice":
            single -= took["input", samples] - forward + took["full", samples] - forward
        total += single * times * BATCH / counted.samples
    return total


def measure(model: nn.Module, data: Data, names: list[str], reps: int) -> dict:
    """The record of a net, without where it was made: times are medians, and ratios are taken run by run."""
    rows: dict[str, Row] = {}
    for name in names:
        last = METHODS[name].phases[-1]
        rows[name] = replace(METHODS[name], craft=last.craft, terms=last.terms, later=(), start=None)
    counts = {name: cost(row, model, data, threat=THREAT, batch_size=BATCH) for name, row in rows.items()}
    bare = Bare(model, data)
    bare.seconds("full", BATCH), bare.seconds("step", BATCH)
    runs, all_of, loads = {name: [] for name in names}, [], []
    for rep in range(reps):
        for name in random.Random(rep).sample(names, len(names)):
            took: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds(counts[name])}

            def between(took=took) -> None:
                for kind, seconds in took.items():
                    seconds.append(bare.seconds(*kind))

            clock = Clock(between)
            settings = dict(recipe=RECIPE, threat=THREAT, seed=0, checkpoint=clock)
            training.train(copy.deepcopy(model), rows[name], data, **settings)
            took = {kind: statistics.median(seconds) for kind, seconds in took.items()}
            step = statistics.median(clock.seconds[:-1])  # the last one is with the end of the epoch
            of_forwards = step / (counts[name].forwards * took["forward", BATCH])
            runs[name].append((step, of_forwards, step / bare_seconds(counts[name], took)))
            all_of.append({kind: seconds for (kind, samples), seconds in took.items() if samples == BATCH})
            loads.append(os.getloadavg()[0])
    told = {}
    for name in names:
        step, of_forwards, of_passes = (statistics.median(values) for values in zip(*runs[name], strict=True))
        count = {"forwards": counts[name].forwards, "seconds": step}
        told[name] = count | {"of_forwards": of_forwards, "of_passes": of_passes}
    forward = statistics.median(one["forward"] for one in all_of)
    ratios = {
        kind: statistics.median(one[kind] / one["forward"] for one in all_of if kind in one)
        for kind in ("input", "full", "step")
    }
    settings = {"batch": BATCH, "threat": {"norm": "inf", "eps": THREAT.eps, "steps": THREAT.steps}, "reps": reps}
    return {**settings, "load": round(max(loads), 2), "forward": forward, "with_forward": ratios, "rows": told}


def table(record: dict) -> str:
    """The record as text."""
    ratios = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in record["with_forward"].items())
    lines = [
        f"{record['net']}: a forward {1e3 * record['forward']:.2f} ms; in forwards, with theirs: {ratios}; load"
        f" {record['load']}",
        f"{'method':18}{'forwards':>9}{'ms':>9}{'/ forwards':>12}{'/ passes':>10}",
    ]
    for name, row in record["rows"].items():
        numbers = f"{1e3 * row['seconds']:9.1f}{row['of_forwards']:12.3f}{row['of_passes']:10.3f}"
        lines.append(f"{name:18}{row['forwards']:9.2f}{numbers}")
    return "\n".join(lines)


def save(record: dict, folder: Path) -> Path:
    path = folder / f"{record['net']}.json"
    with atomic(path) as file:
        file.write((json.dumps(plain(record), indent=1, allow_nan=False) + "\n").encode())
    return path
