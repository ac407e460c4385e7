"""Photographs that need no download: they ship inside packages that elder installs."""

from __future__ import annotations

from elder.datamodules.bundled import package_file
from elder.datamodules.image_files import Folder, Join
from elder.datamodules.images import Images
from elder.operators.acquisition import Acquisition

# Split, whether it is a colour photograph, package, and file in it. Gray ones are left out in colour.
PHOTOGRAPHS = (
    ("train", True, "matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("train", True, "skimage", "data/motorcycle_left.png"),
    ("train", True, "skimage", "data/motorcycle_right.png"),
    ("train", True, "skimage", "data/rocket.jpg"),
    ("train", False, "skimage", "data/brick.png"),
    ("train", False, "skimage", "data/coins.png"),
    ("train", False, "skimage", "data/grass.png"),
    ("train", False, "skimage", "data/gravel.png"),
    ("val", True, "skimage", "data/coffee.png"),
    ("val", False, "skimage", "data/camera.png"),
    ("test", True, "skimage", "data/astronaut.png"),
    ("test", True, "skimage", "data/chelsea.png"),
)


class BundledImages(Images):
    """Photographs inside the wheels of scikit-image and Matplotlib: gray 8 train, 2 validate, 2 test; colour 4, 1, 2.

    | split | photograph | pixels | origin and terms |
    |---|---|---|---|
    | train | grace_hopper | 600 × 512 | United States Navy, J. S. Davis; public domain |
    | train | motorcycle_left, motorcycle_right | 500 × 741 | D. Scharstein et al., Middlebury 2014; none stated |
    | train | rocket | 427 × 640 | launch of DSCOVR, SpaceX; public domain |
    | train, gray | brick, gravel | 512 × 512 | CC0Textures; CC0 |
    | train, gray | grass | 512 × 512 | linolafett, DeviantArt; CC0 |
    | train, gray | coins | 303 × 384 | Brooklyn Museum; no known copyright restrictions |
    | val | coffee | 400 × 600 | R. Michetti, Pikolo Espresso Bar; CC0 |
    | val, gray | camera | 512 × 512 | L. Varshney; CC0 |
    | test | astronaut | 512 × 512 | E. Collins, NASA; public domain |
    | test | chelsea | 300 × 451 | a cat, S. van der Walt; CC0 |

    The stereo pair is in one split: its two pictures show the same things. Enough to see a method work, far too little
    to rank methods. The files are read where the wheels have put them; nothing is ever downloaded.

    Args:
        acquisition: Draws operator and noise for every image.
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
        eval_batch_size: Images per evaluation step and process; 1 for whole images, whose sizes differ.
        num_workers: Loader processes (0: load in the main process).
        seed: Seed of operators and noise in evaluation.
        train_seed: Seed of order, patches, operators and noise in training; null: `seed`.

    Raises:
        FileNotFoundError: If an installed package lacks a photograph that its wheel has.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        color: bool = False,
        patch_size: int = 64,
        patches_per_image: int = 16,
        flips: bool = True,
        eval_size: int | None = 256,
        eval_multiple: int = 1,
        every_setting: bool = False,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        train_seed: int | None = None,
    ) -> None:
        super().__init__(
            acquisition,
            _photographs("train", color),
            _photographs("val", color),
            _photographs("test", color),
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


def _photographs(split: str, color: bool) -> Join:
    """Those of a split, each a source of its own: the folders of the packages hold much else."""
    files = [
        package_file(package, path)
        for part, colored, package, path in PHOTOGRAPHS
        if part == split and colored >= color
    ]
    return Join(tuple(Folder(file.parent, include=(file.name,)) for file in files))
