"""Any function of outputs and targets as a loss, its derivatives by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override

from paperkit.network.losses.base import Loss, Targets, refuse_negative

# Largest number of targets on which a function is tried.
_MOST_TRIED = 48
# Largest relative difference, by round-off, between the mean over samples and the mean of values on
# each sample alone.
_TOLERANCE = 1e-6


class _InDouble(TorchFunctionMode):
    """Convert all operands to double precision where a function mixes it with a narrower format.

    Outputs come in double precision, and a function may have weights of its own in another format.
    """

    def __torch_function__(
        self,
        function: Callable,
        types: object,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        operands = (args, dict(kwargs or {}))
        kinds = {part.dtype for part in tree_leaves(operands) if isinstance(part, Tensor)}
        if torch.float64 in kinds and kinds & {torch.float32, torch.float16, torch.bfloat16}:
            operands = tree_map_only(Tensor, _widened, operands)
        return function(*operands[0], **operands[1])


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


@dataclass(frozen=True, eq=False)
class GeneralLoss(Loss):
    """Any function of outputs and targets that is a mean over samples, by autograd.

    The function is called with the model's outputs for some samples, in double precision, and their
    targets; integer targets come as int64.

    Attributes
    ----------
    function : callable
        ``(outputs, targets) -> scalar``.
    shape : tuple of int or None
        Shape of the model's output for a sample; None until it is known.
    target : tuple or None
        Shape and dtype of a sample's target; None until they are known.
    obstacle : str or None
        Reason why PyTorch has no second derivative of it, as far as is known.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...] | None = None
    target: tuple[tuple[int, ...], torch.dtype] | None = None
    obstacle: str | None = None
    reduction: str = "as the function itself, a mean over samples"

    def _total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over samples as a function of the float64 outputs (n, C)."""
        shaped = outputs if self.shape is None else outputs.reshape(len(outputs), *self.shape)
        with _InDouble():
            return (len(outputs) * self.function(shaped, targets)).reshape(())

    def _operands(self, outputs: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        if targets is None:
            raise ValueError(f"targets=None: the derivatives of loss={self.name} need them.")
        return outputs.to(torch.float64), targets.to(_kind(targets))

    @override
    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._total(*self._operands(outputs, targets)) / len(outputs)

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        f, y = self._operands(outputs, targets)
        pairs = zip(f.split(1), y.split(1), strict=True)
        return torch.stack([self._total(output, target) for output, target in pairs])

    def _gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of the sum, differentiable in the outputs if these record."""
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(outputs)
        if self.obstacle is not None and (wrapped or outputs.requires_grad):
            raise ValueError(
                f"loss={self.name} has no second derivative in PyTorch ({self.obstacle}): write "
                "it out in elementary operations."
            )
        if wrapped:
            return torch.func.grad(lambda f: self._total(f, targets))(outputs)
        # Plain autograd also differentiates operations that torch.func does not support.
        with torch.enable_grad():
            recorded = outputs.requires_grad
            leaf = outputs if recorded else outputs.detach().requires_grad_()
            total = self._total(leaf, targets)
            if not total.requires_grad:
                return 0.0 * outputs
            (gradient,) = torch.autograd.grad(
                total, leaf, create_graph=recorded, materialize_grads=True, allow_unused=True
            )
        # The gradient of a loss that is affine in the outputs is a constant without a graph. Adding
        # a zero that depends on the outputs gives it one.
        return gradient if gradient.requires_grad or not recorded else gradient + 0.0 * outputs

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._gradient(*self._operands(outputs, targets)).to(outputs.dtype)

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        f, y = self._operands(outputs, targets)
        # Samples do not interact in the loss, so the Hessian of the sum has one block for each.
        rows = changes.to(torch.float64).reshape(-1, *f.shape)
        if torch._C._functorch.is_functorch_wrapped_tensor(f):
            pull_back = torch.func.vjp(lambda g: self._gradient(g, y), f)[1]
            product = torch.stack([pull_back(row)[0] for row in rows])
        else:
            product = self._products(f.detach(), y, rows)
        return product.reshape(changes.shape).to(changes.dtype)

    def _products(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.requires_grad_()
            gradient = self._gradient(leaf, targets)
        products = [
            torch.autograd.grad(
                gradient, leaf, row, retain_graph=True, materialize_grads=True, allow_unused=True
            )[0]
            for row in rows
        ]
        return torch.stack(products)

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        f, y = self._operands(outputs, targets)
        units = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
        columns = units.unsqueeze(1).expand(-1, len(f), -1)
        hessian = self.hessian_product(f, columns, y).movedim(0, 1)
        if not bool(torch.isfinite(hessian).all()):
            raise ValueError(f"loss={self.name} has an infinite or undefined second derivative.")
        values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.transpose(1, 2)))
        refuse_negative(values, self.name)
        root = values.clamp(min=0.0).sqrt()
        return (root.unsqueeze(-1) * vectors.transpose(1, 2)).to(outputs.dtype)

    @override
    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        return self.shape is None

    @override
    def bound(self, sample: Tensor, targets: Targets) -> Loss:
        examples = _choose_examples(targets())
        kind = tuple(examples.shape[1:]), _kind(examples)
        bound = replace(self, shape=tuple(sample.shape[1:]), target=kind)
        outputs = sample.detach().flatten(1)
        outputs = outputs[torch.arange(len(examples), device=outputs.device) % len(outputs)]
        operands = bound._operands(outputs, examples)
        bound._refuse_other_means(*operands)
        try:
            bound._products(*operands, torch.zeros_like(operands[0]).unsqueeze(0))
        except RuntimeError as error:
            return replace(bound, obstacle=str(error).split("\n")[0].rstrip("."))
        return bound

    def _refuse_other_means(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise if the function is no mean over samples whose graph autograd can follow."""
        shaped = outputs.reshape(len(outputs), *(self.shape or ()))
        try:
            with _InDouble():
                result = self.function(shaped, targets)
        except Exception as error:
            raise ValueError(
                f"loss={self.name} fails on outputs of shape {tuple(shaped.shape)} in double "
                f"precision and targets of shape {tuple(targets.shape)}: {error}"
            ) from error
        if not isinstance(result, Tensor) or result.numel() != 1:
            kind = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"loss={self.name} returns {kind}: it must return a tensor of one number, the "
                "mean over samples."
            )
        together = float(result.detach())
        if together != together or together in (float("inf"), -float("inf")):
            raise ValueError(
                f"loss={self.name} is {together} on these outputs and targets: see whether it "
                "wants other ones, such as probabilities."
            )
        if float(self.value(outputs, targets).detach()) != together:
            raise ValueError(
                f"loss={self.name} gives another value when called again: it draws random numbers "
                "or keeps a state; fix both."
            )
        try:
            alone = self.sample_losses(outputs, targets).detach()
        except Exception as error:
            raise ValueError(
                f"loss={self.name} takes several samples but not one, so it is no mean over "
                f"samples: {error}"
            ) from error
        scale = float(alone.abs().mean()) + 1e-300
        if not abs(float(alone.mean()) - together) <= _TOLERANCE * scale:
            raise ValueError(
                f"loss={self.name} is no mean over samples: on {len(outputs)} samples it is "
                f"{together:.6g}, the mean of its values on each alone "
                f"{float(alone.mean()):.6g}; divide a sum by the number of samples, and pass "
                "class weights and ignored labels by torch.nn.CrossEntropyLoss."
            )
        self._refuse_cut(outputs, targets, alone)

    def _refuse_cut(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> None:
        """Raise if the function depends on the outputs and autograd does not see how."""
        gradient = self._gradient(outputs, targets)
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                f"loss={self.name} has an infinite or undefined gradient in these outputs."
            )
        if bool(gradient.any()):
            return
        # A zero gradient with a graph is right for a step function, which a small move of the
        # outputs leaves unchanged. Without a graph, a large move must leave the losses unchanged
        # too.
        graph = self._total(outputs.detach().requires_grad_(), targets).requires_grad
        elsewhere = 1.0001 * outputs + 1e-4 if graph else outputs.flip(-1) + 1.0
        moved = self.sample_losses(elsewhere, targets).detach()
        if not torch.allclose(moved, losses, rtol=1e-9, atol=0.0):
            raise ValueError(
                f"loss={self.name} depends on the outputs, but no gradient reaches them: it cuts "
                "the graph (detach, item, NumPy, argmax); write it in differentiable operations."
            )

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if len(targets) != len(outputs):
            raise ValueError(f"targets has {len(targets)} entries for {len(outputs)} samples.")
        kind = tuple(targets.shape[1:]), _kind(targets)
        if self.target is not None and kind != self.target:
            raise ValueError(
                f"targets of a sample have shape {kind[0]} and {kind[1]}, and {self.target[0]} and "
                f"{self.target[1]} in the first batch: pass the same in every batch."
            )


def _kind(targets: Tensor) -> torch.dtype:
    """Return the dtype in which the function gets targets."""
    if targets.is_floating_point():
        return torch.float64
    return targets.dtype if targets.dtype == torch.bool or targets.is_complex() else torch.int64


def _choose_examples(targets: Iterable[Tensor]) -> Tensor:
    """Choose targets that a function treats differently, if it treats any targets differently.

    Targets with the smallest and largest entries and sums are chosen, and as many distinct others
    as fit.
    """
    chosen: Tensor | None = None
    for part in targets:
        distinct = _distinct(part)
        chosen = (
            distinct
            if chosen is None or chosen.shape[1:] != distinct.shape[1:]
            else torch.cat([chosen, distinct])
        )
        chosen = _distinct(chosen)
    assert chosen is not None  # an empty stream is refused where it is read
    return chosen


def _distinct(targets: Tensor) -> Tensor:
    rows = targets.reshape(len(targets), -1)
    if rows.shape[1] == 1 and not targets.is_floating_point():
        # The first target of each label; the smallest and largest labels if there are too many.
        labels, place = rows[:, 0].unique(return_inverse=True)
        order = torch.arange(len(rows), device=rows.device)
        first = torch.zeros_like(labels, dtype=torch.int64).scatter_(
            0, place.flip(0), order.flip(0)
        )
        ends = first[: _MOST_TRIED // 2], first[-(_MOST_TRIED // 2) :]
        return targets[torch.cat(ends).unique()] if len(first) > _MOST_TRIED else targets[first]
    numbers = (rows.real if rows.is_complex() else rows).to(torch.float64)
    ranked = (numbers.amin(dim=1), numbers.amax(dim=1), numbers.sum(dim=1))
    extremes = [place for key in ranked for place in (int(key.argmin()), int(key.argmax()))]
    step = max(1, len(targets) // (_MOST_TRIED - len(extremes)))
    return targets[sorted({*extremes, *range(0, len(targets), step)})[:_MOST_TRIED]]
