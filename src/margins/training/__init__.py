"""Training: one loop for every method (`train`), for several runs at once too (`train_together`), and a plain `fit`."""

from margins.training.loop import Trained, train
from margins.training.plain import fit
from margins.training.recipe import Recipe
from margins.training.stack import obstacles, train_together

__all__ = ["Recipe", "Trained", "fit", "obstacles", "train", "train_together"]
