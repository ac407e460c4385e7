"""Fields of experts, and the untied field that an equilibrium model may learn in their place."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from elder.linalg import from_channels
from elder.models.regularizers.base import Prior, Regularizer, real_channels
from elder.models.regularizers.potentials import LogCosh, Potential

__all__ = ["FieldsOfExperts", "UntiedExperts"]

Initial = Literal["DCT", "random", "differences"]


class FieldsOfExperts(Regularizer):
    """R(x) = Σ_k α_k Σ_pixels ψ(w_k ∗ x), α_k > 0, with ∇R(x) = Wᵀ(α ⊙ ψ′(Wx)) (Roth and Black, 2009).

    The image is mirrored at its borders.

    Args:
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        n_filters: Number of filters w_k.
        kernel_size: Taps of each per side, odd.
        potential: ψ, and the initial scale of the responses; `LogCosh()` by default, whose ψ′ is tanh.
        initial: Filters to begin with, of unit norm times that scale, each seeing one channel, in turn: the cosines of
            the DCT without its constant, from low to high frequencies; normal random numbers less their mean, seeing
            all channels; or differences of neighbors, the first two of which are those of total variation.
        normalized: Divide W by its norm on a grid of frequencies: ‖W‖ stays what it is at the beginning.

    Raises:
        ValueError: If a count is below 1, kernel_size is even, or there are no so many filters of that kind.
    """

    gain: Tensor | None  # ‖W‖ at the beginning, where it is to stay so

    def __init__(
        self,
        channels: int = 1,
        n_filters: int = 24,
        kernel_size: int = 5,
        potential: Potential | None = None,
        initial: Initial = "DCT",
        normalized: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, n_filters) < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"FieldsOfExperts: expected channels, n_filters >= 1 and an odd kernel_size, got {channels}, "
                f"{n_filters} and {kernel_size}"
            )
        self.channels, self.potential = channels, potential or LogCosh()
        self.filters = nn.Parameter(self.potential.scale * _initial(initial, n_filters, channels, kernel_size))
        self.log_weights = nn.Parameter(torch.full((n_filters,), -2 * math.log(self.potential.scale)))
        self.register_buffer("gain", largest_gain(self.filters.detach()) if normalized else None)

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        responses = analyse(real_channels(self, x, self.channels), self.bank())
        return self.potential(responses).sum((-2, -1)) @ self.log_weights.exp()

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, so that a Hessian product costs as little as ∇R."""
        u, bank = real_channels(self, x, self.channels), self.bank()
        values, slope = self.potential.sum_and_slope(analyse(u, bank))
        weights = self.log_weights.exp()
        return values @ weights, from_channels(synthesise(slope * weights[:, None, None], bank, u), x)

    def bank(self) -> Tensor:
        """W, (n_filters, channels, kernel_size, kernel_size)."""
        return self.filters if self.gain is None else self.filters * (self.gain / largest_gain(self.filters))


class UntiedExperts(Prior):
    """x ↦ Cᵀ(α ⊙ ψ′(Wx)), with filters C of their own: the gradient of no functional unless C = W.

    What the fixed-point map of a variational model becomes when it is learned as an equilibrium model without the bond
    between analysis and synthesis (Riccio, Ehrhardt and Benning, 2022). It begins with C = W, as the gradient of
    `experts`.

    Args:
        experts: Whose W, α and ψ it has.
    """

    def __init__(self, experts: FieldsOfExperts) -> None:
        super().__init__()
        self.experts = experts
        self.synthesis = nn.Parameter(experts.filters.detach().clone())

    def grad(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        own = self.experts
        u = real_channels(self, x, own.channels)
        slope = own.potential.slope(analyse(u, own.bank())) * own.log_weights.exp()[:, None, None]
        synthesis = self.synthesis
        if own.gain is not None:
            synthesis = synthesis * (own.gain / largest_gain(synthesis))
        return from_channels(synthesise(slope, synthesis, u), x)


def analyse(u: Tensor, bank: Tensor) -> Tensor:
    """Wu, (B, n_filters, H, W), of an image that is mirrored at its borders."""
    radius = bank.shape[-1] // 2
    if min(u.shape[-2:]) <= radius:
        raise ValueError(
            f"FieldsOfExperts: expected images of more than {radius} x {radius} pixels, since a border of that width "
            f"is mirrored, got {u.shape[-2]} x {u.shape[-1]}; use larger images, patches or smaller filters"
        )
    return nn.functional.conv2d(nn.functional.pad(u, (radius,) * 4, mode="reflect"), bank)


def synthesise(v: Tensor, bank: Tensor, like: Tensor) -> Tensor:
    """Wᵀv, of the shape of the image `like`."""
    return torch.func.vjp(lambda u: analyse(u, bank), torch.zeros_like(like))[1](v)[0]


def largest_gain(bank: Tensor) -> Tensor:
    """‖W‖ on a periodic image, from the frequency responses on a grid of three times the taps."""
    size = 3 * bank.shape[-1]
    response = torch.fft.rfft2(bank, s=(size, size)).movedim((0, 1), (-2, -1))
    return torch.linalg.matrix_norm(response, 2).max()


def _initial(kind: Initial, n: int, channels: int, size: int) -> Tensor:
    """(n, channels, size, size), each of unit norm."""
    if kind == "random":
        bank = torch.randn(n, channels, size, size)
        bank = bank - bank.mean((1, 2, 3), keepdim=True)
    else:
        patterns = _cosines(size) if kind == "DCT" else _differences(size)
        if n > channels * len(patterns):
            raise ValueError(
                f"FieldsOfExperts: expected at most {channels * len(patterns)} filters of the kind {kind} with "
                f"{size} x {size} taps and {channels} channels, got {n}; ask for fewer, larger or random ones"
            )
        bank = torch.zeros(n, channels, size, size)
        for k in range(n):
            bank[k, k % channels] = patterns[k // channels]
    return bank / torch.linalg.vector_norm(bank, dim=(1, 2, 3), keepdim=True)


def _cosines(size: int) -> Tensor:
    """The two-dimensional DCT-II without its constant, from low to high frequencies, (size² − 1, size, size)."""
    n = torch.arange(size)
    waves = torch.cos(torch.pi / size * (n + 0.5) * n[:, None])
    pairs = sorted(((i, j) for i in range(size) for j in range(size)), key=lambda pair: (sum(pair), pair))[1:]
    return torch.stack([torch.outer(waves[i], waves[j]) for i, j in pairs])


def _differences(size: int) -> Tensor:
    """Along rows and columns, then second ones, along both and mixed; zeros around, (5, size, size)."""
    if size < 3:
        raise ValueError(f"FieldsOfExperts: expected kernel_size >= 3 for differences, got {size}")
    c = size // 2
    found = torch.zeros(5, size, size)
    found[0, c, c], found[0, c, c + 1] = -1, 1
    found[1, c, c], found[1, c + 1, c] = -1, 1
    found[2, c, c - 1 : c + 2] = found[3, c - 1 : c + 2, c] = torch.tensor([1.0, -2, 1])
    found[4, c : c + 2, c : c + 2] = torch.tensor([[1.0, -1], [-1, 1]])
    return found
