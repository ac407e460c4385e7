"""A trained model: its regularizer, the reconstruction or the denoiser it was trained as, and its card."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from elder.linalg import norm, to_channels
from elder.models.catalogue import Card
from elder.models.denoiser import Denoiser
from elder.models.noise_range import warn_outside
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Prior
from elder.operators import InverseProblem, LinearOperator
from elder.solvers import Solution

_BRIGHT = 10.0  # far above any image that a model learned from: those have magnitudes of up to about 1


class TrainedModel(nn.Module):
    """x̂ = argmin_x ½‖Ax − y‖² + λR(x), or D(y; σ) = y − ∇R(y), with what was learned: `model(y, A)`, `model(y)`.

    Its parameters are frozen; `requires_grad_()` makes x̂ differentiable in them, as in training.

    Args:
        card: What is known of it.
        reconstruction: x̂, of a model that was trained as one; else None.
        denoiser: D, of a model that was trained as one; else None.
    """

    def __init__(self, card: Card, reconstruction: Reconstruction | None, denoiser: Denoiser | None) -> None:
        super().__init__()
        self.card, self.reconstruction, self.denoiser = card, reconstruction, denoiser
        self.eval().requires_grad_(False)

    @property
    def prior(self) -> Prior:
        """R, to be used with any other problem, solver or strength."""
        return self.reconstruction.prior if self.reconstruction is not None else self._denoiser().regularizer

    def forward(self, y: Tensor, A: LinearOperator | None = None, sigma: float | Tensor | None = None) -> Tensor:
        """x̂, or D(y; σ) of a denoiser: images (B, C, H, W); a warning if a solve fell short of its tolerance.

        Args:
            y: Measurements, (B, …) as A has them; of a denoiser noisy images, (B, C, H, W).
            A: The operator they were made with, y = Ax + n; a denoiser takes none.
            sigma: Standard deviation of n, one for all or (B,), for models that are told it.

        Raises:
            ValueError: If the model is of the other task, or made for other images or another precision.
            TypeError: If A is no operator, or y no tensor.
        """
        if A is None and self.reconstruction is None:
            self._check_samples(y)
            self._check(y)
            self._warn_if_bright(y)
            return self._denoiser()(y, self._level(y, sigma))
        solution = self.solve(y, A, sigma)
        tol = (
            0.0 if self.reconstruction is None else self.reconstruction.solver.tol
        )  # 0 asks for steps, not an accuracy
        if tol > 0 and (short := int((~solution.converged).sum())):
            warnings.warn(
                f"{self.card.name}: {short} of {len(y)} solves fell short of their tolerance {tol:.1e}: residual "
                f"{float(solution.residual.max()):.1e} at worst; model.solve(y, A) has those of all",
                stacklevel=2,
            )
        return solution.x

    def solve(self, y: Tensor, A: LinearOperator | None, sigma: float | Tensor | None = None) -> Solution:
        """x̂ with its residual and cost; arguments and errors as for a call."""
        reconstruction, name = self.reconstruction, self.card.name
        if reconstruction is None:
            raise ValueError(
                f"{name} is a denoiser: expected a call with noisy images alone, got an operator; to reconstruct with "
                "its regularizer choose λ: Reconstruction(model.prior, strength=…)"
            )
        if not isinstance(A, LinearOperator):
            raise TypeError(
                f"{name} reconstructs: expected measurements y and the operator A they were made with, got "
                f"{'no A' if A is None else type(A).__name__}; call it with (y, A), A from elder.operators"
            )
        self._check_samples(y)
        x0 = A.initialize(y)
        self._check(x0)
        flat = torch.ones_like(x0)
        if bool((norm(A(flat)) <= 1e-3 * norm(flat)).any()):
            warnings.warn(
                f"{name}: A makes nothing of a constant image, so that the mean of x̂ is unknown; measure it (in the "
                "Fourier domain, zero frequency: masks have it at (H // 2, W // 2))",
                stacklevel=3,
            )
        if sigma is None and reconstruction.log_sigma_factor is not None:
            raise ValueError(
                f"{name} is told the noise level of y: expected the standard deviation of its noise, got none; call "
                "model(y, A, sigma=…)"
            )
        solution = reconstruction(InverseProblem(A, y, sigma=self._level(y, sigma)))
        self._warn_if_bright(solution.x)
        return solution

    def _denoiser(self) -> Denoiser:
        if self.denoiser is None:
            raise ValueError(f"{self.card.name}: expected a model with a denoiser or a reconstruction, found neither")
        return self.denoiser

    def _level(self, y: Tensor, sigma: float | Tensor | None) -> Tensor | None:
        """σ of every sample, (B,), with one warning if it is outside the range of training."""
        if sigma is None:
            return None
        level = torch.as_tensor(sigma, dtype=y.real.dtype, device=y.device)
        if level.ndim > 1 or level.numel() not in (1, len(y)):
            raise ValueError(
                f"{self.card.name}: expected sigma to be one number, or one for each of {len(y)} samples, got "
                f"{tuple(level.shape)}"
            )
        level = level.expand(len(y))
        if not bool((level >= 0).all()):
            raise ValueError(f"{self.card.name}: expected sigma >= 0, in the units of y, got {level.tolist()}")
        if self.card.noise is not None:
            warn_outside(level, self.card.noise, self.card.name)
        return level

    def _warn_if_bright(self, x: Tensor) -> None:
        """R knows images by their scale: one in [0, 255] is taken for noise of great contrast."""
        if (greatest := float(x.detach().abs().max())) > _BRIGHT:
            warnings.warn(
                f"{self.card.name}: learned from images in [0, 1], given one of values up to {greatest:.3g}; divide y "
                "by the largest value that an image may have, as 255",
                stacklevel=4,
            )

    def _check_samples(self, y: object) -> None:
        """Refuse what is no batch of at least one sample."""
        if not isinstance(y, Tensor):
            raise TypeError(
                f"{self.card.name}: expected a torch.Tensor (B, …), got {type(y).__name__}; torch.as_tensor makes one"
            )
        if y.ndim == 0 or len(y) == 0:
            raise ValueError(f"{self.card.name}: expected at least one sample, (B, …), got none: {tuple(y.shape)}")

    def _check(self, x: Tensor) -> None:
        """Refuse images of other channels or precision than R takes, and such as are not finite."""
        name, channels, dtype = self.card.name, self.card.channels, next(self.prior.parameters()).dtype
        if x.ndim != 4 or (channels is not None and to_channels(x).shape[1] != channels):
            kind = "" if channels is None else f" with {channels} real channels, a complex one counting as two"
            advice = "make its images real with A @ ComplexImage(), or take" if x.is_complex() else "take"
            raise ValueError(
                f"{name}: expected images (B, C, H, W){kind}, got {tuple(x.shape)} {x.dtype}; "
                f"{advice} a model for such images: python main.py zoo list"
            )
        if x.real.dtype != dtype:
            raise ValueError(
                f"{name}: expected images of the precision of the model, {dtype}, got {x.dtype}; "
                "convert the measurements and the operator, or the model with .to(dtype)"
            )
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name}: expected finite measurements, got NaN or infinity in them; mend or remove them")
