"""Every kind of loss against torch's own value and autograd's derivatives, in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit.network import LOSSES, get_loss
from paperkit.network.losses import CrossEntropy, GeneralLoss, Loss, Positional

N, C = 7, 4
generator = torch.Generator().manual_seed(0)
OUTPUTS = 3 * torch.randn(N, C, generator=generator, dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1, 1, 2, 0, 3])
SOME = torch.tensor([0, -100, 1, 1, 2, -100, 3])
SOFT = torch.rand(N, C, generator=generator, dtype=torch.float64)
SOFT = SOFT / SOFT.sum(dim=1, keepdim=True)
REALS = torch.randn(N, C, generator=generator, dtype=torch.float64)
BITS = (REALS > 0).double()
COUNTS = torch.randint(0, 5, (N, C), generator=generator)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0])
TEXT = torch.randn(N, 5, C, generator=generator, dtype=torch.float64)
TOKENS = torch.randint(0, C, (N, 5), generator=generator)
TOKENS[2, 1:] = TOKENS[4, 0] = -100
IMAGE = torch.randn(N, C, 2, 3, generator=generator, dtype=torch.float64)
PIXELS = torch.randint(0, C, (N, 2, 3), generator=generator)


@dataclass(frozen=True)
class Case:
    """A loss as it is given, its data, and the mean loss as torch has it."""

    name: str
    loss: object
    outputs: Tensor
    targets: Tensor
    plain: Callable[[Tensor, Tensor], Tensor]
    general: bool = False  # by autograd, not by a rule


def _cross_entropy(**options: object) -> Callable[[Tensor, Tensor], Tensor]:
    return nn.CrossEntropyLoss(**options).double()  # type: ignore[arg-type]


def _last(loss: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda f, y: loss(f.flatten(0, -2), y.flatten(0, len(y.shape) - 1))


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.huber_loss(outputs, targets)


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    rise = 1.0 + outputs - outputs.gather(1, targets.unsqueeze(1))
    return rise.clamp(min=0.0).square().mean()


def heteroscedastic(outputs: Tensor, targets: Tensor) -> Tensor:
    mean, log_variance = outputs.chunk(2, dim=1)
    return functional.gaussian_nll_loss(mean, targets[:, :2], log_variance.exp())


class Temperature(nn.Module):
    """A loss with a weight of its own, in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Linear(C, C, bias=False)
        with torch.no_grad():
            self.mixing.weight.copy_(torch.eye(C) + 0.25)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self.mixing(outputs), targets)


class Focal(nn.CrossEntropyLoss):
    """A subclass with a forward of its own is not its base class."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = functional.cross_entropy(outputs, targets, reduction="none")
        return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    return Focal()(outputs, targets)


def _temperature(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs @ (torch.eye(C) + 0.25).double().T, targets)


CASES = [
    Case("cross_entropy", "cross_entropy", OUTPUTS, LABELS, functional.cross_entropy),
    Case("uint8 labels", "cross_entropy", OUTPUTS, LABELS.to(torch.uint8), _cross_entropy()),
    Case("module", nn.CrossEntropyLoss(), OUTPUTS, LABELS, _cross_entropy()),
    Case("function", functional.cross_entropy, OUTPUTS, LABELS, _cross_entropy()),
    Case("soft", "cross_entropy", OUTPUTS, SOFT, _cross_entropy()),
    Case("ignored", nn.CrossEntropyLoss(), OUTPUTS, SOME, _cross_entropy()),
    Case(
        "ignored label",
        nn.CrossEntropyLoss(ignore_index=1),
        OUTPUTS,
        LABELS,
        _cross_entropy(ignore_index=1),
    ),
    *(
        Case(
            f"weights, smoothing {smoothing}, {kind}",
            nn.CrossEntropyLoss(WEIGHTS, label_smoothing=smoothing),
            OUTPUTS,
            targets,
            _cross_entropy(weight=WEIGHTS, label_smoothing=smoothing),
        )
        for smoothing in (0.0, 0.2)
        for kind, targets in (("labels", LABELS), ("ignored", SOME), ("soft", SOFT))
    ),
    Case(
        "smoothing",
        functools.partial(functional.cross_entropy, label_smoothing=0.1),
        OUTPUTS,
        LABELS,
        _cross_entropy(label_smoothing=0.1),
    ),
    Case(
        "log-probabilities",
        nn.NLLLoss(WEIGHTS),
        OUTPUTS.log_softmax(1),
        SOME,
        nn.NLLLoss(WEIGHTS).double(),
    ),
    Case("tokens", nn.CrossEntropyLoss(), TEXT, TOKENS, _last(_cross_entropy())),
    Case(
        "weighted tokens",
        nn.CrossEntropyLoss(WEIGHTS),
        TEXT,
        TOKENS,
        _last(_cross_entropy(weight=WEIGHTS)),
    ),
    Case("pixels", "cross_entropy", IMAGE, PIXELS, functional.cross_entropy),
    Case("soft pixels", "cross_entropy", IMAGE, IMAGE.softmax(1), _cross_entropy()),
    Case("mse", "mse", OUTPUTS, REALS, functional.mse_loss),
    Case("mse module of images", nn.MSELoss(), IMAGE, IMAGE.cos(), functional.mse_loss),
    # Torch 2.6 itself has no derivative of this loss where the targets are integers.
    Case("mse of integers", nn.MSELoss(), OUTPUTS, COUNTS, lambda f, y: nn.MSELoss()(f, y.to(f))),
    Case(
        "half_squared_error",
        "half_squared_error",
        OUTPUTS,
        REALS,
        lambda f, y: 0.5 * (f - y).square().sum(dim=1).mean(),
    ),
    Case("multi-label", "bce_with_logits", OUTPUTS, BITS, nn.BCEWithLogitsLoss()),
    Case(
        "bool labels",
        nn.BCEWithLogitsLoss(),
        OUTPUTS,
        BITS.bool(),
        lambda f, y: functional.binary_cross_entropy_with_logits(f, y.double()),
    ),
    Case(
        "one logit",
        "bce_with_logits",
        OUTPUTS[:, :1],
        BITS[:, 0],
        lambda f, y: functional.binary_cross_entropy_with_logits(f, y.unsqueeze(1)),
    ),
    Case(
        "weighted multi-label",
        nn.BCEWithLogitsLoss(WEIGHTS, pos_weight=WEIGHTS.flip(0)),
        OUTPUTS,
        BITS,
        nn.BCEWithLogitsLoss(WEIGHTS, pos_weight=WEIGHTS.flip(0)).double(),
    ),
    Case(
        "weighted channels",
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS.reshape(C, 1, 1)),
        IMAGE,
        (IMAGE > 0).double(),
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS.reshape(C, 1, 1)).double(),
    ),
    Case("counts", nn.PoissonNLLLoss(), OUTPUTS, COUNTS, nn.PoissonNLLLoss()),
    Case(
        "full",
        nn.PoissonNLLLoss(full=True),
        OUTPUTS,
        COUNTS,
        lambda f, y: functional.poisson_nll_loss(f, y.double(), full=True),
    ),
    Case(
        "rates",
        nn.PoissonNLLLoss(log_input=False),
        OUTPUTS.exp(),
        COUNTS,
        nn.PoissonNLLLoss(log_input=False),
        general=True,
    ),
    Case("huber", nn.HuberLoss(delta=0.7), OUTPUTS, REALS, nn.HuberLoss(delta=0.7), True),
    Case("smooth l1", functional.smooth_l1_loss, OUTPUTS, REALS, nn.SmoothL1Loss(), True),
    Case("l1", nn.L1Loss(), OUTPUTS, REALS, nn.L1Loss(), True),
    Case("margin", hinge, OUTPUTS, LABELS, hinge, True),
    Case(
        "batchmean",
        nn.KLDivLoss(reduction="batchmean"),
        OUTPUTS.log_softmax(1),
        SOFT,
        nn.KLDivLoss(reduction="batchmean"),
        True,
    ),
    Case("own weights", Temperature(), OUTPUTS, LABELS, _temperature, True),
    Case("subclass", Focal(), OUTPUTS, LABELS, focal, True),
    Case("two heads", heteroscedastic, OUTPUTS, REALS, heteroscedastic, True),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def bound(case: Case) -> Loss:
    loss = get_loss(case.loss)
    if loss.needs_data(case.outputs, case.targets):
        loss = loss.bound(case.outputs[:2], lambda: case.targets.split(3))
    loss.check(case.outputs.flatten(1), case.targets)
    return loss


def derivatives(case: Case) -> tuple[Tensor, Tensor]:
    """Return the gradient (n, K) and the Hessians (n, K, K) of the samples' own losses."""
    shape = case.outputs.shape

    def mean(rows: Tensor) -> Tensor:
        return case.plain(rows.reshape(shape), case.targets)

    rows = case.outputs.flatten(1)
    gradient = len(rows) * torch.func.grad(mean)(rows)
    hessian = len(rows) * torch.autograd.functional.hessian(mean, rows)
    index = torch.arange(len(rows))
    blocks = hessian[index, :, index]
    hessian[index, :, index] = 0.0
    assert not hessian.any()  # samples do not interact
    return gradient, blocks


@cases
def test_value_is_that_of_torch(case: Case) -> None:
    loss = bound(case)
    rows = case.outputs.flatten(1)
    expected = case.plain(case.outputs, case.targets)
    torch.testing.assert_close(loss.value(rows, case.targets), expected, rtol=1e-12, atol=1e-15)
    losses = loss.sample_losses(rows, case.targets)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-12, atol=1e-15)


@cases
def test_derivatives_are_those_of_autograd(case: Case) -> None:
    loss = bound(case)
    rows = case.outputs.flatten(1)
    gradient, hessians = derivatives(case)
    close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)
    close(loss.gradient(rows, case.targets), gradient)
    changes = torch.randn(3, *rows.shape, generator=torch.Generator().manual_seed(1)).double()
    close(
        loss.hessian_product(rows, changes, case.targets),
        torch.einsum("nij,knj->kni", hessians, changes),
    )
    close(
        loss.hessian_product(rows, changes[0], case.targets),
        torch.einsum("nij,nj->ni", hessians, changes[0]),
    )
    if float(torch.linalg.eigvalsh(hessians).min()) < -1e-9:
        with pytest.raises(ValueError, match="not convex"):
            loss.hessian_factor(rows, case.targets)
    else:
        factor = loss.hessian_factor(rows, case.targets)
        close(factor.mT @ factor, hessians, rtol=1e-9, atol=1e-9 * float(hessians.abs().max()))


@cases
def test_derivatives_do_not_depend_on_how_the_data_are_cut(case: Case) -> None:
    loss = bound(case)
    rows = case.outputs.flatten(1)
    parts = list(zip(rows.split(2), case.targets.split(2), strict=True))
    pairs = [
        (loss.sample_losses, torch.cat([loss.sample_losses(f, y) for f, y in parts])),
        (loss.gradient, torch.cat([loss.gradient(f, y) for f, y in parts])),
    ]
    for function, expected in pairs:
        torch.testing.assert_close(function(rows, case.targets), expected, rtol=1e-13, atol=1e-15)


@cases
def test_derivatives_keep_the_dtype_and_come_from_double_precision(case: Case) -> None:
    loss = bound(case)
    single = case.outputs.flatten(1).float()
    double = single.double()
    changes = torch.ones(2, *single.shape)
    pairs = [
        (loss.gradient(single, case.targets), loss.gradient(double, case.targets)),
        (
            loss.hessian_product(single, changes, case.targets),
            loss.hessian_product(double, changes.double(), case.targets),
        ),
    ]
    for found, expected in pairs:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=2e-7, atol=1e-30)


@cases
def test_derivatives_work_inside_transforms(case: Case) -> None:
    loss = bound(case)
    if loss.name in ("KLDivLoss", "HuberLoss"):
        pytest.skip("torch has no forward mode for it; the operators fall back")
    rows, (_, hessians) = case.outputs.flatten(1), derivatives(case)
    changes = torch.ones(2, *rows.shape, dtype=torch.float64)

    def product(change: Tensor) -> Tensor:
        return torch.func.jvp(lambda f: loss.gradient(f, case.targets), (rows,), (change,))[1]

    expected = torch.einsum("nij,knj->kni", hessians, changes)
    torch.testing.assert_close(torch.func.vmap(product)(changes), expected, rtol=1e-9, atol=1e-12)


@cases
def test_gradient_can_be_differentiated_again(case: Case) -> None:
    loss = bound(case)
    rows, (_, hessians) = case.outputs.flatten(1).requires_grad_(), derivatives(case)
    gradient = loss.gradient(rows, case.targets)
    change = torch.ones_like(rows)
    (product,) = torch.autograd.grad(gradient, rows, change, materialize_grads=True)
    expected = torch.einsum("nij,nj->ni", hessians, change)
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gap", [40.0, 300.0, 700.0])
@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])),
        nn.CrossEntropyLoss(ignore_index=-1),
    ],
    ids=str,
)
def test_saturated_softmax_keeps_relative_accuracy(loss: object, gap: float) -> None:
    outputs = torch.tensor([[gap, 0.0], [0.0, gap]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    weights = torch.tensor([1.0, 2.0]) if isinstance(loss, nn.CrossEntropyLoss) else torch.ones(2)
    if getattr(loss, "weight", None) is None:
        weights = torch.ones(2)
    known = get_loss(loss)
    if known.needs_data(outputs, labels):
        known = known.bound(outputs, lambda: [labels])
    small = math.exp(-gap)  # 1 − p of each label, whose square is below any round-off
    scales = weights.double() / weights.double().mean()
    gradient = small * torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).double() * scales.unsqueeze(1)
    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=0.0)
    close(known.sample_losses(outputs, labels), small * scales)
    close(known.gradient(outputs, labels), gradient)
    factor = known.hessian_factor(outputs, labels)
    block = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    close(factor.mT @ factor, small * scales.reshape(2, 1, 1) * block)
    changes = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    expected = small * scales.unsqueeze(1) * block[0]
    close(known.hessian_product(outputs, changes, labels), expected.expand(2, 2))
    rows = outputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(known.value(rows, labels), rows)
    close(slope, gradient / 2)


def test_a_loss_without_a_second_derivative_has_a_value_and_says_so() -> None:
    plain = nn.MultiMarginLoss()
    loss = get_loss(plain).bound(OUTPUTS, lambda: [LABELS])
    torch.testing.assert_close(loss.value(OUTPUTS, LABELS), plain(OUTPUTS, LABELS))
    with pytest.raises(ValueError, match="MultiMarginLoss has no second derivative"):
        loss.hessian_factor(OUTPUTS, LABELS)


@pytest.mark.parametrize("gap", [40.0, 700.0])
def test_saturated_binary_labels_keep_relative_accuracy(gap: float) -> None:
    loss = get_loss("bce_with_logits")
    outputs, labels = torch.tensor([[gap, -gap]], dtype=torch.float64), torch.tensor([[1, 0]])
    small = math.exp(-gap)
    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=0.0)
    close(loss.sample_losses(outputs, labels), torch.tensor([small], dtype=torch.float64))
    slopes = torch.tensor([[-small / 2, small / 2]], dtype=torch.float64)
    close(loss.gradient(outputs, labels), slopes)
    factor = loss.hessian_factor(outputs)[0]
    close(factor.T @ factor, torch.eye(2, dtype=torch.float64) * small / 2)


def test_softmax_factor_has_one_row_less_than_outputs() -> None:
    assert get_loss("cross_entropy").hessian_factor(torch.zeros(4, 6)).shape == (4, 5, 6)


def test_one_class_has_no_loss() -> None:
    outputs = torch.tensor([[3.0], [-2.0]], requires_grad=True)
    loss, labels = get_loss("cross_entropy"), torch.tensor([0, 0])
    value = loss.value(outputs, labels)
    assert value == 0 and not loss.gradient(outputs, labels).any()
    (slope,) = torch.autograd.grad(value, outputs)
    assert not slope.any()
    assert loss.hessian_factor(outputs).shape == (2, 0, 1)


def test_nothing_ignored_is_plain_cross_entropy() -> None:
    loss = get_loss(nn.CrossEntropyLoss()).bound(OUTPUTS, lambda: [LABELS])
    assert isinstance(loss, CrossEntropy) and loss.is_plain


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(), "poisson_nll"], ids=str)
def test_likelihoods_have_the_curvature_of_the_models_own_targets(loss: object) -> None:
    known = get_loss(loss).likelihood()
    factor = known.hessian_factor(OUTPUTS)
    if isinstance(known, CrossEntropy):
        targets, chances = torch.arange(C), OUTPUTS.softmax(1)
        gradients = torch.stack([known.gradient(OUTPUTS, label.expand(N)) for label in targets])
        fisher = torch.einsum("nc,cni,cnj->nij", chances, gradients, gradients)
    else:  # the variance of a count is its mean
        fisher = torch.diag_embed(OUTPUTS.exp() / C)
    torch.testing.assert_close(factor.mT @ factor, fisher, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(WEIGHTS),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        nn.HuberLoss(),
        huber,
    ],
    ids=["weights", "smoothing", "pos_weight", "module", "function"],
)
def test_what_is_no_likelihood_says_so(loss: object) -> None:
    with pytest.raises(ValueError, match="no known likelihood"):
        get_loss(loss).likelihood()


def test_subclasses_and_bound_options_are_told_apart() -> None:
    assert isinstance(get_loss(Focal()), GeneralLoss)
    smoothed = get_loss(functools.partial(functional.cross_entropy, label_smoothing=0.1))
    assert isinstance(smoothed, CrossEntropy) and smoothed.label_smoothing == 0.1
    assert get_loss(nn.MSELoss()) is LOSSES["mse"]


def _vector(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def _random(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.dropout(outputs, 0.5), targets)


def _cut(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(dim=1) != targets).double().mean()


def _weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, WEIGHTS)


def _contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs @ outputs.T).square().mean()


def _logarithm(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.log().mean()


def _broken(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets[:, 0])


@pytest.mark.parametrize(
    ("loss", "targets", "sentence"),
    [
        ("cross_entrpy", LABELS, "loss='cross_entrpy' is unknown"),
        (nn.MSELoss, REALS, "an instance"),
        (3, REALS, "must be one of"),
        (nn.MSELoss(reduction="sum"), REALS, "reduction='sum'"),
        (nn.HuberLoss(reduction="none"), REALS, "reduction='none'"),
        (functools.partial(functional.huber_loss, reduction="sum"), REALS, "reduction='sum'"),
        (nn.GaussianNLLLoss(), REALS, "takes a variance"),
        (_vector, LABELS, "returns \\(7,\\)|returns \\(\\d,\\)"),
        (_random, LABELS, "another value when called again"),
        (_cut, LABELS, "no gradient reaches"),
        (_weighted, LABELS, "no mean over samples"),
        (lambda f, y: functional.cross_entropy(f, y), SOME, "no mean over samples"),
        (_contrastive, LABELS, "no mean over samples"),
        (_logarithm, LABELS, "is nan"),
        (_broken, LABELS, "fails on outputs"),
        (lambda f, y: 1.0, LABELS, "returns float"),
        ("cross_entropy", SOME, "labels from -100 to 3.*ignore_index"),
        ("cross_entropy", LABELS + 1, "labels must lie in 0..3"),
        ("cross_entropy", LABELS.bool(), "integer class labels"),
        ("cross_entropy", REALS, "no probabilities"),
        ("cross_entropy", LABELS[:, None], "integer class labels"),
        (nn.CrossEntropyLoss(WEIGHTS[:2]), LABELS, "2 class weights for 4 classes"),
        (nn.CrossEntropyLoss(), torch.full((N,), -100), "no label with a positive weight"),
        ("mse", REALS[:, :2], "as the model's outputs"),
        ("mse", REALS * math.nan, "NaN"),
        ("mse", REALS.reshape(N, 2, 2), "as the model's outputs"),
        ("bce_with_logits", 2 * BITS, "between 0 and 1"),
        (nn.BCEWithLogitsLoss(torch.ones(N, 1)), BITS, "must broadcast"),
        ("poisson_nll", -COUNTS - 1, "counts"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:24].replace("\n", ""),
)
def test_what_cannot_be_is_refused_in_one_sentence(
    loss: object, targets: Tensor, sentence: str
) -> None:
    def settle() -> None:
        known = get_loss(loss)
        if known.needs_data(OUTPUTS, targets):
            known = known.bound(OUTPUTS, lambda: [targets])
        known.check(OUTPUTS, targets)

    with pytest.raises((TypeError, ValueError), match=sentence):
        settle()


def test_a_weighted_mean_is_found_wherever_the_other_label_is() -> None:
    # The first samples all have one label, with which the weights cancel.
    batches = [torch.zeros(50, dtype=torch.int64), torch.zeros(50, dtype=torch.int64)]
    batches[1][37] = 3
    with pytest.raises(ValueError, match="no mean over samples"):
        get_loss(_weighted).bound(OUTPUTS, lambda: batches)


def test_classes_are_along_the_second_or_the_last_axis() -> None:
    cube = torch.zeros(2, 3, 3)
    labels = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="second or"):
        get_loss("cross_entropy").bound(cube, lambda: [labels])
    second = get_loss(nn.CrossEntropyLoss()).bound(cube, lambda: [labels])
    assert isinstance(second, Positional) and second.axis == 1
    # Where they can be told apart by their sums, they are.
    soft = torch.rand(2, 3, 3).softmax(dim=2)
    last = get_loss("cross_entropy").bound(cube, lambda: [soft])
    assert isinstance(last, Positional) and last.axis == 2
    with pytest.raises(ValueError, match="one label"):
        get_loss("cross_entropy").bound(torch.zeros(2, 3, 4), lambda: [labels[:, :2]])


def test_batches_of_another_length_are_refused() -> None:
    loss = get_loss(nn.CrossEntropyLoss()).bound(TEXT, lambda: [TOKENS])
    with pytest.raises(ValueError, match="pad all batches to one length"):
        loss.check(TEXT[:, :3].flatten(1), TOKENS[:, :3])


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(WEIGHTS), huber], ids=["weights", "huber"])
def test_curvature_that_needs_targets_says_so(loss: object) -> None:
    with pytest.raises(ValueError, match="targets=None"):
        get_loss(loss).without_targets(OUTPUTS)
    with pytest.raises(ValueError, match="targets=None"):
        get_loss(loss).hessian_factor(OUTPUTS)
