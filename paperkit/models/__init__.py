"""Architectures of the papers' kinds, built by name from a seed."""

from paperkit.models.activations import ACTIVATIONS
from paperkit.models.lenet import LeNet5
from paperkit.models.mlp import MLP
from paperkit.models.registry import NAMES, build
from paperkit.models.resnet import ResNet

__all__ = ["ACTIVATIONS", "MLP", "NAMES", "LeNet5", "ResNet", "build"]
