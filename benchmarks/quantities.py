"""What is measured, and the ceilings that were fixed before the measurement."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "paperkit"

BEST = "the best other tool for each"

COMBINED = "all_measures"


@dataclass(frozen=True)
class Quantity:
    """One quantity that several tools compute.

    Attributes
    ----------
    key : str
        Its name in the tools' ``WAYS``.
    title : str
        For a table.
    problem : str
        A name from :data:`benchmarks.problems.PROBLEMS`.
    tolerance : float
        By how much a tool's result may differ from ours, relative to its norm. A tool that differs
        by more computes something else, and its time is not shown. Single precision through 20
        layers forwards and backwards keeps about five digits, so 1e-3; double precision, 1e-6.
    ceiling : float or None
        At most so many gradients, on ResNet-20 with 64 samples.
    combined : bool
        Whether it is one of the measures that :data:`COMBINED` computes together.
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
"""The tools whose names start so are the plain programs."""

PLAIN_CEILING = 1.0
"""Any measure asked for alone, over the fastest plain program for it."""

REFERENCE_SAMPLES = 64
"""The batch that the ceilings are for."""

COMBINED_CEILING = 0.7
"""All combined measures in one call, over the sum of the best times for each."""

TRACE_CEILING = 0.33
"""Percent: relative root-mean-square error of Tr H after 60 products."""

TRACE_PRODUCTS, TRACE_SEEDS = 60, 100

NETWORK_QUANTITIES = {
    "product": "a full Hessian product",
    "trace": "trace",
    "top": "the 5 largest eigenvalues",
    "density": "spectral density",
}
"""What is asked for on other people's networks, with a title for a table."""

TOP_EIGENVALUES = 5

NETWORK_PRODUCTS, NETWORK_ESTIMATES = 30, 10
"""Hessian products of each call there, and seeds at most."""

DENSITY_PROBES, DENSITY_STEPS = 2, 15
"""Of the quadrature that spends them on a density."""

AHEAD_CEILING = 0
"""Rows there in which another tool is both faster and more accurate."""


@dataclass(frozen=True)
class StepKind:
    """One kind of step of one optimizer.

    Attributes
    ----------
    key : str
        Its name in the tools' ``STEPS``.
    title : str
        For a table.
    closures : int
        How often the step calls its closure, as the library documents it.
    remark : str
        What a reader has to know.
    renews : bool
        Whether the step also renews what a period of steps lives on.
    """

    key: str
    title: str
    closures: int
    remark: str = ""
    renews: bool = False


FISHER_SAMPLES = 64
"""Inputs that IGSAM renews F from: the pairs of 128 exceed the default memory budget."""

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
"""Timed steps with a renewal, which takes as long as several without."""

REFERENCE_BATCH = 128
"""The batch that the ceiling of a step is for."""

STEP_CEILING = 1.0
"""Percent: time of a step of SAM outside its closure over the time inside."""

STEP_TOLERANCE = 1e-3
"""By how much the weights' first change may differ from ours, relative to its norm; see
:class:`Quantity` for single precision."""
