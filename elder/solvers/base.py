"""What a solver is, what it may ask of a problem, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar, final

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]


class Problem(Protocol):
    """A batch of conditions F(x) = 0, one per sample: all that a solver ever sees of an inverse problem.

    `elder.models.reconstruction.Objective` is one; a quadratic in a test is another.
    """

    def grad(self, x: Tensor) -> Tensor:
        """F(x), shape of x: ∇f(x) if there is an objective f, a plain vector field otherwise."""
        ...

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), shape (B,), and F(x), for the price of one gradient. Only explicit problems have a value."""
        ...

    def proximal_gradient(self, x: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
        """prox_{γg}(x − γλ∇R(x)), given grad = F(x), so that no further ∇R is needed; γ is () or (B,)."""
        ...

    def select(self, samples: Tensor) -> Problem:
        """The same problem for part of the batch; `samples` holds positions in it."""
        ...


class LinearSolution(NamedTuple):
    """What a linear solver found, per sample."""

    x: Tensor  # solution, shape of the right-hand side
    residual: Tensor  # ‖b − Mx‖ / ‖b‖, (B,)
    n_products: Tensor  # products with M, (B,)
    converged: Tensor  # (B,) bool


class AdjointReport:
    """The adjoint solve of one backward pass; `solution` is None until that pass has happened."""

    def __init__(self) -> None:
        self.solution: LinearSolution | None = None


class Solution(NamedTuple):
    """What a solver found, per sample. All but x are detached."""

    x: Tensor  # final iterate
    residual: Tensor  # ‖F(x)‖ / ‖F(x⁰)‖, (B,)
    n_gradients: Tensor  # evaluations of ∇R, (B,): the unit in which cost is counted
    n_values: Tensor  # evaluations of R alone, (B,)
    converged: Tensor  # (B,) bool
    adjoint: AdjointReport | None = None  # set by implicit rules, filled in by the backward pass


class LinearSolver(ABC):
    """Solves Mx = b for a batch of matrices known by their products; every sample has its own recursion."""

    needs_symmetry: ClassVar[bool] = False  # True if the method is for M = Mᴴ

    @abstractmethod
    def __call__(self, matvec: LinearMap, b: Tensor) -> LinearSolution:
        """Solve from x = 0.

        Args:
            matvec: u ↦ Mu for the whole batch.
            b: Right-hand side, (B, …), real or complex.

        Raises:
            FloatingPointError: If a product is not finite.
        """


class State(Protocol):
    """Where an iteration stands: a named tuple that begins with the fields of `Standing`, in their order.

    All fields have a leading batch axis, so that samples can leave.
    """

    @property
    def residual(self) -> Tensor: ...
    @property
    def stalled(self) -> Tensor: ...
    def __iter__(self) -> Iterator[Tensor]: ...
    @classmethod
    def _make(cls, iterable: Iterable[Tensor], /) -> Self: ...


class Standing(NamedTuple):
    """What every iteration remembers of each sample."""

    x: Tensor
    residual: Tensor  # ‖F(x)‖, (B,)
    stalled: Tensor  # (B,) bool: no further progress possible
    n_gradients: Tensor  # (B,)
    n_values: Tensor  # (B,)


S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Solver(ABC, Generic[S]):
    """Finds x with F(x) = 0, sample by sample: frozen hyper-parameters and pure methods.

    A solver does not log, does not know the ground truth, and does not touch the grad mode; it writes no tensor
    in place, so that the `Unrolled` backward rule may differentiate it. Not converging is a fact in the `Solution`;
    a non-finite iterate is a `FloatingPointError` that names the step. A sample that has converged leaves the
    batch and costs nothing more, and none depends on its batch mates.

    Args:
        max_steps: Largest number of steps.
        tol: A sample has converged when ‖F(x)‖ ≤ tol · ‖F(x⁰)‖.

    Raises:
        ValueError: If max_steps < 1 or tol < 0.
    """

    max_steps: int = 100
    tol: float = 1e-4

    needs_value: ClassVar[bool] = False  # True if the method compares values of f: explicit problems only

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.tol < 0:
            name = type(self).__name__
            raise ValueError(f"{name}: expected max_steps >= 1 and tol >= 0, got {self.max_steps} and {self.tol}")

    @abstractmethod
    def start(self, problem: Problem, x0: Tensor) -> S:
        """Evaluate the problem at x⁰."""

    @abstractmethod
    def step(self, problem: Problem, state: S) -> S:
        """One step for the samples that are still active."""

    @final
    def __call__(self, problem: Problem, x0: Tensor) -> Solution:
        """Iterate until every sample has converged, has stalled, or max_steps is reached."""
        state = first = self.start(problem, x0)
        threshold = self.tol * first.residual
        samples = torch.arange(x0.shape[0], device=x0.device)
        outcome = Standing._make(islice(first, len(Standing._fields)))
        for step in range(self.max_steps):
            self._check_finite(state, step)
            active = (state.residual > threshold[samples]) & ~state.stalled
            if not active.all():
                outcome = _put(outcome, samples, state)
                (kept,) = active.nonzero(as_tuple=True)
                samples, problem = samples[kept], problem.select(kept)
                state = state._make(field[kept] for field in state)
            if not len(samples):
                break
            state = self.step(problem, state)
        self._check_finite(state, self.max_steps)
        outcome = _put(outcome, samples, state)
        tiny = torch.finfo(first.residual.dtype).tiny
        return Solution(
            outcome.x,
            outcome.residual / first.residual.clamp_min(tiny),
            outcome.n_gradients,
            outcome.n_values,
            outcome.residual <= threshold,
        )

    def _check_finite(self, state: S, step: int) -> None:
        if not state.residual.isfinite().all():
            raise FloatingPointError(
                f"{type(self).__name__}: the iterate is no longer finite at step {step}; weights or data are not "
                "finite, or the iteration diverges: lower its step_size, the strength or the learning rate"
            )


def _put(outcome: Standing, samples: Tensor, state: State) -> Standing:
    """Write the state of some samples into the record of all, out of place."""
    return Standing._make(old.index_copy(0, samples, new) for old, new in zip(outcome, state, strict=False))
