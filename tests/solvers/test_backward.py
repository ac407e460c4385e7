"""Backward rules: implicit derivatives are those of converged iterations, of closed forms, and of nothing else."""

import functools
import gc
from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elder.linalg import inner, norm, per_sample
from elder.solvers import (
    GMRES,
    LBFGS,
    MINRES,
    SHINE,
    Anderson,
    BackwardRule,
    Broyden,
    ConjugateGradient,
    GradientDescent,
    Implicit,
    Iteration,
    JacobianFree,
    LinearAnderson,
    LinearSolution,
    LinearSolver,
    Neumann,
    OnlineImplicit,
    Picard,
    PlugAndPlay,
    PreconditionedLBFGS,
    ProximalGradient,
    Solution,
    Solver,
    Symmetric,
    Unrolled,
    adjoint_error,
)
from elder.solvers.backward import differentiable_root
from elder.solvers.base import AdjointReport
from elder.solvers.linear import LinearMap, Projection
from tests.models.test_memory import LiveBytes
from tests.properties import concrete_subclasses
from tests.solvers.problems import Smooth, draw
from tests.solvers.test_solvers import SOLVERS

LINEAR = {
    "cg": ConjugateGradient(100, 1e-12),
    "minres": MINRES(100, 1e-12),
    "symmetric": Symmetric(100, 1e-12),
    "gmres": GMRES(100, 1e-12),
    "neumann": Neumann(2000, 1e-12, step_size=0.4),
    "anderson": LinearAnderson(200, 1e-12, step_size=0.4),
}
RULES = {"unrolled": Unrolled(), "jacobian-free": JacobianFree(), "implicit": Implicit(), "shine": SHINE()}
DTYPES = (torch.float64, torch.complex128)
TRUTH = Picard(3000, 1e-13, GradientDescent(0.4))
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())


def differentiable(dtype: torch.dtype, **constants: float) -> tuple[Smooth, list[torch.Tensor]]:
    """A problem, and all that it depends on: K, y, θ, μ."""
    problem = Smooth.make(dtype=dtype, **constants)
    leaves = [u.clone().requires_grad_() for u in (problem.K, problem.y, problem.theta, problem.mu)]
    return Smooth(*leaves, []), leaves


def gradients(rule: BackwardRule, solver: Solver, dtype: torch.dtype, **constants: float) -> list[torch.Tensor]:
    """∂⟨w, x*⟩/∂(K, y, θ, μ)."""
    problem, leaves = differentiable(dtype, **constants)
    return differentiate(rule(solver, problem, problem.x0).x, leaves)


def differentiate(x: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(inner(draw(*x.shape, dtype=x.dtype, seed=9), x).sum(), leaves))


@functools.cache
def truth(dtype: torch.dtype) -> list[torch.Tensor]:
    """Through every step of a plain gradient descent that has converged to rounding."""
    return gradients(Unrolled(), TRUTH, dtype)


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative error of the gradients."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def cosine(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    u, v = (torch.cat([t.flatten() for t in tensors])[None] for tensors in (found, expected))
    return float(inner(u, v) / (norm(u) * norm(v)))


def test_every_rule_iteration_and_linear_solver_is_tested():
    elsewhere = {OnlineImplicit}  # test_online.py
    assert concrete_subclasses(BackwardRule) == {type(rule) for rule in RULES.values()} | elsewhere
    assert concrete_subclasses(LinearSolver) == {type(solver) for solver in LINEAR.values()}
    assert concrete_subclasses(Iteration) == {GradientDescent, ProximalGradient, PlugAndPlay}


# Implicit


@every_solver
@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("dtype", DTYPES)
def test_implicit_is_unrolled_at_convergence(solver, linear, dtype):
    assert error(gradients(Implicit(LINEAR[linear]), solver, dtype), truth(dtype)) < 1e-6


@every_solver
@pytest.mark.parametrize("dtype", DTYPES)
def test_unrolled_solvers_converge_to_the_same_derivative(solver, dtype):
    # the derivative of an accelerated method lags behind its iterates
    tolerance = {Anderson: 1e-4, Broyden: 1e-3}.get(type(solver), 1e-6)
    # … and Broyden's by more than that of the others: it goes on for longer, with a memory that holds all its steps
    further = {"tol": 1e-14, "memory": 200} if isinstance(solver, Broyden) else {"tol": 1e-13}
    assert error(gradients(Unrolled(), replace(solver, **further), dtype), truth(dtype)) < tolerance


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("dtype", DTYPES)
def test_implicit_is_the_closed_form_of_tikhonov(linear, dtype):
    """x* = (KᴴK + μI)⁻¹Kᴴy, differentiated by dense linear algebra."""
    found = gradients(Implicit(LINEAR[linear]), LBFGS(500, 1e-13), dtype, theta=0.0)
    _, (K, y, _, mu) = differentiable(dtype, theta=0.0)
    matrix = K.mH @ K + mu * torch.eye(8, dtype=dtype)
    x = torch.linalg.solve(matrix, (K.mH @ y[..., None])[..., 0])
    expected = differentiate(x, [K, y, mu])
    assert error([found[0], found[1], found[3]], expected) < 1e-8


@pytest.mark.parametrize("linear", [GMRES(100, 1e-12), Neumann(2000, 1e-12)], ids=["gmres", "neumann"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_preconditioning_changes_the_system_and_not_its_solution(linear, dtype):
    assert error(gradients(Implicit(linear, curvature=0.5), LBFGS(500, 1e-13), dtype), truth(dtype)) < 1e-8
    problem, leaves = differentiable(dtype)
    solution = Implicit(linear, tol=1e-2, curvature=0.5)(LBFGS(500, 1e-13), problem, problem.x0)
    differentiate(solution.x, leaves)
    adjoint, x, v = solution.adjoint.solution, solution.x.detach().requires_grad_(), draw(3, 8, dtype=dtype, seed=9)
    (image,) = torch.autograd.grad(problem.grad(x), x, adjoint.x)
    residual = norm(problem.precondition(v - image, 0.5)) / norm(problem.precondition(v, 0.5))
    torch.testing.assert_close(adjoint.residual, residual.detach(), rtol=1e-6, atol=1e-12)
    assert adjoint.converged.all() and (adjoint.residual > 1e-6).all()
    assert adjoint_error(solution.adjoint).isnan().all(), "the curvature is that of another matrix"


def test_the_tolerance_of_a_preconditioned_system_is_that_of_the_rule():
    assert Implicit(curvature=1.0).tolerance == Implicit().tolerance
    assert Implicit(GMRES(100, 0.2), tol=0.1, curvature=1.0).tolerance == 0.1


@pytest.mark.parametrize("linear", [MINRES(), ConjugateGradient(), Symmetric()], ids=lambda s: type(s).__name__)
def test_a_preconditioned_system_is_no_case_for_symmetric_methods(linear):
    with pytest.raises(ValueError, match=f"Implicit: {type(linear).__name__} needs a symmetric matrix.*use GMRES"):
        Implicit(linear, curvature=1.0)
    with pytest.raises(ValueError, match=r"Implicit: expected curvature > 0, got 0\.0"):
        Implicit(curvature=0.0)


def test_result_does_not_depend_on_step_size_or_start():
    reference = gradients(Implicit(LINEAR["cg"]), LBFGS(500, 1e-13), torch.float64)
    x = LBFGS(500, 1e-13)(Smooth.make(), Smooth.make().x0).x
    for iteration in (GradientDescent(0.1), GradientDescent(0.8), ProximalGradient(0.5), ProximalGradient(3.0)):
        solver = Picard(5000, 1e-13, iteration)
        assert error(gradients(Implicit(LINEAR["cg"]), solver, torch.float64), reference) < 1e-8
        elsewhere = solver(Smooth.make(), draw(3, 8, seed=4) * 10)
        assert norm(elsewhere.x - x).max() < 1e-9


def test_indefinite_hessian_is_a_case_for_minres():
    """At a stationary point that is no minimum, found by Newton's method, the theorem holds all the same."""
    problem, leaves = differentiable(torch.float64, theta=-2.0, mu=0.5)
    constant = Smooth(*(leaf.detach() for leaf in leaves), [])
    x = problem.x0
    for _ in range(50):
        x = x - torch.linalg.solve(hessian(constant, x), constant.grad(x))
    assert norm(constant.grad(x)).max() < 1e-12
    eigenvalues = torch.linalg.eigvalsh(hessian(constant, x))
    assert ((eigenvalues[:, 0] < 0) & (eigenvalues[:, -1] > 0)).any()
    F = problem.grad(x)
    expected = differentiate(x - torch.linalg.solve(hessian(constant, x), F), leaves)
    for name in ("minres", "gmres", "symmetric"):
        found = differentiate(differentiable_root(x, problem.grad, LINEAR[name]), leaves)
        assert error(found, expected) < 1e-8


def hessian(problem: Smooth, x: torch.Tensor) -> torch.Tensor:
    """∇²f at a real x, (B, n, n)."""
    x = x.detach().requires_grad_()
    F = problem.grad(x)
    rows = [torch.autograd.grad(F[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1])]
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("loss", [torch.sum, lambda x: x.square().sum()], ids=["linear", "quadratic"])
def test_second_derivative_raises(loss):
    """Here F = e^θ x − 1: a tape through its backward pass would miss how the adjoint solution depends on θ."""
    theta = torch.tensor(0.3, requires_grad=True)
    root = (-theta.detach()).exp().reshape(1, 1)
    x = differentiable_root(root, lambda u: theta.exp() * u - 1, ConjugateGradient())
    with pytest.raises(RuntimeError, match="Implicit: expected a first derivative, got create_graph=True"):
        torch.autograd.grad(loss(x), theta, create_graph=True)


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("max_steps", [2, 400])
def test_adjoint_solve_is_reported_truthfully(linear, max_steps):
    problem, leaves = differentiable(torch.float64)
    rule = Implicit(replace(LINEAR[linear], max_steps=max_steps, tol=1e-3))
    solution = rule(SOLVERS["lbfgs"], problem, problem.x0)
    assert solution.adjoint is not None and solution.adjoint.solution is None
    v = draw(3, 8, seed=9)
    inner(v, solution.x).sum().backward()
    adjoint = solution.adjoint.solution
    H = hessian(Smooth(*(leaf.detach() for leaf in leaves), []), solution.x)
    residual = norm(v - (H @ adjoint.x[..., None])[..., 0]) / norm(v)
    torch.testing.assert_close(adjoint.residual, residual, rtol=1e-6, atol=1e-12)
    assert torch.equal(adjoint.converged, residual <= 1e-3) and adjoint.converged.all() == (max_steps == 400)
    # the one graph of F serves all products
    assert (adjoint.n_products == 2).all() if max_steps == 2 else (adjoint.n_products > 2).all()
    assert solution.adjoint.cotangent_norm is not None and solution.adjoint.adjoint_norm is not None
    torch.testing.assert_close(solution.adjoint.cotangent_norm, norm(v))
    torch.testing.assert_close(solution.adjoint.adjoint_norm, norm(adjoint.x))


@pytest.mark.parametrize("rule", [Implicit(), SHINE(), SHINE(Symmetric())])
def test_implicit_rules_evaluate_the_condition_once_more(rule):
    problem, _ = differentiable(torch.float64)
    with torch.no_grad():
        alone = SOLVERS["lbfgs"](problem, problem.x0)
    problem.evaluated.clear()
    solution = rule(SOLVERS["lbfgs"], problem, problem.x0)
    assert torch.equal(solution.n_gradients, alone.n_gradients + 1)
    assert sum(problem.evaluated) == solution.n_gradients.sum()
    solution.x.sum().backward()
    assert sum(problem.evaluated) == solution.n_gradients.sum()


def test_point_of_linearisation_receives_no_gradient():
    theta, seen = torch.tensor(2.0, requires_grad=True), []

    def condition(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return theta * x - 1

    x = differentiable_root(torch.full((1, 1), 0.5), condition, ConjugateGradient())
    x.sum().backward()
    assert theta.grad == -0.25  # x = 1/θ
    leaf = seen[0].grad_fn.next_functions[0][0].variable
    assert leaf.requires_grad and leaf.grad is None


def test_root_of_a_constant_condition_is_a_constant():
    problem = Smooth.make()
    solution = Implicit()(SOLVERS["lbfgs"], problem, problem.x0)
    assert not solution.x.requires_grad
    problem.theta.requires_grad_()
    assert Implicit()(SOLVERS["lbfgs"], problem, problem.x0).x.requires_grad


@dataclass(frozen=True)
class Affine:
    """F(x) = Mx − y."""

    M: torch.Tensor  # (B, n, n)
    y: torch.Tensor  # (B, n)
    symmetric: bool
    few_batch_sizes: bool = False
    precision: float = torch.finfo(torch.float64).eps

    def grad(self, x: torch.Tensor) -> torch.Tensor:
        return (self.M @ x[..., None])[..., 0] - self.y

    def value_and_grad(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (inner(x, self.grad(x)) - inner(x, self.y)) / 2, self.grad(x)

    def proximal_gradient(self, x: torch.Tensor, grad: torch.Tensor, step_size: torch.Tensor) -> torch.Tensor:
        return x - per_sample(step_size, x) * grad

    def select(self, samples: torch.Tensor) -> "Affine":
        return replace(self, M=self.M[samples], y=self.y[samples])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("indefinite", [True, False])
def test_default_linear_solver_suits_the_problem(symmetric, indefinite, dtype):
    G = draw(3, 6, 6, dtype=dtype)
    spectrum = torch.linspace(1, 2, 6, dtype=torch.float64) * torch.tensor([-1.0 if indefinite else 1.0, 1, 1, 1, 1, 1])
    Q, _ = torch.linalg.qr(G)
    M = Q @ torch.diag_embed(spectrum.to(dtype).expand(3, 6)) @ Q.mH + (0 if symmetric else G - G.mH) / 4
    M, y = M.requires_grad_(), draw(3, 6, dtype=dtype, seed=1).requires_grad_()
    root = torch.linalg.solve(M, y).detach()
    problem = Affine(M, y, symmetric)
    solution = Implicit()(Picard(1, 1e-6, GradientDescent(1e-9)), problem, root)
    found = differentiate(solution.x, [M, y])
    assert error(found, differentiate(torch.linalg.solve(M, y), [M, y])) < 2e-3  # the tolerance of the default is 1e-3
    assert solution.adjoint is not None and solution.adjoint.solution is not None
    assert (solution.adjoint.solution.indefinite == (symmetric and indefinite)).all()


# Error of the adjoint solve


def reported(matvec: LinearMap, v: torch.Tensor, linear: LinearSolver) -> tuple[torch.Tensor, AdjointReport]:
    """u with Mu = v as the backward pass of a root x = M⁻¹y finds it, and its report."""
    report, y = AdjointReport(), torch.zeros_like(v).requires_grad_()
    x = differentiable_root(torch.zeros_like(v), lambda x: matvec(x) - y, linear, report)
    (u,) = torch.autograd.grad(inner(v, x).sum(), y)
    return u, report


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("indefinite", [False, True])
@pytest.mark.parametrize("tol", [0.5, 1e-1, 1e-2, 1e-4])
def test_adjoint_error_is_a_bound_where_the_curvature_is_exact(tol, indefinite, dtype):
    """The spectrum has one soft direction, which the Krylov space holds after a few products of 30."""
    spectrum = torch.linspace(1, 3, 30, dtype=torch.float64)
    spectrum[0], spectrum[1] = 0.05, -1 if indefinite else 1
    Q, _ = torch.linalg.qr(draw(4, 30, 30, dtype=dtype))
    M = Q @ torch.diag_embed(spectrum.to(dtype).expand(4, 30)) @ Q.mH
    v = draw(4, 30, dtype=dtype, seed=3)
    for linear in (MINRES(200, tol), Symmetric(200, tol), GMRES(200, tol)):
        u, report = reported(lambda x: (M @ x[..., None])[..., 0], v, linear)
        true = torch.linalg.solve(M, v)
        assert report.solution is not None
        exact = (report.solution.curvature - 0.05).abs() < 1e-3 * 0.05
        assert exact.all() or tol > 1e-3
        bound = adjoint_error(report) * 1.001
        assert (norm(u - true) <= bound * norm(u))[exact].all()
        assert (norm(u - true) <= bound / (1 - bound) * norm(true))[exact & (bound < 1)].all()


def judged(matvec: LinearMap, b: torch.Tensor, x: torch.Tensor) -> LinearSolution:
    """x, and its residual as a solution of Mx = b."""
    residual = norm(b - matvec(x)) / norm(b)
    return LinearSolution(x, residual, torch.ones_like(residual), residual == 0, residual < 0)


def test_adjoint_error_is_attained_along_the_softest_direction():
    spectrum = torch.tensor([[0.1, 1.0, 4.0]], dtype=torch.float64)
    v = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)

    def stopped(matvec: LinearMap, b: torch.Tensor) -> LinearSolution:
        """All but the first component solved, whose solution is half of what it should be."""
        x = b / spectrum * torch.tensor([0.5, 1, 1])
        whole = Projection(torch.diag_embed(spectrum)[:, [0, 1, 2, 2]], torch.tensor([3.0]), torch.tensor([True]))
        return judged(matvec, b, x)._replace(projections=(whole,))

    u, report = reported(lambda x: spectrum * x, v, stopped)
    torch.testing.assert_close(adjoint_error(report), norm(u - v / spectrum) / norm(u))


def test_adjoint_error_of_a_singular_system_is_infinite():
    spectrum, v = torch.tensor([[0.0, 1.0, 4.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    _, report = reported(lambda x: spectrum * x, v, GMRES(20, 1e-6))
    assert adjoint_error(report) > 1e10


def test_adjoint_error_is_unknown_without_curvature_and_an_error_before_the_backward_pass():
    v = draw(2, 4)
    _, report = reported(lambda x: 2 * x + x.roll(1, 1), v, Neumann(20, 1e-2, step_size=0.3))
    assert adjoint_error(report).isnan().all()
    with pytest.raises(RuntimeError, match="adjoint_error: expected the report of an adjoint solve"):
        adjoint_error(AdjointReport())


# The one linearisation


class Convolutional:
    """F(x) = x + Wᵀtanh(Wx) − y, evaluated by a functional derivative as regularizers are."""

    def __init__(self, trainable: bool) -> None:
        self.W = (draw(4, 2, 3, 3) / 8).requires_grad_(trainable)
        self.y = draw(2, 2, 8, 8, seed=1).requires_grad_()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        def value(u: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(u, self.W, padding=1).cosh().log().sum()

        return x - self.y + torch.func.grad(value)(x)


def test_a_product_computes_no_parameter_gradient():
    flops = {}
    for trainable in (True, False):
        condition, counts = Convolutional(trainable), []

        def counting(matvec: LinearMap, b: torch.Tensor, counts: list[int] = counts) -> LinearSolution:
            with FlopCounterMode(display=False) as counter:
                product = matvec(b)
            counts.append(counter.get_total_flops())
            return judged(matvec, product, b)

        differentiable_root(draw(2, 2, 8, 8), condition, counting).sum().backward()
        flops[trainable] = counts
    assert flops[True] == flops[False] and flops[True][0] > 0


@pytest.mark.parametrize("backward", [True, False])
def test_the_graph_is_released_by_the_backward_pass_while_the_solution_lives(backward):
    """Activations are four images each; those of F's one evaluation are gone, without the help of the collector."""
    condition, image = Convolutional(True), 2 * 2 * 8 * 8 * 8
    gc.collect()
    gc.disable()
    try:
        with LiveBytes() as memory:
            x = differentiable_root(draw(2, 2, 8, 8), condition, ConjugateGradient(10, 1e-4), AdjointReport())
            before = memory.now
            loss = x.sum()
            if backward:
                loss.backward()
            else:
                torch.autograd.grad(loss, [condition.W, condition.y])
            condition.W.grad = condition.y.grad = None
            after = memory.now
        del x, loss
        assert memory.now < image
    finally:
        gc.enable()
    assert after <= 4.5 * image < before, (before / image, after / image)  # x twice, F, the adjoint solution


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_gradient_does_not_depend_on_the_scale_of_the_loss(linear, dtype):
    smooth = Smooth.make(dtype=dtype)
    real = smooth.K.real.dtype
    leaves = [u.clone().requires_grad_() for u in (smooth.K, smooth.y, smooth.theta.to(real), smooth.mu.to(real))]
    problem = replace(smooth, K=leaves[0], y=leaves[1], theta=leaves[2], mu=leaves[3], evaluated=[])
    found = {}
    for scale in (1.0, 1e-8, 1e8, 2.0**-27, 2.0**27):
        rule = Implicit(replace(LINEAR[linear], tol=1e-3))
        x = rule(Picard(500, 1e-5, GradientDescent(0.4)), problem, problem.x0).x
        found[scale] = [g / scale for g in torch.autograd.grad(scale * inner(smooth.x0 + 1, x).sum(), leaves)]
    for scale, gradient in found.items():
        # in single precision, multiplying by 1e8 rounds v, and ill-conditioned mixing magnifies that
        rounds = scale in (1e-8, 1e8) and real is torch.float32
        assert error(gradient, found[1.0]) < (1e-4 if rounds else 1e-6)


# SHINE

ESTIMATING = {"lbfgs": LBFGS(500, 1e-11), "broyden": Broyden(500, 1e-11, step_size=0.4)}


@pytest.mark.parametrize("solver", ESTIMATING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("linear", LINEAR)
def test_refined_shine_is_implicit(solver, linear, dtype):
    assert error(gradients(SHINE(LINEAR[linear]), ESTIMATING[solver], dtype), truth(dtype)) < 1e-6


@pytest.mark.parametrize("solver", ESTIMATING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shine_points_the_right_way_and_reports_its_residual(solver, dtype):
    problem, leaves = differentiable(dtype)
    solution = SHINE()(ESTIMATING[solver], problem, problem.x0)
    found = differentiate(solution.x, leaves)
    assert cosine(found, truth(dtype)) > (0.8 if solver == "lbfgs" else 0.2)
    assert error(found, truth(dtype)) > 1e-9  # an estimate
    assert solution.adjoint is not None and solution.adjoint.solution is not None
    adjoint = solution.adjoint.solution
    v = draw(3, 8, dtype=dtype, seed=9)
    x = solution.x.detach().requires_grad_()
    (image,) = torch.autograd.grad(problem.grad(x), x, adjoint.x)
    torch.testing.assert_close(adjoint.residual, norm(v - image) / norm(v))
    assert (adjoint.n_products == 1).all() and not adjoint.converged.any() and (adjoint.residual < 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_shine_does_not_depend_on_the_scale_of_the_loss(dtype):
    smooth = Smooth.make(dtype=dtype)
    problem = replace(smooth, theta=smooth.theta.float(), mu=smooth.mu.float(), y=smooth.y.requires_grad_())
    x = SHINE()(LBFGS(200, 1e-4), problem, problem.x0).x
    w = draw(3, 8, dtype=dtype, seed=9)
    found = {e: torch.autograd.grad(2.0**e * inner(w, x).sum(), problem.y, retain_graph=True)[0] for e in (0, -90, 90)}
    for exponent in (-90, 90):
        assert torch.equal(found[exponent], found[0] * 2.0**exponent)


def test_shine_needs_a_solver_that_estimates_the_inverse():
    problem, _ = differentiable(torch.float64)
    with pytest.raises(ValueError, match=r"SHINE: expected a solver .*, got Picard; use LBFGS or Broyden"):
        SHINE()(SOLVERS["picard"], problem, problem.x0)
    with pytest.raises(ValueError, match=r"SHINE: expected a solver .*, got PreconditionedLBFGS; use LBFGS or Broyden"):
        SHINE()(PreconditionedLBFGS(), problem, problem.x0)


# Jacobian-free


def test_jacobian_free_points_the_right_way_and_more_steps_approach_the_truth():
    expected, errors = truth(torch.float64), []
    for n_steps in (1, 10, 100, 1000):
        rule = JacobianFree(GradientDescent(0.4), n_steps)
        found = gradients(rule, SOLVERS["lbfgs"], torch.float64)
        assert cosine(found, expected) > 0.3
        errors.append(error(found, expected))
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.1 and errors[-1] < 1e-6


def test_one_step_is_the_derivative_of_one_step():
    """∂x*/∂θ ≈ −γ ∂F/∂θ."""
    problem, leaves = differentiable(torch.float64)
    x = SOLVERS["lbfgs"](Smooth.make(), problem.x0).x
    expected = differentiate(-0.4 * problem.grad(x), leaves)
    found = gradients(JacobianFree(GradientDescent(0.4)), SOLVERS["lbfgs"], torch.float64)
    assert error(found, expected) < 1e-12


def test_damped_gradient_descent_is_one_of_smaller_steps():
    damped = gradients(JacobianFree(GradientDescent(0.4), 7, 0.25), SOLVERS["lbfgs"], torch.float64)
    smaller = gradients(JacobianFree(GradientDescent(0.1), 7), SOLVERS["lbfgs"], torch.float64)
    assert error(damped, smaller) < 1e-12


def test_jacobian_free_counts_its_steps():
    problem, _ = differentiable(torch.float64)
    solution = JacobianFree(ProximalGradient(), 5)(SOLVERS["lbfgs"], problem, problem.x0)
    assert sum(problem.evaluated) == solution.n_gradients.sum()


@pytest.mark.parametrize(("n_steps", "damping"), [(0, 1.0), (1, 0.0), (1, 1.5)])
def test_bad_parameters_are_refused_in_words(n_steps, damping):
    with pytest.raises(ValueError, match=f"JacobianFree: expected .*, got {n_steps} and {damping}"):
        JacobianFree(n_steps=n_steps, damping=damping)


# All rules


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_nothing_is_recorded_without_grad_mode(rule):
    problem, _ = differentiable(torch.float64)
    with torch.no_grad():
        solution = rule(SOLVERS["lbfgs"], problem, problem.x0)
        plain = SOLVERS["lbfgs"](problem, problem.x0)
    assert not solution.x.requires_grad and solution.adjoint is None
    assert all(torch.equal(a, b) for a, b in zip(solution[:5], plain[:5], strict=True))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_all_but_x_is_detached_and_x_is_that_of_the_solver(rule):
    problem, _ = differentiable(torch.float64)
    solution = rule(SOLVERS["lbfgs"], problem, problem.x0)
    assert solution.x.requires_grad
    assert not any(getattr(solution, name).requires_grad for name in Solution._fields[1:5])
    assert norm(solution.x.detach() - SOLVERS["lbfgs"](Smooth.make(), problem.x0).x).max() < 1e-8


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_gradient_of_a_sample_does_not_depend_on_its_batch(rule):
    problem, (_, y, *_) = differentiable(torch.float64)
    solver, weights = Anderson(500, 1e-11, GradientDescent(0.4)), draw(3, 8, seed=9)
    if isinstance(rule, SHINE):
        solver = LBFGS(500, 1e-11)
    (together,) = torch.autograd.grad(inner(weights, rule(solver, problem, problem.x0).x).sum(), y)
    for i in range(3):
        alone = problem.select(torch.tensor([i]))
        x = rule(solver, alone, problem.x0[:1]).x
        (gradient,) = torch.autograd.grad(inner(weights[i : i + 1], x).sum(), y)
        torch.testing.assert_close(gradient[i], together[i], rtol=1e-9, atol=1e-12)
        assert not gradient[[j for j in range(3) if j != i]].any()


def test_strength_per_sample_is_differentiated_per_sample():
    """F(x) = λ_b x − y_b has the root y_b/λ_b and ∂x_b/∂λ_b = −y_b/λ_b²."""
    y, strength = draw(4, 5), torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    root = y / per_sample(strength.detach(), y)
    x = differentiable_root(root, lambda u: per_sample(strength, u) * u - y, ConjugateGradient(20, 1e-14))
    (found,) = torch.autograd.grad(x.sum(), strength)
    torch.testing.assert_close(found, -y.sum(1) / strength.detach() ** 2)
