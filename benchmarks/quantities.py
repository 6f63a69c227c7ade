"""The quantities that are measured, and the ceilings that were fixed before the measurement."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "paperkit"

BEST = "the best other tool for each"

COMBINED = "all_measures"


@dataclass(frozen=True)
class Quantity:
    """A quantity that several tools compute.

    Attributes
    ----------
    key : str
        Name of the quantity in the tools' ``WAYS``.
    title : str
        Title in tables.
    problem : str
        Name from :data:`benchmarks.problems.PROBLEMS`.
    tolerance : float
        Largest difference of a tool's result from ours, relative to its norm. A tool that differs
        by more computes something else, and its time is not shown. Single precision through 20
        layers forwards and backwards keeps about five digits, so 1e-3; double precision, 1e-6.
    ceiling : float or None
        Largest time in gradients that is allowed, on ResNet-20 with 64 samples.
    combined : bool
        Whether it is among the measures that :data:`COMBINED` computes together.
    measure : bool
        Whether it is a measure that can be asked for alone, and may then take no longer than the
        plain program.
    """

    key: str
    title: str
    problem: str = "ResNet-20"
    tolerance: float = 1e-3
    ceiling: float | None = None
    combined: bool = False
    measure: bool = False


QUANTITIES = (
    Quantity("hessian_product", "a full Hessian product", ceiling=2.6),
    Quantity("hessian_products", "a full Hessian product, 16 at a time", ceiling=1.8),
    Quantity("preparation", "what all layers' products need, once", ceiling=5.3),
    Quantity(
        "layer_products",
        "all layers' blocks times one vector, 16 at a time, prepared",
        ceiling=0.25,
    ),
    Quantity(
        "exact_sharpness",
        "Rényi sharpness of all layers, exact",
        ceiling=20.0,
        combined=True,
        measure=True,
    ),
    Quantity(
        "quadrature_sharpness",
        "Rényi sharpness of all layers by quadrature, l = 100, m = 15",
        measure=True,
    ),
    Quantity(
        "normalized_sensitivity",
        "normalized maximum local sensitivity",
        combined=True,
        measure=True,
    ),
    Quantity("sharpness", "sharpness S, all parameters", combined=True, measure=True),
    Quantity(
        "layer_sensitivities",
        "maximum local sensitivity at every layer's input",
        combined=True,
        measure=True,
    ),
    Quantity("layer_volumes", "local volume at every layer's input", combined=True, measure=True),
    Quantity(COMBINED, "the exact Rényi sharpness and the four measures above, in one call"),
    Quantity(
        "information_geometry",
        "information-geometric sharpness (IGS)",
        problem="digits MLP",
        tolerance=1e-6,
        measure=True,
    ),
)

PLAIN = "torch."
"""Beginning of the names of the plain programs."""

PLAIN_CEILING = 1.0
"""Ceiling of the time of a measure asked for alone, over the fastest plain program for it."""

REFERENCE_SAMPLES = 64
"""Number of samples for which the ceilings hold."""

COMBINED_CEILING = 0.7
"""Ceiling of the time of all combined measures in one call, over the sum of the best times."""

TRACE_CEILING = 0.33
"""Ceiling of the relative root-mean-square error of Tr H after 60 products, in percent."""

TRACE_PRODUCTS, TRACE_SEEDS = 60, 100

NETWORK_QUANTITIES = {
    "product": "a full Hessian product",
    "trace": "trace",
    "top": "the 5 largest eigenvalues",
    "density": "spectral density",
}
"""Quantities that are asked for on other people's networks, with their titles in tables."""

TOP_EIGENVALUES = 5

NETWORK_PRODUCTS, NETWORK_ESTIMATES = 30, 10
"""Number of Hessian products of each call there, and largest number of seeds."""

DENSITY_PROBES, DENSITY_STEPS = 2, 15
"""Numbers of probes and steps of the quadrature that spends these products on a density."""

AHEAD_CEILING = 0
"""Ceiling of the number of rows there in which another tool is both faster and more accurate."""


@dataclass(frozen=True)
class StepKind:
    """A kind of step of an optimizer.

    Attributes
    ----------
    key : str
        Name of the kind in the tools' ``STEPS``.
    title : str
        Title in tables.
    closures : int
        Number of times that the step calls its closure, as the library documents it.
    remark : str
        Remark for the reader.
    renews : bool
        Whether the step also renews an eigenvector or a Fisher matrix that serves a period of
        steps.
    """

    key: str
    title: str
    closures: int
    remark: str = ""
    renews: bool = False


FISHER_SAMPLES = 64
"""Number of inputs that IGSAM renews F from: the pairs of 128 exceed the default memory budget."""

STEP_KINDS = (
    StepKind("sgd", "SGD", 1, "the base of all that have one"),
    StepKind("sam", "SAM", 2),
    StepKind("asam", "ASAM", 2),
    StepKind("eigen_sam", "EigenSAM, between renewals", 2),
    StepKind(
        "eigen_sam_renewal", "EigenSAM, with a renewal", 12, "5 power iterations", renews=True
    ),
    StepKind(
        "gradient_regularization",
        "GradientRegularization, double backward",
        1,
        "the second gradient is the double backward pass, outside the closure",
    ),
    StepKind("gradient_regularization_difference", "GradientRegularization, finite difference", 2),
    StepKind("rsam", "RSAM, as in the paper", 2),
    StepKind("rsam_exact", "RSAM, exact", 2),
    StepKind("sasam", "SASAM, mini-batches", 3),
    StepKind("sasam_full_batch", "SASAM, full batch", 2),
    StepKind("sasgd", "SASGD, mini-batches", 2),
    StepKind("sasgd_full_batch", "SASGD, full batch", 1),
    StepKind("igsam", "IGSAM, between renewals", 2),
    StepKind(
        "igsam_renewal",
        "IGSAM, with a renewal",
        2,
        f"F from {FISHER_SAMPLES} of the inputs, outside the closure",
        renews=True,
    ),
)

BASE_OPTIONS = {"lr": 0.1, "momentum": 0.9}
SAM_RADIUS = 0.05

RENEWALS = 1
"""Number of timed steps with a renewal, each of which takes as long as several without."""

REFERENCE_BATCH = 128
"""Number of samples for which the ceiling of a step holds."""

STEP_CEILING = 1.0
"""Ceiling of the time of a step of SAM outside its closure over the time inside, in percent."""

STEP_TOLERANCE = 1e-3
"""Largest difference of the weights' first change from ours, relative to its norm; see
:class:`Quantity` for single precision."""
