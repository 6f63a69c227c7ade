"""Numbers of an optimizer as a whole, kept where PyTorch keeps everything that is saved.

A wrapper or a checkpoint knows ``state`` and ``param_groups`` of an optimizer and nothing else. So
counts, step sizes and the like lie in the first group, in one entry. Its dict is replaced when a
number changes, so that a saved state does not change with it.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

KEPT = "sharpness_aware"
"""The entry's name."""

T = TypeVar("T")


class Numbers:
    """The entry of the first group; the last known one where a group came without it.

    Parameters
    ----------
    initial : dict
        Numbers of an optimizer that has taken no step.
    """

    def __init__(self, initial: dict[str, Any]) -> None:
        self._last = initial

    def of(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the present numbers."""
        return groups[0].get(KEPT, self._last) if groups else self._last

    def replace(self, groups: list[dict[str, Any]], **changed: Any) -> None:
        """Change some of them."""
        self._last = {**self.of(groups), **changed}
        if groups:
            groups[0][KEPT] = self._last


class Kept(Generic[T]):
    """An attribute of an optimizer that is one of its :class:`Numbers`, there by the same name."""

    def __init__(self, name: str = "") -> None:
        self._name = name

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = self._name or name

    @overload
    def __get__(self, optimizer: None, owner: type) -> Kept[T]: ...

    @overload
    def __get__(self, optimizer: Any, owner: type) -> T: ...

    def __get__(self, optimizer: Any, owner: type) -> Any:
        if optimizer is None:
            return self
        return optimizer._numbers.of(optimizer.param_groups)[self._name]

    def __set__(self, optimizer: Any, value: T) -> None:
        optimizer._numbers.replace(optimizer.param_groups, **{self._name: value})
