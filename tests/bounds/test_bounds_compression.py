"""The compression paper's statements: those that hold, with proof, and those that do not."""

import itertools
import math

import pytest
import torch
from networks import CASES
from torch import Tensor, nn
from torch.nn import functional

from paperkit.bounds.compression import (
    CompressionTerms,
    average_sharpness_bound,
    compression_bounds,
    compression_terms,
    conditioned_patches_bound,
    input_invariant_bounds,
    input_smoothness_bounds,
    interpolation_bounds,
    linear_stability_bounds,
    matrix_normalized_bound,
    network_sensitivity_bound,
    network_volume_bounds,
    norm_monotonicity,
    normalized_sensitivity_bounds,
    normalized_sharpness_bounds,
    residual_bounds,
    sensitivity_bound,
    sensitivity_chain,
    volume_bounds,
    volume_lemma,
)
from paperkit.bounds.compression.terms import SHARING
from paperkit.bounds.statement import Inequality
from paperkit.curvature import dense_hessian, dense_jacobian
from paperkit.estimators.sensitivity import (
    input_invariant_local_sensitivity,
    maximum_local_sensitivity,
    network_maximum_local_sensitivity,
    normalized_maximum_local_sensitivity,
)


def standard_normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def double(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with parameters of its own seed."""
    for index, parameter in enumerate(model.parameters()):
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data = scale * standard_normal(*parameter.shape, seed=1000 * seed + index)
    return model


def terms_of(model: nn.Module, inputs: Tensor) -> CompressionTerms:
    return compression_terms(model, (inputs, torch.zeros(len(inputs), device=inputs.device)))


def random_mlp(seed: int) -> tuple[nn.Module, Tensor]:
    """A tanh network of random depth, widths, biases, weight and input scales."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    widths = [integer(1, 7) for _ in range(integer(2, 4))]
    layers: list[nn.Module] = []
    for one, two in itertools.pairwise(widths):
        layers += [nn.Linear(one, two, bias=bool(integer(0, 1))), nn.Tanh()]
    model = double(nn.Sequential(*layers[:-1]), seed)
    gain = 4.0 ** integer(-1, 1)
    for parameter in model.parameters():
        parameter.data *= gain
    # Input norms vary over two orders of magnitude within a batch.
    n = integer(1, 6)
    inputs = standard_normal(n, widths[0], seed=seed + 1)
    return model, inputs * 10.0 ** (2 * torch.rand(n, 1, generator=generator) - 1)


def scalar_convolution(weight: float, bias: float | None, head: list[float]) -> nn.Sequential:
    """A 1 × 1 convolution with one weight on two positions, then a linear head."""
    model = nn.Sequential(
        nn.Conv1d(1, 1, 1, bias=bias is not None), nn.Flatten(), nn.Linear(2, 1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight.fill_(weight)
        if bias is not None:
            model[0].bias.fill_(bias)
        model[2].weight.copy_(torch.tensor([head], dtype=torch.float64))
    return model


TWO_ONES = torch.ones(1, 1, 2, dtype=torch.float64)


# --- equation 4 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_weight_gradient_is_a_product_of_norms_also_with_the_bias(seed, device) -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), seed).to(device)
    inputs = standard_normal(4, 5, seed=seed).to(device)
    with torch.no_grad():
        preactivation = model[0](inputs)
    cotangent = dense_rows(lambda z: model[2](torch.tanh(z)), preactivation)
    norms = cotangent.flatten(1).norm(dim=1)
    weight = dense_jacobian(model, inputs, ["0.weight"]).flatten(1).norm(dim=1)
    both = dense_jacobian(model, inputs, ["0.weight", "0.bias"]).flatten(1).norm(dim=1)
    length = inputs.norm(dim=1)
    torch.testing.assert_close(weight, norms * length, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(both, norms * (length**2 + 1).sqrt(), rtol=1e-12, atol=0.0)
    network = terms_of(model, inputs).network
    torch.testing.assert_close(network.cotangent_norm, norms, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(network.weight_gradient, weight, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        torch.hypot(network.weight_gradient, network.bias_gradient), both, rtol=1e-12, atol=0.0
    )


def dense_rows(function, points: Tensor) -> Tensor:
    """∂function/∂point, one point at a time, (n, C, M)."""
    return torch.stack(
        [torch.autograd.functional.jacobian(lambda p: function(p[None])[0], p) for p in points]
    )


# --- equations 5 and 6 --------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_corrected_stability_trick_holds_at_any_input_scale(scale, bias) -> None:
    for seed in range(4):
        model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), seed)
        terms = terms_of(model, scale * standard_normal(6, 5, seed=seed))
        for bound in linear_stability_bounds(terms, bias=bias):
            assert bound.holds and bound.certified, bound
        for k in (0.5, 2.0, 3.0):
            for bound in input_smoothness_bounds(terms, k, bias=bias):
                assert bound.holds and bound.certified, bound


def test_the_printed_stability_trick_fails_for_small_inputs_in_its_first_half() -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    terms = terms_of(model, 0.01 * standard_normal(6, 5))
    for bounds in (
        linear_stability_bounds(terms, printed=True),
        input_smoothness_bounds(terms, printed=True),
    ):
        first, second = bounds
        assert not first.holds and not first.certified
        assert second.holds and second.certified


def test_the_printed_stability_trick_fails_for_large_inputs_in_its_second_half() -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    terms = terms_of(model, 5.0 * standard_normal(6, 5))
    for bounds in (
        linear_stability_bounds(terms, printed=True),
        input_smoothness_bounds(terms, printed=True),
    ):
        first, second = bounds
        assert first.holds
        assert not second.holds and not second.certified


def test_the_last_term_of_the_smoothness_bound_is_a_multiple_of_the_sharpness() -> None:
    model, inputs = double(nn.Sequential(nn.Linear(5, 3))), standard_normal(6, 5)
    terms = terms_of(model, inputs)
    norm = torch.linalg.matrix_norm(model[0].weight.detach(), ord=2)
    factor = float(norm / inputs.norm(dim=1).min())
    *_, last = input_smoothness_bounds(terms, 2.0)
    trace = float(
        dense_hessian(model, inputs, model(inputs).detach(), "half_squared_error").trace()
    )
    assert last.right == pytest.approx(factor**2 * trace, rel=1e-10)


# --- volumes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 1, 2])
def test_the_volume_is_at_most_that_of_equal_singular_values(k) -> None:
    jacobian = standard_normal(20, 3, 7)
    bound = volume_lemma(jacobian, k)
    assert bound.holds and bound.certified
    values = torch.linalg.svdvals(jacobian)
    kept = 3 if k is None else k
    slack = kept * (values.norm(dim=1) / math.sqrt(kept)).log() - values[:, :kept].log().sum(1)
    assert bound.slack == pytest.approx(float(slack.min()), abs=1e-12)


def test_equal_singular_values_make_the_volume_lemma_an_equality() -> None:
    left, _ = torch.linalg.qr(standard_normal(7, 3))
    bound = volume_lemma(5.0 * left.T[None])
    assert bound.holds and bound.slack == pytest.approx(0.0, abs=1e-13)
    # The top two of two nonzero ones, too.
    flat = torch.cat([left.T[:2], torch.zeros(1, 7, dtype=torch.float64)])[None]
    assert volume_lemma(flat, k=2).slack == pytest.approx(0.0, abs=1e-13)


def test_a_product_of_only_nonzero_singular_values_would_break_the_lemma() -> None:
    # N = 2, σ = (½, 0): pseudo-volume ½ against 2⁻¹ · ¼.
    jacobian = torch.tensor([[[0.5, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert volume_lemma(jacobian).left == -math.inf
    assert math.exp(volume_lemma(jacobian).right) == pytest.approx(0.125, rel=1e-13)


def test_all_bounds_hold_and_are_certified_on_random_networks() -> None:
    for seed in range(60):
        model, inputs = random_mlp(seed)
        terms = terms_of(model, inputs)
        wide = terms.num_outputs <= inputs.shape[1]
        for sharing in SHARING:
            for bias in (False, True):
                options = {"sharing": sharing, "bias": bias}
                chain = sensitivity_chain(terms, **options)
                bounds = [
                    *linear_stability_bounds(terms, **options),
                    *input_smoothness_bounds(terms, 2.0, **options),
                    *network_volume_bounds(terms, **options),
                    chain.to_layer_gradient,
                    chain.cauchy_schwarz,
                    chain.to_all_parameters,
                    sensitivity_bound(terms, **options),
                    network_sensitivity_bound(terms, **options),
                    matrix_normalized_bound(terms, **options),
                    *normalized_sensitivity_bounds(terms, sharing=sharing),
                    *input_invariant_bounds(terms),
                ]
                assert all(bound.holds and bound.certified for bound in bounds), (seed, options)
                for bound in volume_bounds(terms, **options):
                    assert bound.holds and bound.certified == wide, (seed, options, bound)


def test_keeping_the_maximum_outside_the_sum_is_never_worse_from_two_outputs_on() -> None:
    compared = 0
    for seed in range(40):
        model, inputs = random_mlp(seed)
        terms = terms_of(model, inputs)
        for bounds in (volume_bounds, network_volume_bounds):
            printed, sharper = bounds(terms)[1], bounds(terms, sharper=True)[1]
            if terms.num_outputs >= 2:
                compared += 1
                assert sharper.holds
                assert sharper.right <= printed.right + 1e-9
            else:
                assert not sharper.certified
    assert compared >= 40


def test_with_one_output_the_maximum_outside_the_sum_is_no_bound() -> None:
    # f = w·x with equal inputs: (1/n) Σ‖J‖ = |w|, while (1/n)(|w|/|x|)·√(n S), S = x², is |w|/√n.
    model = nn.Linear(1, 1, bias=False).double()
    terms = terms_of(model, torch.ones(4, 1, dtype=torch.float64))
    sharper = volume_bounds(terms, sharper=True)[1]
    assert not sharper.holds and not sharper.certified
    assert sharper.slack == pytest.approx(-math.log(2.0), rel=1e-12)
    assert volume_bounds(terms)[1].slack == pytest.approx(0.0, abs=1e-12)


def test_both_sides_of_the_volume_bound_agree_with_the_formula_as_printed() -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    inputs = standard_normal(6, 5)
    first, second = volume_bounds(terms_of(model, inputs))
    jacobian = dense_rows(model, inputs)
    c, n = 3, 6
    volumes = torch.linalg.det(jacobian @ jacobian.mT).sqrt()
    frobenius = jacobian.flatten(1).norm(dim=1)
    norm = float(torch.linalg.matrix_norm(model[0].weight.detach(), ord=2))
    sharpness = float(dense_jacobian(model, inputs).square().sum() / n)
    power_mean = float((norm / inputs.norm(dim=1)).pow(2 * c).sum().sqrt())
    right = power_mean / n * (n * sharpness / c) ** (c / 2)
    # The volume itself is a determinant with a condition number below 1e4.
    assert math.exp(first.left) == pytest.approx(float(volumes.mean()), rel=1e-8)
    middle = c ** (-c / 2) * float(frobenius.pow(c).mean())
    assert math.exp(first.right) == pytest.approx(middle, rel=1e-10)
    assert math.exp(second.right) == pytest.approx(right, rel=1e-10)


def test_more_outputs_than_inputs_leave_no_volume_and_no_certificate() -> None:
    model = double(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4)))
    first, second = volume_bounds(terms_of(model, standard_normal(5, 2)))
    assert first.left == -math.inf and first.holds
    assert not first.certified and not second.certified
    assert second.assumptions["outputs_at_most_inputs"] is False


@pytest.mark.parametrize(("p", "q"), [(1, 2), (2, 3), (1, math.inf), (1.5, 1.5)])
def test_a_higher_norm_is_no_larger(p, q) -> None:
    values = standard_normal(30)
    assert norm_monotonicity(values, p, q).holds and norm_monotonicity(values, p, q).certified
    unit = torch.zeros(9, dtype=torch.float64)
    unit[4] = -3.0
    assert norm_monotonicity(unit, p, q).slack == pytest.approx(0.0, abs=1e-14)
    ones = norm_monotonicity(torch.ones(100, dtype=torch.float64), p, q)
    assert ones.right / ones.left == pytest.approx(100 ** (1 / p - 1 / q), rel=1e-12)
    if p < q:
        wrong = norm_monotonicity(values, q, p)
        assert not wrong.holds and not wrong.certified


# --- sensitivities ------------------------------------------------------------------------------


def test_the_sides_of_the_sensitivity_bounds_are_the_measures_and_the_printed_formula() -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    inputs = standard_normal(6, 5)
    data = (inputs, torch.zeros(6, dtype=torch.int64))
    terms = terms_of(model, inputs)
    sharpness = float(dense_jacobian(model, inputs).square().sum() / 6)
    one, two = sensitivity_bound(terms), network_sensitivity_bound(terms)
    assert one.left == pytest.approx(float(maximum_local_sensitivity(model, data)), rel=1e-12)
    assert two.left == pytest.approx(
        float(network_maximum_local_sensitivity(model, data)), rel=1e-12
    )
    hidden = torch.tanh(model[0](inputs)).detach()
    shares = [
        float(torch.linalg.matrix_norm(layer.weight.detach(), ord=2)) ** 2
        * float(x.norm(dim=1).pow(-2).mean())
        for layer, x in ((model[0], inputs), (model[2], hidden))
    ]
    assert one.right == pytest.approx(math.sqrt(shares[0] * sharpness), rel=1e-11)
    assert two.right == pytest.approx(math.sqrt(sum(shares) * sharpness), rel=1e-11)


def test_with_the_bias_counted_every_bound_is_tighter() -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    terms = terms_of(model, standard_normal(6, 5))
    for bound in (sensitivity_bound, network_sensitivity_bound):
        assert bound(terms, bias=True).right < bound(terms).right
    assert volume_bounds(terms, bias=True)[1].right < volume_bounds(terms)[1].right


def test_the_first_link_is_an_equality_for_an_aligned_rank_one_jacobian() -> None:
    # J = u vᵀ with v the top left singular vector of W.
    weight = standard_normal(4, 5)
    top = torch.linalg.svd(weight)[0][:, 0]
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(weight)
        model[1].weight.copy_(torch.outer(standard_normal(3), top))
    chain = sensitivity_chain(terms_of(model, standard_normal(6, 5)))
    assert chain.to_layer_gradient.slack == pytest.approx(0.0, abs=1e-12)
    assert chain.cauchy_schwarz.slack > 0.01
    # Aligned with another singular vector, it is not.
    with torch.no_grad():
        second = torch.linalg.svd(weight)[0][:, 1]
        model[1].weight.copy_(torch.outer(standard_normal(3), second))
    chain = sensitivity_chain(terms_of(model, standard_normal(6, 5)))
    assert chain.to_layer_gradient.slack > 0.1


class TwoSlopes(nn.Module):
    """f = g(w x) with slopes a and b at x = 1 and x = 2, w = 1: J differs between the samples."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(self.first.weight)
        self.low, self.high = low, high

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return self.low * hidden + (self.high - self.low) * functional.relu(hidden - 1.5)


@pytest.mark.parametrize(
    ("slopes", "b", "c"), [((1.0, 1.0), 1.0, 1.25), ((1.0, 0.25), 0.625, 0.625)]
)
def test_the_second_link_is_an_equality_for_constant_products_not_ratios(slopes, b, c) -> None:
    # ‖x‖ = (1, 2) and ‖∇_W f‖ = slope · ‖x‖. Constant ratio: slopes (1, 1), B = 1 < C = 1.25.
    # Constant product: slopes (1, ¼), B = C.
    model = TwoSlopes(*slopes)
    inputs = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    link = sensitivity_chain(terms_of(model, inputs)).cauchy_schwarz
    assert (link.left, link.right) == pytest.approx((b, c), rel=1e-12)
    assert link.holds and link.certified


def test_the_third_link_is_an_equality_where_the_layer_holds_all_parameters() -> None:
    model = double(nn.Sequential(nn.Linear(5, 3, bias=False)))
    chain = sensitivity_chain(terms_of(model, standard_normal(6, 5)))
    assert chain.to_all_parameters.slack == pytest.approx(0.0, abs=1e-12)


def test_the_hessians_trace_may_take_the_place_of_the_sharpness_where_it_is_no_smaller() -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    inputs = standard_normal(6, 5)
    terms = terms_of(model, inputs)
    outputs = model(inputs).detach()
    at_interpolation = float(dense_hessian(model, inputs, outputs, "half_squared_error").trace())
    interpolating = sensitivity_bound(terms, sharpness=at_interpolation)
    assert interpolating.certified and interpolating.holds
    assert interpolating.right == pytest.approx(sensitivity_bound(terms).right, rel=1e-9)
    # Off the data the trace can be smaller, even negative; the bound is then not a theorem.
    for sharpness in (0.5 * terms.sharpness, -1.0):
        off = sensitivity_bound(terms, sharpness=sharpness)
        assert off.assumptions["sharpness_at_least_gauss_newton_trace"] is False
        assert not off.certified
    assert not sensitivity_bound(terms, sharpness=-1.0).holds


def test_scaling_one_layer_against_the_next_changes_neither_side_of_the_normalized_bound() -> None:
    model = double(
        nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))
    )
    inputs = standard_normal(6, 5).abs()
    before = matrix_normalized_bound(terms_of(model, inputs))
    with torch.no_grad():
        model[0].weight.mul_(30.0)
        model[2].weight.div_(30.0)
    after = matrix_normalized_bound(terms_of(model, inputs))
    assert (after.left, after.right) == pytest.approx((before.left, before.right), rel=1e-11)
    assert before.holds and before.certified


def test_normalized_sensitivity_is_bounded_by_the_layers_gradient_not_by_adaptive_sharpness() -> (
    None
):
    # Figure 3 against Proposition E.4: f = x₂ at x = (1, 0).
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    inputs = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    data = (inputs, torch.zeros(1, dtype=torch.int64))
    terms = terms_of(model, inputs)
    assert float(normalized_maximum_local_sensitivity(model, data)) == 1.0
    assert float(input_invariant_local_sensitivity(model, data)) == 0.0
    assert float(terms.scaled_gradient) == 0.0
    first, second = normalized_sensitivity_bounds(terms)
    assert first.holds and first.certified and second.holds
    assert (first.left, first.right) == pytest.approx((1.0, 1.0), rel=1e-14)


# --- what breaks the bounds ---------------------------------------------------------------------


class TwoReaders(nn.Module):
    """y = w₁x + w₂x, both weights 1: two layers read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(1, 1, bias=False).double()
        self.two = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(self.one.weight)
        nn.init.ones_(self.two.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.one(inputs) + self.two(inputs)


def test_two_readers_of_one_tensor_break_the_bounds_and_the_certificate() -> None:
    terms = terms_of(TwoReaders(), torch.ones(1, 1, dtype=torch.float64))
    network = network_sensitivity_bound(terms)
    assert (network.left, network.right) == pytest.approx((4.0, 2.0), rel=1e-14)
    single = sensitivity_bound(terms)
    assert (single.left, single.right) == pytest.approx((2.0, math.sqrt(2.0)), rel=1e-14)
    for bound in (network, single, network_sensitivity_bound(terms, sharing="operator")):
        assert not bound.certified and bound.assumptions["single_reader"] is False
    assert not network.holds and not single.holds


@pytest.mark.parametrize("norm", ["operator", "matrix", "frobenius"])
def test_the_scalar_convolution_violates_the_bounds_uncertified(norm) -> None:
    # f = v·(w x), w = 1, v = (10, −10), x = (1, 1): S = 2, MLS = 14.142, NMLS = 28.284.
    terms = terms_of(scalar_convolution(1.0, None, [10.0, -10.0]), TWO_ONES)
    assert terms.sharpness == pytest.approx(2.0, rel=1e-14)
    single = sensitivity_bound(terms, norm=norm)
    network = network_sensitivity_bound(terms, norm=norm)
    scale = math.sqrt(2.0) if norm == "frobenius" else 1.0
    assert (single.left, single.right) == pytest.approx((math.sqrt(200), scale), rel=1e-13)
    assert network.left == pytest.approx(2 * math.sqrt(200), rel=1e-13)
    # The layers' ‖A‖²/‖x‖² are scale²/2 and 200/2.
    assert network.right == pytest.approx(math.sqrt(2 * (scale**2 / 2 + 100)), rel=1e-13)
    for bound in (single, network):
        assert not bound.holds
        assert not bound.certified and bound.assumptions["unshared_weights"] is False
        assert bound.assumptions["single_reader"] is True


def test_the_untied_sharpness_repairs_the_scalar_convolution() -> None:
    terms = terms_of(scalar_convolution(1.0, None, [10.0, -10.0]), TWO_ONES)
    single = sensitivity_bound(terms, sharing="operator")
    network = network_sensitivity_bound(terms, sharing="operator")
    assert single.right == pytest.approx(math.sqrt(0.5 * 400), rel=1e-13)
    assert network.right == pytest.approx(math.sqrt(100.5 * (400 + 2)), rel=1e-13)
    for bound in (single, network):
        assert bound.holds and bound.certified


class ChannelHead(nn.Module):
    """A padded 3 × 3 convolution and a linear head whose rows see no patch of the one input."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.first = double(nn.Conv2d(1, 2, 3, padding=1, bias=False), 1)
        patches = functional.unfold(inputs, 3, padding=1)[0]
        # Rows orthogonal to every row of U: the gradient B Uᵀ vanishes, B does not.
        free = torch.linalg.svd(patches)[2][patches.shape[0] :]
        rows = standard_normal(3, 2, len(free), seed=2) @ free
        self.head = nn.Linear(2 * patches.shape[1], 3, bias=False).double()
        with torch.no_grad():
            self.head.weight.copy_(rows.flatten(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.first(inputs).flatten(1))


def test_a_convolutions_gradient_can_vanish_while_the_input_jacobian_does_not() -> None:
    inputs = standard_normal(1, 1, 8, 8, seed=3)
    terms = terms_of(ChannelHead(inputs), inputs)
    tied, untied = (linear_stability_bounds(terms, sharing=s)[1] for s in SHARING)
    assert float(terms.network.weight_gradient) < 1e-13 * float(terms.network.cotangent_norm)
    assert tied.left > 1.0
    assert not tied.holds and not tied.certified
    assert untied.holds and untied.certified
    patches = conditioned_patches_bound(terms, "first")
    assert patches.right == math.inf and not patches.certified


def test_a_convolutions_weight_gradient_is_the_cotangent_times_the_patches() -> None:
    model = nn.Sequential(
        double(nn.Conv2d(2, 3, 3, padding=1, stride=2, bias=False)), nn.Tanh(), nn.Flatten()
    )
    model.append(double(nn.Linear(27, 2), 1))
    inputs = standard_normal(1, 2, 5, 5)
    with torch.no_grad():
        z = model[0](inputs)
    cotangent = dense_rows(lambda z: model[3](torch.tanh(z).flatten(1)), z)[0].flatten(2)
    patches = functional.unfold(inputs, 3, padding=1, stride=2)[0]
    exact = dense_jacobian(model, inputs, ["0.weight"])[0].reshape(2, 3, 18)
    torch.testing.assert_close(exact, cotangent @ patches.T, rtol=1e-12, atol=1e-13)


def convolution_network(seed: int, size: int) -> nn.Module:
    positions = ((size - 3) // 2 + 1) * ((size - 2) // 2 + 1)
    return double(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, bias=False),
            nn.Tanh(),
            nn.Conv2d(3, 3, (3, 2), stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(3 * positions, 3),
        ),
        seed,
    )


def test_untied_bounds_hold_and_are_certified_on_convolution_networks() -> None:
    for seed in range(5):
        terms = terms_of(convolution_network(seed, 6), standard_normal(4, 2, 6, 6, seed=seed))
        for bias in (False, True):
            options = {"sharing": "operator", "bias": bias}
            bounds = [
                *linear_stability_bounds(terms, **options),
                *input_smoothness_bounds(terms, **options),
                *volume_bounds(terms, **options),
                *network_volume_bounds(terms, **options),
                sensitivity_bound(terms, **options),
                network_sensitivity_bound(terms, **options),
                matrix_normalized_bound(terms, **options),
            ]
            assert all(bound.holds and bound.certified for bound in bounds), seed
            tied = network_sensitivity_bound(terms, bias=bias)
            assert not tied.certified and tied.assumptions["unshared_weights"] is False


def test_the_reshaped_kernels_norm_is_not_certified_and_the_frobenius_norm_is() -> None:
    terms = terms_of(convolution_network(0, 6), standard_normal(4, 2, 6, 6))
    matrix = network_sensitivity_bound(terms, sharing="operator", norm="matrix")
    assert matrix.assumptions["norm_bounds_operator"] is False and not matrix.certified
    frobenius = network_sensitivity_bound(terms, sharing="operator", norm="frobenius")
    assert frobenius.certified and frobenius.holds
    assert matrix.right < network_sensitivity_bound(terms, sharing="operator").right
    assert frobenius.right > network_sensitivity_bound(terms, sharing="operator").right


def test_well_conditioned_patches_bound_a_convolution_by_its_tied_gradient() -> None:
    for seed in range(4):
        # Patches of 2·3·3 = 18 entries at only 4 positions are linearly independent.
        model = double(
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)), seed
        )
        inputs = standard_normal(3, 2, 4, 4, seed=seed)
        bound = conditioned_patches_bound(terms_of(model, inputs), "0")
        assert bound.holds and bound.certified
        smallest = torch.linalg.svdvals(functional.unfold(inputs, 3))[:, -1]
        gradient = dense_jacobian(model, inputs, ["0.weight"]).flatten(1).norm(dim=1)
        units = torch.eye(32, dtype=torch.float64).reshape(32, 2, 4, 4)
        with torch.no_grad():
            operator = (model[0](units) - model[0](torch.zeros_like(units))).flatten(1)
        norm = float(torch.linalg.matrix_norm(operator, ord=2))
        expected = float((norm / smallest * gradient).mean())
        assert bound.right == pytest.approx(expected, rel=1e-10)


def test_dependent_patches_give_no_bound() -> None:
    model = double(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)))
    bound = conditioned_patches_bound(terms_of(model, torch.ones(1, 2, 4, 4).double()), "0")
    assert bound.right == math.inf
    assert bound.assumptions["independent_patches"] is False


def test_a_patch_that_misses_entries_is_not_taken_for_a_fully_connected_layer() -> None:
    # A kernel of 2 with stride 5 has a single position on 4 entries and sees half of them, so
    # ‖∇_W f‖ = ‖B‖‖patch‖ < ‖B‖‖x‖.
    model = double(nn.Sequential(nn.Conv1d(1, 2, 2, stride=5), nn.Flatten(), nn.Linear(2, 2)))
    terms = terms_of(model, standard_normal(3, 1, 4))
    assert not sensitivity_bound(terms).certified
    assert sensitivity_bound(terms, sharing="operator").certified


def test_groups_are_not_taken_for_a_fully_connected_layer() -> None:
    model = double(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 2)))
    terms = terms_of(model, standard_normal(3, 4, 1))
    assert not sensitivity_bound(terms).certified
    whole = double(nn.Sequential(nn.Conv1d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2)))
    terms = terms_of(whole, standard_normal(3, 4, 1))
    assert sensitivity_bound(terms).certified and sensitivity_bound(terms).holds


def test_a_layer_behind_a_normalisation_does_not_read_the_input() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rest = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.rest((inputs - 0.5) / 0.1)

    terms = terms_of(Shifted(), standard_normal(4, 5))
    assert not sensitivity_bound(terms).certified
    assert network_sensitivity_bound(terms).certified and network_sensitivity_bound(terms).holds


def test_a_zero_input_has_no_bound_unless_the_bias_is_counted() -> None:
    model = double(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    inputs = standard_normal(4, 5)
    inputs[2] = 0.0
    terms = terms_of(model, inputs)
    for bound in (
        sensitivity_bound(terms),
        volume_bounds(terms)[1],
        linear_stability_bounds(terms)[1],
    ):
        assert bound.assumptions["nonzero_inputs"] is False and not bound.certified
    assert sensitivity_bound(terms).right == volume_bounds(terms)[1].right == math.inf
    with_bias = sensitivity_bound(terms, bias=True)
    assert with_bias.certified and with_bias.holds and math.isfinite(with_bias.right)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_certified_bound_is_violated_on_any_kind_of_network(case, device) -> None:
    model, inputs, targets = case.make(device=device)
    for sharing in SHARING:
        for bias in (False, True):
            bounds = compression_bounds(model, (inputs, targets), sharing=sharing, bias=bias)
            assert sorted(bounds, key=int) == ["5", "6", "9", "10", "11", "12", "35", "44"]
            assert all(bound.holds for bound in bounds.values() if bound.certified)
    shared = {"LeNet", "residual", "siamese", "positions", "weight used twice along the depth"}
    tied = compression_bounds(model, (inputs, targets), bias=True)
    assert tied["12"].certified == (case.name not in shared)


# --- residual networks --------------------------------------------------------------------------


class ResidualStream(nn.Module):
    """x + V tanh(W x) three times, then a linear head; the branch's scale is an argument."""

    def __init__(self, normalise: bool = False) -> None:
        super().__init__()
        self.reads = nn.ModuleList(double(nn.Linear(4, 5), s) for s in range(3))
        self.writes = nn.ModuleList(double(nn.Linear(5, 4), s + 3) for s in range(3))
        self.head = double(nn.Linear(4, 3), 9)
        self.normalise = normalise

    def forward(self, inputs: Tensor) -> Tensor:
        stream = inputs
        for read, write in zip(self.reads, self.writes, strict=True):
            seen = functional.layer_norm(stream, (4,)) if self.normalise else stream
            stream = stream + write(torch.tanh(read(seen)))
        return self.head(stream)


STREAM = ["reads.0", "reads.1", "reads.2", "head"]


def test_residual_sensitivities_telescope() -> None:
    model = ResidualStream()
    for seed in range(5):
        inputs = standard_normal(6, 4, seed=seed)
        first, second = residual_bounds(terms_of(model, inputs), STREAM)
        assert first.holds and first.certified and second.holds and second.certified
        sensitivity = torch.linalg.svdvals(dense_rows(model, inputs))[:, 0].mean()
        head = torch.linalg.matrix_norm(model.head.weight.detach(), ord=2)
        assert first.left == pytest.approx(float(sensitivity - head), rel=1e-11)
        stream, total = inputs, 0.0
        for index, (read, write) in enumerate(zip(model.reads, model.writes, strict=True)):
            gradient = dense_jacobian(model, inputs, [f"reads.{index}.weight"])
            norm = torch.linalg.matrix_norm(read.weight.detach(), ord=2)
            ratio = norm * gradient.flatten(1).norm(dim=1) / stream.norm(dim=1)
            total += float(ratio.mean())
            stream = (stream + write(torch.tanh(read(stream)))).detach()
        assert first.right == pytest.approx(total, rel=1e-11)


def test_plain_bounds_are_not_certified_on_a_residual_network() -> None:
    terms = terms_of(ResidualStream(), standard_normal(6, 4))
    assert not sensitivity_bound(terms).certified
    assert not network_sensitivity_bound(terms, sharing="operator").certified


def test_reading_a_normalisation_of_the_stream_is_not_certified() -> None:
    terms = terms_of(ResidualStream(normalise=True), standard_normal(6, 4))
    first, _ = residual_bounds(terms, STREAM)
    assert first.assumptions["identity_skips"] is False and not first.certified


def test_a_network_without_skips_or_with_a_curved_head_is_no_residual_network() -> None:
    plain = double(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    first, _ = residual_bounds(terms_of(plain, standard_normal(6, 4)), ["0", "2"])
    assert first.assumptions["identity_skips"] is False
    curved = nn.Sequential(ResidualStream(), nn.Tanh())
    names = [f"0.{name}" for name in STREAM]
    first, _ = residual_bounds(terms_of(curved, standard_normal(6, 4)), names)
    assert first.assumptions["linear_head"] is False and not first.certified


# --- the Hessian near interpolation -------------------------------------------------------------


def smooth_network() -> tuple[nn.Module, Tensor]:
    model = double(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.GELU()))
    return model, standard_normal(5, 3)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_hessian_trace_differs_by_exactly_the_residual_term(adaptive, device) -> None:
    model, inputs = smooth_network()
    model, inputs = model.to(device), inputs.to(device)
    targets = standard_normal(5, 2, seed=8).to(device)
    result = interpolation_bounds(model, (inputs, targets), adaptive=adaptive)
    hessian = dense_hessian(model, inputs, targets, "half_squared_error").diagonal()
    squares = dense_jacobian(model, inputs).square().sum(1).mean(0)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    weights = theta.square() if adaptive else torch.ones_like(theta)
    exact = float((weights * (hessian - squares)).sum())
    assert result.difference == pytest.approx(exact, rel=1e-12)
    assert result.residual_term == pytest.approx(exact, rel=1e-11)
    assert result.laplacian.holds and result.parameter_count.holds
    assert result.laplacian.left == abs(result.difference)


def test_the_difference_is_linear_in_the_residual() -> None:
    model, inputs = smooth_network()
    outputs, direction = model(inputs).detach(), standard_normal(5, 2, seed=8)
    differences = [
        interpolation_bounds(model, (inputs, outputs + size * direction)).difference
        for size in (1e-1, 1e-2, 1e-3)
    ]
    # f − y is exactly proportional to the size; the traces cancel to 1e-15 of some 10.
    assert differences[1] == pytest.approx(differences[0] / 10, rel=1e-11)
    assert differences[2] == pytest.approx(differences[0] / 100, rel=1e-10)


def test_a_network_piecewise_linear_in_each_weight_has_no_residual_term() -> None:
    model = double(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    inputs, targets = standard_normal(5, 3), standard_normal(5, 2, seed=8)
    result = interpolation_bounds(model, (inputs, targets))
    assert result.residual_term == 0.0
    trace = float(dense_hessian(model, inputs, targets, "half_squared_error").trace())
    assert result.difference == pytest.approx(0.0, abs=1e-12 * trace)
    assert result.laplacian.holds and result.parameter_count.holds


# --- normalized and adaptive sharpness ----------------------------------------------------------


def chain_for(seed: int) -> tuple[tuple[Inequality, ...], dict[str, Tensor], float]:
    generator = torch.Generator().manual_seed(seed)

    def positive(size: int) -> Tensor:
        return torch.exp(torch.randn(size, generator=generator, dtype=torch.float64))

    parts = {
        "cotangent": standard_normal(3, 4, seed=seed),
        "weight": standard_normal(4, 5, seed=seed + 1),
        "inputs": standard_normal(5, seed=seed + 2),
        "sigma": positive(4),
        "sigma_input": positive(5),
    }
    lam = float(positive(1))
    return normalized_sharpness_bounds(**parts, lam=lam), parts, lam


def test_normalized_sharpness_lies_above_its_chain_for_any_scales() -> None:
    for seed in range(200):
        bounds, _, _ = chain_for(seed)
        assert len(bounds) == 3
        assert all(bound.holds for bound in bounds), seed
        assert all(one.right == two.left for one, two in itertools.pairwise(bounds))


def test_the_second_relation_of_the_chain_is_an_equality() -> None:
    bounds, parts, lam = chain_for(1)
    scales = torch.outer(parts["sigma"], parts["sigma_input"])
    gradient = torch.einsum("ok,p->okp", parts["cotangent"], parts["inputs"])
    printed = float((gradient.square().sum(0) * scales.square()).sum().sqrt()) * float(
        (parts["weight"] / scales).norm()
    )
    assert bounds[2].left == pytest.approx(printed / lam, rel=1e-13)


def test_normalized_sharpness_at_given_scales_is_the_paired_sum() -> None:
    bounds, parts, lam = chain_for(2)
    total = 0.0
    for k in range(4):
        for p in range(5):
            square = float(parts["sigma"][k] * parts["sigma_input"][p]) ** 2
            curvature = float((parts["cotangent"][:, k] * parts["inputs"][p]).square().sum())
            total += curvature * square + float(parts["weight"][k, p]) ** 2 / (4 * lam**2 * square)
    assert bounds[2].right == pytest.approx(total, rel=1e-12)


def test_the_invariant_lower_end_does_not_change_when_the_input_is_rescaled() -> None:
    bounds, parts, lam = chain_for(3)
    scales = torch.tensor([0.01, 1.0, 7.0, 30.0, 0.5], dtype=torch.float64)
    moved = {
        **parts,
        "weight": parts["weight"] / scales,
        "inputs": parts["inputs"] * scales,
    }
    others = normalized_sharpness_bounds(**moved, lam=lam)
    assert others[0].left == pytest.approx(bounds[0].left, rel=1e-12)
    # At fixed σ' the paper's own expression does change.
    assert abs(others[0].right / bounds[0].right - 1.0) > 0.1


def test_adaptive_sharpness_bounds_the_input_invariant_sensitivity_over_h() -> None:
    for seed in range(60):
        model, inputs = random_mlp(seed)
        terms = terms_of(model, inputs)
        first, second = input_invariant_bounds(terms)
        assert first.holds and first.certified and second.holds and second.certified
        theta = torch.cat([p.detach().flatten() for p in model.parameters()])
        scaled = (dense_jacobian(model, inputs) * theta).square().sum((1, 2)).mean()
        assert second.right == pytest.approx(float(scaled), rel=1e-11)


def test_the_factor_one_over_h_is_sharp() -> None:
    # W = V = 1, h = 50 and one input: Σ = 50 against (Σ_k 1)² = 2500.
    model = nn.Sequential(nn.Linear(1, 50, bias=False), nn.Linear(50, 1, bias=False)).double()
    for layer in model:
        nn.init.ones_(layer.weight)
    first, _ = input_invariant_bounds(terms_of(model, torch.ones(1, 1, dtype=torch.float64)))
    assert first.right == pytest.approx(50.0, rel=1e-13)
    assert 50 * first.left == pytest.approx(2500.0, rel=1e-13)
    assert first.holds and first.certified


def test_adaptive_sharpness_does_not_bound_the_input_invariant_sensitivity_of_a_convolution() -> (
    None
):
    # w = 2, b = −2, tanh, v = (1, −1), x = (1, 1): z = 0, so f = 0 and every θ ∂f/∂θ cancels.
    linear = scalar_convolution(2.0, -2.0, [1.0, -1.0])
    model = nn.Sequential(linear[0], nn.Tanh(), linear[1], linear[2])
    terms = terms_of(model, TWO_ONES)
    first, second = input_invariant_bounds(terms)
    assert float(terms.input_invariant) == pytest.approx(8.0, rel=1e-14)
    assert second.right == 0.0
    assert not first.holds
    assert not first.certified and first.assumptions["unshared_weights"] is False


def test_average_sharpness_approaches_its_limit_quadratically() -> None:
    # L = w⁴ at w: S_avg = (2/ρ²)(6 w²·ρ²w² + 3 ρ⁴w⁴) = 12 w⁴ + 6 ρ² w⁴; fourth derivative 24.
    w = torch.tensor([1.7], dtype=torch.float64)
    for rho in (0.5, 0.1, 0.02):
        limit = 12 * 1.7**4
        average = limit + 6 * rho**2 * 1.7**4
        bound = average_sharpness_bound(average, limit, w, rho, 24.0)
        # Equality: the bound's constant cannot be improved.
        assert bound.right == pytest.approx(6 * rho**2 * 1.7**4, rel=1e-12)
        assert bound.left == pytest.approx(bound.right, rel=1e-8)
        assert bound.holds and not bound.certified


def test_average_sharpness_of_a_quadratic_is_its_limit_at_any_size() -> None:
    # L = ½ wᵀA w: E[L(w+δ) − L(w)] = ½ ρ² Σ A_jj w_j², so that S_avg = Σ A_jj w_j² for all ρ.
    root, w = standard_normal(4, 4), standard_normal(4, seed=1)
    matrix = root @ root.T
    limit = float((matrix.diagonal() * w.square()).sum())
    for rho in (0.01, 3.0):
        # All signs of a Rademacher vector have the Gaussian's second moments, exactly.
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
        moved = w + rho * w * signs
        losses = 0.5 * torch.einsum("ki,ij,kj->k", moved, matrix, moved)
        average = float(2 / rho**2 * (losses - 0.5 * w @ matrix @ w).mean())
        bound = average_sharpness_bound(average, limit, w, rho, 0.0)
        # The difference of losses cancels to 1e-16/ρ² of the loss.
        assert average == pytest.approx(limit, rel=1e-10)
        assert bound.right == 0.0


# --- conduct ------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(device) -> None:
    model, inputs, targets = next(case for case in CASES if case.name == "residual").make(
        device=device
    )
    model.train()
    model.norm.eval()
    next(model.parameters()).requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    compression_bounds(model, (inputs, targets))
    with pytest.raises(ValueError, match="max_parameters"):
        interpolation_bounds(model, (inputs, targets), max_parameters=3)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not next(model.parameters()).requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


def test_single_precision_bounds_allow_for_its_round_off(device) -> None:
    model = double(nn.Sequential(nn.Linear(5, 3, bias=False))).float().to(device)
    terms = terms_of(model, standard_normal(6, 5).float().to(device))
    chain = sensitivity_chain(terms)
    assert chain.to_all_parameters.holds  # an equality
    assert chain.to_all_parameters.tolerance == pytest.approx(1.2e-5, rel=0.02)
    assert sensitivity_bound(terms).certified


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: sensitivity_bound(t, sharing="free"), "sharing='free'"),
        (lambda t: sensitivity_bound(t, norm="nuclear"), "norm='nuclear'"),
        (lambda t: sensitivity_bound(t, sharing="operator", sharpness=1.0), "sharpness"),
        (lambda t: input_smoothness_bounds(t, 0.0), "k=0"),
        (lambda t: residual_bounds(t, ["0"]), "stream"),
        (lambda t: residual_bounds(t, ["0", "nowhere"]), "stream"),
        (lambda t: conditioned_patches_bound(t, "nowhere"), "layer='nowhere'"),
        (lambda t: norm_monotonicity(torch.zeros(0), 1, 2), "values=.*one entry at least"),
        (lambda t: average_sharpness_bound(1.0, 1.0, torch.ones(1), 0.0, 1.0), "rho=0"),
        (lambda t: volume_lemma(torch.ones(1, 2, 2), k=3), "k=3"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message) -> None:
    terms = terms_of(double(nn.Sequential(nn.Linear(3, 2))), standard_normal(2, 3))
    with pytest.raises(ValueError, match=message):
        call(terms)


def test_every_new_tensor_names_its_device(device, explicit_devices) -> None:
    model, inputs, targets = next(case for case in CASES if case.name == "LeNet").make(
        device=device
    )
    smooth = double(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).to(device)
    data = (standard_normal(5, 3).to(device), standard_normal(5, 2, seed=8).to(device))
    with explicit_devices():
        compression_bounds(model, (inputs, targets))
        compression_bounds(model, (inputs, targets), sharing="operator")
        interpolation_bounds(smooth, data)
        conditioned_patches_bound(compression_terms(model, (inputs, targets)), "0")
