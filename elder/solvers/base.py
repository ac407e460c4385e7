"""What a solver is, what it may ask of a problem, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar, cast, final

import torch
from torch import Tensor

from elder.solvers.linear import LinearMap, LinearSolution


class Problem(Protocol):
    """A batch of conditions F(x) = 0, one per sample: all that a solver ever sees of an inverse problem.

    `elder.models.objective.Objective` is one; a quadratic in a test is another.
    """

    @property
    def symmetric(self) -> bool:
        """Whether ∂F/∂x is symmetric, that is F = ∇f."""
        ...

    @property
    def few_batch_sizes(self) -> bool:
        """Whether each batch size is prepared anew (compiled, captured): batches shrink to powers of two only."""
        ...

    @property
    def precision(self) -> float:
        """Relative rounding error of value and gradient: that of the arithmetic they are computed in, not of x."""
        ...

    @property
    def natural_step(self) -> Tensor:
        """1/λ, () or (B,): the step with which ∇R is subtracted whole."""
        ...

    def grad(self, x: Tensor) -> Tensor:
        """F(x), shape of x: ∇f(x) if there is an objective f, a plain vector field otherwise."""
        ...

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), shape (B,), and F(x), for the price of one gradient. Only explicit problems have a value."""
        ...

    def proximal_gradient(self, x: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
        """prox_{γg}(x − γλ∇R(x)), given grad = F(x), so that no further ∇R is needed; γ is () or (B,)."""
        ...

    def precondition(self, u: Tensor, curvature: float) -> Tensor:
        """(AᴴA + λcI)⁻¹u: what the inverse Hessian of f would be if R had the curvature c everywhere."""
        ...

    def select(self, samples: Tensor) -> Problem:
        """The same problem for part of the batch; `samples` holds positions in it."""
        ...


class AdjointReport:
    """The adjoint solve Mu = v of one backward pass, all None until that pass has happened."""

    def __init__(self) -> None:
        self.solution: LinearSolution | None = None
        self.cotangent_norm: Tensor | None = None  # ‖v‖, (B,)
        self.adjoint_norm: Tensor | None = None  # ‖u‖, (B,)


DIVERGED = 1e6  # relative residual beyond which no iteration is expected to come back


class Solution(NamedTuple):
    """What a solver found, per sample. All but x are detached."""

    x: Tensor  # final iterate
    residual: Tensor  # ‖F(x)‖ / ‖F(x⁰)‖, (B,)
    n_gradients: Tensor  # evaluations of ∇R, (B,): the unit in which cost is counted
    converged: Tensor  # (B,) bool
    scale: Tensor | None = None  # what the residual is relative to: ‖F(x⁰)‖ unless the solve was given another, (B,)
    adjoint: AdjointReport | None = None  # set by implicit rules, filled in by the backward pass
    inverse: LinearMap | None = None  # u ↦ about (∂F/∂x)⁻ᵀu for the whole batch, where it was asked for and is known

    @property
    def diverged(self) -> Tensor:
        """(B,) bool: the residual grew a million times, and x means nothing. f may have no minimum, or F no zero."""
        return self.residual > DIVERGED


class State(Protocol):
    """Where an iteration stands: a named tuple that begins with the fields of `Standing`, in their order.

    All fields have a leading batch axis, so that samples can leave.
    """

    @property
    def x(self) -> Tensor: ...
    @property
    def residual(self) -> Tensor: ...
    @property
    def stalled(self) -> Tensor: ...
    @property
    def n_gradients(self) -> Tensor: ...
    def __iter__(self) -> Iterator[Tensor]: ...
    @classmethod
    def _make(cls, iterable: Iterable[Tensor], /) -> Self: ...


class Standing(NamedTuple):
    """What every iteration remembers of each sample."""

    x: Tensor
    residual: Tensor  # ‖F(x)‖, (B,)
    stalled: Tensor  # (B,) bool: no further progress possible
    n_gradients: Tensor  # (B,)


Watch = Callable[[Tensor, State], None]  # is shown which samples take part, and where they stand

S = TypeVar("S", bound=State)
R = TypeVar("R", bound=State)


@dataclass(frozen=True)
class Solver(ABC, Generic[S]):
    """Finds x with F(x) = 0, sample by sample: frozen hyper-parameters and pure methods.

    A solver does not log, does not know the ground truth, and does not touch the grad mode; where gradients are
    recorded it writes no tensor in place, so that the `Unrolled` backward rule may differentiate it. Not converging
    is a fact in the `Solution`; a non-finite iterate is a `FloatingPointError` that names the step. A sample that has
    converged, or diverged, leaves the batch and costs nothing more, and none depends on its batch mates.

    `step` evaluates the problem once, at one point for every sample, and never waits for the device: what has
    converged is looked at between the steps, every `check_every` of them. A sample that converges in between takes
    part, and pays, until then.

    Args:
        max_steps: Largest number of steps, each one evaluation.
        tol: A sample has converged when ‖F(x)‖ ≤ tol · ‖F(x⁰)‖.
        check_every: Number of steps from one look at the residuals to the next. The looks are the only points where
            the host waits for the device: 1 on a CPU, some more where an evaluation is quicker than its launch.

    Raises:
        ValueError: If max_steps < 1, tol < 0 or check_every < 1.
    """

    max_steps: int = 100
    tol: float = 1e-4
    check_every: int = field(default=1, kw_only=True)

    needs_value: ClassVar[bool] = False  # True if the method compares values of f: explicit problems only
    takes_all_steps: ClassVar[bool] = False  # True if the residual of a step is an estimate, on which nothing may stop

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.max_steps < 1 or not self.tol >= 0:
            raise ValueError(f"{name}: expected max_steps >= 1 and tol >= 0, got {self.max_steps} and {self.tol}")
        if self.check_every < 1:
            raise ValueError(f"{name}: expected check_every >= 1, got {self.check_every}")

    @property
    def estimates_inverse(self) -> bool:
        """Whether `inverse` gives more than None."""
        return type(self).inverse is not Solver.inverse

    @abstractmethod
    def start(self, problem: Problem, x0: Tensor) -> S:
        """Evaluate the problem at x⁰."""

    @abstractmethod
    def step(self, problem: Problem, state: S) -> S:
        """One evaluation for every sample of the state, which may be used up unless gradients are recorded."""

    def finish(self, problem: Problem, outcome: R) -> R:
        """What is returned of all samples at the end, for methods whose steps only estimate the residual."""
        return outcome

    def inverse(self, state: S) -> LinearMap | None:
        """u ↦ about (∂F/∂x)⁻ᵀu by what the iteration has learnt of F; None for methods that learn no such thing."""
        return None

    @final
    def __call__(
        self,
        problem: Problem,
        x0: Tensor,
        *,
        scale: Tensor | None = None,
        keep_inverse: bool = False,
        watch: Watch | None = None,
    ) -> Solution:
        """Iterate until every sample has converged, has stalled, has diverged, or max_steps is reached.

        Args:
            problem: The conditions, one per sample.
            x0: Where to start, (B, …).
            scale: Takes the place of ‖F(x⁰)‖, (B,), in the stopping rule and in the reported residual: a start that is
                nearly a solution need not be improved by the factor that a poor one is. NaN: ‖F(x⁰)‖.
            keep_inverse: Whether to return `Solution.inverse`, which holds on to the memory of the iteration.
            watch: Is shown the start and the outcome of every step: the positions of the samples that take part, and
                their state, of which the next step may write over all but x and numbers of each sample.
        """
        whole, state = problem, self.start(problem, x0)
        first = state
        scale = first.residual if scale is None else torch.where(scale.isnan(), first.residual, scale)
        threshold = self.tol * scale
        samples = torch.arange(x0.shape[0], device=x0.device)
        active, n_active = torch.ones_like(first.stalled), len(samples)
        outcome = first if keep_inverse else Standing._make(islice(first, len(Standing._fields)))
        if watch is not None:
            watch(samples, state)
        for step in range(self.max_steps):
            if step % self.check_every == 0:
                self._check_finite(state, active, step)
                going = active & ~state.stalled
                if not self.takes_all_steps:
                    going &= state.residual > threshold[samples]
                going &= state.residual <= DIVERGED * scale[samples]
                n_going = int(going.count_nonzero())
                if n_going < n_active:
                    outcome = _record(outcome, samples, active & ~going, state)
                active, n_active = going, n_going
                if not n_active:
                    break
                size = _power_of_two(n_active) if problem.few_batch_sizes else n_active
                if size < len(samples):
                    # finished samples fill the batch up; their outcome stands
                    kept = torch.argsort((~active).byte(), stable=True)[:size]
                    samples, active, problem = samples[kept], active[kept], problem.select(kept)
                    state = state._make(entry[kept] for entry in state)
            state = self.step(problem, state)
            if watch is not None and n_active == len(samples):
                watch(samples, state)
            elif watch is not None:
                watch(samples[active], state._make(entry[active] for entry in state))
        self._check_finite(state, active, self.max_steps)
        outcome = self.finish(whole, _record(outcome, samples, active, state))
        tiny = torch.finfo(scale.dtype).tiny
        return Solution(
            outcome.x,
            outcome.residual / scale.clamp_min(tiny),
            outcome.n_gradients,
            outcome.residual <= threshold,
            scale,
            inverse=self.inverse(cast(S, outcome)) if keep_inverse else None,
        )

    def _check_finite(self, state: S, active: Tensor, step: int) -> None:
        if not (state.residual.isfinite() | ~active).all():
            raise FloatingPointError(
                f"{type(self).__name__}: the iterate is no longer finite at step {step}; weights or data are not "
                "finite, or the iteration diverges: lower its step_size, the strength or the learning rate"
            )


def _record(outcome: R, samples: Tensor, which: Tensor, state: State) -> R:
    """Write the state of some samples into the record of all, out of place."""
    (rows,) = which.nonzero(as_tuple=True)
    entries = zip(outcome, state, strict=False)
    return outcome._make(old.index_copy(0, samples[rows], new[rows]) for old, new in entries)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()
