r"""Both sides of the Rényi paper's statements, printed, corrected and sharper.

Spectra are passed as *all* eigenvalues of the Hessian, zeros included, because the dimension
matters here. Negative eigenvalues, for which the paper's statements have no meaning, enter with
their magnitude, and the bound is then not certified. Logarithms are natural, entropies in nats.

A hypothesis that a function cannot check from its arguments (that the loss lies in [0, 1], that a
prior did not see the sample) is an assumption with the value None; ``known`` supplies the answer by
name.
"""

from paperkit.bounds.renyi.determinant import determinant_chain, sum_of_logarithms
from paperkit.bounds.renyi.ellipsoids import (
    ellipsoid_divergence,
    ellipsoid_mean,
    ellipsoid_posterior,
    ellipsoid_posterior_entropy,
)
from paperkit.bounds.renyi.entropy import convexity, decrease_in_order, power_sum, trace_form
from paperkit.bounds.renyi.isolated_minima import (
    isolated_minimum,
    isolated_minimum_entropy,
    neighbourhood_rise,
)
from paperkit.bounds.renyi.layer_scaling import layer_scaling_invariance
from paperkit.bounds.renyi.layers import (
    block_decomposition,
    coupling_perturbation,
    coupling_perturbation_below_one,
    layers_are_uniform,
    layerwise_consequence,
    layerwise_lower_bounds,
    pinching,
    power_sum_range,
)
from paperkit.bounds.renyi.regularizer import (
    first_order_regularizer,
    gradient_entropy,
    gradient_power_ratio,
    gradient_power_ratio_derivative,
    gradient_power_ratio_range,
    regularized_loss,
    regularizer_descent,
    renyi_perturbation,
)
from paperkit.bounds.renyi.translation import (
    haar_matrices,
    haar_relative_flatness,
    haar_translation,
    perturbation_translation,
    translated_losses,
)

__all__ = [
    "block_decomposition",
    "convexity",
    "coupling_perturbation",
    "coupling_perturbation_below_one",
    "decrease_in_order",
    "determinant_chain",
    "ellipsoid_divergence",
    "ellipsoid_mean",
    "ellipsoid_posterior",
    "ellipsoid_posterior_entropy",
    "first_order_regularizer",
    "gradient_entropy",
    "gradient_power_ratio",
    "gradient_power_ratio_derivative",
    "gradient_power_ratio_range",
    "haar_matrices",
    "haar_relative_flatness",
    "haar_translation",
    "isolated_minimum",
    "isolated_minimum_entropy",
    "layer_scaling_invariance",
    "layers_are_uniform",
    "layerwise_consequence",
    "layerwise_lower_bounds",
    "neighbourhood_rise",
    "perturbation_translation",
    "pinching",
    "power_sum",
    "power_sum_range",
    "regularized_loss",
    "regularizer_descent",
    "renyi_perturbation",
    "sum_of_logarithms",
    "trace_form",
    "translated_losses",
]
