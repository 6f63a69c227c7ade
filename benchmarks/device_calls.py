"""Each public function's valid call on a device, compared with the same call on the CPU.

The calls are those of ``tests/public_calls.py``. Their arguments are made on the CPU, then copied
to the device and into the format, so that both sides start from the same numbers. Two results agree
where all that is exact is equal, and where floating-point numbers agree to half of the digits of
their format, ``√eps``: each number relative to the largest one that stands beside it in the result.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit.linalg import FunctionOperator, Lanczos, SpectralFunction
from paperkit.monitor import SharpnessMonitor
from paperkit.network import Batches, Network, Samples
from paperkit.network.losses import Loss
from paperkit.optim import RandomState, Vector
from paperkit.training import evaluate
from tests import public_calls
from tests.public_calls import CALLS

ROOMS = (
    "linalg",
    "network",
    "curvature",
    "linearize",
    "estimators",
    "bounds",
    "bounds.compression",
    "bounds.information_geometry",
    "bounds.renyi",
    "bounds.smoothness",
    "optim",
    "data",
    "models",
    "training",
    "monitor",
    "statistics",
)
FORMATS = {"float64": torch.float64, "float32": torch.float32}
STEPS = 2
"""Steps that an optimizer takes."""


@dataclass(frozen=True)
class Place:
    """Where a call runs, and in which floating-point format."""

    device: torch.device
    dtype: torch.dtype

    def put(self, tensor: Tensor) -> Tensor:
        """Return a copy there, integers in their own format."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().clone().to(self.device, dtype)


@dataclass(frozen=True)
class Outcome:
    """One public name on the device beside the CPU.

    Attributes
    ----------
    name, dtype : str
    agrees : bool
    difference : float or None
        The largest difference over what is allowed; None where the call was refused or failed.
    remark : str
        Why it does not agree, or with what sentence both refused.
    """

    name: str
    dtype: str
    agrees: bool
    difference: float | None
    remark: str = ""


def called_names() -> dict[str, Callable[..., Any]]:
    """Return the functions and classes whose valid calls are tried."""
    names = public_calls.public_names(ROOMS)
    return {
        name: names[name]
        for name in sorted(names)
        if not public_calls.is_made_by_the_library(names[name]) and CALLS[name].runs
    }


def compare_call(
    name: str,
    function: Callable[..., Any],
    there: Place,
    rule: Callable[[], AbstractContextManager] = nullcontext,
) -> Outcome:
    """Run one valid call on the CPU and on the device.

    Parameters
    ----------
    name, function
        An entry of :func:`called_names`.
    there : Place
        The device and the format; the format is that of the CPU's call too.
    rule : callable
        Makes a context around the call on the device, such as one that forbids new tensors without
        a device.
    """
    here = _attempt(name, function, Place(torch.device("cpu"), there.dtype), nullcontext)
    return compare_results(name, there.dtype, here, _attempt(name, function, there, rule))


def compare_results(name: str, format_: torch.dtype, here: Any, there: Any) -> Outcome:
    """Compare what two places gave: results, or the exceptions that they ended in.

    A valid call may be refused in single precision, by the same kind of error in both places.
    """
    dtype = str(format_).removeprefix("torch.")
    if isinstance(here, Exception) or isinstance(there, Exception):
        first, second = (f"{type(one).__name__}: {one}" for one in (here, there))
        alike = isinstance(here, ValueError) and type(here) is type(there)
        alike = alike and format_ is not torch.float64
        remark = (
            f"both refused: {first}" if alike else f"on the CPU {first}; on the device {second}"
        )
        return Outcome(name, dtype, alike, None, remark)
    worst, remark = _difference(list(_leaves(here)), list(_leaves(there)), format_)
    return Outcome(name, dtype, worst <= 1.0, worst if math.isfinite(worst) else None, remark)


def _attempt(
    name: str,
    function: Callable[..., Any],
    place: Place,
    rule: Callable[[], AbstractContextManager],
) -> Any:
    """Make the arguments, call, and use what is returned; return an exception as a result."""
    try:
        torch.manual_seed(0)
        arguments = _arguments(name, function, place)
        use = Use(place)
        with warnings.catch_warnings(), rule():
            warnings.simplefilter("ignore")
            return use(function, function(**arguments), arguments)
    except Exception as error:  # a function that fails is a finding, and the next is tried
        return error


def _arguments(name: str, function: Callable[..., Any], place: Place) -> dict[str, Any]:
    arguments = public_calls.valid_arguments(name, function)
    moved = {key: moved_to(value, place) for key, value in arguments.items()}
    known = inspect.signature(function).parameters
    moved |= {"device": place.device} if "device" in known else {}
    moved |= {"dtype": place.dtype} if "dtype" in known else {}
    if "params" in moved:
        model = moved_to(public_calls.model(), place).train().requires_grad_()
        moved["params"] = list(model.named_parameters())
        moved |= {"model": model} if "model" in moved else {}
        moved["params"][0][1].network = model  # the closure calls it
    return moved


# --- to the device ----------------------------------------------------------------------------


def moved_to(value: Any, place: Place) -> Any:
    """Copy tensors, modules and all that holds some to a device, floats into a format.

    Random generators stay on the CPU, where the library wants them.
    """
    if isinstance(value, Tensor):
        return _tensor_to(value, place)
    if isinstance(value, nn.Module):
        return _module_to(value, place)
    if isinstance(value, torch.device):
        return place.device
    if isinstance(value, torch.dtype):
        return place.dtype if value.is_floating_point else value
    if isinstance(value, Mapping):
        return type(value)({key: moved_to(item, place) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved_to(item, place) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(moved_to(item, place) for item in value)
    if isinstance(value, FunctionOperator):  # its round-off is that of its format
        return FunctionOperator(
            value.function, value.dimension, dtype=place.dtype, device=place.device
        )
    if type(value).__module__.startswith("paperkit.") and hasattr(value, "__dict__"):
        twin = copy.copy(value)
        for key, item in vars(value).items():
            object.__setattr__(twin, key, moved_to(item, place))
        return twin
    return value


def _tensor_to(value: Tensor, place: Place) -> Tensor:
    twin = place.put(value)
    if isinstance(value, nn.Parameter):
        return nn.Parameter(twin, value.requires_grad)
    return twin.requires_grad_(value.requires_grad)


def _module_to(value: nn.Module, place: Place) -> nn.Module:
    twin = copy.deepcopy(value)
    with torch.no_grad():
        return twin._apply(place.put)


# --- what a result is used for ----------------------------------------------------------------


class Use:
    """Takes the numbers out of what a call returned; objects that do something do it first."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.inputs = moved_to(public_calls.inputs(), place)
        self.labels = moved_to(public_calls.labels(), place)

    def __call__(self, function: Callable[..., Any], result: Any, arguments: dict[str, Any]) -> Any:
        """Return the numbers of a result."""
        if isinstance(result, torch.optim.Optimizer):
            return self._steps(result, arguments["params"])
        if isinstance(result, nn.Module) and "model" not in arguments:
            return self._forward(function.__name__, result, arguments)
        if isinstance(result, Network):
            return result(self.inputs).detach()
        if hasattr(result, "dimension") and callable(result):
            return result(self._normal(2, result.dimension))
        if isinstance(result, Iterator):
            return list(itertools.islice(result, 3))
        for kind, numbers in self._OBJECTS.items():
            if isinstance(result, kind):
                return numbers(self, result)
        if function.__name__ == "train":
            return evaluate(arguments["model"], arguments["data"])
        return result

    def _steps(
        self, optimizer: torch.optim.Optimizer, parameters: list[tuple[str, Tensor]]
    ) -> list[Tensor]:
        """Take steps on a small network; return its weights."""
        network = parameters[0][1].network

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(self.inputs), self.labels)
            loss.backward()
            return loss.detach()

        for _ in range(STEPS):
            optimizer.step(closure)
        return [parameter.detach() for _, parameter in parameters]

    def _forward(self, name: str, model: nn.Module, arguments: dict[str, Any]) -> Tensor:
        """Run a network that a function has made on inputs that fit it."""
        shape = _INPUT_SHAPES[name] if name in _INPUT_SHAPES else arguments["input_shape"]
        model = model.to(self.place.device, self.place.dtype).eval()
        return model(self._normal(2, *shape)).detach()

    def _loss(self, loss: Loss) -> list[Tensor]:
        outputs = self.inputs[:, : public_calls.CLASSES]
        bound = loss.bound(outputs, lambda: iter([self.labels]))
        return [bound.value(outputs, self.labels), bound.sample_losses(outputs, self.labels)]

    def _points(self, function: SpectralFunction) -> Tensor:
        points = torch.linspace(0.5, 2.0, 4, device=self.place.device, dtype=self.place.dtype)
        return function.evaluate(points)

    def _draws(self, state: RandomState) -> bool:
        """Whether the device's generator gives the same numbers again; they are its own."""
        drawn = []
        for _ in range(2):
            with state.replayed():
                drawn.append(torch.rand(3, device=self.place.device))
        return torch.equal(*drawn)

    def _normal(self, *shape: int) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed(0)
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return drawn.to(self.place.device, self.place.dtype)

    _OBJECTS: ClassVar[dict[type, Callable[[Use, Any], Any]]] = {
        Loss: _loss,
        SpectralFunction: _points,
        RandomState: _draws,
        Batches: lambda self, result: list(result),
        Samples: lambda self, result: result.parts,
        Vector: lambda self, result: [*(result * 2.0).tensors, result.norm()],
        Lanczos: lambda self, result: _tridiagonal(result),
        SharpnessMonitor: lambda self, result: result.read(),
    }


def _tridiagonal(lanczos: Lanczos) -> Any:
    lanczos.advance(STEPS)
    return lanczos.tridiagonal()


_INPUT_SHAPES = {
    "ImageNetResNet": (3, 32, 32),
    "LeNet5": (1, 28, 28),
    "MLP": (3,),
    "ResNet": (3, 32, 32),
    "SimpleViT": (3, 8, 8),
    "VGG": (3, 8, 8),
    "ViT": (3, 8, 8),
    "WideResNet": (3, 32, 32),
}


# --- comparison --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """A part of a result: where it stands, what it is, and the part that it belongs to."""

    path: str
    value: Any

    @property
    def owner(self) -> str:
        """The path of what holds it."""
        return self.path.rpartition(".")[0]


def _leaves(value: Any, path: str = "") -> Iterator[Leaf]:
    """Yield the tensors, numbers and texts of a result, in order."""
    if isinstance(value, Tensor | float | int | str | None | bool):
        yield Leaf(path, value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    elif isinstance(value, nn.Module):
        yield from _leaves(value.state_dict(), path)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.compare:
                yield from _leaves(getattr(value, field.name), f"{path}.{field.name}")


def _difference(here: list[Leaf], there: list[Leaf], dtype: torch.dtype) -> tuple[float, str]:
    """Return the largest difference over what is allowed, and where it stands."""
    if [leaf.path for leaf in here] != [leaf.path for leaf in there]:
        return math.inf, "the results are made of other parts"
    if not here:
        return math.inf, "the result holds nothing that could be compared"
    scales: dict[str, float] = {}
    for leaf in here:
        scales[leaf.owner] = max(scales.get(leaf.owner, 0.0), _size(leaf.value))
    worst, place = 0.0, ""
    for one, other in zip(here, there, strict=True):
        over = _leaf_difference(one.value, other.value, scales[one.owner], dtype)
        if over > worst:
            worst, place = over, f"{one.path}: {_shown(one.value)} and {_shown(other.value)}"
    return worst, place if worst > 1.0 else ""


def _size(value: Any) -> float:
    if isinstance(value, Tensor):
        finite = value.detach()[torch.isfinite(value)] if value.is_floating_point() else value[:0]
        return float(finite.abs().max()) if finite.numel() else 0.0
    return abs(value) if isinstance(value, float) and math.isfinite(value) else 0.0


def _leaf_difference(one: Any, other: Any, scale: float, dtype: torch.dtype) -> float:
    """Return the difference of two leaves over what is allowed; infinity where they differ."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        a, b = one.detach().cpu(), other.detach().cpu()
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
    elif isinstance(one, float) and isinstance(other, float):
        a, b = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (one, other))
    else:
        return 0.0 if one == other else math.inf
    if not a.is_floating_point() or not torch.equal(a.isfinite(), b.isfinite()):
        return 0.0 if torch.equal(a, b) else math.inf
    open_ = a.isfinite()
    if not torch.equal(a[~open_].nan_to_num(0.5), b[~open_].nan_to_num(0.5)):
        return math.inf
    apart = (a - b)[open_].abs()
    if not apart.numel() or not float(apart.max()):
        return 0.0
    allowed = math.sqrt(torch.finfo(dtype).eps) * scale
    return float(apart.max()) / allowed if allowed else math.inf


def _shown(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, Tensor) else value)
    return text if len(text) < 80 else text[:77] + "…"
