import pytest
import torch
from torch.nn import functional

from paperkit.models import WideResNet, build


def noise(device, *shape):
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(device)


@pytest.mark.parametrize("shortcut", ["activated", "input"])
def test_it_follows_the_equations_of_the_paper(shortcut, device):
    """Compared with the network written out by hand for one block a stage."""
    model = WideResNet(10, 2, in_channels=1, shortcut=shortcut).to(device).double()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(noise(device, *buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(noise(device, *buffer.shape).abs() + 0.5)
    model.eval()
    state = model.state_dict()

    def activated(x, bn):
        mean, variance = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        scale, shift = state[f"{bn}.weight"], state[f"{bn}.bias"]
        return functional.batch_norm(x, mean, variance, scale, shift, eps=1e-5).relu()

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    inputs = noise(device, 3, 1, 10, 10)
    x = conv(inputs, "conv1")
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        prefix = f"stage{stage}.0"
        first = activated(x, f"{prefix}.bn1")
        residual = conv(first, f"{prefix}.conv1", stride)
        residual = conv(activated(residual, f"{prefix}.bn2"), f"{prefix}.conv2")
        around = first if shortcut == "activated" else x
        x = residual + conv(around, f"{prefix}.shortcut", stride)
    expected = activated(x, "bn").mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


def test_a_block_without_projection_adds_its_input_as_it_is(device):
    block = WideResNet(16, 1).to(device).double().eval().stage1[1]
    torch.nn.init.zeros_(block.conv2.weight)
    inputs = noise(device, 2, 16, 8, 8)
    assert torch.equal(block(inputs), inputs)


def test_channels_are_those_of_table_1():
    model = build("wrn16_8", in_channels=3, num_classes=10)
    stages = (model.stage1, model.stage2, model.stage3)
    assert [len(stage) for stage in stages] == [2, 2, 2]
    assert [stage[-1].conv2.out_channels for stage in stages] == [128, 256, 512]
    assert model.conv1.out_channels == 16
