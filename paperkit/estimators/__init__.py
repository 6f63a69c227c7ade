"""Every measure of the four papers, one file a family."""

from paperkit.estimators.adaptive_sharpness import (
    AdaptiveSharpness,
    adaptive_sharpness,
    average_adaptive_sharpness,
)
from paperkit.estimators.baselines import (
    GeneralizationGap,
    generalization_gap,
    mean_exponential_loss,
    mean_loss,
)
from paperkit.estimators.deflated import deflated_renyi_sharpness
from paperkit.estimators.entropy import EntropyEstimate, renyi_entropy, renyi_entropy_estimate
from paperkit.estimators.fisher_rao import fisher_rao_norm
from paperkit.estimators.gauss_newton_trace import gauss_newton_trace, layer_gauss_newton_traces
from paperkit.estimators.hessian import (
    HessianDensity,
    TopEigenvalues,
    hessian_top_eigenvalues,
    hessian_trace,
    spectral_density,
)
from paperkit.estimators.information_geometry import (
    InformationGeometricSharpness,
    information_geometric_sharpness,
)
from paperkit.estimators.layer_results import LayerResults
from paperkit.estimators.local_dimension import local_dimension, local_dimensions
from paperkit.estimators.measure import measure
from paperkit.estimators.pac_bayes import PacBayesFlatness, pac_bayes_flatness
from paperkit.estimators.parameter_norm import parameter_norm, weight_names
from paperkit.estimators.passes import Chunk, PassMeasure, Problem
from paperkit.estimators.plan import CostWarning
from paperkit.estimators.rangamani import rangamani_sharpness
from paperkit.estimators.registry import DEFAULT_MEASURES, MEASURES, PASS_MEASURES
from paperkit.estimators.relative_flatness import relative_flatness
from paperkit.estimators.renyi import (
    RenyiSharpness,
    global_renyi_sharpness,
    renyi_sharpness,
)
from paperkit.estimators.report import Report
from paperkit.estimators.result import Measurement
from paperkit.estimators.sensitivity import (
    input_invariant_local_sensitivity,
    maximum_local_sensitivity,
    network_maximum_local_sensitivity,
    normalized_maximum_local_sensitivity,
)
from paperkit.estimators.singular_values import singular_values
from paperkit.estimators.spectra import LayerSpectrum, layer_spectra
from paperkit.estimators.takeuchi import takeuchi_information_criterion
from paperkit.estimators.volume import log_volume, log_volumes, network_log_volume
from paperkit.estimators.worst_case import asam_sharpness, sam_sharpness
from paperkit.linearize.weights import LeftOutWarning

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "PASS_MEASURES",
    "AdaptiveSharpness",
    "Chunk",
    "CostWarning",
    "EntropyEstimate",
    "GeneralizationGap",
    "HessianDensity",
    "InformationGeometricSharpness",
    "LayerResults",
    "LayerSpectrum",
    "LeftOutWarning",
    "Measurement",
    "PacBayesFlatness",
    "PassMeasure",
    "Problem",
    "RenyiSharpness",
    "Report",
    "TopEigenvalues",
    "adaptive_sharpness",
    "asam_sharpness",
    "average_adaptive_sharpness",
    "deflated_renyi_sharpness",
    "fisher_rao_norm",
    "gauss_newton_trace",
    "generalization_gap",
    "global_renyi_sharpness",
    "hessian_top_eigenvalues",
    "hessian_trace",
    "information_geometric_sharpness",
    "input_invariant_local_sensitivity",
    "layer_gauss_newton_traces",
    "layer_spectra",
    "local_dimension",
    "local_dimensions",
    "log_volume",
    "log_volumes",
    "maximum_local_sensitivity",
    "mean_exponential_loss",
    "mean_loss",
    "measure",
    "network_log_volume",
    "network_maximum_local_sensitivity",
    "normalized_maximum_local_sensitivity",
    "pac_bayes_flatness",
    "parameter_norm",
    "rangamani_sharpness",
    "relative_flatness",
    "renyi_entropy",
    "renyi_entropy_estimate",
    "renyi_sharpness",
    "sam_sharpness",
    "singular_values",
    "spectral_density",
    "takeuchi_information_criterion",
    "weight_names",
]
