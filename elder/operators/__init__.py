"""Linear operators, noise and data fidelity: all that is known of a measurement, and nothing of networks."""

from elder.operators.acquisition import Acquisition, InverseProblem, Scene
from elder.operators.base import LinearOperator
from elder.operators.blur import CircularBlur, Deblurring, Downsampling, SuperResolution
from elder.operators.diffraction import DiffractionTomography, IntensityDiffraction
from elder.operators.elementary import (
    BlockInpainting,
    ComplexImage,
    Denoising,
    Fourier,
    Identity,
    Inpainting,
    Mask,
    PixelMask,
)
from elder.operators.fidelity import DataFidelity, LeastSquares
from elder.operators.kernels import (
    DiagonalKernel,
    GaussianKernel,
    Kernel,
    KernelFile,
    MotionKernel,
    UniformKernel,
)
from elder.operators.masks import (
    EquispacedFractionMask,
    EquispacedMask,
    MagicFractionMask,
    MagicMask,
    MaskFunction,
    RandomMask,
)
from elder.operators.mri import CartesianMRI, FourierSampling, RealSampling, Sensitivity, multi_coil, single_coil
from elder.operators.noise import Gaussian, Noise, Poisson, RelativeGaussian
from elder.operators.radon import Radon, Tomography
from elder.operators.sampling import MaskFile, RadialMask, SamplingMask

__all__ = [
    "Acquisition",
    "BlockInpainting",
    "CartesianMRI",
    "CircularBlur",
    "ComplexImage",
    "DataFidelity",
    "Deblurring",
    "Denoising",
    "DiagonalKernel",
    "DiffractionTomography",
    "Downsampling",
    "EquispacedFractionMask",
    "EquispacedMask",
    "Fourier",
    "FourierSampling",
    "Gaussian",
    "GaussianKernel",
    "Identity",
    "Inpainting",
    "IntensityDiffraction",
    "InverseProblem",
    "Kernel",
    "KernelFile",
    "LeastSquares",
    "LinearOperator",
    "MagicFractionMask",
    "MagicMask",
    "Mask",
    "MaskFile",
    "MaskFunction",
    "MotionKernel",
    "Noise",
    "PixelMask",
    "Poisson",
    "RadialMask",
    "Radon",
    "RandomMask",
    "RealSampling",
    "RelativeGaussian",
    "SamplingMask",
    "Scene",
    "Sensitivity",
    "SuperResolution",
    "Tomography",
    "UniformKernel",
    "multi_coil",
    "single_coil",
]
