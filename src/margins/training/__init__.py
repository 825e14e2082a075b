"""Training: one loop for every method (`train`), and plain training of a small network (`fit`)."""

from margins.training.loop import Trained, train
from margins.training.plain import fit
from margins.training.recipe import Recipe

__all__ = ["Recipe", "Trained", "fit", "train"]
