"""Natural images as data modules: random patches for training, whole images or central squares for evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from elder.datamodules.base import ImagingDataModule, Item, Key, generator
from elder.datamodules.image_files import Folder, ImageSource, image_source
from elder.operators.acquisition import Acquisition, Scene

CROP = 1  # purpose of the generator that places patches; 0 draws the measurement

# Numbers of BSDS500 images: the validation images of `BSD`, and BSD68.
HELD_OUT = """
    12003 22093 87065 90076 108073 134008 147021 170054 183087 188005 196015 231015 239096 245051 271031 277095
    292066 293029 361084 376001
"""
BSD68 = """
    3096 12084 14037 16077 19021 21077 24077 33039 101085 101087 102061 103070 105025 106024 108005 108070 108082
    109053 119082 123074 126007 130026 134035 143090 145086 147091 148026 148089 157055 159008 160068 163085 167062
    167083 170057 175032 175043 182053 189080 196073 197017 208001 210088 216081 219090 220075 223061 227092 229036
    236037 241004 241048 253027 253055 260058 271035 285079 291000 295087 296007 296059 299086 300091 302008 304034
    304074 306005 351093
"""


@dataclass(frozen=True)
class RandomPatch:
    """A square of size × size pixels, uniformly placed; with flips, under one of the square's 8 symmetries."""

    size: int
    flips: bool

    def __call__(self, image: Tensor, draws: torch.Generator) -> Tensor:
        rows, columns = (n - self.size + 1 for n in image.shape[1:])
        bounds = (rows, columns, 4, 2)  # all four are drawn always, so that flips do not move the patch
        top, left, turns, mirror = (int(torch.randint(n, (), generator=draws)) for n in bounds)
        patch = image[:, top : top + self.size, left : left + self.size]
        if not self.flips:
            return patch
        return torch.rot90(patch.flip(-1) if mirror else patch, turns, (-2, -1))


@dataclass(frozen=True)
class CentreCrop:
    """The central size × size pixels."""

    size: int

    def __call__(self, image: Tensor, draws: torch.Generator) -> Tensor:
        top, left = ((n - self.size) // 2 for n in image.shape[1:])
        return image[:, top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class MultipleCrop:
    """The whole image less its last rows and columns, as few as make height and width multiples of `size`."""

    size: int

    def __call__(self, image: Tensor, draws: torch.Generator) -> Tensor:
        rows, columns = (n - n % self.size for n in image.shape[1:])
        return image[:, :rows, :columns]


class ImageDataset(Dataset[Item]):
    """Crops of a source's images: a function of (seed, key) alone, whoever computes it, in whatever order.

    Args:
        source: The images.
        crop: What is cut from them.
        color: RGB (3, H, W) instead of gray (1, H, W).
        visits: How often an epoch comes to each image.
        seed: Seed of the crops.
        setting: With which of its settings the acquisition measures; "each": visit i with setting i; several: image i
            with the i-th of them; None: it draws.
        first: Number of the first visit, which yields what it does after others, and is named by it; None: 0.

    Raises:
        ValueError: If an image is smaller than the crop.
    """

    def __init__(
        self,
        source: ImageSource,
        crop: RandomPatch | CentreCrop | MultipleCrop,
        color: bool,
        visits: int = 1,
        seed: int = 0,
        setting: int | Literal["each"] | list[int] | None = None,
        first: int | None = None,
    ) -> None:
        for name, size in zip(source.names, source.sizes, strict=True):
            if min(size) < crop.size:
                raise ValueError(
                    f"{name}: expected at least {crop.size} x {crop.size} pixels, got {size[0]} x {size[1]}; "
                    "choose a smaller patch or crop, or remove the image"
                )
        self.source, self.crop, self.color = source, crop, color
        self.visits, self.seed, self.first = visits, seed, first or 0
        self.numbered = visits > 1 or first is not None
        self.setting: int | Literal["each"] | list[int] | None = setting

    def __len__(self) -> int:
        return len(self.source.names) * self.visits

    def __getitem__(self, key: Key) -> Item:
        key = key._replace(index=key.index + self.first * len(self.source.names))
        visit, index = divmod(key.index, len(self.source.names))
        image = self.crop(self.source.read(index, self.color), generator(self.seed, key, CROP))
        name = self.source.names[index]
        setting = self.setting[index] if isinstance(self.setting, list) else self.setting
        setting = visit if setting == "each" else setting
        return Item(Scene(image, setting=setting), key, f"{name}/{visit}" if self.numbered else name)


def in_turn(n_images: int, n_settings: int) -> list[int]:
    """A setting for each image, far from those of its neighbors: all of them come before one comes again.

    Steps of about n/φ, φ the golden ratio, that have no divisor in common with n, so that a few images already meet all
    kinds of settings: draws may miss a noise level, and what is tuned on them is not tuned for it.
    """
    wanted = n_settings * (5**0.5 - 1) / 2
    step = min((s for s in range(1, n_settings + 1) if math.gcd(s, n_settings) == 1), key=lambda s: abs(s - wanted))
    return [i * step % n_settings for i in range(n_images)]


class Images(ImagingDataModule):
    """Images in [0, 1], (B, C, H, W), from folders or stacks. Prediction uses the test images.

    Args:
        acquisition: Draws operator and noise for every image.
        train: Training images: a folder, a `.mat`, `.npz` or `.npy` stack, or a source spelt out.
        val: Validation images, likewise.
        test: Test images, likewise.
        color: RGB (C = 3) instead of gray (C = 1).
        patch_size: Side of the random training patches, pixels.
        patches_per_image: Patches that an epoch takes from each training image.
        flips: Flip and rotate training patches by multiples of 90°, at random.
        eval_size: Side of the central square used in evaluation, pixels; None for whole images.
        eval_multiple: Of whole images, cut off the last rows and columns, so that this number divides height and
            width: the scale of a super-resolution.
        every_setting: Measure each test image once with every kernel, mask or loss of the acquisition, and name it
            "image/setting", instead of with one that is drawn for it.
        train_setting: Number of the kernel, mask or loss that training and validation have always; null: training draws
            one for each patch, and validation images have them in turn.
        test_setting: Number of the one with which test images are measured and named; null: see `every_setting`.
        batch_size: Patches per training step and process.
        eval_batch_size: Images per evaluation step and process; 1 if their sizes differ.
        num_workers: Loader processes (0: load in the main process).
        seed: Seed of operators and noise in evaluation.
        train_seed: Seed of order, patches, operators and noise in training; null: `seed`.

    Raises:
        ValueError: If a size or count is not positive, or eval_size no multiple of eval_multiple.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        train: ImageSource | Path,
        val: ImageSource | Path,
        test: ImageSource | Path,
        color: bool = False,
        patch_size: int = 64,
        patches_per_image: int = 1,
        flips: bool = True,
        eval_size: int | None = None,
        eval_multiple: int = 1,
        every_setting: bool = False,
        train_setting: int | None = None,
        test_setting: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        seed: int = 0,
        train_seed: int | None = None,
    ) -> None:
        super().__init__(acquisition, batch_size, eval_batch_size, num_workers, seed, train_seed)
        counts = {"patch_size": patch_size, "patches_per_image": patches_per_image, "eval_multiple": eval_multiple}
        for name, value in (counts | {"eval_size": eval_size}).items():
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__}: expected {name} >= 1, got {value}")
        if eval_size is not None and eval_size % eval_multiple:
            raise ValueError(
                f"{type(self).__name__}: expected eval_size to be a multiple of eval_multiple ({eval_multiple}), got "
                f"{eval_size}; choose another, or null for whole images"
            )
        self.sources = {"train": image_source(train), "val": image_source(val), "test": image_source(test)}
        self.color, self.patches_per_image, self.every_setting = color, patches_per_image, every_setting
        self.train_setting, self.test_setting = train_setting, test_setting
        self.patch = RandomPatch(patch_size, flips)
        self.crop = MultipleCrop(eval_multiple) if eval_size is None else CentreCrop(eval_size)

    def setup(self, stage: str) -> None:
        """Find the images that `stage` needs: no other folder has to exist."""
        if stage == "fit":
            source, visits = self.sources["train"], self.patches_per_image
            self.train_data = ImageDataset(source, self.patch, self.color, visits, self.train_seed, self.train_setting)
        if stage in ("fit", "validate"):
            source, n = self.sources["val"], self.acquisition.n_settings
            turns = in_turn(len(source.names), n) if n > 1 else None
            setting = turns if self.train_setting is None else self.train_setting
            self.val_data = ImageDataset(source, self.crop, self.color, setting=setting)
        if stage in ("test", "predict"):
            each = self.every_setting or self.test_setting is not None
            self.test_data = self.predict_data = ImageDataset(
                self.sources["test"],
                self.crop,
                self.color,
                self.acquisition.n_settings if self.every_setting and self.test_setting is None else 1,
                setting="each" if each else None,
                first=self.test_setting,
            )


class BSD(Images):
    """The Berkeley segmentation data set BSDS500, split as in the denoising literature.

    * Training: the 200 images of its training part less 20.
    * Validation: those 20. Among them is 12003, of which `starfish` in Set12 and Set3c is a crop, so that these
      sets stay unseen; the other 19 were drawn once from the sorted names with `random.Random(0)`.
    * Test: BSD68, which is 68 of the 100 images of its *validation* part (hence never train on that part).

    Gray test images are the luma of the colour files; the BSD68 files in circulation differ from it by rounding.
    Source: Arbeláez, Maire, Fowlkes and Malik, Contour Detection and Hierarchical Image Segmentation, 2011;
    BSD68: Roth and Black, Fields of Experts, 2009. `python -m elder.datamodules.download bsds500 DEST` fetches it.

    Args:
        acquisition: Draws operator and noise for every image.
        root: The folder with `train` and `val`, `BSR/BSDS500/data/images` of the archive.
        color: RGB (C = 3) instead of gray (C = 1).
        patch_size: Side of the random training patches, pixels.
        patches_per_image: Patches that an epoch takes from each training image.
        flips: Flip and rotate training patches by multiples of 90°, at random.
        eval_size: Side of the central square used in evaluation, pixels; None for whole images.
        eval_multiple: Of whole images, cut off the last rows and columns, so that this number divides height and
            width: the scale of a super-resolution.
        every_setting: Measure each test image once with every kernel, mask or loss of the acquisition, and name it
            "image/setting", instead of with one that is drawn for it. Training draws, and
            validation images have them in turn.
        batch_size: Patches per training step and process.
        eval_batch_size: Images per evaluation step and process; 1 for whole images, some of which stand upright.
        num_workers: Loader processes (0: load in the main process).
        seed: Seed of operators and noise in evaluation.
        train_seed: Seed of order, patches, operators and noise in training; null: `seed`.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        root: Path,
        color: bool = False,
        patch_size: int = 64,
        patches_per_image: int = 1,
        flips: bool = True,
        eval_size: int | None = None,
        eval_multiple: int = 1,
        every_setting: bool = False,
        batch_size: int = 16,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        seed: int = 0,
        train_seed: int | None = None,
    ) -> None:
        super().__init__(
            acquisition,
            Folder(root / "train", exclude=_pictures(HELD_OUT)),
            Folder(root / "train", include=_pictures(HELD_OUT)),
            Folder(root / "val", include=_pictures(BSD68)),
            color=color,
            patch_size=patch_size,
            patches_per_image=patches_per_image,
            flips=flips,
            eval_size=eval_size,
            eval_multiple=eval_multiple,
            every_setting=every_setting,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            train_seed=train_seed,
        )


def _pictures(numbers: str) -> tuple[str, ...]:
    return tuple(f"{number}.*" for number in numbers.split())
