"""What names of test images say about settings."""

from __future__ import annotations

import pytest

from elder.reporting.image_names import groups_of_images, split_setting


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.png/2", ("a.png", "2")),
        ("heads.npz/3/1", ("heads.npz/3", "1")),
        ("a.png", None),
        ("head.h5/3", None),
        ("heads.mat/3", None),
        ("ground_truth_test_000.hdf5/127", None),
        ("ground_truth_test_000.hdf5/127/1", ("ground_truth_test_000.hdf5/127", "1")),
    ],
)
def test_the_setting_is_what_follows_the_image(name: str, parts: tuple[str, str] | None) -> None:
    assert split_setting(name) == parts


def test_measurements_of_one_image_are_together() -> None:
    assert groups_of_images(["a.png/0", "b.png/0", "a.png/1", "b.png/1"]) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["head.h5/0", "head.h5/1"], ["a.png/0", "a.png/1", "b.png"], []])
def test_without_settings_each_stands_alone(names: list[str]) -> None:
    assert groups_of_images(names) == [[k] for k in range(len(names))]
