"""The whole method: x̂(A, y) = argmin_x g(x; A, y) + λ R_θ(x), differentiable in θ and λ. Plain torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from elder.linalg import per_sample
from elder.models.regularizers.base import Prior, Regularizer
from elder.operators.acquisition import InverseProblem
from elder.operators.base import LinearOperator
from elder.operators.fidelity import DataFidelity, LeastSquares
from elder.solvers import LBFGS, BackwardRule, Implicit, Solution, Solver


@dataclass(frozen=True)
class Objective:
    """f(x) = g(x; A, y) + λ R(x), bound to one batch of inverse problems: what solvers see as a `Problem`."""

    A: LinearOperator
    y: Tensor
    fidelity: DataFidelity
    prior: Prior
    strength: Tensor  # λ, () or (B,)
    sigma: Tensor | None = None  # noise level the prior is told, () or (B,)

    def value(self, x: Tensor) -> Tensor:
        """f(x), (B,); needs an explicit `Regularizer`."""
        return self.fidelity.value(x, self.A, self.y) + self.strength * self._regularizer().value(x, self.sigma)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), (B,), and ∇f(x)."""
        g, grad_g = self.fidelity.value_and_grad(x, self.A, self.y)
        R, grad_R = self._regularizer().value_and_grad(x, self.sigma)
        return g + self.strength * R, grad_g + per_sample(self.strength, x) * grad_R

    def grad(self, x: Tensor) -> Tensor:
        """∇g(x) + λ∇R(x), the optimality condition F."""
        grad_g = self.fidelity.grad(x, self.A, self.y)
        return grad_g + per_sample(self.strength, x) * self.prior.grad(x, self.sigma)

    def proximal_gradient(self, x: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
        """prox_{γg}(x − γλ∇R(x)), given grad = F(x)."""
        grad_R = grad - self.fidelity.grad(x, self.A, self.y)
        return self.fidelity.prox(x - per_sample(step_size, x) * grad_R, self.A, self.y, step_size)

    def select(self, samples: Tensor) -> Objective:
        """The same objective for part of the batch."""
        if len(samples) == len(self.y):
            return self
        return replace(
            self,
            A=self.A.select(samples),
            y=self.y[samples],
            strength=self.strength[samples] if self.strength.ndim else self.strength,
            sigma=self.sigma[samples] if self.sigma is not None and self.sigma.ndim else self.sigma,
        )

    def _regularizer(self) -> Regularizer:
        if not isinstance(self.prior, Regularizer):
            raise TypeError(f"Objective: {type(self.prior).__name__} is a vector field without a value")
        return self.prior


class Reconstruction(nn.Module):
    """x̂(A, y) = argmin_x g(x; A, y) + λ R_θ(x).

    Args:
        prior: R_θ (or, for implicit baselines, a vector field in place of ∇R).
        solver: Finds x̂.
        backward: How x̂ is differentiated in θ and λ.
        fidelity: g.
        strength: Initial λ > 0. Learnable, as its logarithm.
        sigma: Noise level the prior is told, in the units of the image; learnable, as its logarithm. None for
            priors that do not depend on one.

    Raises:
        ValueError: If λ or σ is not positive, or if the solver or the backward rule does not fit the prior.
    """

    def __init__(
        self,
        prior: Prior,
        solver: Solver | None = None,
        backward: BackwardRule | None = None,
        fidelity: DataFidelity | None = None,
        strength: float = 0.1,
        sigma: float | None = None,
    ) -> None:
        super().__init__()
        if strength <= 0 or (sigma is not None and sigma <= 0):
            raise ValueError(f"Reconstruction: expected positive strength and sigma, got {strength} and {sigma}")
        self.prior = prior
        self.solver = solver or LBFGS()
        self.backward = backward or Implicit()
        self.fidelity = fidelity or LeastSquares()
        self.log_strength = nn.Parameter(torch.tensor(float(strength)).log())
        self.log_sigma = None if sigma is None else nn.Parameter(torch.tensor(float(sigma)).log())
        if not isinstance(prior, Regularizer):
            name = type(prior).__name__
            if self.solver.needs_value:
                raise ValueError(
                    f"Reconstruction: {type(self.solver).__name__} compares values of f, but {name} has no value; "
                    "use Picard or Anderson"
                )
            if isinstance(self.backward, Implicit) and self.backward.solver.needs_symmetry:
                raise ValueError(
                    f"Reconstruction: {type(self.backward.solver).__name__} needs a symmetric Jacobian, but {name} "
                    "is no gradient; use GMRES"
                )

    @property
    def strength(self) -> Tensor:
        """λ."""
        return self.log_strength.exp()

    def objective(self, problem: InverseProblem) -> Objective:
        """f for one batch of problems."""
        sigma = None if self.log_sigma is None else self.log_sigma.exp()
        return Objective(problem.A, problem.y, self.fidelity, self.prior, self.strength, sigma)

    def forward(self, problem: InverseProblem) -> Solution:
        """x̂ from x⁰ = A.initialize(y)."""
        return self.backward(self.solver, self.objective(problem), problem.A.initialize(problem.y))
