"""Ridge regularizers: potentials of filter responses."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elder.linalg import from_channels, full_precision
from elder.models.regularizers.base import Regularizer, check_gain, real_channels
from elder.models.regularizers.potentials import Potential, WeaklyConvex

_CACHED = 1 << 19  # numbers that a core of a CPU works on without waiting for memory


class Ridge(Regularizer):
    """R(x) = Σ_i s_i⁻² Σ_pixels ψ(s_i (Wx)_i), with W a bank of zero-mean convolutions of norm ‖W‖ = 1.

    W is a chain of convolutions without non-linearity (1 → 4 → 8 → 32 channels of 5×5 taps make 13×13 filters with
    few parameters), and s_i a learnable scale per filter. With the potential `WeaklyConvex` this is the weakly convex
    ridge regularizer WCRR of Goujon, Neumayer and Unser (2024), ‖W‖²-weakly convex as ψ″ ≥ −1; with `Convex` it is
    the CRR of Goujon et al. (2023); both up to the family of ψ.

    The image is mirrored at its borders. ‖W‖ = 1 holds on a periodic image of the size of `norm`'s grid for one
    channel, and ‖W‖ ≤ 1 for more. Between the frequencies of the grid ‖W‖ is up to 4 % higher for random filters
    of the default size, and the mirrored borders, which hold at most four times the energy of the image, raise it
    by a factor below 2: 1.1 for the same filters.

    Args:
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        widths: Output channels of each convolution of the chain; the last is the number of filters.
        kernel_size: Taps per side of each convolution, odd.
        potential: ψ, and the initial s_i; `WeaklyConvex()` by default.
    """

    lowered = False

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (4, 8, 32),
        kernel_size: int = 5,
        potential: Potential | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"Ridge: expected an odd kernel_size, got {kernel_size}")
        self.channels = channels
        self.radius = len(widths) * (kernel_size // 2)
        sizes = [channels, *widths]
        chain = [nn.Conv2d(a, b, kernel_size, bias=False) for a, b in itertools.pairwise(sizes)]
        self.filters = nn.ParameterList([link.weight for link in chain])
        self.potential = potential or WeaklyConvex()
        self.log_scale = nn.Parameter(torch.full((widths[-1],), self.potential.scale).log())

    @full_precision
    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        t = _convolve(self._pad(real_channels(self, x, self.channels)), self._scaled_filters())
        return self.potential(t).sum((-2, -1)) @ (-2 * self.log_scale).exp()

    @full_precision
    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, ∇R(x) = Σ_i s_i⁻¹ W_iᵀψ′(s_i W_i x), with W multiplied out and applied in the Fourier domain.

        The mirrored image holds all that the responses of its pixels depend on, so that neither product wraps around.
        W and Wᵀ cost a transform per filter each, whatever the size of the filters; so many filters at a time as keep
        the responses in the caches of a CPU. Autocast is left aside: not every device has transforms in half precision.
        """
        channels = real_channels(self, x, self.channels)
        # Brightness is not seen, and would round the rest. To three digits, as the order of a sum depends on the batch.
        brightness = channels.detach().mean((-2, -1), keepdim=True).bfloat16().to(channels)
        padded, unpad, *_ = torch.func.vjp(self._pad, channels - brightness)
        (height, width), margin = x.shape[-2:], 2 * self.radius
        size = _transform_length(height + margin), _transform_length(width + margin)
        kernels = self._kernels()
        kernels = kernels * (self.log_scale.exp() / _largest_gain(kernels))[:, None, None]  # of s_i W_i
        weights = (-2 * self.log_scale).exp()
        image, values, spectra = _RealFourier.apply(_place(padded, 0, size)), [], []
        group = _filters_at_once(size, x.device)
        for kernel, weight in zip(kernels.split(group, dim=1), weights.split(group), strict=True):
            spectrum = torch.fft.rfft2(kernel, s=size)  # (channels, filters, …)
            responses = torch.fft.irfft2(_analyse(image, spectrum), s=size)
            responses = responses[..., margin : margin + height, margin : margin + width]
            sums, slope = self.potential.sum_and_slope(responses)
            values.append(sums @ weight)
            spectrum = (spectrum * weight[:, None, None]).conj()
            spectra.append(_synthesise(_RealFourier.apply(_place(slope, margin, size)), spectrum))
        grad = torch.fft.irfft2(_sum(spectra), s=size)
        (grad,) = unpad(grad[..., : height + margin, : width + margin])
        return _sum(values), from_channels(grad, x)

    def norm(self) -> Tensor:
        """‖W‖ before normalisation, from the frequency responses on a grid, summed over channels."""
        return _largest_gain(self._kernels())

    def _pad(self, u: Tensor) -> Tensor:
        if min(u.shape[-2:]) <= self.radius:
            raise ValueError(
                f"Ridge: expected images of more than {self.radius} x {self.radius} pixels, since a border of that "
                f"width is mirrored, got {u.shape[-2]} x {u.shape[-1]}; use larger images, patches or smaller filters"
            )
        return nn.functional.pad(u, (self.radius,) * 4, mode="reflect")

    def _zero_mean_filters(self) -> list[Tensor]:
        first, *others = self.filters
        return [first - first.mean(dim=(2, 3), keepdim=True), *others]  # one such link is enough for the chain

    def _scaled_filters(self) -> list[Tensor]:
        """The chain of s_i W_i / ‖W‖: the factors go into its last link, which is small, not into the responses."""
        *others, last = self._zero_mean_filters()
        return [*others, last * (self.log_scale.exp() / self.norm())[:, None, None, None]]

    def _kernels(self) -> Tensor:
        """The impulse responses of the chain before normalisation, (channels, n_filters, size, size)."""
        first = self.filters[0]
        impulses = torch.eye(self.channels, dtype=first.dtype, device=first.device)[:, :, None, None]
        return _convolve(nn.functional.pad(impulses, (2 * self.radius,) * 4), self._zero_mean_filters())


def _convolve(u: Tensor, filters: Sequence[Tensor]) -> Tensor:
    for weight in filters:
        u = nn.functional.conv2d(u, weight)
    return u


def _largest_gain(kernels: Tensor) -> Tensor:
    size = 2 * kernels.shape[-1] - 1
    response = torch.fft.rfft2(kernels, s=(size, size))
    gain = response.abs().square().sum(dim=(0, 1)).max().sqrt()
    check_gain("Ridge", gain)
    return gain


def _analyse(image: Tensor, spectrum: Tensor) -> Tensor:
    """Σ_c of image (B, channels, …) times spectrum (channels, n_filters, …), both in the Fourier domain."""
    return _sum([image[:, c, None] * spectrum[c] for c in range(len(spectrum))])


def _synthesise(responses: Tensor, spectrum: Tensor) -> Tensor:
    """The transpose of `_analyse` for a conjugated spectrum: Σ_i over filters, (B, channels, …)."""
    return torch.stack([(responses * spectrum[c]).sum(1) for c in range(len(spectrum))], dim=1)


def _transform_length(n: int) -> int:
    """The next even length without a prime factor above 7, which fast Fourier transforms are fast for."""
    while n % 2 or not _is_smooth(n):
        n += 1
    return n


def _is_smooth(n: int) -> bool:
    for p in (2, 3, 5, 7):
        while n % p == 0:
            n //= p
    return n == 1


def _filters_at_once(size: tuple[int, int], device: torch.device) -> int:
    """How many filters are taken together, in batches of any size, as the order of a sum decides how it is rounded."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return sys.maxsize
    return max(1, _CACHED * torch.get_num_threads() // math.prod(size))


def _sum(terms: list[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, first)


def _place(u: Tensor, margin: int, size: tuple[int, int]) -> Tensor:
    """The image on a larger grid of zeros, `margin` pixels from its first corner."""
    (height, width), (rows, columns) = u.shape[-2:], size
    return nn.functional.pad(u, (margin, columns - width - margin, margin, rows - height - margin))


class _RealFourier(torch.autograd.Function):
    """`torch.fft.rfft2` for an even width; its own derivative spends a complex transform where a real one does."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.size = u.shape[-2:]
        return torch.fft.rfft2(u)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        # irfft2 counts every column twice but the two that are their own mirror images
        weight = torch.full_like(v.real[0, 0, 0], 0.5)
        weight[:: len(weight) - 1] = 1.0
        return torch.fft.irfft2(v * weight, s=ctx.size, norm="forward")
