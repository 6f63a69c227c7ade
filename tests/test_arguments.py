"""What every check of an argument takes, what it refuses, and that its sentence names both."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paperkit import arguments

NAN, INF = float("nan"), float("inf")
HUGE = 10**30


def refused(error, check, *values, **options):
    """Assert that the check refuses with its own sentence, which begins with name and value."""
    with pytest.raises(error) as caught:
        check("it", *values, **options)
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith("it=") or message.startswith("it[")
    assert message.endswith(".") and "\n" not in message
    return message


def test_a_value_is_returned_in_the_type_of_python():
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)):
        found = arguments.integer("it", value)
        assert found == 3 and type(found) is int
        assert type(arguments.seed("it", value)) is int
    for value in (0.5, np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)):
        found = arguments.number("it", value)
        assert found == 0.5 and type(found) is float
    for value in (True, np.bool_(True), torch.tensor(True)):
        assert arguments.flag("it", value) is True
    assert arguments.path("it", "a/b") == Path("a/b")
    assert arguments.device("it", "cpu") == torch.device("cpu")
    assert arguments.dtype("it", torch.float32) is torch.float32


@pytest.mark.parametrize(
    "value", [None, True, np.bool_(True), "3", 3.0, [3], torch.ones(2), torch.ones(1).to("meta")]
)
def test_what_is_no_integer_is_of_the_wrong_type(value):
    assert "must be an integer" in refused(TypeError, arguments.integer, value)
    assert "must be an integer" in refused(TypeError, arguments.seed, value)


@pytest.mark.parametrize("value", [None, True, "0.5", [0.5], 1j, torch.ones(2), torch.tensor(1j)])
def test_what_is_no_number_is_of_the_wrong_type(value):
    assert "must be a finite number" in refused(TypeError, arguments.number, value)
    assert "bytes" in refused(TypeError, arguments.memory_budget, value)
    refused(TypeError, arguments.order, value)


def test_an_integer_lies_between_its_limits_and_fits_64_bits():
    assert arguments.integer("it", 4, at_least=4, at_most=4) == 4
    between = "it=5 must be between 1 and 4."
    assert refused(ValueError, arguments.integer, 5, at_least=1, at_most=4) == between
    refused(ValueError, arguments.integer, 0, at_least=1, at_most=4)
    reason = refused(ValueError, arguments.integer, 1, at_least=2, because="one has no spread")
    assert reason == "it=1 must be at least 2: one has no spread."
    for value in (HUGE, -HUGE, 10**5000):
        refused(ValueError, arguments.integer, value)


def test_a_number_lies_between_its_limits():
    assert arguments.number("it", 1, at_least=1, at_most=1) == 1.0
    assert arguments.number("it", INF, above=0, finite=False) == INF
    for value in (0, -1, NAN, INF, 10**400):
        refused(ValueError, arguments.number, value, above=0)
    between = refused(ValueError, arguments.number, 1.0, above=0, below=1)
    assert between == "it=1.0 must be strictly between 0 and 1."
    refused(ValueError, arguments.number, NAN, finite=False)


def test_an_order_is_positive_and_can_be_told_from_infinity():
    assert arguments.order("it", 2) == 2.0
    assert arguments.orders("it", (0.5, 2, 0.5)) == (0.5, 2.0)
    for value in (0, -1, NAN, INF, HUGE):
        refused(ValueError, arguments.order, value)
    refused(ValueError, arguments.order, 1, one_allowed=False)
    for value in (0, INF):
        assert arguments.order("it", value, ends_allowed=True) == value
    for value in (-1, NAN, HUGE):
        refused(ValueError, arguments.order, value, ends_allowed=True)
    refused(ValueError, arguments.orders, ())
    refused(TypeError, arguments.orders, 2.0)
    refused(TypeError, arguments.orders, "2")


def test_seeds_are_those_that_a_generator_takes():
    for value in (-(2**63), -1, 0, 2**64 - 1):
        torch.Generator().manual_seed(arguments.seed("it", value))
    for value in (-(2**63) - 1, 2**64, HUGE):
        refused(ValueError, arguments.seed, value)


def test_a_memory_budget_is_one_byte_or_more():
    assert arguments.memory_budget("it", 2e9) == 2 * 10**9
    for value in (-5, 0, 0.5, NAN, INF):
        refused(ValueError, arguments.memory_budget, value)


def test_a_flag_is_no_number():
    for value in (None, 0, 1, "yes", torch.ones(2, dtype=torch.bool)):
        refused(TypeError, arguments.flag, value)


def test_an_unknown_choice_is_told_what_there_is():
    assert arguments.choice("it", "relu", ("relu", "tanh")) == "relu"
    message = refused(ValueError, arguments.choice, "rellu", ("relu", "tanh"))
    assert message == "it='rellu' is unknown (did you mean 'relu'?): choose one of relu, tanh."
    for value in (None, 1, ["relu"]):
        refused(TypeError, arguments.choice, value, ("relu", "tanh"))


def test_a_name_given_twice_counts_once_and_one_string_is_no_list():
    assert arguments.names("it", ("b", "a", "b"), {"a": 1, "b": 2}) == ["b", "a"]
    assert arguments.names("it", iter(["a"]), "ab") == ["a"]
    for value in (None, "a", 1, [1], [None], {"a": 1}, b"a"):
        refused(TypeError, arguments.names, value, ["a", "b"])
    assert "choose among a, b" in refused(ValueError, arguments.names, ["c"], ["a", "b"])
    refused(ValueError, arguments.names, [], ["a", "b"])
    refused(ValueError, arguments.names, ["a", "a"], ["a", "b"], at_least=2)
    assert arguments.names("it", [], ["a", "b"], at_least=0) == []
    many = [f"layer{index}" for index in range(200)]
    assert "(188 more)" in refused(ValueError, arguments.names, ["x"], many)


def test_integers_are_checked_one_by_one():
    assert arguments.integers("it", [1, np.int64(2)], at_least=1) == (1, 2)
    assert refused(ValueError, arguments.integers, [1, 0], at_least=1).startswith("it[1]=0")
    for value in (None, 3, "12", [1.5], [[1]], torch.ones(2, 2)):
        refused(TypeError, arguments.integers, value)
    for value in ([], [1, 2, 3]):
        refused(ValueError, arguments.integers, value, length=2)


def test_what_is_known_is_true_or_false():
    assert arguments.known_truths("it", None, ["a"]) == {}
    assert arguments.known_truths("it", {"a": True}, ["a"]) == {"a": True}
    assert "'b'" in refused(ValueError, arguments.known_truths, {"b": True}, ["a"])
    refused(TypeError, arguments.known_truths, {"a": 1}, ["a"])
    refused(TypeError, arguments.known_truths, ["a"], ["a"])


def test_a_tensor_has_the_shape_and_the_kind_that_is_asked_for():
    x = torch.ones(2, 3)
    assert arguments.tensor("it", x, shape=("k", 3), floating=True, finite=True) is x
    message = refused(ValueError, arguments.tensor, x, shape=("k", 4))
    assert message == "it=<Tensor (2, 3) of torch.float32> must be a Tensor of shape (k, 4)."
    refused(ValueError, arguments.tensor, x, ndim=1)
    for shape in ((2, "…"), ("n", 3, "…"), ("n", "d", "…")):
        assert arguments.tensor("it", x, shape=shape) is x
    for shape in ((3, "…"), ("n", "C", "d", "…")):
        refused(ValueError, arguments.tensor, x, shape=shape)
    refused(ValueError, arguments.tensor, x[:0], ndim=2)
    assert arguments.tensor("it", x[:0], ndim=2, empty=True).shape == (0, 3)
    refused(ValueError, arguments.tensor, x, floating=False)
    refused(ValueError, arguments.tensor, x.long(), floating=True)
    refused(ValueError, arguments.tensor, x > 0, floating=False)
    refused(ValueError, arguments.tensor, x + 1j)
    for value in (None, 1.0, [1.0], np.ones(3)):
        refused(TypeError, arguments.tensor, value)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.double])
def test_entries_that_are_not_finite_are_refused_in_every_dtype(kind):
    x = torch.ones(2).to(kind)
    assert arguments.tensor("it", x, finite=True) is x
    message = refused(ValueError, arguments.tensor, torch.full((2,), NAN).to(kind), finite=True)
    assert "NaN or infinite" in message


def test_entries_that_cannot_be_looked_at_are_refused():
    refused(ValueError, arguments.tensor, torch.ones(2, device="meta"), finite=True)
    refused(ValueError, arguments.tensor, torch.ones(2).to_sparse(), finite=True)


def test_numbers_become_a_vector_in_float64():
    for value in ([1, 2.0], (1.0, 2.0), np.array([1.0, 2.0]), torch.ones(1, 2).cumsum(1)):
        found = arguments.vector("it", value, above=0)
        assert found.dtype == torch.float64 and found.tolist() == [1.0, 2.0]
    for value in (None, 1.0, "12", ["1"], [True]):
        refused(TypeError, arguments.vector, value)
    for value in ([], [NAN], torch.tensor([INF]), torch.tensor([1j]), [0.0]):
        refused(ValueError, arguments.vector, value, above=0)
    refused(ValueError, arguments.vector, [1.0], at_least=2)


def test_a_square_matrix_is_square_and_symmetric_where_it_must_be():
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert arguments.square_matrix("it", matrix).dtype == torch.float64
    assert "symmetric" in refused(ValueError, arguments.square_matrix, matrix, symmetric=True)
    for value in (matrix[:1], matrix[0], matrix * NAN):
        refused(ValueError, arguments.square_matrix, value)
    refused(TypeError, arguments.square_matrix, [[1.0]])


def test_a_model_is_an_object_that_is_a_module():
    model = nn.Linear(2, 2)
    assert arguments.module("it", model) is model
    assert arguments.module("it", "wrapped", str) == "wrapped"
    for value in (None, lambda x: x, [model]):
        refused(TypeError, arguments.module, value)
    assert "its class" in refused(TypeError, arguments.module, nn.Linear)
    assert arguments.instance("it", model, nn.Linear) is model
    refused(TypeError, arguments.instance, model, nn.Conv2d, "from a convolution")


def test_functions_dtypes_devices_and_paths():
    assert arguments.function("it", len) is len
    refused(TypeError, arguments.function, 1)
    for value in (None, "float32", torch.int64, torch.complex64):
        refused(TypeError, arguments.dtype, value)
    refused(TypeError, arguments.device, 1.5)
    refused(ValueError, arguments.device, "warp")
    for value in (None, 1, b"a"):
        refused(TypeError, arguments.path, value)
    for value in ("", "a\0b"):
        refused(ValueError, arguments.path, value)


def test_a_value_is_shown_short_and_on_one_line():
    class Unprintable:
        def __repr__(self):
            raise ValueError("no")

    for value in ("x" * 10_000, list(range(10_000)), Unprintable(), 10**5000, "a\nb", nn.ReLU()):
        text = arguments.shown(value)
        assert len(text) <= 80 and "\n" not in text
    assert arguments.shown(torch.ones(2, 3)) == "<Tensor (2, 3) of torch.float32>"
