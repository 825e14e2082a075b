"""AMM: Adversarial Margin Maximization Networks (Yan, Guo, Zhang). Its experiments, and what its claims rest on."""

from margins.papers.amm import generalisation, linear, mnist_evidence, searches, terms, theory, toy  # noqa: F401

EVIDENCE = {
    **toy.EVIDENCE,
    **linear.EVIDENCE,
    **theory.EVIDENCE,
    **generalisation.EVIDENCE,
    **terms.EVIDENCE,
    **mnist_evidence.EVIDENCE,
}
