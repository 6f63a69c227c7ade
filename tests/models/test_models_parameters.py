import pytest
import torch

from paperkit.models import LeNet5, ResNet, build


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet20_with_padding_shortcuts_has_269722_parameters():
    """He et al. (2016, table 6) print 0.27M; option A adds none to the 20 weight layers.

    Layer by layer: first convolution 432, convolutions of the stages 13,824, 50,688 and
    202,752, batch normalisation 1,376, fully connected 650.
    """
    model = ResNet(depth=20, in_channels=3, num_classes=10)
    assert count(model) == 432 + 13_824 + 50_688 + 202_752 + 1_376 + 650 == 269_722
    assert round(count(model) / 1e6, 2) == 0.27


def test_resnet20_with_projections_has_272474_parameters():
    """Option B adds two 1 × 1 convolutions, 512 and 2,048, and their normalisation, 192."""
    model = ResNet(depth=20, in_channels=3, num_classes=10, shortcut="projection")
    assert count(model) == 269_722 + 512 + 2_048 + 192 == 272_474


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_deeper_networks_have_the_published_sizes(depth, millions):
    """He et al. (2016, table 6)."""
    digits = 1 if depth == 110 else 2
    assert round(count(ResNet(depth)) / 1e6, digits) == millions


def test_resnet8_has_one_block_a_stage():
    """First convolution 432, stages 4,608 + 13,824 + 55,296, normalisation 480, output 650."""
    assert count(ResNet(8)) == 432 + 4_608 + 13_824 + 55_296 + 480 + 650 == 75_290


@pytest.mark.parametrize("depth", [8, 20])
@pytest.mark.parametrize("shortcut", ["padding", "projection"])
def test_depth_counts_the_layers_with_weights_on_the_main_path(depth, shortcut):
    layers = [
        name
        for name, module in ResNet(depth, shortcut=shortcut).named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == depth


def test_lenet5_has_61706_parameters_on_mnist():
    """The count printed for LeNet-5 with full connections, by layer of LeCun et al. (1998).

    C1 156, C3 2,416 (fully connected, where the original's sparse table has 1,516), C5
    48,120, F6 10,164 and a linear output of 850.
    """
    layers = {name: count(module) for name, module in LeNet5().named_children() if count(module)}
    assert layers == {"conv1": 156, "conv2": 2_416, "fc1": 48_120, "fc2": 10_164, "fc3": 850}
    assert count(LeNet5(image_size=(28, 28))) == count(LeNet5(image_size=(32, 32))) == 61_706


def test_lenet5_has_62006_parameters_on_cifar():
    """Two more input channels add 2 · 6 · 25 = 300 weights."""
    assert count(LeNet5(in_channels=3, image_size=(32, 32))) == 61_706 + 300 == 62_006


def test_mlp_has_the_sum_of_its_layers():
    model = build("mlp", in_channels=1, num_classes=10, input_shape=(1, 28, 28), hidden=(64, 32))
    assert count(model) == (784 + 1) * 64 + (64 + 1) * 32 + (32 + 1) * 10
