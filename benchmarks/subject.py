"""The models and samples: trained once by the book's environment, kept in the cache, loaded by every worker."""

import hashlib
import inspect
import json
from pathlib import Path

import torch

from benchmarks.cases import SUBJECTS
from margins import models

#: Training: the first TRAIN images of a permutation, EPOCHS with Adam (margins.training.fit).
TRAIN, EPOCHS = 20_000, 3


def identity(name: str) -> str:
    """A hash of what decides the weights: it names the file, so that another recipe never meets old weights."""
    from margins import training

    recipe = [SUBJECTS[name].family, SUBJECTS[name].settings, TRAIN, EPOCHS, inspect.getsource(training.fit)]
    return hashlib.sha256(json.dumps([*recipe, torch.__version__.split("+")[0]]).encode()).hexdigest()[:12]


def prepare(name: str, samples: int, folder: Path) -> Path:
    """A file with the weights of the subject and the first `samples` MNIST test images of a fixed permutation."""
    from margins import datasets, training
    from margins.files import atomic

    path = folder / f"{name}-{identity(name)}.pt"
    if path.exists():
        weights = torch.load(path, weights_only=True)
    else:
        data = datasets.load("mnist", "train", size=TRAIN)
        model = training.fit(
            models.build(SUBJECTS[name].family, **SUBJECTS[name].settings), data.x, data.y, epochs=EPOCHS
        )
        weights = model.state_dict()
        with atomic(path) as file:
            torch.save(weights, file)
    test = datasets.load("mnist", "test", size=samples)
    path = path.with_name(f"{path.stem}-{samples}.pt")
    with atomic(path) as file:
        torch.save({"weights": weights, "x": test.x, "y": test.y}, file)
    return path


def load(name: str, path: Path | str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """(model in evaluation mode, x, y) of a file that `prepare` wrote; needs torch and margins.models only."""
    model = models.build(SUBJECTS[name].family, **SUBJECTS[name].settings)
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["weights"])
    return model.eval(), saved["x"], saved["y"]
