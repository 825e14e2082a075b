"""What EMR's claims that can be proven or refuted by computing are read from: the checks of `theory`."""

from margins.claims import Evidence
from margins.papers.emr.theory import NAME, ROWS
from margins.papers.measured import checked

#: What counts as equal: the claims' own 1e-5, and in float64 what is a matter of rounding alone.
EQUAL, ROUNDING = 1e-5, 1e-10


def _of(rows: str | tuple[str, ...], *bounds: tuple[str, str, float]) -> Evidence:
    """Of all rows that begin so."""
    return checked(NAME, (row for row in ROWS if row.startswith(rows)), *bounds)


EVIDENCE = {
    "emr-abs-scale-loss-to-zero": _of(
        "scaling",
        ("correct: largest rise of the loss", "<=", 0.0),
        ("clear: largest loss at 100", "<", 1e-6),
        ("largest relative change of the margin", "<=", EQUAL),
    ),
    "emr-abs-gradient-vanishes": _of(
        "scaling",
        ("clear: largest gradient at 100 over that at 1", "<", 1e-3),
        ("clear: largest slope of the sigmoid at 100 over that at 1", "<", 1e-3),
    ),
    "emr-s1-accuracy-scale-invariant": _of("scaling", ("predictions that change", "<=", 0.0)),
    "emr-s1-homogeneous-logits-follow-weights": _of(
        "homogeneous", ("without biases: largest relative difference", "<=", EQUAL)
    ),
    "emr-s1-resnet-last-layer": _of(
        "scaling, ResNet",
        ("correct: largest rise of the mean loss", "<", 0.0),
        ("predictions that change", "<=", 0.0),
        ("largest relative change of the margin", "<=", EQUAL),
    ),
    "emr-s2-lsoftmax-scale-dependent": _of(
        "L-Softmax", ("kept: largest rise of the loss", "<", 0.0), ("clear: largest loss at 100", "<", 1e-6)
    ),
    "emr-s3-local-linearity": _of("linear region", ("no flip: largest relative difference", "<=", EQUAL)),
    "emr-s3-margin-is-distance": Evidence(
        (NAME,),
        lambda at: [
            *_of("proxy, linear", ("largest relative difference", "<=", EQUAL)).read(at),
            *_of(("proxy, plane", "proxy, MLP"), ("within a tenth, %", ">", 90.0)).read(at),
        ],
    ),
    "emr-s3-gradient-of-sum-gives-rows": _of("together", ("evaluation: largest relative difference", "<=", ROUNDING)),
    "emr-s4-eq7-identity": _of("temperature", ("Eq. 7: largest relative difference", "<=", EQUAL)),
    "emr-s4-limit-t-zero": _of(
        "temperature",
        ("t = 1e-3: largest relative difference from the predicted row", "<=", 1e-4),
        ("t = 1e-3: largest relative difference from the largest row", "<=", 1e-4),
    ),
    "emr-s4-limit-t-infinity": _of("temperature", ("t = 1e8: largest |K^2 penalty - sum|, over K exact", "<=", 1e-4)),
    "emr-s4-bn-train-mode-correlates": _of(
        "together, ResNet",
        ("evaluation: largest gradient to another sample", "<=", 0.0),
        ("training: largest gradient to another sample", ">", 1e-6),
    ),
}
