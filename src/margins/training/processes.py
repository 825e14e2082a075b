"""Several processes, started by torchrun, that train one network: each takes a part of every batch."""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from margins.checkpoints import Checkpoint, OutOfTime
from margins.errors import MarginsError, Unshareable
from margins.penalties.context import Part

#: Steps between two checkpoints that several processes may make: they must agree on each.
EVERY = 50
#: How long processes wait for the first one, which may be evaluating alone.
PATIENCE = timedelta(days=7)


def join() -> None:
    """Meet the other processes where torchrun started this one (it says so in the environment); else do nothing."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes: a program's last call, without which it may die on its way out."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's number; the first, 0, writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(index: Tensor) -> Tensor:
    """This process's part of a batch's indices; the parts differ by one sample at most."""
    return index.tensor_split(count())[rank()]


def first(size: int) -> int:
    """The place of this process's first sample in a batch of that size."""
    return sum(len(part) for part in torch.empty(size).tensor_split(count())[: rank()])


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if count() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def add(values: Iterable[Tensor | None]) -> None:
    """Add up tensors, in place, over the processes; what is None in one is None in all."""
    if count() == 1 or not (values := [value for value in values if value is not None]):
        return
    flat = torch.cat([value.flatten() for value in values])
    distributed.all_reduce(flat)
    for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))


def shared(value):
    """The first process's value, in every process: what they must agree on."""
    if count() == 1:
        return value
    told = [value]
    distributed.broadcast_object_list(told)
    return told[0]


def alone(work: Callable):
    """What `work()` returns in the first process, in every process; what it raises there is raised in all."""
    if count() == 1:
        return work()
    found = error = None
    if rank() == 0:
        try:
            found = work()
        except (MarginsError, OutOfTime) as raised:
            error = raised
        except Exception:
            shared((None, RuntimeError("the first process failed")))
            raise
    found, error = shared((found, error))
    if error is not None:
        raise error
    return found


def tick(checkpoint: Checkpoint, state: Callable[[], dict], step: int) -> None:
    """`checkpoint.tick(state)`: with several processes the first one's, every EVERY steps, and all stop together."""
    if count() == 1:
        checkpoint.tick(state)
        return
    if step % EVERY:
        return
    stopped = False
    if rank() == 0:
        try:
            checkpoint.tick(state)
        except OutOfTime:
            stopped = True
    if shared(stopped):
        raise OutOfTime


def prepare(model: nn.Module, parts: Iterable[Part]) -> nn.Module:
    """The model with BatchNorm over all processes. Raises Unshareable for what needs the whole batch in one place."""
    parts = list(parts)
    if count() == 1:
        return model
    if wide := sorted({type(part).__name__ for part in parts if part.batch_wide}):
        raise Unshareable(f"{', '.join(wide)} looks at the whole batch: train this row in one process")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        if twice := sorted({type(part).__name__ for part in parts if "train" in part.input_grad}):
            what = "over several processes BatchNorm can be differentiated twice in 'eval' only"
            raise Unshareable(f"mode of {', '.join(twice)}: {what}")
        if not torch.cuda.is_available():
            raise Unshareable("BatchNorm needs the whole batch, which several processes share on GPUs only")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def check(parts: Iterable[Part]) -> None:
    """Raise Unshareable for parts whose state would differ between the processes."""
    if count() > 1 and (kept := sorted({type(part).__name__ for part in parts if part.state and not part.shared})):
        raise Unshareable(f"{', '.join(kept)} keeps a state of the whole batch: train this row in one process")
