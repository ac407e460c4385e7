"""Names of test images: "a.png", or "a.png/2" where each image is measured with several settings (see `Images`)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["common_images", "groups_of_images", "split_setting"]

# Files that hold many images: what follows them in a name tells which it is.
_HOLDS_MANY = (".h5", ".hdf5", ".mat", ".npy", ".npz")


def split_setting(name: str) -> tuple[str, str] | None:
    """The image and the setting it was measured with; None if the name tells no setting."""
    image, _, setting = name.rpartition("/")
    return None if not image or image.endswith(_HOLDS_MANY) else (image, setting)


def groups_of_images(names: Sequence[str]) -> list[list[int]]:
    """Where the measurements of each image stand, by order of their first; each alone if names tell no settings."""
    parts = [split_setting(name) for name in names]
    groups: dict[str, list[int]] = {}
    for position, part in enumerate(parts):
        groups.setdefault(names[position] if None in parts or part is None else part[0], []).append(position)
    return list(groups.values())


def common_images(names: Sequence[set[str]]) -> list[str]:
    """The images that all runs have; of those of a setting, that all runs have which were tested with it."""
    found = {name: split_setting(name) for of_run in names for name in of_run}
    if not found or None in found.values():
        return sorted(set.intersection(*names)) if names else []
    images = set[str]()
    for setting in {part[1] for part in found.values() if part}:
        tested = [{name for name in of_run if found[name][1] == setting} for of_run in names]  # type: ignore[index]
        images |= set.intersection(*(of_run for of_run in tested if of_run))
    return sorted(images)
