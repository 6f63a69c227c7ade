"""Architectures of the papers' kinds, built by name from a seed."""

from paperkit.models.activations import ACTIVATIONS
from paperkit.models.lenet import LeNet5
from paperkit.models.mlp import MLP
from paperkit.models.registry import NAMES, build
from paperkit.models.resnet import ImageNetResNet, ResNet
from paperkit.models.vgg import VGG
from paperkit.models.vit import SimpleViT, ViT
from paperkit.models.wide_resnet import WideResNet

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "NAMES",
    "VGG",
    "ImageNetResNet",
    "LeNet5",
    "ResNet",
    "SimpleViT",
    "ViT",
    "WideResNet",
    "build",
]
