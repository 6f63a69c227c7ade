r"""Decide from the recorded operations whether a layer's Hessian block is its Gauss–Newton block.

The proposition (curvature chapter) asks three things of the graph between the layer's
pre-activation z and the outputs f: every operation on the way is piecewise linear in what depends
on z; a product has at most one factor that depends on z; and no input of the weight depends on
the weight. Autograd has recorded exactly this graph, so it is read there, not from the list of
modules: a functional GELU or a gate x·σ(x) shows up like any other. An operation that is not on
the list counts as not piecewise linear: unknown means not exact.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

Node = Any  # torch.autograd.graph.Node, whose attributes differ by operation

# Operations that are linear in all their differentiable operands jointly.
_LINEAR = frozenset(
    """
    Add Sub Rsub Neg Sum Mean View UnsafeView ReshapeAlias Reshape Transpose T Mt Permute Squeeze
    Unsqueeze Expand Repeat RepeatInterleave Select Slice Index IndexSelect Gather Cat Stack Split
    SplitWithSizes Unbind Clone Alias AsStrided ToCopy ConstantPadNd ReflectionPad1D
    ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D AvgPool2D
    AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D UpsampleNearest1D
    UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D UpsampleTrilinear3D
    Cumsum Roll Flip Diagonal Trace Tril Triu MaskedFill Where Unfold Im2Col Col2Im PixelShuffle
    PixelUnshuffle
    """.split()
)

# Operations that are piecewise linear in their operands jointly, with finitely many pieces.
_PIECEWISE_LINEAR = frozenset(
    """
    Relu LeakyRelu Threshold Hardtanh Hardsigmoid Softshrink Hardshrink Abs RreluWithNoise
    MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D Max Min Amax Amin
    Maximum Minimum Clamp ClampMin ClampMax Sort Topk Kthvalue Median
    """.split()
)

_ALWAYS = _LINEAR | _PIECEWISE_LINEAR

# Products, with the positions of their factors among the recorded operands. At most one factor may
# depend on z. An operand at any other position is a summand.
_PRODUCT_FACTORS = {
    "Mul": (0, 1),
    "Mm": (0, 1),
    "Bmm": (0, 1),
    "Mv": (0, 1),
    "Dot": (0, 1),
    "Addmm": (1, 2),
    "Addmv": (1, 2),
    "Addbmm": (1, 2),
    "Baddbmm": (1, 2),
    "Addcmul": (1, 2),
    "Convolution": (0, 1),
    "MkldnnConvolution": (0, 1),
    "Linear": (0, 1),
    "PreluKernel": (0, 1),
}

# Batch normalisation by frozen statistics multiplies its input by its scale and adds its shift. At
# most one of the two factors may depend on z.
_BATCH_NORM = frozenset({"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"})


def operation_name(node: Node) -> str:
    """Return the operation of a graph node without autograd's suffix, ``"Relu"``.

    A hand-written ``autograd.Function`` has no number in its suffix and keeps it, so that a
    function that happens to be called Relu is not taken for the real one.
    """
    return _without_suffix(node.name())


@functools.cache
def _without_suffix(name: str) -> str:
    return re.sub(r"Backward\d+$", "", name)


class RecordedGraph:
    """The operations autograd recorded on the way to some outputs.

    Parameters
    ----------
    output : Node or None
        ``outputs.grad_fn``; None where they depend on nothing that records gradients.
    """

    def __init__(self, output: Node) -> None:
        self.consumers: dict[Node, list[Node]] = {} if output is None else {output: []}
        stack = list(self.consumers)
        while stack:
            node = stack.pop()
            for operand, _ in node.next_functions:
                if operand is None:
                    continue
                if operand not in self.consumers:
                    self.consumers[operand] = []
                    stack.append(operand)
                self.consumers[operand].append(node)
        # Operations that need a closer look. ``consumers`` lists nodes from the outputs inwards, so
        # the reversed order begins near the layers, and the obstacle nearest to one is reported.
        self._doubtful = [
            node for node in reversed(self.consumers) if operation_name(node) not in _ALWAYS
        ]

    def dependents(self, sources: Iterable[Node], avoiding: Iterable[Node] = ()) -> set[Node]:
        """Return the nodes that depend on one of the sources, the sources included.

        Dependence that runs through one of the nodes in ``avoiding`` does not count.
        """
        avoided = set(avoiding)
        dependent = {node for node in sources if node in self.consumers}
        stack = list(dependent)
        while stack:
            for consumer in self.consumers[stack.pop()]:
                if consumer not in dependent and consumer not in avoided:
                    dependent.add(consumer)
                    stack.append(consumer)
        return dependent

    def obstacle(self, preactivations: Sequence[Node]) -> str | None:
        """Name the first operation that breaks piecewise linearity in the pre-activations.

        Parameters
        ----------
        preactivations : sequence of Node
            Operations ``z.grad_fn`` that made the pre-activations, for every use of the layer.

        Returns
        -------
        str or None
            Clause that names the operation; None where everything up to the outputs is piecewise
            linear.
        """
        sources = set(preactivations)
        dependent = self.dependents(sources)
        for node in self._doubtful:
            if node in dependent and node not in sources:
                reason = _operation_obstacle(node, dependent)
                if reason is not None:
                    return reason
        return None


def _operation_obstacle(node: Node, dependent: set[Node]) -> str | None:
    name = operation_name(node)
    depends = [operand in dependent for operand, _ in node.next_functions]
    if name in _PRODUCT_FACTORS:
        factors = [k for k in _PRODUCT_FACTORS[name] if k < len(depends) and depends[k]]
        if len(factors) > 1:
            return f"{name} multiplies two factors that depend on the layer"
        return None
    if name == "Div":
        if len(depends) > 1 and depends[1]:
            return "Div divides by something that depends on the layer"
        return None
    if name in _BATCH_NORM:
        if node._saved_training:
            return f"{name} normalises by the statistics of the batch"
        if sum(depends) > 1:
            return f"{name} multiplies two factors that depend on the layer"
        return None
    return f"{name} is not known to be piecewise linear"


def block_obstacle(
    graph: RecordedGraph, weight: Tensor, inputs: Sequence[Node], preactivations: Sequence[Node]
) -> str | None:
    """Return why a layer's block may differ from its Hessian block, None if it cannot.

    Parameters
    ----------
    graph : RecordedGraph
        Graph of the outputs.
    weight : Tensor
        Weight of the layer, a leaf.
    inputs, preactivations : sequence of Node
        Operations that made the input of each call of the layer, and the pre-activation.
    """
    depends_on_weight = graph.dependents([get_gradient_edge(weight).node])
    if any(node in depends_on_weight for node in inputs):
        return "an input of the layer depends on the layer's own weight"
    return graph.obstacle(preactivations)
