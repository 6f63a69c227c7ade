"""Architectures of millions of parameters, with the inputs of the papers' data sets."""

PAPER_SIZES = {
    "resnet18": (3, 32, 32),
    "resnet34": (3, 32, 32),
    "resnet18_tinyimagenet": (3, 64, 64),
    "resnet50_tinyimagenet": (3, 64, 64),
    "wrn16_8": (3, 32, 32),
    "wrn28_10": (3, 32, 32),
    "vgg11": (3, 32, 32),
    "vgg11_bn": (3, 32, 32),
    "vgg19_bn": (3, 32, 32),
    "vit_small": (3, 32, 32),
    "simple_vit": (3, 32, 32),
}
