"""The rule that plays two devices on one processor refuses what a GPU would refuse."""

import copy

import pytest
import torch

from tests.two_devices import ACCELERATOR, TwoDevices


@pytest.fixture(autouse=True)
def rule():
    with TwoDevices():
        yield


@pytest.fixture
def there(rule):
    return torch.ones(3, device=ACCELERATOR)


@pytest.fixture
def here(rule):
    return torch.ones(3, device="cpu")


def test_a_tensor_keeps_its_place(there, here):
    assert there.device == (2 * there).device == here.to(ACCELERATOR).device == ACCELERATOR
    assert here.device == there.cpu().device == torch.device("cpu")
    assert torch.zeros(2, device=there.device).device == ACCELERATOR


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: torch.stack([there.sum(), here.sum()]),
        lambda there, here: here[there.long()],
        lambda there, here: torch.nn.Linear(3, 2)(there),
        lambda there, here: torch.nn.Linear(3, 2).to(ACCELERATOR)(here),
        lambda there, here: torch.einsum("i,i->", here, there),
    ],
)
def test_tensors_of_two_devices_do_not_meet(mix, there, here):
    with pytest.raises(RuntimeError, match="two devices"):
        mix(there, here)


def test_what_a_gpu_takes_is_let_pass(there, here):
    assert (there + here.sum()).device == there[here.long()].device == ACCELERATOR
    network = torch.nn.Linear(3, 2).to(ACCELERATOR)
    network(there).sum().backward()
    assert network.weight.grad.device == copy.deepcopy(network).weight.device == ACCELERATOR


def test_numpy_reads_what_is_on_the_processor(there):
    with pytest.raises(TypeError, match="NumPy"):
        there.numpy()
    assert there.cpu().numpy().tolist() == there.tolist() == [1, 1, 1]


def test_a_tensor_without_a_device_is_refused():
    with pytest.raises(AssertionError, match=r"torch\.arange is called without a device"):
        torch.arange(3)
