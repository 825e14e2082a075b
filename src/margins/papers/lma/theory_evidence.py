"""What LMA's claims that can be proven or refuted by computing are read from: the checks of `theory`."""

from margins.claims import Evidence
from margins.papers.lma.theory import NAME, ROWS
from margins.papers.measured import checked

#: What is a matter of rounding alone, beside numbers of the size 1.
ROUNDING = 1e-8


def _of(rows: str | tuple[str, ...], *bounds: tuple[str, str, float]) -> Evidence:
    """Of all rows that begin so."""
    return checked(NAME, (row for row in ROWS if row.startswith(rows)), *bounds)


EVIDENCE = {
    "lma-s3-mhuber-smooth": _of(
        "knots",
        ("mHuber: largest jump of value and slope", "<=", ROUNDING),
        ("mHuber: largest jump of the curvature", "<=", ROUNDING),
        ("Huber: largest |jump of the curvature - 1|", "<=", ROUNDING),
    ),
    "lma-s3-mse-outliers": _of(
        "outliers",
        ("MSE: least slope over |d|", ">=", 1.0),
        ("MAE: largest slope", "<=", 1.0),
        ("MAE: jump of the slope at 0", ">=", 1.0),
        ("mHuber: largest slope over alpha", "<=", 1 + ROUNDING),
        ("mHuber: jump of the slope at 0", "<=", ROUNDING),
    ),
    "lma-s4-hinge-example": _of("hinges", ("example: largest difference from 0 and 7", "<=", ROUNDING)),
    "lma-s4-positive-quantity": _of("hinges", ("true logit leads: delta - f_y + f_j is positive, %", ">=", 100.0)),
    "lma-s4-squared-stronger": _of(
        "violations", ("violations below 1, %", "<=", 0.0), ("violations below 0.5, %", "<=", 0.0)
    ),
    "lma-a1-ema-expansion": _of(
        "expansion",
        ("largest difference from the sum", "<=", 1e-6),
        ("largest weight over the one after it", "<", 1.0),
    ),
    "lma-a1-ema-keeps-history": _of(
        ("history, batch", "history, sample"), ("own earlier logits with a weight, %", ">=", 100.0)
    ),
    "lma-a2-misclass-iff-distance": _of("distances", ("crafted: largest gap, points", "<=", 0.5)),
    "lma-a2-margin-monotone": _of("dominance", ("every margin grows: largest rise, points", "<=", 0.0)),
    "lma-t15-small-alpha-sensitive": _of(
        "sensitivity", ("minor: largest ratio of values", ">", 1.01), ("minor: largest ratio of slopes", ">", 1.01)
    ),
    "lma-t15-small-alpha-relative": _of("sensitivity", ("minor over large: least ratio of slopes", ">", 1.0)),
}
