"""Second derivatives that are missing or wrong, refused by one sentence.

PyTorch raises where an operation has no second derivative, and only then. A custom Function whose
backward pass computes outside of autograd's sight has a second derivative that is wrong, often
zero, without an error; the difference of two gradients shows it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable

from paperkit.curvature.jacobian_products import reverse_pass
from paperkit.network.evaluation import evaluation
from paperkit.network.losses import Loss
from paperkit.network.network import Network, displaced, network_outputs
from paperkit.network.problem import smallest_batch
from paperkit.network.samples import Inputs, Samples


class SecondDerivativeError(ValueError):
    """The model has no second derivative, or one that is not that of the first.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import dense_hessian
    >>> class Hinge(nn.Linear):
    ...     def forward(self, x):
    ...         loss = nn.MultiMarginLoss(reduction="none")
    ...         return loss(super().forward(x), torch.tensor([0, 1])).unsqueeze(1)
    >>> dense_hessian(Hinge(2, 2), torch.eye(2), torch.ones(2, 1), "mse")
    Traceback (most recent call last):
        ...
    paperkit.curvature.second_derivatives.SecondDerivativeError: model: multi_margin_loss has no
        second derivative in PyTorch, which the Hessian needs: replace it by (1 - f_target +
        f).clamp(min=0) summed over the other classes.
    """


# Replacements for operations without a second derivative, by a part of their name in PyTorch's
# errors.
_ADVICE = {
    "hardsigmoid": "relu6(x + 3) / 6",
    "embedding_bag": "nn.Embedding and a sum or mean over each bag",
    "scaled_dot_product": "softmax(q @ k.mT / sqrt(d)) @ v",
    "attention": "softmax(q @ k.mT / sqrt(d)) @ v",
    "segment_reduce": "zeros.index_add(0, segments, x)",
    "rnn": "the same layer outside of cuDNN (torch.backends.cudnn.flags(enabled=False))",
    "lstm": "the same layer outside of cuDNN (torch.backends.cudnn.flags(enabled=False))",
    "gru": "the same layer outside of cuDNN (torch.backends.cudnn.flags(enabled=False))",
    "weight_norm": "v * (g / torch.norm_except_dim(v))",
    "multi_margin": "(1 - f_target + f).clamp(min=0) summed over the other classes",
    "multilabel_margin": "the hinge written with clamp(min=0)",
    "ctc_loss": "its recursion written with logsumexp",
    "cdist": "(x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt()",
}

_MISSING = re.compile(r"derivative for '?(?:aten::)?_*(\w+?)(?:_backward)?'? is not implemented")


@contextmanager
def missing_refused(custom: Sequence[str] = ()) -> Iterator[None]:
    """Name the operation where a second derivative is missing.

    Parameters
    ----------
    custom : sequence of str
        Names of the custom Functions in the graph.

    Raises
    ------
    SecondDerivativeError
        With one sentence, in place of PyTorch's error.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        sentence = _explain(str(error), custom)
        if sentence is None:
            raise
        raise SecondDerivativeError(sentence) from error


def _explain(message: str, custom: Sequence[str]) -> str | None:
    match = _MISSING.search(message)
    if match:
        name = match.group(1)
        advice = next(
            (advice for part, advice in _ADVICE.items() if part in name),
            "operations that have one",
        )
        return (
            f"model: {name} has no second derivative in PyTorch, which the Hessian needs: replace "
            f"it by {advice}."
        )
    if "once_differentiable" in message:
        return _marked_sentence(custom)
    if "does not currently support double backward" in message:
        return (
            "model: a compiled part has no second derivative: pass the model that was compiled, "
            "without torch.compile inside."
        )
    return None


def _marked_sentence(names: Sequence[str]) -> str:
    return (
        f"model: the backward pass of {_listed(names)} is marked once_differentiable, but the "
        "Hessian needs its derivative: write it with differentiable operations and remove the mark."
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"the custom Function{'s' if len(names) > 1 else ''} {shown}" if names else "a Function"


def custom_functions(outputs: Tensor) -> dict[str, bool]:
    """Return the names of the custom Functions in the graph of some outputs.

    The value of each name says whether its backward pass is marked once_differentiable. PyTorch
    raises at such a mark only where the way to a parameter leads through it. Elsewhere the
    derivative is zero without an error.
    """
    stack = [outputs.grad_fn] if outputs.grad_fn is not None else []
    visited = set(stack)
    functions = {}
    while stack:
        node = stack.pop()
        if isinstance(node, BackwardCFunction) or "CppNode" in node.name():
            functions[re.sub(r"Backward$", "", node.name())] = _is_marked(node)
        for operand, _ in node.next_functions:
            if operand is not None and operand not in visited:
                visited.add(operand)
                stack.append(operand)
    return functions


def _is_marked(node: Any) -> bool:
    backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
    code = getattr(backward, "__code__", None)
    return code is not None and code.co_filename == once_differentiable.__code__.co_filename


def refuse_wrong_second_derivative(
    network: Network, inputs: Inputs, targets: Tensor, loss: Loss, names: Sequence[str]
) -> None:
    """Raise if the Hessian is not the derivative of the gradient, on a pair of samples.

    PyTorch's own operations are compared once and for all, in the tests. The check serves custom
    Functions, and costs nothing where there are none. If the model can, the check runs in float64.

    Parameters
    ----------
    network : Network
        Model to check.
    inputs, targets : Tensor or Samples, Tensor
        Samples from which a pair is taken.
    loss : Loss
        Loss of the outputs.
    names : sequence of str
        Names of the parameters in which the Hessian is needed.

    Raises
    ------
    SecondDerivativeError
        A ValueError that names the custom Functions.
    """
    with evaluation(network, names) as parameters:
        samples = smallest_batch(network, parameters, inputs)
        labels = targets[: len(samples)]
        leaves = {name: parameters[name] for name in names}
        functions = custom_functions(network_outputs(network, leaves, samples))
        if not functions:
            return
        custom = sorted(functions)

        def differs(samples: Inputs, labels: Tensor) -> bool:
            return _differs(network, leaves, samples, labels, loss)

        with missing_refused(custom):
            try:
                with _in_double(network):
                    wrong = differs(*_double(samples, labels))
            except SecondDerivativeError:
                raise
            except Exception as error:
                if _explain(str(error), custom) is not None:
                    raise
                wrong = differs(samples, labels)  # parts of the model insist on another precision
    if not wrong:
        return
    marked = [name for name in custom if functions[name]]
    if marked:
        raise SecondDerivativeError(_marked_sentence(marked))
    raise SecondDerivativeError(
        f"model: the second derivative of {_listed(custom)} is not that of the first, so the "
        "Hessian would be wrong: write the backward pass with differentiable operations on tensors "
        "from ctx.saved_tensors, without detach, .data, NumPy or no_grad."
    )


def _double(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
    def convert(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    samples = inputs.map(convert) if isinstance(inputs, Samples) else convert(inputs)
    return samples, convert(targets)


@contextmanager
def _in_double(model: nn.Module) -> Iterator[None]:
    """Let parameters and buffers hold float64 copies meanwhile."""
    saved = []
    try:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point() and tensor.dtype != torch.float64:
                saved.append((tensor, tensor.data))
                tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, data in saved:
            tensor.data = data


def _differs(
    network: Network, leaves: dict[str, Tensor], inputs: Inputs, targets: Tensor, loss: Loss
) -> bool:
    """Whether a Hessian product differs from differences of gradients by more than their errors."""
    values = list(leaves.values())
    eps = torch.finfo(values[0].dtype).eps
    generator = torch.Generator(device="cpu").manual_seed(0)
    direction = {
        name: torch.randn(leaf.shape, generator=generator, device="cpu").to(leaf)
        for name, leaf in leaves.items()
    }
    length = _norm(direction.values())
    size = max(_norm(values), eps * length)

    def gradient(step: float, **options: bool) -> tuple[Tensor, ...]:
        values_there = {
            name: leaf.detach() + step * direction[name] for name, leaf in leaves.items()
        }
        with displaced(leaves, values_there):
            outputs = network_outputs(network, leaves, inputs)
            residuals = loss.gradient(outputs, targets)
            return reverse_pass([outputs], values, [residuals], **options)

    at_point = gradient(0.0, create_graph=True)
    product = _flat(reverse_pass(at_point, values, list(direction.values())))
    return _disagree(
        lambda step: _flat(gradient(step)),
        _flat(at_point),
        product,
        [eps ** (1 / 3) * size / length / factor for factor in (1, 2, 4)],
        10 * eps ** (1 / 3),
    )


def _disagree(
    gradient: Callable[[float], Tensor],
    at_point: Tensor,
    product: Tensor,
    steps: Sequence[float],
    tolerance: float,
) -> bool:
    """Whether differences of the gradient agree with each other, but not with the product.

    A difference over a step is wrong by round-off, by higher derivatives, and by a kink of the
    gradient within the step. All three depend on the step, so differences over several steps show
    them. A kink of the second derivative at the very point, as an ELU has at zero, shows as a
    difference between the two sides.
    """
    central, sides = [], []
    for step in steps:
        after, before = gradient(step), gradient(-step)
        central.append((after - before) / (2 * step))
        sides.append(((after - at_point) - (at_point - before)) / step)
    errors = [(a - b).norm() for a, b in itertools.combinations(central, 2)]
    error = torch.stack([*errors, sides[-1].norm()]).max()
    miss = torch.stack([(difference - product).norm() for difference in central]).min()
    scale = product.norm() + central[0].norm()
    return bool((miss > 10 * error) & (miss > tolerance * scale))


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().flatten().double() for part in parts])


def _norm(parts: object) -> float:
    return float(torch.stack([part.detach().double().norm() for part in parts]).norm())  # type: ignore[attr-defined]
