"""The papers' settings are built, take three steps and are measured, as far as no GPU is needed.

Networks of the papers' sizes are fake tensors, which have shapes and devices and no numbers: they
take three whole steps on a fake CPU, and go forward on a fake GPU, where the backward pass asks for
a real one. Each setting of an optimizer takes three real steps with a small network on images of
the data set's shape, under the rule that every new tensor names its device. Where there is CUDA,
`DEVICE=cuda` takes the same steps there.
"""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from paperkit import models, optim
from paperkit.data import Split
from paperkit.estimators import measure
from paperkit.experiments.grids import grid_of
from paperkit.experiments.study import study_named
from paperkit.experiments.training_cost import SHAPES
from paperkit.training import train

OPTIONS = ("patch", "dim", "depth", "heads", "mlp_dim")
GRIDS = (
    *grid_of("population_papers", {"renyi_population": "here"})("paper"),
    *grid_of("population_papers", {"igs_population": "assumed"})("paper"),
    *grid_of("optimizer_comparison_papers")("paper"),
    *study_named("population_training").grid("paper"),
)


def distinct(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the different choices of some values in the papers' grids, in their order."""
    found = {}
    for configuration in GRIDS:
        chosen = {
            name: configuration[name] for name in names if configuration.get(name) is not None
        }
        found.setdefault(repr(sorted(chosen.items())), chosen)
    return list(found.values())


def label(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in chosen.items())


def build(chosen: dict[str, Any]) -> nn.Module:
    shape, classes = SHAPES[chosen["dataset"]]
    options = {name: chosen[name] for name in OPTIONS if name in chosen}
    return models.build(
        chosen["model"], in_channels=shape[0], num_classes=classes, input_shape=shape, **options
    )


@pytest.mark.parametrize("chosen", distinct(("dataset", "model", *OPTIONS)), ids=label)
def test_a_network_of_a_paper_takes_three_steps_at_its_size(chosen, explicit_devices):
    shape, classes = SHAPES[chosen["dataset"]]
    with FakeTensorMode():
        model = build(chosen)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        with explicit_devices():
            for _ in range(3):
                inputs = torch.empty(4, *shape, device="cpu")
                targets = torch.zeros(4, dtype=torch.long, device="cpu")
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        inputs = torch.empty(4, *shape, device="cuda")
        with explicit_devices():
            outputs = functional_call(model, state, inputs)
    assert outputs.shape == (4, classes) and outputs.device.type == "cuda"


def optimizer_of(chosen: dict[str, Any]) -> partial:
    """Return the function that makes a setting's optimizer from the parameters of a network."""
    decay = chosen.get("weight_decay") or 0.0
    adaptive = {"eta0": chosen["lr"], "delta": chosen.get("delta")}
    radius = math.sqrt(chosen["lr"]) if chosen.get("rho") == "sqrt_lr" else chosen.get("rho")
    base = {"lr": chosen["lr"], "weight_decay": decay}
    if chosen.get("momentum") is not None and chosen["optimizer"] != "adam":
        base["momentum"] = chosen["momentum"]
    order = {"alpha": chosen.get("alpha"), "plain_epochs": 0}  # the plain ones are SGD's
    return {
        "sgd": lambda: partial(torch.optim.SGD, **base),
        "adam": lambda: partial(torch.optim.Adam, **base),
        "sam": lambda: partial(optim.SAM, rho=radius, **base),
        "asam": lambda: partial(optim.ASAM, rho=radius, eta=chosen.get("eta"), **base),
        "eigen_sam": lambda: partial(optim.EigenSAM, rho=radius, alpha=chosen["alpha"], **base),
        "rsam": lambda: partial(optim.RSAM, rho=radius, **order, **base),
        "gradient_regularization": lambda: partial(
            optim.GradientRegularization, mu=chosen["mu"], **base
        ),
        "igsam": lambda: partial(optim.IGSAM, rho=radius, damping=chosen["damping"], **base),
        "sasgd": lambda: partial(
            optim.SASGD, variant=chosen["variant"], weight_decay=decay, **adaptive
        ),
        "sasam": lambda: partial(
            optim.SASAM, variant=chosen["variant"], weight_decay=decay, **adaptive
        ),
    }[chosen["optimizer"]]()


SETTING = (
    *("dataset", "optimizer", "lr", "weight_decay", "momentum", "rho", "eta", "alpha", "mu"),
    *("damping", "variant", "delta", "label_smoothing", "schedule"),
)


def settings() -> list[dict[str, Any]]:
    """Return the settings of each optimizer on each data set, one for all its rates and decays."""
    found = {}
    for chosen in distinct(SETTING):
        key = {n: v for n, v in chosen.items() if n not in ("lr", "weight_decay", "momentum")}
        found.setdefault(label(key), chosen)
    return list(found.values())


@pytest.mark.parametrize("chosen", settings(), ids=label)
def test_an_optimizer_of_a_paper_takes_three_steps_and_the_network_is_measured(
    chosen, device, explicit_devices
):
    shape, classes = SHAPES[chosen["dataset"]]
    generator = torch.Generator(device="cpu").manual_seed(0)
    inputs = torch.randn(6, *shape, generator=generator, device="cpu").to(device)
    targets = torch.arange(6, device=device) % classes
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * shape[0], 8),
        nn.ReLU(),
        nn.Linear(8, classes),
    ).to(device)
    make = optimizer_of(chosen)
    if chosen["optimizer"] == "igsam":
        make = partial(make, model=model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with explicit_devices():
        result = train(
            model,
            Split(inputs, targets),
            epochs=1,
            batch_size=2,
            optimizer=make,
            warmup_epochs=0,
            schedule=chosen.get("schedule", "cosine"),
            label_smoothing=chosen.get("label_smoothing", 0.0),
            progress=False,
        )
        report = measure(model, (inputs, targets), ["gauss_newton_trace", "mean_loss"])
    assert result.steps == 3
    assert all(parameter.device.type == device.type for parameter in model.parameters())
    moved = [bool((p != q).any()) for p, q in zip(model.parameters(), before, strict=True)]
    assert all(moved)
    assert all(math.isfinite(one.value) for one in report.measurements())


def test_the_grids_have_every_network_and_every_optimizer_of_the_papers():
    assert {c["optimizer"] for c in settings()} == {
        *("sgd", "adam", "sam", "asam", "eigen_sam", "rsam", "gradient_regularization"),
        *("igsam", "sasgd", "sasam"),
    }
    assert len(distinct(("dataset", "model", *OPTIONS))) >= 15
