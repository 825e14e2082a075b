"""AMR's estimate beside a proof and attacks: the search for steep places, what rows measure, what the verdicts read."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from real import needs
from tiny import data, network
from torch import nn

from margins import paths
from margins.checkpoints import Checkpoint
from margins.claims import Missing, each
from margins.errors import MarginsError
from margins.experiments import EXPERIMENTS, find
from margins.margin import lipschitz_margin, spectral_norms
from margins.models import MLP, Linear
from margins.papers.amr import estimate, more_steps, networks
from margins.papers.amr import estimate_evidence as evidence
from margins.papers.amr.estimate_search import Smooth, searched_margin
from margins.tables.job import Job
from margins.verdicts import page


def test_within_the_block_a_relu_is_a_softplus():
    z = torch.linspace(-2, 2, 9)
    for relu in (torch.relu, nn.functional.relu, nn.ReLU()):
        with Smooth(3.0):
            torch.testing.assert_close(relu(z), nn.functional.softplus(z, 3.0))
        assert torch.equal(relu(z), z.clamp(min=0))


def test_of_a_linear_model_the_search_knows_the_constant_from_the_start():
    model, x = Linear(16, 2, generator=torch.Generator().manual_seed(0)).double(), data(6).x
    own = model(x).argmax(1)
    radius = lipschitz_margin(model, x, own, points=1, radius=100.0).margin.median().item()
    exact = lipschitz_margin(model, x, own, points=1, radius=radius).margin
    torch.testing.assert_close(searched_margin(model, x, steps=2, radius=radius), exact)
    assert exact.max() == radius > exact.min()


def ramp():
    """f_0 - f_1 = 1 + z_0 + 4 relu(z_0 - 1) - 4 relu(-z_0 - 1): steeper, 5, beyond 1 and below -1 than between."""
    model = MLP(2, (3,), 2).double()
    with torch.no_grad():
        model.hidden[0].weight.copy_(torch.tensor([[1.0, 0], [1.0, 0], [-1.0, 0]]))
        model.hidden[0].bias.copy_(torch.tensor([5.0, -1, -1]))
        model.head.weight.copy_(torch.tensor([[1.0, 4, -4], [0, 0, 0]]))
        model.head.bias.copy_(torch.tensor([-4.0, 0]))
    return model


def test_the_search_climbs_to_the_steep_piece_if_the_ball_meets_it():
    x = torch.zeros(1, 2, dtype=torch.float64)
    for radius, slope in ((0.9, 1.0), (1.5, 5.0)):
        found = searched_margin(ramp(), x, radius=radius, steps=30)
        torch.testing.assert_close(found, torch.tensor([min(radius, 1 / slope)]).double())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_search_finds_no_less_than_the_place_itself_and_leaves_the_model_alone(kind):
    model, x = network(kind).eval(), data(8).x
    before = [p.clone() for p in model.parameters()]
    found = searched_margin(model, x, steps=20, radius=2.0)
    own = model(x).argmax(1)
    two = model(x).topk(2, dim=1)
    asked = x.clone().requires_grad_()
    logits = model(asked)
    gap = (logits.gather(1, two.indices[:, :1]) - logits.gather(1, two.indices[:, 1:])).sum()
    slope = torch.autograd.grad(gap, asked)[0].flatten(1).norm(dim=1)
    at_x = (two.values[:, 0] - two.values[:, 1]) / slope
    assert (found <= at_x.clamp(max=2.0) + 1e-12).all() and (found < at_x - 1e-6).any() and len(own) == len(found)
    assert all(torch.equal(a, b) and a.requires_grad for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("given", [{"radius": 0.0}, {"steps": 0}, {"sharpness": 0.0}, {"generator": 1}])
def test_bad_arguments_are_named(given):
    with pytest.raises(MarginsError, match=next(iter(given))):
        searched_margin(network("mlp"), data(2).x, **given)


def test_norms_are_those_of_flattened_weights_and_grow_with_them():
    model = network("cnn")
    norms = spectral_norms(model)
    weights = [p for p in model.parameters() if p.ndim > 1]
    assert len(norms) == len(weights) == 3 and [*norms][-1] == "head"
    for value, weight in zip(norms.values(), weights, strict=True):
        assert value == pytest.approx(torch.linalg.svdvals(weight.detach().flatten(1))[0].item())


def test_every_measure_has_its_images_and_lies_where_it_must():
    model = network("mlp").float()
    known = data(11)
    sizes = {"images": 11, "points": 8, "near": 5, "searched": 4, "many": 2, "most": 20, "certified": 3}
    outcome = estimate.measure(model, known.x.float(), known.y, sizes, seed=0)
    arrays, told = outcome.arrays, outcome.metrics
    assert arrays[estimate.PATH].shape == (4, 11) and arrays[estimate.MANY].shape == (6, 2)
    assert [len(arrays[name]) for name in (estimate.NEAR, estimate.SEARCHED, estimate.CERTIFIED)] == [5, 4, 3]
    np.testing.assert_array_equal(arrays[estimate.MANY][:4], arrays[estimate.PATH][:, :2])  # the first points of both
    assert (
        estimate.counts(8) == [1, 2, 4, 8] and estimate.counts(20) == [1, 2, 4, 8, 16, 20] and estimate.counts(1) == [1]
    )
    best = np.minimum(arrays[estimate.RACE], arrays[estimate.DEEPFOOL])
    assert (arrays[estimate.CERTIFIED] <= best[:3] * (1 + 1e-5)).all()
    assert (arrays[estimate.NEAR] <= best[:5] * (1 + 1e-6)).all()
    assert told["estimate: median ratio"] == pytest.approx(np.median(arrays[estimate.PATH][-1] / best), rel=1e-3)
    assert told["product of the norms"] == pytest.approx(np.prod([*spectral_norms(model).values()]))
    # with the norms of the layers as they are, an MLP's feature margin over their product is a bound
    assert (arrays[estimate.PRODUCT] <= best * (1 + 1e-5)).all()


def test_the_constant_is_between_that_of_the_best_gap_and_the_largest():
    linear = Linear(16, 2, generator=torch.Generator().manual_seed(1)).double()
    weight = linear.head.weight.detach()
    told = estimate.norms(linear, data(9).x, data(9).y, {"points": 1}, 0).metrics
    assert told["constant"] == pytest.approx((weight[0] - weight[1]).norm().item())
    assert told["layers"] == 1 and told["largest |norm - 1|"] == pytest.approx(abs(told["norm of head"] - 1))


@pytest.mark.parametrize("name", [estimate.NAME, estimate.NORMS, more_steps.NAME])
def test_the_weights_are_the_tables_and_tau_is_the_rows(name):
    nets = estimate.NORM_NETS if name == estimate.NORMS else estimate.NETS
    for scale in ("quick", "laptop", "paper"):
        for unit in (unit for unit in find(name).units(scale) if unit.seed == 1):
            net = nets[unit.row]
            made = nets[unit.row].job(unit)
            table = next(
                u for u in find(net.table).units(scale) if (u.row, u.seed, u.part) == (net.label, 1, "training")
            )
            assert table.config["method"] == net.row.describe()
            assert made._path(net.row, 1) == Job(net.row, made.recipe, made.threat, table)._path(net.row, 1)
    taus = {row: estimate.tau(net) for row, net in estimate.NORM_NETS.items()}
    assert taus["MLP, Std"] is None and taus["CNN, AMR, Eq. 15"] == 10 and taus["CNN, AMR, released"] == 40


def test_later_looks_at_the_attack_are_those_of_longer_attacks():
    model, known = network("mlp").float(), data(10)
    x, y = known.x.float(), known.y
    sizes = {"eps": 0.3, "steps": [5, 10, 40]}
    many = more_steps.attacked(model, x, y, sizes, seed=0)
    for steps in sizes["steps"]:
        once = more_steps.attacked(model, x, y, sizes | {"steps": [steps]}, seed=0)
        np.testing.assert_array_equal(once.arrays[more_steps.array(steps)], many.arrays[more_steps.array(steps)])
        assert many.metrics[more_steps.array(steps)] == 100 * many.arrays[more_steps.array(steps)].mean()


@needs("mnist")
@pytest.mark.parametrize("name", [estimate.NAME, estimate.NORMS, more_steps.NAME])
def test_a_trained_net_is_measured(tmp_path, monkeypatch, name):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    unit = next(u for u in find(name).units("quick") if u.row == "MLP, AMR, Eq. 15")
    (outcome,) = EXPERIMENTS[name].run([unit], Checkpoint(tmp_path / "run" / "state.pt"))
    assert outcome.status == "done" and "weights" in outcome.facts and np.isfinite([*outcome.metrics.values()]).all()


@needs("mnist", "mnist-cnn-lcr")
def test_a_published_net_is_measured(tmp_path, monkeypatch):
    unit = next(u for u in find(estimate.PUBLISHED).units("quick") if u.row == "LCR")
    small = {"quick": {"images": 3, "points": 2, "near": 2, "searched": 0, "many": 1, "most": 4, "certified": 0}}
    (outcome,) = EXPERIMENTS[estimate.PUBLISHED].run([replace(unit, config={**unit.config, "counts": small})], None)
    assert outcome.arrays[estimate.MANY].shape == (3, 1) and outcome.metrics["layers"] == 7
    assert estimate.CERTIFIED not in outcome.arrays and estimate.SEARCHED not in outcome.arrays


def results(ratio=0.9, near=0.95, searched=0.6, constant=4.0, products=(1.0, 2.0, 3.0), far=0.1, after=0, lost=False):
    """Results in which all rows, seeds and images are alike; `after`: images in 1000 that later steps break."""
    kinds = dict(zip(("LR", "MLP", "CNN"), products, strict=True)) | {"LeNet": 2.5}
    metrics = {"constant": constant, "estimate: rank correlation": 0.5, "largest |norm - 1|": far}
    spread = 1 + 1e-9 * np.arange(3)

    def metric(row, name):
        value = kinds[row.split(",")[0]] if name == "product of the norms" else metrics[name]
        return np.full(3, np.nan) if lost else value * spread

    def samples(row, name):
        if name.endswith("steps"):
            kept = np.arange(1000) >= (0 if name.startswith("1000") else after)
            return np.tile(kept, (3, 1))
        lengths = {estimate.RACE: 1.0, estimate.DEEPFOOL: 1.1, estimate.NEAR: near, estimate.SEARCHED: searched}
        if name in lengths:
            return np.full((3, 100), lengths[name])
        most = estimate.COUNTS[row[:3]]["laptop"]["most"]
        points = len(estimate.counts(most))
        return np.full((3, points, 100), ratio)

    given = {"metric": metric, "samples": samples, "scale": "laptop", "records": dict.fromkeys(estimate.NETS)}
    return SimpleNamespace(diverged=lambda row: np.full(3, lost), **given)


NEAR, ACCURATE, DEPTH, TAU, STEPS = (
    "amr-s5-bound-near-true-distance", "amr-s5-sampling-accurate", "amr-appf-norm-product-grows-with-depth",
    "amr-appf-tau-order-of-lipschitz", "amr-appf-more-steps-no-change",
)  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "given", "outcome"),
    [
        (NEAR, {}, "supported"),
        (NEAR, {"ratio": 0.4}, "contradicted"),
        (NEAR, {"lost": True}, "contradicted"),
        (ACCURATE, {}, "supported"),
        (ACCURATE, {"searched": 0.3}, "undecided"),  # more points on the CNN could find more
        (DEPTH, {}, "undecided"),  # CIFAR-10 is missing
        (DEPTH, {"products": (1.0, 3.0, 2.0)}, "contradicted"),
        (TAU, {}, "contradicted"),  # 40 / 4
        (TAU, {"constant": 14.0}, "undecided"),
        (STEPS, {}, "supported"),
        (STEPS, {"after": 100}, "contradicted"),
    ],
)
def test_what_the_verdicts_read(claim, given, outcome):
    found = each(evidence.EVIDENCE[claim])[0]
    parts = found.read(dict.fromkeys(found.experiments, results(**given)))
    assert page({claim: parts}, "laptop")[claim].outcome == outcome


def test_unit_norms_are_of_the_rows_with_the_penalty():
    held = [check.held.all() for far in (0.1, 0.3) for check in evidence.unit_norms(results(far=far))]
    assert held == [True] * 6 + [False] * 6


def tables(shift):
    """A table whose rows' distances grow from row to row and epoch to epoch; the estimate too, or the other way."""
    noise = np.random.default_rng(0).normal(size=(3, 1, 50)) * 1e-3

    def samples(label, name):
        rank = evidence.LABELS.index(label)
        epochs = 1 + rank + 0.1 * np.arange(4)[:, None] + noise
        return epochs if name.startswith("Race") else epochs[:, [0, -1], :20] * shift

    config = {"part": "estimate", "recipe": {"snapshots": [1, 2, 3, 4]}, "ends": True}
    records = {label: [SimpleNamespace(config=config)] for label in evidence.LABELS}
    return SimpleNamespace(records=records, samples=samples, diverged=lambda label: np.zeros(3, bool))


def test_pairs_that_both_decide_are_compared_by_sign():
    pairs = evidence.signs(tables(0.5))
    assert len(pairs) == 4 + 6 and all(same for *_, same in pairs)
    read = evidence.EVIDENCE["amr-s5-bound-orders-models"].read
    good, bad, nothing = tables(0.5), tables(0.5), tables(0.0)
    plain = bad.samples
    bad.samples = lambda label, name: plain(label, name) if name.startswith("Race") else 9 - plain(label, name)
    agree, disagree = read({networks.MLP: good, networks.CNN: bad})[:2]
    assert agree.held.all() and not disagree.held.any() and disagree.measured.startswith("0 of 10")
    assert isinstance(read({networks.MLP: nothing, networks.CNN: good})[0], Missing)
