"""Models as people have them: each is measured as the plain network with the same weights."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from paperkit.curvature import dense_hessian
from paperkit.estimators import adaptive_sharpness, hessian_trace, measure, sam_sharpness
from paperkit.linearize import linearize
from paperkit.network.evaluation import evaluation
from paperkit.network.network import Network, network_outputs
from paperkit.network.problem import CutGraphError, UnusedParameterWarning

CPU = {"dtype": torch.float64, "device": "cpu"}


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(**CPU)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cpu").manual_seed(1)
    return torch.randn(7, 6, generator=generator, **CPU), torch.arange(7) % 3


class Wrapped(nn.Module):
    """A network whose forward pass does something to it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(inputs)


class Checkpointed(Wrapped):
    def forward(self, inputs):
        return checkpoint(self.net, inputs, use_reentrant=False)


class Listed(Wrapped):
    def __init__(self, net):
        super().__init__(net)
        self.weights = [net[0].weight, net[2].weight]

    def forward(self, inputs):
        hidden = functional.linear(inputs, self.weights[0], self.net[0].bias).tanh()
        return functional.linear(hidden, self.weights[1], self.net[2].bias)


class Cached(Wrapped):
    """Keeps a weight that it computed once, as an attribute and in a dict."""

    def __init__(self, net):
        super().__init__(net)
        self.kept, self.cache = None, {}

    def forward(self, inputs):
        if self.kept is None:
            self.kept = self.net[0].weight * 1.0
        if "last" not in self.cache:
            self.cache["last"] = self.net[2].weight * 1.0
        hidden = functional.linear(inputs, self.kept, self.net[0].bias).tanh()
        return functional.linear(hidden, self.cache["last"], self.net[2].bias)


class Twice(Wrapped):
    """The same module under two names."""

    def __init__(self, net):
        super().__init__(net)
        self.again = net

    def forward(self, inputs):
        return self.again(inputs)


KINDS = (Wrapped, Checkpointed, Listed, Cached, Twice)


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_model_reads_its_weights_changes_nothing(kind) -> None:
    expected, model = plain(), kind(plain())
    inputs, targets = data()
    trace = float(dense_hessian(expected, inputs, targets).trace())
    before = copy.deepcopy(model.state_dict())
    for method in ("exact", "xtrace"):
        found = hessian_trace(model, (inputs, targets), method=method, products=60)
        assert float(found) == pytest.approx(trace, rel=1e-9 if method == "exact" else 0.2), method
    for function, options in ((sam_sharpness, {"rho": 2.0}), (adaptive_sharpness, {})):
        right = float(function(expected, (inputs, targets), **options))
        assert float(function(model, (inputs, targets), **options)) == pytest.approx(right)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.net.parameters())
    assert isinstance(model.net[0].weight, nn.Parameter)
    if kind is Cached:
        assert model.kept is None and model.cache == {}


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrappings_are_taken_off(wrap) -> None:
    inputs, targets = data()
    right = float(dense_hessian(plain(), inputs, targets).trace())
    assert float(hessian_trace(wrap(plain()), (inputs, targets))) == pytest.approx(right)
    assert list(linearize(wrap(plain()), inputs).layers) == ["0", "2"]


def test_what_was_made_in_inference_mode_is_measured_and_so_is_what_is_called_there() -> None:
    inputs, targets = data()
    right = float(dense_hessian(plain(), inputs, targets).trace())
    with torch.inference_mode():
        built, features = plain(), inputs * 1.0
        assert float(hessian_trace(plain(), (inputs, targets))) == pytest.approx(right)
    assert float(hessian_trace(built, (features, targets))) == pytest.approx(right)


class Cut(Wrapped):
    def __init__(self, net, how):
        super().__init__(net)
        self.how = how

    def forward(self, inputs):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.net(inputs)
        if self.how == "numpy":
            return torch.from_numpy(self.net(inputs).detach().numpy())
        return checkpoint(self.net, inputs, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("how", ["no_grad", "numpy", "reentrant"])
def test_a_graph_that_is_cut_is_no_zero_curvature(how: str) -> None:
    with pytest.raises(CutGraphError, match=r"net\.0\.weight.* no gradient reaches"):
        hessian_trace(Cut(plain(), how), data())


class Unused(Wrapped):
    def __init__(self, net):
        super().__init__(net)
        self.spare = nn.Linear(4, 4, **CPU)


def test_a_parameter_without_influence_is_named_and_counts_as_zero() -> None:
    inputs, targets = data()
    right = float(dense_hessian(plain(), inputs, targets).trace())
    with pytest.warns(UnusedParameterWarning, match=r"spare\.weight, spare\.bias had no influence"):
        found = hessian_trace(Unused(plain()), (inputs, targets))
    assert float(found) == pytest.approx(right)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedParameterWarning)
        report = measure(Unused(plain()), (inputs, targets), ["hessian_trace"])
    assert report.unused == ("spare.weight", "spare.bias")
    assert "without influence on the outputs: spare.weight, spare.bias" in repr(report)


class Pair(nn.Module):
    """Two inputs, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.left, self.right = nn.Linear(6, 3, **CPU), nn.Linear(2, 3, **CPU)

    def forward(self, left, right):
        return {"logits": self.left(left).tanh() + self.right(right), "hidden": left}


def test_several_inputs_come_as_a_tuple_a_dict_or_with_a_forward_of_their_own() -> None:
    inputs, targets = data()
    both = torch.cat([inputs, inputs[:, :2].square()], dim=1)

    class Joined(nn.Module):
        def __init__(self, pair: Pair) -> None:
            super().__init__()
            self.pair = pair

        def forward(self, x):
            return self.pair(x[:, :6], x[:, 6:])["logits"]

    right = float(dense_hessian(Joined(Pair()), both, targets).trace())
    parts = (both[:, :6], both[:, 6:])
    as_dict = {"left": parts[0], "right": parts[1]}
    for given in ((parts, targets), (as_dict, targets), {**as_dict, "labels": targets}):
        assert float(hessian_trace(Pair(), given)) == pytest.approx(right)
        uneven = [
            ({"left": parts[0][part], "right": parts[1][part]}, targets[part])
            for part in (slice(0, 2), slice(2, 7))
        ]
        assert float(hessian_trace(Pair(), uneven)) == pytest.approx(right)
    found = hessian_trace(
        Pair(), (both, targets), forward=lambda model, x: model(x[:, :6], x[:, 6:])["logits"]
    )
    assert float(found) == pytest.approx(right)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(6, 3, device="meta"), "meta device"),
        (lambda: nn.LazyLinear(3), "lazy parameter"),
        (lambda: nn.Embedding(5, 3, max_norm=1.0), "max_norm"),
        (lambda: nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.cfloat))]), "complex"),
    ],
)
def test_what_has_no_values_or_no_real_ones_is_refused_and_left_alone(model, message) -> None:
    built = model().train()
    with pytest.raises(ValueError, match=message):
        hessian_trace(built, data())
    assert built.training


def test_hooks_on_parameters_do_not_see_the_measurement() -> None:
    model, seen = plain(), []
    model[0].weight.register_hook(lambda gradient: seen.append(1) or 2 * gradient)
    inputs, targets = data()
    right = float(dense_hessian(plain(), inputs, targets).trace())
    assert float(hessian_trace(model, (inputs, targets))) == pytest.approx(right)
    assert not seen
    functional.cross_entropy(model(inputs), targets).backward()
    assert seen == [1]


def test_values_are_written_into_the_model_for_a_pass_without_a_graph_alone() -> None:
    model, (inputs, _) = Network(plain()), data()
    weight = model.get_parameter("0.weight")
    before = weight.detach().clone()
    with evaluation(model), torch.no_grad():
        moved = network_outputs(model, {"0.weight": 2 * before}, inputs)
    other = plain()
    other[0].weight.data.mul_(2)
    assert torch.equal(moved, other(inputs))
    assert torch.equal(weight, before)
