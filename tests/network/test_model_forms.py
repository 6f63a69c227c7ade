"""Models of unusual shapes: each is measured as autograd measures it on the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit.estimators import hessian_trace, mean_loss, measure
from paperkit.linearize import linearize
from paperkit.network import SamplesInteractError

N, FEATURES, CLASSES = 8, 6, 3


class Does(nn.Module):
    """Modules and a function of them and the inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.does = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.does(self, *args, **kwargs)


def _inputs() -> Tensor:
    return torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


LABELS = torch.arange(N) % CLASSES


def _trace(loss: Tensor, model: nn.Module) -> float:
    """Return the trace of the Hessian by one backward pass for each parameter."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    total = 0.0
    for parameter, part in zip(parameters, gradient, strict=True):
        for index, entry in enumerate(part.flatten()):
            if entry.requires_grad:
                row = torch.autograd.grad(
                    entry, parameter, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                total += float(row[0].flatten()[index])
    return total


def _is_measured(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    loss: str = "cross_entropy",
    by_hand: Callable[[Any, Tensor], Tensor] = functional.cross_entropy,
) -> None:
    value = by_hand(model(inputs), targets)
    trace = _trace(value, model)
    data = (inputs, targets)
    assert float(mean_loss(model, data, loss)) == pytest.approx(float(value.detach()), rel=1e-10)
    assert float(hessian_trace(model, data, loss)) == pytest.approx(trace, rel=1e-8, abs=1e-12)
    assert len(measure(model, data, loss=loss))


def _two_layers(**options: Any) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    parts = {"a": nn.Linear(FEATURES, 4, **options), "b": nn.Linear(4, CLASSES, **options)}
    return {name: part.double() for name, part in parts.items()}


def _at_least_four(model: Any, x: Tensor) -> Tensor:
    if len(x) < 4:
        raise RuntimeError("at least four")
    return model.b(torch.tanh(model.a(x)))


FORMS = {
    "a batch of eight": lambda m, x: m.b(torch.tanh(m.a(x)).view(N, -1)),
    "at least four samples": _at_least_four,
    "squeezed inside": lambda m, x: m.b(torch.tanh(m.a(x))[:, :, None, None].squeeze()),
    "one of several results": lambda m, x: {"loss": None, "logits": m.b(m.a(x).tanh()), "h": x},
}


@pytest.mark.parametrize("how", FORMS)
def test_models_for_some_numbers_of_samples_are_measured(how: str) -> None:
    def of_result(result: Any, targets: Tensor) -> Tensor:
        outputs = result["logits"] if isinstance(result, dict) else result
        return functional.cross_entropy(outputs, targets)

    _is_measured(Does(FORMS[how], **_two_layers()), _inputs(), LABELS, by_hand=of_result)


def test_a_model_for_one_number_of_samples_cannot_be_cut() -> None:
    model = Does(FORMS["a batch of eight"], **_two_layers())
    with pytest.raises(ValueError, match="no fewer than 8 samples at a time"):
        linearize(model, _inputs(), chunk_size=3)


def test_a_parameter_may_be_a_number() -> None:
    scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    model = Does(lambda m, x: m.b(torch.tanh(m.a(x))) * m.scale, scale=scale, **_two_layers())
    _is_measured(model, _inputs(), LABELS)


def test_outputs_may_be_one_number_a_sample_or_have_positions() -> None:
    torch.manual_seed(0)
    single = nn.Linear(FEATURES, 1).double()
    flat = Does(lambda m, x: m.a(x).squeeze(), a=single)
    numbers = torch.linspace(-1, 1, N, dtype=torch.float64)
    _is_measured(flat, _inputs(), numbers, "mse", functional.mse_loss)
    binary = (numbers > 0).double()
    loss = functional.binary_cross_entropy_with_logits
    _is_measured(flat, _inputs(), binary, "bce_with_logits", loss)
    pixel = Does(lambda m, x: m.a(x[:, :, None, None]), a=nn.Conv2d(FEATURES, CLASSES, 1).double())
    _is_measured(
        pixel, _inputs(), LABELS, by_hand=lambda f, y: functional.cross_entropy(f.flatten(1), y)
    )
    _is_measured(pixel, _inputs(), LABELS[:, None, None])


def test_one_class_has_neither_loss_nor_curvature() -> None:
    torch.manual_seed(0)
    _is_measured(nn.Linear(FEATURES, 1).double(), _inputs(), torch.zeros(N, dtype=torch.int64))


def test_no_outputs_are_refused() -> None:
    model = Does(lambda m, x: m.b(m.a(x))[:, :0], **_two_layers())
    with pytest.raises(ValueError, match="no outputs"):
        hessian_trace(model, (_inputs(), LABELS))


def _two_experts(model: Any, x: Tensor) -> Tensor:
    weights, chosen = model.gate(x).softmax(1).topk(2, 1)
    total = torch.zeros(len(x), 4, dtype=x.dtype)
    for k, expert in enumerate(model.experts):
        rows, places = (chosen == k).nonzero(as_tuple=True)
        if len(rows):
            total.index_add_(0, rows, weights[rows, places, None] * torch.tanh(expert(x[rows])))
    return model.b(total)


def test_experts_see_the_samples_that_are_theirs() -> None:
    parts: dict[str, nn.Module] = _two_layers()
    parts["gate"] = nn.Linear(FEATURES, 4).double()
    parts["experts"] = nn.ModuleList(nn.Linear(FEATURES, 4) for _ in range(4)).double()
    del parts["a"]
    _is_measured(Does(_two_experts, **parts), _inputs(), LABELS)


class _Graph(nn.Module):
    """A network that passes messages twice along the edges of a graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)
        self.register_buffer("edges", torch.eye(N) * 0.5 + torch.eye(N).roll(1, 0) * 0.5)

    def forward(self, nodes: Tensor) -> Tensor:
        return self.b(self.edges @ torch.tanh(self.a(self.edges @ nodes)))


def test_the_nodes_of_a_graph_are_one_sample() -> None:
    model, nodes = _Graph().double(), _inputs()
    loss = functional.cross_entropy(model(nodes), LABELS)
    with pytest.raises(SamplesInteractError, match=r"inputs\[None\].*forward=lambda"):
        hessian_trace(model, (nodes, LABELS))
    # The sentence, followed.
    found = hessian_trace(
        model,
        (nodes[None], LABELS[None]),
        forward=lambda model, inputs: model(inputs[0])[None],
    )
    assert float(found) == pytest.approx(_trace(loss, model), rel=1e-8)
    # As one batch the loss needs no such form.
    assert float(mean_loss(model, (nodes, LABELS))) == pytest.approx(float(loss.detach()))


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        torch.jit.script,
        lambda net: torch.jit.trace(net, _inputs()),
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager", fullgraph=True),
    ],
    ids=["script", "trace", "DataParallel", "compile"],
)
def test_wrapped_modules_are_measured_as_what_is_in_them(wrap: Callable, nested: bool) -> None:
    net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
    trace = _trace(functional.cross_entropy(net(_inputs()), LABELS), net)
    wrapped = wrap(net)
    model = Does(lambda m, x: m.net(x), net=wrapped) if nested else wrapped
    assert float(hessian_trace(model, (_inputs(), LABELS))) == pytest.approx(trace, rel=1e-8)
    assert len(measure(model, (_inputs(), LABELS)))


def test_a_table_of_sparse_gradients_is_measured_as_a_dense_one() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (N, 5))
    parts = {"table": nn.Embedding(11, 4).double(), "b": nn.Linear(4, CLASSES).double()}
    model = Does(lambda m, t: m.b(torch.tanh(m.table(t).mean(1))), **parts)
    _is_measured(model, tokens, LABELS)
    expected = float(hessian_trace(model, (tokens, LABELS)))
    model.table.sparse = True
    assert float(hessian_trace(model, (tokens, LABELS))) == pytest.approx(expected, rel=1e-12)
    assert len(measure(model, (tokens, LABELS)))


def test_a_lazy_model_is_refused_in_the_mode_in_which_it_was() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Dropout(), nn.Linear(4, CLASSES)).train()
    with pytest.raises(ValueError, match="lazy parameter"):
        measure(model, (_inputs(), LABELS))
    assert all(module.training for module in model.modules())
