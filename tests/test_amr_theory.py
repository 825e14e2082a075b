"""AMR's theory: distances in the plane, Fisher consistency, margins in feature space, bounds from gradients."""

import math

import numpy as np
import pytest
import torch

from margins import planar
from margins.checkpoints import Checkpoint
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS
from margins.margin import linear_margin, lipschitz_margin
from margins.margin.chain import layers
from margins.margin.layers import Convolution
from margins.models import MLP, Linear
from margins.papers.amr import theory, theory_fisher, theory_lipschitz, theory_networks
from margins.papers.amr.theory_evidence import EVIDENCE
from margins.papers.amr.theory_fisher import CORRECTED, LOSSES, PRINTED, infima
from margins.verdicts import page

D = torch.float64


def numbers(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value], dtype=D) for value in values)


def test_a_lattice_searched_for_a_half_plane():
    grid, step = theory.lattice(41)
    assert step == pytest.approx(0.1 * 2**0.5) and grid[0, 0].tolist() == [-2, -2] and grid[3, 5, 0] == -1.5
    found = theory.nearest_outside(grid[..., 0] < 0.05)
    np.testing.assert_allclose(found, np.where(grid[..., 0] < 0.05, 0.1 - grid[..., 0], 0), atol=1e-12)


def test_the_inside_of_a_polygon():
    grid, _ = theory.lattice(50)
    arrow = np.array([[1.0, 0.0], [-1.0, 1.0], [-0.3, 0.0], [-1.0, -1.0]])  # not convex, symmetric in the first axis
    x, y = grid[..., 0], abs(grid[..., 1])
    np.testing.assert_array_equal(theory.within(arrow, grid), (y < (1 - x) / 2) & (x > -0.3 - 0.7 * y))


def test_the_classes_beside_a_boundary():
    model = theory.trained("ReLU net", 3, seed=0)
    segments = planar.boundary(model, theory.BOX)
    classes = theory.beside(model, segments)
    assert (classes[:, 0] != classes[:, 1]).all() and set(classes.ravel()) == {0, 1, 2}


def test_the_search_finds_the_distance_to_the_boundary_and_not_less():
    for kind, classes in (("linear", 3), ("ReLU net", 3), ("ReLU net", 2)):
        found = theory.proposition(kind, classes, seed=5, points=200, side=401)
        assert found["least excess of the search, steps"] >= -1e-9
        assert found["largest excess of the search, steps"] <= 1
        assert found["as printed: largest distance to the predicted set"] == 0 < found["mean distance"]
        farther = found["share for which another given class is farther"]
        assert farther > 0.2 if classes == 3 else farther == 0


def test_a_boundary_that_lacks_a_segment_is_noticed(monkeypatch):
    whole = planar.boundary
    monkeypatch.setattr(planar, "boundary", lambda *given: whole(*given)[:2])
    found = theory.proposition("ReLU net", 3, seed=5, points=200, side=401)
    assert found["least excess of the search, steps"] < -1


def test_the_distance_to_a_set_is_that_to_its_boundary_outside():
    for kind in ("polygon", "ReLU net"):
        found = theory.to_a_set(kind, seed=5, points=200, side=401)
        assert found["largest difference outside, steps"] <= 1
        assert found["largest distance inside"] == 0 < found["mean distance to the boundary inside"]


def test_best_lines_in_closed_form():
    x, y = np.array([[3.0, 1.0], [-3.0, -1.0], [3.0, -1.0], [-3.0, 1.0]]), np.array([1, 0, 1, 0])
    for normal in theory.maximisers(x, y):
        np.testing.assert_allclose(normal, [1, 0], atol=1e-6)
    for normal in theory.maximisers(x[:, ::-1], y):
        np.testing.assert_allclose(normal, [0, 1], atol=1e-6)


def test_symmetric_points_have_no_conflict_and_the_boxes_have():
    assert theory.conflict("symmetric", seed=7, size=30)["angle of the two"] < 0.1
    boxes = theory.conflict("toy2d", seed=7, size=50)
    assert boxes["angle of the two"] > 45
    assert boxes["minimum margin of the one with the best average"] < 0 < boxes["minimum margin, best"]
    assert boxes["average margin of the one with the best minimum"] < boxes["average margin, best"]


def test_the_infima_of_the_losses_alone_in_closed_form():
    eta = torch.tensor([0.02, 0.3, 0.49, 0.55, 0.9], dtype=D)
    zero = torch.zeros_like(eta)
    known = {
        "logistic": (-eta * eta.log() - (1 - eta) * (1 - eta).log(), math.log(2), torch.logit(eta)),
        "exponential": (2 * (eta * (1 - eta)).sqrt(), 1.0, torch.logit(eta) / 2),
        "hinge": (2 * torch.minimum(eta, 1 - eta), 1.0, (eta - 0.5).sign()),
    }
    for loss, (best, wrong, at) in known.items():
        found = infima(loss, eta, zero, zero)
        torch.testing.assert_close(found[0], torch.full_like(eta, wrong))
        torch.testing.assert_close(found[1], best)
        torch.testing.assert_close(found[2], at, atol=1e-6, rtol=0)


def test_the_infima_of_the_regulariser_alone_in_closed_form(monkeypatch):
    monkeypatch.setitem(LOSSES, "none", torch.zeros_like)
    eta, lam, tau = numbers(0.7, 3.0, 2.0)
    wrong, best, at = infima("none", eta, lam, tau)
    assert (wrong.item(), best.item()) == pytest.approx((3 * 2 * 0.7, 3 * 2 * 0.3)) and at >= 2 - 1e-6
    assert infima("none", *numbers(0.3, 1.0, 2.0), PRINTED)[0].item() == pytest.approx(0.3 * 2 + 0.7 * 1)


@pytest.mark.parametrize("shift", [CORRECTED, PRINTED])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_infima_against_a_search(loss, shift):
    eta, lam, tau = theory_fisher.grid(seed=3, random=40)
    chosen = (eta > 0.005) & (eta < 0.995) & (tau < 4)
    eta, lam, tau = (v[chosen][::17] for v in (eta, lam, tau))
    alpha = torch.linspace(-9, 9, 18001, dtype=D)[:, None]
    values = theory_fisher.risk(loss, alpha, eta, lam, tau, shift)
    wrong, best, at = infima(loss, eta, lam, tau, shift)
    searched = values.amin(0), torch.where(alpha * (2 * eta - 1) <= 0, values, torch.inf).amin(0)
    for found, by_search in zip((best, wrong), searched, strict=True):
        assert (found <= by_search + 1e-9).all()
        assert (by_search - found <= 1e-3 * (lam + 3)).all()
    torch.testing.assert_close(theory_fisher.risk(loss, at, eta, lam, tau, shift), best)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_corrected_definition_holds_on_the_grid_and_the_printed_one_does_not(loss):
    found = theory_fisher.gaps(loss, seed=9, random=300)
    assert found["corrected: least gap"] > 1e-6 and found["corrected: share without a gap"] == 0
    assert found["as printed: share without a gap, lambda or tau 0"] > 0.1
    assert found["as printed: gap of the example"] <= 0 < found["corrected: gap of the example"]
    assert found["corrected: minimiser of the example"] < 0 <= found["as printed: minimiser of the example"] + 1e-9


def test_the_printed_definitions_minimiser_of_the_logistic_loss_is_stationary():
    (a,) = infima("logistic", *numbers(0.45, 0.0, 0.0), PRINTED)[2:]
    slope = -0.45 * torch.sigmoid(-a) + 0.55 * torch.sigmoid(a - 1)
    assert abs(slope.item()) < 1e-7 and a > 0.3


def test_a_loss_without_a_slope_at_zero_is_not_consistent(monkeypatch):
    monkeypatch.setitem(LOSSES, "perceptron", lambda t: (-t).clamp(min=0))
    assert not any(infima("perceptron", *numbers(0.8, 0.0, 0.0))[:2])
    assert theory_fisher.conditions("perceptron", seed=0, points=1000)["slope right of 0"] == 0


@pytest.mark.parametrize(
    ("name", "loss", "metric", "bound"),
    [
        ("rises", lambda t: t, "largest rise", 0),
        ("jumps", lambda t: torch.where(t > 0, 0.0, 1.0).double(), "slope right of 0", -10),
        ("sinks", lambda t: -t, "least value", 0),
    ],
)
def test_the_conditions_notice_a_loss_that(monkeypatch, name, loss, metric, bound):
    monkeypatch.setitem(LOSSES, name, loss)
    found = theory_fisher.conditions(name, seed=0, points=1000)[metric]
    assert found > bound if metric == "largest rise" else found < bound


@pytest.mark.parametrize("kind", theory_fisher.KNOWN)
def test_the_least_regularised_risk_is_bayes_decision(kind):
    for loss in LOSSES:
        x, eta, score = theory_fisher.decisions(kind, loss, 300, 5.0, 2.0)
        assert x.abs().max() < 3 and (score * (2 * eta - 1) > 0).all()
    _, eta, score = theory_fisher.decisions("wave", "logistic", 300, 0.0, 0.0, PRINTED)
    assert (score * (2 * eta - 1) <= 0).double().mean() > 0.05


def test_the_error_over_bayes_falls_with_the_sample():
    curves = theory_fisher.bayes(seed=1, points=60, atoms=10, samples=[5, 10**6]).curves
    for loss in LOSSES:
        first, last = curves[f"{loss}: excess error"]
        assert last < first / 10


def test_a_linear_score_of_unit_norm_is_not_covered():
    found = theory_fisher.unit_norm("logistic", seed=0, draws=20, atoms=8, settings={"without": (0.0, 0.0)})
    assert found["without: share of draws where it is not Bayes's"] > 0
    assert 0 < found["without: mean excess error"] < 0.5


def test_three_classes_are_told_apart_by_the_truncated_margin_and_not_by_its_hinge():
    found = theory_fisher.multiclass(seed=4, draws=5, lam=1.0, tau=1.0)
    assert found["truncated: least gap"] > found["cross-entropy: least gap"] > 1e-4
    assert found["hinge: share of draws without a gap"] == 1
    assert theory_fisher.multiclass(seed=4, draws=5, lam=0.01, tau=1.0)["hinge: least gap"] > 0


def test_an_unknown_loss_is_refused():
    with pytest.raises(MarginsError, match="loss must be one of"):
        theory_fisher.decisions("wave", "square", 10, 1.0, 1.0)


def test_where_features_are_as_far_apart_as_inputs_eq_14_is_too_long_by_the_root_of_two():
    found = theory_networks.feature_space("isometric", seed=3, points=40).metrics
    assert found["product of norms"] == pytest.approx(1)
    assert found["distance: largest over the input distance"] == pytest.approx(1)
    assert found["Eq. 14: mean over the input distance"] == pytest.approx(2**0.5)
    assert (found["distance: violations"], found["Eq. 14: violations"]) == (0, 40)


@pytest.mark.parametrize(("kind", "least", "most"), [("orthonormal", 2**0.5, 2**0.5), ("opposite", 2, 2)])
def test_the_factor_of_eq_14(kind, least, most):
    found = theory_networks.head(kind, seed=0, classes=6, features=20, points=100)
    assert found["Eq. 14 over the distance, least"] == pytest.approx(least)
    assert found["Eq. 14 over the distance, largest"] == pytest.approx(most)
    assert found["largest gap at the foot"] < 1e-12


def test_a_convolutions_norm_is_that_of_its_matrix():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2)).double()
    convolution = layers(model, torch.rand(1, 1, 8, 8, dtype=D))[0]
    columns = model[0](torch.eye(64, dtype=D).reshape(64, 1, 8, 8)).flatten(1) - convolution.bias
    whole, flat = theory_networks.operator(convolution)
    assert whole == pytest.approx(torch.linalg.matrix_norm(columns.detach(), 2).item())
    assert flat == pytest.approx(torch.linalg.matrix_norm(model[0].weight.flatten(1), 2).item())


def test_a_constant_filter_stretches_by_the_kernels_width_more_than_its_flattened_norm():
    layer = Convolution(torch.ones(1, 1, 3, 3, dtype=D), torch.zeros(1, dtype=D), (1, 28, 28), (1, 1), (0, 0), 1)
    whole, flat = theory_networks.operator(layer)
    assert flat == pytest.approx(3) and 2.9 < whole / flat < 3


@pytest.mark.parametrize(("kind", "broken"), [("averaging", True), ("random MLP", False)])
def test_the_product_of_operator_norms_is_a_bound(kind, broken):
    found = theory_networks.product(kind, None, seed=2)
    assert found["over the product of operator norms"] <= 1
    assert (found["over the product of flattened norms"] > 1) == broken


def test_the_distance_to_a_square():
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    x = np.array([[0.5, 0.5], [2.0, 0.5], [0.5, -3.0], [2.0, 2.0], [1.0, 0.3]])
    np.testing.assert_allclose(theory_lipschitz.to_polygon(x, square), [0, 1, 3, 2**0.5, 0], atol=1e-12)


def test_the_bound_of_a_linear_net_is_its_distance_up_to_the_radius():
    model = MLP(2, (), 3, generator=torch.Generator().manual_seed(1)).double()
    x = torch.rand(30, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    exact = linear_margin(model.head.weight.detach(), model.head.bias.detach(), x, model(x).argmax(1))
    for radius, bound in zip((0.2, 5.0), theory_lipschitz.exact_bounds(model, x, [0.2, 5.0]), strict=True):
        torch.testing.assert_close(bound, exact.clamp(max=radius))


@pytest.mark.parametrize("kind", ["trained", "random"])
def test_the_exact_bound_is_below_the_distance_and_below_every_sampled_one(kind):
    model, x = theory_networks.plane(kind, seed=6, points=40)
    own, radii = model(x).argmax(1), [0.1, 0.5, 2.0, 5.0]
    exact = planar.planar_margin(model, x, own, theory_networks.WIDE)
    for radius, bound in zip(radii, theory_lipschitz.exact_bounds(model, x, radii), strict=True):
        assert (bound <= exact * (1 + 1e-9)).all() and (bound > 0).all()
        sampled = lipschitz_margin(model, x, own, radius=radius, points=2000).margin
        assert (bound <= sampled * (1 + 1e-9)).all()
        assert ((sampled / bound - 1).abs() < 1e-9).double().mean() > 0.5  # in the plane most meet the same regions


def test_a_ball_beyond_the_box_is_refused():
    with pytest.raises(MarginsError, match="radii: a ball reaches to"):
        theory_lipschitz.exact_bounds(Linear(2, 2).double(), torch.tensor([[0.5, 0.0]], dtype=D), [1.0, 9.0])


SMALL = {"points": 60, "side": 401, "images": 40, "epochs": 20, "random": 50, "draws": 5}
SMALL |= {"training": 300, "shown": 20, "hidden": (20,), "data": "digits"}


class Small:
    """The results of an experiment's first seed with small settings on what is always there."""

    def __init__(self, module):
        self.metrics = {}
        for row, (measure, given) in module.ROWS.items():
            changed = {key: SMALL[key] for key in given if key in SMALL}
            if given.get("data") in (None, "clouds"):
                changed.pop("data", None)
            if row == "sampled, MNIST":
                del changed["points"]
            found = measure(seed=0, **{**given, **changed})
            self.metrics[row] = getattr(found, "metrics", found)

    def metric(self, row: str, name: str) -> np.ndarray:
        return np.array([float(self.metrics[row][name])])


def test_the_evidence_reads_what_the_experiments_measure():
    modules = theory, theory_fisher, theory_networks, theory_lipschitz
    at = {module.NAME: Small(module) for module in modules}
    found = page({id_: evidence.read(at) for id_, evidence in EVIDENCE.items()}, "quick")
    outcomes = {id_: verdict.outcome for id_, verdict in found.items()}
    assert outcomes == dict.fromkeys(EVIDENCE, "supported") | {"amr-s4-eq14-is-distance": "contradicted"}


def test_a_unit_is_recorded_as_it_was_measured(tmp_path):
    unit = next(unit for unit in EXPERIMENTS["amr/lipschitz"].units("quick") if unit.row == "linear, plane")
    (outcome,) = EXPERIMENTS["amr/lipschitz"].run([unit], Checkpoint(tmp_path / "none"))
    assert outcome.metrics == {k: float(v) for k, v in theory_lipschitz.linear_case(seed=0, **unit.config).items()}
