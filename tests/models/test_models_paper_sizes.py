"""The large architectures, run without memory on fake tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from paperkit.models import build
from tests.models.paper_sizes import PAPER_SIZES


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("name", PAPER_SIZES)
def test_a_batch_goes_forward_and_back_at_the_size_of_the_papers(name, kind):
    """Autograd opens a GPU for gradients of fake tensors too, so that these need a real one."""
    channels, height, width = PAPER_SIZES[name]
    with FakeTensorMode():
        model = build(
            name, in_channels=channels, num_classes=10, input_shape=(channels, height, width)
        )
        state = {
            key: torch.empty(
                tensor.shape, dtype=tensor.dtype, device=kind, requires_grad=tensor.requires_grad
            )
            for key, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        inputs = torch.empty(8, channels, height, width, device=kind)
        outputs = functional_call(model, state, inputs)
        assert outputs.shape == (8, 10)
        assert outputs.device.type == kind
        if kind == "cpu" or torch.cuda.is_available():
            outputs.sum().backward()
            for key, tensor in state.items():
                if tensor.requires_grad:
                    assert tensor.grad.shape == tensor.shape, key


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PAPER_SIZES)
def test_channels_and_classes_are_free(name, channels):
    _, height, width = PAPER_SIZES[name]
    with FakeTensorMode():
        model = build(
            name, in_channels=channels, num_classes=200, input_shape=(channels, height, width)
        )
        assert model(torch.empty(2, channels, height, width, device="cpu")).shape == (2, 200)


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_no_activation_of_the_large_ones_works_in_place(name):
    with FakeTensorMode():
        model = build(name, in_channels=3, num_classes=10, input_shape=PAPER_SIZES[name])
    assert not any(getattr(module, "inplace", False) for module in model.modules())
