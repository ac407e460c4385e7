"""Regularizers R_θ : images → ℝ, and fields in their place. A subclass writes the value; the gradient follows."""

from elder.models.regularizers.base import Prior, Regularizer
from elder.models.regularizers.experts import DenseExperts, Experts, FieldsOfExperts, UntiedExperts
from elder.models.regularizers.icnn import ICNN
from elder.models.regularizers.potentials import (
    Convex,
    DeadZone,
    LogCosh,
    Potential,
    Quadratic,
    Rectified,
    Spline,
    StudentT,
    WeaklyConvex,
)
from elder.models.regularizers.residual import ImplicitResidual, REDPotential, Residual, ScalarPotential
from elder.models.regularizers.ridge import Ridge
from elder.models.regularizers.tdv import TDV
from elder.models.regularizers.total_variation import TotalVariation
from elder.models.regularizers.wrappers import Channelwise, Confined, Scaled, ScaledField, Surrounded

__all__ = [
    "ICNN",
    "TDV",
    "Channelwise",
    "Confined",
    "Convex",
    "DeadZone",
    "DenseExperts",
    "Experts",
    "FieldsOfExperts",
    "ImplicitResidual",
    "LogCosh",
    "Potential",
    "Prior",
    "Quadratic",
    "REDPotential",
    "Rectified",
    "Regularizer",
    "Residual",
    "Ridge",
    "ScalarPotential",
    "Scaled",
    "ScaledField",
    "Spline",
    "StudentT",
    "Surrounded",
    "TotalVariation",
    "UntiedExperts",
    "WeaklyConvex",
]
