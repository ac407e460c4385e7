"""Backward rules: implicit derivatives are those of converged iterations, of closed forms, and of nothing else."""

import functools
from dataclasses import replace

import pytest
import torch

from elder.linalg import inner, norm, per_sample
from elder.solvers import (
    GMRES,
    LBFGS,
    MINRES,
    Anderson,
    BackwardRule,
    ConjugateGradient,
    GradientDescent,
    Implicit,
    Iteration,
    JacobianFree,
    LinearSolver,
    Picard,
    ProximalGradient,
    Solution,
    Solver,
    Unrolled,
)
from elder.solvers.backward import differentiable_root
from tests.properties import concrete_subclasses
from tests.solvers.problems import Smooth, draw
from tests.solvers.test_solvers import SOLVERS

LINEAR = {"cg": ConjugateGradient(100, 1e-12), "minres": MINRES(100, 1e-12), "gmres": GMRES(100, 1e-12)}
RULES = {"unrolled": Unrolled(), "jacobian-free": JacobianFree(), "implicit": Implicit()}
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
    assert concrete_subclasses(BackwardRule) == {type(rule) for rule in RULES.values()}
    assert concrete_subclasses(LinearSolver) == {type(solver) for solver in LINEAR.values()}
    assert concrete_subclasses(Iteration) == {GradientDescent, ProximalGradient}


# Implicit


@every_solver
@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("dtype", DTYPES)
def test_implicit_is_unrolled_at_convergence(solver, linear, dtype):
    assert error(gradients(Implicit(LINEAR[linear]), solver, dtype), truth(dtype)) < 1e-6


@every_solver
@pytest.mark.parametrize("dtype", DTYPES)
def test_unrolled_solvers_converge_to_the_same_derivative(solver, dtype):
    tolerance = 1e-4 if isinstance(solver, Anderson) else 1e-6  # its derivative lags behind its iterates
    assert error(gradients(Unrolled(), replace(solver, tol=1e-13), dtype), truth(dtype)) < tolerance


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
    for name in ("minres", "gmres"):
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
@pytest.mark.parametrize("max_steps", [2, 100])
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
    assert torch.equal(adjoint.converged, residual <= 1e-3) and adjoint.converged.all() == (max_steps == 100)
    # the one graph of F serves all products
    assert (adjoint.n_products == 2).all() if max_steps == 2 else (adjoint.n_products > 2).all()


def test_implicit_evaluates_the_condition_once_more():
    problem, _ = differentiable(torch.float64)
    with torch.no_grad():
        alone = SOLVERS["lbfgs"](problem, problem.x0)
    problem.evaluated.clear()
    solution = Implicit()(SOLVERS["lbfgs"], problem, problem.x0)
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
