import pytest
import torch
from torch import nn
from torch.nn import functional

from paperkit.models import ACTIVATIONS, MLP, NAMES, LeNet5, ResNet, build
from paperkit.models.resnet import PaddingShortcut


def noise(device, *shape):
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu").to(device)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 13, 17)])
def test_every_model_maps_images_of_any_shape_to_logits(name, shape, device):
    model = build(name, in_channels=shape[0], num_classes=7, input_shape=shape).to(device)
    assert model(noise(device, 4, *shape)).shape == (4, 7)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone(name):
    def weights(seed):
        model = build(name, in_channels=1, num_classes=10, input_shape=(1, 28, 28), seed=seed)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
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
            lambda: build("resnet2o", in_channels=1, num_classes=2),
            ValueError,
            r"name='resnet2o' is unknown \(did you mean 'resnet20'\?\)",
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
            "lenet5 has no option 'bias'; it has: none",
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
    ],
)
def test_what_cannot_be_built_gets_one_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_the_smallest_image_that_the_sentence_names_works(device):
    assert LeNet5(image_size=(12, 12)).to(device)(noise(device, 1, 1, 12, 12)).shape == (1, 10)
