"""Rows in training: phases, selection, equal terms, and what one part of a row must not do to another."""

from dataclasses import replace

import pytest
import torch
from small import Net, data
from test_loop import AT, STANDARD, run, same
from torch.nn import functional

from margins import losses
from margins.errors import MarginsError
from margins.methods import PGD, Phase, Row, Term
from margins.models import frozen
from margins.models.heads import Cosine, Head
from margins.penalties.context import Part


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
