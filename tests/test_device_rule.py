"""The rule that guards the device tests is itself able to fail."""

import pytest
import torch


def test_a_factory_call_without_a_device_is_refused(explicit_devices) -> None:
    with explicit_devices(), pytest.raises(AssertionError, match=r"torch\.zeros is called without"):
        torch.zeros(2)


def test_a_factory_call_with_a_device_passes(explicit_devices) -> None:
    with explicit_devices():
        assert torch.zeros(2, device="cpu").shape == (2,)


def test_counts_that_a_transform_of_torch_keeps_for_itself_pass(explicit_devices) -> None:
    transform = {"__name__": "torch._functorch.of_a_test", "torch": torch}
    exec("def count():\n    return torch.tensor((3,))", transform)
    with explicit_devices():
        assert transform["count"]().shape == (1,)
