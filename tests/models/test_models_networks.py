import pytest
import torch
from torch import nn
from torch.nn import functional

from paperkit.models import (
    ACTIVATIONS,
    MLP,
    NAMES,
    VGG,
    ImageNetResNet,
    LeNet5,
    ResNet,
    SimpleViT,
    ViT,
    WideResNet,
    build,
)
from paperkit.models.resnet import PaddingShortcut
from tests.models.paper_sizes import PAPER_SIZES


def noise(device, *shape):
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu").to(device)


SMALL = [name for name in NAMES if name not in PAPER_SIZES]
SHAPES = ((1, 28, 28), (3, 32, 32), (2, 13, 17))


# Patches of four divide all but the third; the refusal of that one is tested below.
FITTING = [(name, shape) for name in SMALL for shape in SHAPES[: 2 if "vit" in name else 3]]


@pytest.mark.parametrize("name", ["vgg_tiny", "vit_tiny"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_the_tiny_ones_have_at_most_a_few_hundred_thousand_parameters(name, shape):
    model = build(name, in_channels=shape[0], num_classes=100, input_shape=shape)
    assert sum(p.numel() for p in model.parameters()) <= 300_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_every_small_model_maps_images_of_any_shape_to_logits(name, shape, dtype, device):
    model = build(name, in_channels=shape[0], num_classes=7, input_shape=shape).to(device, dtype)
    outputs = model(noise(device, 4, *shape).to(dtype))
    assert outputs.shape == (4, 7)
    assert outputs.dtype == dtype
    assert outputs.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone(name):
    options = {"width": 4} if "width" in _options(name) else {}

    def weights(seed):
        model = build(
            name, in_channels=1, num_classes=10, input_shape=(1, 32, 32), seed=seed, **options
        )
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    before = torch.get_rng_state()
    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))
    assert torch.equal(torch.get_rng_state(), before)


def _options(name):
    """Read an architecture's options from the sentence that refuses an unknown one."""
    with pytest.raises(TypeError, match=f"{name} has no option 'nonsense'") as caught:
        build(name, in_channels=1, num_classes=10, input_shape=(1, 32, 32), nonsense=1)
    return str(caught.value).partition("it has: ")[2].split(", ")


@pytest.mark.parametrize("name", SMALL)
def test_no_module_works_in_place_or_is_used_twice(name, device):
    model = build(name, in_channels=1, num_classes=10, input_shape=(1, 28, 28)).to(device)
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    calls = []
    for module_name, module in model.named_modules():
        module.register_forward_hook(lambda *_, module_name=module_name: calls.append(module_name))
    model(noise(device, 2, 1, 28, 28))
    assert len(calls) == len(set(calls))


def test_resnet_layers_have_the_names_that_the_book_uses():
    names = [name for name, m in ResNet(8).named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert names == [
        "conv1",
        *(f"stage{k}.0.conv{j}" for k in (1, 2, 3) for j in (1, 2)),
        "fc",
    ]


def test_padding_shortcut_subsamples_and_appends_zeros(device):
    inputs = noise(device, 2, 3, 5, 4)
    outputs = PaddingShortcut(extra_channels=4, stride=2)(inputs)
    assert outputs.shape == (2, 7, 3, 2)
    for row in range(3):
        for column in range(2):
            assert torch.equal(outputs[:, :3, row, column], inputs[:, :, 2 * row, 2 * column])
    assert outputs[:, 3:].abs().sum() == 0


@pytest.mark.parametrize("shortcut", ["padding", "projection"])
def test_a_block_without_residual_is_its_shortcut(shortcut, device):
    block = ResNet(8, shortcut=shortcut).to(device).eval().stage2[0]
    nn.init.zeros_(block.bn2.weight)
    inputs = noise(device, 2, 16, 8, 8).relu()
    assert torch.equal(block(inputs), block.shortcut(inputs).relu())


def test_resnet_follows_the_equations_of_the_paper(device):
    """Compared with the network written out by hand for one block a stage."""
    model = ResNet(8, in_channels=1).to(device).double().eval()
    state = model.state_dict()

    def conv_bn(x, conv, bn, stride=1):
        x = functional.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, variance = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        return functional.batch_norm(
            x, mean, variance, state[f"{bn}.weight"], state[f"{bn}.bias"], eps=1e-5
        )

    inputs = noise(device, 3, 1, 10, 10).double()
    x = conv_bn(inputs, "conv1", "bn1").relu()
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        prefix = f"stage{stage}.0"
        hidden = conv_bn(x, f"{prefix}.conv1", f"{prefix}.bn1", stride).relu()
        residual = conv_bn(hidden, f"{prefix}.conv2", f"{prefix}.bn2")
        identity = torch.zeros_like(residual)
        identity[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
        x = (residual + identity).relu()
    expected = x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", torch.relu),
        ("leaky_relu", functional.leaky_relu),
        ("tanh", torch.tanh),
        ("gelu", functional.gelu),
        ("silu", functional.silu),
        ("sigmoid", torch.sigmoid),
        ("identity", lambda x: x),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_alternates_affine_maps_and_its_activation(name, function, bias, device):
    model = MLP((12, 8, 6, 3), activation=name, bias=bias).to(device).double()
    inputs = noise(device, 5, 3, 2, 2).double()
    x = inputs.flatten(1)
    for k in (1, 2, 3):
        layer = model.get_submodule(f"fc{k}")
        x = x @ layer.weight.T + (layer.bias if bias else 0)
        if k < 3:
            x = function(x)
    torch.testing.assert_close(model(inputs), x, rtol=1e-12, atol=1e-12)


def test_every_activation_can_be_used_in_a_resnet(device):
    for name in ACTIVATIONS:
        model = ResNet(8, activation=name).to(device)
        assert model(noise(device, 2, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            lambda: build("resnt20", in_channels=1, num_classes=2),
            ValueError,
            r"name='resnt20' is unknown \(did you mean 'resnet20'\?\)",
        ),
        (
            lambda: build("resnet8", in_channels=1, num_classes=2, widths=(1,)),
            TypeError,
            "resnet8 has no option 'widths'; it has: shortcut, activation",
        ),
        (
            lambda: build(
                "lenet5", in_channels=1, num_classes=2, input_shape=(1, 28, 28), bias=True
            ),
            TypeError,
            "lenet5 has no option 'bias'; it has: init",
        ),
        (
            lambda: build("mlp", in_channels=1, num_classes=2),
            ValueError,
            "input_shape=None: mlp needs",
        ),
        (
            lambda: build("lenet5", in_channels=1, num_classes=2),
            ValueError,
            "input_shape=None: lenet5 needs",
        ),
        (
            lambda: build("mlp", in_channels=3, num_classes=2, input_shape=(1, 8, 8)),
            ValueError,
            "has 1 channels and in_channels is 3: make them agree",
        ),
        (lambda: ResNet(18), ValueError, "depth=18 must be 6k"),
        (lambda: ResNet(2), ValueError, "depth=2 must be at least 8"),
        (
            lambda: ResNet(8, shortcut="conv"),
            ValueError,
            "shortcut='conv' is unknown: choose one of padding",
        ),
        (lambda: MLP((3, 2, 1), activation="relu6"), ValueError, "activation='relu6' is unknown"),
        (lambda: MLP((3,)), ValueError, r"widths=\(3,\) must hold two at least"),
        (lambda: MLP((3, 0, 2)), ValueError, r"widths\[1\]=0 must be at least 1"),
        (lambda: LeNet5(image_size=(8, 8)), ValueError, "too small for LeNet-5; give images of at"),
        (lambda: LeNet5(init="he"), ValueError, "init='he' is unknown: choose one of pytorch, xav"),
        (lambda: ImageNetResNet(18, stem="5x5"), ValueError, "stem='5x5' is unknown"),
        (lambda: ImageNetResNet(20), ValueError, "depth=20 is unknown: choose one of 18, 34, 50"),
        (lambda: WideResNet(27), ValueError, "depth=27 must be 6k"),
        (lambda: WideResNet(10, shortcut="padding"), ValueError, "shortcut='padding' is unknown"),
        (lambda: VGG([]), ValueError, "stages=.. has no stage: give the channels of one"),
        (lambda: VGG([(8,)], padding=3), ValueError, "padding=3 must be"),
        (lambda: VGG([(8,)], init="xavier"), ValueError, "init='xavier' is unknown"),
        (
            lambda: build("vgg11", in_channels=1, num_classes=2, input_shape=(1, 28, 28)),
            ValueError,
            r"image_size=\(28, 28\) is too small for 5 poolings with padding=1: give images of at ",
        ),
        (
            lambda: build("vit_tiny", in_channels=2, num_classes=2, input_shape=(2, 13, 17)),
            ValueError,
            r"image_size=\(13, 17\) is not cut into whole patches by patch=4: give a divisor",
        ),
        (
            lambda: build("vit_small", in_channels=1, num_classes=2),
            ValueError,
            "input_shape=None: vit_small needs",
        ),
        (lambda: ViT(dim=10, heads=4), ValueError, "dim=10 is not a multiple of heads=4"),
        (lambda: SimpleViT(dim=6, heads=2), ValueError, "dim=6 must be a multiple of four"),
    ],
)
def test_what_cannot_be_built_gets_one_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_the_smallest_image_that_the_sentence_names_works(device):
    assert LeNet5(image_size=(12, 12)).to(device)(noise(device, 1, 1, 12, 12)).shape == (1, 10)
    vgg = build("vgg11", in_channels=1, num_classes=10, input_shape=(1, 32, 32), width=2)
    assert vgg.to(device)(noise(device, 1, 1, 32, 32)).shape == (1, 10)
