"""Priors made from others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elder.linalg import from_channels, inner, per_sample, to_channels
from elder.models.regularizers.base import Prior, Regularizer


class _Scaling(nn.Module):
    """Numbers a and s, constant or affine in log(σ/σ₀): the parameters of `Scaled` and `ScaledField`."""

    def __init__(self, strength: float, scale: float, reference: float | None) -> None:
        super().__init__()
        name = type(self).__name__
        if strength <= 0 or scale <= 0:
            raise ValueError(f"{name}: expected positive strength and scale, got {strength} and {scale}")
        if reference is not None and reference <= 0:
            raise ValueError(f"{name}: expected a positive reference noise level, got {reference}")
        self.reference = reference
        self.log_strength = nn.Parameter(torch.tensor(strength).log())
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        if reference is not None:
            self.strength_slope = nn.Parameter(torch.tensor(0.0))
            self.scale_slope = nn.Parameter(torch.tensor(-1.0))

    def _at(self, sigma: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """e^a and e^s, () or (B,), and e^s σ.

        Raises:
            ValueError: If they depend on the noise level and it is missing.
        """
        a, s = self.log_strength, self.log_scale
        if self.reference is not None:
            if sigma is None:
                raise ValueError(
                    f"{type(self).__name__}: expected a noise level beside its reference {self.reference:g}, got None; "
                    "set `sigma` of the reconstruction, or call the denoiser with (y, sigma=…)"
                )
            sigma = sigma.clamp_min(self.reference / 50)
            level = (sigma / self.reference).log().to(s)
            a, s = a + self.strength_slope * level, s + self.scale_slope * level
        scale = s.exp()
        return a.exp(), scale, None if sigma is None else scale * sigma


class Scaled(_Scaling, Regularizer):
    """R̃(x; σ) = e^{a − 2s} R(e^s x; e^s σ), with learnable strength a and scale s, constant or of the noise level.

    Adapts a regularizer that was learned at one noise level or range of values to another with two numbers
    (Hertrich et al., 2025); the factor e^{−2s} keeps a quadratic R unchanged under s.

    With a `reference` level σ₀, a and s are affine in log(σ/σ₀), with learnable slopes a′ and s′: one functional serves
    a range of levels. Initially a′ = 0 and s′ = −1, so that R̃(x; σ) = (σ/σ₀)² R̃(σ₀x/σ; σ₀): the denoiser x − ∇R̃ of an
    image and noise that are both scaled returns its image scaled. Families without a noise map need it for that; those
    with one learn small noise much faster with it.

    Args:
        regularizer: R.
        strength: Initial e^a, at the reference.
        scale: Initial e^s, at the reference.
        reference: Noise level σ₀ > 0 in the units of the image; levels below σ₀/50 count as σ₀/50. None: a and s are
            constants.
    """

    def __init__(
        self, regularizer: Regularizer, strength: float = 1.0, scale: float = 1.0, reference: float | None = None
    ) -> None:
        super().__init__(strength, scale, reference)
        self.regularizer, self.lowered = regularizer, regularizer.lowered

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        strength, scale, level = self._at(sigma)
        return strength / scale.square() * self.regularizer.value(per_sample(scale, x) * x, level)

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By the chain rule, so that a closed form of R's gradient is used."""
        strength, scale, level = self._at(sigma)
        value, grad = self.regularizer.value_and_grad(per_sample(scale, x) * x, level)
        return strength / scale.square() * value, per_sample(strength / scale, x) * grad


class Confined(Regularizer):
    """R̃(x; σ) = R(x; σ) + (w/2) dist(x, [−m, 1 + m]ⁿ)², m = 0.02: R for images, with a wall about them.

    It bounds from below what is not bounded by itself, as RED and scalar potentials and total deep variation: without,
    their solves may diverge where A says little about x. Of complex images both parts are confined, to [−1 − m, 1 + m].
    Nothing is learned but R, whose weights serve as `pretrained` too.

    Args:
        regularizer: R.
        wall: w > 0; more than the curvature with which R falls far away from images.

    Raises:
        ValueError: If the wall is not positive.
    """

    MARGIN = 0.02

    def __init__(self, regularizer: Regularizer, wall: float = 1.0) -> None:
        super().__init__()
        if wall <= 0:
            raise ValueError(f"Confined: expected wall > 0, got {wall}")
        self.regularizer, self.wall, self.lowered = regularizer, wall, regularizer.lowered

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        outside = self._outside(x)
        return self.regularizer.value(x, sigma) + self.wall / 2 * inner(outside, outside)

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """So that a closed form of R's gradient is used."""
        outside = self._outside(x)
        value, grad = self.regularizer.value_and_grad(x, sigma)
        return value + self.wall / 2 * inner(outside, outside), grad + self.wall * outside

    def _outside(self, x: Tensor) -> Tensor:
        """x − P(x), P the projection onto the box."""
        u = to_channels(x)
        return from_channels(u - u.clamp(-self.MARGIN - x.is_complex(), 1 + self.MARGIN), like=x)


class Channelwise(Regularizer):
    """R̃(x; σ) = Σ_c R(x_c; σ) over the channels of x, real and imaginary parts of complex images counted apart.

    What was learned of gray images serves color and complex ones, and volumes whose slices are channels. Nothing is
    learned but R, whose weights serve as `pretrained` too.

    Args:
        regularizer: R of one channel.
    """

    def __init__(self, regularizer: Regularizer) -> None:
        super().__init__()
        self.regularizer, self.lowered = regularizer, regularizer.lowered

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        single, level = self._split(x, sigma)
        return self.regularizer.value(single, level).unflatten(0, (len(x), -1)).sum(1)

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """So that a closed form of R's gradient is used."""
        single, level = self._split(x, sigma)
        value, grad = self.regularizer.value_and_grad(single, level)
        whole = (len(x), -1)
        return value.unflatten(0, whole).sum(1), from_channels(grad.squeeze(1).unflatten(0, whole), like=x)

    def _split(self, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Channels as images of a larger batch, and the noise level of each."""
        u = to_channels(x)
        level = sigma.repeat_interleave(u.shape[1]) if sigma is not None and sigma.ndim else sigma
        return u.flatten(0, 1)[:, None], level


class Surrounded(Regularizer):
    """R̃(x; σ) = R(Zx; σ), Z putting x into a margin of zeros: R for objects in a medium that is known to be 0.

    A functional that does not see constants, as total variation and ridges, then sees them at the border, and the mean
    of an image is known where A does not see it. Nothing is learned but R, whose weights serve as `pretrained` too.

    Args:
        regularizer: R.
        margin: Pixels on each side.

    Raises:
        ValueError: If margin < 1.
    """

    def __init__(self, regularizer: Regularizer, margin: int = 4) -> None:
        super().__init__()
        if margin < 1:
            raise ValueError(f"Surrounded: expected margin >= 1 pixel, got {margin}")
        self.regularizer, self.margin, self.lowered = regularizer, margin, regularizer.lowered

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        return self.regularizer.value(self._padded(x), sigma)

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """So that a closed form of R's gradient is used."""
        m = self.margin
        value, grad = self.regularizer.value_and_grad(self._padded(x), sigma)
        return value, grad[..., m:-m, m:-m]

    def _padded(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (self.margin,) * 4)


class ScaledField(_Scaling, Prior):
    """F̃(x; σ) = e^{a − s} F(e^s x; e^s σ): of a field without a functional what `Scaled` is of ∇R.

    Args:
        field: F.
        strength: Initial e^a, at the reference.
        scale: Initial e^s, at the reference.
        reference: Noise level σ₀ > 0 in the units of the image; levels below σ₀/50 count as σ₀/50. None: a and s are
            constants.
    """

    def __init__(self, field: Prior, strength: float = 1.0, scale: float = 1.0, reference: float | None = None) -> None:
        super().__init__(strength, scale, reference)
        self.field, self.lowered = field, field.lowered

    def grad(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        strength, scale, level = self._at(sigma)
        return per_sample(strength / scale, x) * self.field.grad(per_sample(scale, x) * x, level)
