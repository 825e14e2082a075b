"""What is compared: one case an attack with its settings, the same for every library; the subjects it is run on."""

import math
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Subject:
    """A trained model: what `margins.models.build` is given, and the radii at which about half survive."""

    family: str
    settings: dict
    eps: dict[float, float]


SUBJECTS = {
    "mlp": Subject("mlp", dict(inputs=784, hidden=(1024, 1024), classes=10), {math.inf: 0.06, 2: 1.0}),
    "cnn": Subject(
        "cnn",
        dict(shape=(1, 28, 28), blocks=((32,), (64,)), hidden=(128,), classes=10),
        {math.inf: 0.14, 2: 1.6},
    ),
}


@dataclass(frozen=True)
class Case:
    """One attack as every library runs it.

    `attack` is the name under which the contenders have it; one that has not is left out. `kind`: "budget" (judged by
    robust accuracy at the subject's eps), "nearest" (by the distance found) or "value" (a number per sample). `floor`:
    forwards and input-backwards a sample that nothing can do without, where no sample leaves the batch early; for
    DeepFool those of its first iteration. `most`: the most samples for a library that is too slow for more, or for
    "all".
    """

    name: str
    attack: str
    kind: str
    norm: float
    floor: tuple[int, int]
    settings: dict = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)

    def request(self, subject: Subject) -> dict:
        """The settings that a worker gets: numbers, strings and None, for JSON."""
        eps = subject.eps[self.norm]
        given = {"attack": self.attack, "norm": self.norm, "eps": eps, "box": True, **self.settings}
        if "keep" in given:
            given["step_size"] = 2.5 * eps / given["steps"]
        return given

    def samples(self, library: str, available: int) -> int:
        """How many samples the library runs on: the first ones."""
        return min(available, self.most.get(library, available), self.most.get("all", available))

    @property
    def long(self) -> bool:
        """Whether it takes more than a moment: left out by --quick."""
        return sum(self.floor) > 400


def _cases():
    linf, l2 = ("linf", math.inf), ("l2", 2)
    # in l2 every library draws its start in another way: without one, all run the same attack
    for (name, norm), pgd, start in ((linf, "pgd", "uniform"), (l2, "pgd_l2", "none")):
        for steps in (20, 100):
            settings = dict(steps=steps, keep="last", start=start)
            yield Case(f"pgd-{steps}-{name}", pgd, "budget", norm, (steps, steps), settings)
        settings = dict(steps=100, keep="best", start=start)
        yield Case(f"pgd-100-{name}-best", f"{pgd}_best", "budget", norm, (100, 100), settings)
    yield Case("cw-20-linf", "cw", "budget", math.inf, (20, 20), dict(steps=20, kappa=50.0, keep="last"))
    for name, attack, box in (("deepfool-l2", "deepfool_free", False), ("deepfool-l2-box", "deepfool", True)):
        settings = dict(steps=50, overshoot=0.02, box=box)
        yield Case(name, attack, "nearest", 2, (1, 9), settings, {"torchattacks": 20, "art": 200})
    yield Case("nearest-l2", "nearest", "nearest", 2, (100, 100), dict(steps=100))
    yield Case("nearest-linf", "nearest", "nearest", math.inf, (100, 100), dict(steps=100))
    settings = dict(steps=20, probes=128, delta=0.01, lr=0.01)
    yield Case("spsa-20-linf", "spsa", "budget", math.inf, (20 * 2 * 128, 0), settings, {"all": 50})
    for name, norm in (linf, l2):
        yield Case(f"apgd-ce-100-{name}", "apgd", "budget", norm, (100, 100), dict(steps=100))
        yield Case(f"apgd-t-100-{name}", "apgd_t", "budget", norm, (900, 900), dict(steps=100, targets=9))
        yield Case(f"fab-t-100-{name}", "fab_t", "budget", norm, (900, 900), dict(steps=100, targets=9))
        yield Case(f"square-5000-{name}", "square", "budget", norm, (5000, 0), dict(queries=5000), {"art": 100})
        yield Case(f"autoattack-{name}", "autoattack", "budget", norm, (6900, 1900), dict(steps=100, queries=5000))
    yield Case("effective-margin-l2", "effective_margin", "value", 2, (1, 9))


CASES = {case.name: case for case in _cases()}


def as_record(case: Case) -> dict:
    """The case as it is recorded; infinity as a string, since JSON has none."""
    return {**asdict(case), "norm": "inf" if case.norm == math.inf else case.norm, "floor": list(case.floor)}
