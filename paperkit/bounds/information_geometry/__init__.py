r"""Both sides of the information-geometric paper's statements, on small networks.

Everything is written out in float64 from dense Jacobians, apart from the fast routes that are
under test. Where both sides agree only to an order that the ``statement`` names, the function
returns an :class:`~paperkit.bounds.Approximation`. An identity between matrices or vectors is read
off along a random direction, where sides that differ agree with probability zero.
The paper's appendices are in the supplement of the proceedings, which was not at hand: the
statements here under their letters are derived anew.
"""

from paperkit.bounds.information_geometry.fisher import (
    balanced_prediction_expansion,
    class_difference_identity,
    cross_entropy_identity,
    fisher_factor_identity,
    fisher_identity,
    fisher_rank_bound,
    kullback_leibler_expansion,
    logit_gradient_identity,
)
from paperkit.bounds.information_geometry.geometry import (
    FisherGeometry,
    fisher_geometry,
    flat_parameters,
)
from paperkit.bounds.information_geometry.margin import (
    margin_identity,
    margin_length_identity,
    margin_loss_bound,
)
from paperkit.bounds.information_geometry.regularizer import (
    perturbed_loss_expansion,
    stop_gradient_identity,
)
from paperkit.bounds.information_geometry.sharpness import (
    coordinate_invariance,
    expected_sharpness_identity,
    minibatch_identity,
    sharpness_dual_identity,
    sharpness_loss_bound,
    span_identity,
    transformation_invariance,
)
from paperkit.bounds.information_geometry.takeuchi import takeuchi_prediction

__all__ = [
    "FisherGeometry",
    "balanced_prediction_expansion",
    "class_difference_identity",
    "coordinate_invariance",
    "cross_entropy_identity",
    "expected_sharpness_identity",
    "fisher_factor_identity",
    "fisher_geometry",
    "fisher_identity",
    "fisher_rank_bound",
    "flat_parameters",
    "kullback_leibler_expansion",
    "logit_gradient_identity",
    "margin_identity",
    "margin_length_identity",
    "margin_loss_bound",
    "minibatch_identity",
    "perturbed_loss_expansion",
    "sharpness_dual_identity",
    "sharpness_loss_bound",
    "span_identity",
    "stop_gradient_identity",
    "takeuchi_prediction",
    "transformation_invariance",
]
