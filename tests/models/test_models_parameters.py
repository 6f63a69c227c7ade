from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from paperkit.models import VGG, ImageNetResNet, LeNet5, ResNet, ViT, WideResNet, build
from paperkit.models.vgg import STAGES


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def built(name, shape=(3, 32, 32), num_classes=10, **options):
    with FakeTensorMode():
        return build(
            name, in_channels=shape[0], num_classes=num_classes, input_shape=shape, **options
        )


# --- counts by hand, from the papers' tables of layers


def conv(kernel, inputs, outputs, bias=False):
    return kernel**2 * inputs * outputs + bias * outputs


def linear(inputs, outputs, bias=True):
    return inputs * outputs + bias * outputs


def norm(features):
    """Count scale and shift, of batch or of layer normalisation."""
    return 2 * features


def basic_stage(inputs, outputs, blocks, projection):
    """Count blocks of two 3 × 3 convolutions with normalisation, and the projection."""
    first = conv(3, inputs, outputs) + conv(3, outputs, outputs) + 2 * norm(outputs)
    others = (blocks - 1) * 2 * (conv(3, outputs, outputs) + norm(outputs))
    return first + others + projection * (conv(1, inputs, outputs) + norm(outputs))


def bottleneck_stage(inputs, inner, blocks):
    """Count blocks of 1 × 1, 3 × 3 and 1 × 1 convolutions, whose last has 4 · inner channels."""
    outputs = 4 * inner
    middle = conv(3, inner, inner) + conv(1, inner, outputs) + 2 * norm(inner) + norm(outputs)
    first = conv(1, inputs, inner) + conv(1, inputs, outputs) + norm(outputs)
    return first + (blocks - 1) * conv(1, outputs, inner) + blocks * middle


def cifar_resnet(depth, classes=10):
    blocks = (depth - 2) // 6
    stages = [basic_stage(a, b, blocks, False) for a, b in ((16, 16), (16, 32), (32, 64))]
    return conv(3, 3, 16) + norm(16) + sum(stages) + linear(64, classes)


def imagenet_resnet(depth, kernel, classes):
    stem = conv(kernel, 3, 64) + norm(64)
    if depth == 50:
        sizes = ((64, 64, 3), (256, 128, 4), (512, 256, 6), (1024, 512, 3))
        return stem + sum(bottleneck_stage(*size) for size in sizes) + linear(2048, classes)
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]
    channels = (64, 64, 128, 256, 512)
    stages = (
        basic_stage(channels[i], channels[i + 1], blocks[i], projection=i > 0) for i in range(4)
    )
    return stem + sum(stages) + linear(512, classes)


def wide_resnet(depth, k, classes):
    """Count normalisations before convolutions; projections have none (Zagoruyko, table 1)."""
    blocks = (depth - 4) // 6
    total = conv(3, 3, 16)
    for inputs, outputs in ((16, 16 * k), (16 * k, 32 * k), (32 * k, 64 * k)):
        total += norm(inputs) + conv(3, inputs, outputs) + conv(1, inputs, outputs)
        total += norm(outputs) + conv(3, outputs, outputs)
        total += (blocks - 1) * 2 * (norm(outputs) + conv(3, outputs, outputs))
    return total + norm(64 * k) + linear(64 * k, classes)


def vgg(channels, features, hidden, classes, batch_norm, bias=True):
    total, before = 0, 3
    for outputs in channels:
        total += conv(3, before, outputs, bias) + batch_norm * norm(outputs)
        before = outputs
    widths = (features, *hidden, classes)
    return total + sum(linear(a, b) for a, b in pairwise(widths))


VGG11 = (64, 128, 256, 256, 512, 512, 512, 512)
VGG19 = (64,) * 2 + (128,) * 2 + (256,) * 4 + (512,) * 8


def transformer(dim, depth, mlp_dim, attention_extra):
    block = 2 * norm(dim) + linear(dim, 3 * dim, bias=False) + linear(dim, dim, bias=False)
    block += linear(dim, mlp_dim) + linear(mlp_dim, dim) + attention_extra
    return depth * block


def vit(dim, depth, mlp_dim, patches, channels=3, classes=10):
    """Count five shifted copies, a class token, a bias after attention and a temperature."""
    entries = 5 * channels * 4**2
    start = norm(entries) + linear(entries, dim) + dim + (patches + 1) * dim
    blocks = transformer(dim, depth, mlp_dim, attention_extra=dim + 1)
    return start + blocks + norm(dim) + linear(dim, classes)


def simple_vit(dim, depth, mlp_dim, channels=3, classes=10):
    entries = channels * 4**2
    start = norm(entries) + linear(entries, dim) + norm(dim)
    blocks = transformer(dim, depth, mlp_dim, attention_extra=0)
    return start + blocks + norm(dim) + linear(dim, classes)


TINY = (3, 64, 64)
EXACT = [
    # Name, shape of inputs, classes, count by hand, and the count that a source prints with all of
    # its digits; None where none was found.
    # He et al. (2016, table 6) print two digits, which are tested below; the others are those that
    # implementations with option A report.
    ("resnet20", (3, 32, 32), 10, cifar_resnet(20), 269_722),
    ("resnet32", (3, 32, 32), 10, cifar_resnet(32), 464_154),
    ("resnet44", (3, 32, 32), 10, cifar_resnet(44), 658_586),
    ("resnet56", (3, 32, 32), 10, cifar_resnet(56), 853_018),
    # Sun et al. (2023, NeuralFuse, arXiv 2306.16869, table 7): ResNet and VGG for CIFAR-10.
    ("resnet18", (3, 32, 32), 10, imagenet_resnet(18, 3, 10), 11_173_962),
    ("resnet50_tinyimagenet", TINY, 10, imagenet_resnet(50, 3, 10), 23_520_842),
    ("vgg11_bn", (3, 32, 32), 10, vgg(VGG11, 512, (), 10, True), 9_231_114),
    ("vgg19_bn", (3, 32, 32), 10, vgg(VGG19, 512, (), 10, True), 20_040_522),
    # torchvision's count of ResNet-34, 21,797,672, with the changes of stem and of classes.
    (
        "resnet34",
        (3, 32, 32),
        10,
        imagenet_resnet(34, 3, 10),
        21_797_672 - 49 * 3 * 64 + 9 * 3 * 64 - 513 * 1000 + 513 * 10,
    ),
    # Sun et al., the same table, ImageNet-10: ResNet-18 with its first stem and ten classes.
    ("resnet18_tinyimagenet", TINY, 10, imagenet_resnet(18, 7, 10), 11_181_642),
    # torchvision's documentation of its weights (num_params), with 1000 classes.
    ("resnet18_tinyimagenet", TINY, 1000, imagenet_resnet(18, 7, 1000), 11_689_512),
    # The tables of the pytorchcv library: WRN-28-10 on CIFAR-10 and CIFAR-100.
    ("wrn28_10", (3, 32, 32), 10, wide_resnet(28, 10, 10), 36_479_194),
    ("wrn28_10", (3, 32, 32), 100, wide_resnet(28, 10, 100), 36_536_884),
    ("wrn16_8", (3, 32, 32), 10, wide_resnet(16, 8, 10), None),
    ("resnet18_tinyimagenet", TINY, 200, imagenet_resnet(18, 7, 200), None),
    ("resnet50_tinyimagenet", TINY, 200, imagenet_resnet(50, 3, 200), None),
    ("vgg11", (3, 32, 32), 10, vgg(VGG11, 512, (), 10, False), None),
    ("vgg_compression", (3, 32, 32), 10, vgg((16, 16, 32, 64, 64), 256, (128,), 10, False), None),
    ("vgg_tiny", (3, 32, 32), 10, vgg((16, 32, 64, 64), 1024, (), 10, False), None),
    ("vit_small", (3, 32, 32), 10, vit(512, 6, 512, 64), None),
    ("vit_tiny", (1, 28, 28), 10, vit(64, 4, 128, 49, channels=1), None),
    ("simple_vit", (3, 32, 32), 10, simple_vit(512, 6, 512), None),
    ("mlp_compression", (1, 28, 28), 10, 785 * 500 + 2 * 501 * 500 + 501 * 10, None),
    # Jang et al. (2022, section 2.2): "the number of parameters = 5,393".
    ("mlp_toy", (2, 1, 1), 3, 3 * 70 + 71 * 70 + 71 * 3, 5_393),
]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "by_hand", "published"),
    [pytest.param(*row, id=f"{row[0]}-{row[2]}") for row in EXACT],
)
def test_the_number_of_parameters_is_the_published_one(name, shape, classes, by_hand, published):
    assert count(built(name, shape, classes)) == by_hand
    assert published in (None, by_hand)


ROUNDED = [
    # Zagoruyko and Komodakis (2016, table 5).
    ("wrn16_8", 10, {}, "11.0"),
    ("wrn28_10", 10, {}, "36.5"),
    # Liu et al. (2017, network slimming, table 1), whose convolutions have no biases.
    ("vgg19_bn", 10, {"bias": False}, "20.04"),
    ("vgg19_bn", 100, {"bias": False}, "20.08"),
]


@pytest.mark.parametrize(("name", "classes", "options", "millions"), ROUNDED)
def test_the_number_of_parameters_rounds_to_the_published_one(name, classes, options, millions):
    digits = len(millions.partition(".")[2])
    total = count(built(name, num_classes=classes, **options))
    assert f"{total / 1e6:.{digits}f}" == millions


def test_resnet34_for_cifar_has_21282122_parameters():
    assert count(built("resnet34")) == 21_282_122


def test_vgg19_without_biases_has_20035018_parameters():
    """Its sixteen convolutions have 5,504 channels, hence as many biases where they have them."""
    without = count(built("vgg19_bn", bias=False))
    assert without == vgg(VGG19, 512, (), 10, True, bias=False) == 20_040_522 - 5_504 == 20_035_018


@pytest.mark.parametrize(
    ("stages", "batch_norm", "published"),
    [
        ("vgg11", False, 132_863_336),
        ("vgg11", True, 132_868_840),
        ("vgg19", False, 143_667_240),
        ("vgg19", True, 143_678_248),
    ],
)
def test_the_original_vgg_has_the_size_that_torchvision_documents(stages, batch_norm, published):
    """Simonyan and Zisserman (2015, table 2) print 133 and 144 million."""
    with FakeTensorMode():
        model = VGG(STAGES[stages], 3, 1000, (224, 224), hidden=(4096, 4096), batch_norm=batch_norm)
    assert count(model) == published


@pytest.mark.parametrize(
    ("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)]
)
def test_imagenet_resnets_have_the_sizes_that_torchvision_documents(depth, published):
    with FakeTensorMode():
        model = ImageNetResNet(depth, num_classes=1000, stem="7x7")
    assert count(model) == imagenet_resnet(depth, 7, 1000) == published


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_depth_of_imagenet_resnets_counts_the_layers_with_weights(depth):
    assert main_path_layers(ImageNetResNet(depth, width=4)) == depth


@pytest.mark.parametrize("depth", [10, 16])
def test_depth_of_wide_resnets_counts_shortcuts_in_place_of_the_output(depth):
    """The paper counts all convolutions: three in shortcuts, and no fully connected layer."""
    model = WideResNet(depth, 1)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    # A factor of one leaves the first stage its 16 channels, and so without a projection.
    assert len(convolutions) + 1 == depth


def main_path_layers(model):
    return sum(
        isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "shortcut" not in name
        for name, module in model.named_modules()
    )


def test_options_of_vit_add_what_they_should():
    """Four shifted copies add 4 · 16 entries to normalise and embed; temperatures are numbers."""
    sizes = {"in_channels": 1, "dim": 8, "depth": 3, "heads": 2, "mlp_dim": 8}
    plain = count(ViT(shifted_patches=False, locality=False, **sizes))
    assert count(ViT(shifted_patches=True, locality=False, **sizes)) == plain + 64 * (2 + 8)
    assert count(ViT(shifted_patches=False, locality=True, **sizes)) == plain + 3


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
