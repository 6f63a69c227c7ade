r"""Both sides of the SA-SAM paper's statements on smoothness and step sizes.

The paper's step size (equation 5) is :math:`\eta_t = \min\{\|\Delta\theta_t\| / (c\|\Delta
g_t\|), \sqrt{1 + \gamma\vartheta_{t-1}}\,\eta_{t-1}\}` with the ratio :math:`\vartheta_t =
\eta_t/\eta_{t-1}` (the paper's θ), c = 2 and γ = 1 (the paper's δ). Trajectories are passed as
rows: points :math:`\theta_t` (the paper's w) and gradients of the *plain* loss there.
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
