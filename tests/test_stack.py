"""Runs that are trained together end where they end one by one, whatever the row and the recipe."""

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from small import THREAT, Net, data, recipe
from test_resumed_training import Stopping
from torch import nn

from margins import experiments, losses, methods, models, paths
from margins.attacks.noise import Noise
from margins.checkpoints import OutOfTime
from margins.errors import MarginsError
from margins.methods.craft import PGD
from margins.methods.rows import Row, Term
from margins.models.heads import Head
from margins.models.stacked import stack, unstack
from margins.penalties.context import Part, Threat
from margins.recording import record
from margins.records import Store
from margins.tables import Columns, job, table
from margins.training import processes, train, train_together

SEEDS = (3, 8, 5)
IMAGES = (1, 6, 6)
CE = losses.cross_entropy


def nets(kind="mlp"):
    if kind == "mlp":
        return [Net(seed=seed) for seed in SEEDS]
    made = {"shape": IMAGES, "blocks": ((3,),), "hidden": (5,), "classes": 3, "padding": 1}
    return [models.build("cnn", **made, generator=torch.Generator().manual_seed(s)).double() for s in SEEDS]


def both(row, kind="mlp", made=None, threat=THREAT, checkpoint=None, **given):
    """[(model, Trained)] of the runs, one by one and together."""
    shape = (6,) if kind == "mlp" else IMAGES
    settings = {"recipe": recipe(**given), "threat": threat, "validation": data(20, shape, seed=7)}
    alone, stacked = made or nets(kind), copy.deepcopy(made or nets(kind))
    on = data(25, shape)  # the last batch is smaller
    one_by_one = [train(m, row, on, seed=s, **settings) for m, s in zip(alone, SEEDS, strict=True)]
    together = train_together(stacked, row, on, seeds=SEEDS, **settings)
    return list(zip(alone, one_by_one, strict=True)), list(zip(stacked, together, strict=True))


def close(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], rtol=1e-9, atol=1e-9, equal_nan=True) for n in a)


def assert_same(one_by_one, together):
    for (model, wanted), (other, found) in zip(one_by_one, together, strict=True):
        assert (found.status, found.chosen) == (wanted.status, wanted.chosen)
        assert close(found.best, wanted.best) and close(found.last, wanted.last)
        assert close(other.state_dict(), model.state_dict()) and not other.training
        assert found.curves.keys() == wanted.curves.keys()
        for name, values in wanted.curves.items():
            assert found.curves[name] == pytest.approx(values, rel=1e-9, abs=1e-9, nan_ok=True)
    ends = [torch.cat([value.flatten() for value in found.last.values()]) for _, found in together]
    assert not close({"": ends[0]}, {"": ends[1]})


ROWS = {
    "ST": methods.plain(),
    "AT": methods.at(),
    "TRADES": methods.trades(),
    "MART": methods.mart(),
    "MAIL-AT": methods.mail_at(begin=0.5),
    "AT+HE": methods.he_at(),
    "AT+EMR": methods.emr(methods.at(), 0.5, 1.0, drops=((0.5, 0.1),)),
    "IGR": methods.igr(0.1),
    "centred": replace(methods.at(), head=Head("centred")),
}
RECIPES = {
    "average": {"average": 0.9},
    "clip": {"clip": 0.3},
    "decay": {"weight_decay": 0.1, "nesterov": True},
    "decay, not of biases": {"weight_decay": 0.5, "decay_norms": False},
    "one-cycle": {"schedule": "one-cycle", "drop_last": True, "select_every": 2},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_gives_the_same_runs_together_as_one_by_one(name):
    assert_same(*both(ROWS[name], epochs=4, lr=0.3))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_same_runs_together_as_one_by_one(name):
    assert_same(*both(methods.at(), epochs=3, lr=0.3, **RECIPES[name]))


@pytest.mark.parametrize("row", ["AT", "AT+EMR"])
def test_convolutions_and_augmentation_give_the_same_runs(row):
    assert_same(*both(ROWS[row], "cnn", epochs=2, lr=0.3, crop=1, flip=True, average=0.8))


@pytest.mark.parametrize("start", ["uniform", "normal", "image"])
def test_every_start_and_the_other_norm_give_the_same_runs(start):
    row = methods.at(PGD(start=start, counted=True))
    assert_same(*both(row, threat=Threat(2, 0.3, 0.1, 3, ramp=0.5), lr=0.3))


def overflowing():
    """Networks of which the second diverges within two steps."""
    made = nets()
    with torch.no_grad():
        made[1].head.weight.mul_(1e160)
    return made


def test_a_run_that_diverges_leaves_the_others_alone():
    """Its logits overflow after the first step, an epoch, and its curves end with the second."""
    one_by_one, together = both(methods.plain(), made=overflowing(), epochs=4, batch_size=25, lr=0.3, average=0.5)
    assert [found.status for _, found in together] == ["done", "diverged", "done"]
    assert len(together[1][1].curves["rate"]) == 2
    for index in (0, 2):
        assert_same(*[[runs[index], runs[2 - index]] for runs in (one_by_one, together)])
    (_, wanted), (_, found) = one_by_one[1], together[1]
    assert found.chosen == wanted.chosen and close(found.best, wanted.best)
    for name, values in wanted.curves.items():
        assert found.curves[name] == pytest.approx(values, rel=1e-9, nan_ok=True)


def test_it_ends_when_all_have_diverged():
    _, together = both(methods.plain(), epochs=50, lr=1e200)
    assert all(found.status == "diverged" and len(found.curves["rate"]) < 50 for _, found in together)


def test_stopped_at_random_moments_it_ends_in_the_same_bits(tmp_path):
    """With a run that diverges early."""

    def trained(checkpoint=None):
        made = overflowing()
        settings = {"recipe": recipe(epochs=4, average=0.9), "threat": THREAT, "validation": data(20, seed=7)}
        return made, train_together(made, methods.at(), data(), seeds=SEEDS, checkpoint=checkpoint, **settings)

    wanted, stops, moments = trained(), 0, random.Random(4)
    assert [one.status for one in wanted[1]] == ["done", "diverged", "done"]
    for attempt in range(3):
        found = None
        while found is None:
            try:
                found = trained(Stopping(tmp_path / f"{attempt}.pt", moments.randint(1, 4)))
            except OutOfTime:
                stops += 1
        for (model, one), (other, same) in zip(*[zip(*pair, strict=True) for pair in (wanted, found)], strict=True):
            assert (one.status, one.chosen) == (same.status, same.chosen) and str(one.curves) == str(same.curves)
            states = (model.state_dict(), other.state_dict()), (one.best, same.best), (one.last, same.last)
            assert all(torch.equal(a[n].nan_to_num(), b[n].nan_to_num()) for a, b in states for n in a)
    assert stops > 6


def test_noise_of_several_generators_is_that_of_each_for_its_group():
    x = data(6).x
    generators = [[torch.Generator().manual_seed(seed) for seed in SEEDS] for _ in range(2)]
    together = Noise(x, generators[0])
    alone = [Noise(part, one) for part, one in zip(x.chunk(3), generators[1], strict=True)]
    for shape in ((4,), (2, 3)):
        assert torch.equal(together.uniform(*shape), torch.cat([one.uniform(*shape) for one in alone]))
    assert not torch.equal(together.bits(1), Noise(x, generators[0]).bits(1))  # the generators moved on


def test_a_stack_answers_each_group_by_its_own_network():
    made, x = nets("cnn"), data(6, IMAGES).x
    stacked = stack(made, x)
    wanted = torch.cat([model(part) for model, part in zip(made, x.chunk(3), strict=True)])
    assert torch.allclose(stacked(x), wanted, rtol=1e-12)
    alone = unstack(stacked, 2, nets("cnn")[0])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), made[2].parameters(), strict=True))
    stacked(x)[:2].sum().backward()
    assert all(p.grad[0].any() and not p.grad[1:].any() for p in stacked.parameters() if p.grad[0].any())
    assert stacked.head.weight.grad[0].any()


class Shared(nn.Module):
    """A network whose code looks at its layer's weights, as no stack can know."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3).double()

    def forward(self, x):
        return x @ self.head.weight.T


class Aware(Part):
    def __call__(self, context, at):
        return CE(context.logits(at), context.y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"row": methods.lma_at()}, "MovingAverage"),
        ({"row": methods.gairat(begin=0.0)}, "GAIRAT"),
        ({"row": methods.mail_at(normalised=True)}, "MAIL"),
        ({"row": methods.mma()}, "MMACraft, Counted"),
        ({"row": methods.amm()}, "DeepFoolMargin"),
        ({"row": methods.l_softmax()}, "LSoftmax"),
        ({"row": Row(None, (Term(Aware(), "clean"),))}, "Aware"),
        ({"row": Row(None, (Term(CE, "clean"), Term(lambda m: m.head.weight.sum(), "parameters")))}, "<lambda>"),
        ({"models": [Net(norm=True, seed=s) for s in SEEDS]}, "BatchNorm1d"),
        ({"models": [Net(dropout=True, seed=s) for s in SEEDS]}, "Dropout"),
        ({"models": [Net(), Net(), Net(hidden=5)]}, "sizes"),
        ({"models": [Net()] * 3}, "different"),
        ({"models": []}, "seeds"),
        ({"models": [Shared() for _ in SEEDS]}, "stacked"),
        ({"seeds": (1, 2)}, "seeds"),
        ({"seeds": (1, 2, -1)}, "seed must"),
        ({"recipe": recipe(compiled=True)}, "compiled"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_by_name(given, message):
    usual = {"models": nets(), "row": methods.plain(), "recipe": recipe(), "seeds": SEEDS}
    made, row, rest, seeds = (usual | given).values()
    with pytest.raises(MarginsError, match=message):
        train_together(made, row, data(), recipe=rest, threat=THREAT, seeds=seeds)


LMA = methods.lma_at(beta=1.0)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(experiments, "EXPERIMENTS", {})

    def made(together, folder="results", **asked):
        attack = {"attack": "pgd", "steps": 3, "step_size": 0.02, "start": "none"}
        table(
            "test/stack", title="t", source="s", model={"name": "mlp", "inputs": 64, "hidden": (8,), "classes": 10},
            data="digits", validation=50, threat=Threat(math.inf, 0.05, 0.02, 3), seeds=SEEDS, together=together,
            rows={"AT": replace(methods.at(), start=methods.plain()), "LMA-AT": LMA},
            columns={"attacks": Columns({"PGD-3": attack}, images=60)},
            scales={"quick": (100, recipe(epochs=3, batch_size=20, lr=0.3))},
        )  # fmt: skip
        store = Store(tmp_path / folder)
        return record("test/stack", scale="quick", results=store.root, **asked), store

    return made


def test_a_table_trained_together_records_the_same_numbers(recorded, monkeypatch):
    calls = []
    monkeypatch.setattr(job, "train_together", lambda *a, **g: (calls.append(g["seeds"]), train_together(*a, **g))[1])
    (status, store), (begun, _) = recorded(False, "alone"), recorded(True, seeds=(8,))
    assert status == begun == 0
    status, mixed = recorded(True)
    assert status == 0 and [tuple(seeds) for seeds in calls] == [SEEDS, SEEDS]  # the row that AT starts from, and AT
    wanted, found = [{(r.row, r.seed, r.config["part"]): r for r in one.all("test/stack")} for one in (store, mixed)]
    assert found.keys() == wanted.keys() and len(found) == 2 * 3 * 2
    for (row, _, part), one in wanted.items():
        same = found[row, _, part]
        assert (same.key == one.key) == (row == "LMA-AT")  # which can't be trained together
        assert same.metrics == pytest.approx(one.metrics, rel=1e-9)
        assert same.provenance.get("runs at once") == ("3" if (row, part) == ("AT", "training") else None)
        assert same.curves.keys() == one.curves.keys()
        for name, values in one.curves.items():
            assert same.curves[name] == pytest.approx(values, rel=1e-5)
    spent = {found["AT", seed, "training"].provenance["seconds"] for seed in SEEDS}
    assert len(spent) == 1 and spent.pop() > 0  # each an equal part


def test_a_table_trained_together_goes_on_where_it_was_stopped(recorded, monkeypatch):
    assert recorded(True, "undisturbed", rows=("AT",))[0] == 0
    for path in (paths.CACHE / "weights").iterdir():
        path.unlink()
    steps, tick = [], processes.tick

    def stopping(checkpoint, state, step):
        steps.append(step)
        if step == 7:
            checkpoint.deadline = 0.0
        tick(checkpoint, state, step)

    monkeypatch.setattr(processes, "tick", stopping)
    assert [recorded(True, rows=("AT",))[0] for _ in range(3)] == [3, 3, 0]
    assert steps == 2 * [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    digests = []
    for folder in ("results", "undisturbed"):
        records = Store(paths.CACHE.parent / folder).all("test/stack")
        digests.append({(r.seed, r.config["part"]): r.provenance["weights"] for r in records})
    assert digests[0] == digests[1] and len(digests[0]) == 6
