"""Fields of experts, and the untied field that an equilibrium model may learn in their place."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from elder.linalg import from_channels
from elder.models.regularizers.base import Prior, Regularizer, check_gain, real_channels
from elder.models.regularizers.potentials import LogCosh, Potential, Rectified

__all__ = ["DenseExperts", "Experts", "FieldsOfExperts", "UntiedExperts"]

Initial = Literal["DCT", "random", "differences"]


class Experts(Regularizer):
    """R(x) = Σ_k α_k Σ ψ(W_k x + b_k), W_k = s_k V_k, with ∇R(x) = Wᵀ(α ⊙ ψ′(Wx + b)); s_k, α_k > 0 are learned.

    Subclasses say what V is. Scales have parameters of their own, since a step of an optimizer that suits filters of
    unit norm would hardly move larger ones.

    Args:
        filters: What V is made of; what its transpose is made of may be something else in `UntiedExperts`.
        channels: Real channels of the image.
        potential: ψ, and the initial s_k = 1/√α_k.
    """

    def __init__(self, filters: Tensor, channels: int, potential: Potential) -> None:
        super().__init__()
        self.channels, self.potential = channels, potential
        self.filters = nn.Parameter(filters)
        self.log_scales = nn.Parameter(torch.full((len(filters),), math.log(potential.scale)))
        self.log_weights = nn.Parameter(torch.full((len(filters),), -2 * math.log(potential.scale)))

    @abstractmethod
    def analyse(self, u: Tensor, bank: Tensor) -> Tensor:
        """Wu + b of real images, (B, K, h, w)."""

    @abstractmethod
    def synthesise(self, v: Tensor, bank: Tensor, like: Tensor) -> Tensor:
        """Wᵀv, of the shape of the real images `like`."""

    def bank(self, filters: Tensor) -> Tensor:
        """What W is made of, from filters."""
        return filters * self.log_scales.exp().reshape(-1, *[1] * (filters.ndim - 1))

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        responses = self.analyse(real_channels(self, x, self.channels), self.bank(self.filters))
        return self.potential(responses).sum((-2, -1)) @ self.log_weights.exp()

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, so that a Hessian product costs as little as ∇R."""
        u, bank = real_channels(self, x, self.channels), self.bank(self.filters)
        values, slope = self.potential.sum_and_slope(self.analyse(u, bank))
        weights = self.log_weights.exp()
        return values @ weights, from_channels(self.synthesise(slope * weights[:, None, None], bank, u), x)


class FieldsOfExperts(Experts):
    """R(x) = Σ_k α_k Σ_pixels ψ(w_k ∗ x), w_k = s_k v_k, with ∇R(x) = Wᵀ(α ⊙ ψ′(Wx)) (Roth and Black, 2009).

    The image is mirrored at its borders.

    Args:
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        n_filters: Number of filters w_k.
        kernel_size: Taps of each per side, odd.
        potential: ψ, and the initial scale s_k of the responses; `LogCosh()` by default, whose ψ′ is tanh.
        initial: V to begin with, of unit norm, each filter seeing one channel, in turn: the cosines of the DCT without
            its constant, from low to high frequencies; normal random numbers less their mean, seeing
            all channels; or differences of neighbors, the first two of which are those of total variation.
        normalized: Divide W by its norm on a grid of frequencies: ‖W‖ stays what it is at the beginning.

    Raises:
        ValueError: If a count is below 1, kernel_size is even, or there are no so many filters of that kind, or random
            ones would see but one number.
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
        if min(channels, n_filters) < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"FieldsOfExperts: expected channels, n_filters >= 1 and an odd kernel_size, got {channels}, "
                f"{n_filters} and {kernel_size}"
            )
        super().__init__(_initial(initial, n_filters, channels, kernel_size), channels, potential or LogCosh())
        self.register_buffer("gain", largest_gain(super().bank(self.filters).detach()) if normalized else None)

    def analyse(self, u: Tensor, bank: Tensor) -> Tensor:
        return nn.functional.conv2d(_mirrored(u, bank.shape[-1] // 2), bank)

    def synthesise(self, v: Tensor, bank: Tensor, like: Tensor) -> Tensor:
        unpad = torch.func.vjp(lambda u: _mirrored(u, bank.shape[-1] // 2), like)[1]
        return unpad(nn.functional.conv_transpose2d(v, bank))[0]

    def bank(self, filters: Tensor) -> Tensor:
        bank = super().bank(filters)
        return bank if self.gain is None else bank * (self.gain / largest_gain(bank))


class DenseExperts(Experts):
    """R(x) = Σ_k α_k ψ(⟨w_k, x⟩ + b_k) of images of one size, every w_k as large as the image.

    The fully connected family of Riccio, Ehrhardt and Benning (2022), whose slopes ψ′ are rectifiers, soft thresholds
    or the identity.

    Args:
        size: Height and width of the images, in pixels.
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        n_experts: K.
        potential: ψ, and the initial scale s_k of the responses; `Rectified()` by default.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self, size: tuple[int, int], channels: int = 1, n_experts: int = 784, potential: Potential | None = None
    ) -> None:
        if min(*size, channels, n_experts) < 1:
            raise ValueError(f"DenseExperts: expected numbers >= 1, got {size=}, {channels=}, {n_experts=}")
        n = channels * size[0] * size[1]
        super().__init__(torch.randn(n_experts, n) / math.sqrt(n), channels, potential or Rectified())
        self.size = tuple(size)
        self.bias = nn.Parameter(torch.zeros(n_experts))

    def analyse(self, u: Tensor, bank: Tensor) -> Tensor:
        if u.shape[-2:] != self.size:
            raise ValueError(
                f"DenseExperts: expected images of {self.size[0]} x {self.size[1]} pixels, got {u.shape[-2]} x "
                f"{u.shape[-1]}; set `size`, or use FieldsOfExperts, which take images of any"
            )
        return nn.functional.linear(u.flatten(1), bank, self.bias)[..., None, None]

    def synthesise(self, v: Tensor, bank: Tensor, like: Tensor) -> Tensor:
        return (v.flatten(1) @ bank).reshape(like.shape)


class UntiedExperts(Prior):
    """x ↦ Cᵀ(α ⊙ ψ′(Wx + b)), with filters C of their own: in general the gradient of no functional.

    What the fixed-point map of a variational model becomes when it is learned as an equilibrium model without the bond
    between analysis and synthesis (Riccio, Ehrhardt and Benning, 2022). It begins with C = W, as the gradient of
    `experts`.

    Args:
        experts: Whose W, b, α and ψ it has. The scales s_k are those of C, too.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts
        self.synthesis = nn.Parameter(experts.filters.detach().clone())

    def grad(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        own = self.experts
        u = real_channels(self, x, own.channels)
        slope = own.potential.slope(own.analyse(u, own.bank(own.filters))) * own.log_weights.exp()[:, None, None]
        return from_channels(own.synthesise(slope, own.bank(self.synthesis), u), x)


def check_learnable(prior: nn.Module) -> None:
    """Before a step that is to be learned from.

    Raises:
        FloatingPointError: If all filters of a field of experts are zero, with their offsets, or all scales or weights,
            and with them all gradients, for good. Filters of analysis still learn from those of synthesis, and the
            other way round.
    """
    synthesis = {id(field.experts): field.synthesis for field in prior.modules() if isinstance(field, UntiedExperts)}
    for own in prior.modules():
        if not isinstance(own, Experts):
            continue
        given: list[Tensor] = [own.filters, synthesis.get(id(own), own.filters)]
        if isinstance(own, DenseExperts):
            given.append(own.bias[:, None])
        seen = torch.stack([u.flatten(1).any(1) for u in given]).any(0)
        if not (seen & (own.log_scales.exp() > 0) & (own.log_weights.exp() > 0)).any():
            raise FloatingPointError(
                f"{type(own).__name__}: all filters are zero, or their scales or weights, as where training diverged, "
                "and nothing is learned from here; begin from other filters, or lower the learning rate or the weight "
                "decay"
            )


def _mirrored(u: Tensor, radius: int) -> Tensor:
    if min(u.shape[-2:]) <= radius:
        raise ValueError(
            f"FieldsOfExperts: expected images of more than {radius} x {radius} pixels, since a border of that "
            f"width is mirrored, got {u.shape[-2]} x {u.shape[-1]}; use larger images, patches or smaller filters"
        )
    return nn.functional.pad(u, (radius,) * 4, mode="reflect")


def largest_gain(bank: Tensor) -> Tensor:
    """‖W‖ on a periodic image, from the frequency responses on a grid of three times the taps; see `check_gain`."""
    size = 3 * bank.shape[-1]
    response = torch.fft.rfft2(bank, s=(size, size)).movedim((0, 1), (-2, -1))
    if bank.shape[1] == 1:  # a column, whose norm needs no singular values
        gain = torch.linalg.vector_norm(response, dim=(-2, -1)).max()
    else:
        gain = torch.linalg.matrix_norm(response, 2).max()
    check_gain("FieldsOfExperts", gain)
    return gain


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
    if channels * size**2 == 1:
        raise ValueError("FieldsOfExperts: expected random filters of two taps or more, which have a mean, got one")
    return bank / torch.linalg.vector_norm(bank, dim=(1, 2, 3), keepdim=True)


def _cosines(size: int) -> Tensor:
    """The two-dimensional DCT-II without its constant, from low to high frequencies, (size² − 1, size, size)."""
    n = torch.arange(size)
    waves = torch.cos(torch.pi / size * (n + 0.5) * n[:, None])
    pairs = sorted(((i, j) for i in range(size) for j in range(size)), key=lambda pair: (sum(pair), pair))[1:]
    return torch.stack([torch.outer(waves[i], waves[j]) for i, j in pairs]) if pairs else torch.empty(0, size, size)


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
