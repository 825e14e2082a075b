"""One library in its own process: python -m benchmarks.worker LIBRARY reads a request a line and answers with a line.

Requests and answers are JSON. The first line out says which versions run. A request names the subject, its file, the
number of samples, the seed, the attack with its settings, the CPU seconds allowed and where to save what was found.
"""

import contextlib
import importlib
import json
import os
import random
import signal
import statistics
import sys
import time
import traceback
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.subject import load


def units(model, x, y, least: float = 0.2) -> tuple[list[float], list[float]]:
    """CPU seconds of a forward, and of a forward with a backward to the input, on the whole batch; several of each."""
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    forwards, both, start = [], [], time.process_time()
    while len(both) < 3 or time.process_time() - start < least:
        before = time.process_time()
        with torch.no_grad():
            model(x)
        middle = time.process_time()
        point = x.clone().requires_grad_()
        torch.autograd.grad(torch.nn.functional.cross_entropy(model(point), y, reduction="sum"), point)
        forwards.append(middle - before)
        both.append(time.process_time() - middle)
    for parameter, requires_grad in zip(model.parameters(), wanted, strict=True):
        parameter.requires_grad_(requires_grad)
    return forwards, both


def left(model) -> list[str]:
    """What an attack left behind on a model that came in evaluation mode, trainable and without gradients."""
    found = {
        "training mode": any(module.training for module in model.modules()),
        "frozen parameters": not all(parameter.requires_grad for parameter in model.parameters()),
        "parameter gradients": any(parameter.grad is not None for parameter in model.parameters()),
    }
    return [what for what, there in found.items() if there]


def clean(model) -> None:
    model.eval().requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = None


@contextlib.contextmanager
def limited(seconds: float):
    """Raises TimeoutError after so many CPU seconds of this process."""

    def stop(*_):
        raise TimeoutError(f"stopped after {seconds:g} s")

    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def run(attacks: dict, request: dict) -> dict:
    """One timed run of one attack; what it found goes into the file that the request names."""
    model, x, y = load(request["subject"], request["file"])
    x, y = x[: request["samples"]], y[: request["samples"]]
    settings = SimpleNamespace(**request["settings"], seed=request["seed"])
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(request["seed"])
    attack = attacks[settings.attack]
    if request["warm"]:  # what a library sets up on its first call is not the attack's cost
        attack(model, x[:8].clone(), y[:8].clone(), settings)
    clean(model)
    before = units(model, x, y)
    given = x.clone(), y.clone()
    with limited(request["limit"]):
        start = time.process_time()
        found = attack(model, *given, settings)
        seconds = time.process_time() - start
    remains = left(model) + ["x or y changed"] * (not torch.equal(given[0], x) or not torch.equal(given[1], y))
    clean(model)
    after = units(model, x, y)
    found = found if isinstance(found, np.ndarray) else found.detach().numpy()
    np.save(request["out"], found.astype(np.float32))
    forward, both = (statistics.median(one + other) for one, other in zip(before, after, strict=True))
    return {"seconds": seconds, "forward": forward, "unit": both, "left": remains}


def main(library: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to the log

    def answer(content: dict) -> None:
        print(json.dumps(content), file=answers, flush=True)

    torch.set_num_threads(1)
    contender = importlib.import_module(f"benchmarks.contenders.{library}")
    answer({"versions": {**contender.versions(), "torch": torch.__version__}, "attacks": sorted(contender.ATTACKS)})
    for line in sys.stdin:
        try:
            answer(run(contender.ATTACKS, json.loads(line)))
        except Exception as error:  # whatever a library raises is a result
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]})


if __name__ == "__main__":
    main(sys.argv[1])
