"""AMM on two boxes in the plane: Figure 1, and what the paper says of it (section 3.3.3)."""

from collections.abc import Mapping

import torch

from margins import datasets
from margins.checkpoints import Checkpoint
from margins.claims import Difference, Evidence
from margins.experiments import Experiment, Outcome, Unit, register
from margins.linear import toy
from margins.linear.svm import hard_margin_svm
from margins.penalties import amm

PAIRS = {f"{a}+{s}": (a, s) for a in amm.AGGREGATIONS for s in amm.SHRINKAGES}
#: Figure 1's setting (section 3.3.3; lambda = c = d = 1 by footnote 4, clip by section 4.2, INV's threshold is ours).
TOY = {
    "size": 200,
    "batch_size": 20,
    "lr": 0.1,
    "halve_every": 250,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "c": 1.0,
    "d": 1.0,
    "clip": 10.0,
    "every": 10,
}


def toy_data(size: int, seeds) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each seed's own draw of the two boxes: split -> x (S, 2 size, 2) float64, y (S, 2 size)."""
    drawn = {}
    for split in ("train", "test"):
        sets = [datasets.load("toy2d", split, size=size, seed=seed) for seed in seeds]
        drawn[split] = torch.stack([s.x for s in sets]).double(), torch.stack([s.y for s in sets])
    return drawn


def run_toy(
    seeds, config: Mapping, checkpoint: Checkpoint | None = None, names=tuple(PAIRS)
) -> tuple[dict, list[int], torch.Tensor]:
    """The data, the epochs noted and the weights (T, P, S, 3) of the named pairs: what page and records show."""
    pairs = [PAIRS[name] for name in names]
    data = toy_data(config["size"], seeds)
    keys = ("batch_size", "lr", "halve_every", "momentum", "weight_decay", "c", "d", "clip", "every", "epochs")
    options = {key: config[key] for key in keys}
    epochs, weights = toy.train(pairs, *data["train"], seeds, **options, checkpoint=checkpoint)
    return data, epochs, weights


def error_rate(margins: torch.Tensor) -> torch.Tensor:
    """Share of misclassified points in %, of signed margins (..., N); nan where the run diverged."""
    return torch.where(margins.isfinite().all(-1), 100 * (margins <= 0).double().mean(-1), torch.nan)


def angles(weights: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Degrees between the normals of `weights` (..., 3) and `direction` (..., 2)."""
    normal = weights[..., :2]
    cosine = (normal * direction).sum(-1) / (normal.norm(dim=-1) * direction.norm(dim=-1))
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def mean_difference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean of class 1 minus mean of class 0, (..., 2), of x (..., N, 2) with balanced labels y (..., N)."""
    half = x.shape[-2] // 2
    return ((2 * y - 1)[..., None] * x).sum(-2) / half


def toy_svm(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The hard-margin SVM of each seed's training set, as weights (S, 3)."""
    fits = [hard_margin_svm(a, b, bias=True) for a, b in zip(x, y, strict=True)]
    return torch.stack([torch.tensor([*fit.weight, fit.bias]) for fit in fits])


def _toy(units: list[Unit], checkpoint: Checkpoint) -> list[Outcome]:
    seeds = sorted({unit.seed for unit in units})
    trained = [row for row in dict.fromkeys(unit.row for unit in units) if row != "SVM"]
    names = [row.split(",")[0] for row in trained]
    data, epochs, weights = run_toy(seeds, units[0].config, checkpoint, names)
    rows = dict(zip(trained, weights.unbind(1), strict=True)) | {"SVM": toy_svm(*data["train"])[None]}
    outcomes = []
    for unit in units:
        s = seeds.index(unit.seed)
        (x, y), (x_test, y_test) = ((part[s] for part in data[split]) for split in ("train", "test"))
        path = rows[unit.row][:, s]
        train, test = toy.signed_margins(path, x, y), toy.signed_margins(path, x_test, y_test)
        last = path[-1]
        outcomes.append(
            Outcome(
                metrics={
                    "margin": train[-1].min(),
                    "margin on test points": test[-1].min(),
                    "test accuracy": 100 - error_rate(test[-1]),
                    "train accuracy": 100 - error_rate(train[-1]),
                    "angle to (1, 1)": angles(last, torch.ones(2, dtype=torch.float64)),
                    "angle to the class means": angles(last, mean_difference(x, y)),
                },
                curves={
                    "epoch": epochs if unit.row != "SVM" else [0],
                    "margin": train.min(-1).values.tolist(),
                    "test error": error_rate(test).tolist(),
                },
                arrays={"weights": last.numpy(), "signed test distances": test[-1].numpy()},
                status="done" if last.isfinite().all() else "diverged",
            )
        )
    return outcomes


register(
    Experiment(
        name="amm/toy",
        title="AMM on two boxes in the plane",
        source="AMM, section 3.3.3, Figure 1",
        rows={
            **{pair: {} for pair in PAIRS},
            "SVM": {},
            "MIN+EXP, d = 0.5": {"d": 0.5},
            "MIN+EXP, lr = 0.01": {"lr": 0.01},
        },
        scales={"quick": {"epochs": 50}, "paper": {"epochs": 1000}},
        seeds=tuple(range(20)),
        run=_toy,
        settings=TOY,
        revisions={"toy": 1, "penalties.amm": amm.REVISION},
        stack=lambda unit: (unit.config["d"], unit.config["lr"]),
        minutes={"quick": 0.1, "paper": 1},
    )
)


def _toy_differences(metric, pairs, relation, delta=0.0, unit="input units"):
    """Evidence that `metric` of a minus that of b is as `relation` and `delta` say, for each (a, b) of `pairs`."""

    def read(at):
        results = at["amm/toy"]
        return [
            Difference(
                f"{metric}: {a} - {b}",
                results.metric(a, metric) - results.metric(b, metric),
                relation,
                delta,
                pool=("amm/toy", metric),
                unit=unit,
                failed=int(results.diverged(a if relation == ">" else b).sum()),
                opposed=int(results.diverged(b if relation == ">" else a).sum()),
            )
            for a, b in pairs
        ]

    return Evidence(("amm/toy",), read)


def _angle(at):
    angle = at["amm/toy"].metric("AVG+LIN", "angle to (1, 1)")
    return [Difference("AVG+LIN: angle to (1, 1)", angle, "<", 5.0, pool=("amm/toy", "angle"), unit="degrees")]


def _aggregation_over_shrinkage(at):
    margin = {pair: at["amm/toy"].metric(pair, "margin") for pair in PAIRS}
    aggregation = sum(margin[f"MIN+{s}"] - margin[f"AVG+{s}"] for s in amm.SHRINKAGES) / 3
    shrinkage = sum(margin[f"{a}+{s}"] - margin[f"{a}+LIN"] for a in amm.AGGREGATIONS for s in ("EXP", "INV")) / 4
    label = "mean effect of MIN over AVG - mean effect of EXP and INV over LIN"
    return [Difference(label, aggregation - shrinkage, ">", pool=("amm/toy", "effect"))]


EVIDENCE = {
    "amm-f1-avg-lin-orthogonal-to-centres": Evidence(("amm/toy",), _angle),
    "amm-f1-avg-lin-not-accurate": _toy_differences("test accuracy", [("SVM", "AVG+LIN")], ">", 5.0, "points"),
    "amm-f1-nonlinear-avg-beats-avg-lin-accuracy": _toy_differences(
        "test accuracy", [("AVG+EXP", "AVG+LIN"), ("AVG+INV", "AVG+LIN")], ">", unit="points"
    ),
    "amm-f1-nonlinear-avg-beats-avg-lin-margin": _toy_differences(
        "margin", [("AVG+EXP", "AVG+LIN"), ("AVG+INV", "AVG+LIN")], ">"
    ),
    "amm-f1-min-beats-avg-margin": _toy_differences("margin", [(f"MIN+{s}", f"AVG+{s}") for s in amm.SHRINKAGES], ">"),
    "amm-f1-min-near-optimal-margin": _toy_differences(
        "margin", [("SVM", f"MIN+{s}") for s in amm.SHRINKAGES], "<", 0.05
    ),
    "amm-s334-aggregation-matters-more": Evidence(("amm/toy",), _aggregation_over_shrinkage),
}
