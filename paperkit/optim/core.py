r"""The core that all optimizers share: several gradients a step, taken without leaving a trace.

A sharpness-aware step asks for the gradient of the same batch at several points. Each optimizer
writes its step as a generator, :meth:`MultiPassOptimizer._passes`: it starts when the gradient at
the present weights is known, moves the weights, and at each ``yield`` asks for the gradient there.
The same generator serves ``step(closure)``, where the closure is called again for each ``yield``,
and ``first_step()`` and ``second_step()``, where the caller runs the passes. Whatever the method,
the core sees to it that

* weights come back from a copy, bit for bit, also when the closure raises;
* all passes draw the same random numbers, and the generators end where a single pass leaves them;
* buffers (running statistics of batch normalisation) keep the values that the first pass wrote;
* a loss scaled by a ``GradScaler`` is unscaled in each pass, and an overflow in any skips the step;
* the step is decided by a single read from the device, at its end.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from paperkit import arguments
from paperkit.optim.modules import BufferSnapshot, modules_around, refuse_sharded
from paperkit.optim.replay import RandomState
from paperkit.optim.vector import Vector

Closure = Callable[[], Any]
Passes = Iterator[None]


@dataclass(frozen=True)
class StepRecord:
    """Numbers of a step, as logged with ``log=True``.

    Attributes
    ----------
    step : int
        Number of the step, from 0; skipped steps count.
    gradient_norm : float
        Norm ‖g‖ of the gradient of the first pass, over all parameters with a gradient.
    perturbation_norm : float
        Norm ‖ε‖ of the perturbation; 0 in a step of the base optimizer alone.
    cosine : float
        Cosine of the angle between ε and g; NaN where one of them is zero.
    regularizer : float
        First-order change gᵀε of the loss by the perturbation, unless the optimizer says otherwise.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import SAM
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = SAM([w], rho=0.5, lr=0.1, log=True)
    >>> for move in (optimizer.first_step, optimizer.second_step):
    ...     (0.5 * w.square().sum()).backward()
    ...     move()
    >>> record = optimizer.log[0]
    >>> round(record.gradient_norm, 4), round(record.perturbation_norm, 4), round(record.cosine, 4)
    (5.0, 0.5, 1.0)
    >>> round(record.regularizer, 4)  # gᵀε = ρ ‖g‖
    2.5
    """

    step: int
    gradient_norm: float
    perturbation_norm: float
    cosine: float
    regularizer: float


class _UnscaledPass:
    """A stand-in for the optimizer in a single pass.

    A gradient scaler unscales each optimizer once per update, and a step has several passes. So
    every pass hands it an object of its own.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups


class MultiPassOptimizer(Optimizer, ABC):
    """An optimizer whose step takes the gradient of one batch at several points.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups, as for every optimizer of PyTorch.
    defaults : dict
        Options that a group may set for itself, with their defaults.
    max_norm : float, optional
        Largest norm, over all parameters, of the gradient that the step follows; a longer one is
        scaled down. Gradients that only place the perturbation stay as they are.
    log : bool
        Whether each step appends a :class:`StepRecord` to :attr:`log`.

    Attributes
    ----------
    gradient_evaluations : int
        Number of gradients of a batch that were taken so far.
    skipped_steps : int
        Number of steps that were not taken because a gradient was not finite. Weights and state
        stay; the generators and the running statistics go on as after a single pass.
    log : list of StepRecord or None
        Records of all steps; None unless asked for.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import MultiPassOptimizer
    >>> class Extragradient(MultiPassOptimizer):
    ...     def _passes(self):
    ...         self._move_by(self._gradient() * -0.1)  # look ahead,
    ...         yield  # ask for the gradient there,
    ...         self._restore_weights()
    ...         self._finish([])  # and follow it from here
    ...     def _descend(self):
    ...         torch._foreach_add_(self._active_parameters(), self._gradient().tensors, alpha=-0.1)
    >>> w = torch.nn.Parameter(torch.tensor(1.0))
    >>> optimizer = Extragradient([w], {})
    >>> (0.5 * w.square()).backward()
    >>> optimizer.first_step()
    >>> (0.5 * w.square()).backward()
    >>> optimizer.second_step()
    >>> w.detach()  # 1 − 0.1 (1 − 0.1)
    tensor(0.9100)
    """

    # State of the step that is being taken: its generator, its parameters with a gradient, copies
    # of their values and of the buffers, the number of the pass, and the numbers for the log.
    _running: Passes | None
    _active: list[Tensor] | None
    _saved: list[Tensor] | None
    _buffers: BufferSnapshot | None
    _pass_number: int
    _logged: tuple[Tensor, ...]

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        max_norm: float | None = None,
        log: bool = False,
    ) -> None:
        if max_norm is not None:
            max_norm = arguments.number("max_norm", max_norm, above=0, finite=False)
        self.max_norm = max_norm
        self.gradient_evaluations = 0
        self.steps = 0
        self.skipped_steps = 0
        self.log: list[StepRecord] | None = [] if arguments.flag("log", log) else None
        self._modules_found: list[nn.Module] | None = None
        self._unscaled: list[_UnscaledPass] = []
        self._forget_step()
        super().__init__(_check_parameters(params), defaults)

    # -- the step --------------------------------------------------------------------------------

    @abstractmethod
    def _passes(self) -> Passes:
        """Start with the first gradient in ``.grad``; yield where another one is needed."""

    def step(self, closure: Closure | None = None, *, scaler: GradScaler | None = None) -> Any:
        """Take one step.

        Parameters
        ----------
        closure : callable
            Function that zeroes the gradients, computes the loss of the batch (over all
            micro-batches where gradients are accumulated), calls ``backward`` and returns the loss;
            called once for each gradient evaluation, with the same random numbers.
        scaler : torch.amp.GradScaler, optional
            Scaler with which the closure scales its loss. Call ``scaler.update()`` after the step
            as usual; ``scaler.step`` is not needed.

        Returns
        -------
        object
            Value that the closure returned at the present weights.

        Raises
        ------
        TypeError, ValueError
            If there is no closure, or it cannot be called, or the scaler is none.
        RuntimeError
            If a step begun with :meth:`first_step` is open.
        """
        if closure is None:
            raise ValueError(
                "step needs a closure that zeroes the gradients, computes the loss, calls backward "
                "and returns the loss; for a loop by hand call first_step() and second_step()."
            )
        arguments.function("closure", closure, "a function without arguments")
        _check_scaler(scaler)
        self._refuse_open_step()
        random_state = RandomState(parameter.device for parameter in self._parameters())
        try:
            loss = self._first_pass(closure)
            self._running = self._passes() if self._perturbs_now() else self._single_pass()
            while self._advance(scaler):
                with random_state.replayed():
                    self._later_pass(closure)
        except BaseException:
            self.restore()
            raise
        return loss

    def first_step(self, *, scaler: GradScaler | None = None) -> None:
        """Move the weights to where the second gradient is taken, in a loop written by hand.

        Call it after the first backward pass; then compute the loss of the same batch again, call
        ``backward`` and :meth:`second_step`. Gradients are cleared. For dropout masks that are
        equal in both passes keep a :class:`~paperkit.optim.RandomState`.

        Parameters
        ----------
        scaler : torch.amp.GradScaler, optional
            As in :meth:`step`.

        Raises
        ------
        RuntimeError
            If the last step was not finished with :meth:`second_step` or :meth:`restore`.
        """
        _check_scaler(scaler)
        self._refuse_open_step()
        self._running = self._passes() if self._perturbs_now() else self._repeated_pass()
        try:
            self._advance(scaler)
        except BaseException:
            self.restore()
            raise
        self.zero_grad()

    def second_step(self, *, scaler: GradScaler | None = None) -> None:
        """Restore the weights and take the step that :meth:`first_step` began.

        Parameters
        ----------
        scaler : torch.amp.GradScaler, optional
            As in :meth:`step`.

        Raises
        ------
        RuntimeError
            If there was no :meth:`first_step`.
        """
        _check_scaler(scaler)
        if self._running is None:
            raise RuntimeError("second_step() follows first_step() and a second backward pass.")
        try:
            self._advance(scaler)
        except BaseException:
            self.restore()
            raise
        self._opt_called = True  # learning-rate schedulers check this flag

    def restore(self) -> None:
        """Give up a begun step: put weights and buffers back as they were before it."""
        self._restore_weights()
        if self._buffers is not None:
            self._buffers.restore()
        self._forget_step()

    def _perturbs(self) -> bool:
        """Whether the next step asks for more than the gradient at the present weights."""
        return True

    def _perturbs_now(self) -> bool:
        return self._perturbs() and bool(self._active_parameters())

    def _single_pass(self) -> Passes:
        if self._active_parameters():
            gradient = self._gradient()
            self._record(gradient)
            self._finish([])
        yield from ()

    def _repeated_pass(self) -> Passes:
        yield
        self._active = None
        yield from self._single_pass()

    def _first_pass(self, closure: Closure) -> Any:
        return self._call(closure)

    def _later_pass(self, closure: Closure) -> None:
        self._call(closure)

    def _call(self, closure: Closure) -> Any:
        # An autocast region caches the casts of the weights until it ends. If the caller has one
        # open, a pass at moved weights would read the casts of the unmoved ones.
        torch.clear_autocast_cache()
        with torch.enable_grad():
            return closure()

    def _advance(self, scaler: GradScaler | None) -> bool:
        """Hand a new gradient to the step; return whether it asks for another one."""
        assert self._running is not None
        self.gradient_evaluations += 1
        self._unscale(scaler)
        with torch.no_grad():
            for _ in self._running:
                if self._buffers is None:
                    self._buffers = BufferSnapshot(self._modules())
                return True
        if self._buffers is not None:
            self._buffers.restore()
        self._forget_step()
        return False

    def _unscale(self, scaler: GradScaler | None) -> None:
        if scaler is None:
            return
        if self._pass_number == len(self._unscaled):
            self._unscaled.append(_UnscaledPass(self))
        scaler.unscale_(cast(Optimizer, self._unscaled[self._pass_number]))
        self._pass_number += 1

    def _forget_step(self) -> None:
        self._running = None
        self._active = None
        self._saved = None
        self._buffers = None
        self._pass_number = 0
        self._logged = ()

    def _refuse_open_step(self) -> None:
        if self._running is not None:
            raise RuntimeError("finish the step with second_step(), or give it up with restore().")

    # -- parts of a step -------------------------------------------------------------------------

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _modules(self) -> list[nn.Module]:
        if self._modules_found is None:
            modules = modules_around(self._parameters())
            refuse_sharded((), modules)
            self._modules_found = modules
        return self._modules_found

    def _group_values(self, key: str) -> list[float]:
        """Return a group option for each parameter with a gradient."""
        active = {id(parameter) for parameter in self._active_parameters()}
        return [
            group.get(key, 0.0)
            for group in self.param_groups
            for parameter in group["params"]
            if id(parameter) in active
        ]

    def _active_parameters(self) -> list[Tensor]:
        """Return the parameters to which the first pass gave a gradient."""
        if self._active is None:
            self._active = [p for p in self._parameters() if p.grad is not None]
        return self._active

    def _weights(self) -> Vector:
        return Vector([parameter.detach() for parameter in self._active_parameters()])

    def _gradient(self) -> Vector:
        """Return the gradient in ``.grad``, densely; a missing part of a later pass is zero."""
        return Vector([_dense_gradient(p) for p in self._active_parameters()])

    def _set_gradient(self, gradient: Vector) -> None:
        """Make a vector the gradient that the step follows, sparse where it was."""
        for parameter, values in zip(self._active_parameters(), gradient.tensors, strict=True):
            if parameter.grad is None:
                parameter.grad = values
            elif parameter.grad.is_sparse:
                parameter.grad = values.sparse_mask(parameter.grad.coalesce())
            else:
                parameter.grad.copy_(values)

    def _move_by(self, displacement: Vector) -> None:
        self._save_weights()
        torch._foreach_add_(self._active_parameters(), displacement.tensors)

    def _move_to(self, weights: Vector) -> None:
        self._save_weights()
        torch._foreach_copy_(self._active_parameters(), weights.tensors)

    def _save_weights(self) -> None:
        if self._saved is None:
            with torch.no_grad():
                self._saved = [p.clone() for p in self._active_parameters()]

    def _restore_weights(self) -> None:
        if self._saved is not None:
            with torch.no_grad():
                torch._foreach_copy_(self._active_parameters(), self._saved)
            self._saved = None

    def _curvature_along(
        self, gradient: Vector, direction: Vector, tau: float
    ) -> Generator[None, None, Vector]:
        r"""Return Hd from another gradient, a distance τ along d.

        :math:`H d \approx \|d\| (\nabla L(\theta + \tau d / \|d\|) - \nabla L(\theta)) / \tau`.
        The caller has kept the gradient at θ.
        """
        self._move_by(direction.normalized() * tau)
        yield
        self._restore_weights()
        return (self._gradient() - gradient) * (direction.norm() / tau)

    def _record(
        self,
        gradient: Vector,
        perturbation: Vector | None = None,
        regularizer: Tensor | None = None,
    ) -> None:
        """Keep this step's numbers for :attr:`log`; no perturbation counts as a zero vector."""
        if self.log is not None:
            perturbation = gradient * 0.0 if perturbation is None else perturbation
            inner = gradient.dot(perturbation)
            lengths = gradient.norm(), perturbation.norm()
            cosine = inner / (lengths[0] * lengths[1])
            self._logged = (*lengths, cosine, inner if regularizer is None else regularizer)

    def _finish(self, checks: Sequence[Tensor]) -> bool:
        """Follow the gradient in ``.grad`` and return True if it and the checks are finite."""
        gradients = [_entries(p) for p in self._parameters() if p.grad is not None]
        if not gradients:
            raise ValueError("closure left no gradient in its last call: it must call backward.")
        norm = Vector(gradients).norm()
        scalars = [x.to(norm) for x in (norm, *checks, *self._logged)]
        values = torch.stack(scalars).tolist()
        length, decisive_norms = values[0], values[: 1 + len(checks)]
        taken = all(math.isfinite(value) for value in decisive_norms)
        if taken:
            if self.max_norm is not None and length > self.max_norm:
                torch._foreach_mul_(gradients, self.max_norm / length)
            self._descend()
        else:
            self.skipped_steps += 1
        if self.log is not None:
            self.log.append(StepRecord(self.steps, *values[1 + len(checks) :]))
        self.steps += 1
        return taken

    @abstractmethod
    def _descend(self) -> None:
        """Change the weights along ``.grad``."""

    # -- state -----------------------------------------------------------------------------------

    def _own_state(self) -> dict[str, Any]:
        """Return the state that belongs to no group and no parameter, in plain values."""
        return {
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "gradient_evaluations": self.gradient_evaluations,
        }

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.skipped_steps = state["skipped_steps"]
        self.gradient_evaluations = state["gradient_evaluations"]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run continues from.

        Returns
        -------
        dict
            Entries ``state`` and ``param_groups``, as PyTorch's optimizers have them, and ``own``.

        Raises
        ------
        RuntimeError
            Between :meth:`first_step` and :meth:`second_step`.
        """
        self._refuse_open_step()
        return {**super().state_dict(), "own": self._own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        TypeError, ValueError
            If it comes from another kind of optimizer or from other parameter groups.
        """
        self._refuse_open_step()
        arguments.mapping("state_dict", state_dict)
        if not {"own", "state", "param_groups"} <= set(state_dict):
            raise ValueError(
                f"state_dict was not made by {type(self).__name__}: load it into the optimizer "
                "that made it."
            )
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            raise ValueError(f"state_dict belongs to other parameters: {error}.") from error
        self._load_own_state(state_dict["own"])

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_open_step()
        # A learning-rate scheduler replaces step() by a wrapper of this object's own method. A copy
        # must not carry it.
        state = {name: value for name, value in self.__dict__.items() if name != "step"}
        return {**state, "_modules_found": None, "_unscaled": []}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as every optimizer of PyTorch does.

        Raises
        ------
        TypeError, ValueError
            If it is no mapping with parameters under ``params``, or they are sharded.
        """
        _check_group(param_group)
        super().add_param_group(param_group)
        refuse_sharded(param_group["params"], ())
        self._modules_found = None


def _dense_gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()


def _entries(parameter: Tensor) -> Tensor:
    """Return the stored entries of a parameter's gradient, each once; a sparse one is coalesced."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad.values()


def _check_parameters(params: Any) -> list[Any]:
    """Return parameters, named parameters or groups as a list, because a generator ends."""
    expected = "parameters, named parameters or groups of them"
    entries = list(arguments.iterable("params", params, expected))
    if not entries:
        raise ValueError("params=[] is empty: pass the model's parameters, as model.parameters().")
    for entry in entries:
        if isinstance(entry, dict):
            _check_group(entry)
        elif not _is_parameter(entry):
            shown = arguments.shown(entry)
            raise TypeError(f"params has {shown}: pass {expected}, as model.parameters().")
    return entries


def _check_group(group: Any) -> None:
    options = arguments.mapping("param_group", group, 'a dict with parameters under "params"')
    parameters = options.get("params")
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    if not isinstance(parameters, Sequence | Iterator) or isinstance(parameters, str):
        raise TypeError(
            f"params={arguments.shown(parameters)} of a group must be a list of parameters."
        )
    if isinstance(parameters, Sequence) and not all(map(_is_parameter, parameters)):
        raise TypeError(
            f"params={arguments.shown(parameters)} of a group holds what is no parameter."
        )


def _is_parameter(entry: object) -> bool:
    named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
    return isinstance(entry[1] if named else entry, Tensor)  # type: ignore[index]


def _check_scaler(scaler: object) -> None:
    if scaler is not None:
        arguments.instance("scaler", scaler, GradScaler, "torch.amp has it")
