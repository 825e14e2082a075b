"""Whether a model is linear but for kinks, as the graph of one of its forwards says."""

import math

from torch import Tensor

#: Backwards of operations that are piecewise linear in the inputs that depend on x, by name: in how many at once.
#: A product is linear in one of its factors as long as the others are constants or weights.
LINEAR = {
    **dict.fromkeys(("AddmmBackward0", "MmBackward0", "BmmBackward0", "ConvolutionBackward0", "MulBackward0"), 1),
    **dict.fromkeys(("ReluBackward0", "LeakyReluBackward0", "HardtanhBackward0", "ThresholdBackward0"), 1),
    **dict.fromkeys(("MaxPool2DWithIndicesBackward0", "AvgPool2DBackward0", "MeanBackward1", "SumBackward1"), 1),
    **dict.fromkeys(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "TBackward0"), 1),
    **dict.fromkeys(("TransposeBackward0", "SqueezeBackward1", "SelectBackward0", "SliceBackward0"), 1),
    **dict.fromkeys(("CloneBackward0", "AliasBackward0", "ConstantPadNdBackward0"), 1),
    **dict.fromkeys(("AddBackward0", "SubBackward0", "CatBackward0"), math.inf),
}


def piecewise_linear(output: Tensor, x: Tensor) -> bool:
    """Whether an output with a graph to the leaf x surely depends on it through linear operations and kinks alone.

    Linear are those in LINEAR, and BatchNorm with running statistics; False of any other.
    """
    if not x.is_leaf:
        return False
    depends: dict[object, bool] = {}  # whether on x
    waiting = [] if output.grad_fn is None else [output.grad_fn]
    while waiting:
        node = waiting[-1]
        inputs = [before for before, _ in node.next_functions if before is not None]
        unknown = [before for before in inputs if before not in depends]
        if unknown:
            waiting += unknown
            continue
        waiting.pop()
        count = sum(depends[before] for before in inputs)
        running = node.name().endswith("BatchNormBackward0") and not node._saved_training
        if count > (1 if running else LINEAR.get(node.name(), 0)):
            return False
        depends[node] = count > 0 or getattr(node, "variable", None) is x
    return True
