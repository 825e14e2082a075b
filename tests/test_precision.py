"""What a GPU is trained with - bfloat16, channels last, compiled forwards - as far as a CPU can show it."""

import shutil
import warnings
from functools import partial

import pytest
import torch
from small import THREAT, Net, data, recipe

from margins import losses, methods, models
from margins.methods.craft import PGD
from margins.methods.rows import Row, Term
from margins.penalties.context import Part
from margins.training import train

ROWS = {
    "AT": methods.at(),
    "TRADES": methods.trades(),
    "LMA-AT": methods.lma_at(beta=1.0),
    "AT+EMR": methods.at_emr(0.1, 1.0),
}


def trained(row, model, on, **given):
    found = train(model, row, on, recipe=recipe(**given), threat=THREAT, seed=0)
    return found.last, next(iter(found.curves.values()))


class Types(Part):
    """The cross-entropy, noting what it is computed from."""

    def __init__(self, seen):
        self.seen, self.state = seen, {}

    def begin(self, run):
        def note(module, given, out):
            self.seen.add(("layer", out.dtype))

        run.model.head.register_forward_hook(note)

    def __deepcopy__(self, memo):
        return self

    def __call__(self, context, at):
        logits = context.logits(at)
        self.seen.add(("logits", logits.dtype))
        self.seen.add(("x_adv", context.x_adv.dtype))
        return losses.cross_entropy(logits, context.y)


@pytest.mark.parametrize(("precision", "inside"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_forwards_run_in_the_precision_asked_for_and_losses_in_float32(precision, inside):
    seen = set()
    trained(Row(PGD(), (Term(Types(seen)),)), Net().float(), data(dtype=torch.float32), precision=precision)
    assert seen == {("layer", inside), ("logits", torch.float32), ("x_adv", torch.float32)}


@pytest.mark.parametrize("name", ROWS)
def test_bfloat16_trains_to_about_the_same_loss_with_float32_weights(name):
    on = data(dtype=torch.float32)
    half, loss_half = trained(ROWS[name], Net().float(), on, precision="bf16", epochs=4)
    full, loss_full = trained(ROWS[name], Net().float(), on, epochs=4)
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert not all(torch.equal(half[key], full[key]) for key in full)
    assert loss_half == pytest.approx(loss_full, rel=0.1)


def test_images_and_weights_lie_with_the_channels_last():
    seen = []

    class Look(Part):
        def __call__(self, context, at):
            seen.append(context.x.is_contiguous(memory_format=torch.channels_last))
            return losses.cross_entropy(context.logits(at), context.y)

    def model():
        return models.build("cnn", shape=(2, 12, 12), blocks=((4,),), hidden=(8,), classes=3).double()

    on, net = data(shape=(2, 12, 12)), model()
    trained(Row(PGD(start="none"), (Term(Look()),)), net, on, crop=1, flip=True)
    assert all(seen) and net.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model().body[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["TRADES", "AT+EMR"])
def test_compiled_forwards_give_the_same_training(name, monkeypatch):
    """A penalty's forward is differentiated twice, which compiled ones can't be: it stays as it is."""
    if shutil.which("c++") is None:  # then the graphs are traced and split as ever, but run by torch's own kernels
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    on = data(dtype=torch.float32)
    plain, _ = trained(ROWS[name], Net().float(), on)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, of other libraries
        compiled, _ = trained(ROWS[name], Net().float(), on, compiled=True)
    for key, value in plain.items():
        assert torch.allclose(compiled[key], value, rtol=1e-3, atol=1e-5), key
