r"""The core that all optimizers share: several gradients a step, taken without leaving a trace.

A sharpness-aware step asks for the gradient of the same batch at several points. Each optimizer
writes its step as a generator, :meth:`MultiPassOptimizer._passes`: it starts when the gradient at
the present weights is known, moves the weights, and at each ``yield`` asks for the gradient there.
The same generator serves ``step(closure)``, where the closure is called again for each ``yield``,
and ``first_step()`` and ``second_step()``, where the caller runs the passes. Whatever the method,
the core sees to it that

* weights come back from a copy, bit for bit, also when the closure raises;
* each pass starts from cleared gradients, and one that leaves none is refused;
* all passes draw the same random numbers, and the generators end where a single pass leaves them;
* everything that a pass changes in modules (running statistics, queues, counts) is as after the
  first pass;
* a loss scaled by a ``GradScaler`` is unscaled in each pass, and an overflow in any skips the step;
* the step is decided by a single read from the device, at its end;
* ``state`` and ``param_groups`` hold all that lasts, and one shared object what a step needs, so
  that wrappers and base optimizers see the same.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # imports the compiler no earlier than torch.optim does
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from paperkit import arguments
from paperkit.optim import closures
from paperkit.optim.closures import CONTRACT, Closure
from paperkit.optim.groups import Given, check_group, checked_parameters, opened
from paperkit.optim.kept import KEPT, Kept, Numbers
from paperkit.optim.modules import KnownModules, PassWatch, all_modules, refuse_sharded
from paperkit.optim.moves import MovingOptimizer, as_real, stored_entries
from paperkit.optim.opened import Home, OpenStep, Passes, StepRecord, UnscaledPass
from paperkit.optim.replay import RandomState
from paperkit.optim.vector import Vector

LARGEST_ROUNDING = 0.1
"""Part of a perturbation that the weights' format may lose before a warning is given."""


class MultiPassOptimizer(MovingOptimizer, ABC):
    """An optimizer whose step takes the gradient of one batch at several points.

    Parameters
    ----------
    params : nn.Module or iterable
        Model; or parameters, named parameters or parameter groups, as for every optimizer of
        PyTorch, where a group may have a module under ``params``. After a step, modules that are
        passed here are as after its first pass, and so are others that :meth:`step` calls.
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

    options: tuple[str, ...] = ("max_norm",)
    """Names of the options that are the same for all groups, each an attribute."""

    steps = Kept[int]()
    skipped_steps = Kept[int]()
    gradient_evaluations = Kept[int]()

    _family = ""
    """Name of a family of optimizers that go on from each other's states."""

    # torch.amp.GradScaler.step then leaves the gradients alone, and step() can refuse the call.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Given,
        defaults: dict[str, Any],
        *,
        max_norm: float | None = None,
        log: bool = False,
    ) -> None:
        if max_norm is not None:
            max_norm = arguments.number("max_norm", max_norm, above=0, finite=False)
        self.max_norm = max_norm
        self.log: list[StepRecord] | None = [] if arguments.flag("log", log) else None
        entries, roots = checked_parameters(params)
        refuse_sharded((), all_modules(roots))
        self._modules = KnownModules(roots)
        self._home: Home | Optimizer = Home()
        self._name = type(self).__name__  # a wrapper's class has another
        self._numbers = Numbers(self._first_numbers())
        self._open = OpenStep()
        self._unscaled: list[UnscaledPass] = []
        self._code: Any = None
        super().__init__(entries, defaults)
        self._numbers.replace(self.param_groups)

    def _first_numbers(self) -> dict[str, Any]:
        """Return the numbers that are kept, as they are before the first step."""
        return {
            "optimizer": self._family or self._name,
            "steps": 0,
            "skipped_steps": 0,
            "gradient_evaluations": 0,
        }

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters with their options, the same list as the base optimizer's."""
        return self._home.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._home.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """State by parameter, the same dict as the base optimizer's."""
        return self._home.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self._home.state = state

    @property
    def first_pass(self) -> bool:
        """Whether a forward pass that runs now counts, which one at moved weights does not.

        A metric that is updated by every forward pass asks for it.
        """
        return self._open.first_pass

    def described(self) -> dict[str, object]:
        """Return what the optimizer was made with, in plain values.

        Returns
        -------
        dict
            Entries ``optimizer``, the name of the class; ``defaults``, the options that a group may
            set for itself; ``options``, the options that hold for all groups.
        """
        return {
            "optimizer": self._name,
            "defaults": dict(self.defaults),
            "options": self._option_values(),
        }

    def _option_values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options}

    # -- the step --------------------------------------------------------------------------------

    @abstractmethod
    def _passes(self) -> Passes:
        """Start with the first gradient in ``.grad``; yield where another one is needed."""

    @_disable_dynamo
    def step(self, closure: Closure | None = None, *, scaler: GradScaler | None = None) -> Any:
        """Take one step.

        Parameters
        ----------
        closure : callable
            Function that clears the gradients, computes the loss of the whole batch (over all
            micro-batches where gradients are accumulated), calls ``backward`` and returns the loss;
            called once for each gradient evaluation, with the same random numbers.
        scaler : torch.amp.GradScaler, optional
            Scaler with which the closure scales its loss. Call ``scaler.update()`` after the step
            as usual; ``scaler.step`` is not needed, and refused.

        Returns
        -------
        object
            Value that the closure returned at the present weights.

        Raises
        ------
        TypeError, ValueError
            If there is no closure, or it cannot be called, or it breaks its contract: gradients of
            other passes stay in place, or a pass leaves none; or the scaler is none, or missing.
        RuntimeError
            If a step begun with :meth:`first_step` is open, or another loop scales or accumulates.
        """
        closures.refuse_scaler_step(self)
        if closure is None:
            if self._is_asked_for_its_state():
                self._make_state()
                return None
            raise ValueError(
                f"step needs a closure: {CONTRACT}; for a loop by hand call first_step() and "
                "second_step()."
            )
        arguments.function("closure", closure, "a function without arguments")
        closures.check_scaler(scaler)
        closures.refuse_accumulation_outside()
        self._begin()
        random_state = RandomState({parameter.device for parameter in self._parameters()})
        try:
            loss = self._first_pass(closure)
            if scaler is None and self._is_new(closure):
                closures.refuse_forgotten_scaler(closure)
            perturbs = self._perturbs_now()
            self._open.running = self._passes() if perturbs else self._single_pass()
            while self._advance(scaler):
                with random_state.replayed():
                    self._later_pass(closure)
        except BaseException:
            self.restore()
            raise
        return loss

    @_disable_dynamo
    def first_step(
        self, zero_grad: bool | None = None, *, scaler: GradScaler | None = None
    ) -> None:
        """Move the weights to where the second gradient is taken, in a loop written by hand.

        Call it after the first backward pass; then compute the loss of the same batch again, call
        ``backward`` and :meth:`second_step`. Gradients are cleared. For dropout masks that are
        equal in both passes keep a :class:`~paperkit.optim.RandomState`.

        Parameters
        ----------
        zero_grad : None
            Other libraries have this argument; here it is refused.
        scaler : torch.amp.GradScaler, optional
            As in :meth:`step`.

        Raises
        ------
        TypeError
            If ``zero_grad`` is given.
        RuntimeError
            If the last step was not finished with :meth:`second_step` or :meth:`restore`, or the
            gradients are those of the last step.
        """
        _refuse_zero_grad(zero_grad, "first_step() clears the gradients itself: write first_step()")
        closures.check_scaler(scaler)
        self._begin()
        closures.refuse_uncleared(self._parameters())
        _call_hooks(self, torch_optimizer._global_optimizer_pre_hooks)
        _call_hooks(self, self._optimizer_step_pre_hooks)
        self._open.watch = self._watch()
        self._open.running = self._passes() if self._perturbs_now() else self._repeated_pass()
        try:
            if self._advance(scaler) and not self._modules.roots:
                self._open.watch.listen()
        except BaseException:
            self.restore()
            raise
        closures.clear_gradients(self._parameters())

    @_disable_dynamo
    def second_step(
        self, zero_grad: bool | None = None, *, scaler: GradScaler | None = None
    ) -> None:
        """Restore the weights and take the step that :meth:`first_step` began.

        Parameters
        ----------
        zero_grad, scaler
            As in :meth:`first_step`.

        Raises
        ------
        TypeError, ValueError
            If ``zero_grad`` is given, or the second backward pass left no gradient.
        RuntimeError
            If there was no :meth:`first_step`.
        """
        _refuse_zero_grad(
            zero_grad, "second_step() leaves its gradients to look at: clear them with zero_grad()"
        )
        closures.check_scaler(scaler)
        if self._open.running is None:
            raise RuntimeError("second_step() follows first_step() and a second backward pass.")
        try:
            self._advance(scaler)
        except BaseException:
            self.restore()
            raise
        self._opt_called = True  # learning-rate schedulers check this flag
        _call_hooks(self, self._optimizer_step_post_hooks)
        _call_hooks(self, torch_optimizer._global_optimizer_post_hooks)

    @_disable_dynamo
    def restore(self) -> None:
        """Give up a begun step: put weights and modules back as they were before it."""
        self._restore_weights()
        if self._open.watch is not None:
            self._open.watch.restore()
        self._forget_step()

    def _watch(self, *, evaluation: bool = False) -> PassWatch:
        return PassWatch(self._modules, self._parameters(), evaluation=evaluation)

    def _is_new(self, closure: Closure) -> bool:
        """Say whether a closure was written elsewhere than that of the last step."""
        code = getattr(closure, "__code__", None)
        is_new, self._code = code is None or code is not self._code, code
        return is_new

    def _begin(self) -> None:
        """Refuse a second open step, and complete groups that were assigned or loaded."""
        self._refuse_open_step()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

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
        self._open.active = self._open.values = None
        yield from self._single_pass()

    def _first_pass(self, closure: Closure) -> Any:
        before = closures.GradientsBefore(self._parameters())
        watch = self._open.watch = self._watch() if self._perturbs() else None
        with before.watched(), nullcontext() if watch is None else watch.listening():
            return self._call(closure)

    def _later_pass(self, closure: Closure) -> None:
        closures.clear_gradients(self._parameters())
        watch = self._open.watch
        assert watch is not None
        watch.replay()
        with watch.listening():
            self._call(closure)

    def _call(self, closure: Closure) -> Any:
        # An autocast region caches the casts of the weights until it ends. If the caller has one
        # open, a pass at moved weights would read the casts of the unmoved ones.
        torch.clear_autocast_cache()
        with torch.enable_grad():
            return closure()

    def _advance(self, scaler: GradScaler | None) -> bool:
        """Hand a new gradient to the step; return whether it asks for another one."""
        step = self._open
        assert step.running is not None
        if not step.first_pass and step.active:
            closures.refuse_no_gradient(step.active)
        self.gradient_evaluations += 1
        self._unscale(scaler)
        with torch.no_grad():
            for _ in step.running:
                if step.first_pass and step.watch is not None:
                    step.watch.first_pass_is_over()
                step.first_pass = False
                return True
        if step.watch is not None:
            step.watch.restore()
        self._forget_step()
        return False

    def _unscale(self, scaler: GradScaler | None) -> None:
        if scaler is None:
            return
        number = self._open.unscaled
        if number == len(self._unscaled):
            self._unscaled.append(UnscaledPass(self))
        scaler.unscale_(cast(Optimizer, self._unscaled[number]))
        self._open.unscaled += 1

    def _forget_step(self) -> None:
        self._open.forget()

    def _refuse_open_step(self) -> None:
        if self._open.running is not None:
            raise RuntimeError("finish the step with second_step(), or give it up with restore().")

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
            self._open.logged = (*lengths, cosine, inner if regularizer is None else regularizer)

    def _finish(self, checks: Sequence[Tensor]) -> bool:
        """Follow the gradient in ``.grad`` and return True if it and the checks are finite."""
        gradients = [stored_entries(p) for p in self._parameters() if p.grad is not None]
        norm = Vector(as_real(gradients)).norm()
        logged, rounding = self._open.logged, self._open.rounding
        scalars = [x.to(norm) for x in (norm, *checks, *logged, *rounding)]
        values = torch.stack(scalars).tolist()
        length, decisive_norms = values[0], values[: 1 + len(checks)]
        taken = all(math.isfinite(value) for value in decisive_norms)
        if taken:
            if self.max_norm is not None and length > self.max_norm:
                torch._foreach_mul_(gradients, self.max_norm / length)
            self._descend()
        else:
            self.skipped_steps += 1
        noted = values[1 + len(checks) : len(values) - len(rounding)]
        if self.log is not None:
            self.log.append(StepRecord(self.steps, *noted))
        self.steps += 1
        _warn_of_rounding(values[len(values) - len(rounding) :])
        closures.mark_used(p.grad for p in self._parameters() if p.grad is not None)
        return taken

    @abstractmethod
    def _descend(self) -> None:
        """Change the weights along ``.grad``."""

    # -- state -----------------------------------------------------------------------------------

    def _is_asked_for_its_state(self) -> bool:
        """Whether torch.distributed.checkpoint calls, to make an optimizer's state.

        That call has no closure, and gradients and learning rates are zero.
        """
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        rates = [float(group.get("lr", math.nan)) for group in self.param_groups]
        return (
            not any(rates)
            and bool(gradients)
            and not any(bool(gradient.to_dense().any()) for gradient in gradients)
        )

    def _make_state(self) -> None:
        """Make the state that exists from the first step on, without a step."""

    @_disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run continues from.

        Returns
        -------
        dict
            Entries ``state`` and ``param_groups``, as PyTorch's optimizers have them. Counts, and
            options that hold for all groups, are in the first group.

        Raises
        ------
        RuntimeError
            Between :meth:`first_step` and :meth:`second_step`.
        """
        self._refuse_open_step()
        self._numbers.replace(self.param_groups, options=self._option_values())
        saved = super().state_dict()
        self._numbers.replace(self.param_groups)  # the caller may change the saved ones
        return saved

    @_disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        TypeError, ValueError
            If it comes from another kind of optimizer, other options or other parameter groups.
        """
        self._refuse_open_step()
        arguments.mapping("state_dict", state_dict)
        try:
            self._load(state_dict)
        except KeyError:
            self._check_saved([])
        except ValueError as error:
            if str(error).startswith("loaded state dict"):
                raise ValueError(f"state_dict belongs to other parameters: {error}.") from error
            raise

    def _load(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)

    def _check_saved(self, groups: list[dict[str, Any]]) -> None:
        """Refuse a state of another kind, or reached with options that would change the run."""
        kind = self._family or self._name
        saved = groups[0].get(KEPT) if groups else None
        if saved is None or saved["optimizer"] != kind:
            raise ValueError(
                f"state_dict was not made by {self._name}: load it into the optimizer that made "
                "it, and a plain base optimizer's with optimizer.base.load_state_dict(state_dict)."
            )
        for name, present in self._option_values().items():
            then = saved.get("options", {}).get(name, present)
            if then != present:
                raise ValueError(
                    f"state_dict was made with {name}={arguments.shown(then)}, and this optimizer "
                    f"has {name}={arguments.shown(present)}: make it with the former."
                )

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_open_step()
        # A learning-rate scheduler replaces step() by a wrapper of this object's own method. A copy
        # must carry neither it nor hooks, as in PyTorch.
        hooks = {name for name in vars(self) if name.startswith("_optimizer_") and "hooks" in name}
        dropped = {"step", "_open", "_unscaled", "_code"} | hooks
        return {name: value for name, value in vars(self).items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if set(state) == {"state", "param_groups"}:  # the two entries that load_state_dict sets
            self._check_saved(state["param_groups"])
            self.state, self.param_groups = state["state"], state["param_groups"]
            return
        fresh = {"_open": OpenStep(), "_unscaled": [], "_code": None}
        super().__setstate__({**fresh, **state})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as every optimizer of PyTorch does.

        Raises
        ------
        TypeError, ValueError
            If it is no mapping with parameters under ``params``, or they are sharded.
        """
        self._modules.roots += self._open_group(param_group)
        super().add_param_group(param_group)

    def _open_group(self, param_group: dict[str, Any]) -> list[nn.Module]:
        check_group(param_group)
        modules = opened(param_group)
        held = param_group["params"]
        if isinstance(held, Tensor):
            held = [held]
        param_group["params"] = list(held)
        found = [entry[1] if isinstance(entry, tuple) else entry for entry in param_group["params"]]
        refuse_sharded(found, all_modules(modules))
        return modules


def _warn_of_rounding(lengths: Sequence[float]) -> None:
    """Warn where the weights' format took away more than a small part of a perturbation."""
    for lost, whole in zip(lengths[::2], lengths[1::2], strict=True):
        if math.isfinite(whole) and lost > LARGEST_ROUNDING * whole:
            warnings.warn(
                f"the weights' format rounds {lost / whole:.0%} of the perturbation away, as it "
                "does to small changes in bfloat16 and float16: keep the weights in float32 under "
                "torch.autocast, or take a larger radius.",
                UserWarning,
                stacklevel=2,
            )
            return


def _refuse_zero_grad(zero_grad: object, what_to_write: str) -> None:
    if zero_grad is not None:
        raise TypeError(f"zero_grad={arguments.shown(zero_grad)}: {what_to_write}.")


def _call_hooks(optimizer: Optimizer, hooks: Mapping[int, Any]) -> None:
    for hook in hooks.values():
        hook(optimizer, (), {})
