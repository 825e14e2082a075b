"""EMR's tables of the MLP and the CNN: the paper's rows, recipes and attacks; and that they run."""

import numpy as np
import pytest

from margins import methods, models
from margins.claims import published
from margins.experiments import find, results
from margins.papers.emr import networks
from margins.papers.emr.networks import CNN, MLP, MORE, QUARTER, named
from margins.penalties.emr import EMR
from margins.recording import record
from margins.records import Store


def declared(*names):
    """The methods of some tables, by row."""
    return {row: given["method"] for name in names for row, given in find(name).rows.items()}


@pytest.mark.parametrize(("table", "names"), [("table1", (MLP, MORE)), ("table2", (CNN,))])
def test_every_row_that_the_paper_prints_is_there_with_its_weight_decay_and_lambda(table, names):
    rows = declared(*names)
    for line in published("emr", table).itertuples():
        method, decay = line.method.split("_")[0], float(line.lambda_wd)
        row = rows[named(method, decay)]
        assert row["recipe"]["weight_decay"] == decay
        exact = methods.rows.describe(EMR(route=networks.ROUTE[MLP if MLP in names else CNN]))
        coefficients = [term["coefficient"] for term in row["phases"][0]["terms"] if term["function"] == exact]
        assert coefficients == ([float(line.lambda_emr)] if line.lambda_emr else [])
        assert (row["phases"][0]["craft"] is not None) == method.startswith("AT")


def test_recipes_are_the_papers():
    for net, epochs, rates in ((MLP, 50, {0: 0.01, 29: 0.01, 30: 0.001}), (CNN, 100, {74: 0.01, 75: 1e-3, 90: 1e-4})):
        recipe = networks.recipe(net, epochs, ())
        assert {epoch: recipe.rate(epoch * 7, 7) for epoch in rates} == pytest.approx(rates)
        assert (recipe.batch_size, recipe.momentum) == (100, 0.9)
        assert find(net).scales["paper"]["recipe"]["epochs"] == epochs


def test_the_papers_attack_starts_at_the_image_and_the_training_at_random():
    for net, (eps, step, steps) in {MLP: (0.1, 0.01, 20), CNN: (8 / 255, 2 / 255, 10)}.items():
        attack = networks.columns(net)["test"].attacks["PGD"]
        assert (attack["step_size"], attack["steps"], attack["start"], attack["keep"]) == (step, steps, "image", "last")
        threat = networks.THREATS[net]
        assert (threat.eps, threat.step_size, threat.steps) == (eps, step, steps)
    assert networks.AT.craft.start == "uniform" and networks.AT.craft.steps is None


def test_the_nets_have_the_papers_layers():
    built = models.build(**find(MLP).settings["model"])
    assert [layer.out_features for layer in built.hidden] == [1024] * 4
    sizes = {
        name: [p for p in models.build(**find(name).settings["model"]).parameters() if p.ndim == 4]
        for name in (CNN, QUARTER)
    }
    assert [len(w) for w in sizes[CNN]] == [4 * len(w) for w in sizes[QUARTER]] == [64, 64, 128, 128]


def test_a_margin_of_one_is_not_annealed():
    assert networks.l_softmax(1).terms[0].function.base == 0
    assert networks.l_softmax(4).terms[0].function.base == 100
    assert networks.l_softmax(4, adversarial=True).terms[0].at == "adversarial"


@pytest.mark.parametrize("net", [MLP, QUARTER])
def test_a_row_is_trained_and_measured(net, tmp_path):
    row = named("ST+EMR, one probe", networks.DECAY[MLP if net == MLP else CNN])
    assert record(net, scale="quick", rows=(row,), results=tmp_path) == 0
    found = results(net, "quick", Store(tmp_path), partial=True)
    margins, weights = (found.samples(row, f"{name}, along")[0] for name in ("effective", "weights"))
    assert margins.shape == weights.shape == (2, 30) and (weights > 0).all()
    assert ((margins[-1] > 0) == found.samples(row, "clean, last")[0, :30]).all()
    assert np.isfinite(found.samples(row, "PGD, last")).all()
