r"""The part that all optimizers share which perturb the weights around a base optimizer's step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import ParamsT

from paperkit import arguments
from paperkit.optim.core import Closure, MultiPassOptimizer, Passes
from paperkit.optim.modules import refuse_sharded
from paperkit.optim.vector import FixedVector, Vector

BaseOptimizer = Callable[..., Optimizer]


class WrappedOptimizer(MultiPassOptimizer):
    r"""A base optimizer that follows the gradient at perturbed weights.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups. A group may set the strength, and every
        option of the base optimizer, for itself; norms run over all groups.
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

    def __init__(
        self,
        params: ParamsT,
        base: BaseOptimizer,
        strength: float,
        *,
        max_norm: float | None = None,
        log: bool = False,
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
        **base_options: Any,
    ) -> None:
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
        self.param_groups = self.base.param_groups
        self.defaults = {**self.base.defaults, **self.defaults}

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
        self._record(gradient, epsilon)
        # With no_sync each worker sees only its own first gradient. If it decided whether to skip
        # the step, the workers would diverge. An overflow is still noticed: it makes the moved
        # weights not finite, and with them the averaged gradient of the second pass.
        checks = [gradient.norm()] if self.no_sync is None else []
        self._move_by(epsilon)
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
            return self._call(closure)
        with self.no_sync():
            return self._call(closure)

    def _descend(self) -> None:
        self.base.step()

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
        self.base.add_param_group(param_group)
        refuse_sharded(param_group["params"], ())
        self._modules_found = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run continues from, the base optimizer's state included.

        Returns
        -------
        dict
            Entries ``state``, ``param_groups`` and ``own`` of every optimizer here, and ``base``.

        Raises
        ------
        RuntimeError
            Between ``first_step`` and ``second_step``.
        """
        return {**super().state_dict(), "base": self.base.state_dict()["state"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        ValueError
            If it comes from another kind of optimizer or from other parameter groups.
        """
        super().load_state_dict(state_dict)
        groups = state_dict["param_groups"]
        self.base.load_state_dict({"state": state_dict["base"], "param_groups": groups})
        self.param_groups = self.base.param_groups


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
