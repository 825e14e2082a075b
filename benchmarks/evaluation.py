"""What `margins.evaluate` takes beside its attacks by themselves: make bench ARGS="evaluation"."""

import argparse
import json
import math
import os
import statistics
import time
from unittest import mock

import torch

import margins
from benchmarks.cases import SUBJECTS
from benchmarks.comparison import committed, provenance
from benchmarks.report import plain
from benchmarks.subject import load, prepare
from margins import paths
from margins.evaluation import probes
from margins.evaluation.suites import suite
from margins.files import atomic
from margins.margin import effective_margin

RECORDED = paths.DATA / "benchmarks" / "evaluation"
BATCH = 100


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=evaluation", description="The suite quick, linf.")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write to data/benchmarks; needs a clean checkout")
    given = parser.parse_args(arguments)
    if min(given.samples, given.reps) < 1:
        parser.error("--samples and --reps have to be at least 1")
    if given.record and not committed():
        return 1
    torch.set_num_threads(1)
    for name in given.models:
        model, x, y = load(name, prepare(name, given.samples, paths.CACHE / "bench"))
        record = {"subject": name, **measure(model, x, y, SUBJECTS[name].eps[math.inf], given.reps), **provenance()}
        print(
            f"{name}: evaluate {record['seconds']:.1f} s, of which {record['checks']:.1f} s are sanity checks;"
            f" the rest is {record['of_attacks']:.3f} x its attacks by themselves; load {record['load']}"
        )
        folder = RECORDED if given.record else paths.CACHE / "bench" / "results" / "evaluation"
        with atomic(folder / f"{name}.json") as file:
            file.write((json.dumps(plain(record), indent=1, allow_nan=False) + "\n").encode())
    return 0


def measure(model, x, y, eps: float, reps: int) -> dict:
    """CPU seconds of an evaluation by the suite "quick", in it of its sanity checks, and of its attacks alone."""
    given, runs, loads = {"norm": math.inf, "eps": eps}, [], []
    for _ in range(reps):
        alone = seconds(by_hand, model, x, y, given)
        survey, checks = probes.survey, []

        def timed(*arguments, survey=survey, checks=checks):
            start = time.process_time()
            found = survey(*arguments)
            checks.append(time.process_time() - start)
            return found

        with mock.patch.object(probes, "survey", timed):
            whole = seconds(margins.evaluate, model, x, y, attacks="quick", batch_size=BATCH, **given)
        runs.append((whole, sum(checks), (whole - sum(checks)) / alone))
        loads.append(os.getloadavg()[0])
    whole, checks, ratio = (statistics.median(values) for values in zip(*runs, strict=True))
    told = {"suite": "quick", "norm": "inf", "eps": eps, "samples": len(x), "batch": BATCH, "reps": reps}
    return {**told, "load": round(max(loads), 2), "seconds": whole, "checks": checks, "of_attacks": ratio}


def by_hand(model, x, y, given: dict) -> None:
    """The attacks of the suite and the effective margin, batch by batch."""
    for name, attack in suite("quick", **given).items():
        generator = torch.Generator().manual_seed(0)
        settings = {"generator": generator} if name.startswith("PGD") else {}
        for part in zip(x.split(BATCH), y.split(BATCH), strict=True):
            attack(model, *part, **settings)
    for part in zip(x.split(BATCH), y.split(BATCH), strict=True):
        effective_margin(model, *part, norm=given["norm"])


def seconds(function, *arguments, **settings) -> float:
    start = time.process_time()
    function(*arguments, **settings)
    return time.process_time() - start
