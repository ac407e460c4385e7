"""The digits of scikit-learn: what they are, in parts that do not overlap, and what is said where they are missing."""

import sys

import pytest
import torch

from elder.datamodules.base import VALIDATION, Key
from elder.datamodules.digits import N_DIGITS, Digits
from elder.datamodules.images import Images
from elder.operators import Denoising, Gaussian

pytest.importorskip("sklearn", reason="the digits are in scikit-learn's wheel")


def test_digits_are_as_described() -> None:
    digits = Digits()
    assert len(digits.names) == len(digits.sizes) == len(set(digits.names)) == N_DIGITS == 1797
    images = torch.stack([digits.read(i, color=False) for i in range(N_DIGITS)])
    assert images.shape == (N_DIGITS, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1 and len(images.unique()) == 17
    zero = images[0, 0]
    assert zero[3:5, 3:5].max() < 0.1 < zero[3:5].max(), "the first is a zero, hollow"
    assert digits.read(0, color=True).shape == (3, 8, 8)


def test_parts_are_those_of_the_whole_and_feed_a_data_module() -> None:
    whole, part = Digits(), Digits(1200, 1400)
    assert part.names == whole.names[1200:1400] and torch.equal(part.read(7, False), whole.read(1207, False))
    module = Images(Denoising(Gaussian(0.1)), Digits(0, 1200), part, Digits(1400), patch_size=8, flips=False)
    module.setup("fit")
    assert torch.equal(module.train_data[Key(0, 5)].scene.image, whole.read(5, False))
    assert torch.equal(module.val_data[Key(VALIDATION, 5)].scene.image, part.read(5, False))


def test_what_there_is_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for start, stop in ((5, 5), (-1, 3), (0, 1798)):
        with pytest.raises(ValueError, match="Digits: expected 0 <= start < stop <= 1797, got"):
            Digits(start, stop)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with pytest.raises(FileNotFoundError, match=r"expected datasets/data/digits.csv.gz .*install scikit-learn from"):
        Digits().read(0, False)
