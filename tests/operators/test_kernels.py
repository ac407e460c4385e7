"""Kernels are what their formulas say, or what their files hold; what is no point-spread function is refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from elder.operators import (
    CircularBlur,
    Deblurring,
    DiagonalKernel,
    Downsampling,
    Gaussian,
    GaussianKernel,
    Kernel,
    KernelFile,
    MotionKernel,
    Scene,
    UniformKernel,
)
from elder.operators.kernels import stack
from tests.properties import concrete_subclasses

# Not symmetric, not square, of different sizes: a transposition or a mix-up shows.
MATRICES = [np.arange(1.0, 16).reshape(3, 5) / 120, np.array([[0.5], [0.25], [0.25]])]


def write_v5(path: Path) -> Path:
    cells = np.empty((1, 2), dtype=object)
    cells[0, :] = MATRICES
    scipy.io.savemat(path, {"kernels": cells})
    return path


def write_v73(path: Path) -> Path:
    """Column-major, that is with the axes reversed, cells by reference, as MATLAB writes version 7.3."""
    with h5py.File(path, "w") as file:
        references = [file.create_dataset(f"#refs#/{i}", data=m.T).ref for i, m in enumerate(MATRICES)]
        file.create_dataset("kernels", data=np.array(references, dtype=h5py.ref_dtype).reshape(2, 1))
    return path


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


class Given(Kernel):
    """A kernel that a test makes."""

    def __init__(self, k: Tensor) -> None:
        self.k = k

    def __call__(self) -> Tensor:
        return self.k


KERNELS: dict[str, Callable[[Path], Kernel]] = {
    "gaussian": lambda folder: GaussianKernel(5, 0.8),
    "anisotropic": lambda folder: GaussianKernel(9, 2.0, 0.8, 30.0),
    "uniform": lambda folder: UniformKernel(3),
    "diagonal": lambda folder: DiagonalKernel(5),
    "motion": lambda folder: MotionKernel(9, 1),
    "smallest motion": lambda folder: MotionKernel(3, 1),
    "file": lambda folder: KernelFile(write_v5(folder / "k.mat"), 1),
    "normalized": lambda folder: KernelFile(write_npz(folder / "k.npz", k=7 * MATRICES[0]), normalize=True),
}


@pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS.keys())
def test_is_a_point_spread_function(make: Callable[[Path], Kernel], tmp_path: Path) -> None:
    kernel = make(tmp_path)
    k = kernel()
    assert k.shape[:2] == (1, 1)
    assert k.dtype == torch.float64
    assert (k >= 0).all()
    assert k.sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(kernel(), k)
    assert torch.equal(stack([kernel]), k)


def test_every_kernel_is_tested(tmp_path: Path) -> None:
    assert concrete_subclasses(Kernel) <= {type(make(tmp_path)) for make in KERNELS.values()}


def test_isotropic_kernels_are_their_formulas() -> None:
    i = np.arange(5) - 2.0
    expected = np.exp(-(i[:, None] ** 2 + i**2) / (2 * 0.8**2))
    torch.testing.assert_close(GaussianKernel(5, 0.8)()[0, 0], torch.from_numpy(expected / expected.sum()))
    assert GaussianKernel(4, 0.8)()[0, 0].argmax() == 2 * 4 + 2  # origin at size // 2
    torch.testing.assert_close(UniformKernel(3)(), torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64))


def moments(k: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of mass from the origin, (row, column), and covariance of a kernel (1, 1, h, w)."""
    row, column = torch.meshgrid(*(torch.arange(n, dtype=k.dtype) - n // 2 for n in k.shape[-2:]), indexing="ij")
    positions = torch.stack([row.flatten(), column.flatten()])
    mean = positions @ k.flatten()
    return mean, (positions * k.flatten()) @ positions.T - torch.outer(mean, mean)


def test_covariance_of_an_anisotropic_kernel() -> None:
    """The direction turns from rows (0°) to columns (90°), clockwise in a picture whose rows go down."""
    mean, covariance = moments(GaussianKernel(41, 3.0, 1.5, 30.0)())
    direction = torch.tensor([math.sin(math.radians(30)), math.cos(math.radians(30))], dtype=torch.float64)
    expected = 1.5**2 * torch.eye(2) + (3.0**2 - 1.5**2) * torch.outer(direction, direction)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 9, 23])
@pytest.mark.parametrize("seed", range(4))
def test_a_motion_kernel_is_centred_and_fills_its_frame(size: int, seed: int) -> None:
    k = MotionKernel(size, seed)()
    assert k.shape == (1, 1, size, size)
    mean, _ = moments(k)
    torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    assert any(border.sum() > 0 for border in (k[..., 0, :], k[..., -1, :], k[..., :, 0], k[..., :, -1]))
    assert not torch.equal(k, MotionKernel(size, seed + 4)())


@pytest.mark.parametrize("size", [9, 23])
def test_a_motion_kernel_is_a_connected_path(size: int) -> None:
    """Pixels that the path visits touch each other, and are few in a large frame."""
    for seed in range(4):
        visited = MotionKernel(size, seed)()[0, 0] > 0
        _, n_parts = scipy.ndimage.label(visited.numpy(), structure=np.ones((3, 3)))
        assert n_parts == 1
        assert size < 20 or visited.double().mean() < 0.5


LEVIN_SIZES = [19, 17, 15, 27, 13, 21, 23, 23]


PUBLISHED_SPREAD = torch.tensor([25.9, 0.095], dtype=torch.float64)


def spread(kernels: list[Tensor]) -> Tensor:
    """How many pixels share the light, and what the brightest has of it, in the mean."""
    return torch.tensor([[1 / k.square().sum(), k.max()] for k in kernels], dtype=torch.float64).mean(0)


def test_motion_kernels_are_like_the_published() -> None:
    found = spread([MotionKernel(size - 4, seed)() for size in LEVIN_SIZES for seed in range(8)])
    torch.testing.assert_close(found, PUBLISHED_SPREAD, rtol=0.15, atol=0)


def test_spread_of_the_published_motion_kernels(real_data: Callable[[str], Path]) -> None:
    kernels = [KernelFile(real_data("kernels/Levin09.mat"), i)() for i in range(8)]
    assert [k.shape[-1] for k in kernels] == LEVIN_SIZES
    torch.testing.assert_close(spread(kernels), PUBLISHED_SPREAD, rtol=5e-3, atol=0)
    assert max(moments(k)[0].abs().max().item() for k in kernels) == pytest.approx(3.28, abs=0.01)


def test_published_kernels(real_data: Callable[[str], Path]) -> None:
    """Orientation: the file of version 5 repeats two of the kernels of version 7.3, in a frame of 25 pixels."""
    levin, twelve = real_data("kernels/Levin09.mat"), real_data("kernels/kernels_12.mat")
    framed = stack([KernelFile(levin, 7), KernelFile(levin, 6)])
    copies = stack([KernelFile(twelve, 8), KernelFile(twelve, 9)])
    torch.testing.assert_close(copies[..., 1:-1, 1:-1], framed, rtol=0, atol=1e-8)
    wide, narrow = 7**0.5, 1.5**0.5
    isotropic = [(sigma, None, 0) for sigma in (0.7, 1.2, 1.6, 2)]
    others = [(wide, 2**0.5, 0), (3, narrow, 144), (8**0.5, narrow, 45), (wide, 5**0.5, 52.2)]
    for i, (sigma, across, angle) in enumerate(isotropic + others):
        formula = GaussianKernel(25, sigma, across, angle)()
        torch.testing.assert_close(KernelFile(twelve, i)(), formula, rtol=0, atol=2e-8)


@pytest.mark.parametrize("write", [write_v5, write_v73])
def test_cells_of_a_file_are_as_matlab_shows_them(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "k.mat")
    for i, matrix in enumerate(MATRICES):
        assert np.array_equal(KernelFile(path, i)()[0, 0].numpy(), matrix)
        assert np.array_equal(KernelFile(path, i, key="kernels")()[0, 0].numpy(), matrix)


def test_pages_of_a_file_are_its_kernels(tmp_path: Path) -> None:
    pages = np.stack([MATRICES[0], MATRICES[0][::-1]])
    scipy.io.savemat(tmp_path / "v5.mat", {"k": pages.transpose(1, 2, 0)})
    with h5py.File(tmp_path / "v73.mat", "w") as file:
        file["k"] = pages.transpose(0, 2, 1)
    np.save(tmp_path / "k.npy", pages)
    write_npz(tmp_path / "k.npz", k=pages, other=np.eye(2))
    for name in ("v5.mat", "v73.mat", "k.npy", "k.npz"):
        for i, page in enumerate(pages):
            k = KernelFile(tmp_path / name, i, "k")()
            assert np.array_equal(k[0, 0].numpy(), page), name


def test_configurable_from_yaml(tmp_path: Path) -> None:
    path = write_v5(tmp_path / "k.mat")
    parser = ArgumentParser()
    parser.add_argument("--kernel", type=Kernel | list[Kernel])
    kernels = [{"class_path": "KernelFile", "init_args": {"path": str(path), "index": i}} for i in range(2)]
    parsed = parser.instantiate_classes(parser.parse_object({"kernel": kernels}))
    assert parsed.kernel == [KernelFile(path, 0), KernelFile(path, 1)]


@pytest.mark.parametrize(("last", "size"), [(UniformKernel(7), 7), (UniformKernel(6), 6)])
def test_kernels_of_different_sizes_share_a_frame_and_an_origin(last: Kernel, size: int) -> None:
    """Even sizes too, whose origin lies after the middle."""
    kernels = [UniformKernel(1), GaussianKernel(4, 0.9, 0.5, 20.0), MotionKernel(5, 0), last]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = stack(kernels)
    assert all("of even size" in str(warning.message) for warning in caught)
    assert len(caught) == 1 + (size % 2 == 0)
    assert frames.shape == (4, 1, size, size)
    together = CircularBlur(frames, (7, 8), warn=False).otf
    for i, kernel in enumerate(kernels):
        assert torch.equal(together[i : i + 1], CircularBlur(kernel(), (7, 8), warn=False).otf)


NAN = torch.full((1, 1, 3, 3), math.nan)
BAD_KERNELS = {
    "sum": (torch.full((1, 1, 3, 3), 0.25), r"kernel of sum 1 \(± 0.001\).*got sum 2.25; divide it.*normalize: true"),
    "nearly 1": (torch.full((1, 1, 3, 3), 1.002 / 9), "got sum 1.002; divide"),
    "negative sum": (torch.full((1, 1, 3, 3), -1 / 9), "got sum -1; divide"),
    "nan": (NAN, "finite kernel, got NaN or infinity"),
    "complex": (torch.ones(1, 1, 1, 1, dtype=torch.complex128), r"real kernel .* got torch.complex128 \(1, 1, 1, 1\)"),
    "axes": (torch.ones(1, 1), r"real kernel \(1, 1, height, width\), got torch.float32 \(1, 1\)"),
    "larger than the image": (UniformKernel(9)(), "image of at least 9×9, the size of the kernel, got 8×8"),
}


@pytest.mark.parametrize(("k", "message"), BAD_KERNELS.values(), ids=BAD_KERNELS.keys())
def test_bad_kernels_are_refused(k: Tensor, message: str) -> None:
    scene, draws = Scene(torch.zeros(1, 1, 8, 8)), [torch.Generator()]
    for kernel in (Given(k), [UniformKernel(3), Given(k)]):
        for acquisition in (Deblurring(kernel, Gaussian(0.0)), Downsampling(kernel, 2, Gaussian(0.0))):
            with pytest.raises(ValueError, match=message):
                acquisition(scene, draws)


def test_a_kernel_of_even_size_is_warned_of_once() -> None:
    acquisition = Deblurring(UniformKernel(4), Gaussian(0.0))
    with pytest.warns(UserWarning, match=r"4×4 pixels, of even size, have no centre; the origin is the pixel \(2, 2\)"):
        acquisition(Scene(torch.zeros(1, 1, 8, 8)), [torch.Generator()])
    acquisition(Scene(torch.zeros(1, 1, 8, 8)), [torch.Generator()])
    for size in ((5, 4), (4, 5)):
        with pytest.warns(UserWarning, match="{}×{} pixels, of even size".format(*size)):
            stack([Given(torch.full((1, 1, *size), 1 / 20))])


def damaged(folder: Path) -> Path:
    (folder / "damaged.mat").write_bytes(b"no kernel" * 50)
    return folder / "damaged.mat"


BAD_FILES = {
    "missing": (lambda f: KernelFile(f / "none.mat"), r"none.mat: expected a .mat, .npz or .npy file, found none"),
    "damaged": (lambda f: KernelFile(damaged(f)), r"damaged.mat: expected a readable .mat, .npz or .npy file, got "),
    "index": (lambda f: KernelFile(write_v5(f / "k.mat"), 2), r"KernelFile\(.*index=2.* expected an index below 2"),
    "negative index": (lambda f: KernelFile(write_v5(f / "k.mat"), -1), "expected an index below 2"),
    "key": (lambda f: KernelFile(write_v5(f / "k.mat"), 0, "K"), "expected an array K, got kernels; set another key"),
    "no key": (
        lambda f: KernelFile(write_npz(f / "k.npz", a=np.eye(3), b=np.eye(3))),
        "file of one array, got a, b; set key",
    ),
    "axes": (
        lambda f: KernelFile(write_npz(f / "k.npz", a=np.ones(3))),
        r"matrices of numbers in a, got float64 \(3,\)",
    ),
    "text": (
        lambda f: KernelFile(write_npz(f / "k.npz", a=np.array([["k"]]))),
        r"matrices of numbers in a, got <U1 \(1, 1\)",
    ),
    "normalize": (
        lambda f: KernelFile(write_npz(f / "k.npz", a=-np.ones((3, 3))), normalize=True),
        "expected a kernel of positive sum to normalize, got -9",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files_are_reported(make: Callable[[Path], Kernel], message: str, tmp_path: Path) -> None:
    kernel = make(tmp_path)  # nothing is read before the kernel is asked for
    with pytest.raises(ValueError, match=message):
        kernel()


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda: GaussianKernel(3, 0.0), r"GaussianKernel: expected a whole size >= 1 and sigma > 0, got 3 and 0.0"),
        (
            lambda: GaussianKernel(5.5, 1.0),
            r"GaussianKernel: expected a whole size >= 1 .* got 5.5 and 1.0",
        ),
        (lambda: GaussianKernel(3, 1.0, 0.0), r"GaussianKernel: expected sigma_across > 0 or null, got 0.0"),
        (lambda: UniformKernel(0), r"UniformKernel: expected a whole size >= 1, got 0"),
        (lambda: UniformKernel(3.0), r"UniformKernel: expected a whole size >= 1, got 3.0"),
        (lambda: DiagonalKernel(3.0), r"DiagonalKernel: expected an odd size of at least 1, got 3.0"),
        (lambda: MotionKernel(5.0, 0), r"MotionKernel: expected an odd size of at least 3, got 5.0"),
        (lambda: DiagonalKernel(4), r"DiagonalKernel: expected an odd size of at least 1, got 4"),
        (lambda: MotionKernel(4, 0), r"MotionKernel: expected an odd size of at least 3, got 4"),
        (lambda: MotionKernel(1, 0), r"MotionKernel: expected an odd size of at least 3, got 1"),
    ],
)
def test_bad_arguments_are_reported(misuse: Callable[[], Kernel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        misuse()
