"""LMA-AT: a margin loss and moving averages of logits. Its experiments, and what its claims rest on."""

from margins.papers.lma import mnist  # noqa: F401  registers its experiments

EVIDENCE = {}
