"""Magnetic resonance imaging: sampled columns of one coil or several, and compressed sensing on any mask."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.linalg import conj, per_sample
from elder.operators.acquisition import Acquisition, Scene, listed
from elder.operators.base import LinearOperator
from elder.operators.blur import circulant
from elder.operators.elementary import ComplexImage, Fourier, Mask
from elder.operators.masks import MaskFunction
from elder.operators.noise import Generators, Noise
from elder.operators.sampling import SamplingMask, stack


class Sensitivity(LinearOperator):
    """(Ax)_c = S_c ⊙ x, one image as seen by every coil: (B, 1, H, W) → (B, coils, H, W), complex.

    Args:
        maps: Coil sensitivities S, (B|1, coils, H, W) complex.

    Raises:
        ValueError: If the maps are not complex with four axes.
    """

    maps: Tensor

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        if maps.ndim != 4 or not maps.is_complex():
            raise ValueError(
                f"Sensitivity: expected complex maps (B|1, coils, H, W), got {maps.dtype} {tuple(maps.shape)}; "
                "add the batch axis, or join real and imaginary part by torch.complex"
            )
        self.register_buffer("maps", maps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self._check("x", x, n_channels=1)
        return self.maps * x

    def adjoint(self, y: Tensor) -> Tensor:
        self._check("y", y, n_channels=self.maps.shape[1])
        return (conj(self.maps) * y).sum(1, keepdim=True)

    def _check(self, symbol: str, u: Tensor, n_channels: int) -> None:
        n, coils, H, W = self.maps.shape
        reason = f"for {coils} coils (maps {(n, coils, H, W)})"
        self._expect(symbol, u, (None if n == 1 else n, n_channels, H, W), reason)
        if not u.is_complex():
            raise ValueError(
                f"Sensitivity: expected complex {symbol}, got {u.dtype}; "
                "for real images use Sensitivity(maps) @ ComplexImage()"
            )


def single_coil(mask: Tensor) -> LinearOperator:
    """A = M F, undersampled k-space of one coil; mask (B|1, 1, 1, W) or (B|1, 1, H, W).

    Zero frequency is at (H // 2, W // 2); a warning if the mask leaves it out.
    """
    sampling = Mask(mask)
    zero = mask[..., mask.shape[-2] // 2, mask.shape[-1] // 2]
    if not (zero != 0).all():
        warnings.warn(
            f"single_coil: the mask {tuple(mask.shape)} leaves out zero frequency, at (H // 2, W // 2), without which "
            "the mean of the image is unknown; sample it, or where the mask has it elsewhere, shift it there",
            stacklevel=2,
        )
    return sampling @ Fourier()


def multi_coil(mask: Tensor, maps: Tensor) -> LinearOperator:
    """A = M F S, undersampled k-space of every coil; mask as in `single_coil`, maps (B|1, coils, H, W)."""
    return MultiCoil(mask, maps)


class MultiCoil(LinearOperator):
    """A = M F S, undersampled k-space of every coil, (B, coils, H, W); its blocks are the coils.

    Args:
        mask: Weights or bool, (B|1, 1, 1, W) or (B|1, 1, H, W), the same for all coils.
        maps: Coil sensitivities, (B|1, coils, H, W) complex.
    """

    def __init__(self, mask: Tensor, maps: Tensor) -> None:
        super().__init__()
        self.sampling, self.sensitivity = single_coil(mask), Sensitivity(maps)
        fits = all(n in (1, m) for n, m in zip(mask.shape[-2:], maps.shape[-2:], strict=True))
        if mask.ndim != 4 or mask.shape[1] != 1 or not fits:
            raise ValueError(
                "MultiCoil: expected mask and sensitivities of one size, the mask the same for all coils, got "
                f"{tuple(mask.shape)} and {tuple(maps.shape)}; take them from the same k-space, after the same crop"
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.sampling(self.sensitivity(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.sensitivity.adjoint(self.sampling.adjoint(y))

    def gram(self, x: Tensor) -> Tensor:
        return self.sensitivity.adjoint(self.sampling.gram(self.sensitivity(x)))

    def restrict(self, y: Tensor) -> Tensor:
        return self.sampling.restrict(y)

    @property
    def n_blocks(self) -> int:
        return self.sensitivity.maps.shape[1]

    def subset(self, blocks: Tensor) -> MultiCoil:
        part = copy.copy(self)
        part._modules = self._modules | {
            "sensitivity": Sensitivity(self.sensitivity.maps[:, self._expect_blocks(blocks)])
        }
        return part

    def subset_data(self, y: Tensor, blocks: Tensor) -> Tensor:
        self._expect("y", y, (None, self.n_blocks, None, None), f"for the sensitivities of {self.n_blocks} coils")
        return y[:, self._expect_blocks(blocks)]


class RealSampling(LinearOperator):
    """Ax = M F x for real images x: what `single_coil(mask) @ ComplexImage()` is, with a closed-form resolvent.

    Of a real image, Re Fᴴ M² F sees a frequency and its mirror image alike: it is F⁻¹ diag(w) F with
    w(k) = (M(k)² + M(−k)²)/2.

    Args:
        mask: Weights or bool, (B|1, 1, H, W), zero frequency at (H // 2, W // 2).
    """

    power: Tensor  # w, (B|1, 1, H, W), zero frequency at (0, 0)

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.sampling = single_coil(mask) @ ComplexImage()
        squared = torch.fft.ifftshift(
            mask.to(torch.promote_types(mask.dtype, torch.get_default_dtype())).square(), dim=(-2, -1)
        )
        mirrored = squared.flip((-2, -1)).roll((1, 1), dims=(-2, -1))
        self.register_buffer("power", (squared + mirrored) / 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.sampling(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.sampling.adjoint(y)

    def gram(self, x: Tensor) -> Tensor:
        return circulant(self.power, self._checked("x", x))

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        return circulant(1 / (1 + per_sample(gamma, z) * self.power.to(z.dtype)), self._checked("z", z))

    def restrict(self, y: Tensor) -> Tensor:
        return self.sampling.restrict(y)

    def _checked(self, symbol: str, u: Tensor) -> Tensor:
        n, _, *size = shape = tuple(self.power.shape)
        self._expect(symbol, u, (None if n == 1 else n, None, *size), f"for mask {shape}")
        return u


@dataclass(frozen=True)
class CartesianMRI(Acquisition):
    """y = M(k + n), k the scene's measured k-space where it has one, FSx otherwise; M keeps some columns.

    M is the sampling that the scene already has, if any; otherwise it is drawn. One coil is assumed unless the
    scene has coil sensitivities. A real image is reconstructed as a real image.

    Args:
        mask: Draws the sampled columns.
        noise: Noise model; its σ is that of real and imaginary part of k-space each.
        mask_per_volume: Give all slices of a volume the mask that its name determines, where the scene names it;
            otherwise each slice has its own, from its generator.
    """

    mask: MaskFunction
    noise: Noise
    mask_per_volume: bool = True

    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        data = self._image(scene) if scene.kspace is None else scene.kspace
        for name, given in (("an image", scene.image), ("a mask", scene.mask)):
            if given is not None and any(
                n not in (1, m) for n, m in zip(given.shape[-2:], data.shape[-2:], strict=True)
            ):
                raise ValueError(
                    f"CartesianMRI: expected {name} of the size of the k-space {tuple(data.shape)}, got "
                    f"{tuple(given.shape)}; crop both alike"
                )
        if scene.maps is None and data.shape[1] != 1:
            raise ValueError(
                f"CartesianMRI: expected one coil in a scene without coil sensitivities, got {data.shape[1]} "
                f"(k-space or image {tuple(data.shape)}); add maps to the scene"
            )
        if scene.maps is not None:
            axis = -2 if scene.kspace is None else 1  # an image tells the size alone, k-space the coils, too
            if scene.maps.shape[axis:] != data.shape[axis:]:
                raise ValueError(
                    "CartesianMRI: expected coil sensitivities of the coils and the size of the "
                    f"{'image' if scene.kspace is None else 'k-space'} {tuple(data.shape)}, got maps "
                    f"{tuple(scene.maps.shape)}; estimate them from the same data, after the same crop"
                )
        mask = self._draw(scene, data.shape[-1], generators).to(data.device) if scene.mask is None else scene.mask
        A = single_coil(mask) if scene.maps is None else multi_coil(mask, scene.maps)
        return A if scene.image is None or scene.image.is_complex() else A @ ComplexImage()

    def measure(self, A: LinearOperator, scene: Scene) -> Tensor:
        return super().measure(A, scene) if scene.kspace is None else scene.kspace

    def _draw(self, scene: Scene, n_columns: int, generators: Generators) -> Tensor:
        if self.mask_per_volume and scene.volume is not None:
            seeds = [tuple(map(ord, name)) for name in scene.volume]
        else:
            seeds = [int(torch.randint(2**31, (), generator=g)) for g in generators]
        return torch.stack([self.mask(n_columns, seed) for seed in seeds])[:, None, None, :]


@dataclass(frozen=True)
class FourierSampling(Acquisition):
    """y = M(Fx + n), compressed-sensing MRI: some frequencies of an image, F the unitary Fourier transform.

    A real image is reconstructed as a real image, from A = M F restricted to real images.

    Args:
        mask: Sampled frequencies, or several such masks, of which one is drawn for every image.
        noise: Noise model; its σ is that of real and imaginary part each.

    Raises:
        ValueError: If the list is empty, or (when called) a mask is of another size than the images or leaves out zero
            frequency.
    """

    mask: SamplingMask | list[SamplingMask]
    noise: Noise

    def __post_init__(self) -> None:
        listed("mask", self.mask)

    @property
    def n_operators(self) -> int:
        return len(listed("mask", self.mask))

    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        image = self._image(scene)
        H, W = image.shape[-2:]
        masks = stack(listed("mask", self.mask), (H, W))
        mask = self._choose(masks, scene, generators).to(image.device)
        return single_coil(mask) if image.is_complex() else RealSampling(mask)
