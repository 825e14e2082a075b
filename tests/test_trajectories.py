"""Frozen trajectories: the losses of 20 steps of many rows, in float64, as they were when they were written down.

`python tests/test_trajectories.py` writes them anew, for a change that is meant to move numbers. On the kind of
processor and the version of torch that wrote them they must be the same to the last bit, elsewhere to rounding: the
libraries under torch order their sums by the processor's model and caches too, not by its instruction set alone.
"""

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch
from small import THREAT, Net, data, recipe

from margins import models
from margins.methods import METHODS, amm
from margins.training import train

FILE = Path(__file__).with_name("trajectories.json")
STEPS = 20
MLP = (
    "ST", "AT", "TRADES", "MART", "ALP", "MAIL-AT", "MAIL-TRADES", "GAIRAT", "AT+HE", "L-Softmax", "IGR", "AT+EMR",
    "LMA-AT", "TRADES+Ours", "MMA", "AMM",
)  # fmt: skip
CNN = ("AT", "TRADES+EMR", "LMA-AT")
#: AMM's own values are for distances on MNIST; here they would overflow.
METHODS = METHODS | {"AMM": amm(0.1, shrinkage="INV", c=0.5, d=0.5)}
ROWS = [f"{net}: {name}" for net, names in (("MLP", MLP), ("CNN", CNN)) for name in names]


def trajectory(name: str) -> dict[str, list[float]]:
    """Every term's mean at each step (an epoch is one step), the validation along the way, and the sum of weights."""
    net, method = name.split(": ")
    if net == "MLP":
        model, on, held = Net(norm=method == "AT"), data(24), data(20, seed=7)
    else:
        shape, generator = (1, 8, 8), torch.Generator().manual_seed(1)
        settings = {"shape": shape, "blocks": ((3,),), "hidden": (8,), "classes": 3, "generator": generator}
        model, on, held = models.build("cnn", **settings).double(), data(24, shape), data(20, shape, seed=7)
    rest = {"weight_decay": 5e-4, "average": 0.9, "crop": int(net == "CNN")}
    settings = recipe(epochs=STEPS, batch_size=24, lr=0.5, schedule="one-cycle", **rest)
    found = train(model, METHODS[method], on, recipe=settings, threat=THREAT, seed=2, validation=held)
    total = sum(value.sum().item() for value in found.last.values())
    return {**found.curves, "weights": [total]}


def processor() -> str:
    """What Linux says of the first processor: its maker, family, model and stepping, and the rest as a digest."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if Path("/proc/cpuinfo").exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    names = [said.get(key, "?") for key in ("vendor_id", "cpu family", "model", "stepping")]
    rest = hashlib.sha256(repr([said.get(key) for key in ("cache size", "flags")]).encode()).hexdigest()[:8]
    return " ".join([*names, rest])


def machine() -> str:
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()} {processor()}"


@pytest.mark.parametrize("name", ROWS)
def test_no_number_has_moved(name):
    frozen = json.loads(FILE.read_text())
    exact = frozen["machine"] == machine()
    wanted, found = frozen["rows"][name], trajectory(name)
    assert found.keys() == wanted.keys()
    for curve, values in wanted.items():
        values = [float("nan") if value is None else float.fromhex(value) for value in values]
        assert found[curve] == pytest.approx(values, rel=0 if exact else 1e-9, abs=0 if exact else 1e-12, nan_ok=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = {
        name: {c: [None if v != v else float(v).hex() for v in values] for c, values in trajectory(name).items()}
        for name in ROWS
    }
    FILE.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
