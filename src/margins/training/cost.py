"""What a step of a row computes: its forwards and backwards, counted while it runs; and what was measured of them."""

import copy
import json
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from margins import paths
from margins.datasets import Data
from margins.errors import MarginsError
from margins.methods.rows import Row
from margins.penalties.context import Threat
from margins.training.loop import train
from margins.training.recipe import Recipe

#: What each kind of pass is worth, in forwards.
WORTH = {"forward": 1, "input": 1, "full": 2, "twice": 2}
#: Where `make bench ARGS=training` records.
MEASURED = paths.DATA / "benchmarks" / "training"


@dataclass(frozen=True)
class Cost:
    """The passes of some steps: how many there were of each (kind, samples in it).

    Kinds: "forward"; "input", a backward to the input alone; "full", a backward to the parameters; "twice", what it
    takes beyond that to differentiate a backward to the input.
    """

    passes: Counter[tuple[str, int]]
    samples: int

    def number(self, kind: str) -> float:
        """How many passes of a kind a sample takes."""
        return sum(samples * times for (which, samples), times in self.passes.items() if which == kind) / self.samples

    @property
    def forwards(self) -> float:
        """What the steps cost in forwards' worth: of plain training 3."""
        return sum(worth * self.number(kind) for kind, worth in WORTH.items())


def cost(row: Row, model: nn.Module, data: Data, *, threat: Threat, batch_size: int | None = None) -> Cost:
    """What an epoch of the row's last phase computes, as a rule the whole data in one batch; the model stays as it was.

    model: with a last layer `head`, whose calls and gradients are counted. Some methods do less for samples that the
    model gets wrong, so the count depends on its weights. Optimiser and losses are not counted, nor is that a net's
    first layer needs no gradient to its input in a full backward. Costs two epochs. Raises MarginsError as `train`.
    """
    if not hasattr(model, "head"):
        raise MarginsError("model must have a last layer called head, whose calls are counted")
    last, model = row.phases[-1], copy.deepcopy(model)
    row = replace(row, craft=last.craft, terms=last.terms, later=(), start=None)
    if row.head is not None:
        row.head.put_on(model)
    passes: Counter[tuple[str, int]] = Counter()
    epochs: list[Counter] = []

    def see(module: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> None:
        samples, weight = len(logits), next(module.parameters(), None)
        passes["forward", samples] += 1
        trained = weight is not None and weight.requires_grad
        node = torch.autograd.graph.get_gradient_edge(weight).node if trained else None
        if logits.requires_grad:
            logits.register_hook(lambda gradient: back(gradient, samples, node))

    def back(gradient: Tensor, samples: int, node: torch.autograd.graph.Node | None) -> None:
        again = torch.is_grad_enabled()  # then this is a backward that will be differentiated itself
        if torch._C._functorch.is_batchedtensor(gradient):  # of several classes at once, to the input
            classes = len(torch._C._functorch.get_unwrapped(gradient))
            passes["input", samples] += classes
            if again:
                passes["twice", samples] += classes
            return
        full = node is not None and _executed(node)  # or is it for the input alone?
        passes["full" if full else "input", samples] += 1
        if again:
            passes["twice", samples] += 1

    def end(line: str) -> None:
        epochs.append(passes.copy())
        passes.clear()

    model.head.register_forward_hook(see)
    # weights that stay; and the first epoch also looks whether model and data fit
    recipe = Recipe(epochs=2, batch_size=batch_size or len(data.x), lr=1e-12)
    train(model, replace(row, head=None), data, recipe=recipe, threat=threat, seed=0, progress=end)
    return Cost(epochs[-1], len(data.x))


def _executed(node: torch.autograd.graph.Node) -> bool:
    """Whether the backward under way goes to a leaf; of those whose gradient it returns the engine refuses to say."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        return True


def measured() -> list[dict]:
    """What a step of each method took on each net, as recorded: a dict each, read from MEASURED, [] without records.

    "net", "method"; "forwards": its count; "ms": CPU time of a step, on one thread; "/ forwards": that time over that
    of as many forwards; "/ passes": over that of its own passes done bare, and the optimiser's; "load": of the machine.
    """
    rows = []
    for path in sorted(paths.note(MEASURED).glob("*.json")):
        record = json.loads(paths.note(path).read_text())
        for method, row in record["rows"].items():
            told = {"net": record["net"], "method": method, "forwards": row["forwards"], "ms": 1e3 * row["seconds"]}
            ratios = {"/ forwards": row["of_forwards"], "/ passes": row["of_passes"], "load": record["load"]}
            rows.append(told | ratios)
    return rows
