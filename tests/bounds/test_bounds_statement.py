"""What an inequality, an identity and an approximation say of their two sides."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping

import public_calls
import pytest

from paperkit.bounds import Approximation, Identity, Inequality, Statement


def inequality(left: float, right: float, **rest) -> Inequality:
    return Inequality(statement="a ≤ b", source="here", left=left, right=right, **rest)


def identity(left: float, right: float, **rest) -> Identity:
    return Identity(statement="a = b", source="here", left=left, right=right, **rest)


def test_an_inequality_says_whether_it_holds_and_whether_it_must() -> None:
    bound = inequality(1.0, 3.0, assumptions={"x": True})
    assert (bound.slack, bound.holds, bound.certified) == (2.0, True, True)
    lucky = inequality(1.0, 3.0, assumptions={"x": None, "y": True})
    assert lucky.holds and not lucky.certified
    assert "x=unchecked" in repr(lucky) and "y" not in repr(lucky).split("not certified")[1]
    broken = inequality(2.0, 1.0, assumptions={"x": False})
    assert not broken.holds and not broken.certified and "2 ≰ 1" in repr(broken)


def test_an_identity_fails_on_either_side() -> None:
    assert identity(2.0, 2.0).holds
    assert not identity(2.0, 2.1).holds
    assert not identity(2.1, 2.0).holds
    assert "0 ≠ 1" in repr(identity(0.0, 1.0))


def test_an_approximation_has_no_verdict() -> None:
    found = Approximation(statement="a ≈ b", source="here", left=1.0, right=1.5)
    assert not hasattr(found, "holds") and not hasattr(found, "slack")
    assert found.difference == 0.5
    assert "1 ≈ 1.5" in repr(found)


@pytest.mark.parametrize("made", [inequality, identity])
def test_round_off_is_no_violation_and_infinite_sides_compare(made) -> None:
    assert made(1.0 + 1e-10, 1.0).holds
    assert not made(1.0 + 1e-8, 1.0).holds
    assert not made(1e-17, 0.0).holds
    assert made(1e-17, 0.0, absolute_tolerance=1e-15).holds
    assert made(-math.inf, -math.inf).difference == 0.0 and made(-math.inf, -math.inf).holds
    assert not made(math.inf, 1.0).holds
    upwards = made is inequality
    assert made(-math.inf, 0.0).holds is upwards and made(0.0, math.inf).holds is upwards
    with pytest.raises(ValueError, match="left=nan"):
        made(math.nan, 1.0)
    with pytest.raises(ValueError, match="tolerance"):
        made(0.0, 1.0, tolerance=-1.0)


def test_a_statement_cannot_be_changed_afterwards() -> None:
    assumptions = {"x": True}
    bound = inequality(0.0, 1.0, assumptions=assumptions)
    assumptions["x"] = False
    assert bound.certified
    with pytest.raises(TypeError):
        bound.assumptions["x"] = False  # type: ignore[index]


def statements_in(result: object) -> Iterator[Statement]:
    if isinstance(result, Statement):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from statements_in(value)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from statements_in(value)
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from statements_in(getattr(result, field.name))


FUNCTIONS = {
    name: function
    for name, function in public_calls.public_names().items()
    if name.count(".") == 2 and name.startswith("bounds.") and inspect.isfunction(function)
}


def of_function(name: str) -> list[Statement]:
    arguments = public_calls.valid_arguments(name, FUNCTIONS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(statements_in(FUNCTIONS[name](**arguments)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_statement_is_of_the_kind_that_its_words_say(name: str) -> None:
    for found in of_function(name):
        if "≈" in found.statement:
            assert isinstance(found, Approximation)
        elif "≤" in found.statement or "upper bound" in found.statement:
            assert isinstance(found, Inequality)
        else:
            assert "=" in found.statement
            assert isinstance(found, Identity)


IDENTITIES = [
    name
    for name, f in FUNCTIONS.items()
    if "Identity" in str(getattr(f, "__annotations__", {}).get("return"))
]


@pytest.mark.parametrize("name", IDENTITIES)
def test_every_identity_fails_when_either_side_moves(name: str) -> None:
    found = [one for one in of_function(name) if isinstance(one, Identity)]
    assert found
    for one in found:
        assert one.holds or not one.certified
        equal = one if one.holds else dataclasses.replace(one, right=one.left)
        assert equal.holds
        move = 1e-6 * max(abs(equal.left), 1e-300)
        for side in ("left", "right"):
            for sign in (1.0, -1.0):
                moved = getattr(equal, side) + sign * move
                assert not dataclasses.replace(equal, **{side: moved}).holds
