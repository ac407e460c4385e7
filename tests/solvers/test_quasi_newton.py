"""Limited-memory estimates of an inverse are those of dense recursions, and what solvers hand out of them is right."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from elder.linalg import inner, norm
from elder.solvers import LBFGS, Broyden, Picard
from elder.solvers.quasi_newton import InverseHessian, InverseJacobian, flat, unflat
from tests.solvers.problems import Quadratic, Smooth, draw

DTYPES = (torch.float64, torch.complex128)
MEMORY, N, EPS = 3, 5, 1e-12


def pairs(dtype: torch.dtype, curved: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Eight pairs (s, y) of two samples, and to which of the samples each belongs."""
    which = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0], [1, 1], [1, 0], [1, 1], [0, 1]]) > 0
    found = []
    for k in range(8):
        s, noise = (draw(2, 1, N, dtype=dtype, seed=seed) for seed in (k, 100 + k))
        y = s * torch.linspace(0.5, 3, N, dtype=torch.float64) + 0.3 * noise
        if curved:
            assert (inner(s, y) > 0).all()
        found.append((s, y, which[k]))
    return found


def matrix(H, x: Tensor) -> Tensor:
    """A linear map as a dense real matrix for each sample."""
    n = flat(x).shape[1]
    columns = [flat(H(unflat(torch.eye(n, dtype=torch.float64)[i].expand(len(x), n), x))) for i in range(n)]
    return torch.stack(columns, dim=2)


def bfgs(history: list[tuple[Tensor, Tensor]], P: Tensor) -> Tensor:
    """H⁺ = (I − ρsyᵀ)H(I − ρysᵀ) + ρssᵀ, ρ = 1/⟨s, y⟩, over the latest pairs from H = γP, γ = ⟨s, y⟩/⟨y, Py⟩."""
    H = P
    if history:
        s, y = history[-1]
        H = (s @ y) / (y @ P @ y) * P
    for s, y in history[-MEMORY:]:
        V = torch.eye(len(P), dtype=torch.float64) - torch.outer(y, s) / (s @ y)
        H = V.T @ H @ V + torch.outer(s, s) / (s @ y)
    return H


def metric(x: Tensor) -> Tensor:
    """A positive definite matrix over the reals for each sample, of condition about 40."""
    n = flat(x).shape[1]
    Q, _ = torch.linalg.qr(draw(len(x), n, n, seed=7))
    return Q @ torch.diag_embed(torch.logspace(-1, 0.6, n, dtype=torch.float64).expand(len(x), n)) @ Q.mT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_inverse_hessian_is_the_dense_recursion(dtype, recorded, preconditioned):
    x = draw(2, 1, N, dtype=dtype)
    H, histories = InverseHessian.empty(x, MEMORY), ([], [])
    P = metric(x) if preconditioned else torch.eye(flat(x).shape[1], dtype=torch.float64).expand(2, -1, -1)

    def image(u: Tensor) -> Tensor | None:
        return unflat((P @ flat(u)[..., None])[..., 0], u) if preconditioned else None

    with torch.set_grad_enabled(recorded):
        for s, y, which in pairs(dtype, curved=True):
            H = H.learn(s, y, which, EPS, image(y))
            for b in range(2):
                if which[b]:
                    histories[b].append((flat(s)[b], flat(y)[b]))
            expected = torch.stack([bfgs(history, P[b]) for b, history in enumerate(histories)])
            torch.testing.assert_close(matrix(lambda u, H=H: H(u, image(u)), x), expected, rtol=1e-9, atol=1e-11)
            assert norm((H(y, image(y)) - s)[which]).max() < 1e-10 if which.any() else True
    unlearnt = matrix(lambda u: H.forget(torch.ones(2) > 0)(u, image(u)), x)
    torch.testing.assert_close(unlearnt, P.expand_as(unlearnt), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_hessian_forgets_by_sample_and_learns_no_negative_curvature(dtype):
    x, everyone = draw(2, 1, N, dtype=dtype), torch.ones(2) > 0
    H = InverseHessian.empty(x, MEMORY)
    for s, y, _ in pairs(dtype, curved=True)[:5]:
        H = H.learn(s, y, everyone, EPS)
    before = matrix(H, x)
    s, y, _ = pairs(dtype, curved=True)[5]
    H = H.learn(s, torch.stack((-y[0], 0 * y[1])), everyone, EPS)
    assert torch.equal(matrix(H, x), before)
    H = H.learn(s, y * torch.nan, ~everyone, EPS)
    assert torch.equal(matrix(H, x), before)
    H = H.forget(torch.tensor([True, False]))
    after = matrix(H, x)
    assert torch.equal(after[0], torch.eye(len(after[0])).double()) and torch.equal(after[1], before[1])
    H = H.learn(s, y, everyone, EPS)
    torch.testing.assert_close(matrix(H, x)[0], bfgs([(flat(s)[0], flat(y)[0])], torch.eye(len(after[0])).double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recorded", [False, True])
def test_inverse_jacobian_is_the_dense_recursion(dtype, recorded):
    """H⁺ = H + (s − Hy)(Hᵀs)ᵀ/⟨s, Hy⟩, where the oldest term has left H if the memory is full."""
    x = draw(2, 1, N, dtype=dtype)
    H, n = InverseJacobian.empty(x, MEMORY, 0.7), flat(x).shape[1]
    terms: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.set_grad_enabled(recorded):
        for s, y, which in pairs(dtype, curved=False):
            H = H.learn(s, y, which, EPS)
            expected = []
            for b in range(2):
                if which[b]:
                    del terms[b][: max(0, len(terms[b]) - MEMORY + 1)]
                    dense = sum(terms[b], 0.7 * torch.eye(n, dtype=torch.float64))
                    u, v = flat(s)[b], flat(y)[b]
                    terms[b].append(torch.outer(u - dense @ v, dense.T @ u) / (u @ dense @ v))
                expected.append(sum(terms[b], 0.7 * torch.eye(n, dtype=torch.float64)))
            torch.testing.assert_close(matrix(H, x), torch.stack(expected), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(matrix(H.transposed, x), torch.stack(expected).mT, rtol=1e-9, atol=1e-11)
            assert norm((H(y) - s)[which]).max() < 1e-9 if which.any() else True
    forgotten = matrix(H.forget(torch.tensor([True, False])), x)
    torch.testing.assert_close(forgotten[0], 0.7 * torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(forgotten[1], matrix(H, x)[1])


@dataclass
class Field:
    """F(x) = Mx − b + θ x³, M not symmetric."""

    M: Tensor  # (B, n, n)
    b: Tensor
    theta: float = 0.0
    few_batch_sizes: bool = False
    symmetric: bool = False
    precision: float = 1e-16

    @staticmethod
    def make(theta: float = 0.0) -> Field:
        return Field(2 * torch.eye(6, dtype=torch.float64) + 0.8 * draw(3, 6, 6), draw(3, 6, seed=1), theta)

    def grad(self, x: Tensor) -> Tensor:
        return (self.M @ x[..., None])[..., 0] - self.b + self.theta * x**3

    def select(self, samples: Tensor) -> Field:
        return replace(self, M=self.M[samples], b=self.b[samples])


def test_broyden_ends_on_linear_fields_after_twice_their_dimension():
    """Gay, Some convergence properties of Broyden's method (1979), theorem 2.2."""
    problem = Field.make()
    solution = Broyden(12, 1e-9, step_size=0.5, growth=float("inf"))(problem, 0 * problem.b)
    assert solution.converged.all(), solution.residual
    plain = Broyden(12, 1e-9, step_size=0.5, memory=1)(problem, 0 * problem.b)
    assert not plain.converged.any()


def test_broyden_follows_fields_that_are_no_gradients():
    problem = Field.make(theta=0.3)
    solution = Broyden(100, 1e-11, step_size=0.3)(problem, 0 * problem.b)
    assert solution.converged.all()
    assert norm(problem.grad(solution.x)).max() < 1e-10


def test_broyden_takes_back_a_step_that_raises_the_residual():
    """atan has its root at 0, and from 3 the secant method leaves for infinity."""
    problem = Smooth.make(1)
    problem.grad = lambda x: x.atan()
    problem.select = lambda samples: problem
    start = torch.full((1, 1), 3.0, dtype=torch.float64)
    ratios = []
    state = Broyden(step_size=6.0, growth=1.1).start(problem, start)
    for _ in range(30):
        following = Broyden(step_size=6.0, growth=1.1).step(problem, state)
        if state.count > 0:
            ratios.append((following.residual / state.residual).item())
        state = following
    assert max(ratios) <= 1.1


@pytest.mark.parametrize("few_batch_sizes", [False, True])
@pytest.mark.parametrize("solver", [LBFGS(200, 1e-9), Broyden(200, 1e-9, step_size=0.4)], ids=["lbfgs", "broyden"])
def test_inverse_of_a_solution_covers_samples_that_left_early(solver, few_batch_sizes):
    problem, u = replace(Smooth.make(5), few_batch_sizes=few_batch_sizes), draw(5, 8, seed=3)
    with torch.no_grad():
        solution = solver(problem, problem.x0, keep_inverse=True)
    assert len(set(solution.n_gradients.tolist())) > 1
    for b in range(5):
        alone = problem.select(torch.tensor([b]))
        with torch.no_grad():
            expected = solver(alone, alone.x0, keep_inverse=True).inverse(u[b : b + 1])
        torch.testing.assert_close(solution.inverse(u)[b : b + 1], expected, rtol=1e-4, atol=1e-6)
    assert solver(problem, problem.x0).inverse is None
    assert Picard(2, 0.0)(problem, problem.x0, keep_inverse=True).inverse is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_of_lbfgs_is_that_of_the_hessian(dtype):
    """On the directions that the iteration has seen, Mᵏb over the reals. Complex b is real b times a phase, whose
    iterates are those of the real one: for others the last pairs, of rounding size, decide on more than the bound."""
    real = Quadratic.make(10.0, n=4)
    problem = replace(real, b=real.b * torch.tensor(0.6 + 0.8j, dtype=dtype)) if dtype.is_complex else real
    solution = LBFGS(200, 1e-13, memory=40)(problem, problem.x0, keep_inverse=True)
    u = draw(3, 4, seed=3) * problem.b
    assert (norm(solution.inverse(problem.diagonal * u) - u) / norm(u)).max() < 0.02
    u, v = draw(3, 4, dtype=dtype, seed=3), draw(3, 4, dtype=dtype, seed=4)
    torch.testing.assert_close(inner(solution.inverse(u), v), inner(u, solution.inverse(v)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_of_lbfgs_takes_the_last_change_of_the_gradient_to_the_last_step(dtype):
    """The secant equation H(F(x⁺) − F(x)) = x⁺ − x, exactly."""
    problem = Quadratic.make(10.0, n=4, dtype=dtype)
    before, after = (LBFGS(n, 0.0, memory=40)(problem, problem.x0, keep_inverse=True) for n in (6, 7))
    step = after.x - before.x
    assert (norm(step) > 1e-6 * norm(after.x)).all()
    torch.testing.assert_close(after.inverse(problem.grad(after.x) - problem.grad(before.x)), step, rtol=1e-9, atol=0)


def test_inverse_of_broyden_is_transposed():
    """H(F(x⁺) − F(x)) = x⁺ − x for the last step, hence ⟨Hᵀu, F(x⁺) − F(x)⟩ = ⟨u, x⁺ − x⟩ for all u."""
    problem, u = Field.make(theta=0.3), draw(3, 6, seed=3)
    before, after = (
        Broyden(n, 0.0, step_size=0.3, growth=float("inf"))(problem, 0 * problem.b, keep_inverse=True) for n in (8, 9)
    )
    change, step = problem.grad(after.x) - problem.grad(before.x), after.x - before.x
    torch.testing.assert_close(inner(after.inverse(u), change), inner(u, step))
