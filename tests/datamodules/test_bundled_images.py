"""The bundled photographs: what is where, that no split has what another shows, and that nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from elder.datamodules import bundled
from elder.datamodules.base import VALIDATION, Key
from elder.datamodules.bundled_images import BundledImages
from elder.datamodules.images import ImageDataset
from elder.operators.elementary import Denoising
from elder.operators.noise import Gaussian

ACQUISITION = Denoising(Gaussian(0.1))


def splits(color: bool) -> dict[str, ImageDataset]:
    module = BundledImages(ACQUISITION, color=color)
    module.setup("fit")
    module.setup("test")
    return {"train": module.train_data, "val": module.val_data, "test": module.test_data}  # type: ignore[dict-item]


@pytest.mark.parametrize(("color", "counts"), [(False, (8, 2, 2)), (True, (4, 1, 2))])
def test_photographs_are_as_described(color: bool, counts: tuple[int, int, int]) -> None:
    found = splits(color)
    assert tuple(len(data.source.names) for data in found.values()) == counts
    names = [Path(name).stem for data in found.values() for name in data.source.names]
    described = (BundledImages.__doc__ or "").split()
    for name in names:
        assert {name, f"{name},"} & set(described)
    assert found["test"].source.names == ["astronaut.png", "chelsea.png"]
    train = {Path(name).stem for name in found["train"].source.names}
    assert {"motorcycle_left", "motorcycle_right"} <= train  # each other's twin
    for data in found.values():
        image = data[Key(VALIDATION, 0)].scene.image
        assert image is not None
        assert image.shape == (3 if color else 1, *((64, 64) if data is found["train"] else (256, 256)))
        assert 0 <= image.min() < image.max() <= 1
        if color:
            assert (image[0] != image[2]).any()


def test_no_photograph_shows_what_another_split_shows() -> None:
    """Thumbnails of 8 × 8 pixels, standardised: the stereo pair correlates, photographs of two splits do not."""
    thumbnails: dict[str, tuple[str, torch.Tensor]] = {}
    for split, data in splits(color=False).items():
        for i, name in enumerate(data.source.names):
            small = torch.nn.functional.adaptive_avg_pool2d(data.source.read(i, color=False), 8).flatten()
            thumbnails[name] = split, (small - small.mean()) / small.std(correction=0)

    def correlation(a: str, b: str) -> float:
        return float((thumbnails[a][1] * thumbnails[b][1]).mean())

    assert correlation("motorcycle_left.png", "motorcycle_right.png") > 0.7
    pairs = [(a, b) for a in thumbnails for b in thumbnails if thumbnails[a][0] != thumbnails[b][0]]
    assert max(correlation(a, b) for a, b in pairs) < 0.7


def test_a_missing_photograph_is_named_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bundled.find_spec("matplotlib")
    monkeypatch.setattr(bundled, "find_spec", lambda package: None if package == "skimage" else found)
    with pytest.raises(
        FileNotFoundError, match=r"expected data/motorcycle_left\.png in the package skimage.*its wheel"
    ):
        BundledImages(ACQUISITION)


def test_the_packages_are_read_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("skimage", "pooch"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    splits(color=True)
    assert not {"skimage", "pooch"} & sys.modules.keys()
