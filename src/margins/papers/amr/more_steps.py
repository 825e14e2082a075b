"""The paper's attack with more steps than its 1000: does it find more (AMR, appendix F)?"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from margins.attacks.pgd import pgd
from margins.experiments import Experiment, Outcome, register
from margins.papers.amr import networks
from margins.papers.amr.estimate import NETS, run
from margins.tables.job import REVISIONS

#: The MLPs, and the CNNs, which take five minutes a hundred images on one thread.
NAME, OF_CNN = "amr/more-steps", "amr/more-steps-cnn"
#: About the median distance of MLPs, and of CNNs, which are farther: where most images are about to fall.
EPS = {"MLP": 1.0, "CNN": 2.0}
STEPS = (1000, 2000, 5000)


def array(steps: int) -> str:
    """The name of the array (N,), bool, whether an image withstands so many steps."""
    return f"{steps} steps"


def attacked(
    model: nn.Module, x: Tensor, y: Tensor, sizes: Mapping[str, int | float | tuple[int, ...]], seed: int
) -> Outcome:
    """The paper's attack on images x (N, ...), y (N,), after each of sizes["steps"] of one run, within sizes["eps"].

    Its last point is what counts, as in the paper, so that an image may be broken after fewer steps and not after more.
    Metrics: the robust accuracies in %. Cost: the largest number of steps.
    """
    settings = {name: value for name, value in networks.PAPER.items() if name not in ("attack", "start", "steps")}
    start, done, kept = networks.PAPER["start"], 0, {}
    generator = torch.Generator().manual_seed(seed)
    for steps in sizes["steps"]:
        more = {"eps": sizes["eps"], "start": start, "steps": steps - done, "generator": generator}
        found = pgd(model, x, y, norm=2, **more, **settings)
        kept[array(steps)] = (~found.success).cpu().numpy()
        start, done = found.x_adv, steps
    return Outcome({name: 100.0 * float(one.mean()) for name, one in kept.items()}, arrays=kept)


def _counts(kind: str) -> dict[str, dict]:
    images, few = {"quick": 10, "laptop": 1000, "paper": 10_000}, (10, 20, 50)
    return {
        scale: {"images": n, "eps": EPS[kind], "steps": list(few if scale == "quick" else STEPS)}
        for scale, n in images.items()
    }


for name, kind, scales in ((NAME, "MLP", ("quick", "laptop", "paper")), (OF_CNN, "CNN", ("quick", "paper"))):
    register(
        Experiment(
            name=name,
            title="The paper's attack with more steps",
            source="AMR, appendix F",
            rows={row: {"trained": net.trained(), "counts": _counts(kind)} for row, net in NETS.items() if kind in row},
            scales={scale: {} for scale in scales},
            seeds=networks.SEEDS,
            run=run(NETS, attacked),
            revisions=REVISIONS | {"more-steps": 1},
            minutes={"quick": 0.1, "laptop": 3},
        )
    )
