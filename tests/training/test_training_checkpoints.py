"""A checkpoint belongs to one model, one set of options and all of its data."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit import checkpoint as checkpoints
from paperkit.data import Split
from paperkit.training import train
from paperkit.training.description import describe, difference

SAMPLES, CLASSES = 12, 3


def images(dtype=torch.float32) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(SAMPLES, 1, 4, 4, generator=generator, device="cpu").to(dtype)


def data(inputs: Tensor | None = None, targets: Tensor | None = None) -> Split:
    inputs = images() if inputs is None else inputs
    if targets is None:
        targets = torch.arange(SAMPLES, device="cpu") % CLASSES
    return Split(inputs, targets)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def network(activation: nn.Module | None = None, rate: float = 0.1) -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1),
            activation or nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(rate),
            nn.Linear(32, CLASSES),
        )
    )


def run(model: nn.Module, path, split: Split | None = None, **options):
    defaults = {"epochs": 1, "batch_size": 5, "progress": False}
    split = data() if split is None else split
    return train(model, split, checkpoint=path, **(defaults | options))


# --- the model ---------------------------------------------------------------------------------


class Gate(nn.Module):
    """A module whose forward pass depends on plain settings, a buffer and a function."""

    def __init__(self, slope=0.1, shape=(1, 2), function=torch.tanh, offset=0.0) -> None:
        super().__init__()
        self.settings = {"slope": slope, "shape": shape}
        self.function = function
        self.register_buffer("offset", torch.full((1,), offset, device="cpu"), persistent=False)

    def forward(self, inputs):
        return self.settings["slope"] * self.function(inputs) + self.offset


class Relu(nn.Module):
    def forward(self, inputs):
        return functional.relu(inputs)


class Tanh(nn.Module):
    def forward(self, inputs):
        return torch.tanh(inputs)


Tanh.__qualname__ = Tanh.__name__ = "Relu"


def hooked(register: str, hook: Callable) -> nn.Module:
    model = network()
    getattr(model[0], register)(hook)
    return model


def with_parameter(change: Callable[[nn.Parameter], object]) -> nn.Module:
    model = network()
    change(model[0].weight)
    return model


def with_padding_mode() -> nn.Module:
    model = network()
    model[0].padding_mode = "circular"
    return model


def with_own_forward() -> nn.Module:
    model = network()
    model[1].forward = torch.tanh
    return model


def two_layers(shared: bool) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3))
    with torch.no_grad():
        model[2].weight.copy_(model[1].weight)
    if shared:
        model[2].weight = model[1].weight
    return model


def halved(layer, inputs, outputs):
    return outputs / 2


OTHER_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "activation": (network, lambda: network(nn.Tanh())),
    "dropout rate": (network, lambda: network(rate=0.2)),
    "padding mode": (network, with_padding_mode),
    "slope": (lambda: network(nn.LeakyReLU(0.1)), lambda: network(nn.LeakyReLU(0.2))),
    "setting in a dictionary": (lambda: network(Gate()), lambda: network(Gate(slope=0.2))),
    "setting in a tuple": (lambda: network(Gate()), lambda: network(Gate(shape=(2, 1)))),
    "function": (lambda: network(Gate()), lambda: network(Gate(function=torch.sin))),
    "lambda": (
        lambda: network(Gate(function=lambda x: x.tanh())),
        lambda: network(Gate(function=lambda x: x.sin())),
    ),
    "constant of a lambda": (
        lambda: network(Gate(function=lambda x: x * 0.5)),
        lambda: network(Gate(function=lambda x: x * 0.6)),
    ),
    "buffer outside the state": (lambda: network(Gate()), lambda: network(Gate(offset=1.0))),
    "code of a class of equal name": (lambda: network(Relu()), lambda: network(Tanh())),
    "forward of an object": (network, with_own_forward),
    "forward hook": (network, lambda: hooked("register_forward_hook", halved)),
    "constant of a hook": (
        lambda: hooked("register_forward_hook", lambda layer, inputs, outputs: outputs * 0.5),
        lambda: hooked("register_forward_hook", lambda layer, inputs, outputs: outputs * 0.6),
    ),
    "pre-hook": (network, lambda: hooked("register_forward_pre_hook", lambda layer, x: x)),
    "backward hook": (
        network,
        lambda: hooked("register_full_backward_hook", lambda layer, inputs, outputs: inputs),
    ),
    "hook of a parameter": (network, lambda: with_parameter(lambda p: p.register_hook(torch.neg))),
    "frozen parameter": (network, lambda: with_parameter(lambda p: p.requires_grad_(False))),
    "shared parameter": (
        lambda: seeded(lambda: two_layers(False)),
        lambda: seeded(lambda: two_layers(True)),
    ),
}


@pytest.mark.parametrize("kind", list(OTHER_MODELS))
def test_a_checkpoint_of_another_model_is_refused(kind, tmp_path) -> None:
    first, second = OTHER_MODELS[kind]
    run(first(), tmp_path / "run.pt")
    assert run(first(), tmp_path / "run.pt").resumed_epochs == 1
    with pytest.raises(ValueError, match="belongs to a run with other model"):
        run(second(), tmp_path / "run.pt")


def test_the_sentence_names_the_place_and_both_values(tmp_path) -> None:
    run(network(), tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"model\.3\.p \(0\.1 before, 0\.2 now\)"):
        run(network(rate=0.2), tmp_path / "run.pt")


def test_a_hook_on_all_modules_is_a_part_of_the_model(tmp_path) -> None:
    run(network(), tmp_path / "run.pt")
    handle = nn.modules.module.register_module_forward_hook(lambda layer, inputs, outputs: None)
    try:
        with pytest.raises(ValueError, match="belongs to a run with other model"):
            run(network(), tmp_path / "run.pt")
    finally:
        handle.remove()
    assert run(network(), tmp_path / "run.pt").resumed_epochs == 1


def test_hooks_that_came_and_went_and_counts_of_a_process_change_nothing(tmp_path) -> None:
    run(hooked("register_forward_hook", halved), tmp_path / "run.pt")
    for _ in range(3):
        network()[0].register_forward_hook(halved).remove()
    again = hooked("register_forward_hook", halved)
    assert run(again, tmp_path / "run.pt").resumed_epochs == 1


def test_a_compiled_model_resumes_and_another_one_does_not(tmp_path) -> None:
    def compiled(**options):
        return torch.compile(network(**options), backend="eager")

    run(compiled(), tmp_path / "run.pt")
    assert run(compiled(), tmp_path / "run.pt").resumed_epochs == 1
    with pytest.raises(ValueError, match="belongs to a run with other model"):
        run(compiled(rate=0.2), tmp_path / "run.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_traced_model_resumes_and_another_one_does_not(tmp_path) -> None:
    def traced(**options):
        model = network(**options)
        with torch.random.fork_rng(devices=[]):
            return torch.jit.trace(model, images()[:2], check_trace=False)

    run(traced(), tmp_path / "run.pt")
    assert run(traced(), tmp_path / "run.pt").resumed_epochs == 1
    with pytest.raises(ValueError, match="belongs to a run with other model"):
        run(traced(activation=nn.Tanh()), tmp_path / "run.pt")


def test_a_parametrized_model_resumes(tmp_path) -> None:
    def normed():
        model = network()
        nn.utils.parametrizations.weight_norm(model[4])
        return model

    run(normed(), tmp_path / "run.pt")
    assert run(normed(), tmp_path / "run.pt").resumed_epochs == 1
    with pytest.raises(ValueError, match="belongs to a run with other model"):
        run(network(), tmp_path / "run.pt")


# --- the data ----------------------------------------------------------------------------------


def changed(tensor: Tensor, *place: int) -> Tensor:
    tensor = tensor.clone()
    tensor[place] += 1
    return tensor


@pytest.mark.parametrize("image", range(SAMPLES))
def test_an_image_that_changed_is_noticed(image, tmp_path) -> None:
    many = images().repeat(20, 1, 1, 1)
    labels = torch.arange(len(many), device="cpu") % CLASSES
    run(network(), tmp_path / "run.pt", data(many, labels), validation=data(many, labels))
    other = data(changed(many, 20 * image + 7, 0, 2, 1), labels)
    with pytest.raises(ValueError, match="other data; delete it"):
        run(network(), tmp_path / "run.pt", other, validation=data(many, labels))
    with pytest.raises(ValueError, match="other validation; delete it"):
        run(network(), tmp_path / "run.pt", data(many, labels), validation=other)


@pytest.mark.parametrize(
    "other",
    [
        lambda: data(targets=(torch.arange(SAMPLES, device="cpu") + 1) % CLASSES),
        lambda: data(images().flip(0)),
        lambda: data(images().flip(-1)),
        lambda: data(images() + 1e-6),
    ],
)
def test_other_data_are_noticed(other, tmp_path) -> None:
    run(network(), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="other data; delete it"):
        run(network(), tmp_path / "run.pt", other())


def test_another_dtype_is_noticed(tmp_path) -> None:
    run(network(), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="belongs to a run with other data, model, initial"):
        run(network().double(), tmp_path / "run.pt", data(images(torch.float64)))


def test_labels_of_another_integer_type_are_the_same_data(tmp_path) -> None:
    run(network(), tmp_path / "run.pt")
    split = data(targets=(torch.arange(SAMPLES, device="cpu") % CLASSES).to(torch.int32))
    assert run(network(), tmp_path / "run.pt", split).resumed_epochs == 1


# --- functions and options ---------------------------------------------------------------------

STRENGTH = 0.1


def noisy(inputs, generator):
    return inputs + STRENGTH


class Noise:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, inputs, generator):
        return inputs + self.strength


def closing_over(strength):
    def augment(inputs, generator):
        return inputs + strength

    return augment


def adding(array):
    def augment(inputs, generator):
        return inputs + torch.from_numpy(array)

    return augment


def focal(power):
    def loss(outputs, targets):
        return (functional.cross_entropy(outputs, targets, reduction="none") ** power).mean()

    return loss


OTHER_OPTIONS = {
    "augment": [
        (lambda x, g: x + 0.1, lambda x, g: x + 0.2),
        (lambda x, g: x + 0.1, lambda x, g: x - 0.1),
        (closing_over(0.1), closing_over(0.2)),
        (Noise(0.1), Noise(0.2)),
        (Noise(0.1).__call__, Noise(0.2).__call__),
        (functools.partial(Noise.__call__, Noise(1)), functools.partial(Noise.__call__, Noise(2))),
        (lambda x, g, s=0.1: x + s, lambda x, g, s=0.2: x + s),
        (closing_over(torch.zeros(1)), closing_over(torch.ones(1))),
        (adding(np.float32([0])), adding(np.float32([1]))),
        (lambda x, g: x.abs(), lambda x, g: x.neg()),
    ],
    "schedule": [
        ("cosine", "constant"),
        ("cosine", lambda t: 1 - t),
        (lambda t: 1 - t, lambda t: 1 - t**2),
    ],
    "loss": [
        ("cross_entropy", nn.CrossEntropyLoss()),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (nn.CrossEntropyLoss(torch.ones(3)), nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3]))),
        (nn.CrossEntropyLoss(ignore_index=0), nn.CrossEntropyLoss(ignore_index=1)),
        (focal(1.5), focal(2.0)),
        (nn.MultiMarginLoss(), nn.MultiMarginLoss(margin=2.0)),
    ],
    "label_smoothing": [(0.0, 0.1), (0.1, 0.2)],
    "max_norm": [(None, 1.0), (1.0, 2.0)],
    "autocast": [(None, torch.bfloat16)],
}


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [(name, *pair) for name, pairs in OTHER_OPTIONS.items() for pair in pairs],
)
def test_a_checkpoint_of_other_options_is_refused_by_name(name, first, second, tmp_path) -> None:
    run(network(), tmp_path / "run.pt", **{name: first})
    assert run(network(), tmp_path / "run.pt", **{name: first}).resumed_epochs == 1
    with pytest.raises(ValueError, match=f"belongs to a run with other {name}; delete it"):
        run(network(), tmp_path / "run.pt", **{name: second})


def test_a_constant_that_a_function_reads_is_a_part_of_it(tmp_path, monkeypatch) -> None:
    run(network(), tmp_path / "run.pt", augment=noisy)
    monkeypatch.setitem(globals(), "STRENGTH", 0.2)
    with pytest.raises(ValueError, match=r"augment.*global STRENGTH \(0\.1 before, 0\.2 now\)"):
        run(network(), tmp_path / "run.pt", augment=noisy)


def groups_of(order):
    def make(parameters):
        parameters = list(parameters)
        kept = [parameters[i] for i in order]
        rest = [p for i, p in enumerate(parameters) if i not in order]
        groups = [{"params": kept, "lr": 0.1}, {"params": rest, "lr": 0.01}]
        return torch.optim.SGD(groups, lr=0.1)

    return make


def hooked_sgd(factor):
    def make(parameters):
        sgd = torch.optim.SGD(parameters, lr=0.1)
        sgd.register_step_pre_hook(lambda *_: factor)
        return sgd

    return make


class Lookahead(torch.optim.SGD):
    """An optimizer with an option that no group holds."""

    def __init__(self, parameters, pull):
        super().__init__(parameters, lr=0.1)
        self.pull = pull


def with_state(parameters):
    adam = torch.optim.Adam(parameters, lr=0.1)
    for p in adam.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in adam.param_groups[0]["params"]]
    adam.step()
    with torch.no_grad():
        for p, value in zip(adam.param_groups[0]["params"], before, strict=True):
            p.copy_(value)
    return adam


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (groups_of([0, 1]), groups_of([2, 3])),
        (hooked_sgd(None), functools.partial(torch.optim.SGD, lr=0.1)),
        (functools.partial(Lookahead, pull=0.5), functools.partial(Lookahead, pull=0.6)),
        (functools.partial(torch.optim.Adam, lr=0.1), with_state),
        (
            functools.partial(torch.optim.Adam, lr=0.1),
            functools.partial(torch.optim.Adam, lr=0.1, betas=(0.9, 0.99)),
        ),
        (
            functools.partial(torch.optim.SGD, lr=0.1),
            functools.partial(torch.optim.SGD, lr=0.1, nesterov=True, momentum=0.9),
        ),
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused(first, second, tmp_path) -> None:
    run(network(), tmp_path / "run.pt", optimizer=first)
    assert run(network(), tmp_path / "run.pt", optimizer=first).resumed_epochs == 1
    with pytest.raises(ValueError, match="belongs to a run with other optimizer; delete it"):
        run(network(), tmp_path / "run.pt", optimizer=second)


def test_a_file_that_is_no_checkpoint_of_a_run_is_refused(tmp_path) -> None:
    path = tmp_path / "run.pt"
    checkpoints.save({"model": network().state_dict()}, path)
    with pytest.raises(ValueError, match="was not written by this version of the training loop"):
        run(network(), path)


ODD = {
    "model": [None, 3, {}, {"0.weight": "text"}, {"0.weight": torch.zeros(7, device="cpu")}],
    "model outside": [None, []],
    "optimizer": [None, {}, {"state": {}, "param_groups": []}, {"state": 3, "param_groups": 4}],
    "scaler": ["text"],
    "history": [None, "text"],
    "best": [3, {}, {"epoch": 1, "evaluation": {}, "model": {}}],
    "seconds": [None, "long"],
    "configuration": [None, [1]],
}


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "odd"])
@pytest.mark.parametrize("name", ODD)
def test_a_checkpoint_with_odd_contents_is_refused_and_nothing_is_changed(
    name, missing, tmp_path
) -> None:
    path = tmp_path / "run.pt"
    run(network(), path)
    state = checkpoints.load(path)
    if missing:
        del state[name]
    for odd in [None] if missing else ODD[name]:
        if not missing:
            state[name] = odd
        checkpoints.save(state, path)
        content, model = path.read_bytes(), network()
        with pytest.raises(ValueError, match=r"is not whole \(.*delete it to train from the start"):
            run(model, path, epochs=1)
        assert path.read_bytes() == content
        fresh = network().state_dict()
        assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())
        assert model.training


# --- random numbers ----------------------------------------------------------------------------


def draws_globally(inputs, generator):
    noise = torch.rand(1, device="cpu") + float(np.random.rand()) + random.random()  # noqa: NPY002
    return inputs * noise


class Jitter(nn.Module):
    def forward(self, inputs):
        return inputs * (1 + float(np.random.rand()) * random.random())  # noqa: NPY002


@pytest.mark.parametrize("stop", [1, 2])
def test_draws_from_any_global_generator_are_resumed_to_the_bit(stop, tmp_path) -> None:
    options = {"epochs": 3, "augment": draws_globally}
    whole, resumed = network(Jitter()), network(Jitter())
    before = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    run(whole, None, **options)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # noqa: NPY002

    def interrupt(record):
        if record["epoch"] == stop + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network(Jitter()), tmp_path / "run.pt", on_epoch=interrupt, **options)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    assert run(resumed, tmp_path / "run.pt", **options).resumed_epochs == stop
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


class Moving(nn.Module):
    """A module that keeps state where no ``state_dict`` finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, device="cpu"), persistent=False)
        self.generator = torch.Generator(device="cpu").manual_seed(1)
        self.calls = 0

    def forward(self, inputs):
        if self.training:
            self.mean.lerp_(inputs.detach().mean(), 0.1)
            self.calls += 1
        noise = torch.rand(1, generator=self.generator, device="cpu")
        return inputs * (1 + noise / self.calls) - self.mean


@pytest.mark.parametrize("stop", [1, 2])
def test_state_outside_the_state_dict_is_resumed_to_the_bit(stop, tmp_path) -> None:
    whole, resumed = network(Moving()), network(Moving())
    run(whole, None, epochs=3)

    def interrupt(record):
        if record["epoch"] == stop + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network(Moving()), tmp_path / "run.pt", epochs=3, on_epoch=interrupt)
    assert run(resumed, tmp_path / "run.pt", epochs=3).resumed_epochs == stop
    assert resumed[1].calls == whole[1].calls == 9
    assert torch.equal(resumed[1].mean, whole[1].mean)
    assert torch.equal(resumed[1].generator.get_state(), whole[1].generator.get_state())
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


# --- descriptions ------------------------------------------------------------------------------


def loops() -> dict:
    found: dict = {"a": [1]}
    found["self"] = found
    return found


def nested(depth):
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"a": [1, 2.0, None, True, "x", b"y", (1, 2), {3, 4}, frozenset({5})]},
        loops,
        lambda: nested(300),
        lambda: closing_over({"a": torch.arange(3, device="cpu")}),
        lambda: Noise,
        lambda: Noise(Noise(1)),
        lambda: [torch.float16, torch.device("cpu"), np.float64(2), range(3), ...],
        lambda: torch.Generator(device="cpu").manual_seed(3),
        lambda: np.random.default_rng(3),
        lambda: random.Random(3),
        lambda: iter([1, 2]),
        lambda: (x for x in [1]),
        lambda: [np.sin, torch.sin, len, "".join, nn.Linear, functional.relu],
        lambda: nn.LSTM(2, 3),
        lambda: nn.TransformerEncoderLayer(4, 2),
    ],
)
def test_equal_objects_have_equal_descriptions(make) -> None:
    torch.manual_seed(0)
    first = describe(make())
    torch.manual_seed(0)
    assert describe(make()) == first


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 1.0),
        (1, True),
        (1, "1"),
        ([1], (1,)),
        ({"a": 1}, {"a": 2}),
        (float("nan"), 0.0),
        (np.sin, np.cos),
        (torch.sin, torch.cos),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(2, requires_grad=True)),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (np.random.default_rng(3), np.random.default_rng(4)),
        (random.Random(3), random.Random(4)),
        (torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)),
        (iter([1, 2]), iter([1, 3])),
        ("".join, ",".join),
        (Noise(1).__call__, Noise(2).__call__),
        (nn.Linear(2, 3), nn.Linear(2, 3, bias=False)),
    ],
)
def test_objects_that_differ_have_other_descriptions(first, second) -> None:
    assert describe(first) != describe(second)
    assert difference(describe(first), describe(second), "it") is not None


def test_lines_and_docstrings_do_not_count() -> None:
    sources = ["def f(x):\n    return x + 1", "# c\n\ndef f(x):\n    'Add.'\n\n    return x + 1"]
    described = []
    for source in sources:
        namespace: dict = {"__name__": "__main__"}
        exec(source, namespace)
        described.append(describe(namespace["f"]))
    assert described[0] == described[1]
