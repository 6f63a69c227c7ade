"""Every measure under every loss against autograd's dense matrices in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from paperkit.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    ResidualOperator,
)
from paperkit.estimators import (
    adaptive_sharpness,
    fisher_rao_norm,
    gauss_newton_trace,
    generalization_gap,
    hessian_top_eigenvalues,
    hessian_trace,
    information_geometric_sharpness,
    layer_spectra,
    mean_exponential_loss,
    mean_loss,
    measure,
    pac_bayes_flatness,
    rangamani_sharpness,
    relative_flatness,
    renyi_sharpness,
    sam_sharpness,
)
from paperkit.linearize import linearize
from paperkit.network import Network

N, C = 7, 3
generator = torch.Generator().manual_seed(3)
INPUTS = torch.randn(N, 4, generator=generator, dtype=torch.float64)
LABELS = torch.tensor([0, 0, 0, 2, 1, 2, 1])  # the first batch has one class only
SOME = torch.tensor([0, 0, -100, 2, 1, -100, 1])
REALS = torch.randn(N, C, generator=generator, dtype=torch.float64)
SOFT, BITS = REALS.softmax(1), (REALS > 0).double()
COUNTS = torch.randint(0, 4, (N, C), generator=generator)
WEIGHTS = torch.tensor([1.0, 3.0, 0.5])
SENTENCES = torch.randint(0, 6, (N, 5), generator=generator)
TOKENS = torch.randint(0, C, (N, 5), generator=generator)
TOKENS[0] = -100
TOKENS[3, 2:] = -100
IMAGES = torch.randn(N, 2, 4, 4, generator=generator, dtype=torch.float64)
PIXELS = torch.randint(0, C, (N, 4, 4), generator=generator)


def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).double()


def piecewise() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, C)).double()


class Language(nn.Module):
    """A word's class from the word and the mean of all before it: (n, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(6, 4), nn.Linear(4, C)

    def forward(self, words: Tensor) -> Tensor:
        read = self.words(words)
        before = read.cumsum(1) / torch.arange(1, read.shape[1] + 1).unsqueeze(1)
        return self.head(torch.tanh(read + before))


def segmentation() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, C, 1)).double()


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.huber_loss(outputs, targets, delta=0.5)


def tilted(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.sin(outputs - targets).mean()  # not convex


def tokens_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), WEIGHTS.double())


@dataclass(frozen=True)
class Case:
    """A network, its data, a loss as it is given and as torch has it."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    loss: Any
    plain: Callable[[Tensor, Tensor], Tensor]
    likelihood: bool = False
    convex: bool = True


CASES = [
    Case("labels", smooth, INPUTS, LABELS, "cross_entropy", functional.cross_entropy, True),
    Case(
        "weights",
        smooth,
        INPUTS,
        LABELS,
        nn.CrossEntropyLoss(WEIGHTS),
        nn.CrossEntropyLoss(WEIGHTS.double()),
    ),
    Case(
        "weights, ReLU",
        piecewise,
        INPUTS,
        SOME,
        nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1),
        nn.CrossEntropyLoss(WEIGHTS.double(), label_smoothing=0.1),
    ),
    Case("ignored", smooth, INPUTS, SOME, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(), True),
    Case("soft", smooth, INPUTS, SOFT, "cross_entropy", functional.cross_entropy, True),
    Case(
        "multi-label", piecewise, INPUTS, BITS, nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(), True
    ),
    Case(
        "weighted multi-label",
        smooth,
        INPUTS,
        BITS,
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS.double()),
    ),
    Case("counts", piecewise, INPUTS, COUNTS, nn.PoissonNLLLoss(), nn.PoissonNLLLoss(), True),
    Case("mse", smooth, INPUTS, REALS, nn.MSELoss(), functional.mse_loss, True),
    Case("huber", piecewise, INPUTS, REALS, huber, huber),
    Case("not convex", smooth, INPUTS, REALS, tilted, tilted, convex=False),
    Case(
        "tokens",
        lambda: Language().double(),
        SENTENCES,
        TOKENS,
        nn.CrossEntropyLoss(WEIGHTS),
        tokens_loss,
    ),
    Case("pixels", segmentation, IMAGES, PIXELS, "cross_entropy", functional.cross_entropy, True),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class Dense:
    """Autograd's matrices of the mean loss over all data."""

    def __init__(self, case: Case) -> None:
        self.model = case.make()
        named = dict(self.model.named_parameters())
        self.shapes = {name: p.shape for name, p in named.items()}
        self.flat = torch.cat([p.detach().flatten() for p in named.values()])
        self.case = case

        def loss(flat: Tensor) -> Tensor:
            return case.plain(self.outputs(flat), case.targets)

        self.value = float(loss(self.flat))
        self.gradient = torch.func.grad(loss)(self.flat)
        self.hessian = torch.autograd.functional.hessian(loss, self.flat)
        outputs = self.outputs(self.flat).detach()
        rows = outputs.flatten(1)

        def of_outputs(rows: Tensor) -> Tensor:
            return case.plain(rows.reshape(outputs.shape), case.targets)

        self.jacobian = torch.autograd.functional.jacobian(
            lambda flat: self.outputs(flat).flatten(), self.flat
        )
        curvature = torch.autograd.functional.hessian(of_outputs, rows)
        flat_curvature = curvature.reshape(rows.numel(), rows.numel())
        self.gauss_newton = self.jacobian.T @ flat_curvature @ self.jacobian
        residuals = N * torch.func.grad(of_outputs)(rows)
        per_sample = self.jacobian.unflatten(0, rows.shape)
        self.gradients = torch.einsum("nk,nkd->nd", residuals, per_sample)

    def outputs(self, flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        values = {
            name: part.reshape(shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }
        return functional_call(self.model, values, (self.case.inputs,))

    def block(self, name: str) -> Tensor:
        start = 0
        for key, shape in self.shapes.items():
            if key == name:
                stop = start + shape.numel()
                return self.hessian[start:stop, start:stop]
            start += shape.numel()
        raise KeyError(name)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def dense(request: pytest.FixtureRequest) -> Dense:
    return Dense(request.param)


def uneven(case: Case) -> list[tuple[Tensor, Tensor]]:
    sizes = [2, 4, 1]
    return list(zip(case.inputs.split(sizes), case.targets.split(sizes), strict=True))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert float((found - expected).norm()) <= tolerance * (float(expected.norm()) + 1e-12)


def test_operators(dense: Dense) -> None:
    case, unit = dense.case, torch.eye(len(dense.flat), dtype=torch.float64)
    args = (dense.model, uneven(case), case.loss)
    expected = [
        (HessianOperator, dense.hessian),
        (GaussNewtonOperator, dense.gauss_newton),
        (ResidualOperator, dense.hessian - dense.gauss_newton),
        (EmpiricalFisherOperator, dense.gradients.T @ dense.gradients / N),
    ]
    for kind, matrix in expected:
        for budget in (2**30, 1):
            operator = kind(*args, memory_budget=budget)
            scale = float(dense.hessian.norm() + matrix.norm())
            assert float((operator(unit) - matrix).norm()) < 1e-9 * scale
            assert float((operator(unit[1]) - matrix[1]).norm()) < 1e-9 * scale


def test_fisher_is_known_or_refused(dense: Dense) -> None:
    case = dense.case
    for make in (
        lambda: FisherOperator(dense.model, uneven(case), case.loss)(dense.flat),
        lambda: fisher_rao_norm(dense.model, uneven(case), case.loss),
        lambda: information_geometric_sharpness(dense.model, uneven(case), case.loss),
    ):
        if not case.likelihood:
            with pytest.raises(ValueError, match="no known likelihood"):
                make()
        else:
            make()
    observed = fisher_rao_norm(dense.model, uneven(case), case.loss, labels="observed")
    expected = float((dense.gradients @ dense.flat).square().mean())
    assert float(observed) == pytest.approx(expected, rel=1e-9)
    if not case.likelihood:
        return
    product = FisherOperator(dense.model, uneven(case), case.loss)(dense.flat)
    factor = C / 2 if case.name == "mse" else 1.0  # unit variance
    close(product, factor * dense.gauss_newton @ dense.flat)
    norm = fisher_rao_norm(dense.model, uneven(case), case.loss)
    expected = float(dense.flat @ dense.gauss_newton @ dense.flat)
    assert float(norm) == pytest.approx(expected, rel=1e-9)


def test_information_geometric_sharpness(dense: Dense) -> None:
    case = dense.case
    if not case.likelihood:
        pytest.skip("refused")
    values, vectors = torch.linalg.eigh(dense.gauss_newton)
    kept = values > 1e-10 * values[-1]
    projected = dense.gradients @ vectors[:, kept]
    expected = float((projected.square() / values[kept]).sum(dim=1).mean())
    for budget in (2**30, 2**20):
        found = information_geometric_sharpness(
            dense.model, uneven(case), case.loss, memory_budget=budget
        )
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_hessian_measures(dense: Dense) -> None:
    case = dense.case
    eigenvalues = torch.linalg.eigvalsh(dense.hessian)
    for budget in (2**30, 2**16):
        data, options = uneven(case), {"memory_budget": budget}
        trace = hessian_trace(dense.model, data, case.loss, **options)
        assert trace.value == pytest.approx(float(dense.hessian.trace()), rel=1e-9, abs=1e-12)
        top = hessian_top_eigenvalues(dense.model, data, loss=case.loss, **options)
        assert float(top) == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
        adaptive = adaptive_sharpness(dense.model, data, case.loss, **options)
        expected = float((dense.flat.square() * dense.hessian.diagonal()).sum())
        assert float(adaptive) == pytest.approx(expected, rel=1e-9)
    scaled = rangamani_sharpness(dense.model, uneven(case), case.loss)
    assert scaled.converged


def test_layers(dense: Dense) -> None:
    case = dense.case
    if not case.convex:
        with pytest.raises(ValueError, match="not convex"):
            linearize(dense.model, case.inputs, case.loss, targets=case.targets)
        return
    spectra = layer_spectra(dense.model, uneven(case), case.loss)
    for name, spectrum in spectra.items():
        expected = torch.linalg.eigvalsh(dense.block(f"{name}.weight")).flip(0)
        scale = float(expected.abs().max())
        found = torch.zeros_like(expected)
        found[: spectrum.rank] = spectrum.eigenvalues
        order = found.sort(descending=True).values
        assert float((order - expected).abs().max()) < 1e-9 * scale
    entropies = renyi_sharpness(dense.model, uneven(case), 0.5, case.loss)
    assert set(entropies) == set(spectra)
    flat = relative_flatness(dense.model, uneven(case), case.loss)
    for name, one in flat.items():
        weight = dense.model.get_parameter(f"{name}.weight").detach().flatten(1)
        identity = torch.eye(weight.shape[1], dtype=torch.float64)
        mixing = torch.kron(weight @ weight.T, identity)
        expected = float((dense.block(f"{name}.weight") * mixing).sum())
        assert float(one) == pytest.approx(expected, rel=1e-9)


def test_gauss_newton_trace_and_losses(dense: Dense) -> None:
    case = dense.case
    value = mean_loss(dense.model, uneven(case), case.loss)
    assert float(value) == pytest.approx(dense.value, rel=1e-12)
    tiny = mean_loss(dense.model, uneven(case), case.loss, memory_budget=1)
    assert float(tiny) == pytest.approx(dense.value, rel=1e-12)
    assert float(mean_exponential_loss(dense.model, uneven(case), case.loss)) > -1
    if case.convex:
        trace = gauss_newton_trace(dense.model, uneven(case), loss=case.loss)
        expected = float(dense.gauss_newton.trace())
        assert float(trace) == pytest.approx(expected, rel=1e-9)


def test_sam_starts_along_the_gradient(dense: Dense) -> None:
    case, rho = dense.case, 0.01
    moved = dense.flat + rho * dense.gradient / dense.gradient.norm()
    rise = float(case.plain(dense.outputs(moved), case.targets)) - dense.value
    for budget in (2**30, 1):
        found = sam_sharpness(
            dense.model, uneven(case), case.loss, rho=rho, steps=1, memory_budget=budget
        )
        assert float(found) == pytest.approx(rise, rel=1e-9)


def test_reports(dense: Dense) -> None:
    case = dense.case
    report = measure(dense.model, (case.inputs, case.targets), loss=case.loss)
    whole = {"renyi_sharpness", "relative_flatness", "mean_loss"}
    if case.convex:
        assert whole <= set(report)
    else:
        assert "mean_loss" in report and "renyi_sharpness" in report.missing
    for sentence in report.missing.values():
        assert "likelihood" in sentence or "convex" in sentence or "floating" in sentence


def test_the_same_loss_on_other_data_has_their_weights() -> None:
    loss = nn.CrossEntropyLoss(WEIGHTS)
    model = smooth()
    gap = generalization_gap(model, (INPUTS[:4], LABELS[:4]), (INPUTS[4:], LABELS[4:]), loss=loss)
    plain = nn.CrossEntropyLoss(WEIGHTS.double())
    assert gap.train_loss == pytest.approx(float(plain(model(INPUTS[:4]), LABELS[:4])))
    assert gap.test_loss == pytest.approx(float(plain(model(INPUTS[4:]), LABELS[4:])))
    hits = (model(INPUTS).argmax(1) == LABELS).double()
    assert gap.accuracy_gap == pytest.approx(float(hits[:4].mean() - hits[4:].mean()))
    soft = generalization_gap(model, (INPUTS, SOFT), (INPUTS, SOFT))
    assert soft.accuracy_gap is None


def test_accuracy_needs_one_label_a_sample() -> None:
    with pytest.raises(ValueError, match="integer class labels"):
        pac_bayes_flatness(Language().double(), (SENTENCES, TOKENS.clamp(min=0)))
    with pytest.raises(ValueError, match="labels"):
        pac_bayes_flatness(smooth(), (INPUTS, BITS))


# --- Models that are not called as model(inputs) -------------------------------------------------


class TwoInputs(nn.Module):
    """Two inputs, and outputs as transformers wraps them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)
        self.head = nn.Linear(3, C)

    def forward(self, first: Tensor, second: Tensor | None = None) -> Any:
        hidden = self.left(first) + (0 if second is None else self.right(second))
        return SimpleNamespace(logits=self.head(torch.tanh(hidden)), hidden_states=hidden)


def in_two_ways() -> Iterator[tuple[str, Any, Callable | None]]:
    second = INPUTS[:, :2].cos()

    def by_hand(model: nn.Module, inputs: Any) -> Tensor:
        return model(inputs[0], second=inputs[1]).logits

    def named(model: nn.Module, inputs: Any) -> Tensor:
        return model(**inputs).logits

    yield "tuple", (INPUTS, second), by_hand
    yield "dict", {"first": INPUTS, "second": second}, named


@pytest.mark.parametrize(
    ("inputs", "forward"),
    [pytest.param(inputs, forward, id=name) for name, inputs, forward in in_two_ways()],
)
def test_several_inputs_by_forward(inputs: Any, forward: Callable) -> None:
    model = TwoInputs().double()
    weights = nn.CrossEntropyLoss(WEIGHTS)
    plain = nn.CrossEntropyLoss(WEIGHTS.double())
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])
    first, second = inputs.values() if isinstance(inputs, dict) else inputs

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in named.values()])
        values = {
            name: part.reshape(p.shape)
            for part, (name, p) in zip(parts, named.items(), strict=True)
        }
        return plain(functional_call(model, values, (first, second)).logits, LABELS)

    hessian = torch.autograd.functional.hessian(loss, flat)
    trace = hessian_trace(model, (inputs, LABELS), weights, forward=forward)
    assert float(trace) == pytest.approx(float(hessian.trace()), rel=1e-9)
    operator = HessianOperator(Network(model, forward), (inputs, LABELS), weights)
    close(operator(flat), hessian @ flat)
    value = mean_loss(model, (inputs, LABELS), weights, forward=forward, memory_budget=1)
    assert float(value) == pytest.approx(float(loss(flat)), rel=1e-12)


def test_a_graph_is_one_sample_of_many_nodes() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, C)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            return self.second(edges @ torch.tanh(edges @ self.first(nodes)))

    model = Graph().double()
    edges = (torch.rand(N, N, generator=torch.Generator().manual_seed(5)) > 0.5).double()
    train = torch.where(torch.arange(N) < 5, LABELS, -100)

    def one_graph(model: nn.Module, inputs: Any) -> Tensor:
        return model(inputs[0][0], inputs[1][0]).unsqueeze(0)

    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in named.values()])
        values = {
            name: part.reshape(p.shape)
            for part, (name, p) in zip(parts, named.items(), strict=True)
        }
        return functional.cross_entropy(functional_call(model, values, (INPUTS, edges)), train)

    hessian = torch.autograd.functional.hessian(loss, flat)
    data = ((INPUTS.unsqueeze(0), edges.unsqueeze(0)), train.unsqueeze(0))
    trace = hessian_trace(model, data, nn.CrossEntropyLoss(), forward=one_graph)
    assert float(trace) == pytest.approx(float(hessian.trace()), rel=1e-9)
