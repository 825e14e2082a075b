"""AMM: Adversarial Margin Maximization Networks (Yan, Guo, Zhang). Its experiments, and what its claims rest on."""

from margins.papers.amm import linear, toy

EVIDENCE = {**toy.EVIDENCE, **linear.EVIDENCE}
