r"""The part that all optimizers share which perturb the weights around a base optimizer's step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch.optim import LBFGS, Optimizer

from paperkit import arguments
from paperkit.optim.closures import Closure
from paperkit.optim.core import MultiPassOptimizer
from paperkit.optim.groups import Given
from paperkit.optim.kept import KEPT
from paperkit.optim.opened import Passes
from paperkit.optim.vector import FixedVector, Vector

BaseOptimizer = Callable[..., Optimizer]


class WrappedOptimizer(MultiPassOptimizer):
    r"""A base optimizer that follows the gradient at perturbed weights.

    Parameters
    ----------
    params : nn.Module or iterable
        Model; or parameters, named parameters or parameter groups. A group may set the
        strength, and every option of the base optimizer, for itself; norms run over all groups.
    base : callable
        Class or function that makes the base optimizer from the parameters: ``torch.optim.SGD`` or
        any other whose ``step`` needs no closure.
    strength : float
        Value, at least 0, of the option ``rho``, or of the option that ``strength_name`` names.
        Where it is 0 in all groups the step is the base optimizer's, with a single gradient
        evaluation.
    max_norm : float, optional
        Largest norm, over all parameters, of the gradient that the step follows; a longer one is
        scaled down. Gradients that only place the perturbation stay as they are.
    log : bool
        Whether each step appends a :class:`~paperkit.optim.StepRecord` to ``log``.
    no_sync : callable, optional
        Method ``no_sync`` of a :class:`~torch.nn.parallel.DistributedDataParallel` model. With it
        each worker perturbs along the gradient of its own batch, and only the gradients that the
        step follows are averaged. Without it all workers share the same perturbation.
    **base_options
        Options of the base optimizer: ``lr``, ``momentum``, ``foreach``, ``maximize``, ….

    Attributes
    ----------
    base : torch.optim.Optimizer
        Base optimizer, which shares ``param_groups``, so that schedulers work on either. A hook on
        its ``step`` sees the final gradients.

    Raises
    ------
    ValueError
        If the strength is negative or not finite, the base optimizer needs a closure or has an
        option of the same name, or the parameters are sharded.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import WrappedOptimizer
    >>> class UnnormalizedSAM(WrappedOptimizer):
    ...     def perturbation(self, gradient, weights, strengths):
    ...         return gradient.scaled(strengths)
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = UnnormalizedSAM([w], torch.optim.SGD, 0.5, lr=0.1)
    >>> (0.5 * w.square().sum()).backward()
    >>> optimizer.first_step()
    >>> w.detach()  # w + 0.5 g
    tensor([4.5000, 6.0000])
    """

    strength_name = "rho"

    def described(self) -> dict[str, object]:
        """Return what the optimizer was made with, in plain values.

        Returns
        -------
        dict
            As :meth:`~paperkit.optim.MultiPassOptimizer.described`, and ``base``, the name of the
            base optimizer's class, whose options are among ``defaults``.
        """
        return {**super().described(), "base": type(self.base).__name__}

    def __init__(
        self,
        params: Given,
        base: BaseOptimizer,
        strength: float,
        *,
        max_norm: float | None = None,
        log: bool = False,
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
        **base_options: Any,
    ) -> None:
        _refuse_other_names(base_options)
        if isinstance(base, Optimizer):
            name = type(base).__name__
            raise TypeError(
                f"base={name}(...) is made already: pass the class, base=torch.optim.{name}, and "
                "its options beside it, as lr=0.1."
            )
        arguments.function("base", base, "a torch.optim class such as torch.optim.SGD")
        if no_sync is not None:
            arguments.function("no_sync", no_sync, "the no_sync method of a parallel model")
        self.no_sync = no_sync
        super().__init__(params, {self.strength_name: strength}, max_norm=max_norm, log=log)
        self.base = _make_base(base, self.param_groups, base_options)
        if isinstance(self.base, LBFGS):
            raise ValueError("base=LBFGS calls closures itself: choose a first-order optimizer.")
        if self.strength_name in self.base.defaults:
            raise ValueError(
                f"base={type(self.base).__name__} has an option {self.strength_name} of its own, "
                "which a parameter group cannot tell from this one: choose another optimizer."
            )
        _refuse_shared_names(self, base)
        self.defaults = {**self.base.defaults, **self.defaults}
        self._share_home()

    def _share_home(self) -> None:
        """Let state and groups be the base optimizer's, whichever side changes them."""
        self._home = self.base
        self.base.register_load_state_dict_pre_hook(partial(_with_our_entries, self.strength_name))

    @abstractmethod
    def perturbation(self, gradient: Vector, weights: Vector, strengths: Sequence[float]) -> Vector:
        """Return ε from the gradient of the loss that is minimised.

        Parameters
        ----------
        gradient : Vector
            Gradient of all parameters that have one.
        weights : Vector
            Values of the same parameters.
        strengths : sequence of float
            Strength of the perturbation in each tensor.
        """

    def _passes(self) -> Passes:
        gradient = FixedVector(self._objective_gradient().tensors)
        epsilon = self.perturbation(gradient, self._weights(), self._strengths())
        # With no_sync each worker sees only its own first gradient. If it decided whether to skip
        # the step, the workers would diverge. An overflow is still noticed: it makes the moved
        # weights not finite, and with them the averaged gradient of the second pass.
        checks = [gradient.norm()] if self.no_sync is None else []
        self._record(gradient, self._move_by(epsilon))
        del gradient, epsilon  # the next pass needs the memory
        yield
        self._restore_weights()
        self._finish(checks)

    def _perturbs(self) -> bool:
        return any(group[self.strength_name] for group in self.param_groups)

    def _strengths(self) -> list[float]:
        return self._group_values(self.strength_name)

    def _objective_gradient(self) -> Vector:
        """Return the gradient of the objective that is minimised: −g where the base maximises."""
        gradient = self._gradient()
        if any(group.get("maximize") for group in self.param_groups):
            signs = [-1.0 if flag else 1.0 for flag in self._group_values("maximize")]
            return gradient.scaled(signs)
        return gradient

    def _first_pass(self, closure: Closure) -> Any:
        if self.no_sync is None or not self._perturbs():
            return super()._first_pass(closure)
        with self.no_sync():
            return super()._first_pass(closure)

    def _begin(self) -> None:
        super()._begin()
        for group in self.param_groups:
            if not group[self.strength_name] >= 0:
                arguments.number(self.strength_name, group[self.strength_name], at_least=0)

    def _descend(self) -> None:
        self.base.step()

    def _make_state(self) -> None:
        self._descend()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters to this and to the base optimizer.

        Raises
        ------
        ValueError
            If its strength is negative or not finite.
        """
        name = self.strength_name
        strength = param_group.get(name, self.defaults[name])
        strength = arguments.number(name, strength, at_least=0)
        if not hasattr(self, "base"):
            super().add_param_group(param_group)
            return
        param_group.setdefault(name, strength)
        modules = self._open_group(param_group)
        self.base.add_param_group(param_group)
        self._modules.roots += modules

    def _load(self, state_dict: dict[str, Any]) -> None:
        if type(self.base).load_state_dict is Optimizer.load_state_dict:
            super()._load(state_dict)
            return
        # The base optimizer has a way of its own, such as for states in eight bits.
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        self._check_saved(state_dict["param_groups"])
        self.base.load_state_dict(state_dict)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "base" in state:
            self._share_home()


def _with_our_entries(
    strength_name: str, base: Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any] | None:
    """Complete the state of a plain base optimizer by what groups hold beside its options."""
    saved = state_dict["param_groups"]
    if len(saved) != len(base.param_groups):
        return None  # load_state_dict says so
    ours = [
        {name: group[name] for name in (strength_name, KEPT) if name in group}
        for group in base.param_groups
    ]
    groups = [{**own, **theirs} for own, theirs in zip(ours, saved, strict=True)]
    return {**state_dict, "param_groups": groups}


def _refuse_other_names(options: dict[str, Any]) -> None:
    """Refuse names that other libraries use, and say how the option is written here."""
    if "base_optimizer" in options:
        found = options["base_optimizer"]
        kind = found if isinstance(found, type) else type(found)
        raise TypeError(f"base_optimizer is called base: write base=torch.optim.{kind.__name__}.")
    if "adaptive" in options:
        raise TypeError(
            f"adaptive={arguments.shown(options['adaptive'])}: the adaptive method is an optimizer "
            "of its own, ASAM; SAM is not adaptive without it."
        )


def _refuse_shared_names(optimizer: WrappedOptimizer, base: BaseOptimizer) -> None:
    """Refuse an option that either optimizer could be meant by."""
    settled = base.keywords if isinstance(base, partial) else {}
    inner = base.func if isinstance(base, partial) else base
    if not isinstance(inner, type):
        return  # a function of the caller's, who has set what it wants
    shared = {*optimizer.options, "log", "no_sync"} & set(optimizer.base.defaults) - set(settled)
    if shared:
        name, kind = min(shared), inner.__name__
        raise ValueError(
            f"{name} is an option of {type(optimizer).__name__} and of base={kind}: give the base "
            f"its own as base=functools.partial(torch.optim.{kind}, {name}=...)."
        )


def _make_base(
    base: BaseOptimizer, groups: list[dict[str, Any]], options: dict[str, Any]
) -> Optimizer:
    try:
        optimizer = base(groups, **options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{name}={arguments.shown(value)}" for name, value in options.items())
        name = getattr(base, "__name__", "base")
        raise type(error)(f"base={name} refuses its options {given or '()'}: {error}.") from error
    return arguments.instance("base", optimizer, Optimizer, "it must return an optimizer")
