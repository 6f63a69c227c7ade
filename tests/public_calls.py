"""One small valid call of every public name, and bad values for each kind of argument.

A public name is what a package lists in ``__all__``, or what a module that has none defines without
an underscore. Arguments of one name mean the same all over the library, so their valid values and
their kinds stand in one table; where a function differs it says so in ``CALLS``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from typing_extensions import is_protocol

from paperkit import linalg, linearize
from paperkit.bounds import compression
from paperkit.data import Split
from paperkit.estimators import LayerResults

PACKAGES = (
    "linalg",
    "network",
    "curvature",
    "linearize",
    "estimators",
    "bounds",
    "bounds.compression",
    "bounds.information_geometry",
    "bounds.renyi",
    "bounds.smoothness",
    "optim",
    "data",
    "models",
    "training",
    "monitor",
    "experiments",
    "ledger",
    "statistics",
    "plotting",
    "chapter",
)

N, INPUTS, HIDDEN, CLASSES = 6, 4, 3, 3
NAN, INF, HUGE = math.nan, math.inf, 10**30


def public_names(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return what can be called, by package and name."""
    found = {}
    for package in packages:
        module = importlib.import_module(f"paperkit.{package}")
        listed = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        found |= {f"{package}.{name}": getattr(module, name) for name in listed}
    return {name: value for name, value in found.items() if callable(value)}


def is_made_by_the_library(value: Any) -> bool:
    """Whether it is an error, an abstract class, or a record of results that nobody builds."""
    if not inspect.isclass(value):
        return False
    return (
        issubclass(value, Exception | LayerResults)
        or inspect.isabstract(value)
        or is_protocol(value)
        or _is_result(value)
    )


def _is_result(value: type) -> bool:
    return dataclasses.is_dataclass(value) and value.__name__ not in BUILT_BY_USERS


BUILT_BY_USERS = {
    "Allotment",
    "Approximation",
    "Cost",
    "Identity",
    "Inequality",
    "PassMeasure",
    "Split",
    "Study",
}


# --- what is valid ------------------------------------------------------------------------------


def model() -> nn.Module:
    """Return a network in which nothing is as it would be left by default."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, CLASSES),
    ).double()
    network[1].running_mean.fill_(0.1)
    network.train()
    network[2].eval()
    network[0].bias.requires_grad_(False)
    network[3].weight.grad = torch.ones_like(network[3].weight)
    return network


def inputs() -> torch.Tensor:
    return torch.randn(N, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 2])


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return inputs(), labels()


def operator(vectors: torch.Tensor) -> torch.Tensor:
    return vectors * torch.tensor([4.0, 3.0, 2.0, 1.0], device="cpu").to(vectors)


def _vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@functools.cache
def _quadrature() -> linalg.SpectralQuadrature:
    known = linalg.FunctionOperator(operator, 4)
    return linalg.stochastic_lanczos_quadrature(known, probes=3, steps=3)


@functools.cache
def _linearization() -> linearize.Linearization:
    x, y = data()
    return linearize.linearize(model(), x, targets=y, input_jacobians=True, all_parameters=True)


@functools.cache
def _terms() -> compression.CompressionTerms:
    return compression.compression_terms(model(), (inputs(), torch.zeros(N, CLASSES).double()))


def _theta() -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model().parameters()])


def _axes() -> Any:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("Agg")

    return Figure().add_subplot()


def _image_split() -> Split:
    return Split(inputs().float(), labels())


VALID: dict[str, Callable[[], Any]] = {
    "model": model,
    "data": data,
    "train": data,
    "test": data,
    "inputs": inputs,
    "targets": labels,
    "operator": lambda: linalg.FunctionOperator(operator, 4),
    "function": lambda: operator,
    "dimension": lambda: 4,
    "products": lambda: 6,
    "k": lambda: 1,
    "starts": lambda: torch.eye(4, dtype=torch.float64)[:2] + 0.5,
    "steps": lambda: 2,
    "probes_at_once": lambda: 1,
    "count": lambda: 2,
    "generator": lambda: torch.Generator().manual_seed(0),
    "tridiagonal": lambda: linalg.lanczos(operator, VALID["starts"](), 2),
    "quadrature": _quadrature,
    "grid": lambda: _vector(0.0, 1.0),
    "width": lambda: 0.5,
    "round_off": lambda: 1e-7,
    "blocks": lambda: [torch.eye(4, dtype=torch.float64)],
    "num_rows": lambda: 4,
    "alpha": lambda: 1.5,
    "linearization": _linearization,
    "terms": _terms,
    "hessian": lambda: torch.diag(_vector(1.0, 2.0, 3.0, 4.0)),
    "sizes": lambda: [2, 2],
    "eigenvalues": lambda: [1.0, 2.0, 3.0],
    "gradient": lambda: _vector(1.0, -2.0, 3.0),
    "jacobian": lambda: _jacobian(),
    "rho": lambda: 0.1,
    "n": lambda: 10,
    "epsilon": lambda: 0.1,
    "delta": lambda: 0.1,
    "radius": lambda: 5.0,
    "beta": lambda: 2.0,
    "log_volume": lambda: 0.5,
    "minimum_loss": lambda: 0.1,
    "population_risk": lambda: 0.5,
    "training_risk": lambda: 0.2,
    "points": lambda: _vector(0.0, 1.0, 3.0).reshape(3, 1),
    "gradients": lambda: _vector(0.0, 2.0, 6.0).reshape(3, 1),
    "sample": lambda: 1,
    "step": lambda: 0.1,
    "loss": lambda: "cross_entropy",
    "params": lambda: list(model().parameters()),
    "x": lambda: [1.0, 2.0, 3.0, 4.0],
    "y": lambda: [1.0, 3.0, 2.0, 4.0],
    "groups": lambda: [0, 0, 1, 1],
    "perturbation": lambda: torch.eye(INPUTS, dtype=torch.float64),
    "perturbations": lambda: torch.eye(INPUTS, dtype=torch.float64).unsqueeze(0),
    "layer": lambda: "0",
    "axes": _axes,
    "in_channels": lambda: 1,
    "num_classes": lambda: 2,
}


def _jacobian() -> torch.Tensor:
    return torch.randn(N, 2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@dataclass(frozen=True)
class Call:
    """A valid call of one public name.

    Attributes
    ----------
    valid : dict of str to callable
        Makers of values that differ from ``VALID``; an optional argument is passed only if it
        stands here.
    kinds : dict of str to str
        Kinds that differ from ``KINDS``.
    runs : bool
        False where the valid call itself is tried elsewhere, because it takes long.
    edges : bool
        Whether to try values that may be taken, too; False where a call takes seconds.
    """

    valid: dict[str, Callable[[], Any]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    runs: bool = True
    edges: bool = True


def _call(
    runs: bool = True,
    edges: bool = True,
    kinds: dict[str, str] | None = None,
    **valid: Any,
) -> Call:
    makers = {
        k: v if callable(v) and getattr(v, "is_maker", False) else _constant(v)
        for k, v in valid.items()
    }
    return Call(makers, kinds or {}, runs, edges)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def make(maker: Callable[[], Any]) -> Any:
    """Mark a function as one that makes the value at each call."""

    def made() -> Any:
        return maker()

    made.is_maker = True  # type: ignore[attr-defined]
    return made


_SQUARES = {"data": make(lambda: (inputs(), torch.zeros(N, CLASSES).double()))}
_BINARY_MODEL = make(lambda: nn.Sequential(nn.Linear(INPUTS, 2)).double())
_BINARY_DATA = make(lambda: (inputs(), labels() % 2))

CALLS: dict[str, Call] = {
    # linalg
    "linalg.FunctionOperator": _call(),
    "linalg.Lanczos": _call(),
    "linalg.as_operator": _call(operator=make(lambda: torch.eye(4, dtype=torch.float64))),
    "linalg.averaged_rule": _call(),
    "linalg.deflated_quadrature": _call(
        rows=make(lambda: torch.eye(4, 6, dtype=torch.float64)),
        rank=2,
        probes=2,
        kinds={"rows": "tensor", "alpha": "orders", "overwrite": "flag", "drop": "probability"},
    ),
    "linalg.draw_probes": _call(),
    "linalg.gauss_rule": _call(),
    "linalg.gram_spectrum": _call(),
    "linalg.hutch_plus_plus": _call(),
    "linalg.hutchinson": _call(),
    "linalg.krylov_deflation": _call(),
    "linalg.lanczos": _call(),
    "linalg.power": _call(),
    "linalg.radau_rule": _call(),
    "linalg.spectral_density": _call(),
    "linalg.stochastic_lanczos_quadrature": _call(steps=3),
    "linalg.t_log_t": _call(),
    "linalg.top_eigenpairs": _call(kinds={"start": "tensor"}, start=make(lambda: torch.ones(4))),
    "linalg.xtrace": _call(),
    # linearize
    "network.Batches": _call(kinds={"data": "source of data"}),
    "network.Network": _call(),
    "network.Samples": _call(parts=make(lambda: {"a": inputs(), "b": labels()})),
    "network.batches": _call(kinds={"data": "read data"}),
    "curvature.HessianOperator": _call(),
    "curvature.ResidualOperator": _call(),
    "curvature.GaussNewtonOperator": _call(),
    "curvature.FisherOperator": _call(),
    "curvature.EmpiricalFisherOperator": _call(),
    "curvature.dense_empirical_fisher": _call(),
    "curvature.dense_gauss_newton": _call(),
    "curvature.dense_hessian": _call(),
    "curvature.dense_jacobian": _call(),
    "linearize.ekfac": _call(),
    "network.get_loss": _call(),
    "curvature.hessian_product": _call(
        parameters=["0.bias"], vectors=make(lambda: _vector(1.0, 2.0, 3.0))
    ),
    "linearize.kfac": _call(),
    "linearize.layers_of": _call(kinds={"model": "unfinished model"}),
    "linearize.linearize": _call(),
    "linearize.linearize_in_chunks": _call(),
    "linearize.operator_norm": _call(
        max_dense=4,
        module=make(lambda: nn.Linear(4, 3)),
        input_shape=(4,),
        kinds={"input_shape": "sizes", "max_dense": "index"},
    ),
    # estimators
    **{
        f"estimators.{name}": _call()
        for name in (
            "fisher_rao_norm",
            "generalization_gap",
            "information_geometric_sharpness",
            "input_invariant_local_sensitivity",
            "layer_gauss_newton_traces",
            "local_dimension",
            "log_volume",
            "maximum_local_sensitivity",
            "mean_exponential_loss",
            "mean_loss",
            "network_log_volume",
            "network_maximum_local_sensitivity",
            "normalized_maximum_local_sensitivity",
        )
    },
    "statistics.kendall_tau": _call(),
    "statistics.kendall_tau_by_group": _call(),
    **{
        f"estimators.{name}": _call(kinds={"jacobian": "jacobian"})
        for name in ("local_dimensions", "log_volumes", "singular_values")
    },
    "estimators.adaptive_sharpness": _call(probes=2, kinds={"max_products": "index"}),
    "estimators.hessian_top_eigenvalues": _call(max_products=20, kinds={"start": "instance"}),
    "estimators.rangamani_sharpness": _call(max_products=20),
    "estimators.average_adaptive_sharpness": _call(probes=2, kinds={"rho": "positive"}),
    "estimators.hessian_trace": _call(kinds={"max_dense": "index"}),
    "estimators.deflated_renyi_sharpness": _call(
        kinds={"alpha": "orders"}, alpha=(0.5, 1.5), probes=2, rank=2
    ),
    "estimators.layer_spectra": _call(kinds={"max_dense": "index"}),
    "estimators.relative_flatness": _call(probes=2, kinds={"max_products": "index"}),
    "estimators.spectral_density": _call(probes=2, steps=2),
    "estimators.sam_sharpness": _call(
        steps=2, kinds={"rho": "positive", "p": "positive or infinite"}
    ),
    "estimators.asam_sharpness": _call(
        steps=2, kinds={"rho": "positive", "p": "positive or infinite", "eta": "nonnegative"}
    ),
    "estimators.gauss_newton_trace": _call(
        loss="cross_entropy", kinds={"parameters": "choice or names"}
    ),
    "estimators.global_renyi_sharpness": _call(
        kinds={"alpha": "orders", "max_dense": "index"}, alpha=(0.5, 1.5), probes=2
    ),
    "estimators.renyi_sharpness": _call(
        kinds={"alpha": "orders", "max_dense": "index"}, alpha=(0.5, 1.5), probes=2
    ),
    "estimators.measure": _call(
        kinds={"alpha": "orders", "measures": "names"}, measures=("parameter_norm",)
    ),
    "estimators.PassMeasure": _call(
        name="example",
        finish=lambda parts, problem: None,
        of_chunk=len,
        otherwise=len,
        needs=["pairs"],
        kinds={
            "name": "text",
            "finish": "function",
            "of_chunk": "function",
            "otherwise": "function",
            "needs": "names",
        },
    ),
    "estimators.pac_bayes_flatness": _call(draws=2, max_bisections=2),
    "estimators.parameter_norm": _call(kinds={"parameters": "choice or names"}),
    "statistics.permutation_test": _call(
        measures=make(lambda: {"a": [1.0, 2.0, 3.0, 4.0]}),
        gap=make(lambda: [1.0, 3.0, 2.0, 4.0]),
        permutations=20,
        kinds={"measures": "mapping of values"},
    ),
    "estimators.weight_names": _call(kinds={"model": "unfinished model"}),
    "estimators.renyi_entropy": _call(kinds={"alpha": "any order"}),
    "estimators.renyi_entropy_estimate": _call(),
    "estimators.takeuchi_information_criterion": _call(
        kinds={"curvature": "choice", "max_dense": "index"}
    ),
    # bounds
    **{
        f"bounds.{kind}": _call(
            statement="a and b",
            source="here",
            left=1.0,
            right=2.0,
            kinds={"tolerance": "nonnegative"},
        )
        for kind in ("Approximation", "Identity", "Inequality")
    },
    "bounds.compression.average_sharpness_bound": _call(
        average=1.0,
        limit=1.0,
        parameters=make(lambda: _vector(1.0, 2.0)),
        fourth_derivative=1.0,
        kinds={"parameters": "any tensor", "average": "real", "limit": "real", "rho": "positive"},
    ),
    "bounds.compression.compression_bounds": _call(**_SQUARES),
    "bounds.compression.compression_terms": _call(**_SQUARES),
    "bounds.compression.compression_terms_from": _call(
        parameters=make(lambda: dict(model().named_parameters())),
        kinds={"parameters": "mapping of values"},
    ),
    "bounds.compression.conditioned_patches_bound": _call(),
    "bounds.compression.input_invariant_bounds": _call(),
    "bounds.compression.input_smoothness_bounds": _call(kinds={"k": "positive"}),
    "bounds.compression.interpolation_bounds": _call(edges=False, **_SQUARES),
    "bounds.compression.linear_stability_bounds": _call(),
    "bounds.compression.matrix_normalized_bound": _call(),
    "bounds.compression.network_sensitivity_bound": _call(),
    "bounds.compression.network_volume_bounds": _call(),
    "bounds.compression.norm_monotonicity": _call(
        values=make(lambda: _vector(1.0, 2.0)),
        p=1.0,
        q=2.0,
        kinds={"values": "any tensor", "p": "positive or infinite"},
    ),
    "bounds.compression.normalized_sensitivity_bounds": _call(),
    "bounds.compression.normalized_sharpness_bounds": _call(
        cotangent=make(lambda: torch.ones(2, 3).double()),
        weight=make(lambda: torch.ones(3, 4).double()),
        inputs=make(lambda: torch.ones(4).double()),
        sigma=make(lambda: torch.ones(3).double()),
        sigma_input=make(lambda: torch.ones(4).double()),
        lam=1.0,
    ),
    "bounds.compression.normalized_sharpness_objective": _call(
        curvature=make(lambda: torch.ones(3, 4).double()),
        weight=make(lambda: torch.ones(3, 4).double()),
        sigma=make(lambda: torch.ones(3).double()),
        sigma_input=make(lambda: torch.ones(4).double()),
        lam=1.0,
    ),
    "bounds.compression.residual_bounds": _call(stream=["0", "3"]),
    "bounds.compression.sensitivity_bound": _call(),
    "bounds.compression.sensitivity_chain": _call(),
    "bounds.compression.volume_bounds": _call(),
    "bounds.compression.volume_lemma": _call(kinds={"jacobian": "jacobian"}),
    "bounds.information_geometry.balanced_prediction_expansion": _call(
        jacobian=make(lambda: _jacobian()[0]), reference=0, epsilon=0.1
    ),
    "bounds.information_geometry.class_difference_identity": _call(reference=0),
    "bounds.information_geometry.coordinate_invariance": _call(
        inverse=make(lambda: lambda eta: 2 * eta),
        eta=make(lambda: _theta() / 2),
        kinds={"eta": "tensor"},
    ),
    "bounds.information_geometry.cross_entropy_identity": _call(),
    "bounds.information_geometry.expected_sharpness_identity": _call(),
    "bounds.information_geometry.fisher_factor_identity": _call(
        outputs=make(lambda: torch.ones(3, 2).double())
    ),
    "bounds.information_geometry.fisher_geometry": _call(kinds={"theta": "tensor"}),
    "bounds.information_geometry.fisher_identity": _call(),
    "bounds.information_geometry.fisher_rank_bound": _call(),
    "bounds.information_geometry.flat_parameters": _call(),
    "bounds.information_geometry.kullback_leibler_expansion": _call(kinds={"step": "real"}),
    "bounds.information_geometry.logit_gradient_identity": _call(output=1),
    "bounds.information_geometry.margin_identity": _call(model=_BINARY_MODEL, data=_BINARY_DATA),
    "bounds.information_geometry.margin_length_identity": _call(
        model=_BINARY_MODEL, data=_BINARY_DATA, index=0
    ),
    "bounds.information_geometry.margin_loss_bound": _call(competitor=0),
    "bounds.information_geometry.minibatch_identity": _call(batch_size=2),
    "bounds.information_geometry.perturbed_loss_expansion": _call(kinds={"rho": "real"}),
    "bounds.information_geometry.sharpness_dual_identity": _call(),
    "bounds.information_geometry.sharpness_loss_bound": _call(),
    "bounds.information_geometry.span_identity": _call(),
    "bounds.information_geometry.stop_gradient_identity": _call(edges=False, kinds={"rho": "real"}),
    "bounds.information_geometry.takeuchi_prediction": _call(
        edges=False, kinds={"curvature": "choice"}
    ),
    "bounds.information_geometry.transformation_invariance": _call(
        transformation=make(lambda: lambda theta: theta * 1.0)
    ),
    "bounds.renyi.block_decomposition": _call(),
    "bounds.renyi.convexity": _call(
        p=[0.5, 0.5], q=[0.25, 0.75], kinds={"p": "values", "q": "values"}
    ),
    "bounds.renyi.coupling_perturbation": _call(),
    "bounds.renyi.coupling_perturbation_below_one": _call(),
    "bounds.renyi.decrease_in_order": _call(low=0.5, high=2.0),
    "bounds.renyi.determinant_chain": _call(),
    "bounds.renyi.ellipsoid_divergence": _call(kinds={"rho": "positive"}),
    "bounds.renyi.ellipsoid_mean": _call(),
    "bounds.renyi.ellipsoid_posterior": _call(kinds={"rho": "positive"}),
    "bounds.renyi.ellipsoid_posterior_entropy": _call(kinds={"rho": "positive"}),
    "bounds.renyi.first_order_regularizer": _call(kinds={"rho": "real"}),
    "bounds.renyi.gradient_entropy": _call(),
    "bounds.renyi.gradient_power_ratio": _call(),
    "bounds.renyi.gradient_power_ratio_derivative": _call(),
    "bounds.renyi.gradient_power_ratio_range": _call(),
    "bounds.renyi.haar_matrices": _call(draws=2),
    "bounds.renyi.haar_relative_flatness": _call(
        weight=make(lambda: torch.ones(2, 2).double()),
        perturbations=make(lambda: torch.eye(2).double().unsqueeze(0)),
        kinds={"rho": "real"},
    ),
    "bounds.renyi.haar_translation": _call(population_loss=0.5, perturbed_losses=[0.4, 0.6]),
    "bounds.renyi.isolated_minimum": _call(kinds={"delta": "probability"}),
    "bounds.renyi.isolated_minimum_entropy": _call(kinds={"delta": "probability"}),
    "bounds.renyi.layer_scaling_invariance": _call(edges=False, factors={"0": 2.0, "3": 0.5}),
    "bounds.renyi.layers_are_uniform": _call(kinds={"beta": "order"}),
    "bounds.renyi.layerwise_consequence": _call(
        before=make(lambda: torch.diag(_vector(1.0, 2.0, 3.0, 4.0))),
        after=make(lambda: torch.diag(_vector(1.0, 2.0, 3.0, 5.0))),
    ),
    "bounds.renyi.layerwise_lower_bounds": _call(),
    "bounds.renyi.neighbourhood_rise": _call(),
    "bounds.renyi.perturbation_translation": _call(kinds={"rho": "real"}),
    "bounds.renyi.pinching": _call(),
    "bounds.renyi.power_sum": _call(),
    "bounds.renyi.power_sum_range": _call(),
    "bounds.renyi.regularized_loss": _call(kinds={"rho": "real"}),
    "bounds.renyi.regularizer_descent": _call(gradient=make(lambda: _vector(1.0, -2.0, 3.0, 4.0))),
    "bounds.renyi.renyi_perturbation": _call(kinds={"rho": "real"}),
    "bounds.renyi.sum_of_logarithms": _call(),
    "bounds.renyi.trace_form": _call(),
    "bounds.renyi.translated_losses": _call(kinds={"rho": "real"}),
    "bounds.smoothness.curvature_step_range": _call(smallest=1.0, largest=3.0),
    "bounds.smoothness.gradient_descent_rate": _call(excess_loss=1.0, distance=1.0),
    "bounds.smoothness.growth_limit": _call(kinds={"delta": "nonnegative"}),
    "bounds.smoothness.local_smoothness": _call(),
    "bounds.smoothness.smoothness_along_path": _call(),
    "bounds.smoothness.stability_edge": _call(largest=1.0, step=0.1, kinds={"step": "positive"}),
    "bounds.smoothness.step_growth": _call(
        step_sizes=[0.1, 0.2], first_ratio=1.0, kinds={"delta": "nonnegative"}
    ),
    "bounds.smoothness.step_lower_bound": _call(step_sizes=[0.1, 0.2]),
    # optim
    "optim.ASAM": _call(lr=0.1, kinds={"eta": "nonnegative", "scaled": "choice"}),
    "optim.EigenSAM": _call(lr=0.1, kinds={"alpha": "real"}),
    "optim.GradientRegularization": _call(lr=0.1),
    "optim.IGSAM": _call(lr=0.1, damping=0.1, model=make(model), kinds={"damping": "positive"}),
    "optim.RSAM": _call(lr=0.1),
    "optim.SAM": _call(lr=0.1, kinds={"p": "positive or infinite"}),
    "optim.SASAM": _call(),
    "optim.SASGD": _call(kinds={"delta": "nonnegative"}),
    "optim.RandomState": _call(devices=[torch.device("cpu")]),
    "optim.Vector": _call(tensors=make(lambda: [torch.ones(2)])),
    "optim.adaptive_step_size": _call(
        displacement=1.0,
        change=2.0,
        eta=0.1,
        theta=1.0,
        kinds={
            "eta": "positive",
            "delta": "nonnegative",
            "displacement": "any length",
            "change": "any length",
        },
    ),
    # data, models, training
    "data.Split": _call(kinds={"inputs": "samples", "targets": "samples"}),
    "data.augment": _call(inputs=make(lambda: torch.ones(2, 1, 6, 6)), kinds={"inputs": "images"}),
    "data.corrupt": _call(
        images=make(lambda: torch.full((2, 3, 8, 8), 0.5)),
        name="contrast",
        severity=1,
        kinds={"images": "corrupted images", "severity": "count", "seed": "index"},
    ),
    "data.load": _call(name="digits", kinds={"seed": "index", "validation": "nonnegative"}),
    # A call that succeeds needs the archive.
    "data.load_corrupted": _call(
        runs=False,
        edges=False,
        name="fog",
        severity=1,
        kinds={"severity": "count", "seed": "index", "size": "count", "like": "instance"},
    ),
    "models.ImageNetResNet": _call(width=2, kinds={"width": "count"}),
    "models.LeNet5": _call(kinds={"image_size": "sizes"}),
    "models.MLP": _call(widths=(3, 2), kinds={"bias": "flag"}),
    "models.ResNet": _call(depth=8),
    "models.SimpleViT": _call(
        dim=8, depth=1, heads=2, mlp_dim=8, image_size=(8, 8), kinds={"image_size": "sizes"}
    ),
    "models.VGG": _call(
        stages=((2,), (3,)),
        image_size=(8, 8),
        kinds={"stages": "sizes", "image_size": "sizes", "hidden": "sizes or none"},
    ),
    "models.ViT": _call(
        dim=8, depth=1, heads=2, mlp_dim=8, image_size=(8, 8), kinds={"image_size": "sizes"}
    ),
    "models.WideResNet": _call(depth=10, widening=1),
    "models.build": _call(name="mlp", input_shape=(1, 2, 2), kinds={"input_shape": "sizes"}),
    "monitor.SharpnessMonitor": _call(
        measures=("mean_loss",),
        kinds={"alpha": "orders", "budget": "share", "log": "log", "prefix": "text"},
    ),
    "training.evaluate": _call(model=make(lambda: model().float()), split=make(_image_split)),
    "training.learning_rate_factor": _call(
        step=1, warmup_steps=2, total_steps=4, kinds={"step": "index", "schedule": "choice"}
    ),
    "training.train": _call(
        model=make(lambda: model().float()),
        data=make(_image_split),
        epochs=1,
        progress=False,
        kinds={
            "data": "instance",
            "seed": "index",
            "augment": "flag or function",
            "optimizer": "function",
            "validation": "instance",
            "checkpoint": "path",
            "schedule": "choice",
            "max_norm": "positive",
            "label_smoothing": "probability",
            "autocast": "dtype",
            "lr": "nonnegative",
            "momentum": "nonnegative",
            "weight_decay": "nonnegative",
        },
    ),
    # experiments, plotting
    "experiments.Study": _call(
        name="example",
        question="Is it so?",
        grid=make(lambda: lambda profile: []),
        run=make(lambda: lambda configuration, context: {}),
        kinds={
            "name": "text",
            "question": "text",
            "tolerance": "nonnegative",
            "grid": "function",
            "cost": "function",
            "trial": "function",
        },
    ),
    "experiments.Cost": _call(
        kind="alike", kinds={"kind": "text", "unit": "text", "steps": "count", "size": "positive"}
    ),
    "experiments.Allotment": _call(
        kinds={"cpus": "count", "gpus": "nonnegative", "memory": "count"}
    ),
    "experiments.merge": _call(other="nowhere", runs=False, kinds={"other": "path"}),
    "experiments.records_of": _call(study="entropy_facts"),
    "experiments.resolve": _call(
        namespace=make(lambda: {"profile": "smoke"}),
        profiles={"smoke": {}},
        kinds={"namespace": "mapping", "profiles": "mapping", "allowed": "strings"},
    ),
    "experiments.run_study": _call(
        study="entropy_facts",
        profile="smoke",
        runs=False,
        kinds={"device": "experiment's device", "rerun": "strings", "study": "choice"},
    ),
    "ledger.show_verdicts": _call(
        chapter="05_one_linearization",
        profile="smoke",
        kinds={"chapter": "anything named", "root": "anything named", "first": "strings"},
    ),
    "ledger.verdicts": _call(
        claims=make(list),
        kinds={"claims": "instances", "anchor": "anything named", "paper": "choice"},
    ),
    "plotting.book_style": _call(),
    "plotting.landing_figure": _call(
        eigenvalues={"a": [1.0, 2.0]},
        dimensions={"a": 3},
        kinds={
            "eigenvalues": "mapping of values",
            "dimensions": "mapping of values",
            "narrow": "flag",
        },
    ),
    "plotting.landing_record": _call(),
    "plotting.layer_styles": _call(layers=["a", "b"], kinds={"layers": "strings"}),
    "plotting.main": _call(runs=False, kinds={"arguments": "free"}),
    "plotting.plot_curves": _call(
        x=[1.0, 2.0], curves={"a": [1.0, 2.0]}, kinds={"curves": "mapping of values"}
    ),
    "plotting.plot_layer_profile": _call(values={"a": 1.0}, kinds={"values": "mapping of numbers"}),
    "plotting.plot_layer_spectra": _call(
        eigenvalues={"a": [2.0, 1.0]},
        dimensions={"a": 3},
        rank_bound=2,
        kinds={"eigenvalues": "mapping of values", "dimensions": "mapping of values"},
    ),
    "plotting.write_landing": _call(
        runs=False,
        path="landing.png",
        record=None,
        kinds={"path": "path", "record": "instance", "narrow": "flag"},
    ),
    # chapter
    "chapter.Comparisons": _call(),
    "chapter.batch_closure": _call(
        network=make(model),
        optimizer=make(lambda: torch.optim.SGD(model().parameters(), lr=0.1)),
        kinds={"network": "unfinished model", "inputs": "samples", "targets": "samples"},
    ),
    "chapter.distance": _call(
        one=make(inputs), other=make(inputs), kinds={"one": "result", "other": "result"}
    ),
    "chapter.follow_quadratic": _call(
        make=make(lambda: lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
        start=make(lambda: _vector(1.0, 2.0, 3.0, 4.0)),
        kinds={"start": "tensor", "minimum": "real"},
    ),
    "chapter.number": _call(value=0.5, kinds={"value": "one number"}),
    # A call that succeeds would change settings of the whole process.
    "chapter.setup": _call(
        runs=False,
        edges=False,
        namespace=make(lambda: {"profile": "smoke"}),
        profiles={"smoke": {}},
        kinds={
            "namespace": "mapping",
            "profiles": "mapping",
            "allowed": "strings",
            "threads": "count",
            "gpu": "flag",
        },
    ),
    "chapter.table": _call(header=["a", "b"], rows=make(lambda: [("x", 1.0)])),
    "chapter.take_steps": _call(
        edges=False,
        make=make(lambda: lambda network: torch.optim.SGD(network.parameters(), lr=0.1)),
        network=make(model),
        kinds={"network": "unfinished model", "inputs": "samples", "targets": "samples"},
    ),
}


# --- what is not --------------------------------------------------------------------------------

KINDS: dict[str, str] = {
    **dict.fromkeys(("model",), "model"),
    **dict.fromkeys(("data", "train", "test"), "data"),
    **dict.fromkeys(("loss",), "loss"),
    **dict.fromkeys(("forward",), "function"),
    **dict.fromkeys(("memory_budget",), "budget"),
    **dict.fromkeys(("seed",), "seed"),
    **dict.fromkeys(("alpha", "low", "high"), "order"),
    **dict.fromkeys(("parameters", "layers", "stream"), "names"),
    **dict.fromkeys(
        (
            "rho",
            "remainder",
            "centre_distance",
            "damping",
            "round_off",
            "weight_decay",
            "minimum_loss",
            "distance",
            "offset_",
            "mu",
            "fourth_derivative",
            "constant",
            "strength",
            "displacement",
            "change",
        ),
        "nonnegative",
    ),
    **dict.fromkeys(("eigenvalues", "x", "y", "gap", "perturbed_losses", "step_sizes"), "values"),
    **dict.fromkeys(("gradient",), "values"),
    **dict.fromkeys(
        (
            "version",
            "sharing",
            "norm",
            "method",
            "policy",
            "average",
            "distribution",
            "which",
            "scaled",
            "form",
            "labels",
            "variant",
            "mode",
            "ascent",
            "name",
            "activation",
            "shortcut",
            "stem",
            "init",
            "engine",
            "profile",
            "study",
            "head",
            "layer",
            "paper",
            "anchor",
            "chapter",
            "root_",
        ),
        "choice",
    ),
    **dict.fromkeys(
        (
            "terms",
            "linearization",
            "tridiagonal",
            "quadrature",
            "deflation",
            "generator",
            "axes",
            "record",
            "split",
        ),
        "instance",
    ),
    **dict.fromkeys(("known",), "truths"),
    **dict.fromkeys(("params",), "parameters"),
    **dict.fromkeys(
        (
            "dimension",
            "jobs",
            "steps",
            "probes",
            "products",
            "max_products",
            "max_dense",
            "batch_size",
            "k",
            "n",
            "max_steps",
            "chunk_size",
            "probes_at_once",
            "rank",
            "draws",
            "count",
            "num_rows",
            "max_iterations",
            "max_bisections",
            "permutations",
            "period",
            "iterations",
            "samples",
            "in_channels",
            "num_classes",
            "max_parameters",
            "epochs",
            "checkpoint_every",
            "every",
            "train_size",
            "test_size",
            "depth",
            "total_steps",
            "columns",
            "rank_bound",
            "widening",
            "patch",
            "dim",
            "heads",
            "mlp_dim",
        ),
        "count",
    ),
    **dict.fromkeys(
        (
            "sample",
            "index",
            "output",
            "reference",
            "competitor",
            "padding",
            "plain_steps",
            "plain_epochs",
            "warmup_steps",
            "series",
        ),
        "index",
    ),
    **dict.fromkeys(("device",), "device"),
    **dict.fromkeys(("dtype",), "dtype"),
    **dict.fromkeys(
        (
            "inputs",
            "targets",
            "hessian",
            "before",
            "after",
            "jacobian",
            "weight",
            "points",
            "gradients",
            "perturbation",
            "perturbations",
            "starts",
            "like",
            "grid",
            "theta_",
            "sigma",
            "sigma_input",
            "cotangent",
            "outputs",
            "vectors",
            "curvature",
        ),
        "tensor",
    ),
    **dict.fromkeys(
        (
            "operator",
            "function",
            "inverse",
            "transformation",
            "base",
            "no_sync",
            "on_epoch",
            "on_step",
            "optimizer",
        ),
        "function",
    ),
    **dict.fromkeys(
        (
            "tolerance",
            "width",
            "radius",
            "beta",
            "lam",
            "trace",
            "loss_range",
            "smallest",
            "largest",
            "factor",
            "first_ratio",
            "initial_step",
            "tau",
            "eta0",
            "eta",
            "p",
            "max_sigma",
            "small",
        ),
        "positive",
    ),
    **dict.fromkeys(("epsilon", "delta", "level", "accuracy_drop"), "probability"),
    **dict.fromkeys(
        (
            "bias",
            "keep_basis",
            "positive_semidefinite",
            "input_jacobians",
            "output_jacobians",
            "all_parameters",
            "verify",
            "with_targets",
            "per_batch",
            "replacement",
            "squared",
            "two_sided",
            "adaptive",
            "printed",
            "sharper",
            "log",
            "full_batch",
            "flip",
            "normalize",
            "progress",
            "batch_norm",
            "shifted_patches",
            "locality",
        ),
        "flag",
    ),
    **dict.fromkeys(
        (
            "population_risk",
            "training_risk",
            "log_volume",
            "sharpness",
            "average_",
            "limit",
            "population_loss",
            "perturbed_population_loss",
            "excess_loss",
            "step",
            "offset",
            "validation_threshold",
            "left",
            "right",
        ),
        "real",
    ),
    **dict.fromkeys(("max_norm", "max_radius", "theta", "theta0", "q"), "positive or infinite"),
    **dict.fromkeys(("sizes", "widths", "hidden"), "sizes"),
    **dict.fromkeys(("store", "root", "path"), "path"),
    **dict.fromkeys(("warmup_epochs", "absolute_tolerance"), "nonnegative"),
    "blocks": "tensors",
    "tensors": "tensors",
    "devices": "devices",
    "targets_": "tensor",
    "groups": "labels",
    "parts": "parts",
    "module": "instance",
    "allotment": "instance",
    "input_shape": "sizes",
    "factors": "mapping of numbers",
    "rho_rule": "choice or number",
    "dtype_": "dtype",
    "measures": "names",
    "lr": "base option",
    "momentum": "base option",
    "others": "mappings",
    "label": "text",
    "statement": "text",
    "source": "text",
    "assumptions": "mapping",
    "options": "unknown option",
    "base_options": "unknown option",
    "validation": "real",
    "strict": "flag",
    "trained": "flag",
    "round_off": "nonnegative",
    "needs": "strings",
    "run": "function",
    "question": "text",
    "time_budget": "positive",
    "make": "function",
    "header": "strings",
    "rows": "rows",
    "spec": "format",
}

_JUNK: list[Any] = [None, "x", b"x", [1], {"a": 1}, object(), torch.ones(2), 1j]
_NO_NUMBER = [None, "a", "{", [0.5], {"a": 1}, True, torch.ones(2), 1j, object()]
_NO_REAL = [*_NO_NUMBER, NAN]


def _integers(rng: random.Random, below: int) -> list[Any]:
    drawn = [-rng.randrange(2, 2000) for _ in range(2)]
    return [*_NO_REAL, INF, 1.5, HUGE, -HUGE, below, *drawn]


def _tensors(valid: torch.Tensor) -> tuple[list[Any], list[Any]]:
    wrong: list[Any] = [None, 1.0, "x", object(), valid.unsqueeze(0).unsqueeze(0), valid[:0]]
    wrong += [valid.to(torch.complex64)]
    if valid.is_floating_point():
        wrong += [valid * NAN, valid.to("meta")]
    return wrong, [valid.float(), valid.long(), valid > 0, valid.double() * 1e30, -valid]


def bad_values(kind: str, valid: Any, rng: random.Random) -> tuple[list[Any], list[Any]]:
    """Return values that must be refused, and values that may be taken or refused."""
    if kind == "count":
        return _integers(rng, 0), [1]
    if kind == "index":
        return _integers(rng, -1), [0, 10**6]
    if kind == "seed":
        return [*_NO_REAL, INF, 1.5, HUGE, -HUGE], [2**63]
    if kind == "budget":
        return [*_NO_REAL, INF, -5, 0, 0.5, -rng.randrange(1, 10**9)], [HUGE]
    if kind == "any length":
        return [*_NO_NUMBER, -1], [NAN, INF, 0]
    if kind == "positive":
        return [*_NO_REAL, INF, 0, -1, -rng.random()], [HUGE, 1e-300]
    if kind == "nonnegative":
        return [*_NO_REAL, INF, -1, -rng.random()], [0, HUGE, 1e-300]
    if kind == "positive or infinite":
        return [*_NO_REAL, -1, -rng.random()], [INF, 0, HUGE]
    if kind == "real":
        return [*_NO_REAL], [INF, 0, -1, HUGE, -HUGE, rng.uniform(-5, 5)]
    if kind == "probability":
        return [*_NO_REAL, INF, 1.5, -1, HUGE, -rng.random()], [1e-300, 0, 1]
    if kind == "order":
        return [*_NO_REAL, INF, HUGE, 0, -1, -rng.random()], [1, 1e-3, 1e3]
    if kind == "any order":
        return [*_NO_REAL, HUGE, -1, -rng.random()], [0, 1, INF]
    if kind == "orders":
        nested = [
            (),
            (0.5, "a"),
            (NAN,),
            (0.5, -1.0),
            (HUGE,),
            None,
            "ab",
            {"a": 1},
            object(),
            True,
        ]
        return [*nested, NAN, 0, -1.5, HUGE, torch.ones(2, 2)], [2.0, (0.5, 0.5), (1,)]
    if kind == "flag":
        return [
            "yes",
            0,
            1,
            torch.ones(2),
            [True],
            object(),
            *([] if valid is None else [None]),
        ], []
    if kind == "choice":
        known = ["nonsense", "", b"x", 1, True, ["x"], object(), NAN, "../../x", torch.ones(2)]
        return [*known, None], []
    if kind == "choice or names":
        return ["nonsense", "", 1, True, object(), NAN, ["nonsense"], [], [1], None], []
    if kind == "choice or number":
        return ["nonsense", "", True, object(), NAN, -1, ["x"]], [INF]
    if kind == "names":
        wrong = ["nonsense", "0.weight", ["nonsense"], [], [1], 5, True, {"a": 1}, [None], object()]
        return wrong, []
    if kind == "strings":
        return ["x", [1], 5, True, {"a": 1}, [None], object(), None], []
    if kind == "anything named":
        return [1, ["x"], object(), torch.ones(2)], ["nonsense", ""]
    if kind == "one number":
        return [*_NO_NUMBER], [NAN, INF, 0, HUGE]
    if kind == "result":
        return [None, "x", object(), [1.0], {}, {"a": 1.0}, torch.ones(2), torch.tensor(1j)], []
    if kind == "format":
        return [None, 5, "x", ".4d", "f", "", object(), [".4f"], {"nonsense": ".4f"}], [".2e"]
    if kind == "rows":
        return [None, 5, "ab", ["ab"], [()], [5], [("x",)], [("x", object())], object()], [[], {}]
    if kind == "text":
        return [None, 1, ["x"], object()], []
    if kind == "instance":
        return [*_JUNK], []
    if kind == "instances":
        return ["x", 5, [5], object()], []
    if kind == "share":
        return [0.0, 1.0, -0.1, NAN, "a", [0.1], object()], []
    if kind == "log":
        return [5, "run", [5], object(), torch.ones(2)], [[], [print]]
    if kind == "function":
        return [5, "f", [len], object(), torch.ones(2), *([] if valid is None else [None])], []
    if kind == "flag or function":
        return [None, 5, "flip", [len], object(), torch.ones(2)], []
    if kind == "device":
        return [None, "warp", 5, object(), "", 1.5, "cuda:77"], []
    if kind == "experiment's device":
        return [None, "warp", 1.5, object(), "cuda:77"], []
    if kind == "devices":
        return [None, ["warp"], 5, [5], "cpu", object()], []
    if kind == "dtype":
        return [None, "float32", torch.int64, torch.complex64, 5, object()], []
    if kind == "path":
        return [5, b"a", "", "a\0b", object(), ["a"]], []
    if kind == "truths":
        return [{"nonsense": True}, 5, "x", ["a"], object(), {1: True}], [{}]
    if kind == "values":
        wrong = [None, 1.0, "12", [], [NAN], [INF], ["a"], [None], [True], object(), {"a": 1}]
        return [*wrong, torch.tensor([1j]), torch.ones(3).to("meta")], [
            torch.zeros(3),
            [1, 2],
            torch.ones(3) > 0,
            [HUGE, 1.0, 2.0, 3.0],
            [-1.0, 2.0, 3.0],
        ]
    if kind == "sizes":
        wrong = [None, 5, "12", [], [0], [1.5], ["a"], [-1, 5], [True], object(), {"a": 1}]
        return [*wrong, [HUGE], torch.ones(2, 2)], []
    if kind == "sizes or none":
        wrong, edge = bad_values("sizes", valid, rng)
        return [value for value in wrong if value != []], [*edge, ()]
    if kind == "labels":
        return [5, "x", object(), [0], [[0, 1]]], [["a", "a", "b", "b"], torch.tensor([0, 0, 1, 1])]
    if kind == "mapping":
        return [None, 5, "x", ["a"], {1: 2}, object()], []
    if kind == "mapping of numbers":
        wrong = [None, 5, "x", ["a"], {1: 2.0}, {"0": "a"}, {"0": NAN}, {"a": None}, object()]
        return wrong, []
    if kind == "mapping of values":
        wrong = [None, 5, "x", ["a"], {1: [2.0]}, {"a": "b"}, {"a": None}, object()]
        return wrong, [{"a": 5}, {}]
    if kind == "mappings":
        return [5, "x", [5], [{"nonsense": 1.0}], object()], [()]
    if kind == "tensors":
        return [None, 5, "x", [5], ["a"], [None], object(), torch.ones(2, 2)], [[]]
    if kind == "parts":
        return [
            None,
            5,
            "x",
            {},
            (),
            {"a": torch.ones(2), "b": torch.ones(3)},
            {"a": 5},
            (torch.tensor(1.0),),
            object(),
        ], []
    if kind == "samples":
        return [None, 5, "x", torch.tensor(1.0), torch.ones(N + 1, 1), [[1.0]], object()], []
    if kind == "parameters":
        return [
            None,
            5,
            "x",
            [],
            [5],
            [None],
            [("a", 5)],
            [{}],
            [{"params": 5}],
            [{"params": ["a"]}],
            {"a": 1},
            torch.ones(2),
            object(),
        ], []
    if kind == "base option":
        return ["a", -1.0, [1], object()], []
    if kind == "unknown option":
        return [], []
    if kind == "tensor":
        return _tensors(valid)
    if kind == "jacobian":
        wrong, edge = _tensors(valid)
        return [*wrong[:4], *wrong[5:], valid[0]], edge
    if kind == "images":
        wrong, edge = _tensors(valid)
        return [value for value in wrong if not torch.is_tensor(value) or value.ndim != 4], edge
    if kind == "corrupted images":
        wrong, edge = bad_values("images", valid, rng)
        unfit = [valid[:, :2], valid[:, :, :7], valid + 1, valid - 1, (255 * valid).byte()]
        return [*wrong, *unfit], edge
    if kind == "any tensor":
        wrong, edge = _tensors(valid)
        return [*wrong[:4], *wrong[5:]], edge
    if kind == "loss":
        unknown = ["nonsense", "", None, 5, True, ["cross_entropy"], nn.MSELoss, object()]
        return [*unknown, nn.CrossEntropyLoss(reduction="sum")], [nn.MSELoss()]
    if kind == "model":
        meta = nn.Linear(INPUTS, CLASSES, device="meta")
        return [None, "m", 5, nn.Linear, [model()], lambda x: x, meta, nn.LazyLinear(3)], [
            nn.Identity(),
            model().half(),
            model().float(),
            nn.Linear(INPUTS + 1, CLASSES),
        ]
    if kind == "unfinished model":
        wrong, edge = bad_values("model", valid, rng)
        return [w for w in wrong if not isinstance(w, nn.Module)], edge
    if kind == "data":
        return _bad_data(valid)
    if kind == "read data":  # the measure checks what they hold
        wrong, edge = _bad_data(valid)
        return [w for w in wrong if not _pair_of(w)], [*edge, *filter(_pair_of, wrong)]
    if kind == "source of data":
        x, y = valid
        return [None, x, 5, "x", {}, object(), iter([(x, y)])], _bad_data(valid)[1]
    if kind == "free":
        return [], []
    raise KeyError(kind)


def _pair_of(value: Any) -> bool:
    """Whether it is inputs and as many targets, one at least."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(part, torch.Tensor) and len(part) for part in value)
        and len(value[0]) == len(value[1])
        and not value[0].is_complex()
    )


def _bad_data(valid: tuple[torch.Tensor, torch.Tensor]) -> tuple[list[Any], list[Any]]:
    x, y = valid
    wrong: list[Any] = [None, x, 5, "x", [], (), {}, object(), [5], (x, None), (None, y), (x,)]
    wrong += [(x, y, y), (x[:4], y), (x, y[:4]), (x[:0], y[:0]), (x * NAN, y), (x / 0, y)]
    wrong += [iter([(x, y)]), (i for i in [(x, y)]), (x.to(torch.complex128), y)]
    # Data that some model or loss may accept.
    edge = [(x, y > 0), (x, y + 5), (x, y - 1), (x, y.double()), (x, y.unsqueeze(1)), (x, x)]
    edge += [(x.float(), y), (x.long(), y), (x.half(), y), (x[:, :2], y), (x.unsqueeze(2), y)]
    edge += [(x[:1], y[:1]), [(x[:2], y[:2]), (x[2:], y[2:])], (x[0], y)]
    return wrong, edge


OTHER_NAMES = {
    # A loss is judged together with the targets, and a size together with the object that has it.
    "loss": ("targets",),
    "inputs": ("data", "targets", "model"),
    "dimension": ("operator", "blocks"),
    "num_rows": ("blocks",),
    "warmup_steps": ("total_steps",),
    "batch_size": ("inputs",),
    "sample": ("competitor",),
    "data": ("inputs", "targets", "outputs", "model", "labels", "sample", "batch_size"),
    "model": ("inputs", "outputs", "layers", "parameters", "layer", "factors"),
    "train": ("data", "inputs", "targets", "model"),
    "test": ("data", "inputs", "targets", "model"),
}


def names_it(message: str, argument: str) -> bool:
    """Whether a sentence has the argument's name as a word."""
    words = set("".join(c if c.isalnum() or c == "_" else " " for c in message).split())
    return bool(words & {argument, *OTHER_NAMES.get(argument, ())})


def valid_arguments(name: str, function: Any) -> dict[str, Any]:
    """Return the arguments of the valid call, new at each time."""
    call = CALLS[name]
    signature = inspect.signature(function)
    chosen = {key: maker() for key, maker in call.valid.items()}
    for parameter in signature.parameters.values():
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and parameter.name not in chosen:
            chosen[parameter.name] = VALID[parameter.name]()
    return chosen


def cases(name: str, function: Any, rng: random.Random) -> Iterator[tuple[str, Any, bool]]:
    """Yield an argument, a bad value for it, and whether it must be refused."""
    call = CALLS[name]
    for parameter in inspect.signature(function).parameters.values():
        argument = parameter.name
        kind = call.kinds.get(argument) or KINDS[argument]
        maker = call.valid.get(argument) or VALID.get(argument)
        valid = maker() if maker else parameter.default
        if kind == "tensor" and not isinstance(valid, torch.Tensor):
            valid = _vector(1.0, 2.0)
        wrong, edge = bad_values(kind, valid, rng)
        for value in wrong:
            if value is None and parameter.default is None:
                continue
            yield argument, value, True
        for value in edge if call.edges else ():
            yield argument, value, False
    if "lr" in call.valid and name.startswith("optim."):
        for value in bad_values("base option", None, rng)[0]:
            yield "lr", value, True
        yield "nonsense", 1, True
