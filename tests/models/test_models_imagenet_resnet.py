import pytest
import torch
from torch import nn

from paperkit.models import ImageNetResNet, build


def noise(device, *shape):
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(device)


@pytest.mark.parametrize("stem", ["3x3", "7x7"])
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_it_computes_what_torchvision_computes_with_the_same_weights(depth, stem, device):
    """The parameters of both stand in the same order."""
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(depth)
        theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=5)
        if stem == "3x3":
            theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            theirs.maxpool = nn.Identity()
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        ours = ImageNetResNet(depth, 3, 5, stem=stem)
    values = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    ours, theirs = ours.to(device).double().eval(), theirs.to(device).double().eval()
    inputs = noise(device, 2, 3, 16, 16)
    expected = theirs(inputs)
    torch.testing.assert_close(ours(inputs), expected, rtol=1e-10, atol=1e-10)


def test_the_stems_are_those_of_the_renyi_paper():
    """Table 2 gives the second ResNet-18 the stem of ImageNet, table 3 ResNet-50 the small one."""
    small = build("resnet18", in_channels=3, num_classes=10, width=2)
    large = build("resnet18_tinyimagenet", in_channels=3, num_classes=200, width=2)
    deep = build("resnet50_tinyimagenet", in_channels=3, num_classes=200, width=2)
    for model in (small, deep):
        assert model.conv1.kernel_size == (3, 3)
        assert model.conv1.stride == (1, 1)
        assert isinstance(model.stem_pool, nn.Identity)
    assert large.conv1.kernel_size == (7, 7)
    assert large.conv1.stride == (2, 2)
    assert large.conv1.padding == (3, 3)
    assert isinstance(large.stem_pool, nn.MaxPool2d)
    other = build("resnet18_tinyimagenet", in_channels=3, num_classes=200, width=2, stem="3x3")
    assert other.conv1.kernel_size == (3, 3)


@pytest.mark.parametrize(("stem", "side"), [("3x3", 8), ("7x7", 2)])
def test_what_is_left_of_64_pixels(stem, side, device):
    model = ImageNetResNet(18, 3, 5, stem=stem, width=2).to(device).double()
    sizes = []
    model.pool.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    model(noise(device, 2, 3, 64, 64))
    assert sizes == [(side, side)]


def test_layers_have_readable_names():
    names = [
        name
        for name, module in ImageNetResNet(50, width=2).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert names[:6] == [
        "conv1",
        "stage1.0.conv1",
        "stage1.0.conv2",
        "stage1.0.conv3",
        "stage1.0.shortcut.0",
        "stage1.1.conv1",
    ]
    assert names[-1] == "fc"
