"""fastMRI: scenes from single-coil and multi-coil k-space, and reconstructions in the layout of the challenge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from elder.datamodules.base import ImagingDataModule, Item, Key
from elder.datamodules.coils import Coils
from elder.datamodules.fastmri_files import (
    Volume,
    center_crop,
    list_volumes,
    low_frequencies,
    read_volume,
)
from elder.datamodules.fastmri_writing import write_reconstruction
from elder.operators.acquisition import Acquisition, Scene
from elder.operators.elementary import Fourier

T = TypeVar("T")


class FastMRISlices(Dataset[Item]):
    """The scene of every (volume, slice), in units of the volume; nothing of a file but that slice is read.

    Arguments as of `FastMRI`.
    """

    def __init__(
        self,
        slices: Sequence[tuple[Volume, int]],
        image_size: tuple[int, int] | None,
        real_images: bool,
        center_fraction: float,
        coils: Coils,
    ) -> None:
        self.slices, self.image_size, self.coils = slices, image_size, coils
        self.real_images, self.center_fraction = real_images, center_fraction
        self._whiteners: dict[str, Tensor | None] = {}  # by volume

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, key: Key) -> Item:
        volume, index = self.slices[key.index]
        image, kspace, maps = self._scene(volume, volume.kspace(index) / volume.scale)
        mask = None if volume.mask is None else volume.mask[None, None]
        # In evaluation the name of the volume fixes its mask; the collated batch holds a tuple of names.
        scene = Scene(image, kspace, maps, mask, volume.name if key.epoch < 0 else None)  # type: ignore[arg-type]
        return Item(scene, key, f"{volume.name}/{index}")

    def _scene(self, volume: Volume, kspace: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Image (1, H, W), k-space and maps (coils, H, W), each None where the scene does without."""
        fourier = Fourier()
        size = self._crop_size(volume)
        maps = None
        if volume.n_coils:
            kspace, maps = self._coils(volume, kspace)
            maps = center_crop(maps, size)
        coil_images = center_crop(fourier.adjoint(kspace), size)
        is_measured = volume.n_coils is not None or volume.mask is not None
        measured = fourier(coil_images) if is_measured and size != volume.size else kspace
        if volume.mask is not None:
            return None, measured, maps
        image = coil_images if maps is None else (maps.conj() * coil_images).sum(0, keepdim=True)
        return image.abs() if self.real_images else image, measured if is_measured else None, maps

    def _coils(self, volume: Volume, kspace: Tensor) -> tuple[Tensor, Tensor]:
        """k-space of the coils that are left, and their sensitivities."""
        columns, coils, known = self._low_frequencies(volume), self.coils, self._whiteners
        try:
            if volume.name not in known:
                known[volume.name] = coils.whitener(volume.kspace(volume.n_slices // 2)) if coils.whiten else None
            kspace = coils.combined(kspace, *columns, known[volume.name])
            return kspace, coils.sensitivities(kspace, *columns)
        except ValueError as error:
            told = "of its own mask" if volume.mask is not None else f"by center_fraction {self.center_fraction:g}"
            where = f"calibration columns [{columns[0]}, {columns[1]}) of {volume.size[1]}, {told}"
            raise ValueError(f"{volume.path}: {error} ({where})") from error

    def _crop_size(self, volume: Volume) -> tuple[int, int]:
        """Of undersampled k-space the rows alone may be cropped: a column crop mixes sampled and missing columns."""
        if self.image_size is None:
            return volume.size
        return self.image_size if volume.mask is None else (self.image_size[0], volume.size[1])

    def _low_frequencies(self, volume: Volume) -> tuple[int, int]:
        if volume.mask is not None:
            return low_frequencies(volume.mask)
        n_columns = volume.size[1]
        n_low = round(n_columns * self.center_fraction)
        start = (n_columns - n_low + 1) // 2  # the center of the masks, see elder.operators.masks
        return start, start + n_low


class FastMRI(ImagingDataModule):
    """Slices of fastMRI volumes; images are F⁻¹k (single coil) or Σ S̄_c F⁻¹k_c, in units of the volume's maximum.

    Training shuffles the slices of `<challenge>_train`; validation reads `<challenge>_val`, test and prediction
    `<challenge>_test`, always all of it. Volumes that come undersampled (`mask` in the file) have no ground truth: they
    can be reconstructed and written, not scored.

    k-space columns outside a volume's padding [left, right) were never acquired; the file holds zeros there, ground
    truth and measurements alike. Masks are drawn over the full width, as for fastMRI's U-Net baseline, and may
    sample those zeros: measurements and ground truth then agree on them.

    Args:
        acquisition: Draws operator and noise for every scene.
        root: Folder that holds `singlecoil_train`, `singlecoil_val`, …, or `multicoil_train`, ….
        challenge: Which of the two layouts to read.
        image_size: Rows and columns of the center crop of the field of view, in pixels; null: no crop. Volumes that
            come undersampled keep their columns.
        real_images: Take the magnitude as ground truth: for single-coil volumes made from magnitude images.
        center_fraction: Fraction of the columns, around DC, from which coil sensitivities are estimated; at most the
            smallest center fraction of the masks, lest the estimate uses what was not measured.
        coils: What is done with several coils, and how their sensitivities are estimated; null: nothing, and from a
            low-pass.
        volume_sample_rate: Fraction of the training volumes that is used, drawn by `seed`.
        sample_rate: Fraction of the training slices that is used, drawn by `seed`.
        batch_size: Scenes per training step and process.
        eval_batch_size: Scenes per evaluation step and process; 1 if the volumes differ in size.
        num_workers: Loader processes (0: load in the main process).
        seed: Seed of the training subset, and of operators and noise in evaluation.
        train_seed: Seed of order, operators and noise in training; null: `seed`.

    Raises:
        ValueError: If the arguments exclude each other.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        root: Path,
        challenge: Literal["singlecoil", "multicoil"] = "singlecoil",
        image_size: tuple[int, int] | None = (320, 320),
        real_images: bool = False,
        center_fraction: float = 0.04,
        coils: Coils | None = None,
        volume_sample_rate: float = 1.0,
        sample_rate: float = 1.0,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        seed: int = 0,
        train_seed: int | None = None,
    ) -> None:
        super().__init__(acquisition, batch_size, eval_batch_size, num_workers, seed, train_seed)
        if real_images and challenge == "multicoil":
            raise ValueError(
                "FastMRI: expected real_images: false for multicoil k-space, got true; coil images have phase"
            )
        if coils is not None and challenge == "singlecoil":
            raise ValueError("FastMRI: expected coils: null for singlecoil k-space, got some; set challenge: multicoil")
        rates = volume_sample_rate, sample_rate
        if not all(0 < rate <= 1 for rate in rates) or max(rates) < 1:
            raise ValueError(
                "FastMRI: expected volume_sample_rate and sample_rate in (0, 1], at most one of them below 1, got "
                f"{volume_sample_rate} and {sample_rate}"
            )
        self.root, self.challenge = Path(root), challenge
        self.image_size, self.real_images, self.center_fraction = image_size, real_images, center_fraction
        self.coils = coils or Coils()
        self.volume_sample_rate, self.sample_rate = volume_sample_rate, sample_rate

    def setup(self, stage: str) -> None:
        """Read the headers of the volumes that a stage of the trainer needs."""
        if stage == "fit":
            volumes = self._volumes("train")
            for volume in volumes:
                if volume.mask is not None:
                    raise ValueError(
                        f"{volume.path}: expected fully sampled k-space to train with, found a volume with a mask; "
                        "move it to the test folder"
                    )
            generator = torch.Generator().manual_seed(self.seed)
            slices = _slices(_subset(volumes, self.volume_sample_rate, generator))
            self.train_data = self._dataset(_subset(slices, self.sample_rate, generator))
        if stage in ("fit", "validate"):
            self.val_data = self._dataset(_slices(self._volumes("val")))
        if stage in ("test", "predict"):
            self.test_data = self.predict_data = self._dataset(_slices(self._volumes("test")))

    def volume(self, name: str) -> Volume:
        """The description of the volume with this file name, whichever folder it is in.

        Raises:
            FileNotFoundError: If there is none.
        """
        for split in ("test", "val", "train"):
            if (path := self._folder(split) / name).exists():
                return read_volume(path)
        raise FileNotFoundError(f"{self._folder('test')}: expected a volume {name}, found none; check the data root")

    def write_reconstructions(self, folder: Path, volumes: Mapping[str, Tensor]) -> None:
        """Write x, by magnitude if complex, in the layout of a fastMRI submission.

        A file per volume, in its units, cropped to its recon size.

        Args:
            folder: Where the files go; made if need be.
            volumes: By file name, all slices of a volume in order, (slices, H, W) real or complex, in the units of the
                scenes' images.

        Raises:
            ValueError: If a volume does not have its number of slices, or is smaller than its recon size.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, images in volumes.items():
            volume = self.volume(name)
            if images.ndim != 3 or images.shape[0] != volume.n_slices:
                raise ValueError(
                    f"{name}: expected reconstructions ({volume.n_slices}, H, W) of its {volume.n_slices} slices, got "
                    f"{tuple(images.shape)}; reconstruct all slices of the volume"
                )
            values = images.abs() if images.is_complex() else images
            write_reconstruction(folder / name, center_crop(values * volume.scale, volume.recon_size[:2]))

    def _folder(self, split: str) -> Path:
        return self.root / f"{self.challenge}_{split}"

    def _volumes(self, split: str) -> list[Volume]:
        volumes = list_volumes(self._folder(split))
        for volume in volumes:
            if (volume.n_coils is None) != (self.challenge == "singlecoil"):
                found = "single-coil" if volume.n_coils is None else f"{volume.n_coils} coils"
                raise ValueError(
                    f"{volume.path}: expected {self.challenge} k-space, found {found}; change the challenge"
                )
        return volumes

    def _dataset(self, slices: Sequence[tuple[Volume, int]]) -> FastMRISlices:
        return FastMRISlices(slices, self.image_size, self.real_images, self.center_fraction, self.coils)


def _slices(volumes: Sequence[Volume]) -> list[tuple[Volume, int]]:
    return [(volume, index) for volume in volumes for index in range(volume.n_slices)]


def _subset(items: list[T], rate: float, generator: torch.Generator) -> list[T]:
    """A random share of the items, in their order, one at least."""
    n = max(round(rate * len(items)), 1)
    return [items[i] for i in sorted(torch.randperm(len(items), generator=generator)[:n].tolist())]
