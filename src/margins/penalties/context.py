"""What the parts of a training step see, and what they are: the lazy context, and parts that may keep state."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from margins import checks
from margins.attacks.noise import Noise
from margins.errors import MarginsError

PLACES = ("clean", "adversarial")
MODES = ("train", "eval")
#: Metadata of a dataclass's field that is not told of while it has its default, since it came after records were made.
ADDED = {"added": True}
#: Layers that compute something else in training than in evaluation.
_MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Threat:
    """The ball that is trained and validated against: norm (2 or math.inf), eps and step_size in input units.

    steps of PGD while crafting; ramp: the share of the training during which eps and step_size grow from 0.
    """

    norm: float
    eps: float
    step_size: float
    steps: int = 10
    ramp: float = 0.0

    def __post_init__(self):
        checks.norm(self.norm, (2, float("inf")))
        checks.number("eps", self.eps, 0, above=True)
        if self.norm == float("inf") and self.eps > 1:
            raise MarginsError(f"eps must be at most the box's width 1, but is {self.eps:g}; was that / 255 meant?")
        checks.number("step_size", self.step_size, 0, above=True)
        checks.whole("steps", self.steps, 1)
        checks.number("ramp", self.ramp, 0, 1)

    def at(self, progress: float) -> "Threat":
        """The ball at that share of the training."""
        grown = max(min(1.0, progress / self.ramp), 1e-6) if self.ramp else 1.0  # a ball has a radius above 0
        return Threat(self.norm, self.eps * grown, self.step_size * grown, self.steps)


class Part:
    """A craft, penalty or weight that needs more than logits: subclasses are dataclasses of their settings.

    What is asked of a part in a step is `part(context, at)`, per sample, (B,). `state` holds the tensors that it keeps
    from step to step, by name; they are in the checkpoint.
    """

    #: Where a term may ask it: at "clean" or "adversarial" samples, at "both".
    places: tuple[str, ...] = (*PLACES, "both")
    #: Modes of the forward whose logits are differentiated to the input: ("train",), ("eval",).
    input_grad: tuple[str, ...] = ()
    #: Whether `context.features` is asked for.
    features: bool = False
    #: Whether the state is the same in all processes that share a batch, which `run.combine` makes it.
    shared: bool = False
    #: Whether a sample's value depends on the others of its batch, so that a batch must not be split over processes.
    batch_wide: bool = False
    #: Whether it may meet the samples of several runs in one batch (`train_together`): it keeps no state, looks at each
    #: sample by itself and at no parameter, and asks the model about whole batches.
    together: bool = False
    #: Raised when a change of the code changes results.
    revision: int | tuple[int, ...] = 1
    state: dict[str, Tensor]

    def begin(self, run: "Run") -> None:
        """Called once, before the first step; sets `state`. Raises MarginsError where the part does not fit the run."""
        self.state = {}

    def start_epoch(self, run: "Run") -> None:
        """Called before each epoch's first step."""

    def after_step(self, run: "Run") -> None:
        """Called after each step of the optimiser."""


@dataclass(eq=False)
class Run:
    """What lasts longer than a step: the model, the training data on its device, and how they are gone through."""

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int
    threat: Threat
    batch_size: int
    #: Whether the last batch of an epoch is smaller than the others.
    uneven: bool
    #: Over how many processes a batch is split, and the sum of a tensor over them.
    processes: int = 1
    combine: Callable[[Tensor], Tensor] = lambda value: value


@dataclass(eq=False)
class Context:
    """One batch in one step, and everything that has been computed of it, once.

    x (B, ...) as augmented, y (B,) int64, index (B,) int64 of the samples in the training data; total: the size of the
    whole batch, of which other processes may hold the rest; first: the place of x's first sample in it. progress: the
    share of the training that is done, in [0, 1); step: how many steps are. seed: of this step's random numbers; seeds:
    those of several runs, where the batch has one group of samples after the other, as many of each.
    threat: the ball at this moment.
    x_adv and crafted are set by the craft: the adversaries, and what else it learned, by name, (B,).
    forward: the model as it is called where no input gradient is needed (compiled perhaps), the model itself if None.
    autocast: whether forwards run in bfloat16; logits are float32 all the same.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    total: int
    progress: float
    seed: int
    threat: Threat
    forward: Callable[[Tensor], Tensor] | None = None
    autocast: bool = False
    #: (place, mode) of the forwards that some part will differentiate to the input, and whether features are needed.
    differentiated: frozenset[tuple[str, str]] = frozenset()
    featured: bool = False
    #: The places that terms look at.
    looked: frozenset[str] = frozenset()
    x_adv: Tensor | None = None
    crafted: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0
    first: int = 0
    seeds: tuple[int, ...] = ()
    #: Whether the model computes something else in training than in evaluation, and whether it draws random numbers.
    modal: bool | None = None
    random: bool | None = None

    def __post_init__(self):
        self.forward = self.model if self.forward is None else self.forward
        self._known: dict[tuple[str, str], tuple[Tensor, Tensor, Tensor | None]] = {}
        if self.modal is None or self.random is None:
            self.modal, self.random = kinds(self.model)

    def generator(self, stream: int = 0) -> torch.Generator:
        """A new generator of this step, on the CPU; `stream` tells apart what is drawn for different ends."""
        return _generator(self.seed, stream)

    def noise(self, x: Tensor, stream: int = 0) -> Noise:
        """Random numbers of this step for each sample of x, which is the whole batch where several runs share it."""
        return Noise(x, [_generator(seed, stream) for seed in self.seeds or (self.seed,)])

    def input(self, at: str, mode: str = "train") -> Tensor:
        """The samples at a place; where the logits of that mode are differentiated to the input, the tensor to use."""
        return self._forward(at, mode, False)[0]

    def logits(self, at: str, mode: str = "train", input_grad: bool = False) -> Tensor:
        """(B, K) of "clean" or "adversarial" samples, with a graph to the parameters, in the mode "train" or "eval".

        input_grad: with a graph to `input(at, mode)` too. Asked twice for the same, it is computed once; nets without
        dropout and BatchNorm have one mode. Dropout masks are the same in all forwards of a step. A forward in "train"
        moves BatchNorm statistics. Costs a forward, and its backward in the end.
        """
        return self._forward(at, mode, input_grad)[1]

    def features(self, at: str, mode: str = "train") -> Tensor:
        """What the model's head sees, (B, D); a part that asks for it says so by `features = True`."""
        found = self._forward(at, mode, False)[2]
        if found is None:
            raise MarginsError("features: a part that asks for them must say so, by its attribute features = True")
        return found

    def detached(self, at: str, mode: str = "eval") -> Tensor:
        """Logits (B, K) without a graph: known ones, those that a term will ask for, or of a forward without one."""
        key = (at, self._mode(mode))
        asked = key[1] == "train" and at in self.looked and any(p.requires_grad for p in self.model.parameters())
        if key in self._known or asked:
            return self._forward(at, mode, False)[1].detach()
        with torch.no_grad():
            return self._ask(self._place(at), key[1])[0]

    def ask(self, x: Tensor) -> Tensor:
        """The logits of any x, float32 or float64, in the mode that the model is in: for a craft."""
        with self._same_masks(x), self._precision(x):
            logits = self.forward(x)
        return logits.float() if self.autocast else logits

    def _mode(self, mode: str) -> str:
        checks.choice("mode", mode, MODES)
        return mode if self.modal else "train"

    def _place(self, at: str) -> Tensor:
        if checks.choice("at", at, PLACES) == "adversarial" and self.x_adv is None:
            raise MarginsError("at: 'adversarial' is asked for, but nothing crafts adversaries in this row")
        return self.x if at == "clean" else self.x_adv

    def _forward(self, at: str, mode: str, input_grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        key = (at, self._mode(mode))
        wanted = input_grad or any(key == (place, self._mode(m)) for place, m in self.differentiated)
        known = self._known.get(key)
        if known is None or (wanted and not known[0].requires_grad):
            x = self._place(at)
            if wanted:
                x = x.detach().requires_grad_()
            with torch.enable_grad():  # whoever asks first, the others' gradients depend on it
                known = (x, *self._ask(x, key[1]))
            if not any(p.requires_grad for p in self.model.parameters()):
                raise MarginsError("logits: parameters are frozen here, as while crafting; ask for detached logits")
            self._known[key] = known
        return known

    def _ask(self, x: Tensor, mode: str) -> tuple[Tensor, Tensor | None]:
        model, features = self.model, None
        with in_mode(model, mode), self._same_masks(x), self._precision(x):
            if self.featured:
                features = model.features(x)
                logits = model.head(features)
            else:  # a compiled forward can't be differentiated twice
                logits = (model if x.requires_grad else self.forward)(x)
        if self.autocast:
            logits, features = logits.float(), None if features is None else features.float()
        return logits, features

    def _precision(self, x: Tensor):
        return torch.autocast(x.device.type, torch.bfloat16) if self.autocast else nullcontext()

    def _same_masks(self, x: Tensor):
        if not self.random:
            return nullcontext()
        return _seeded((self.seed + self.first) % 2**63, x.device)


def kinds(model: nn.Module) -> tuple[bool, bool]:
    """Whether there are layers that compute something else in training, and such that draw random numbers, by class."""
    found = {type(module) for module in model.modules()}
    return tuple(any(issubclass(one, kind) for one in found) for kind in (_MODAL, nn.modules.dropout._DropoutNd))


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + stream) % 2**63)


@contextmanager
def in_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """The model in evaluation mode within the block, each module as it was afterwards; "train" is as it is."""
    if mode == "train" or not model.training:
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
