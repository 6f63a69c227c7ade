import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from paperkit.models import VGG, LeNet5, build
from paperkit.models.vgg import STAGES, scaled


def noise(device, *shape):
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(device)


def test_layers_stand_in_the_order_of_the_release():
    """Convolution, normalisation, activation; pooling after each stage; one linear layer."""
    model = build("vgg19_bn", in_channels=3, num_classes=10, input_shape=(3, 32, 32), width=2)
    kinds = [type(layer).__name__ for layer in model]
    stages = (2, 2, 4, 4, 4)
    unit = ["Conv2d", "BatchNorm2d", "ReLU"]
    expected = [kind for length in stages for kind in (*(unit * length), "MaxPool2d")]
    assert kinds == [*expected, "Flatten", "Linear"]
    names = [name for name, _ in model.named_children()]
    assert names[:4] == ["conv1_1", "bn1_1", "activation1_1", "conv1_2"]
    assert names[-2:] == ["flatten", "fc1"]


def test_it_computes_what_torchvision_computes_with_the_same_weights(device):
    """On 32 × 32 images, where torchvision's pooling to 7 × 7 has only to be left out."""
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torchvision.models.vgg11_bn().double()
        theirs.avgpool = nn.Identity()
        theirs.classifier = nn.Sequential(nn.Linear(512, 20), nn.ReLU(), nn.Linear(20, 5)).double()
        ours = VGG(STAGES["vgg11"], 3, 5, hidden=(20,), batch_norm=True).double()
    values = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    ours, theirs = ours.to(device).eval(), theirs.to(device).eval()
    inputs = noise(device, 2, 3, 32, 32)
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-10, atol=1e-10)


def test_the_network_of_the_compression_release_by_hand(device):
    """Padding of two: 32, 34 → 17, 19 → 9, 11 → 5, 7 → 3, 5 → 2 pixels, hence 256 features."""
    model = build("vgg_compression", in_channels=3, num_classes=10, input_shape=(3, 32, 32))
    model = model.to(device).double()
    state = model.state_dict()
    inputs = noise(device, 3, 3, 32, 32)
    x, sides = inputs, []
    for i in range(1, 6):
        x = functional.conv2d(x, state[f"conv{i}_1.weight"], state[f"conv{i}_1.bias"], padding=2)
        x = functional.max_pool2d(x.relu(), 2)
        sides.append(x.shape[-1])
    assert sides == [17, 9, 5, 3, 2]
    x = x.flatten(1)
    assert x.shape == (3, 256)
    x = (x @ state["fc1.weight"].T + state["fc1.bias"]).relu()
    expected = x @ state["fc2.weight"].T + state["fc2.bias"]
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("size", [(14, 14), (17, 25), (40, 33)])
def test_the_first_linear_layer_fits_images_of_any_size(padding, size, device):
    model = VGG([(2,), (3, 2)], 1, 4, size, padding=padding).to(device).double()
    assert model(noise(device, 2, 1, *size)).shape == (2, 4)


@pytest.mark.parametrize(("padding", "least"), [(0, 14), (1, 4), (2, 1)])
def test_the_sentence_names_the_smallest_image(padding, least, device):
    stages = [(2,), (3, 2)]
    model = VGG(stages, 1, 4, (least, least), padding=padding).to(device).double()
    assert model(noise(device, 2, 1, least, least)).shape == (2, 4)
    if least > 1:
        with pytest.raises(ValueError, match=f"images of at least {least} pixels on a side"):
            VGG(stages, 1, 4, (least, least - 1), padding=padding)


def test_width_scales_all_stages():
    assert scaled(STAGES["vgg11"], 4) == ((4,), (8,), (16, 16), (32, 32), (32, 32))
    assert scaled(STAGES["vgg_tiny"], 16) == STAGES["vgg_tiny"]


# --- initial weights


def test_he_weights_have_the_variance_of_equation_14():
    """Two over nine times the outgoing channels, biases of zero, and linear layers as PyTorch's."""
    options = {"in_channels": 3, "num_classes": 10, "input_shape": (3, 32, 32), "width": 64}
    model = build("vgg_tiny", init="he", **options)
    plain = build("vgg_tiny", init="pytorch", **options)
    for layer in model.children():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.detach()
            expected = 2 / (9 * layer.out_channels)
            # The relative standard error of a variance of n normal numbers is √(2/n).
            allowed = 6 * math.sqrt(2 / weight.numel())
            assert abs(weight.square().mean().item() / expected - 1) < allowed
            assert not layer.bias.any()
    # PyTorch's biases, uniform within one over the root of the inputs, are not zero.
    assert plain.conv1_1.bias.any()
    bound = 1 / math.sqrt(model.fc1.in_features)
    assert model.fc1.bias.any()
    assert model.fc1.weight.abs().max() <= bound


def test_the_network_of_the_compression_release_starts_with_he_weights():
    options = {"in_channels": 3, "num_classes": 10, "input_shape": (3, 32, 32), "seed": 3}
    released = build("vgg_compression", **options)
    he = build("vgg_compression", init="he", **options)
    assert all(
        torch.equal(a, b) for a, b in zip(released.parameters(), he.parameters(), strict=True)
    )
    assert not released.conv1_1.bias.any()


def test_xavier_weights_fill_the_interval_of_equation_16():
    model = LeNet5(init="xavier")
    for layer in (model.conv1, model.conv2, model.fc1, model.fc2, model.fc3):
        outputs, inputs, *kernel = layer.weight.shape
        bound = math.sqrt(6 / ((inputs + outputs) * math.prod(kernel)))
        weight = layer.weight.detach().abs()
        # The largest of n ≥ 150 uniform numbers is below 0.9 of the bound with probability 0.9ⁿ.
        assert 0.9 * bound < weight.max() <= bound * (1 + 1e-6)
        assert not layer.bias.any()
