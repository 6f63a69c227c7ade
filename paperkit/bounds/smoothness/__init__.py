r"""Both sides of the SA-SAM paper's statements on smoothness and step sizes.

The paper's step size (equation 5) is :math:`\eta_t = \min\{\|\Delta w_t\| / (c\|\Delta g_t\|),
\sqrt{1 + \delta\theta_{t-1}}\,\eta_{t-1}\}` with :math:`\theta_t = \eta_t/\eta_{t-1}`, c = 2 and
δ = 1. Trajectories are passed as rows: points :math:`w_t` and gradients of the *plain* loss there.
"""

from paperkit.bounds.smoothness.path import (
    gradient_descent_rate,
    local_smoothness,
    smoothness_along_path,
)
from paperkit.bounds.smoothness.stability import stability_edge
from paperkit.bounds.smoothness.steps import (
    curvature_step_range,
    growth_limit,
    step_growth,
    step_lower_bound,
)

__all__ = [
    "curvature_step_range",
    "gradient_descent_rate",
    "growth_limit",
    "local_smoothness",
    "smoothness_along_path",
    "stability_edge",
    "step_growth",
    "step_lower_bound",
]
