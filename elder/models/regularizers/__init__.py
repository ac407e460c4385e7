"""Regularizers R_θ : images → ℝ. A subclass writes the value; the gradient is derived from it."""

from elder.models.regularizers.base import Prior, Regularizer
from elder.models.regularizers.potentials import Convex, Potential, WeaklyConvex
from elder.models.regularizers.residual import Residual
from elder.models.regularizers.ridge import Ridge
from elder.models.regularizers.total_variation import TotalVariation
from elder.models.regularizers.wrappers import Scaled

__all__ = [
    "Convex",
    "Potential",
    "Prior",
    "Regularizer",
    "Residual",
    "Ridge",
    "Scaled",
    "TotalVariation",
    "WeaklyConvex",
]
