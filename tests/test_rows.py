"""Rows in training: phases, selection, equal terms, and what one part of a row must not do to another."""

from dataclasses import dataclass, replace

import pytest
import torch
from small import THREAT, Net, data, recipe
from test_loop import AT, STANDARD, run, same
from torch.nn import functional

from margins import losses
from margins.checkpoints import Checkpoint, OutOfTime
from margins.errors import MarginsError
from margins.methods import PGD, Phase, Row, Term
from margins.methods.rows import describe
from margins.models import frozen
from margins.models.heads import Cosine, Head
from margins.penalties.context import Part, Threat
from margins.training import train


class Functional(torch.nn.Module):
    """A net whose dropout is no layer."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net.head(functional.dropout(self.net.features(x), 0.5, self.training))


def test_dropout_that_is_no_layer_is_noticed_and_seeded():
    last = []
    for state in (1, 2):
        torch.manual_seed(state)
        last.append(run(AT, Functional())[0])
    assert same(*last, 0)
    seen = []

    class Look(Part):
        def __call__(self, context, at):
            seen.append((context.modal, context.random))
            seen.append(torch.equal(context.logits(at), context.logits(at, "eval")))
            return losses.cross_entropy(context.logits(at), context.y)

    kinds = {(True, True): Functional(), (False, False): Net(), (True, False): Net(norm=True)}
    for kind, model in kinds.items():
        wanted = (kind, not kind[0])
        seen.clear()
        run(Row(None, (Term(Look(), "clean"),)), model)
        assert tuple(seen[:2]) == wanted


def test_what_one_part_asks_without_gradients_takes_no_gradient_from_another():
    class Weight(Part):
        def __call__(self, context, at):
            with torch.no_grad():
                return context.logits("adversarial").softmax(1).amax(1)

    terms = (Term(losses.cross_entropy, "clean", weight=Weight()), Term(losses.pair_kl, "both", 6.0))
    assert same(run(Row(PGD(), terms))[0], run(Row(PGD(), terms[::-1]))[0])


def test_a_craft_that_would_freeze_the_logits_of_a_term_is_refused():
    class Craft(Part):
        def __call__(self, context, at):
            with frozen(context.model):
                context.logits("clean")
            context.x_adv = context.x

    with pytest.raises(MarginsError, match="frozen"):
        run(Row(Craft(), (Term(losses.cross_entropy, "clean"), Term(losses.cross_entropy))))


def test_a_phase_without_an_epoch_is_refused():
    late = replace(STANDARD, later=(Phase(PGD(), AT.terms, begin=0.9),))
    with pytest.raises(MarginsError, match=r"none is left for the phase that begins at 0\.9"):
        run(late, epochs=4)
    assert run(late, epochs=10)[1].status == "done"
    assert Phase(None, STANDARD.terms, 0.6).first(15) == 9 and Phase(None, STANDARD.terms, 1 / 3).first(3) == 1


def test_the_best_epoch_is_one_of_the_last_phase():
    row = replace(AT, later=(Phase(PGD(), (Term(losses.cross_entropy, coefficient=-5.0),), begin=0.5),))
    _, trained = run(row, validation=data(30, seed=5), epochs=6, lr=0.5)
    robust = trained.curves["validation PGD-10"]
    assert max(robust[:3]) > max(robust[3:]) and trained.chosen > 3


def test_standard_training_is_selected_by_clean_accuracy():
    _, trained = run(STANDARD, validation=data(30, seed=5), epochs=8, lr=0.5)
    clean, robust = trained.curves["validation clean"], trained.curves["validation PGD-10"]
    assert trained.chosen == max(range(8), key=lambda e: (clean[e], robust[e], e)) + 1
    assert "selection" in STANDARD.describe() and "selection" not in AT.describe()


def test_equal_terms_have_curves_of_their_own():
    row = Row(None, (Term(losses.cross_entropy, "clean"), Term(losses.cross_entropy, "clean", 2.0)))
    curves = run(row)[1].curves
    assert curves["cross_entropy at clean"] == curves["cross_entropy at clean (2)"]


def test_a_row_with_a_head_trains_the_same_model_again():
    row = replace(STANDARD, head=Head("cosine", 5.0))
    model, _ = run(row)
    assert isinstance(run(row, model)[0].head, Cosine)


def test_what_closes_over_variables_has_no_description():
    def make(scale):
        return lambda logits, y: scale * losses.cross_entropy(logits, y)

    with pytest.raises(MarginsError, match=r"functools\.partial"):
        Row(None, (Term(make(2.0), "clean"),)).describe()


def test_train_refuses_a_row_that_starts_from_another():
    with pytest.raises(MarginsError, match="start: train that row first"):
        run(replace(STANDARD, start=AT))


@pytest.mark.parametrize("row", ["TRADES", None, STANDARD.terms])
def test_what_is_no_row_is_refused(row):
    with pytest.raises(MarginsError, match="row must be a Row"):
        run(row)


def test_validation_is_looked_at_before_any_step():
    with pytest.raises(MarginsError, match="validation: there must be at least one sample"):
        run(validation=replace(data(), x=data().x[:0], y=data().y[:0]))
    with pytest.raises(MarginsError, match="validation must be a margins"):
        run(validation=(data().x, data().y))


@dataclass
class Begins(Part):
    """A part that looks at the run and keeps nothing."""

    def begin(self, given):
        self.seen = len(given.x)

    def __call__(self, context, at):
        return losses.cross_entropy(context.logits(at), context.y)


def test_a_part_that_sets_no_state_can_be_checkpointed(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.pt", deadline=0.0)
    with pytest.raises(OutOfTime):
        train(Net(), Row(None, (Term(Begins(), "clean"),)), data(), recipe=recipe(), threat=THREAT, seed=0,
              checkpoint=checkpoint)  # fmt: skip
    assert checkpoint.load("parts")["parts"] == [{}]


class Bare(Begins):
    """No dataclass itself, with a setting that is no field."""

    def __init__(self, setting):
        self.setting = setting


@dataclass
class Unannotated(Begins):
    memory = 0.5


def test_settings_that_are_no_fields_are_refused_or_described():
    def described(part):
        return Row(None, (Term(part, "clean"),)).describe()

    with pytest.raises(MarginsError, match="setting of Bare can't be recorded"):
        described(Bare(5.0))
    before = described(Unannotated())
    Unannotated.memory = 0.25
    assert described(Unannotated()) != before


def test_defaults_of_a_function_are_described():
    told = [describe(lambda logits, y, lead=lead: logits) for lead in (1.0, 2.0)]
    assert told[0] != told[1]


def test_an_eps_that_spans_the_box_is_refused():
    with pytest.raises(MarginsError, match="at most the box's width"):
        Threat(float("inf"), 8.0, 2.0)
