"""Whether AMR's regularised loss is Fisher consistent (Definition 1, Theorem 2), by exact minimisation of its risk."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from margins import checks
from margins.experiments import Outcome
from margins.margin import logit_margin
from margins.papers.measured import measured
from margins.penalties.amr import hinge, truncated

NAME = "amr/fisher"
#: The losses that section 4.1 names, as functions of the margin.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda t: functional.softplus(-t),
    "exponential": lambda t: torch.exp(-t),
    "hinge": lambda t: hinge(t, 1.0),
}
#: alpha is paired with this minus alpha: 1 in Definition 1 as printed, 0 in Bartlett et al. and in the proof.
PRINTED, CORRECTED = 1.0, 0.0
#: A chance of the class +1 at which the definition as printed finds fault with a loss alone.
EXAMPLE = 0.45
#: Beyond the last kink, how far a minimum is looked for: every loss is within 1e-25 of its infimum there.
_FAR = 60.0
#: A gap up to this counts as none: infima of up to 10,000 are subtracted. The least of logistic loss is 2e-6 on `grid`.
ROUNDING = 1e-9


def regularised(loss: str, t: Tensor, lam: Tensor, tau: Tensor) -> Tensor:
    """l(t) = phi(t) + lambda (H_tau(t) - H_0(t)), elementwise (Theorem 2). Raises MarginsError for an unknown loss."""
    return LOSSES[checks.choice("loss", loss, LOSSES)](t) + lam * (hinge(t, tau) - hinge(t, 0.0))


def risk(loss: str, alpha: Tensor, eta: Tensor, lam: Tensor, tau: Tensor, shift: float = CORRECTED) -> Tensor:
    """C_eta(alpha) = eta l(alpha) + (1 - eta) l(shift - alpha), elementwise (Definition 1)."""
    one, other = (regularised(loss, t, lam, tau) for t in (alpha, shift - alpha))
    return eta * one + (1 - eta) * other


def infima(loss: str, eta: Tensor, lam: Tensor, tau: Tensor, shift: float = CORRECTED) -> tuple[Tensor, Tensor, Tensor]:
    """The infimum of C_eta over alpha of the wrong sign or 0, that over all alpha, and where that is; each (G,).

    eta, lam, tau (G,) float64, eta in [0, 1] but not 1/2. Exact to rounding: between its kinks C_eta is convex, as the
    regulariser is linear there, so that each interval is searched by halving (golden section), and 0 is always an end.
    Where nothing is as good as infinity (eta of 0 or 1), the place returned is far out.
    """
    zero = torch.zeros_like(eta)
    ends = [zero, tau, *([zero + 1] if loss == "hinge" else [])]
    kinks = torch.stack([zero, *ends, *(shift - end for end in ends)]).sort(0).values
    outer = kinks.abs().amax(0) + _FAR
    kinks = torch.cat([-outer[None], kinks, outer[None]])
    left, right, golden = kinks[:-1].clone(), kinks[1:].clone(), (5**0.5 - 1) / 2
    given = eta, lam, tau, shift
    for _ in range(90):
        a, b = right - golden * (right - left), left + golden * (right - left)
        lower = risk(loss, a, *given) < risk(loss, b, *given)
        left, right = torch.where(lower, left, a), torch.where(lower, b, right)
    places = torch.cat([kinks, (left + right) / 2])
    values = risk(loss, places, *given)
    # A place inside of an interval has its side of 0, of which one end may be 0
    wrong = torch.cat([kinks, (kinks[:-1] + kinks[1:]) / 2]) * (2 * eta - 1) <= 0
    best, at = values.min(0)
    return torch.where(wrong, values, torch.inf).amin(0), best, places.gather(0, at[None])[0]


def grid(seed: int, random: int) -> tuple[Tensor, Tensor, Tensor]:
    """eta, lambda and tau (G,): all of a fixed grid, and `random` points more, many of them with eta near 1/2."""
    eta = torch.tensor([0, 0.001, 0.01, *(k / 20 for k in range(1, 10)), 0.49, 0.499], dtype=torch.float64)
    sizes = torch.tensor([0, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 100], dtype=torch.float64)
    fixed = torch.cartesian_prod(torch.cat([eta, 1 - eta]), sizes, sizes).T
    generator = torch.Generator().manual_seed(seed)
    share, side, lam, tau = torch.rand(4, random, generator=generator, dtype=torch.float64)
    away = (side - 0.5).sign() * 10 ** (-3 + 2.699 * share)  # 0.001 to 0.5 from one half
    drawn = torch.stack([0.5 + away, 10 ** (-3 + 5 * lam), 10 ** (-3 + 5 * tau)])
    return tuple(torch.cat([fixed, drawn], 1))


def gaps(loss: str, seed: int, random: int) -> dict[str, Tensor]:
    """Eq. 12's difference over a grid of eta, lambda and tau, under both definitions."""
    eta, lam, tau = grid(seed, random)
    plain, found = lam * tau == 0, {"points": torch.tensor(len(eta))}
    for name, shift in (("corrected", CORRECTED), ("as printed", PRINTED)):
        wrong, best, _ = infima(loss, eta, lam, tau, shift)
        gap = wrong - best
        found |= {
            f"{name}: least gap": gap.min(),
            f"{name}: least gap over (1 - 2 eta)^2": (gap / (1 - 2 * eta).square()).min(),
            f"{name}: share without a gap": (gap <= ROUNDING).double().mean(),
            f"{name}: share without a gap, lambda or tau 0": (gap <= ROUNDING)[plain].double().mean(),
        }
    one = torch.full((1,), EXAMPLE, dtype=torch.float64)
    for name, shift in (("corrected", CORRECTED), ("as printed", PRINTED)):
        wrong, best, at = infima(loss, one, 0 * one, 0 * one, shift)
        found |= {f"{name}: gap of the example": wrong - best, f"{name}: minimiser of the example": at}
    return found


def conditions(loss: str, seed: int, points: int) -> dict[str, Tensor]:
    """What Theorem 2 asks of phi, on random points and by differences at 0 (section 4.1)."""
    phi = LOSSES[loss]
    t = 60 * torch.rand(points, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort().values - 30
    values, jump, h = phi(t), 1e-9, 1e-6
    right, left = (side * (phi(torch.tensor(side * h, dtype=torch.float64)) - phi(0 * t[0])) / h for side in (1, -1))
    return {
        "largest rise": values.diff().max(),
        "largest relative jump over 1e-9": ((phi(t) - phi(t + jump)).abs() / (1 + phi(t))).max(),
        "least value": values.min(),
        "slope right of 0": right,
        "slope left of 0": left,
        "difference of the slopes": (right - left).abs(),
    }


#: eta(x) of distributions whose Bayes classifier is known: it says 1 where eta is above one half. x is uniform in +-3.
KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "two Gaussians": lambda x: torch.sigmoid(2 * x - 0.8),  # at -1 and 1, of variance 1, the first one likelier
    "wave": lambda x: 0.5 + 0.4 * torch.sin(3 * x),
    "steps": lambda x: torch.where(x.floor() % 2 == 0, 0.55, 0.3).double(),
}
SETTINGS = ((0.0, 0.0), (1.0, 0.5), (10.0, 5.0), (100.0, 100.0))


def decisions(kind: str, loss: str, points: int, lam: float, tau: float, shift: float = CORRECTED):
    """x (points,), eta, and the score (points,) that minimises the regularised risk of a distribution of KNOWN."""
    x = 6 * (torch.arange(points, dtype=torch.float64) + 0.5) / points - 3
    eta = KNOWN[kind](x)
    same = torch.full_like(eta, lam), torch.full_like(eta, tau)
    return x, eta, infima(loss, eta, *same, shift)[2]


def bayes(seed: int, points: int, atoms: int, samples: list[int]) -> Outcome:
    """How often minimising the regularised risk gives another decision than Bayes's, and what that costs.

    Known distributions with their exact risk; then a sample of one with random atoms, of several sizes, where a
    score of its own for each atom minimises the risk of the sample.
    """
    found: dict[str, float] = {}
    for name, shift in (("corrected", CORRECTED), ("as printed", PRINTED)):
        for kind in KNOWN:
            worst = []
            for loss in LOSSES:
                for lam, tau in SETTINGS:
                    _, eta, score = decisions(kind, loss, points, lam, tau, shift)
                    worst.append((score * (2 * eta - 1) <= 0).double().mean().item())
            found[f"{name}: {kind}: share against Bayes, most"] = max(worst)
    rng = np.random.default_rng(seed)
    mass, eta = rng.dirichlet(np.ones(atoms)), rng.uniform(size=atoms)
    excess = {loss: [] for loss in LOSSES}
    for size in samples:
        count = rng.multinomial(size, mass)
        share = torch.tensor(rng.binomial(count, eta) / np.maximum(count, 1))
        known = (count > 0) & (2 * share.numpy() != 1)  # the sample decides nothing for the others: they count as wrong
        for loss in LOSSES:
            same = torch.full_like(share, 10.0), torch.full_like(share, 5.0)
            score = infima(loss, torch.where(torch.tensor(known), share, 0.9), *same)[2].numpy()
            excess[loss].append(float((mass * abs(2 * eta - 1))[~known | (score * (2 * eta - 1) <= 0)].sum()))
    found |= {f"{loss}: excess error, most samples": values[-1] for loss, values in excess.items()}
    return Outcome(found, curves={"samples": samples} | {f"{loss}: excess error": v for loss, v in excess.items()})


def unit_norm(loss: str, seed: int, draws: int, atoms: int, settings: Mapping[str, tuple[float, float]]) -> dict:
    """Eq. 9's minimiser, |w| = 1 in the plane, against Bayes's classifier where that is such a w itself.

    Random atoms, with random chances that all agree with one linear classifier; the circle is searched in steps of a
    tenth of a degree.
    """
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(3600, dtype=torch.float64) * torch.pi / 1800
    w = torch.stack([angle.cos(), angle.sin()])
    excess = {name: [] for name in settings}
    for _ in range(draws):
        x = torch.randn(atoms, 2, generator=generator, dtype=torch.float64)
        sure = torch.rand(atoms, 1, generator=generator, dtype=torch.float64) / 2
        best = w[:, torch.randint(3600, (1,), generator=generator)]
        eta = 0.5 + sure * (x @ best).sign()
        score = x @ w
        for name, (lam, tau) in settings.items():
            at = risk(loss, score, eta, torch.tensor(lam), torch.tensor(tau)).mean(0).argmin()
            excess[name].append((2 * sure[score[:, [at]] * (2 * eta - 1) <= 0]).sum().item() / atoms)
    return {
        f"{name}: {what}": value
        for name, values in excess.items()
        for what, value in (
            ("share of draws where it is not Bayes's", np.mean(np.array(values) > 0)),
            ("mean excess error", np.mean(values)),
        )
    }


def multiclass(seed: int, draws: int, lam: float, tau: float) -> dict[str, float]:
    """Eq. 12's difference for three classes, none likelier than one half: cross-entropy and a margin's reading.

    Over a lattice of scores that holds every tie; the wrong ones are those where a less likely class is among the best.
    "truncated": -[a]_0^tau (Eq. 15). "hinge": H_tau(a), as in the authors' code for MNIST.
    """
    ticks = torch.linspace(-4, 4, 201, dtype=torch.float64)
    scores = functional.pad(torch.cartesian_prod(ticks, ticks), (0, 1))
    leads = torch.stack([logit_margin(scores, torch.full((len(scores),), k)) for k in range(3)], 1)
    generator = torch.Generator().manual_seed(seed)
    found = {"cross-entropy": [], "truncated": [], "hinge": []}
    for _ in range(draws):
        most = 0.38 + 0.06 * torch.rand(1, generator=generator, dtype=torch.float64)
        share = torch.cat([most, torch.tensor([0.55, 0.45], dtype=torch.float64) * (1 - most)])
        risks = dict.fromkeys(found, -(scores.log_softmax(1) @ share))
        risks["truncated"] = risks["truncated"] - lam * truncated(leads, tau) @ share
        risks["hinge"] = risks["hinge"] + lam * hinge(leads, tau) @ share
        wrong = leads[:, 0] <= 0
        for name, values in risks.items():
            found[name].append((values[wrong].min() - values.min()).item())
    return {f"{name}: least gap": min(values) for name, values in found.items()} | {
        f"{name}: share of draws without a gap": np.mean(np.array(values) <= ROUNDING) for name, values in found.items()
    }


EQ9 = {"without": (0.0, 0.0), "lambda 1, tau 0.5": (1.0, 0.5), "lambda 10, tau 1": (10.0, 1.0)}
ROWS: dict[str, tuple[Callable, dict]] = {
    **{f"Theorem 2, {loss}": (gaps, {"loss": loss, "random": 5000}) for loss in LOSSES},
    **{f"conditions, {loss}": (conditions, {"loss": loss, "points": 100_000}) for loss in LOSSES},
    "Bayes": (bayes, {"points": 600, "atoms": 40, "samples": [10**k for k in range(1, 7)]}),
    "unit norm, logistic": (unit_norm, {"loss": "logistic", "draws": 200, "atoms": 12, "settings": EQ9}),
    "unit norm, hinge": (unit_norm, {"loss": "hinge", "draws": 200, "atoms": 12, "settings": EQ9}),
    "three classes": (multiclass, {"draws": 20, "lam": 1.0, "tau": 1.0}),
}
measured(
    ROWS,
    name=NAME,
    title="Fisher consistency of AMR's regularised loss",
    source="AMR, section 4.1, Definition 1 and Theorem 2",
    revisions={"fisher": 1},
    minutes=0.1,
)
