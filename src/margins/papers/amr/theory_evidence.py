"""What the claims on AMR's theory are read from: exact checks of the experiments of the theory_*.py beside."""

from margins.claims import Evidence
from margins.papers.amr import theory, theory_fisher, theory_lipschitz, theory_networks
from margins.papers.measured import checked

PLANE, FISHER, FEATURES, LIPSCHITZ = (m.NAME for m in (theory, theory_fisher, theory_networks, theory_lipschitz))
_ROWS = {module.NAME: module.ROWS for module in (theory, theory_fisher, theory_networks, theory_lipschitz)}


def _checked(name: str, rows: str, *bounds: tuple[str, str, float]) -> Evidence:
    """Of all rows that begin so."""
    return checked(name, (row for row in _ROWS[name] if row.startswith(rows)), *bounds)


EVIDENCE = {
    "amr-s2-prop1-robustness-is-distance": _checked(
        PLANE,
        "Prop. 1",
        ("largest excess of the search, steps", "<=", 1.0),
        ("least excess of the search, steps", ">=", -1e-9),
    ),
    "amr-s2-eq4-distance-to-set": _checked(
        PLANE, "Eq. 4", ("largest difference outside, steps", "<=", 1.0), ("largest distance inside", "<=", 0.0)
    ),
    "amr-s3-no-contradiction-always": _checked(PLANE, "symmetric", ("angle of the two", "<", 1.0)),
    "amr-s3-linear-margin-scale-free": _checked(
        PLANE,
        "scale",
        ("race: largest relative difference", "<=", 1e-3),
        ("DeepFool: largest relative difference", "<=", 1e-3),
        ("largest relative change with the scale", "<", 1e-9),
    ),
    "amr-s4-eq10-difference-of-hinges": _checked(
        PLANE,
        "Eq. 10",
        ("largest spread of the difference", "<", 1e-12),
        ("largest height of a hinge above its chord", "<", 1e-12),
    ),
    "amr-th2-fisher-consistent": _checked(FISHER, "Theorem 2", ("corrected: least gap", ">", theory_fisher.ROUNDING)),
    "amr-s4-common-losses-qualify": _checked(
        FISHER,
        "conditions",
        ("largest rise", "<=", 0.0),
        ("largest relative jump over 1e-9", "<", 1e-8),
        ("least value", ">=", 0.0),
        ("slope right of 0", "<", 0.0),
        ("slope left of 0", "<", 0.0),
        ("difference of the slopes", "<", 1e-5),
    ),
    "amr-s4-feature-margin-bounds-input-margin": _checked(FEATURES, "features", ("distance: violations", "<=", 0.0)),
    "amr-s4-lipschitz-product-bound": _checked(
        FEATURES, "product", ("over the product of operator norms", "<=", 1 + theory_networks.SLACK)
    ),
    "amr-s4-eq14-is-distance": _checked(FEATURES, "Eq. 14", ("largest relative difference", "<", 1e-6)),
    "amr-th3-lower-bound": _checked(
        LIPSCHITZ,
        "plane",
        ("violations", "<=", 0.0),
        ("largest over the distance", "<=", 1 + theory_networks.SLACK),
    ),
    "amr-th3-exact-when-linear": _checked(
        LIPSCHITZ,
        "linear",
        *((f"radius {radius:g}: largest relative difference", "<", 1e-6) for radius in (0.5, 5.0)),
    ),
}
