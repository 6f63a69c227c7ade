"""What the studies of the Rényi paper's statements share: tables of facts, and random spectra.

A fact is a function from a configuration to metrics. Its options span its part of a study's grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Configuration = dict[str, Any]
Metrics = dict[str, Any]

SEEDS = {"smoke": 1, "laptop": 5, "paper": 20}


@dataclass(frozen=True)
class Fact:
    """A function from a configuration to metrics, and the options that it is asked for.

    Attributes
    ----------
    run : callable
        The function.
    options : mapping of str to tuple
        The values of each entry of the configuration; all combinations are run.
    chance : bool
        Whether the fact draws random numbers, so that several seeds are of use.
    """

    run: Callable[[Configuration], Metrics]
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    chance: bool = True


def facts_grid(facts: Mapping[str, Fact], profile: str) -> list[Configuration]:
    """List the configurations of a table of facts; at smoke the first and last of each option."""
    grid = []
    for name, fact in facts.items():
        chosen = [
            tuple(dict.fromkeys((values[0], values[-1]))) if profile == "smoke" else values
            for values in fact.options.values()
        ]
        for values in itertools.product(*chosen):
            for seed in range(SEEDS[profile] if fact.chance else 1):
                options = dict(zip(fact.options, values, strict=True))
                grid.append({"fact": name, **options, "seed": seed})
    return grid


def generator_of(configuration: Configuration) -> np.random.Generator:
    """Return the random numbers of a configuration: those of its seed."""
    return np.random.default_rng(1000 + int(configuration["seed"]))


def random_spectrum(dimension: int, generator: np.random.Generator) -> Vector:
    """Draw positive eigenvalues between nearly equal and nearly one alone, of a random scale."""
    power = 10.0 ** generator.uniform(-1.0, 1.0)
    scale = 10.0 ** generator.uniform(-2.0, 2.0)
    return scale * (generator.uniform(size=dimension) ** power + 1e-12)


def random_rotation(dimension: int, generator: np.random.Generator) -> Matrix:
    """Draw an orthogonal matrix from the Haar measure (QR with the signs fixed)."""
    q, r = np.linalg.qr(generator.standard_normal((dimension, dimension)))
    return q * np.sign(np.diag(r))


def matrix_of(eigenvalues: Vector, generator: np.random.Generator) -> Matrix:
    """Return a symmetric matrix with these eigenvalues, in a random basis."""
    rotation = random_rotation(len(eigenvalues), generator)
    matrix = (rotation * eigenvalues) @ rotation.T
    return 0.5 * (matrix + matrix.T)


def entropy(masses: Vector, alpha: float) -> float:
    """Return the Rényi entropy of nonnegative masses, by its definition and nothing else."""
    p = np.asarray(masses, dtype=np.float64)
    p = p[p > 0] / p.sum()
    if alpha == 1:
        return float(-(p * np.log(p)).sum())
    # The largest mass is taken out, because its power may underflow.
    largest = float(p.max())
    power = float(((p / largest) ** alpha).sum())
    return (alpha * math.log(largest) + math.log(power)) / (1.0 - alpha)


def relative(left: float, right: float) -> float:
    """Return |left − right| in units of the larger magnitude, or of 1 where both are smaller."""
    return abs(left - right) / max(abs(left), abs(right), 1.0)
