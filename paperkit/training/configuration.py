"""What a run was asked for, in plain values: a checkpoint belongs to one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.data import Split
from paperkit.training.description import (
    Plain,
    describe,
    describe_architecture,
    describe_global_hooks,
    difference,
    digest,
)

Configuration = dict[str, Plain]


def describe_model(model: nn.Module) -> Plain:
    """Describe a model without the values of its state; hooks on all modules are a part of it."""
    described = describe_architecture(model)
    assert isinstance(described, dict)
    global_hooks = describe_global_hooks()
    return {**described, "global hooks": global_hooks} if global_hooks else described


def describe_weights(model: nn.Module) -> Plain:
    """Digest the values of a model's state."""
    return {
        name: digest(value) if isinstance(value, Tensor) else describe(value)
        for name, value in model.state_dict().items()
    }


def describe_split(split: Split) -> Plain:
    """Digest every sample of some data."""
    return {"inputs": digest(split.inputs), "targets": digest(split.targets)}


def describe_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> Plain:
    """Describe an optimizer by its class, its options, its groups' parameters and its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {
            key: [names.get(id(p), f"{tuple(p.shape)}") for p in value]
            if key == "params"
            else describe(value)
            for key, value in sorted(group.items())
        }
        for group in optimizer.param_groups
    ]
    found = _own_description(optimizer)
    found |= {"groups": groups, "state": describe(optimizer.state_dict()["state"])}
    base = getattr(optimizer, "base", None)
    if isinstance(base, torch.optim.Optimizer):
        found["base"] = _own_description(base)
    return found


def changed(saved: Mapping[str, Any], present: Configuration) -> list[str]:
    """Return the names of all entries that differ."""
    return [key for key, value in present.items() if saved.get(key) != value]


def first_change(saved: Mapping[str, Any], present: Configuration) -> str | None:
    """Say where the first entry that differs does so."""
    places = (difference(saved.get(key), value, key) for key, value in present.items())
    return next((place for place in places if place), None)


# Attributes that hold what the groups and the state hold, or what no step depends on.
_NO_OPTIONS = ("param_groups", "state", "defaults", "base", "log")


def _own_description(optimizer: torch.optim.Optimizer) -> dict[str, Plain]:
    """Describe all of an optimizer but groups and state.

    The optimizers of this library say what they were made with. The attributes of others are taken
    as their options.
    """
    describes_itself = getattr(optimizer, "described", None)
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    options = {
        name: value
        for name, value in vars(optimizer).items()
        if name not in _NO_OPTIONS and not name.endswith("_hooks")
    }
    return {
        "class": describe(type(optimizer)),
        "options": describe(describes_itself() if callable(describes_itself) else options),
        **{name: [describe(h) for h in getattr(optimizer, name, {}).values()] for name in hooks},
    }
