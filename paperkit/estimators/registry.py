"""Every measure that :func:`paperkit.estimators.measure` knows, in the order of a report.

A new measure that shares the pass is a :class:`PassMeasure` at the end of its family's file, and an
entry of :data:`SHARED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paperkit.estimators.adaptive_sharpness import ADAPTIVE_WEIGHT_SHARPNESS, adaptive_sharpness
from paperkit.estimators.baselines import mean_exponential_loss, mean_loss
from paperkit.estimators.fisher_rao import fisher_rao_norm
from paperkit.estimators.gauss_newton_trace import GAUSS_NEWTON_TRACE, LAYER_GAUSS_NEWTON_TRACES
from paperkit.estimators.hessian import hessian_top_eigenvalues, hessian_trace
from paperkit.estimators.information_geometry import INFORMATION_GEOMETRIC_SHARPNESS
from paperkit.estimators.local_dimension import LOCAL_DIMENSION
from paperkit.estimators.pac_bayes import pac_bayes_flatness
from paperkit.estimators.parameter_norm import parameter_norm
from paperkit.estimators.passes import PassMeasure
from paperkit.estimators.rangamani import rangamani_sharpness
from paperkit.estimators.relative_flatness import RELATIVE_FLATNESS
from paperkit.estimators.renyi import RENYI_SHARPNESS
from paperkit.estimators.sensitivity import (
    INPUT_INVARIANT_LOCAL_SENSITIVITY,
    MAXIMUM_LOCAL_SENSITIVITY,
    NETWORK_MAXIMUM_LOCAL_SENSITIVITY,
    NORMALIZED_MAXIMUM_LOCAL_SENSITIVITY,
)
from paperkit.estimators.volume import LOG_VOLUME, NETWORK_LOG_VOLUME
from paperkit.estimators.worst_case import asam_sharpness, sam_sharpness

SHARED: tuple[PassMeasure, ...] = (
    RENYI_SHARPNESS,
    INFORMATION_GEOMETRIC_SHARPNESS,
    LAYER_GAUSS_NEWTON_TRACES,
    GAUSS_NEWTON_TRACE,
    RELATIVE_FLATNESS,
    ADAPTIVE_WEIGHT_SHARPNESS,
    NETWORK_MAXIMUM_LOCAL_SENSITIVITY,
    NETWORK_LOG_VOLUME,
    MAXIMUM_LOCAL_SENSITIVITY,
    NORMALIZED_MAXIMUM_LOCAL_SENSITIVITY,
    INPUT_INVARIANT_LOCAL_SENSITIVITY,
    LOG_VOLUME,
    LOCAL_DIMENSION,
)
"""Measures that share one pass of linearization."""

CHEAP: tuple[Callable[..., Any], ...] = (
    fisher_rao_norm,
    mean_loss,
    mean_exponential_loss,
    parameter_norm,
)
"""Functions of measures with passes of their own, about the cost of one gradient or less."""

COSTLY: tuple[Callable[..., Any], ...] = (
    adaptive_sharpness,
    hessian_trace,
    hessian_top_eigenvalues,
    rangamani_sharpness,
    sam_sharpness,
    asam_sharpness,
    pac_bayes_flatness,
)
"""Functions of measures with many passes of their own."""

BY_NAME: dict[str, PassMeasure | Callable[..., Any]] = {
    **{measure.name: measure for measure in SHARED},
    **{function.__name__: function for function in (*CHEAP, *COSTLY)},
}
"""All of them by name."""

PASS_MEASURES = tuple(measure.name for measure in SHARED)
"""Names of the measures that share one pass of linearization."""

DEFAULT_MEASURES = (*PASS_MEASURES, *(function.__name__ for function in CHEAP))
"""Names of what :func:`paperkit.estimators.measure` computes unless told otherwise."""

MEASURES = tuple(BY_NAME)
"""Names of everything that :func:`paperkit.estimators.measure` knows."""
