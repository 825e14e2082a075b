"""Trains rows in this process, or in two under torchrun: `python two_processes.py RESULT`."""

import sys
from functools import partial

import torch
from small import THREAT, Net, data, recipe

from margins import losses, methods
from margins.checkpoints import OutOfTime
from margins.errors import MarginsError
from margins.methods.craft import PGD
from margins.methods.rows import Row, Term
from margins.training import processes, train

LOSS = Term(losses.cross_entropy)
ROWS = {
    "AT": methods.at(),
    "TRADES": methods.trades(),
    "LMA-AT": methods.lma_at(reading="sample"),
    "LMA-AT by class": methods.lma_at(reading="class"),
    "EMR": methods.at_emr(0.1, 1.0),
    "parameters": Row(PGD(), (LOSS, Term(lambda model: model.head.weight.square().sum(), "parameters", 0.1))),
}
REFUSED = {
    "GAIRAT": (methods.gairat(begin=0.0), Net),
    "MMA": (methods.mma(), Net),
    "BatchNorm": (methods.at(), partial(Net, norm=True)),
}


def trained(row, model):
    # batches of 15 and, at last, of 10, which two processes share unevenly
    settings = recipe(batch_size=15, clip=0.5, average=0.9)
    return train(model, row, data(), recipe=settings, threat=THREAT, seed=1, validation=data(20, seed=7))


def all_rows():
    """The last weights of each row, and why others were refused."""
    told = {}
    for name, row in ROWS.items():
        found = trained(row, Net())
        told[name] = {**found.last, "loss": torch.tensor(next(iter(found.curves.values())), dtype=torch.float64)}
    for name, (row, net) in REFUSED.items():
        try:
            trained(row, net())
            told[name] = ""
        except MarginsError as error:
            told[name] = str(error)
    return told


def failing(error):
    raise error


def in_the_first():
    """Over the processes: the sums of what the first one alone tells them, and of who hears of what it raises."""
    heard = []
    for error in (MarginsError("told"), OutOfTime(), ZeroDivisionError()):
        try:
            processes.alone(lambda error=error: failing(error))
        except (Exception, OutOfTime) as raised:
            heard.append(type(raised) is type(error))
    told = torch.tensor([processes.alone(lambda: 5 + processes.rank()), *heard])
    return processes.total(told).tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.join()
    told = {**all_rows(), "alone": in_the_first()}
    if processes.rank() == 0:
        torch.save(told, sys.argv[1])
    processes.leave()
