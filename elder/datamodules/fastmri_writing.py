"""Writing the HDF5 layout of fastMRI: volumes, and reconstructions as they are submitted.

Source: Zbontar et al., fastMRI: An Open Dataset and Benchmarks for Accelerated MRI, 2018.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from elder.atomic import replacing
from elder.datamodules.fastmri_files import center_crop, low_frequencies, root_sum_of_squares
from elder.operators.elementary import Fourier


def write_volume(
    path: Path,
    kspace: Tensor,
    acquisition: str,
    patient_id: str,
    recon_size: tuple[int, int] | None = None,
    padding: tuple[int, int] | None = None,
    mask: Tensor | None = None,
) -> None:
    """Write k-space in the layout of fastMRI, atomically: with its reference reconstruction, or undersampled.

    Args:
        path: The file, `….h5`; an older one is replaced.
        kspace: Fully sampled, (slices, rows, columns) or (slices, coils, rows, columns) complex, DC in the center.
        acquisition: Name of the sequence, such as "AXT2".
        patient_id: Any string that is the same for all volumes of one patient.
        recon_size: Rows and columns of the reconstruction, a center crop of the field of view; None: all.
        padding: First acquired column, and one past the last; None: all.
        mask: Sampled columns, (columns,) bool. If given, the file is one of the test set: k-space zero elsewhere, no
            reference.
    """
    rows, columns = kspace.shape[-2:]
    recon_size, (left, right) = recon_size or (rows, columns), padding or (0, columns)
    attributes: dict[str, str | float | int] = {"acquisition": acquisition, "patient_id": patient_id}
    contents: dict[str, np.ndarray | bytes] = {
        "ismrmrd_header": _HEADER.format(
            rows=rows,
            columns=columns,
            recon_rows=recon_size[0],
            recon_columns=recon_size[1],
            maximum=right - left - 1,
            center=columns // 2 - left,
        ).encode()
    }
    if mask is None:
        images = Fourier().adjoint(kspace if kspace.ndim == 4 else kspace[:, None])
        reference = center_crop(root_sum_of_squares(images), recon_size)
        contents["reconstruction_esc" if kspace.ndim == 3 else "reconstruction_rss"] = reference.float().numpy()
        attributes |= {"max": float(reference.max()), "norm": float(torch.linalg.vector_norm(reference))}
    else:
        kspace, contents["mask"] = torch.where(mask, kspace, 0), mask.numpy()
        start, stop = low_frequencies(mask)
        attributes |= {"acceleration": round(columns / int(mask.sum())), "num_low_frequency": stop - start}
    contents["kspace"] = kspace.to(torch.complex64).numpy()
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for key, value in contents.items():
            file[key] = value
        file.attrs.update(attributes)


def write_reconstruction(path: Path, images: Tensor) -> None:
    """Write (slices, rows, columns) real images as a fastMRI submission, dataset `reconstruction`, atomically."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file["reconstruction"] = images.detach().cpu().float().numpy()


_HEADER = (
    '<?xml version="1.0" encoding="utf-8"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
    "<encodedSpace><matrixSize><x>{rows}</x><y>{columns}</y><z>1</z></matrixSize></encodedSpace>"
    "<reconSpace><matrixSize><x>{recon_rows}</x><y>{recon_columns}</y><z>1</z></matrixSize></reconSpace>"
    "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum>"
    "<center>{center}</center></kspace_encoding_step_1></encodingLimits>"
    "<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
)
