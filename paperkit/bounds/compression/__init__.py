r"""Both sides of the compression paper's statements, as printed and as they can be proved.

All of them rest on one observation. Where a layer :math:`z = Wx` is the only reader of x and its
weight acts once, with :math:`B = \partial f/\partial z`,

.. math:: \frac{\partial f}{\partial x} = B W, \qquad
    \Bigl\|\frac{\partial f}{\partial W}\Bigr\|_F = \|B\|_F \|x\|
    \quad\Rightarrow\quad
    \Bigl\|\frac{\partial f}{\partial x}\Bigr\|_2 \le
    \frac{\|W\|_2}{\|x\|}\,\Bigl\|\frac{\partial f}{\partial W}\Bigr\|_F .

A convolution breaks the second identity: its gradient is a sum over positions that can cancel. The
paper counts convolutions among the layers of equations 10 and 12, which are false there; so is
equation 11 where the first layer is one. They hold with W replaced by
the layer's linear map A and the gradient by :math:`\|B\|_F\|x\|`, the gradient in A's entries
(``sharing="operator"``), or divides by the patches' smallest singular value
(:func:`conditioned_patches_bound`). Whether a hypothesis holds is decided from the recorded
tensors; every :class:`~paperkit.bounds.Inequality` carries the answer.

The sharpness S is the Gauss–Newton trace of ½‖f − y‖² averaged over samples, with which the
inequalities hold at any parameters. The trace of the Hessian may take its place where it is no
smaller, which the bound checks; at interpolation they are equal. Volumes are compared by their
logarithms.
"""

from paperkit.bounds.compression.adaptive import (
    average_sharpness_bound,
    input_invariant_bounds,
    normalized_sharpness_bounds,
    normalized_sharpness_objective,
)
from paperkit.bounds.compression.architectures import conditioned_patches_bound, residual_bounds
from paperkit.bounds.compression.interpolation import (
    InterpolationBounds,
    interpolation_bounds,
    norm_monotonicity,
)
from paperkit.bounds.compression.sensitivities import (
    SensitivityChain,
    matrix_normalized_bound,
    network_sensitivity_bound,
    normalized_sensitivity_bounds,
    sensitivity_bound,
    sensitivity_chain,
)
from paperkit.bounds.compression.stability import input_smoothness_bounds, linear_stability_bounds
from paperkit.bounds.compression.terms import (
    CallTerms,
    CompressionTerms,
    compression_terms,
    compression_terms_from,
)
from paperkit.bounds.compression.together import compression_bounds
from paperkit.bounds.compression.volumes import network_volume_bounds, volume_bounds, volume_lemma

__all__ = [
    "CallTerms",
    "CompressionTerms",
    "InterpolationBounds",
    "SensitivityChain",
    "average_sharpness_bound",
    "compression_bounds",
    "compression_terms",
    "compression_terms_from",
    "conditioned_patches_bound",
    "input_invariant_bounds",
    "input_smoothness_bounds",
    "interpolation_bounds",
    "linear_stability_bounds",
    "matrix_normalized_bound",
    "network_sensitivity_bound",
    "network_volume_bounds",
    "norm_monotonicity",
    "normalized_sensitivity_bounds",
    "normalized_sharpness_bounds",
    "normalized_sharpness_objective",
    "residual_bounds",
    "sensitivity_bound",
    "sensitivity_chain",
    "volume_bounds",
    "volume_lemma",
]
