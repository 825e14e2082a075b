"""Evaluates a small model with an attack that may kill the process: for test_resume.py, in its process or not."""

import os
import signal
from functools import partial

import torch
from known import linear

from margins.attacks.pgd import pgd
from margins.evaluation import Evaluation, evaluate

#: Batches that the second attack has begun in this process, and the one in which it ends it (nothing is cleaned up).
BEGUN: list[int] = []
FATAL: list[int] = []


def deadly(model, x, y, generator):
    BEGUN.append(len(x))
    if len(BEGUN) in FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    return pgd(model, x, y, norm=2, eps=0.05, steps=3, step_size=0.02, generator=generator)


def run(resume: str, fatal: int = 0) -> Evaluation:
    torch.set_num_threads(1)
    FATAL[:] = [fatal]
    model, x, y = linear(0)
    attacks = {"first": partial(pgd, norm=2, eps=0.05, steps=2, step_size=0.03), "deadly": deadly}
    return evaluate(model, x, y, norm=2, eps=0.05, attacks=attacks, batch_size=13, resume=resume)
