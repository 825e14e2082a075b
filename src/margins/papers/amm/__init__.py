"""AMM: Adversarial Margin Maximization Networks (Yan, Guo, Zhang). Its experiments, and what its claims rest on."""

from margins.papers.amm import (
    attack_evidence,
    cost,
    data_evidence,
    generalisation,
    large_evidence,
    linear,
    mnist_evidence,
    searches,
    terms,
    theory,
    toy,
    variants,
)

EVIDENCE = {
    **toy.EVIDENCE,
    **linear.EVIDENCE,
    **theory.EVIDENCE,
    **generalisation.EVIDENCE,
    **terms.EVIDENCE,
    **mnist_evidence.EVIDENCE,
    **large_evidence.EVIDENCE,
    **data_evidence.EVIDENCE,
    **variants.EVIDENCE,
    **searches.EVIDENCE,
    **attack_evidence.EVIDENCE,
    **cost.EVIDENCE,
}
