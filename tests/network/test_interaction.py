"""Samples that see each other or change places, and models that are random."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit.curvature import GaussNewtonOperator, HessianOperator, dense_gauss_newton
from paperkit.estimators import gauss_newton_trace, hessian_trace, mean_loss
from paperkit.linearize import linearize
from paperkit.network import RandomModelError, SamplesInteractError
from paperkit.network.evaluation import evaluation
from paperkit.network.interaction import following, separate_outputs
from paperkit.network.network import Network, network_outputs

N, FEATURES, HIDDEN, CLASSES = 8, 6, 5, 3


class Around(nn.Module):
    """A layer, something done to its rows, and another layer."""

    def __init__(self, middle, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.a, self.b, self.middle = (
            nn.Linear(FEATURES, hidden),
            nn.Linear(hidden, CLASSES),
            middle,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(torch.tanh(self.a(x))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], axis: int, **options) -> None:
        super().__init__()
        self.rnn, self.head = kind(FEATURES, 4, **options), nn.Linear(4, CLASSES)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unsqueeze(self.axis))[0].squeeze(self.axis))


def _shifted(h: Tensor) -> Tensor:
    """Move every sample one place on, by writing into a larger tensor."""
    room = torch.zeros(len(h) + 1, h.shape[1], dtype=h.dtype)
    room[1:] = h
    return room[:-1]


def _by_value(h: Tensor) -> Tensor:
    """A path that depends on the whole batch through one Python number."""
    return h * (1 + float(h.detach().mean()))


def _pairs(h: Tensor) -> Tensor:
    """Only the last sample sees another one."""
    return torch.cat([h[:-1], h[-1:] + 0.1 * h[:1]])


class Nearest(nn.Module):
    """Each sample is moved towards the one that is nearest to it."""

    def forward(self, h: Tensor) -> Tensor:
        distances = torch.cdist(h, h) + 1e6 * torch.eye(len(h), dtype=h.dtype)
        return h + 0.1 * h[distances.argmin(dim=1)]


INTERACTING = {
    "running mean": lambda h: h.cumsum(0) / torch.arange(1, len(h) + 1)[:, None],
    "first sample as anchor": lambda h: h + h[:1],
    "last sees first": _pairs,
    "batch mean": lambda h: h - h.mean(0),
    "batch mean, detached": lambda h: h - h.detach().mean(0),
    "batch mean by NumPy": lambda h: h - torch.from_numpy(h.detach().numpy().mean(0)),
    "batch mean by a list": lambda h: h - torch.tensor(h.tolist(), dtype=h.dtype).mean(0),
    "softmax over samples": lambda h: h.softmax(0),
    "attention over samples": lambda h: torch.softmax(h @ h.T, dim=1) @ h,
    "mask from the batch": lambda h: torch.where(h > h.detach().mean(), h, 0.1 * h),
    "place in the batch": lambda h: h * torch.linspace(0.5, 1.5, len(h), dtype=h.dtype)[:, None],
    "number of samples": lambda h: h / len(h),
    "rolled": lambda h: h.roll(1, 0),
    "flipped": lambda h: h.flip(0),
    "shifted in memory": _shifted,
    "mixed by a view": lambda h: h.t().reshape(h.shape),
    "nearest sample": Nearest(),
    "a Python number of the batch": _by_value,
}


def _batch(n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, FEATURES, generator=generator, dtype=dtype)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def _around(middle, dtype: torch.dtype = torch.float64) -> Around:
    torch.manual_seed(0)
    return Around(middle).to(dtype)


def _by_hand(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Trace of the Hessian of the mean cross-entropy, and the loss."""
    parameters = list(model.parameters())
    loss = functional.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    trace = sum(
        float(torch.autograd.grad(entry, p, retain_graph=True, allow_unused=True)[0].flatten()[i])
        for p, g in zip(parameters, gradient, strict=True)
        for i, entry in enumerate(g.flatten())
        if entry.requires_grad
    )
    return trace, float(loss.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", INTERACTING)
def test_interacting_samples_are_refused_by_pairs_and_by_operators(how: str, dtype) -> None:
    model, batch = _around(INTERACTING[how], dtype), _batch(dtype=dtype)
    with pytest.raises(SamplesInteractError):
        linearize(model, batch[0])
    with pytest.raises(SamplesInteractError):
        linearize(model, batch[0], chunk_size=1)
    with pytest.raises(SamplesInteractError):
        HessianOperator(model, batch)
    with pytest.raises(SamplesInteractError):
        gauss_newton_trace(model, batch)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_network_over_the_batch_is_refused(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x, y = _batch()
    over = Recurrent(kind, 1).double()
    with pytest.raises(SamplesInteractError, match="batch_first"):
        linearize(over, x)
    with pytest.raises(SamplesInteractError):
        hessian_trace(over, (x, y))
    assert linearize(Recurrent(kind, 1, batch_first=True).double(), x).num_samples == N
    assert linearize(Recurrent(kind, 0).double(), x).num_samples == N


@pytest.mark.parametrize("how", ["running mean", "first sample as anchor", "batch mean"])
def test_the_loss_of_interacting_samples_is_that_of_the_batches_as_given(how: str) -> None:
    model, (x, y) = _around(INTERACTING[how]), _batch()
    halves = list(zip(x.split(4), y.split(4), strict=True))
    expected = sum(_by_hand(model, *half)[1] for half in halves) / 2
    assert float(mean_loss(model, halves)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(SamplesInteractError):
        mean_loss(model, halves, memory_budget=600)


# --- Samples that stay apart -------------------------------------------------------------------


def _written(h: Tensor) -> Tensor:
    """Parts written into an empty tensor and into zeros."""
    room = torch.empty_like(h)
    room[:, :2] = h[:, :2] * 2
    room[:, 2:] = h[:, 2:]
    total = torch.zeros(len(h), 2, h.shape[1], dtype=h.dtype)
    total[:, 1] = room
    return total.sum(1)


def _heads(h: Tensor) -> Tensor:
    """Attention between the entries of a sample, samples and heads in one axis."""
    q = h.unsqueeze(-1) * torch.ones(2, dtype=h.dtype)  # (n, entries, 2)
    q = q.transpose(1, 2).reshape(-1, h.shape[1], 1)
    mixed = torch.softmax(q @ q.transpose(1, 2), dim=-1) @ q
    return mixed.view(len(h), 2, -1).mean(1)


def _own_entry(h: Tensor) -> Tensor:
    """Add to each sample the entry that its own largest one points to."""
    own = h[torch.arange(len(h)), h.argmax(1)]
    return h + 0.1 * own[:, None] + h.gather(1, h.argsort(1))


APART = {
    "nothing": lambda h: h,
    "normalised": lambda h: (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-3),
    "sorted within": lambda h: h.sort(dim=1).values.cumsum(-1),
    "samples last and back": lambda h: (h.T * 2).cumsum(0).T,
    "written in parts": _written,
    "heads": _heads,
    "own entry": _own_entry,
    "constants for all": lambda h: h + torch.arange(h.shape[1]).expand(len(h), -1)
    + torch.ones(len(h), 1, dtype=h.dtype) * torch.tensor([0.5], dtype=h.dtype),
    "twice and halved": lambda h: torch.cat([h, h.sin()]).chunk(2)[1],
    "einsum": lambda h: torch.einsum("ni,nj->nij", h, h).diagonal(dim1=1, dim2=2).contiguous(),
    "in place": lambda h: h.clone().mul_(2).clamp_(-1, 1).add_(h),
}  # fmt: skip


@pytest.mark.parametrize("how", APART)
def test_operations_that_keep_samples_apart_are_recognised(how: str) -> None:
    model, (x, _) = Network(_around(APART[how])), _batch()
    with evaluation(model) as parameters:
        outputs, axes = following(model, x, lambda: network_outputs(model, parameters, x))
    assert axes.apart(outputs), axes.obstacle
    expected = torch.cat([model.module(one) for one in x.split(1)])
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", INTERACTING)
def test_operations_never_vouch_for_samples_that_interact(how: str) -> None:
    if how == "number of samples":
        pytest.skip("a Python number is no operation; the numbers of two passes show it")
    model, (x, _) = Network(_around(INTERACTING[how])), _batch()
    with evaluation(model) as parameters:
        outputs, axes = following(model, x, lambda: network_outputs(model, parameters, x))
        assert not axes.apart(outputs)


class Experts(nn.Module):
    """Each sample goes to the expert that its gate prefers; some chunk has none for an expert."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(FEATURES, 3)
        self.experts = nn.ModuleList(nn.Linear(FEATURES, HIDDEN) for _ in range(3))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(1).max(1)
        total = torch.zeros(len(x), HIDDEN, dtype=x.dtype)
        for k, expert in enumerate(self.experts):
            members = (chosen == k).nonzero().flatten()
            if len(members):
                total.index_add_(0, members, weights[members, None] * expert(x[members]).tanh())
        return self.head(total)


class ByLength(nn.Module):
    """Sorts the samples, does its work and puts them back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort(descending=True)
        return self.b(torch.tanh(self.a(x[order])))[order.argsort()]


@pytest.mark.parametrize("kind", [Experts, ByLength])
@pytest.mark.parametrize("memory_budget", [2**30, 30_000])
def test_what_no_operation_shows_the_numbers_decide(kind: type, memory_budget: int) -> None:
    torch.manual_seed(0)
    model, (x, y) = kind().double(), _batch(12)
    loss = functional.cross_entropy(model(x), y)
    given = mean_loss(model, (x, y), memory_budget=memory_budget)
    assert float(given) == pytest.approx(float(loss.detach()))
    operator = HessianOperator(model, (x, y), memory_budget=memory_budget)
    vector = torch.linspace(-1, 1, operator.dimension, dtype=torch.float64)
    flat = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    gradient = torch.cat([part.flatten() for part in flat])
    rows = torch.autograd.grad(gradient @ vector, list(model.parameters()))
    expected = torch.cat([row.flatten() for row in rows])
    torch.testing.assert_close(operator(vector), expected, rtol=1e-10, atol=1e-12)


def test_samples_that_change_places_and_back_are_no_obstacle_to_operators() -> None:
    torch.manual_seed(0)
    model, (x, y) = ByLength().double(), _batch()
    dense = dense_gauss_newton(model, x)
    operator = GaussNewtonOperator(model, (x, y))
    products = operator(torch.eye(operator.dimension, dtype=torch.float64))
    torch.testing.assert_close(products, dense, rtol=1e-10, atol=1e-12)


def _jacobian_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return ∂f/∂θ by one backward pass for each output of each sample."""
    parameters = dict(model.named_parameters())
    rows = [
        torch.autograd.grad(
            entry, list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        for entry in model(x).flatten()
    ]
    shape = (len(x), len(rows) // len(x), -1)
    return {
        name: torch.stack([row[i].flatten() for row in rows]).reshape(shape)
        for i, name in enumerate(parameters)
    }


class HiddenSwap(nn.Module):
    """A layer sees the same row for every sample, and each sample uses its neighbour's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, CLASSES)
        self.c = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.ones_like(x) * x.new_tensor(0.3)
        return self.b(x) + self.c(torch.tanh(self.a(rows)).roll(1, 0))


class TokensFirst(nn.Module):
    """As many tokens as samples, tokens first in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.t().unsqueeze(-1))).mean(0))


@pytest.mark.parametrize(
    ("kind", "n", "lost"),
    [(ByLength, N, {"a", "b"}), (HiddenSwap, N, {"a", "c"}), (TokensFirst, FEATURES, {"a"})],
)
def test_a_layer_that_sees_samples_in_another_order_is_left_out(
    kind: type, n: int, lost: set[str]
) -> None:
    torch.manual_seed(0)
    model, (x, _) = kind().double(), _batch(n)
    found = linearize(model, x, all_parameters=True)
    assert lost - {"c"} <= set(found.left_out) <= lost
    for name, jacobian in found.jacobian_blocks():
        torch.testing.assert_close(jacobian.flatten(2), _jacobian_of(model, x)[name])
    with pytest.raises(ValueError, match="another order"):
        linearize(model, x, layers=["a"])


# --- Models that are random ---------------------------------------------------------------------


RANDOM = {
    "dropout left on": lambda h: functional.dropout(h, 0.3, training=True),
    "little dropout": lambda h: functional.dropout(h, 0.02, training=True),
    "noise": lambda h: h + 0.1 * torch.randn_like(h),
    "one draw for all": lambda h: h * (1 + torch.rand(1, dtype=h.dtype)),
    "noise of NumPy's kind": lambda h: h * (1 + random.random()),
}


@pytest.mark.parametrize("how", RANDOM)
def test_random_models_are_called_random(how: str) -> None:
    torch.manual_seed(0)
    model, batch = _around(RANDOM[how]), _batch()
    for measure in (
        lambda: linearize(model, batch[0]),
        lambda: HessianOperator(model, batch),
        lambda: mean_loss(model, batch),
        lambda: gauss_newton_trace(model, batch),
    ):
        with pytest.raises(RandomModelError, match="random in evaluation mode"):
            measure()


def test_a_draw_that_reaches_no_output_is_no_obstacle() -> None:
    class Idle(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            self.last = torch.rand(3)
            return h

    model, batch = _around(Idle()), _batch()
    expected = _by_hand(_around(lambda h: h), *batch)[0]
    assert float(hessian_trace(model, batch)) == pytest.approx(expected, rel=1e-10)


# --- Cost ---------------------------------------------------------------------------------------


class Counted(Around):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_one_pass_suffices_where_the_operations_show_it_and_log_n_more_where_not() -> None:
    x = _batch(16)[0]
    for middle, passes in ((lambda h: h, 1), (lambda h: h[torch.arange(16) % len(h)], 1 + 2 * 4)):
        model = Network(Counted(middle).double())
        with evaluation(model) as parameters:
            if passes > 1:
                model.module.middle = lambda h: torch.cat([h.masked_select(h < 9).view_as(h)])
            separate_outputs(model, parameters, x)
        assert model.module.calls == passes


# --- Random programs ----------------------------------------------------------------------------


def _steps(h: Tensor, draw: random.Random) -> list:
    """Return operations that fit a tensor, along any of its axes."""
    ndim = h.ndim
    a, b = draw.randrange(ndim), draw.randrange(ndim)
    half = h.shape[a] // 2
    steps = [
        lambda: h.transpose(a, b),
        lambda: h.softmax(a),
        lambda: h.cumsum(a),
        lambda: h.flip(a),
        lambda: h.roll(1, a),
        lambda: h.sort(a).values,
        lambda: h - h.mean(a, keepdim=True),
        lambda: h.unsqueeze(a),
        lambda: h.narrow(a, 0, 1).expand_as(h) + h,
        lambda: torch.cat([h, h * 2], a),
        lambda: torch.stack([h, h.sin()], a),
        lambda: h.reshape(-1, *h.shape[2:]) if ndim > 1 else h,
        lambda: h.flatten(a, max(a, b)),
        lambda: h.unflatten(a, (2, half)) if 2 * half == h.shape[a] and half else h,
        lambda: h * torch.linspace(0.5, 1.5, h.shape[-1], dtype=h.dtype),
        lambda: h.masked_fill(h > h.mean(a, keepdim=True), 0.1),
        lambda: h.clone().mul_(0.5).add_(h.detach()),
        lambda: h.gather(a, h.argsort(a)),
        lambda: h.repeat_interleave(2, a),
        lambda: torch.zeros_like(h).copy_(h),
        lambda: torch.ones(h.shape, dtype=h.dtype).cumsum(a) * h,
    ]
    if ndim > 1:
        steps += [lambda: h.sum(a), lambda: h.select(a, h.shape[a] - 1), lambda: h.amax(a)]
    if ndim > 2:
        steps += [lambda: torch.softmax(h @ h.transpose(-1, -2), -1) @ h]
    if half and 2 * half == h.shape[a]:
        steps += [lambda: h.chunk(2, a)[0] + h.chunk(2, a)[1]]
    return steps


@pytest.mark.parametrize("seed", range(8))
def test_what_the_operations_of_a_random_program_show_is_true(seed: int) -> None:
    shown = 0
    for program in range(40):
        x = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(program)).double()

        def run(h: Tensor, program: int = program) -> Tensor:
            draw = random.Random(f"{seed} {program}")
            for _ in range(draw.randrange(1, 6)):
                step = draw.choice(_steps(h, draw))
                after = step()
                h = after if 0 < after.numel() <= 4096 and after.ndim < 6 else h
            return h

        leaf = x.clone().requires_grad_()
        outputs, axes = following(nn.Identity(), leaf, lambda leaf=leaf, run=run: run(leaf))
        if not axes.apart(outputs):
            continue
        shown += 1
        changed = x.clone()
        changed[1] += torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double()
        others = [0, 2, 3]
        torch.testing.assert_close(run(changed)[others], outputs[others], rtol=1e-9, atol=1e-9)
        moved = run(x[[2, 0, 3, 1]])
        torch.testing.assert_close(moved, outputs[[2, 0, 3, 1]], rtol=1e-9, atol=1e-9)
    assert shown >= 2
