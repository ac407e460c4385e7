"""Image files, sound and damaged, against the arrays written to them."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from elder.datamodules import image_files
from elder.datamodules.image_files import Folder, Join, Stack, image_source

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (9, 11), dtype=np.uint8)
RGB = RNG.integers(0, 256, (9, 11, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (9, 11), dtype=np.uint16)
STACK = RNG.random((4, 9, 11))  # (N, H, W)


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601, in levels of 8 bit, before rounding."""
    return rgb @ [0.299, 0.587, 0.114]


def read(path: Path, color: bool) -> np.ndarray:
    return Folder(path.parent, (path.name,)).read(0, color).numpy()


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "pgm"])
def test_gray_8_bit(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GRAY).save(tmp_path / f"a.{suffix}")
    gray = read(tmp_path / f"a.{suffix}", color=False)
    assert gray.dtype == np.float32
    np.testing.assert_array_equal(gray, (GRAY[None] / 255).astype(np.float32))
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}", color=True), np.repeat(gray, 3, 0))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm"])
def test_color(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}")
    expected = (RGB.transpose(2, 0, 1) / 255).astype(np.float32)
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}", color=True), expected)
    gray = read(tmp_path / f"a.{suffix}", color=False)
    assert gray.shape == (1, 9, 11)
    assert np.abs(255 * gray[0] - luma(RGB)).max() < 0.51


def test_jpeg(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 32, 0)
    Image.fromarray(np.stack([ramp, ramp, 255 - ramp], -1)).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    image = read(tmp_path / "a.jpg", color=True)
    assert np.abs(255 * image - np.stack([ramp, ramp, 255 - ramp])).max() < 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_16_bit(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(read(tmp_path / f"a.{suffix}", color=False)[0], DEEP / 65535, rtol=1e-6)
    assert read(tmp_path / f"a.{suffix}", color=True).shape == (3, 9, 11)


@pytest.mark.parametrize("color", [False, True])
def test_transparency_is_ignored(tmp_path: Path, color: bool) -> None:
    alpha = RNG.integers(0, 256, (9, 11, 1), dtype=np.uint8)
    (tmp_path / "plain").mkdir()
    for name, opaque in (("rgb.png", RGB), ("gray.png", GRAY[..., None])):
        Image.fromarray(opaque.squeeze()).save(tmp_path / "plain" / name)
        Image.fromarray(np.concatenate([opaque, alpha], -1)).save(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / name, color), read(tmp_path / "plain" / name, color))


@pytest.mark.parametrize("transparency", [None, bytes(range(200, 216))])
def test_palette(tmp_path: Path, transparency: bytes | None) -> None:
    palette = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    indexed = Image.fromarray(GRAY % 16, mode=None)
    indexed.putpalette(palette.tobytes())
    indexed.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
    expected = palette[GRAY % 16]
    np.testing.assert_allclose(read(tmp_path / "a.png", color=True), expected.transpose(2, 0, 1) / 255, rtol=1e-6)
    assert np.abs(255 * read(tmp_path / "a.png", color=False)[0] - luma(expected)).max() < 0.51


def test_float_tif_is_taken_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(STACK[0].astype(np.float32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", color=False)[0], STACK[0].astype(np.float32))


def test_folder_lists_pictures_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "c.bmp"):
        Image.fromarray(GRAY).save(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert Folder(tmp_path).names == ["a.JPG", "b.png", "c.bmp"]
    assert Folder(tmp_path).sizes == [(9, 11)] * 3
    assert Folder(tmp_path, include=("a.*", "b.*"), exclude=("a*",)).names == ["b.png"]
    assert Folder(tmp_path, exclude=("a.*", "b.*")).names == ["c.bmp"]


def write_mat_5(path: Path, **arrays: np.ndarray) -> None:
    scipy.io.savemat(path, arrays)


def write_mat_73(path: Path, **arrays: np.ndarray) -> None:
    """MATLAB's version 7.3: HDF5 after a header of 512 bytes, arrays with their axes in reverse order."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("write", [write_mat_5, write_mat_73])
@pytest.mark.parametrize(("axis", "layout"), [(None, (1, 2, 0)), (0, (0, 1, 2))])
def test_mat_stack(tmp_path: Path, write: Callable, axis: int | None, layout: tuple[int, ...]) -> None:
    write(tmp_path / "a.mat", other=np.eye(3), images=STACK.transpose(layout))
    stack = Stack(tmp_path / "a.mat", axis=axis)
    assert stack.names == [f"a.mat/{i}" for i in range(4)]
    assert stack.sizes == [(9, 11)] * 4
    for i, image in enumerate(STACK.astype(np.float32)):
        np.testing.assert_array_equal(stack.read(i, color=False)[0].numpy(), image)
        np.testing.assert_array_equal(stack.read(i, color=True)[1].numpy(), image)


def test_stack_of_integers_and_key(tmp_path: Path) -> None:
    levels = RNG.integers(0, 256, (9, 11, 2), dtype=np.uint8)
    write_mat_5(tmp_path / "a.mat", first=levels, second=STACK)
    image = Stack(tmp_path / "a.mat", key="first").read(1, color=False)[0].numpy()
    np.testing.assert_array_equal(image, (levels[..., 1] / 255).astype(np.float32))


def test_numpy_stacks(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK)
    np.savez(tmp_path / "a.npz", labels=np.arange(4), images=STACK)
    for name in ("a.npy", "a.npz"):
        stack = Stack(tmp_path / name)
        assert len(stack.names) == 4
        np.testing.assert_array_equal(stack.read(2, color=False)[0].numpy(), STACK[2].astype(np.float32))


def test_npz_of_an_array_for_each_image(tmp_path: Path) -> None:
    arrays = {"im-04": STACK[0], "im-01": STACK[1, :, :5], "im-07": GRAY}
    np.savez(tmp_path / "a.npz", **arrays)
    stack = Stack(tmp_path / "a.npz")
    assert stack.names == ["a.npz/im-04", "a.npz/im-01", "a.npz/im-07"]
    assert stack.sizes == [(9, 11), (9, 5), (9, 11)]
    for i, expected in enumerate([STACK[0], STACK[1, :, :5], GRAY / 255]):
        np.testing.assert_array_equal(stack.read(i, color=False)[0].numpy(), expected.astype(np.float32))
    np.savez(tmp_path / "a.npz", a=STACK[0], b=1j * STACK[0])
    with pytest.raises(ValueError, match=r"expected a single real 3-D array, found .*b \(9, 11\) complex128"):
        _ = Stack(tmp_path / "a.npz").names


def test_join_is_one_source_after_the_other(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.png"):
        Image.fromarray(RGB).save(tmp_path / name)
    np.save(tmp_path / "a.npy", STACK[:, :7])
    join = Join((Folder(tmp_path, exclude=("c*",)), tmp_path / "a.npy", Folder(tmp_path, include=("c*",))))
    assert join.names == ["a.png", "b.png", *(f"a.npy/{i}" for i in range(4)), "c.png"]
    assert join.sizes == [(9, 11)] * 2 + [(7, 11)] * 4 + [(9, 11)]
    assert np.array_equal(join.read(0, color=True), read(tmp_path / "a.png", color=True))
    assert np.array_equal(join.read(4, color=False)[0], STACK[2, :7].astype(np.float32))
    assert join.read(6, color=False).shape == (1, 9, 11)
    assert image_source(join) is join
    with pytest.raises(ValueError, match=r"different names, got b\.png twice"):
        _ = Join((tmp_path, Folder(tmp_path, include=("b*",)))).names
    with pytest.raises(ValueError, match="at least one source"):
        _ = Join(()).names


def test_decoded_pictures_stay_in_memory_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "KEPT", 2 * RGB.size)
    pictures = [RGB, 255 - RGB, RGB // 2]
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    folder = Folder(tmp_path)
    first = [folder.read(i, color=True) for i in range(3)]
    first[0].fill_(7)  # what was read belongs to the reader
    for i in range(3):
        (tmp_path / f"{i}.png").unlink()
    for i in range(2):
        np.testing.assert_array_equal(folder.read(i, color=True), np.float32(pictures[i].transpose(2, 0, 1) / 255))
    for index, color in ((2, True), (0, False)):
        with pytest.raises(OSError, match=rf"{index}\.png: expected images"):
            folder.read(index, color)


# Bad files


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected a folder of images, found none"):
        _ = Folder(tmp_path / "nowhere").names
    with pytest.raises(FileNotFoundError, match=r"expected pictures \(.*png.*\), found 0"):
        _ = Folder(tmp_path).names
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"found 1, none of them selected"):
        _ = Folder(tmp_path, include=("b*",)).names


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "ppm"])
def test_truncated_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.tile(RGB, (4, 4, 1))).save(path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 3, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(OSError, match=rf"a\.{suffix}: expected images, could not read them"):
            read(path, color=True)


@pytest.mark.parametrize("name", ["5.mat", "73.mat", "a.npy", "a.npz"])
def test_truncated_stack(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write = {"5.mat": write_mat_5, "73.mat": write_mat_73, "a.npz": np.savez}.get(name)
    np.save(path, STACK) if write is None else write(path, images=STACK)
    whole = path.read_bytes()
    for length in (0, 10, 600, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(OSError, match=rf"{name}: expected images, could not read them"):
            _ = Stack(path).names
    path.unlink()
    with pytest.raises(OSError, match=rf"{name}: expected images"):
        _ = Stack(path).names


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[["text"]]], dtype=object))
    with pytest.raises(OSError, match=r"a\.npy: expected images"):
        _ = Stack(tmp_path / "a.npy").names


@pytest.mark.parametrize(
    ("arrays", "key", "found"),
    [
        ({"a": np.eye(3)}, None, r"a \(3, 3\) float64"),
        ({"a": STACK, "b": STACK}, None, r"a \(4, 9, 11\) float64, b \(4, 9, 11\) float64"),
        ({"a": STACK}, "b", r"a \(4, 9, 11\) float64"),
        ({"a": 1j * STACK}, None, r"a \(4, 9, 11\) complex128"),
        ({"a": np.zeros((0, 3, 3))}, None, r"a \(0, 3, 3\) float64"),
    ],
)
def test_stack_without_a_usable_array(tmp_path: Path, arrays: dict, key: str | None, found: str) -> None:
    write_mat_5(tmp_path / "a.mat", **arrays)
    with pytest.raises(ValueError, match=rf"a\.mat: expected .* real 3-D array.*, found {found}; name one of several"):
        _ = Stack(tmp_path / "a.mat", key).names


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.01, 1.01, 255.0])
def test_values_outside_the_unit_interval(tmp_path: Path, value: float) -> None:
    bad = STACK.astype(np.float32)
    bad[1, 3, 4] = value
    np.save(tmp_path / "a.npy", bad)
    Image.fromarray(bad[1]).save(tmp_path / "b.tif")
    Stack(tmp_path / "a.npy").read(0, color=False)
    with pytest.raises(ValueError, match=r"a\.npy/1: expected finite values in \[0, 1\], got \["):
        Stack(tmp_path / "a.npy").read(1, color=False)
    with pytest.raises(ValueError, match=r"b\.tif: expected finite values in \[0, 1\], got \["):
        read(tmp_path / "b.tif", color=False)
