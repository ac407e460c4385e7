"""A measurement depends on its image and its generator alone, and follows y = Ax + n on the sampled positions."""

from __future__ import annotations

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from elder.linalg import conj
from elder.operators import (
    Acquisition,
    BlockInpainting,
    CartesianMRI,
    Deblurring,
    Denoising,
    DiffractionTomography,
    Downsampling,
    Fourier,
    FourierSampling,
    Gaussian,
    GaussianKernel,
    Inpainting,
    InverseProblem,
    MotionKernel,
    RadialMask,
    RandomMask,
    Scene,
    Tomography,
    UniformKernel,
    multi_coil,
)
from tests.properties import concrete_subclasses

NOISE = Gaussian(0.05, 0.2)
MASK = RandomMask([0.2], [2])
ACQUISITIONS = {
    "denoising": Denoising(NOISE),
    "inpainting": Inpainting(0.4, NOISE),
    "inpainting of a block": BlockInpainting(NOISE, (0.0, 0.3), (0.5, 1.0)),
    "deblurring": Deblurring(GaussianKernel(3, 0.9), NOISE),
    "downsampling": Downsampling(UniformKernel(3), 2, NOISE),
    "mri": CartesianMRI(MASK, NOISE),
    "fourier": FourierSampling(RadialMask(0.4), NOISE),
    "tomography": Tomography(4, NOISE),
    "diffraction": DiffractionTomography(NOISE, n_illuminations=3),
    "one of several losses": Inpainting([0.1, 0.4, 0.7], NOISE),
    "one of several kernels": Deblurring([GaussianKernel(3, 0.9), UniformKernel(1), MotionKernel(7, 0)], NOISE),
    "one of several kernels, decimated": Downsampling([MotionKernel(5, 1), UniformKernel(3)], 2, NOISE),
    "one of several masks": FourierSampling([RadialMask(0.3), RadialMask(0.6)], NOISE),
}


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pick(scene: Scene, samples: list[int]) -> Scene:
    return Scene(
        *(f if f is None else f[samples] if isinstance(f, Tensor) else tuple(f[i] for i in samples) for f in scene)
    )


IMAGE, COIL_IMAGE = rand(4, 1, 10, 14), rand(4, 1, 10, 14, dtype=torch.complex128)
MAPS, KSPACE = rand(4, 3, 10, 14, dtype=torch.complex128, seed=1), rand(4, 3, 10, 14, dtype=torch.complex128, seed=2)
VOLUME = ("a.h5", "a.h5", "b.h5", "c.h5")
SCENES = {name: (acquisition, Scene(IMAGE)) for name, acquisition in ACQUISITIONS.items()} | {
    "colour inpainting": (ACQUISITIONS["inpainting"], Scene(rand(4, 3, 10, 14))),
    "complex deblurring": (ACQUISITIONS["deblurring"], Scene(COIL_IMAGE)),
    "complex mri": (ACQUISITIONS["mri"], Scene(COIL_IMAGE, volume=VOLUME)),
    "complex fourier": (ACQUISITIONS["one of several masks"], Scene(COIL_IMAGE)),
    # No axis is broadcast and the size is odd: vectorised complex products round by position in the batch.
    "one coil with a map": (
        ACQUISITIONS["mri"],
        Scene(rand(4, 1, 9, 7, dtype=torch.complex128), maps=rand(4, 1, 9, 7, dtype=torch.complex128, seed=3)),
    ),
    "simulated coils": (ACQUISITIONS["mri"], Scene(COIL_IMAGE, maps=MAPS)),
    "simulated coils of a real image": (ACQUISITIONS["mri"], Scene(IMAGE, maps=MAPS)),
    "measured coils": (ACQUISITIONS["mri"], Scene(COIL_IMAGE, KSPACE, MAPS)),
}


def test_every_acquisition_is_tested() -> None:
    assert concrete_subclasses(Acquisition) <= {type(acquisition) for acquisition, _ in SCENES.values()}


@pytest.mark.parametrize(("acquisition", "scene"), SCENES.values(), ids=SCENES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measurement_does_not_depend_on_the_batch(acquisition: Acquisition, scene: Scene, dtype: torch.dtype) -> None:
    to = {torch.float64: dtype, torch.complex128: dtype.to_complex()}
    scene = Scene(*(f.to(to.get(f.dtype, f.dtype)) if isinstance(f, Tensor) else f for f in scene))
    batch = acquisition(scene, generators(5, 6, 7, 8))
    assert batch.y.dtype in to.values()
    for samples in ([0], [1], [2], [3], [2, 0], [3, 2, 1, 0]):
        part = acquisition(pick(scene, samples), generators(*(5 + i for i in samples)))
        assert torch.equal(part.y, batch.y[samples])
        assert torch.equal(part.sigma, batch.sigma[samples])
        assert torch.equal(part.A(part.x), part.A.restrict(part.A(part.x)))
        torch.testing.assert_close(part.A(part.x), batch.A(batch.x)[samples])


@pytest.mark.parametrize(
    "name", ["denoising", "inpainting", "deblurring", "downsampling", "mri", "simulated coils", "fourier"]
)
def test_noise_is_white_with_the_reported_sigma(name: str) -> None:
    """y − Ax, where it is measured, is what the noise model draws for zero, entry by entry."""
    acquisition, scene = SCENES[name]
    problem = acquisition(scene, generators(1, 2, 3, 4))
    noise = problem.y - problem.A(problem.x)
    noise = torch.view_as_real(noise) if noise.is_complex() else noise
    for n, sigma in zip(noise, problem.sigma, strict=True):
        drawn = n[n != 0] / sigma
        assert abs(drawn.square().mean().item() - 1) < 5 * (2 / drawn.numel()) ** 0.5


def test_inpainting_loses_the_pixels_it_says() -> None:
    problem = Inpainting(0.3, Gaussian(0.1))(Scene(torch.ones(2, 3, 60, 70)), generators(0, 1))
    lost = problem.y == 0
    assert (lost == lost[:, :1]).all()  # a pixel is lost in all channels
    assert not torch.equal(lost[0], lost[1])
    for sample in lost[:, 0].double():
        assert abs(sample.mean().item() - 0.3) < 5 * (0.3 * 0.7 / sample.numel()) ** 0.5
    assert torch.equal(problem.A(torch.ones(2, 3, 60, 70)) == 0, lost)


def test_a_block_is_lost_where_it_says() -> None:
    third = BlockInpainting(Gaussian(0.0), (0.0, 1 / 3), (0.0, 1.0))(Scene(torch.ones(1, 3, 12, 7)), generators(0))
    assert not third.y[..., :4, :].any() and third.y[..., 4:, :].all()
    centre = BlockInpainting(Gaussian(0.0))(Scene(torch.ones(2, 1, 8, 12)), generators(0, 1)).y
    assert not centre[..., 2:6, 3:9].any() and centre.sum() == 2 * (8 * 12 - 4 * 6)


def columns(problem: InverseProblem) -> Tensor:
    """The sampled columns, (B, W), found by measuring; a column that is sampled must be so in every row and coil."""
    kept = problem.A.restrict(torch.ones_like(problem.y)) != 0
    assert (kept == kept[:, :1, :1]).all()
    assert not problem.y[~kept].any()
    return kept[:, 0, 0]


@pytest.mark.parametrize("name", ["mri", "complex mri", "simulated coils", "measured coils"])
def test_unsampled_k_space_is_exactly_zero(name: str) -> None:
    acquisition, scene = SCENES[name]
    problem = acquisition(scene, generators(0, 1, 2, 3))
    kept = columns(problem)
    assert 0 < kept.sum() < kept.numel()
    assert (problem.y[..., 0, :].abs().sum(1) > 0).equal(kept)


def test_masks_are_those_of_the_volume() -> None:
    scene = Scene(COIL_IMAGE, volume=VOLUME)
    kept = columns(CartesianMRI(MASK, NOISE)(scene, generators(0, 1, 2, 3)))
    again = columns(CartesianMRI(MASK, NOISE)(scene, generators(9, 8, 7, 6)))
    assert torch.equal(kept, again)
    expected = [MASK(14, tuple(map(ord, name))) for name in VOLUME]
    assert torch.equal(kept, torch.stack(expected))
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


@pytest.mark.parametrize(
    ("acquisition", "scene"),
    [
        (CartesianMRI(MASK, NOISE), Scene(COIL_IMAGE)),
        (CartesianMRI(MASK, NOISE, False), Scene(COIL_IMAGE, volume=VOLUME)),
    ],
    ids=["unnamed volume", "mask per slice"],
)
def test_masks_are_those_of_the_generators(acquisition: CartesianMRI, scene: Scene) -> None:
    kept = columns(acquisition(scene, generators(0, 1, 2, 3)))
    assert torch.equal(kept, columns(acquisition(scene, generators(0, 1, 2, 3))))
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept, columns(acquisition(scene, generators(4, 5, 6, 7))))


def test_simulated_single_coil() -> None:
    problem = CartesianMRI(MASK, Gaussian(0.0))(Scene(COIL_IMAGE), generators(0, 1, 2, 3))
    kept = columns(problem)[:, None, None]
    torch.testing.assert_close(problem.y, kept * Fourier()(COIL_IMAGE))


def test_real_image_is_reconstructed_as_a_real_image() -> None:
    real = CartesianMRI(MASK, Gaussian(0.0))(Scene(IMAGE), generators(0, 1, 2, 3))
    embedded = CartesianMRI(MASK, Gaussian(0.0))(Scene(IMAGE.to(torch.complex128)), generators(0, 1, 2, 3))
    torch.testing.assert_close(real.y, embedded.y)
    torch.testing.assert_close(real.A.initialize(real.y), embedded.A.initialize(embedded.y).real)


@pytest.mark.parametrize("image", [IMAGE, COIL_IMAGE, None], ids=["real", "complex", "unknown"])
def test_measured_k_space_is_taken_as_it_is(image: Tensor | None) -> None:
    problem = CartesianMRI(MASK, Gaussian(0.0))(Scene(image, KSPACE, MAPS), generators(0, 1, 2, 3))
    kept = columns(problem)[:, None, None]
    assert torch.equal(problem.y, kept * KSPACE)
    assert problem.x is image
    combined = (conj(MAPS) * Fourier().adjoint(kept * KSPACE)).sum(1, keepdim=True)
    expected = combined if image is None or image.is_complex() else combined.real
    torch.testing.assert_close(problem.A.adjoint(problem.y), expected)


def test_sampling_of_the_scene_is_respected() -> None:
    mask = torch.rand(4, 1, 1, 14, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[..., 7] = True  # zero frequency
    problem = CartesianMRI(MASK, NOISE)(Scene(None, mask * KSPACE, MAPS, mask), generators(0, 1, 2, 3))
    assert torch.equal(columns(problem), mask[:, 0, 0])
    torch.testing.assert_close(problem.A(COIL_IMAGE), multi_coil(mask, MAPS)(COIL_IMAGE))


def test_downsampling_measures_every_other_pixel_of_the_blurred_image() -> None:
    kernel = UniformKernel(3)
    blurred = Deblurring(kernel, Gaussian(0.0))(Scene(IMAGE), generators(0, 1, 2, 3)).y
    coarse = Downsampling(kernel, 2, Gaussian(0.0))(Scene(IMAGE), generators(0, 1, 2, 3)).y
    torch.testing.assert_close(coarse, blurred[..., ::2, ::2])


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda: Inpainting(1.0, NOISE), "Inpainting: expected a probability 0 <= loss < 1, got 1.0"),
        (lambda: BlockInpainting(NOISE, (0.5, 0.5)), r"BlockInpainting: expected fractions .* got \(0.5, 0.5\) and"),
        (
            lambda: BlockInpainting(NOISE, (0, 1), (0, 1))(Scene(IMAGE), generators(0, 1, 2, 3)),
            r"expected a block of some, not all pixels, got rows \(0, 1\) and columns \(0, 1\) of 10 x 14",
        ),
        (
            lambda: Denoising(NOISE)(Scene(None), []),
            "Denoising: expected a scene with an image .* use data with ground truth",
        ),
        (lambda: CartesianMRI(MASK, NOISE)(Scene(None), []), "CartesianMRI: expected a scene with an image"),
        (
            lambda: CartesianMRI(MASK, NOISE)(Scene(None, KSPACE), generators(0, 1, 2, 3)),
            r"expected one coil in a scene without coil sensitivities, got 3 \(k-space or image \(4, 3, 10, 14\)\)",
        ),
        (
            lambda: CartesianMRI(MASK, NOISE)(Scene(None, KSPACE, KSPACE[:, :2]), generators(0, 1, 2, 3)),
            r"of the coils and the size of the k-space \(4, 3, 10, 14\), got maps \(4, 2, 10, 14\)",
        ),
        (
            lambda: CartesianMRI(MASK, NOISE)(Scene(IMAGE, maps=KSPACE[..., :9]), generators(0, 1, 2, 3)),
            r"the size of the image .*, got maps \(4, 3, 10, 9\)",
        ),
        (
            lambda: CartesianMRI(MASK, NOISE)(Scene(IMAGE[..., :9], KSPACE, KSPACE), generators(0, 1, 2, 3)),
            r"CartesianMRI: expected an image of the size of the k-space \(4, 3, 10, 14\), got \(4, 1, 10, 9\)",
        ),
        (
            lambda: CartesianMRI(MASK, NOISE)(
                Scene(None, KSPACE, KSPACE, torch.ones(4, 1, 1, 9)), generators(0, 1, 2, 3)
            ),
            r"CartesianMRI: expected a mask of the size of the k-space \(4, 3, 10, 14\), got \(4, 1, 1, 9\)",
        ),
        (
            lambda: multi_coil(torch.ones(1, 1, 1, 9), KSPACE),
            r"MultiCoil: expected mask and sensitivities of one size, .* got \(1, 1, 1, 9\) and \(4, 3, 10, 14\)",
        ),
        (
            lambda: multi_coil(torch.ones(1, 3, 1, 14), KSPACE),
            r"MultiCoil: .* the mask the same for all coils, got \(1, 3, 1, 14\) and \(4, 3, 10, 14\)",
        ),
        (
            lambda: Downsampling(UniformKernel(3), 4, NOISE)(Scene(IMAGE), generators(0, 1, 2, 3)),
            "divisible by the scale 4, got 10×14; crop the images",
        ),
    ],
)
def test_misuse_is_reported_in_words(misuse, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        misuse()


def configured(class_path: str, **init_args: object) -> dict[str, object]:
    return {"class_path": class_path, "init_args": init_args}


GAUSSIAN = configured("Gaussian", sigma=0.05, sigma_max=0.2)
CONFIGURATIONS = {
    "denoising": configured("Denoising", noise=GAUSSIAN),
    "inpainting": configured("Inpainting", loss=0.4, noise=GAUSSIAN),
    "inpainting of a block": configured("BlockInpainting", noise=GAUSSIAN, rows=[0.0, 0.3], columns=[0.5, 1.0]),
    "deblurring": configured("Deblurring", kernel=configured("GaussianKernel", size=3, sigma=0.9), noise=GAUSSIAN),
    "downsampling": configured("Downsampling", kernel=configured("UniformKernel", size=3), scale=2, noise=GAUSSIAN),
    "tomography": configured("Tomography", n_views=4, noise=GAUSSIAN),
    "diffraction": configured("DiffractionTomography", noise=GAUSSIAN, n_illuminations=3),
    "one of several losses": configured("Inpainting", loss=[0.1, 0.4, 0.7], noise=GAUSSIAN),
    "one of several kernels": configured(
        "Deblurring",
        kernel=[
            configured("GaussianKernel", size=3, sigma=0.9),
            configured("UniformKernel", size=1),
            configured("MotionKernel", size=7, seed=0),
        ],
        noise=GAUSSIAN,
    ),
    "one of several kernels, decimated": configured(
        "Downsampling",
        kernel=[configured("MotionKernel", size=5, seed=1), configured("UniformKernel", size=3)],
        scale=2,
        noise=GAUSSIAN,
    ),
    "fourier": configured("FourierSampling", mask=configured("RadialMask", fraction=0.4), noise=GAUSSIAN),
    "one of several masks": configured(
        "FourierSampling",
        mask=[configured("RadialMask", fraction=0.3), configured("RadialMask", fraction=0.6)],
        noise=GAUSSIAN,
    ),
    "mri": configured(
        "CartesianMRI",
        mask=configured("RandomMask", center_fractions=[0.2], accelerations=[2]),
        noise=GAUSSIAN,
    ),
}


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_configuration_is_the_constructor(name: str) -> None:
    """Classes are found by their short names, and measure what an instance made by hand measures."""
    parser = ArgumentParser()
    parser.add_argument("--acquisition", type=Acquisition)
    parsed = parser.parse_object({"acquisition": CONFIGURATIONS[name]})
    acquisition, scene = parser.instantiate_classes(parsed).acquisition, Scene(IMAGE)
    expected = ACQUISITIONS[name](scene, generators(0, 1, 2, 3))
    found = acquisition(scene, generators(0, 1, 2, 3))
    assert type(acquisition) is type(ACQUISITIONS[name])
    assert torch.equal(found.y, expected.y)
    assert torch.equal(found.sigma, expected.sigma)
