"""Trains one of ROWS in a process that may be killed: `python killed_training.py ROW CHECKPOINT RESULT`."""

import sys
from pathlib import Path

import torch
from small import THREAT, Net, data, recipe

from margins import checkpoints, losses, methods
from margins.checkpoints import Checkpoint
from margins.methods.craft import PGD
from margins.methods.rows import Row, Term
from margins.penalties.deepfool import DeepFoolMargin
from margins.training import train

#: With a state from step to step, with one from epoch to epoch, with phases, with second derivatives.
ROWS = {
    "LMA-AT": methods.lma_at(),
    "MMA": methods.mma(),
    "MAIL": methods.mail_at(begin=0.5),
    "second derivatives": Row(None, (Term(losses.cross_entropy, "clean"), Term(DeepFoolMargin("AVG"), "clean", 0.1))),
    "dropout": Row(PGD(start="uniform"), (Term(losses.cross_entropy),)),
}
EPOCHS = 6


def trained(name: str, checkpoint: Checkpoint | None) -> dict[str, torch.Tensor]:
    """All that a training returns, as tensors."""
    model = Net(norm=name == "dropout", dropout=name == "dropout")
    settings = recipe(epochs=EPOCHS, average=0.9, schedule="one-cycle")
    found = train(
        model, ROWS[name], data(), recipe=settings, threat=THREAT, seed=3, validation=data(20, seed=7),
        checkpoint=checkpoint,
    )  # fmt: skip
    curves = {name: torch.tensor(values, dtype=torch.float64) for name, values in found.curves.items()}
    states = {f"{which} {key}": value for which in ("best", "last") for key, value in getattr(found, which).items()}
    return states | curves | {"chosen": torch.tensor(found.chosen)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[n].nan_to_num(-1), b[n].nan_to_num(-1)) for n in a)


if __name__ == "__main__":
    checkpoints.SECONDS = 0.0  # at every step
    torch.set_num_threads(1)
    torch.save(trained(sys.argv[1], Checkpoint(Path(sys.argv[2]))), sys.argv[3])
