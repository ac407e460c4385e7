"""Training steps as other packages take them, written from descriptions of what those packages do.

All of them get, for nothing, what they do not find themselves: a step length 1/L that suits the problem. Their
gradient of R is automatic differentiation of its value, in PyTorch's own functions where that makes a difference
(`plain_value`), as a user of those packages has it; evaluations are counted, and so is every product.

- deepinv: gradient descent whose solve records the graph of every inner gradient and evaluates the objective at each
  iteration (its default for explicit priors); stopping by the mean over the batch, with one tolerance for both
  solves; T evaluated twice more for the backward pass, a fixed-point iteration of VJPs. Its early stopping, off by
  default, is switched on. Optionally Anderson acceleration of both solves with its absolute ridge of 1e-4.
- torchdeq: the package itself, implicit differentiation by its solvers. Its user writes T, and records no graph of
  the inner gradient where none is needed.
- comparative studies: nonmonotone APG, samples leaving as they converge; MINRES on Hessian products, each from a new
  graph, at their tolerances of 1e-4 and 1e-6.
- unrolling: backpropagation through 20 or 50 gradient steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torchdeq
from torch import Tensor
from torchdeq.solver import get_solver, register_solver

from benchmarks.costs import region
from benchmarks.methods import ADJOINT, FORWARD, MAX_STEPS, NO_DIAL, Method, Step
from benchmarks.problems import Case, plain_value
from benchmarks.reference import parameter_gradient
from elder.linalg import norm, per_sample
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Regularizer
from elder.operators import InverseProblem
from elder.solvers import MINRES, NonmonotoneAPG


@dataclass
class Count:
    """Evaluations, summed over images."""

    gradients: int = 0
    values: int = 0
    products: int = 0

    def step(self, x: Tensor, gradient: Tensor) -> Step:
        n = len(x)
        return Step(x.detach(), gradient, self.gradients / n, self.values / n, self.products / n)


@dataclass(frozen=True)
class AutomaticObjective:
    """f(x) = ½‖Ax − y‖² + λR(x), its gradient by automatic differentiation of R.

    Args:
        problem: A and y.
        prior: R.
        strength: λ.
        always_record: Whether ∇R is recorded for differentiation where nobody will differentiate it.
        count: Evaluations so far.
    """

    problem: InverseProblem
    prior: Regularizer
    strength: Tensor
    always_record: bool = False
    count: Count = field(default_factory=Count)

    symmetric = True
    few_batch_sizes = False

    @property
    def precision(self) -> float:
        return torch.finfo(self.problem.y.dtype).eps

    def grad(self, x: Tensor) -> Tensor:
        """∇f(x)."""
        return self._value_and_grad(x)[1]

    def value(self, x: Tensor) -> Tensor:
        """f(x), (B,), by an evaluation of its own, without a graph."""
        self.count.values += len(x)
        with torch.no_grad(), region(inside=True):
            r = self.problem.A(x) - self.problem.y
            return 0.5 * norm(r) ** 2 + self.strength * plain_value(self.prior, x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), (B,), and ∇f(x)."""
        return self._value_and_grad(x)

    def proximal_gradient(self, x: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
        """A plain gradient step: the data term is not split off in those studies."""
        return x - per_sample(step_size, x) * grad

    def select(self, samples: Tensor) -> AutomaticObjective:
        A, y = self.problem.A, self.problem.y
        return replace(self, problem=self.problem._replace(A=A.select(samples), y=y[samples], x=None, sigma=None))

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """∇²f(x)v from a new graph."""
        self.count.products += len(x)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (product,) = torch.autograd.grad(self._value_and_grad(point)[1], point, v)
        self.count.gradients -= len(x)  # the gradient on the way belongs to the product
        return product

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count.gradients += len(x)
        record = torch.is_grad_enabled()
        with region(inside=True):
            with torch.enable_grad():
                u = x if x.requires_grad else x.detach().requires_grad_()
                R = plain_value(self.prior, u)
                (grad_R,) = torch.autograd.grad(R.sum(), u, create_graph=record or self.always_record)
            r = self.problem.A(x) - self.problem.y
            value = 0.5 * norm(r) ** 2 + self.strength * R
            grad = self.problem.A.adjoint(r) + self.strength * grad_R
        return (value, grad) if record else (value.detach(), grad.detach())


def _objective(case: Case, always_record: bool = False) -> tuple[Reconstruction, AutomaticObjective]:
    reconstruction = case.reconstruction()
    return reconstruction, AutomaticObjective(case.problem, case.prior, reconstruction.strength, always_record)


def deepinv_step(
    case: Case,
    step_size: float,
    tol: float,
    max_products: float,
    anderson: bool = False,
    max_steps: int = 100,
) -> Step:
    """Gradient descent and fixed-point adjoint in the manner of deepinv."""
    reconstruction, f = _objective(case, always_record=True)

    def iteration(x: Tensor) -> Tensor:
        return x - step_size * f.grad(x)

    def monitored(x: Tensor) -> Tensor:
        f.value(x)
        return iteration(x)

    solve = _ridge_anderson if anderson else _fixed_point
    with torch.no_grad():
        x, _ = solve(monitored, case.x0, max_steps, tol)
    attached = iteration(x)
    root = attached.detach().requires_grad_()
    image = iteration(root)

    def adjoint(v: Tensor) -> Tensor:
        def map_(u: Tensor) -> Tensor:
            f.count.products += len(u)
            return torch.autograd.grad(image, root, u, retain_graph=True)[0] + v

        with region(inside=False), torch.no_grad():
            return solve(map_, v, int(max_products), tol)[0]

    attached.register_hook(adjoint)
    gradient = parameter_gradient(case.loss(attached), reconstruction)
    return f.count.step(attached, gradient)


def _fixed_point(map_: Callable[[Tensor], Tensor], x: Tensor, max_steps: int, tol: float) -> tuple[Tensor, int]:
    """x ← T(x) until the mean over the batch of ‖T(x) − x‖/‖x‖ falls below the tolerance."""
    for step in range(max_steps):
        x, previous = map_(x).detach(), x
        if _mean_change(x, previous) < tol:
            return x, step + 1
    return x, max_steps


def _ridge_anderson(
    map_: Callable[[Tensor], Tensor], x: Tensor, max_steps: int, tol: float, memory: int = 5, ridge: float = 1e-4
) -> tuple[Tensor, int]:
    """x⁺ = Σ α_i T(x_i), Σ α_i = 1, ‖Σ α_i (T(x_i) − x_i)‖ smallest but for an absolute ridge (type II Anderson)."""
    points, images = [x], [map_(x).detach()]
    x = images[0]
    for step in range(1, max_steps):
        points, images = [*points[-memory + 1 :], x], [*images[-memory + 1 :], map_(x).detach()]
        residuals = torch.stack([(b - a).flatten(1) for a, b in zip(points, images, strict=True)], 1)
        n = len(points)
        system = residuals.new_ones(len(x), n + 1, n + 1)
        system[:, 0, 0] = 0
        system[:, 1:, 1:] = residuals @ residuals.mT + ridge * torch.eye(n, dtype=x.dtype)
        rhs = system.new_zeros(len(x), n + 1, 1)
        rhs[:, 0] = 1
        alpha = torch.linalg.solve(system, rhs)[:, 1:, 0]
        x, previous = torch.einsum("bk,bk...->b...", alpha, torch.stack(images, 1)), x
        if _mean_change(x, previous) < tol:
            return x, step + 1
    return x, max_steps


def _mean_change(x: Tensor, previous: Tensor) -> float:
    return (norm(x - previous) / (norm(previous) + 1e-6)).mean().item()


def torchdeq_step(
    case: Case,
    step_size: float,
    tol: float,
    adjoint_tol: float,
    backward: str = "anderson",
    stop_mode: str = "rel",
    max_steps: int = MAX_STEPS,
    max_products: int = MAX_STEPS,
) -> Step:
    """Implicit differentiation by torchdeq's public interface: Anderson forward, `backward` for the adjoint."""
    reconstruction, f = _objective(case)
    solver = get_solver(backward)

    def counted(map_: Callable[[Tensor], Tensor], x0: Tensor, **kwargs: Any) -> Any:
        def product(u: Tensor) -> Tensor:
            f.count.products += len(case.images)
            return map_(u)

        with region(inside=False):
            return solver(product, x0, **kwargs)

    register_solver("counted", counted)
    deq = torchdeq.get_deq(
        f_solver="anderson",
        b_solver="counted",
        ift=True,
        f_tol=tol,
        b_tol=adjoint_tol,
        f_max_iter=max_steps,
        b_max_iter=max_products,
        f_stop_mode=stop_mode,
        b_stop_mode=stop_mode,
    )
    (*_, x), _ = deq(lambda z: z - step_size * f.grad(z), case.x0)
    gradient = parameter_gradient(case.loss(x), reconstruction)
    return f.count.step(x, gradient)


def comparative_step(case: Case, step_size: float, tol: float, adjoint_tol: float) -> Step:
    """Nonmonotone APG, then MINRES on Hessian products from new graphs, as comparative studies train."""
    reconstruction, f = _objective(case)
    with torch.no_grad():
        x = NonmonotoneAPG(max_steps=MAX_STEPS, tol=tol)(f, case.x0).x
    x = x.requires_grad_()
    (v,) = torch.autograd.grad(case.loss(x), x)
    x = x.detach()
    u = MINRES(max_steps=MAX_STEPS, tol=adjoint_tol)(lambda w: f.hessian_product(x, w), v).x
    with torch.enable_grad():
        gradient = parameter_gradient(-(f.grad(x) * u).sum(), reconstruction)
    return f.count.step(x, gradient)


def unrolled_step(case: Case, step_size: float, n_steps: float, _: float) -> Step:
    """Backpropagation through gradient steps."""
    reconstruction, f = _objective(case)
    x = case.x0
    for _step in range(int(n_steps)):
        x = x - step_size * f.grad(x)
    gradient = parameter_gradient(case.loss(x), reconstruction)
    return f.count.step(x, gradient)


def _deepinv(name: str, anderson: bool) -> Method:
    def run(case: Case, step_size: float, tol: float, max_products: float) -> Step:
        return deepinv_step(case, step_size, tol, max_products, anderson, MAX_STEPS)

    def default(case: Case, step_size: float) -> Step:
        """At most 100 and 50 steps, relative changes of the iterate below 1e-5."""
        return deepinv_step(case, step_size, 1e-5, 50, anderson, 100)

    return Method(name, "deepinv", run, CHANGES, PRODUCTS, default)


def _torchdeq(name: str, backward: str) -> Method:
    def run(case: Case, step_size: float, tol: float, adjoint_tol: float) -> Step:
        return torchdeq_step(case, step_size, tol, adjoint_tol, backward)

    def default(case: Case, step_size: float) -> Step:
        """At most 40 steps each, absolute changes below 1e-3 and 1e-6."""
        return torchdeq_step(case, step_size, 1e-3, 1e-6, backward, "abs", 40, 40)

    return Method(name, "torchdeq", run, CHANGES, ADJOINT, default)


#: Relative changes of the iterate are smaller than relative residuals: these packages get a longer dial.
CHANGES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
PRODUCTS = (10, 30, 100, 300)

PEERS: tuple[Method, ...] = (
    _deepinv("plain iteration both ways", anderson=False),
    _deepinv("Anderson both ways, absolute ridge", anderson=True),
    _torchdeq("Anderson, Anderson", "anderson"),
    _torchdeq("Anderson, Broyden", "broyden"),
    Method(
        "nonmonotone APG, MINRES with new graphs",
        "studies",
        comparative_step,
        FORWARD,
        ADJOINT,
        lambda case, step_size: comparative_step(case, step_size, 1e-4, 1e-6),
    ),
    Method(
        "unrolled gradient steps",
        "PyTorch",
        unrolled_step,
        (10, 20, 50),
        NO_DIAL,
        lambda case, step_size: unrolled_step(case, step_size, 20, 0.0),
    ),
)
