"""What a reconstruction minimises, as solvers see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from elder.linalg import doubled, full_precision, norm, per_sample
from elder.models.evaluation import Evaluator
from elder.models.regularizers.base import Prior, Regularizer
from elder.operators.base import LinearOperator
from elder.operators.fidelity import DataFidelity

__all__ = ["Draws", "Objective"]

_SHOWN = 1e-3  # a relative residual that single precision shows in any case


class Draws:
    """Random sets of blocks of the measurements: the same, in the same order, for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def blocks(self, m: int, n: int) -> Tensor:
        """n of the numbers 0 … m − 1, each at most once, in ascending order."""
        return torch.randperm(m, generator=self._generator)[:n].sort().values


@dataclass(frozen=True)
class Objective:
    """f(x) = g(x; A, y) + λ R(x), bound to one batch of inverse problems: what solvers see as a `Problem`."""

    A: LinearOperator
    y: Tensor
    fidelity: DataFidelity
    prior: Prior
    strength: Tensor  # λ, () or (B,)
    sigma: Tensor | None = None  # noise level that the prior is told, () or (B,)
    evaluator: Evaluator | None = None  # takes the place of the prior wherever no graph is recorded
    dtype: torch.dtype | None = None  # of the network there; None: the ambient one
    weight: float = 1.0  # of g: m/n where A has n of the m blocks of the measurements
    narrow: torch.dtype | None = None  # of the image where R sees it; None: as it is
    draws: Draws = field(default_factory=Draws)  # of random blocks

    @property
    def symmetric(self) -> bool:
        """Whether F is a gradient."""
        return isinstance(self.prior, Regularizer)

    @property
    def few_batch_sizes(self) -> bool:
        """Whether every new batch size is compiled anew."""
        return not torch.is_grad_enabled() and self.evaluator is not None and self.evaluator.mode is not None

    @property
    def precision(self) -> float:
        """Relative rounding error of R and ∇R."""
        device, full = self.y.device.type, self.narrow or self.y.dtype
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else full
        return torch.finfo((self.dtype or low) if self.prior.lowered else full).eps

    @property
    def natural_step(self) -> Tensor:
        """1/λ."""
        return 1 / self.strength.detach()

    def resolving(self, x0: Tensor, tol: float) -> tuple[Objective, Tensor]:
        """The same f and x⁰, in double precision where single precision may hide a residual of tol · ‖F(x⁰)‖.

        ∇g is computed to about eps ‖AᴴA‖‖x‖. Noise makes ‖F(x⁰)‖ large beside that; without it, where ∇g(x⁰) = 0 and
        λ is small, single precision ends at residuals of 10⁻⁴. R is evaluated as before: λ∇R, which costs the time, is
        small there, and so are its rounding errors.
        """
        single = x0.dtype in (torch.float32, torch.complex64) and x0.device.type != "mps"  # which has no double
        if not single or not 0 < tol < _SHOWN or self.precision > torch.finfo(torch.float32).eps:
            return self, x0
        with torch.no_grad():
            rounding = torch.finfo(x0.dtype).eps * norm(x0)
            if (tol * norm(self.data_grad(x0)) > 4 * rounding).all():
                return self, x0
        A = self.A.select(torch.arange(len(x0), device=x0.device)).double()  # a copy
        return replace(self, A=A, y=doubled(self.y), narrow=x0.dtype), doubled(x0)

    def value(self, x: Tensor) -> Tensor:
        """f(x), (B,); needs an explicit `Regularizer`."""
        g = self._weighted(self.fidelity.value(x, self.A, self.y))
        return g + self.strength * self._regularizer().value(self._narrowed(x), self.sigma)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), (B,), and ∇f(x)."""
        self._regularizer()
        g, grad_g = self.fidelity.value_and_grad(x, self.A, self.y)
        R, grad_R = self._evaluate(x)
        return self._weighted(g) + self.strength * R, self._weighted(grad_g) + per_sample(self.strength, x) * grad_R

    def grad(self, x: Tensor) -> Tensor:
        """∇g(x) + λ∇R(x), the optimality condition F."""
        return self.data_grad(x) + self.prior_grad(x)

    def data_grad(self, x: Tensor) -> Tensor:
        """∇g(x)."""
        return self._weighted(self.fidelity.grad(x, self.A, self.y))

    def data_product(self, x: Tensor, u: Tensor) -> Tensor:
        """∇²g(x)u."""
        return self._weighted(self.fidelity.curvature(x, self.A, self.y, u))

    def prior_grad(self, x: Tensor) -> Tensor:
        """λ∇R(x)."""
        field = self._evaluate(x)[1] if self.symmetric else self._evaluate(x)
        return per_sample(self.strength, x) * field

    def proximal_gradient(self, x: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
        """prox_{γg}(x − γλ∇R(x)), given grad = F(x)."""
        z = x - per_sample(step_size, x) * (grad - self.data_grad(x))
        return self.fidelity.prox(z, self.A, self.y, self.weight * step_size)

    def precondition(self, u: Tensor, curvature: float) -> Tensor:
        """(AᴴA + λcI)⁻¹u."""
        step_size = self.natural_step / curvature
        return per_sample(step_size, u) * full_precision(self.A.gram_resolvent)(u, self.weight * step_size)

    def draw(self, n: int) -> Objective:
        """With a random set of n blocks of the measurements, weighed such that the expected ∇g is that of all.

        Raises:
            ValueError: If there are fewer than n.
        """
        m = self.A.n_blocks
        if n > m:
            raise ValueError(
                f"{type(self.A).__name__}: expected an online solver or backward rule with n_views of at most the {m} "
                f"blocks of its measurements (views, illuminations, coils), got {n}; lower n_views, or with 1 block "
                "take a solver that looks at all of them"
            )
        return self if n == m else self._of(self.draws.blocks(m, n))

    def partition(self, n: int) -> Iterator[tuple[float, Objective]]:
        """All blocks in sets of at most n, in order, each with its share of them."""
        m = self.A.n_blocks
        for blocks in torch.arange(m).split(n):
            yield len(blocks) / m, self._of(blocks)

    def _of(self, blocks: Tensor) -> Objective:
        A, y = self.A.subset(blocks), self.A.subset_data(self.y, blocks)
        return replace(self, A=A, y=y, weight=self.weight * self.A.n_blocks / len(blocks))

    def select(self, samples: Tensor) -> Objective:
        """The same objective for part of the batch."""
        return replace(
            self,
            A=self.A.select(samples),
            y=self.y[samples],
            strength=self.strength[samples] if self.strength.ndim else self.strength,
            sigma=self.sigma[samples] if self.sigma is not None and self.sigma.ndim else self.sigma,
        )

    def _weighted(self, u: Tensor) -> Tensor:
        return u if self.weight == 1 else self.weight * u

    def _evaluate(self, x: Tensor) -> Any:
        """(R(x), ∇R(x)), or the field alone of a prior without R."""
        prior, x = self.prior, self._narrowed(x)
        if self.evaluator is not None and not torch.is_grad_enabled():
            return self.evaluator(x, self.sigma, self.dtype)
        return prior.value_and_grad(x, self.sigma) if isinstance(prior, Regularizer) else prior.grad(x, self.sigma)

    def _narrowed(self, x: Tensor) -> Tensor:
        return x if self.narrow is None else x.to(self.narrow)

    def _regularizer(self) -> Regularizer:
        if not isinstance(self.prior, Regularizer):
            raise TypeError(f"Objective: {type(self.prior).__name__} is a vector field without a value")
        return self.prior
