"""Checks of arguments: each returns the value in its Python type, or raises one sentence.

The sentence begins with ``name=value`` and says what to pass: a ``TypeError`` where the value is of
another kind, a ``ValueError`` where it is of the right kind and out of range. Checks come before
anything is computed. A scalar of NumPy and a tensor without dimensions count as the number they
hold; a ``bool`` is no number.
"""

from paperkit.arguments.numbers import (
    flag,
    integer,
    integers,
    memory_budget,
    number,
    order,
    orders,
    seed,
)
from paperkit.arguments.objects import (
    device,
    dtype,
    function,
    functions,
    instance,
    iterable,
    module,
)
from paperkit.arguments.sentences import shown
from paperkit.arguments.tensors import Shape, square_matrix, tensor, vector
from paperkit.arguments.texts import choice, known_truths, mapping, names, path, strings

__all__ = [
    "Shape",
    "choice",
    "device",
    "dtype",
    "flag",
    "function",
    "functions",
    "instance",
    "integer",
    "integers",
    "iterable",
    "known_truths",
    "mapping",
    "memory_budget",
    "module",
    "names",
    "number",
    "order",
    "orders",
    "path",
    "seed",
    "shown",
    "square_matrix",
    "strings",
    "tensor",
    "vector",
]
