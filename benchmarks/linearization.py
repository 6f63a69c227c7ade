"""What one linearization costs, in gradients, on ResNet-20 at 32 × 32.

One gradient is a forward and a backward pass of the mean cross-entropy on the same batch, threads,
dtype and mode. Every figure is a ratio of medians taken in this one run. Run it on a quiet
machine::

    make benchmark
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from paperkit.linearize import linearize
from paperkit.models import build

# Ceilings fixed before the measurement, in gradients.
CEILINGS = {
    "pairs (a, B) of all layers, once": 5.5,
    "all layers' blocks times one probe, 16 at a time": 0.8,
    "exact spectra of all layers, pairs included": 32.0,
}
PROBES = 16


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of an action, after one untimed call."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(samples: int, repeats: int, device: str) -> dict[str, float]:
    """Return each cost in gradients."""
    generator = torch.Generator().manual_seed(0)
    model = build("resnet20", in_channels=3, num_classes=10, seed=0).to(device).eval()
    inputs = torch.randn(samples, 3, 32, 32, generator=generator).to(device)
    targets = torch.randint(0, 10, (samples,), generator=generator).to(device)
    linearization = linearize(model, inputs)
    probes = {
        name: torch.randn(PROBES, *layer.weight_shape, generator=generator).to(device)
        for name, layer in linearization.layers.items()
    }

    def synchronized(action: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            action()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    def gradient() -> None:
        model.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()

    def spectra() -> None:
        for layer in linearize(model, inputs).layers.values():
            layer.spectrum()

    # The unit is measured before and after: a machine that slowed down shows.
    unit = median_seconds(synchronized(gradient), 4 * repeats)
    pairs, products, exact = (
        median_seconds(synchronized(action), repeats)
        for action in (
            lambda: linearize(model, inputs),
            lambda: linearization.gauss_newton_products(probes),
            spectra,
        )
    )
    drift = median_seconds(synchronized(gradient), 4 * repeats) / unit
    print(f"the unit changed by a factor {drift:.2f} during the run")
    costs = (pairs, products / PROBES, exact)
    return {name: cost / unit for name, cost in zip(CEILINGS, costs, strict=True)}


def main() -> None:
    """Print the table and say whether each ceiling is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(
        f"ResNet-20, 32 × 32, n = {options.samples}, C = 10, float32, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    )
    for name, cost in measure(options.samples, options.repeats, options.device).items():
        verdict = "met" if cost <= CEILINGS[name] else "NOT MET"
        print(f"{name:52s} {cost:6.2f} gradients   at most {CEILINGS[name]:5.1f}: {verdict}")


if __name__ == "__main__":
    main()
