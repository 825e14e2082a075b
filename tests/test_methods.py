"""The table of methods: every row trains, costs what it says, is told apart from others, and reads as in its paper."""

import csv
import importlib.util
import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from margins import datasets, losses, models, paths
from margins.errors import MarginsError
from margins.methods import METHODS, PGD, Phase, Ramp, Row, Steps, Term, baselines, regularised, summary
from margins.methods.weights import GAIRAT, MAIL
from margins.penalties.context import Part, Threat
from margins.training import Recipe, train

#: What every part of the project asks for by name.
NAMES = """ST; AT; TRADES; MART; ALP; MAIL-AT; MAIL-TRADES; MAIL-MART; GAIRAT; AT+HE; TRADES+HE; ALP+HE; L-Softmax;
AT+L-Softmax; IGR; AT+IGR; TRADES+IGR; AT+EMR; TRADES+EMR; MART+EMR; MAIL-AT+EMR; MAIL-TRADES+EMR; LMA-AT;
Standard AT+Ours; TRADES+Ours; MART+Ours; Standard AT+L'; TRADES+L'; MART+L'; LMA-AT (A); LMA-AT (A'); LMA-AT (B);
LMA-AT (C); LMA-AT (D); MMA; AMM; AMM, first order"""


def data(shape):
    g = torch.Generator().manual_seed(6)
    x = torch.rand(8, *shape, generator=g, dtype=torch.float64)
    return datasets.Data(x, torch.arange(8) % 3, "drawn", 3)


def model(kind):
    if kind == "cnn":
        return models.build("cnn", shape=(1, 6, 6), blocks=((3,),), hidden=(6,), classes=3).double()
    return models.build("mlp", inputs=6, hidden=(8,), classes=3).double()


def trained(row, kind, seed=0):
    """Eight steps in four epochs, so that every phase has its turn."""
    net, points = model(kind), data((6,) if kind == "mlp" else (1, 6, 6))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recipe = Recipe(epochs=4, batch_size=4, lr=0.01)
    done = train(net, row, points, recipe=recipe, threat=Threat(math.inf, 0.1, 0.04, 2), seed=seed)
    return before, done


def test_the_table_has_every_method_by_its_papers_name_and_a_source():
    assert set(METHODS) == {name.strip() for name in NAMES.replace("\n", " ").split(";")}
    assert all(isinstance(row, Row) and row.source for row in METHODS.values())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("name", METHODS)
def test_every_row_trains_and_changes_the_weights(name, kind):
    before, done = trained(METHODS[name], kind)
    assert done.status == "done"
    assert all(value.isfinite().all() for value in done.last.values())
    assert any(not torch.equal(value, before[name]) for name, value in done.last.items() if name in before)
    for term in (term for phase in METHODS[name].phases for term in phase.terms):
        assert any(map(math.isfinite, done.curves[f"{term.name} at {term.at}"]))


@pytest.mark.parametrize("name", METHODS)
def test_every_row_gives_the_same_weights_again_and_others_with_another_seed(name):
    (_, one), (_, two), (_, other) = (trained(METHODS[name], "mlp", seed) for seed in (0, 0, 1))
    assert all(torch.equal(one.last[key], two.last[key]) for key in one.last)
    assert any(not torch.equal(one.last[key], other.last[key]) for key in one.last)


#: Of each function that makes rows: settings that change its outcome, one at a time.
CHANGES = {
    baselines.at: [{"craft": PGD()}, {"craft": PGD(steps=7)}, {"craft": PGD(mode="train")}],
    baselines.boosted: [{"guarded": False}, {"craft": PGD(start="uniform")}],
    baselines.trades: [{"beta": 1.0}, {"craft": PGD()}],
    baselines.mart: [{"beta": 6.0}, {"guarded": False}],
    baselines.alp: [{"beta": 1.0}],
    baselines.mail_at: [{"slope": 1.0}, {"bias": 0.0}, {"begin": 0.0}, {"begin": 0.5}, {"normalised": True}],
    baselines.mail_trades: [{"slope": 1.0}, {"bias": 1.0}, {"beta": 1.0}, {"before": baselines.at()}],
    baselines.mail_mart: [{"slope": 1.0}, {"bias": 0.0}, {"beta": 6.0}, {"normalised": True}],
    baselines.gairat: [{"shift": 0.0}, {"formula": "paper"}, {"begin": 0.0}],
    baselines.he_at: [{"scale": 15.0}, {"margin": 0.1}],
    baselines.he_trades: [{"beta": 1.0}, {"scale": 10.0}, {"margin": 0.1}],
    baselines.he_alp: [{"beta": 1.0}, {"scale": 10.0}, {"margin": 0.1}],
    baselines.l_softmax: [{"margin": 2}, {"base": 9.0}, {"decay": 0.9}, {"power": 35.0}, {"least": 1.0}],
    baselines.mma: [{"clean": 0.5}, {"reach": 2.5}, {"bisections": 5}],
    regularised.igr: [{"coefficient": 2.0}, {"row": baselines.at()}],
    regularised.at_emr: [{"coefficient": 1.0}, {"temperature": 1.0}],
    regularised.amm: [{"coefficient": 1.0}, {"aggregation": "AVG"}, {"shrinkage": "LIN"}, {"c": 1.0}, {"steps": 3}],
    regularised.lma_at: [
        {"tau": 0.3}, {"beta": 1.0}, {"beta": 0.0}, {"alpha": 2.345}, {"delta": 0.5}, {"divided": False},
        {"reading": "sample"}, {"direction": "appendix"}, {"inner": False}, {"outer": False}, {"guarded": False},
    ],
}  # fmt: skip


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_descriptions_are_json_and_differ_wherever_a_setting_does(make):
    told = [json.dumps(make(**given).describe(), sort_keys=True) for given in [{}, *CHANGES[make]]]
    assert len(set(told)) == len(told)
    assert told[0] == json.dumps(make().describe(), sort_keys=True)


OWN = """
from dataclasses import dataclass
from margins import losses, methods
from margins.penalties.context import Part
def own(logits, y):
    return losses.margin(logits, y){}
@dataclass
class Weight(Part):
    slope: float = 1.0
    def __call__(self, context, at):
        return context.y * 0{}
row = methods.Row(None, (methods.Term(own, "clean", weight=Weight()),))
"""


def test_descriptions_differ_where_the_source_of_a_readers_own_function_or_part_does(tmp_path):
    told = []
    for number, ends in enumerate([("", ""), ("", ""), (" + 1", ""), ("", " + 1")]):
        path = tmp_path / f"module{number}.py"
        path.write_text(OWN.format(*ends))
        spec = importlib.util.spec_from_file_location("same_name", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        told.append(json.dumps(module.row.describe(), sort_keys=True))
    assert told[0] == told[1] and len(set(told)) == 3
    assert "source" not in json.dumps([row.describe() for row in METHODS.values()])
    assert baselines.plain().describe()["phases"][0]["terms"][0]["function"] == "losses.cross_entropy"
    scope = {"__name__": "typed"}
    exec("def typed(logits, y): return y", scope)
    with pytest.raises(MarginsError, match="source of typed can't be read"):
        Row(None, (Term(scope["typed"], "clean"),)).describe()


def test_rows_of_the_table_differ_but_for_lma_at_which_is_its_option_c():
    told = {name: json.dumps(row.describe(), sort_keys=True) for name, row in METHODS.items()}
    assert told["LMA-AT"] == told.pop("LMA-AT (C)") and len(set(told.values())) == len(told)


def forwards(row, net):
    """How many forwards the first step of the row's last phase takes."""
    last = row.phases[-1]
    row, calls = replace(row, craft=last.craft, terms=last.terms, later=()), []
    points = data((6,))
    # the loop asks the model of two samples first, which is no part of a step
    head = net.head.register_forward_hook(lambda *given: calls.extend([1] * (len(given[2]) == len(points.x))))
    recipe = Recipe(epochs=1, batch_size=8, lr=0.01)
    train(net, row, points, recipe=recipe, threat=Threat(math.inf, 0.1, 0.025, 10), seed=0)
    head.remove()
    return len(calls)


class Normed(nn.Module):
    """A net with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.parametrize(
    ("name", "count", "normed"),
    [("ST", 1, 1), ("AT", 11, 11), ("TRADES", 12, 13), ("MART", 12, 12), ("ALP", 12, 12), ("MAIL-AT", 11, 11),
     ("MAIL-TRADES", 12, 13), ("MAIL-MART", 12, 12), ("GAIRAT", 11, 11), ("LMA-AT", 12, 12), ("TRADES+Ours", 12, 12),
     ("Standard AT+L'", 11, 11), ("LMA-AT (D)", 11, 11), ("AT+EMR", 11, 12), ("IGR", 1, 1)],
)  # fmt: skip
def test_a_step_takes_as_many_forwards_as_it_says(name, count, normed):
    assert (forwards(METHODS[name], model("mlp")), forwards(METHODS[name], Normed().double())) == (count, normed)


def in_our_words(loss):
    """A loss as the LMA paper writes it, in the words of `summary`."""
    clean, adversarial, kl = "p(x_i, theta)", "p(x'_i, theta)", "KL(p(x_i, theta) || p(x'_i, theta))"
    for theirs, ours in [
        (f"(1/lambda) * {kl}", "6 KL"), (f"lambda * {kl} * (1 - p_{{y_i}}(x_i, theta))", "5 KL (1 - p_y(x))"),
        ("KL", "KL(p(x) || p(x'))"), (clean, "p(x)"), (adversarial, "p(x')"), (", y_i)", ", y)"), ("L'_i", "L'(x')"),
        ("beta * mHuber(logit'_t, logit_t, alpha)", "86 mHuber(logit'_t, logit_t)"),
    ]:  # fmt: skip
        loss = loss.replace(theirs, ours)
    return loss


@pytest.mark.parametrize("table", ["table1", "table11", "table13"])
def test_summaries_read_as_the_tables_of_the_lma_paper(table):
    with open(paths.REPO / "data" / "paper" / "lma" / f"{table}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 3
    for row in rows:
        name = row["method"].replace("LMA-AT(Ours)", "LMA-AT").replace("_i", "")
        found = summary(METHODS[f"LMA-AT ({name})" if table == "table11" else name])
        assert found["loss"] == in_our_words(row.get("loss") or row["training_loss"])
        crafted = in_our_words(row.get("adversarial_loss", "L'_i + CE"))
        assert found["ascends"] == crafted.replace("CE", "CE(p(x'), y)")


def test_a_summary_is_made_of_the_row_whatever_it_holds():
    def own(logits, y):
        return losses.margin(logits, y).exp()

    terms = (
        Term(own, "adversarial", Ramp(2.0, 0.3)),
        Term(losses.pair_kl, "both", Steps(-3.0, ((0.6, 0.1),)), MAIL(10.0, -0.5)),
    )
    row = Row(None, (Term(losses.cross_entropy, "clean"),), (Phase(PGD(loss=own, steps=3), terms, 0.25),))
    found = summary(row)
    assert found["loss"] == "2 own(x') - 3 w KL(p(x) || p(x'))" and found["ascends"] == "own(x')"
    assert found["tex"] == r"2\,\mathrm{own}(x') - 3\,w\,\mathrm{KL}(p(x) \,\Vert\, p(x'))"
    assert found["weights"] == "MAIL (slope 10, bias -0.5, normalised no)"
    assert found["settings"] == "own from 0 up until 0.3; pair_kl x 0.1 from 0.6 on"
    assert (found["begins"], found["before"]) == ("0.25", "CE(p(x), y) (no adversaries)")
    assert "steps 3" in found["craft"] and found["head"] == ""
    later = summary(replace(METHODS["ST"], start=METHODS["AT"], recipe={"lr": 0.01, "select_every": 2}))
    assert (later["start"], later["recipe"]) == ("CE(p(x'), y)", "lr 0.01, select every 2")
    assert found["start"] == found["recipe"] == ""
    assert summary(METHODS["AT+HE"])["head"] == "Head (kind cosine, scale 10)"
    for name, one in METHODS.items():
        told = summary(one)
        assert all(isinstance(value, str) for value in told.values()) and told["loss"] and told["tex"], name
        assert "@" not in told["loss"] + told["tex"] + told["ascends"]


def test_phases_begin_where_the_papers_code_has_them():
    assert [phase.begin * 120 for phase in METHODS["MAIL-AT"].phases] == [0, 76]
    assert [phase.begin * 120 for phase in METHODS["GAIRAT"].phases] == [0, 59]
    first, later = METHODS["MAIL-TRADES+EMR"].phases
    assert later.begin == 0.74 and [term.name for term in first.terms] == ["cross_entropy", "ApproximateEMR"]
    assert isinstance(later.terms[1].weight, MAIL) and isinstance(METHODS["GAIRAT"].later[0].terms[0].weight, GAIRAT)
    assert METHODS["MAIL-TRADES"].later[0].terms[0].weight is None  # the cross-entropy is not weighted
    scales = [METHODS["AT+EMR"].terms[1].scale(epoch / 100) for epoch in (0, 59, 60, 89, 90)]
    assert scales == pytest.approx([3 / 128, 3 / 128, 0.3 / 128, 0.3 / 128, 0.03 / 128])


@pytest.mark.parametrize(("name", "scale", "margin"), [("AT+HE", 10, 0.2), ("TRADES+HE", 15, 0.2), ("ALP+HE", 20, 0.3)])
def test_he_lowers_the_true_cosine_by_the_margin_at_its_heads_scale(name, scale, margin):
    row, y = METHODS[name], torch.tensor([0, 2])
    cosines = torch.tensor([[0.6, -0.2, 0.1], [0.3, 0.9, -0.5]], dtype=torch.float64)
    lowered = cosines - margin * torch.eye(3, dtype=torch.float64)[y]
    expected = -(scale * lowered).log_softmax(1)[[0, 1], y]
    torch.testing.assert_close(row.terms[0].function(scale * cosines, y), expected)
    assert (row.head.kind, row.head.scale) == ("cosine", scale)
    if name == "ALP+HE":  # the cosines are paired, not the logits
        paired = row.terms[2].coefficient * losses.pairing(scale * cosines, 0 * cosines, y)
        torch.testing.assert_close(paired, 0.5 * cosines.square().mean(1))


@dataclass
class Counting(Part):
    """A weight of 1 that counts the steps it has seen."""

    seen: list

    def __call__(self, context, at):
        return torch.ones(len(context.y), dtype=context.x.dtype)

    def after_step(self, run):
        self.seen.append(1)

    def __deepcopy__(self, memo):
        return self


def test_a_part_that_two_terms_share_is_told_of_each_step_once():
    part = Counting([])
    trained(Row(PGD(), tuple(Term(losses.cross_entropy, at, 0.5, part) for at in ("clean", "adversarial"))), "mlp")
    assert len(part.seen) == 8


def test_bad_settings_are_named():
    for message, make in {
        "slope must be": lambda: baselines.mail_at(slope=-1.0),
        "begin must be a finite number of at least 0 and at most 1": lambda: baselines.gairat(begin=2.0),
        "scale must be a finite number greater than 0": lambda: baselines.he_at(scale=0.0),
        "margin must be": lambda: baselines.he_at(margin=-0.1),
        "guarded must be one of True, False": lambda: baselines.mart(guarded="no"),
        "delta must be": lambda: regularised.lma_at(delta=-1.0),
        "beta must be": lambda: regularised.lma_at(beta=-1.0),
        "divided must be": lambda: regularised.lma_at(divided=3),
        "tau": lambda: regularised.lma_at(tau=1.0),
        "methods of one phase": lambda: regularised.ours(baselines.mail_at()),
        "coefficient must be": lambda: baselines.trades(beta=math.nan),
    }.items():
        with pytest.raises(MarginsError, match=message):
            make()
