"""Evaluation: how a classifier withstands attacks, how wide its margins are, and whether the numbers can be believed.

evaluate                one call from a model to an `Evaluation`: accuracies, margins, sanity checks
suite                   the attacks of "quick", "strong" (the default) and "standard", by name
broken.BROKEN           defences that are broken on purpose, and the check that names each
weights.find, .load     a model and its weights, from what a user names, without running pickled code
"""

from margins.evaluation.evaluate import evaluate
from margins.evaluation.result import Attacked, Check, Cost, Evaluation, Measured
from margins.evaluation.suites import suite

__all__ = ["Attacked", "Check", "Cost", "Evaluation", "Measured", "evaluate", "suite"]
