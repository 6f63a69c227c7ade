"""Matrix-free linear algebra that knows nothing of networks."""

from paperkit.linalg.deflated import DeflatedQuadrature, deflated_quadrature
from paperkit.linalg.density import SpectralDensity, spectral_density
from paperkit.linalg.eigenpairs import Eigenpairs, top_eigenpairs
from paperkit.linalg.gram import Spectrum, gram_spectrum
from paperkit.linalg.lanczos import Lanczos, Tridiagonal, lanczos
from paperkit.linalg.operator import FunctionOperator, SymmetricOperator, as_operator
from paperkit.linalg.probes import draw_probes
from paperkit.linalg.quadrature import Estimate, SpectralQuadrature, stochastic_lanczos_quadrature
from paperkit.linalg.rules import Rule, averaged_rule, gauss_rule, radau_rule
from paperkit.linalg.spectral_functions import SpectralFunction, power, t_log_t
from paperkit.linalg.traces import (
    Deflation,
    TraceEstimate,
    hutch_plus_plus,
    hutchinson,
    krylov_deflation,
    xtrace,
)
from paperkit.memory import MemoryBudgetError

__all__ = [
    "DeflatedQuadrature",
    "Deflation",
    "Eigenpairs",
    "Estimate",
    "FunctionOperator",
    "Lanczos",
    "MemoryBudgetError",
    "Rule",
    "SpectralDensity",
    "SpectralFunction",
    "SpectralQuadrature",
    "Spectrum",
    "SymmetricOperator",
    "TraceEstimate",
    "Tridiagonal",
    "as_operator",
    "averaged_rule",
    "deflated_quadrature",
    "draw_probes",
    "gauss_rule",
    "gram_spectrum",
    "hutch_plus_plus",
    "hutchinson",
    "krylov_deflation",
    "lanczos",
    "power",
    "radau_rule",
    "spectral_density",
    "stochastic_lanczos_quadrature",
    "t_log_t",
    "top_eigenpairs",
    "xtrace",
]
