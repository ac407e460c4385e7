"""Magnetic resonance images that need no download: they ship inside packages that elder installs."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from elder.datamodules.coils import Coils, birdcage
from elder.datamodules.fastmri import FastMRI
from elder.datamodules.fastmri_files import read_volume
from elder.datamodules.fastmri_writing import write_volume
from elder.operators.acquisition import Acquisition
from elder.operators.elementary import Fourier

SIZE = 96, 128
PROJECTS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}  # what pip calls packages of another name
VERSION = "bundled-mri-1"  # to be raised with every change of the contents


@dataclass(frozen=True)
class Head:
    """Axial slices [start, stop) of the head in nibabel's `example4d.nii.gz`, in one of its two repeats."""

    start: int
    stop: int
    repeat: int

    def __call__(self) -> Tensor:
        path = package_file("nibabel", "tests/data/example4d.nii.gz")
        images = np.asarray(nibabel.load(path).dataobj[..., self.start : self.stop, self.repeat])  # type: ignore[attr-defined]
        return torch.from_numpy(np.rot90(images).astype(np.float32)).movedim(-1, 0)  # the face is up


class Sagittal:
    """The sagittal slice in matplotlib's `s1045.ima.gz`, 256 × 256, averaged over 2 × 2 pixels and cut to 96 × 128.

    Of the 128 rows go 8 empty ones at the top and 24 at the bottom, which show jaw and neck.
    """

    def __call__(self) -> Tensor:
        raw = gzip.decompress(package_file("matplotlib", "mpl-data/sample_data/s1045.ima.gz").read_bytes())
        image = torch.from_numpy(np.frombuffer(raw, ">u2").reshape(1, 256, 256).astype(np.float32))
        return torch.nn.functional.avg_pool2d(image, 2)[:, 8:104]


#: Split, file name, patient and images. Positions 14 and 18 of the head are left out: no slice has a neighbor in
#: another split.
VOLUMES: tuple[tuple[str, str, str, Head | Sagittal], ...] = (
    ("train", "head_1.h5", "nibabel", Head(0, 14, repeat=0)),
    ("train", "head_2.h5", "nibabel", Head(0, 14, repeat=1)),
    ("val", "head_val.h5", "nibabel", Head(15, 18, repeat=0)),
    ("test", "head_test.h5", "nibabel", Head(19, 24, repeat=0)),
    ("test", "sagittal.h5", "matplotlib", Sagittal()),
)


class BundledMRI(FastMRI):
    """Real magnitude images of heads as single-coil fastMRI volumes, 96 × 128 pixels: 28 train, 3 validate, 6 test.

    One head is nibabel's `example4d.nii.gz`: 24 axial slices, pixels of 2 mm, slices 2.2 mm apart, scanned twice; all
    of them show anatomy. It is split by position, bottom to top, with one slice left out between splits: slices 0–13
    train (both repeats), 15–17 validate, 19–23 test. Validation and test take the first repeat only, since the second
    would count nearly the same image twice. The last test image is a sagittal slice of unrelated origin, matplotlib's
    `s1045.ima.gz`, brought to the same size (see `Sagittal`): a view and a contrast that training has not seen.

    Images are in units of their volume's maximum; the k-space is the Fourier transform of the real image. Enough to
    see a method work, far too little to rank methods.

    The volumes are written once to `$XDG_CACHE_HOME/elder` (`~/.cache/elder`) and read like any fastMRI volume.

    Args:
        acquisition: Draws operator and noise for every scene.
        batch_size: Scenes per training step and process.
        eval_batch_size: Scenes per evaluation step and process.
        num_workers: Loader processes (0: load in the main process).
        seed: Seed of operators and noise in evaluation.
        train_seed: Seed of order, operators and noise in training; null: `seed`.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        batch_size: int = 4,
        eval_batch_size: int = 3,
        num_workers: int = 0,
        seed: int = 0,
        train_seed: int | None = None,
    ) -> None:
        super().__init__(
            acquisition,
            root=cache_folder(),
            image_size=None,
            real_images=True,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            train_seed=train_seed,
        )

    def prepare_data(self) -> None:
        """Write the volumes that are missing or damaged.

        Raises:
            OSError: If the cache cannot be written.
        """
        _write(self, lambda magnitude: torch.complex(magnitude, torch.zeros_like(magnitude)))


class BundledParallelMRI(FastMRI):
    """The images of `BundledMRI` as multi-coil fastMRI volumes: 28 train, 3 validate, 6 test.

    Eight simulated coils see x = m e^{iφ}, m the magnitude and φ a smooth phase that turns by about one radian: k_c =
    F(S_c x), see `birdcage`. The volumes are read like measured ones: sensitivities are estimated from the calibration
    lines, and images are complex.

    Args:
        acquisition: Draws operator and noise for every scene.
        center_fraction: Fraction of the columns, around DC, from which coil sensitivities are estimated; at most the
            smallest center fraction of the masks.
        coils: What is done with the coils, and how their sensitivities are estimated; null: nothing, and from a
            low-pass.
        batch_size: Scenes per training step and process.
        eval_batch_size: Scenes per evaluation step and process.
        num_workers: Loader processes (0: load in the main process).
        seed: Seed of operators and noise in evaluation.
        train_seed: Seed of order, operators and noise in training; null: `seed`.

    Raises:
        ValueError: If the coils are to be whitened, which have no noise.
    """

    N_COILS = 8

    def __init__(
        self,
        acquisition: Acquisition,
        center_fraction: float = 0.08,
        coils: Coils | None = None,
        batch_size: int = 4,
        eval_batch_size: int = 3,
        num_workers: int = 0,
        seed: int = 0,
        train_seed: int | None = None,
    ) -> None:
        if coils is not None and coils.whiten:
            raise ValueError(
                "BundledParallelMRI: expected whiten: false, got true; its k-space has no noise of its own, and that "
                "of the acquisition is white"
            )
        super().__init__(
            acquisition,
            root=cache_folder(),
            challenge="multicoil",
            image_size=None,
            center_fraction=center_fraction,
            coils=coils,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            train_seed=train_seed,
        )

    def prepare_data(self) -> None:
        """Write the volumes that are missing or damaged.

        Raises:
            OSError: If the cache cannot be written.
        """
        maps = birdcage(self.N_COILS, SIZE)
        rows, columns = (torch.linspace(-1, 1, n) for n in SIZE)
        phase = 0.5 + 0.4 * columns - 0.3 * rows[:, None] + 0.5 * rows[:, None] * columns
        seen = maps * torch.polar(torch.ones_like(phase), phase)
        _write(self, lambda magnitude: magnitude[:, None] * seen)


def _write(data: FastMRI, images: Callable[[Tensor], Tensor]) -> None:
    """The volumes that are missing or damaged, each the Fourier transform of what becomes of its magnitude.

    Several processes may do so at once: each file appears whole, and with the same contents whoever wrote it.
    """
    for split, name, patient, magnitude in VOLUMES:
        path = data.root / f"{data.challenge}_{split}" / name
        if _is_intact(path):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, Fourier()(images(magnitude())), acquisition="unknown", patient_id=patient)
        except OSError as error:
            raise OSError(
                f"{type(data).__name__}: expected a cache folder to write to, got: {error}; set XDG_CACHE_HOME to "
                "another one"
            ) from error


def cache_folder() -> Path:
    """`elder/<version>` in the user's cache, the version that of the contents."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elder" / VERSION


def _is_intact(path: Path) -> bool:
    """HDF5 compares the length it expects with that of the file, so a truncated one cannot be opened."""
    try:
        return read_volume(path).size == SIZE
    except (OSError, ValueError):
        return False


def package_file(package: str, path: str) -> Path:
    """A file of an installed package, which is found without importing it.

    Raises:
        FileNotFoundError: If the package is not installed, or from something else than its wheel.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None or not (found := Path(spec.origin).parent / path).exists():
        raise FileNotFoundError(
            f"bundled data: expected {path} in the package {package}, found none; install "
            f"{PROJECTS.get(package, package)} from its wheel"
        )
    return found
