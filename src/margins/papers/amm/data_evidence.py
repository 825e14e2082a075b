"""What AMM's claims about fewer images and random labels are read from (sections 4.3.2 and 4.3.3, Figures 4 and 5)."""

from itertools import pairwise

from margins.claims import Evidence
from margins.papers.amm.mnist import AGGREGATION, FEWER, NOISE, NOISIER, SIZES, THIRD
from margins.papers.amm.mnist_evidence import OURS, REFERENCE, error, stated
from margins.papers.paired import difference

#: The points that a laptop trains on, the last or the first of which is Table 1's.
FEW = tuple(name for name, size in SIZES.items() if size in FEWER)
NOISY = tuple(name for name, share in NOISE.items() if share in NOISIER)
MOST = NOISY[-1]


def _each(names: tuple[str, ...], what: str) -> Evidence:
    """That AMM has the lower error in each of these experiments."""

    def read(at):
        return [
            difference(f"error, {name.split('-')[-1] if name != AGGREGATION else 'all'} {what}", *rows, error, "<")
            for name in names
            for rows in [((at[name], OURS), (at[name], REFERENCE))]
        ]

    return Evidence(names, read)


def _third(at):
    return [
        difference("error, a third of the images - all", (at[THIRD], OURS), (at[AGGREGATION], REFERENCE), error, "<")
    ]


def _numbers(at):
    few, all_ = stated("AMM error with 20k images"), stated("vanilla error with all 60k images")
    return [
        difference("error, a third of the images", (at[THIRD], OURS), few, error, "within", 0.2),
        difference("error, all images", (at[AGGREGATION], REFERENCE), all_, error, "within", 0.2),
    ]


def _breaks(at):
    """Non-decreasing from point to point, and a rise of more than 20 points from none to the most."""
    rising = [
        difference(f"error, {more} - {less}", (at[more], REFERENCE), (at[less], REFERENCE), error, ">")
        for less, more in pairwise((AGGREGATION, *NOISY))
    ]
    label = f"error, {MOST} - {AGGREGATION}"
    return [*rising, difference(label, (at[MOST], REFERENCE), (at[AGGREGATION], REFERENCE), error, ">", 20.0)]


def _level(row: str, relation: str, bound: float) -> Evidence:
    def read(at):
        return [difference(f"error with {MOST}", (at[MOST], row), bound, error, relation)]

    return Evidence((MOST,), read)


EVIDENCE = {
    "amm-f4-beats-reference-every-size": _each((*FEW, AGGREGATION), "images"),
    "amm-f4-20k-as-good-as-60k": Evidence((THIRD, AGGREGATION), _third),
    "amm-f4-numbers": Evidence((THIRD, AGGREGATION), _numbers),
    "amm-f5-reference-breaks-with-noise": Evidence((*NOISY, AGGREGATION), _breaks),
    "amm-f5-beats-reference-with-noise": _each(NOISY, "random labels"),
    "amm-f5-amm-below-10-at-55k": _level(OURS, "<", 10.0),
    "amm-f5-reference-above-40-at-55k": _level(REFERENCE, ">", 40.0),
}
