"""Streamed curvature products against dense float64 autograd."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from helpers import relative, targets_for
from networks import CASES, NAMED, Case
from torch import Tensor, nn

from paperkit.curvature import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    ResidualOperator,
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
    routes,
)
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.network import SamplesInteractError, get_loss
from paperkit.network.evaluation import evaluation
from paperkit.network.network import network_outputs

OPERATORS = (HessianOperator, GaussNewtonOperator, FisherOperator, EmpiricalFisherOperator)
LOSSES = ("cross_entropy", "half_squared_error", "mse")


class Attention(nn.Module):
    """Multi-head attention, layer norm and GELU in a fused-able encoder layer, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(
            4, 2, 6, dropout=0.5, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(12, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs).flatten(1))


class Tied(nn.Module):
    """One weight under two names: two layers, the second along the depth."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


class _HandWrittenSquare(torch.autograd.Function):
    """No rule for forward mode or for several vectors at once."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return 2.0 * z * cotangent


class ReverseOnly(nn.Module):
    """A network that can be differentiated in reverse mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(_HandWrittenSquare.apply(self.first(inputs)))


class _ForwardSquare(torch.autograd.Function):
    """A rule for forward mode, none for several vectors at once."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z * z

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> Tensor:
        return 2.0 * ctx.saved_tensors[0] * cotangent

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return 2.0 * ctx.saved_tensors[0] * tangent


class OneVectorOnly(ReverseOnly):
    """A network that forward mode takes one vector at a time."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(_ForwardSquare.apply(self.first(inputs)))


class Centred(nn.Module):
    """Outputs that depend on the other samples of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs - inputs.mean(dim=0))


_OTHERS = (
    Case("attention", Attention, (3, 4)),
    Case("tied weights", Tied, (5,)),
    Case(
        "normalisation",
        lambda: nn.Sequential(
            nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Dropout(), nn.Linear(4, 3)
        ),
        (5,),
    ),
    Case("reverse mode only", ReverseOnly, (5,)),
    Case("one vector at a time", OneVectorOnly, (5,)),
)
OTHERS = {case.name: case for case in _OTHERS}
SMALL = NAMED["tanh before the second layer"]
every_case = pytest.mark.parametrize("case", (*CASES, *OTHERS.values()), ids=lambda case: case.name)
every_operator = pytest.mark.parametrize("operator", OPERATORS)


def dense(
    operator: type[CurvatureOperator],
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: str = "cross_entropy",
    parameters: list[str] | None = None,
) -> Tensor:
    """Write out the matrix by automatic differentiation alone."""
    if operator is HessianOperator:
        return dense_hessian(model, inputs, targets, loss, parameters)
    if operator is EmpiricalFisherOperator:
        return dense_empirical_fisher(model, inputs, targets, loss, parameters)
    if operator is FisherOperator and loss == "mse":
        loss = "half_squared_error"
    return dense_gauss_newton(model, inputs, loss, parameters)


def probes_for(operator: CurvatureOperator, k: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    probes = torch.randn(k, operator.dimension, generator=generator, dtype=torch.float64)
    return probes.to(operator.device, operator.dtype)


@every_case
@every_operator
@pytest.mark.parametrize("loss", LOSSES)
def test_products_equal_the_dense_matrix_over_uneven_batches(
    case: Case, operator: type[CurvatureOperator], loss: str, device: torch.device
) -> None:
    model, inputs, labels = case.make(device=device)
    targets = targets_for(loss, labels)
    matrix = dense(operator, model, inputs, targets, loss)
    data = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    product = operator(model, data, loss)
    probes = probes_for(product)
    expected = probes @ matrix
    together = product(probes)
    alone = product(probes[0])
    assert relative(together - expected, expected) < 1e-12
    assert relative(alone - expected[0], expected[0]) < 1e-12


WITH_RESIDUALS = (
    routes.JETS,
    routes.VECTORIZED_DOUBLE_BACKWARD,
    routes.FORWARD_OVER_REVERSE,
    routes.REVERSE_OVER_FORWARD,
    routes.DOUBLE_BACKWARD,
)
WITHOUT = (
    routes.VECTORIZED_REVERSE_OVER_FORWARD,
    routes.REVERSE_OVER_FORWARD,
    routes.DOUBLE_BACKWARD,
)


def products_by(
    route: routes.Route,
    operator: CurvatureOperator,
    inputs: Tensor,
    targets: Tensor,
    vectors: Tensor,
) -> Tensor:
    """Multiply an operator's matrix with vectors (k, d) in one of the ways."""
    with evaluation(operator.model) as parameters:
        chunk = routes.Chunk(
            lambda chosen: network_outputs(operator.model, chosen, inputs), parameters, targets
        )
        return route.products(chunk, vectors, operator.curvature) / len(inputs)


@pytest.mark.parametrize(
    "case", (NAMED["residual"], NAMED["positions"]), ids=lambda case: case.name
)
@pytest.mark.parametrize(
    ("operator", "route"),
    [
        (operator, route)
        for operator in OPERATORS
        for route in (WITH_RESIDUALS if issubclass(operator, HessianOperator) else WITHOUT)
    ],
    ids=lambda value: value.name if isinstance(value, routes.Route) else value.__name__,
)
def test_each_route_gives_the_same_matrix(
    case: Case, operator: type[CurvatureOperator], route: routes.Route, device: torch.device
) -> None:
    model, inputs, targets = case.make(device=device)
    product = operator(model, (inputs, targets))
    probes = probes_for(product)
    expected = probes @ dense(operator, model, inputs, targets)
    found = products_by(route, product, inputs, targets, probes)
    assert relative(found - expected, expected) < 1e-12


@pytest.mark.parametrize(
    ("case", "operator", "fast"),
    [
        # The search ends at a way that serves single vectors as well.
        (NAMED["residual"], HessianOperator, [routes.JETS]),
        (
            OTHERS["attention"],
            GaussNewtonOperator,
            [routes.VECTORIZED_REVERSE_OVER_FORWARD, routes.REVERSE_OVER_FORWARD],
        ),
        # The derivative of layer normalisation's forward rule is wrong.
        (OTHERS["attention"], HessianOperator, [routes.VECTORIZED_DOUBLE_BACKWARD]),
        (OTHERS["reverse mode only"], HessianOperator, [routes.VECTORIZED_DOUBLE_BACKWARD]),
        (
            OTHERS["one vector at a time"],
            HessianOperator,
            [routes.VECTORIZED_DOUBLE_BACKWARD, routes.REVERSE_OVER_FORWARD],
        ),
        (OTHERS["reverse mode only"], GaussNewtonOperator, []),
        (OTHERS["one vector at a time"], GaussNewtonOperator, [routes.REVERSE_OVER_FORWARD]),
    ],
)
def test_only_routes_that_agree_with_double_backward_are_taken(
    case: Case, operator: type[CurvatureOperator], fast: list[routes.Route]
) -> None:
    model, inputs, targets = case.make()
    product = operator(model, (inputs, targets))
    expected = [*fast, routes.DOUBLE_BACKWARD]
    assert product.routes == tuple(route.name for route in expected)


@every_operator
def test_blocks_follow_the_order_of_the_names(operator: type[CurvatureOperator]) -> None:
    model, inputs, targets = SMALL.make()
    names = ["4.bias", "0.weight"]
    product = operator(model, (inputs, targets), parameters=names)
    matrix = dense(operator, model, inputs, targets, parameters=names)
    assert product.parameter_names == names
    assert product.dimension == 3 + 48
    identity = torch.eye(product.dimension, dtype=torch.float64)
    assert relative(product(identity) - matrix, matrix) < 1e-12


def test_a_block_that_the_loss_does_not_depend_on_is_zero() -> None:
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3)).double()
    model[1].unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    _, inputs, targets = SMALL.make()
    for operator, k in itertools.product(OPERATORS, (1, 2)):
        product = operator(model, (inputs, targets), parameters=["1.unused"])
        assert not product(torch.ones(k, 2, dtype=torch.float64)).any()


@every_operator
def test_samples_count_equally_whatever_their_batch(operator: type[CurvatureOperator]) -> None:
    model, inputs, targets = SMALL.make(9)
    cuts = [(0, 1), (1, 3), (3, 9)]
    data = [(inputs[a:b], targets[a:b]) for a, b in cuts]
    product = operator(model, data)
    matrix = dense(operator, model, inputs, targets)
    probe = probes_for(product, 1)[0]
    means = [dense(operator, model, x, y) @ probe for x, y in data]
    unweighted = torch.stack(means).mean(dim=0)
    expected = matrix @ probe
    assert product.num_samples == 9
    assert relative(product(probe) - expected, expected) < 1e-12
    assert relative(unweighted - expected, expected) > 1e-2  # a mean over batches is told apart


@every_operator
def test_a_small_budget_runs_one_sample_at_a_time_with_the_same_result(
    operator: type[CurvatureOperator],
) -> None:
    model, inputs, targets = SMALL.make()
    product = operator(model, (inputs, targets))
    expected = product(probes_for(product))
    sizes: list[int] = []
    tight = operator(model, (inputs, targets), memory_budget=1)
    tight(probes_for(tight))  # the first product compares the ways to compute, on two samples
    handle = model.register_forward_hook(lambda _, arguments, __: sizes.append(len(arguments[0])))
    actual = tight(probes_for(tight))
    handle.remove()
    assert set(sizes) == {1}
    assert relative(actual - expected, expected) < 1e-12


def test_softmax_fisher_is_the_expectation_over_the_models_own_labels() -> None:
    model, inputs, _ = SMALL.make(1)
    probabilities = model(inputs).detach().softmax(dim=1)[0]
    expected = sum(
        p * dense_empirical_fisher(model, inputs, torch.tensor([label]))
        for label, p in enumerate(probabilities)
    )
    product = FisherOperator(model, (inputs, torch.tensor([0])))
    identity = torch.eye(product.dimension, dtype=torch.float64)
    assert relative(product(identity) - expected, expected) < 1e-12


def test_gaussian_fisher_does_not_depend_on_the_scale_of_the_squared_error() -> None:
    model, inputs, labels = SMALL.make()
    data = (inputs, targets_for("mse", labels))
    mse, half = (FisherOperator(model, data, loss) for loss in ("mse", "half_squared_error"))
    probe = probes_for(mse, 1)[0]
    assert relative(mse(probe) - half(probe), mse(probe)) < 1e-14
    gauss_newton = GaussNewtonOperator(model, data, "mse")(probe)
    assert relative(mse(probe) - 1.5 * gauss_newton, mse(probe)) < 1e-12  # C/2 = 1.5


def test_definiteness_is_declared_truly() -> None:
    model, inputs, targets = SMALL.make(4)
    for operator in OPERATORS:
        product = operator(model, (inputs, targets))
        matrix = product(torch.eye(product.dimension, dtype=torch.float64))
        eigenvalues = torch.linalg.eigvalsh(0.5 * (matrix + matrix.T))
        assert relative(matrix - matrix.T, matrix) < 1e-12
        lowest = float(eigenvalues[0] / eigenvalues[-1])
        assert lowest > -1e-12 if product.positive_semidefinite else lowest < -1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_output_hessian_is_the_square_of_its_factor(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    changes = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    factor = get_loss(loss).hessian_factor(outputs)
    expected = torch.einsum("nrc,nrd,knd->knc", factor, factor, changes)
    assert relative(get_loss(loss).hessian_product(outputs, changes) - expected, expected) < 1e-14


def test_output_hessian_keeps_its_digits_where_the_softmax_is_saturated() -> None:
    # p − 1 is below single precision; Λu = p_2 (u_2 − u_1) (−1, 1) up to terms in p_2².
    outputs = torch.tensor([[40.0, 0.0]])
    product = get_loss("cross_entropy").hessian_product(outputs, torch.tensor([[[1.0, 3.0]]]))
    expected = 2.0 * torch.exp(torch.tensor(-40.0)) * torch.tensor([-1.0, 1.0])
    assert torch.allclose(product[0, 0], expected, rtol=1e-5, atol=0.0)


@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions_agree_with_float64_to_their_round_off(
    operator: type[CurvatureOperator], dtype: torch.dtype, device: torch.device
) -> None:
    model, inputs, targets = SMALL.make(device=device)
    low = copy.deepcopy(model).to(dtype)
    model.load_state_dict(low.state_dict())  # the same rounded weights
    inputs = inputs.to(dtype)
    product = operator(low, [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])])
    probes = probes_for(product, 2)
    expected = probes.double() @ dense(operator, model, inputs.double(), targets)
    # Half precision weights are exact numbers, which single precision computes with.
    assert product(probes).dtype == torch.float32
    # Some thirty roundings follow one another in three layers, twice forward and twice back.
    round_off = 30 * torch.finfo(torch.float32).eps
    assert relative(product(probes).double() - expected, expected) < round_off
    assert {parameter.dtype for parameter in low.parameters()} == {dtype}


@every_operator
def test_frozen_parameters_are_measured_like_others(operator: type[CurvatureOperator]) -> None:
    model, inputs, targets = SMALL.make()
    free = operator(model, (inputs, targets))
    expected = free(probes_for(free))
    model.requires_grad_(False)
    frozen = operator(model, (inputs, targets))
    assert relative(frozen(probes_for(frozen)) - expected, expected) < 1e-12


def test_tied_weights_count_once() -> None:
    model, inputs, targets = OTHERS["tied weights"].make()
    product = HessianOperator(model, (inputs, targets))
    assert product.dimension == 25 + 5 + 15 + 3
    assert "second.weight" not in product.parameter_names


@every_operator
def test_changed_weights_are_noticed(operator: type[CurvatureOperator]) -> None:
    model, inputs, targets = SMALL.make()
    product = operator(model, (inputs, targets))
    probe = probes_for(product, 1)[0]
    product(probe)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    expected = dense(operator, model, inputs, targets) @ probe
    assert relative(product(probe) - expected, expected) < 1e-12


def snapshot(model: nn.Module) -> list[object]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [tensor.detach().clone() for tensor in tensors],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [module.training for module in model.modules()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("case", (NAMED["residual"], *OTHERS.values()), ids=lambda case: case.name)
@every_operator
def test_the_model_is_left_as_it_was_also_after_an_error(
    case: Case, operator: type[CurvatureOperator]
) -> None:
    model, inputs, targets = case.make()
    model.train()
    next(model.children()).eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    data = [(inputs, targets)]
    before = snapshot(model)
    product = operator(model, data)
    probes = probes_for(product)
    product(probes)
    product(probes[0])
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)
    data[0] = (inputs * float("nan"), targets)
    with pytest.raises(ValueError, match="inputs has NaN"):
        product(probes)
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_products_are_counted_and_vectors_are_split_by_name() -> None:
    model, inputs, targets = SMALL.make()
    product = HessianOperator(model, (inputs, targets))
    probes = probes_for(product)
    product(probes)
    product(probes[0])
    assert product.products == 4
    for vectors, leading in ((probes, (3,)), (probes[0], ())):
        parts = product.split(vectors)
        assert {n: p.shape for n, p in parts.items()} == {
            name: (*leading, *parameter.shape) for name, parameter in model.named_parameters()
        }
        joined = torch.cat([part.flatten(len(leading)) for part in parts.values()], dim=-1)
        assert torch.equal(joined, vectors)


def test_bad_arguments_are_refused_in_one_sentence() -> None:
    model, inputs, targets = SMALL.make()
    product = HessianOperator(model, (inputs, targets))
    d = product.dimension
    with pytest.raises(ValueError, match=rf"pass \(k, {d}\) or \({d},\)"):
        product(torch.zeros(2, d + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"convert it to torch\.float64"):
        product(torch.zeros(2, d))
    with pytest.raises(ValueError, match="not found"):
        HessianOperator(model, (inputs, targets), parameters=["first"])
    twice = HessianOperator(model, (inputs, targets), parameters=["0.bias", "0.bias"])
    assert twice.parameter_names == ["0.bias"]
    with pytest.raises(ValueError, match="loss='hinge' is unknown"):
        HessianOperator(model, (inputs, targets), "hinge")
    with pytest.raises(ValueError, match="labels must lie in"):
        HessianOperator(model, [(inputs, targets), (inputs, targets + 3)])
    with pytest.raises(TypeError, match="generator"):
        HessianOperator(model, iter([(inputs, targets)]))


def test_products_that_are_not_finite_are_refused() -> None:
    model, inputs, targets = SMALL.make()
    for operator in OPERATORS:
        product = operator(model, (inputs, targets))
        with pytest.raises(ValueError, match="NaN or infinite"):
            product(torch.full((2, product.dimension), float("inf"), dtype=torch.float64))


@every_operator
def test_forms_that_are_not_finite_are_refused(operator: type[CurvatureOperator]) -> None:
    model, inputs, targets = SMALL.make()
    product = operator(model, (inputs, targets))
    with torch.no_grad():
        model[4].weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinite"):
        product.block_quadratic_forms(2, generator_of(0))


def test_samples_that_interact_are_refused() -> None:
    model = Centred().double()
    _, inputs, targets = SMALL.make()
    with pytest.raises(SamplesInteractError, match="mixes samples"):
        GaussNewtonOperator(model, [(inputs[:3], targets[:3])])


@pytest.mark.parametrize("case", (NAMED["residual"], *OTHERS.values()), ids=lambda case: case.name)
@every_operator
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_products_live_on_the_models_device(
    case: Case,
    operator: type[CurvatureOperator],
    loss: str,
    device: torch.device,
    explicit_devices,
) -> None:
    model, inputs, labels = case.make(device=device)
    data = (inputs.cpu(), targets_for(loss, labels).cpu())  # as a loader would give them
    with explicit_devices():
        product = operator(model, data, loss)
        probes = torch.ones(2, product.dimension, dtype=product.dtype, device=product.device)
        results = product(probes), product(probes[0])
    assert all(result.device == inputs.device for result in results)


@pytest.mark.parametrize("operator", [HessianOperator, ResidualOperator])
@every_case
def test_cached_products_equal_those_without_a_cache(
    case: Case, operator: type[HessianOperator], device: torch.device
) -> None:
    model, inputs, targets = case.make(device=device)
    product = operator(model, [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])])
    probes = probes_for(product)
    expected = product(probes)
    before = snapshot(model)
    calls: list[int] = []
    with product.cached():
        handle = model.register_forward_hook(lambda *_: calls.append(1))
        alone = torch.stack([product(probe) for probe in probes])
        handle.remove()
        together = product(probes)
    assert not calls  # nothing but backward passes
    assert float((together - expected).norm()) <= 1e-12 * float(expected.norm())
    assert float((alone - expected).norm()) <= 1e-12 * float(expected.norm())
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)
    assert not product._graphs


def test_several_vectors_share_a_pass_through_the_graph_that_is_kept() -> None:
    model, inputs, targets = OTHERS["attention"].make(6)
    product = HessianOperator(model, (inputs, targets))
    probes = probes_for(product)
    expected = product(probes)
    assert product.routes[0] == routes.VECTORIZED_DOUBLE_BACKWARD.name
    assert product.graph_serves(len(probes))
    calls: list[int] = []
    with product.cached():
        handle = model.register_forward_hook(lambda *_: calls.append(1))
        together = product(probes)
        handle.remove()
    assert not calls
    assert relative(together - expected, expected) < 1e-12


def test_a_way_that_is_wrong_in_the_smallest_numbers_is_not_taken() -> None:
    """Squares of products of 1e-171 are zero in every format; the comparison must not be."""

    class Careless(HessianOperator):
        def candidate_routes(self) -> list[routes.Route]:
            return [routes.Route("careless", lambda *arguments: 2.0 * routes.jets(*arguments))]

    model, inputs, targets = SMALL.make()
    with torch.no_grad():
        model[-1].bias.copy_(-400.0 * torch.arange(len(model[-1].bias)).ne(targets[0]).double())
    data = (inputs[:1], targets[:1])
    wrong, right = Careless(model, data), HessianOperator(model, data)
    probes = probes_for(right)
    assert 0.0 < float(right(probes).abs().max()) < 1e-160
    assert relative(1e170 * (wrong(probes) - right(probes)), 1e170 * right(probes)) < 1e-12


def test_a_cache_that_does_not_fit_is_left_out_and_one_of_changed_weights_is_refused() -> None:
    model, inputs, targets = SMALL.make()
    product = HessianOperator(model, (inputs, targets))
    tight = HessianOperator(model, (inputs, targets), memory_budget=1000)
    probe = probes_for(product)[0]
    expected = product(probe)
    with tight.cached():
        assert not tight._graphs
        assert relative(tight(probe) - expected, expected) < 1e-12
    with product.cached():
        with torch.no_grad():
            model[0].weight.mul_(2.0)
        with pytest.raises(ValueError, match="leave cached"):
            product(probe)


@every_operator
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "case",
    (
        *(NAMED[name] for name in ("residual", "tanh before the second layer")),
        *(OTHERS[name] for name in ("attention", "tied weights", "normalisation")),
    ),
    ids=lambda case: case.name,
)
def test_block_quadratic_forms_are_those_of_the_blocks_own_matrices(
    case: Case, operator: type[CurvatureOperator], loss: str, device: torch.device
) -> None:
    model, inputs, labels = case.make(5, device=device)
    targets = targets_for(loss, labels)
    product = operator(model, [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])], loss)
    # Replay: blocks of two samples; a batch's order is drawn first, then each block's vectors.
    generator = generator_of(3)
    expected = []
    for x, y in ((inputs[:2], targets[:2]), (inputs[2:], targets[2:])):
        for block in torch.randperm(len(x), generator=generator).to(device).split(2):
            matrix = len(block) * dense(operator, model, x[block], y[block], loss)
            vectors = draw_probes(3, product.dimension, generator).to(device)
            expected.append(((vectors @ matrix) * vectors).sum(dim=1))
    expected = torch.stack(expected)
    before = snapshot(model)
    forms = product.block_quadratic_forms(3, generator_of(3), blocks=3)
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)
    assert forms.shape == (3, 3) and product.products == 3
    assert relative(forms - expected, expected) < 1e-12
    tight = operator(model, product.data, loss, memory_budget=1)
    assert (
        relative(tight.block_quadratic_forms(3, generator_of(3), blocks=3) - forms, forms) < 1e-12
    )


@every_operator
def test_forms_and_cached_products_live_on_the_models_device(
    operator: type[CurvatureOperator], device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = SMALL.make(device=device)
    with explicit_devices():
        product = operator(model, (inputs.cpu(), targets.cpu()))
        results = [product.block_quadratic_forms(2, generator_of(0))]
        if isinstance(product, HessianOperator):
            with product.cached():
                one = torch.ones(product.dimension, dtype=product.dtype, device=device)
                results.append(product(one))
    assert all(result.device == inputs.device for result in results)
