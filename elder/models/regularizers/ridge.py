"""Ridge regularizers: potentials of filter responses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from elder.linalg import from_channels
from elder.models.regularizers.base import Regularizer, real_channels
from elder.models.regularizers.potentials import Potential, WeaklyConvex


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

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        t = _convolve(self._pad(real_channels(self, x, self.channels)), self._scaled_filters())
        return self._weigh(self.potential(t).sum((-2, -1)))

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, ∇R(x) = Σ_i s_i⁻¹ W_iᵀψ′(s_i W_i x): half the time of the derived gradient."""
        filters = self._scaled_filters()
        padded, unpad, *_ = torch.func.vjp(self._pad, real_channels(self, x, self.channels))
        values, slope = self.potential.sum_and_slope(_convolve(padded, filters))
        slope = slope * (-2 * self.log_scale).exp()[:, None, None]
        (grad,) = unpad(_correlate(slope, filters))
        return self._weigh(values), from_channels(grad, x)

    def norm(self) -> Tensor:
        """‖W‖ before normalisation, from the frequency responses on a grid, summed over channels."""
        size = 4 * self.radius + 1
        first = self.filters[0]
        impulses = torch.eye(self.channels, dtype=first.dtype, device=first.device)[:, :, None, None]
        kernels = _convolve(nn.functional.pad(impulses, (2 * self.radius,) * 4), self._zero_mean_filters())
        response = torch.fft.rfft2(kernels, s=(size, size))  # (channels, n_filters, size, size // 2 + 1)
        return response.abs().square().sum(dim=(0, 1)).max().sqrt()

    def _pad(self, u: Tensor) -> Tensor:
        return nn.functional.pad(u, (self.radius,) * 4, mode="reflect")

    def _weigh(self, sums: Tensor) -> Tensor:
        return sums @ (-2 * self.log_scale).exp()

    def _zero_mean_filters(self) -> list[Tensor]:
        first, *others = self.filters
        return [first - first.mean(dim=(2, 3), keepdim=True), *others]  # one such link is enough for the chain

    def _scaled_filters(self) -> list[Tensor]:
        """The chain of s_i W_i / ‖W‖: the factors go into its last link, which is small, not into the responses."""
        *others, last = self._zero_mean_filters()
        return [*others, last * (self.log_scale.exp() / self.norm())[:, None, None, None]]


def _convolve(u: Tensor, filters: Sequence[Tensor]) -> Tensor:
    for weight in filters:
        u = nn.functional.conv2d(u, weight)
    return u


def _correlate(v: Tensor, filters: Sequence[Tensor]) -> Tensor:
    """The transpose of `_convolve`."""
    for weight in reversed(filters):
        v = nn.functional.conv2d(v, weight.flip(2, 3).transpose(0, 1), padding=weight.shape[-1] - 1)
    return v
