"""The exact solution and parameter gradient that every method is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.problems import Case
from elder.linalg import norm
from elder.models.objective import Objective
from elder.solvers import LBFGS, MINRES, Implicit
from elder.solvers.lanczos import lanczos

CACHE = Path(__file__).parent / ".cache"
REVISION = 1  # to be raised when the computation of references changes
TOLERANCE = 1e-9


class Reference(NamedTuple):
    """A stationary point x* and the gradient of the loss there, in double precision."""

    x: Tensor
    gradient: Tensor  # dℓ/d(parameters, log λ), one vector
    residual: float  # ‖∇f(x*)‖/‖∇f(x⁰)‖, the largest of the batch
    adjoint_residual: float  # of the adjoint system, likewise
    curvature: float  # smallest eigenvalue of ∇²f(x*) met by Lanczos, the smallest of the batch
    lipschitz: float  # largest eigenvalue of ∇²f at x⁰ and x*, the largest of the batch

    @property
    def accurate(self) -> bool:
        """Whether both systems were solved to 1e-9."""
        return max(self.residual, self.adjoint_residual) <= 1.01 * TOLERANCE


def reference(case: Case) -> Reference:
    """The reference of a case, from the cache if it holds it.

    The forward problem is solved to a relative residual of 1e-9 by L-BFGS, the adjoint system by MINRES, which does
    not need a convex f. The step length 1/L of methods that cannot find one comes from the same place.
    """
    path = CACHE / f"{_key(case)}.pt"
    if path.is_file():
        return Reference(**torch.load(path, weights_only=True))
    found = compute_reference(case)
    path.parent.mkdir(exist_ok=True)
    torch.save(found._asdict(), path)
    return found


def compute_reference(case: Case) -> Reference:
    """The reference of a case, computed."""
    case = case.double()
    reconstruction = case.reconstruction(
        LBFGS(max_steps=5000, tol=TOLERANCE, memory=30), Implicit(MINRES(max_steps=2000, tol=TOLERANCE))
    )
    solution = reconstruction(case.problem)
    gradient = parameter_gradient(case.loss(solution.x), reconstruction)
    assert solution.adjoint is not None and solution.adjoint.solution is not None
    x, objective = solution.x.detach(), reconstruction.objective(case.problem)
    smallest, largest = _extreme_eigenvalues(objective, x)
    largest = max(largest, _extreme_eigenvalues(objective, case.x0)[1])
    residual, adjoint = solution.residual.max().item(), solution.adjoint.solution.residual.max().item()
    return Reference(x, gradient, residual, adjoint, smallest, largest)


def parameter_gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """dℓ/d(parameters) as one vector, of a reconstruction with that in log λ; runs the backward pass."""
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([part.flatten() for part in parts])


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a.double() - b).norm() / b.norm())


def stops_elsewhere(case: Case, found: Tensor, exact: Reference) -> bool:
    """Whether x̂ is further from x* than its gradient explains: ‖x̂ − x*‖ > 3 ‖∇f(x̂)‖/μ for a sample, μ the curvature.

    Then the method heads for another stationary point, and its gradient has nothing to be compared with. The factor
    covers the change of the Hessian between the two points; single precision is granted 1e-4.
    """
    if exact.curvature <= 0:
        return False
    case, x = case.double(), found.double()
    with torch.no_grad():
        residual = norm(case.objective().grad(x))
    apart = norm(x - exact.x)
    return bool((apart > 3 * residual / exact.curvature + 1e-4 * norm(exact.x)).any())


def _extreme_eigenvalues(objective: Objective, x: Tensor) -> tuple[float, float]:
    """Smallest and largest eigenvalue of ∇²f(x) over the batch."""
    point = x.clone().requires_grad_()
    grad = objective.grad(point)
    found = lanczos(lambda v: torch.autograd.grad(grad, point, v, retain_graph=True)[0], x)
    return found.smallest.min().item(), found.largest.max().item()


def _key(case: Case) -> str:
    """Hash of all that a reference depends on: data, operator and regularizer, the last two as they act on x⁰."""
    case = case.double()
    with torch.no_grad():
        value, grad = case.objective().value_and_grad(case.x0)
    facts: Sequence[object] = (REVISION, TOLERANCE, case.strength, *(f"{v:.9e}" for v in (*value, *norm(grad))))
    digest = hashlib.sha256(repr(facts).encode())
    for tensor in (case.images, case.problem.y, *(p.detach() for p in case.prior.parameters())):
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
