"""The four papers: their tables as experiments, and the evidence for their claims."""

from margins.papers import amm, amr, emr, lma

#: Claim id -> what its verdict is read from; a claim that is not here has not been run.
EVIDENCE = {**amm.EVIDENCE, **amr.EVIDENCE, **emr.EVIDENCE, **lma.EVIDENCE}
