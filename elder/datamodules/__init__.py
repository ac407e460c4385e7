"""Data modules: where scenes come from, and the step from a scene to an inverse problem."""

from elder.datamodules.bundled import BundledMRI, BundledParallelMRI
from elder.datamodules.bundled_images import BundledImages
from elder.datamodules.ct_files import Dicom, LoDoPaB
from elder.datamodules.fastmri import FastMRI
from elder.datamodules.images import BSD, Images
from elder.datamodules.phantoms import Cells, Ellipses, SheppLogan
from elder.datamodules.volume_files import ComplexStack, Nifti

__all__ = [
    "BSD",
    "BundledImages",
    "BundledMRI",
    "BundledParallelMRI",
    "Cells",
    "ComplexStack",
    "Dicom",
    "Ellipses",
    "FastMRI",
    "Images",
    "LoDoPaB",
    "Nifti",
    "SheppLogan",
]
