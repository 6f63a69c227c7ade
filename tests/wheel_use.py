"""Use an installed paperkit as its users do: measure a ResNet-18, train a step with SAM.

``python tests/wheel_use.py`` prints one line of JSON, or ends in an error. It imports nothing of
this repository, so that it says whether the wheel is whole.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18

import paperkit
from paperkit.estimators import measure
from paperkit.optim import SAM

SAMPLES, PIXELS, CLASSES = 4, 64, 10


def main() -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=CLASSES)
    inputs = torch.randn(SAMPLES, 3, PIXELS, PIXELS)
    targets = torch.arange(SAMPLES) % CLASSES
    report = measure(model, (inputs, targets), ["renyi_sharpness", "gauss_newton_trace"])
    values = [one.value for one in report.measurements()]
    layers = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in model.modules())
    if len(report["renyi_sharpness"]) != layers or not all(map(math.isfinite, values)):
        raise SystemExit(f"of {layers} layers {len(report['renyi_sharpness'])} were measured")
    before, after = sam_step(model, inputs, targets)
    if not after < before:
        raise SystemExit(f"SAM's step took the loss from {before} to {after}")
    facts = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "scipy")},
        "paperkit": version("paperkit"),
        "place": str(Path(paperkit.__file__).parent),
        "pandas": importlib.util.find_spec("pandas") is not None,
        "sphinx": importlib.util.find_spec("sphinx") is not None,
        "layers": layers,
        "gauss_newton_trace": float(report["gauss_newton_trace"]),
        "loss_before": before,
        "loss_after": after,
    }
    print(json.dumps(facts))


def sam_step(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Train one step with SAM; return the loss before and after."""
    model.train()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.01)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    before = float(closure().detach())
    optimizer.step(closure)
    return before, float(closure().detach())


if __name__ == "__main__":
    sys.exit(main())
