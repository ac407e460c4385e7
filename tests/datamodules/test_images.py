"""Patches against crops of their source, problems against themselves under other loaders, splits against the record."""

import csv
import random
from collections.abc import Callable
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from elder.datamodules.base import TEST, VALIDATION, Batch, ImagingDataModule, Item, Key
from elder.datamodules.image_files import Folder, Stack, image_source
from elder.datamodules.images import (
    BSD,
    BSD68,
    HELD_OUT,
    CentreCrop,
    ImageDataset,
    Images,
    MultipleCrop,
    RandomPatch,
    in_turn,
)
from elder.operators.blur import CircularBlur, Deblurring
from elder.operators.elementary import Denoising
from elder.operators.kernels import Kernel, UniformKernel
from elder.operators.noise import Gaussian

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (9, 11), dtype=np.uint8)
STACK = RNG.random((4, 9, 11))  # (N, H, W)


def read(path: Path, color: bool) -> np.ndarray:
    return Folder(path.parent, (path.name,)).read(0, color).numpy()


def write_pictures(folder: Path, n_images: int, shape: tuple[int, ...] = (12, 14)) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    pictures = {f"{i:02}.png": RNG.integers(0, 256, shape, dtype=np.uint8) for i in range(n_images)}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / name)
    return pictures


def images(tmp_path: Path, **arguments: int | bool | None) -> Images:
    """A module over three folders, made on the first call."""
    for split, n_images in (("train", 5), ("val", 3), ("test", 4)):
        if not (tmp_path / split).exists():
            write_pictures(tmp_path / split, n_images)
    settings = {"patch_size": 8, "batch_size": 2, "num_workers": 0} | arguments
    return Images(Denoising(Gaussian(0.1)), tmp_path / "train", tmp_path / "val", tmp_path / "test", **settings)


def problems(module: Images, batches: list[Item]) -> dict[tuple[Key, str], tuple[Tensor, Tensor]]:
    """(x, y) of every key and name, as a LightningModule receives them."""
    found = {}
    for item in batches:
        batch: Batch = module.on_after_batch_transfer(item, 0)
        for key, name, x, y in zip(batch.keys, batch.names, batch.problem.x, batch.problem.y, strict=True):
            found[key, name] = (x, y)
    return found


# Crops


def test_patch_is_a_crop_and_lies_everywhere() -> None:
    image = torch.arange(5 * 6.0).reshape(1, 5, 6)
    crop = RandomPatch(3, flips=False)
    corners = set()
    for seed in range(300):
        patch = crop(image, torch.Generator().manual_seed(seed))
        top, left = divmod(int(patch[0, 0, 0]), 6)
        assert torch.equal(patch, image[:, top : top + 3, left : left + 3])
        corners.add((top, left))
    assert corners == {(i, j) for i in range(3) for j in range(4)}
    assert torch.equal(RandomPatch(5, flips=False)(image[..., :5], torch.Generator()), image[..., :5])


def test_flips_are_the_symmetries_of_the_square_and_do_not_move_the_patch() -> None:
    image = torch.rand(3, 7, 9)
    seen = set()
    for seed in range(200):
        plain, flipped = (RandomPatch(4, flips)(image, torch.Generator().manual_seed(seed)) for flips in (False, True))
        symmetries = [f(torch.rot90(plain, k, (1, 2))) for k in range(4) for f in (lambda p: p, lambda p: p.mT)]
        (which,) = (i for i, symmetry in enumerate(symmetries) if torch.equal(symmetry, flipped))
        seen.add(which)
    assert seen == set(range(8))


def test_centre_crop() -> None:
    image = torch.arange(5 * 8.0).reshape(1, 5, 8)
    assert torch.equal(CentreCrop(3)(image, torch.Generator()), image[:, 1:4, 2:5])


def test_multiple_crop_cuts_off_the_end() -> None:
    image = torch.arange(6 * 8.0).reshape(1, 6, 8)
    assert torch.equal(MultipleCrop(3)(image, torch.Generator()), image[:, :6, :6])
    assert torch.equal(MultipleCrop(5)(image, torch.Generator()), image[:, :5, :5])
    assert torch.equal(MultipleCrop(1)(image, torch.Generator()), image)


def test_too_small_image_is_found_before_training(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 2)
    Image.fromarray(GRAY).save(tmp_path / "a" / "small.png")
    for crop in (RandomPatch(10, flips=True), CentreCrop(10)):
        with pytest.raises(ValueError, match=r"small\.png: expected at least 10 x 10 pixels, got 9 x 11; choose"):
            ImageDataset(Folder(tmp_path / "a"), crop, color=False)


# Data sets and modules


def test_item_is_a_function_of_seed_and_key(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "a", 3)
    data = ImageDataset(Folder(tmp_path / "a"), RandomPatch(5, flips=False), color=False, visits=4, seed=7)
    assert len(data) == 12
    patches = {Key(epoch, i): data[Key(epoch, i)] for epoch in range(2) for i in range(12)}
    assert len({item.name for key, item in patches.items() if key.epoch == 0}) == 12
    for key, item in reversed(patches.items()):
        name, visit = item.name.split("/")
        assert (list(pictures).index(name), int(visit)) == (key.index % 3, key.index // 3)
        source = torch.from_numpy(pictures[name] / np.float32(255))
        windows = source.unfold(0, 5, 1).unfold(1, 5, 1).flatten(0, 1)
        assert (windows == item.scene.image).flatten(1).all(1).any()
        assert torch.equal(data[key].scene.image, item.scene.image)
    assert len({item.scene.image.numpy().tobytes() for item in patches.values()}) > 20  # visits and epochs differ
    other = ImageDataset(data.source, data.crop, color=False, visits=4, seed=8)
    assert any(not torch.equal(other[key].scene.image, item.scene.image) for key, item in patches.items())


@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
def test_problems_are_the_same_for_any_workers_and_batches(tmp_path: Path, split: str) -> None:
    found = []
    for num_workers, batch_size in ((0, 1), (0, 5), (2, 2)):
        module = images(
            tmp_path, num_workers=num_workers, batch_size=batch_size, eval_batch_size=batch_size, patches_per_image=2
        )
        module.setup({"train": "fit", "val": "validate"}.get(split, split))
        loader = getattr(module, f"{split}_dataloader")()
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            epochs.append(problems(module, list(loader)))
        found.append(epochs)
    for epoch in range(2):
        reference = found[0][epoch]
        assert len(reference) == {"train": 10, "val": 3, "test": 4, "predict": 4}[split]
        for other in (f[epoch] for f in found[1:]):
            assert other.keys() == reference.keys()
            for key, (x, y) in reference.items():
                assert torch.equal(other[key][0], x)
                assert torch.equal(other[key][1], y)
    assert (found[0][0].keys() == found[0][1].keys()) == (split != "train")


def test_module_shapes(tmp_path: Path) -> None:
    module = images(tmp_path, color=True, eval_size=10, eval_batch_size=3)
    module.setup("fit")
    assert next(iter(module.train_dataloader())).scene.image.shape == (2, 3, 8, 8)
    val = next(iter(module.val_dataloader()))
    assert val.scene.image.shape == (3, 3, 10, 10)
    assert val.key == [Key(VALIDATION, i) for i in range(3)]
    assert val.name == ["00.png", "01.png", "02.png"]
    source = read(tmp_path / "val" / "01.png", color=True)
    np.testing.assert_array_equal(val.scene.image[1].numpy(), source[:, 1:11, 2:12])


def test_only_the_folders_of_the_stage_are_needed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "test", 2)
    nowhere = tmp_path / "nowhere"
    module = Images(Denoising(Gaussian(0.1)), nowhere, nowhere, tmp_path / "test")
    module.setup("test")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        module.setup("fit")


def test_whole_images_are_cut_to_a_multiple(tmp_path: Path) -> None:
    module = images(tmp_path, eval_multiple=5)  # of 12 × 14
    module.setup("fit")
    module.setup("test")
    assert module.val_data[Key(VALIDATION, 0)].scene.image.shape == (1, 10, 10)
    assert module.test_data[Key(TEST, 0)].scene.image.shape == (1, 10, 10)
    assert module.train_data[Key(0, 0)].scene.image.shape == (1, 8, 8)
    assert images(tmp_path, eval_multiple=5, eval_size=10).crop == CentreCrop(10)
    with pytest.raises(ValueError, match=r"eval_size to be a multiple of eval_multiple \(5\), got 8; choose another"):
        images(tmp_path, eval_multiple=5, eval_size=8)


def test_every_test_image_is_measured_at_every_setting(tmp_path: Path) -> None:
    kernels: list[Kernel] = [UniformKernel(1), UniformKernel(3), UniformKernel(5)]
    measured = []
    for eval_batch_size in (1, 5):
        module = images(tmp_path, every_setting=True, eval_batch_size=eval_batch_size)
        module.acquisition = Deblurring(kernels, Gaussian(0.0))
        module.setup("test")
        measured.append(problems(module, list(module.test_dataloader())))
    assert measured[0].keys() == measured[1].keys()
    names = [name for _, name in measured[0]]
    assert sorted(names) == [f"{i:02}.png/{k}" for i in range(4) for k in range(3)]
    assert names == [name for _, name in problems(module, list(module.predict_dataloader()))]
    for (key, name), (x, y) in measured[0].items():
        picture, _, setting = name.partition("/")
        np.testing.assert_array_equal(x, read(tmp_path / "test" / picture, color=False))
        blur = CircularBlur(kernels[int(setting)]().float(), (12, 14))
        torch.testing.assert_close(y, blur(x[None])[0])
        assert torch.equal(y, measured[1][key, name][1])
    module.setup("fit")
    assert [name for batch in module.val_dataloader() for name in batch.name] == ["00.png", "01.png", "02.png"]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 12, 30, 36])
def test_settings_come_in_turn(n: int) -> None:
    settings = in_turn(2 * n, n)
    assert sorted(settings[:n]) == list(range(n)) and settings[n:] == settings[:n]
    if n % 3 == 0 and n > 3:  # a few already have each of three noise levels, which vary fastest
        assert {i % 3 for i in settings[:3]} == {0, 1, 2}


def test_validation_images_have_the_settings_in_turn_and_training_draws(tmp_path: Path) -> None:
    kernels: list[Kernel] = [UniformKernel(1), UniformKernel(3), UniformKernel(5)]
    module = images(tmp_path, eval_batch_size=1, patches_per_image=10)
    module.acquisition = Deblurring(kernels, Gaussian(0.0))
    module.setup("fit")
    for loader, drawn in ((module.val_dataloader(), False), (module.train_dataloader(), True)):
        found = []
        for x, y in problems(module, list(loader)).values():
            errors = [(CircularBlur(k().float(), x.shape[-2:])(x[None])[0] - y).abs().max() for k in kernels]
            found.append(int(torch.stack(errors).argmin()))
        assert found != in_turn(len(found), 3) if drawn else found == in_turn(len(found), 3)


def test_training_and_validation_may_have_one_setting(tmp_path: Path) -> None:
    kernels: list[Kernel] = [UniformKernel(1), UniformKernel(3)]
    module = images(tmp_path, train_setting=1, every_setting=True, eval_batch_size=1)
    module.acquisition = Deblurring(kernels, Gaussian(0.0))
    module.setup("fit")
    module.setup("test")
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for x, y in problems(module, list(loader)).values():
            torch.testing.assert_close(y, CircularBlur(kernels[1]().float(), x.shape[-2:])(x[None])[0])
    assert len(module.test_data) == 2 * len(module.sources["test"].names)


def test_one_setting_of_the_test_images_is_as_it_is_among_all(tmp_path: Path) -> None:
    kernels: list[Kernel] = [UniformKernel(1), UniformKernel(3), UniformKernel(5)]
    module = images(tmp_path, every_setting=True, eval_batch_size=1)
    module.acquisition = Deblurring(kernels, Gaussian(0.1))
    module.setup("test")
    among = problems(module, list(module.test_dataloader()))
    for setting in range(3):
        alone = images(tmp_path, test_setting=setting, eval_batch_size=1)
        alone.acquisition = module.acquisition
        alone.setup("test")
        found = problems(alone, list(alone.test_dataloader()))
        assert found.keys() == {(key, name) for key, name in among if name.endswith(f"/{setting}")}
        for item, (x, y) in found.items():
            assert torch.equal(x, among[item][0]) and torch.equal(y, among[item][1])


@pytest.mark.parametrize("name", ["patch_size", "patches_per_image", "eval_size", "eval_multiple"])
def test_sizes_are_positive(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"Images: expected {name} >= 1, got 0"):
        images(tmp_path, **{name: 0})


def test_yaml(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 2)
    np.save(tmp_path / "stack.npy", STACK)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImagingDataModule, "data")
    text = f"""
        data:
          class_path: elder.datamodules.images.Images
          init_args:
            acquisition:
              class_path: elder.operators.elementary.Denoising
              init_args: {{noise: {{class_path: elder.operators.noise.Gaussian, init_args: {{sigma: 0.1}}}}}}
            train: {tmp_path / "train"}
            val: {tmp_path / "stack.npy"}
            test:
              class_path: elder.datamodules.image_files.Folder
              init_args: {{path: {tmp_path / "train"}, exclude: ["01*"]}}
            eval_size: null
            patch_size: 6
        """
    module = parser.instantiate(parser.parse_string(text)).data
    assert module.sources == {
        "train": Folder(tmp_path / "train"),
        "val": Stack(tmp_path / "stack.npy"),
        "test": Folder(tmp_path / "train", exclude=("01*",)),
    }
    module.setup("fit")
    module.setup("test")
    assert (len(module.train_data), len(module.val_data), len(module.test_data)) == (2, 4, 1)


# The Berkeley images


def numbers(module: BSD, split: str) -> list[str]:
    return [Path(name).stem for name in module.sources[split].names]


def test_bsd_split(tmp_path: Path) -> None:
    held_out, test = HELD_OUT.split(), BSD68.split()
    for split, names in (("train", [*held_out, "1", "2", "112003"]), ("val", [*test, "38092"])):
        (tmp_path / split).mkdir()
        (tmp_path / split / "Thumbs.db").write_bytes(b"")
        for name in names:
            Image.fromarray(GRAY).save(tmp_path / split / f"{name}.jpg")
    module = BSD(Denoising(Gaussian(0.1)), tmp_path, patch_size=8)
    assert sorted(numbers(module, "train")) == ["1", "112003", "2"]
    assert sorted(numbers(module, "val")) == sorted(held_out)
    assert sorted(numbers(module, "test")) == sorted(test)
    assert (len(set(held_out)), len(set(test))) == (20, 68)


def test_bsd_numbers_are_those_of_the_published_files(real_data: Callable[[str], Path]) -> None:
    with real_data("MANIFEST.csv").open() as file:
        rows = list(csv.DictReader(file))
    origin = {row["path"]: row["bsds_source"].split()[1] for row in rows if row["bsds_source"].startswith("BSDS500")}
    test = {o for path, o in origin.items() if path.startswith("bsd/test68/")}
    assert test == {f"val/{n}" for n in BSD68.split()}
    train = sorted(o.removeprefix("train/") for path, o in origin.items() if path.startswith("bsd/train/"))
    train.remove("12003")
    assert sorted(HELD_OUT.split()) == sorted([*random.Random(0).sample(train, 19), "12003"])


def test_luma_of_cbsd68_is_bsd68(real_data: Callable[[str], Path]) -> None:
    with real_data("MANIFEST.csv").open() as file:
        rows = list(csv.DictReader(file))
    color = {row["bsds_source"]: row["path"] for row in rows if row["path"].startswith("cbsd68/")}
    pairs = [(row["path"], color[row["bsds_source"]]) for row in rows if row["path"].startswith("bsd/test68/")][::10]
    root = real_data("MANIFEST.csv").parent
    for gray, rgb in pairs:
        difference = 255 * np.abs(read(root / gray, color=False) - read(root / rgb, color=False))
        assert difference.max() < 1.01
        assert difference.mean() < 0.1


@pytest.mark.parametrize(
    ("path", "n_images"),
    [
        ("bsd/train", 200),
        ("bsd/test68", 68),
        ("cbsd68", 68),
        ("set12", 12),
        ("mri/brain_train_magnitude", 150),
        ("mri/chest_train/chest_train.npz", 34),
    ],
)
def test_real_sources(real_data: Callable[[str], Path], path: str, n_images: int) -> None:
    data = ImageDataset(image_source(real_data(path)), RandomPatch(32, flips=True), color=False)
    assert len(data) == n_images
    image = data[Key(0, n_images - 1)].scene.image
    assert image.shape == (1, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
