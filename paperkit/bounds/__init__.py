"""Both sides of identities and inequalities of the four papers, with what they assume."""

from paperkit.bounds import compression, information_geometry, renyi, smoothness
from paperkit.bounds.statement import Approximation, Identity, Inequality, Statement

__all__ = [
    "Approximation",
    "Identity",
    "Inequality",
    "Statement",
    "compression",
    "information_geometry",
    "renyi",
    "smoothness",
]
