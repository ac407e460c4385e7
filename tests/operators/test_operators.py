"""Every concrete operator obeys the theorems of a linear operator, and says in words what does not fit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from elder.operators import (
    CircularBlur,
    ComplexImage,
    Fourier,
    GaussianKernel,
    Identity,
    IntensityDiffraction,
    LinearOperator,
    Mask,
    PixelMask,
    Radon,
    RealSampling,
    Sensitivity,
    SuperResolution,
    UniformKernel,
    multi_coil,
    single_coil,
)
from tests.properties import OPERATOR_THEOREMS, concrete_subclasses, dense, measured

COMPLEX, REAL = torch.complex128, torch.float64
ANGLES = torch.tensor([10.0, 63.0, 90.0, 171.0])  # degrees


def rand(*shape: int, dtype: torch.dtype = REAL, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def kernel(batch: int, height: int, width: int) -> Tensor:
    """Asymmetric and positive, so that a flip, a transposition or a shift shows."""
    k = torch.rand(batch, 1, height, width, dtype=REAL, generator=torch.Generator().manual_seed(5))
    return k / k.sum((-2, -1), keepdim=True)


def columns(batch: int, width: int) -> Tensor:
    """Most of four or five columns with that of zero frequency, other ones in every sample, none of them symmetric."""
    mask = torch.ones(3, 1, 1, width, dtype=torch.bool)
    for sample, left_out in zip(mask, ([3], [1], [0, 3]), strict=True):
        sample[..., left_out] = False
    return mask[:batch]


class Instance(NamedTuple):
    A: LinearOperator
    x: Tensor  # a batch of images that A takes


INSTANCES = {
    "identity": Instance(Identity(), rand(3, 1, 3, 4)),
    "identity-complex": Instance(Identity(), rand(1, 1, 3, 4, dtype=COMPLEX)),
    "fourier-even": Instance(Fourier(), rand(1, 1, 4, 6, dtype=COMPLEX)),
    "fourier-odd": Instance(Fourier(), rand(3, 1, 5, 3, dtype=COMPLEX)),
    "complex-image": Instance(ComplexImage(), rand(3, 1, 3, 4)),
    "mask-bool-shared": Instance(Mask(columns(1, 5)), rand(3, 2, 2, 5, dtype=COMPLEX)),
    "mask-bool-per-sample": Instance(Mask(columns(3, 5)), rand(3, 1, 2, 5)),
    "mask-weights-per-sample": Instance(Mask(rand(3, 2, 3, 4, seed=1)), rand(3, 2, 3, 4)),
    "sensitivity-shared": Instance(Sensitivity(rand(1, 3, 3, 4, dtype=COMPLEX)), rand(3, 1, 3, 4, dtype=COMPLEX)),
    "sensitivity-per-sample": Instance(Sensitivity(rand(3, 2, 3, 3, dtype=COMPLEX)), rand(3, 1, 3, 3, dtype=COMPLEX)),
    "blur-odd-kernel": Instance(CircularBlur(kernel(1, 3, 5), (4, 6)), rand(1, 2, 4, 6)),
    "blur-even-kernel": Instance(CircularBlur(kernel(1, 4, 2), (5, 3), warn=False), rand(3, 1, 5, 3)),
    "blur-per-sample": Instance(CircularBlur(kernel(3, 3, 3), (4, 5)), rand(3, 1, 4, 5)),
    "blur-complex": Instance(CircularBlur(kernel(3, 3, 2), (4, 3), warn=False), rand(3, 1, 4, 3, dtype=COMPLEX)),
    "super-resolution-2": Instance(SuperResolution(kernel(1, 3, 3), (4, 6), 2), rand(3, 2, 4, 6)),
    "super-resolution-3": Instance(SuperResolution(kernel(3, 4, 3), (6, 9), 3, warn=False), rand(3, 1, 6, 9)),
    "super-resolution-complex": Instance(SuperResolution(kernel(1, 3, 3), (4, 6), 2), rand(1, 1, 4, 6, dtype=COMPLEX)),
    "single-coil": Instance(single_coil(columns(3, 5)), rand(3, 1, 4, 5, dtype=COMPLEX)),
    "single-coil-real": Instance(single_coil(columns(1, 5)) @ ComplexImage(), rand(3, 1, 4, 5)),
    "real-sampling": Instance(RealSampling(rand(1, 1, 4, 5, seed=1)), rand(3, 1, 4, 5)),
    "real-sampling-per-sample": Instance(RealSampling(rand(3, 1, 5, 4, seed=2) > 0), rand(3, 1, 5, 4)),
    "multi-coil": Instance(multi_coil(columns(3, 4), rand(3, 2, 3, 4, dtype=COMPLEX)), rand(3, 1, 3, 4, dtype=COMPLEX)),
    "radon": Instance(Radon(ANGLES, (5, 6)), rand(3, 2, 5, 6)),
    "radon-circle": Instance(Radon(ANGLES[:2], (6, 6), circle=True, pixel_size=0.5), rand(1, 1, 6, 6)),
    "radon-per-sample": Instance(Radon(torch.stack((ANGLES, 2 * ANGLES, -ANGLES)), (4, 5)), rand(3, 2, 4, 5)),
    "radon-complex": Instance(Radon(ANGLES, (4, 5)), rand(3, 1, 4, 5, dtype=COMPLEX)),
    "multi-coil-real": Instance(
        multi_coil(columns(1, 4), rand(1, 4, 3, 4, dtype=COMPLEX)) @ ComplexImage(), rand(3, 1, 3, 4)
    ),
    "scaled-radon": Instance(0.3 * Radon(ANGLES, (4, 5)), rand(3, 1, 4, 5)),
    "intensity-diffraction": Instance(
        IntensityDiffraction(rand(4, 2, seed=1) / 9, (4, 5), (-0.7, 0.4), pixel_size=0.19),
        rand(3, 2, 4, 5, dtype=COMPLEX),
    ),
    "adjoint": Instance(multi_coil(columns(1, 4), rand(3, 2, 3, 4, dtype=COMPLEX)).H, rand(3, 2, 3, 4, dtype=COMPLEX)),
    "adjoint-unitary": Instance(Fourier().H, rand(1, 1, 3, 4, dtype=COMPLEX)),
    "composition-unitary": Instance(Fourier() @ Identity(), rand(1, 1, 3, 4, dtype=COMPLEX)),
    "pixel-mask": Instance(PixelMask(columns(3, 5)), rand(3, 2, 2, 5)),
    "composition-half-unitary": Instance(Identity() @ Mask(columns(1, 4)), rand(1, 1, 3, 4)),
    "sum": Instance(CircularBlur(kernel(3, 3, 3), (4, 5)) + Mask(columns(1, 5)), rand(3, 1, 4, 5)),
    "scaled": Instance(-0.5 * single_coil(columns(3, 5)), rand(3, 1, 2, 5, dtype=COMPLEX)),
}


@pytest.mark.parametrize("theorem", OPERATOR_THEOREMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("instance", INSTANCES.values(), ids=INSTANCES.keys())
def test_theorem(instance: Instance, theorem: Callable[[LinearOperator, Tensor], None]) -> None:
    theorem(*instance)


def test_every_operator_has_an_instance() -> None:
    tested = {type(instance.A) for instance in INSTANCES.values()}
    assert concrete_subclasses(LinearOperator) <= tested


def test_algebra_of_two_operators() -> None:
    L, R = Mask(rand(1, 1, 4, 5, seed=1)), CircularBlur(kernel(1, 3, 3), (4, 5))
    x = rand(1, 1, 4, 5)
    torch.testing.assert_close(dense(L @ R, x), dense(L, x) @ dense(R, x))
    torch.testing.assert_close(dense(L + 3 * R, x), dense(L, x) + 3 * dense(R, x))
    torch.testing.assert_close(dense((L @ R).H, x), dense(R.H @ L.H, x))


def test_adjoint_of_the_adjoint_is_the_operator_itself() -> None:
    for name in ("blur-complex", "multi-coil", "sum", "scaled"):
        A = INSTANCES[name].A
        assert A.H.H is A


@pytest.mark.parametrize("name", ["mask-bool-per-sample", "single-coil", "multi-coil", "scaled", "blur-complex"])
def test_restriction_zeroes_all_that_is_not_measured(name: str) -> None:
    A, x = INSTANCES[name]
    y = rand(*A(x).shape, dtype=A(x).dtype, seed=4)
    assert torch.equal(A.restrict(y), torch.where(measured(A, x), y, 0))


def test_scaling_is_real() -> None:
    with pytest.raises(TypeError, match="complex"):
        1j * Identity()


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_fourier_is_numpys_centred_transform(size: tuple[int, int]) -> None:
    x = rand(2, 1, *size, dtype=COMPLEX)
    axes = (-2, -1)
    y = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x.numpy(), axes=axes), norm="ortho"), axes=axes)
    torch.testing.assert_close(Fourier()(x), torch.from_numpy(y))


@pytest.mark.parametrize("size", [(3, 3), (4, 2), (5, 4)])
def test_blur_is_periodic_convolution(size: tuple[int, int]) -> None:
    k, x = kernel(1, *size), rand(1, 1, 6, 7)
    shifted = [
        k[0, 0, a, b] * x.roll((a - size[0] // 2, b - size[1] // 2), dims=(-2, -1))
        for a in range(size[0])
        for b in range(size[1])
    ]
    torch.testing.assert_close(CircularBlur(k, (6, 7), warn=False)(x), torch.stack(shifted).sum(0))


def test_blur_of_an_impulse_is_the_kernel_about_its_origin() -> None:
    k, x = kernel(1, 3, 4), torch.zeros(1, 1, 8, 8, dtype=REAL)
    x[..., 4, 5] = 1
    torch.testing.assert_close(CircularBlur(k, (8, 8), warn=False)(x)[..., 4 - 1 : 4 + 2, 5 - 2 : 5 + 2], k)


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (torch.full((1, 1, 4, 5), 1 / 20), r"CircularBlur: 4×5 pixels, of even size, .* pixel \(2, 2\)"),
        (
            torch.stack([torch.full((1, 3, 3), 1 / 9), torch.ones(1, 3, 3)]),
            r"a kernel has sum 9, so that Ax is not as br",
        ),
        (-torch.ones(1, 1, 1, 1), r"a kernel has sum -1, "),
    ],
)
def test_a_kernel_that_may_be_a_slip_is_warned_of(k: Tensor, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        CircularBlur(k, (6, 6))
    with pytest.warns(UserWarning, match=message):
        SuperResolution(k, (6, 6), 2)


def test_decimation_keeps_the_first_pixel() -> None:
    x = rand(1, 1, 4, 6)
    torch.testing.assert_close(SuperResolution(torch.ones(1, 1, 1, 1, dtype=REAL), (4, 6), 2)(x), x[..., ::2, ::2])


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_super_resolution_starts_from_cubic_convolution(dtype: torch.dtype) -> None:
    A = SuperResolution(GaussianKernel(3, 1.0)(), (6, 9), 3)
    y = rand(1, 1, 2, 3, dtype=dtype)
    rows, cols = _cubic_convolution(2, 3).to(dtype), _cubic_convolution(3, 3).to(dtype)
    torch.testing.assert_close(A.initialize(y), rows @ y @ cols.mT)


def _cubic_convolution(n: int, scale: int, a: float = -0.75) -> Tensor:
    """Periodic cubic convolution of n samples at n·scale points, as a matrix (Keys, 1981, equation 4)."""
    P = torch.zeros(n * scale, n, dtype=REAL)
    for i in range(n * scale):
        for j in range(i // scale - 1, i // scale + 3):
            s = abs(i / scale - j)
            near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4)
            P[i, j % n] += near if s <= 1 else far
    return P


@pytest.mark.parametrize(("size", "scale"), [((4, 6), 2), ((9, 3), 3), ((2, 2), 2), ((4, 6), 1)])
def test_super_resolution_starts_from_the_pixels_that_were_sampled(size: tuple[int, int], scale: int) -> None:
    A = SuperResolution(UniformKernel(1)(), size, scale)
    y = rand(1, 2, size[0] // scale, size[1] // scale)
    torch.testing.assert_close(A(A.initialize(y)), y)
    torch.testing.assert_close(A.initialize(torch.ones_like(y)), torch.ones(1, 2, *size, dtype=REAL))


MAPS = torch.ones(4, 15, 6, 5, dtype=COMPLEX)
BLUR = torch.full((1, 1, 3, 3), 1 / 9)
MISFITS = {
    "coils": (
        lambda: Sensitivity(MAPS).adjoint(torch.ones(4, 12, 6, 5, dtype=COMPLEX)),
        r"Sensitivity: expected y \(4, 15, 6, 5\) for 15 coils \(maps \(4, 15, 6, 5\)\), got y \(4, 12, 6, 5\); give ",
    ),
    "batch of maps": (
        lambda: Sensitivity(MAPS)(torch.ones(1, 1, 6, 5, dtype=COMPLEX)),
        r"expected x \(4, 1, 6, 5\) for 15 coils .* got x \(1, 1, 6, 5\)",
    ),
    "coil image": (
        lambda: Sensitivity(MAPS)(torch.ones(4, 15, 6, 5, dtype=COMPLEX)),
        r"expected x \(4, 1, 6, 5\)",
    ),
    "real image and maps": (
        lambda: Sensitivity(MAPS)(torch.ones(4, 1, 6, 5)),
        r"expected complex x, got torch.float32",
    ),
    "real maps": (
        lambda: Sensitivity(torch.ones(1, 2, 3, 3)),
        r"expected complex maps .* got torch.float32 \(1, 2, 3, 3\)",
    ),
    "mask width": (
        lambda: single_coil(columns(1, 5))(torch.ones(2, 1, 4, 6, dtype=COMPLEX)),
        r"Mask: expected x \(any, any, any, 5\) for mask \(1, 1, 1, 5\), got x \(2, 1, 4, 6\)",
    ),
    "mask batch": (lambda: Mask(columns(3, 5))(torch.ones(1, 1, 4, 5)), r"Mask: expected x \(3, any, any, 5\)"),
    "mask axes": (lambda: Mask(torch.ones(4, 5)), r"Mask: expected a real or bool mask .* got torch.float32 \(4, 5\)"),
    "real spectrum": (
        lambda: Fourier()(torch.ones(1, 1, 4, 5)),
        r"Fourier: expected complex data, got torch.float32; ",
    ),
    "complex image": (
        lambda: ComplexImage()(torch.ones(1, 1, 2, 2, dtype=COMPLEX)),
        r"ComplexImage: expected a real image, got torch.complex128",
    ),
    "blurred size": (
        lambda: CircularBlur(BLUR, (4, 5))(torch.ones(2, 3, 4, 6)),
        r"CircularBlur: expected x \(any, any, 4, 5\) for transfer function \(1, 1, 4, 5\), got x \(2, 3, 4, 6\)",
    ),
    "kernel size": (
        lambda: CircularBlur(BLUR, (2, 5)),
        r"expected an image of at least 3×3, the size of the kernel, got 2×5",
    ),
    "kernel axes": (lambda: CircularBlur(BLUR[0], (4, 5)), r"expected a real kernel .* got torch.float32 \(1, 3, 3\)"),
    "zero kernel": (lambda: CircularBlur(0 * BLUR, (4, 5)), r"finite real numbers, not all of them zero, got"),
    "kernel numbers": (lambda: CircularBlur(BLUR * torch.nan, (4, 5)), r"expected a kernel of finite real numbers"),
    "integer kernel": (lambda: CircularBlur(BLUR.int(), (4, 5)), r"expected a kernel of .* got torch.int32 .*; check"),
    "mask of another size": (
        lambda: RealSampling(torch.ones(1, 1, 4, 6)).gram(torch.ones(2, 1, 4, 5)),
        r"RealSampling: expected x \(any, any, 4, 6\) for mask \(1, 1, 4, 6\), got x \(2, 1, 4, 5\)",
    ),
    "resolvent of another size": (
        lambda: RealSampling(torch.ones(1, 1, 4, 6)).gram_resolvent(torch.ones(2, 1, 5, 6), torch.ones(())),
        r"RealSampling: expected z \(any, any, 4, 6\) for mask \(1, 1, 4, 6\), got z \(2, 1, 5, 6\)",
    ),
    "scale of no whole number": (
        lambda: SuperResolution(BLUR, (4, 6), 2.0),
        r"SuperResolution: expected a scale of 1, 2, 3, …, got 2.0; give a whole number",
    ),
    "start of another size": (
        lambda: SuperResolution(BLUR, (4, 6), 2).initialize(torch.ones(1, 1, 3, 3)),
        r"SuperResolution: expected y \(any, any, 2, 3\) for images 4×6 and scale 2, got y \(1, 1, 3, 3\)",
    ),
    "mask of no numbers": (
        lambda: RealSampling(torch.full((1, 1, 4, 6), torch.nan)),
        r"Mask: expected a finite mask, got NaN or infinity in it; correct its source",
    ),
    "scale": (
        lambda: SuperResolution(BLUR, (4, 5), 2),
        r"SuperResolution: expected an image size divisible by the scale 2, got 4×5; crop the images",
    ),
    "coarse size": (
        lambda: SuperResolution(BLUR, (4, 6), 2).adjoint(torch.ones(1, 1, 4, 6)),
        r"SuperResolution: expected y \(any, any, 2, 3\) for images 4×6 and scale 2, got y \(1, 1, 4, 6\)",
    ),
}


@pytest.mark.parametrize(("misuse", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_misfit_is_reported_in_words(misuse: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        misuse()


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_inpainting_starts_from_pixels_around(dtype: torch.dtype) -> None:
    """Measured ones as they are, also under weights; others the mean of those in the smallest square that has any."""
    mask = torch.zeros(1, 1, 7, 9)
    mask[0, 0, 0, 0], mask[0, 0, 0, 2], mask[0, 0, 6, 8] = 1, 2, 4
    x = rand(2, 2, 7, 9, dtype=dtype)
    A = PixelMask(mask)
    start = A.initialize(A(x))
    assert torch.allclose(start[mask.expand(2, 2, -1, -1) > 0], x[mask.expand(2, 2, -1, -1) > 0])
    pair = (x[..., 0, 0] + x[..., 0, 2]) / 2
    for row, column, expected in ((0, 1, pair), (1, 1, pair), (1, 0, x[..., 0, 0]), (6, 7, x[..., 6, 8])):
        assert torch.allclose(start[..., row, column], expected)
    everything = (x[..., 0, 0] + x[..., 0, 2] + x[..., 6, 8]) / 3
    assert torch.allclose(start[..., 4, 4], everything)  # neither 3 nor 5 pixels reach any; 9 reach all
    constant = torch.full_like(x, 0.7)
    assert torch.allclose(A.initialize(A(constant)), constant)
    assert torch.equal(PixelMask(0 * mask).initialize(0 * x), 0 * x)  # nothing known


def test_a_large_block_is_filled_in_with_means_over_squares() -> None:
    x, mask = rand(1, 1, 256, 256), torch.ones(1, 1, 256, 256)
    mask[..., 64:192, 64:192] = 0
    filled = PixelMask(mask).initialize(mask * x)
    around = (mask * x)[..., 64:193, 64:193]  # the corner of which is all that is known
    torch.testing.assert_close(filled[..., 128, 128], around.sum((-2, -1)) / (2 * 129 - 1))


def test_no_buffer_is_saved() -> None:
    """Measurements belong to the data, not to a checkpoint."""
    for instance in INSTANCES.values():
        assert not instance.A.state_dict()
