"""What a computation costs: floating-point operations of the network, time, time outside the network, memory."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.memory import LiveBytes
from benchmarks.problems import Case, plain_value
from elder.models.regularizers import Regularizer
from elder.operators.base import LinearOperator
from elder.solvers import LinearSolver


class Unit(NamedTuple):
    """What the costs of a case are expressed in, each for the whole batch."""

    gradient: int  # FLOPs of one (R, ∇R) of the library, without a graph
    automatic: int  # of one by automatic differentiation of R
    tape: int  # bytes live at the peak of one ∇R recorded for differentiation in θ and x

    def of(self, source: str) -> int:
        """FLOPs of one ∇R as a package evaluates it."""
        return self.gradient if source == "elder" else self.automatic


class Seconds(NamedTuple):
    """Time of one run."""

    cpu: float  # of the process, all its threads
    wall: float
    outside: float  # of the process, outside network, operator and tape


def unit(case: Case) -> Unit:
    """Cost of one gradient of the library."""
    x = case.x0
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        gradient = flops(lambda: case.prior.value_and_grad(x))
    automatic = flops(lambda: torch.autograd.grad(plain_value(case.prior, leaf).sum(), leaf))
    return Unit(gradient, automatic, peak_bytes(lambda: case.prior.grad(leaf)))


def flops(run: Callable[[], Any]) -> int:
    """FLOPs of all convolutions, matrix products and Fourier transforms, forward and backward."""
    with Flops() as counter:
        run()
    return counter.total


class Flops(TorchDispatchMode):
    """Sums PyTorch's own formulas. Its FlopCounterMode follows modules by hooks, which fail in a derivative of one."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := _FORMULAS.get(func.overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _complex_transform(x: Tensor, dim: Sequence[int], *_: Any, **__: Any) -> int:
    """5N log₂ n for N numbers in transforms of length n, the customary count; half of it where one side is real."""
    return round(5 * x.numel() * math.log2(math.prod(x.shape[d] for d in dim)))


def _forward_transform(x: Tensor, dim: Sequence[int], *_: Any, **__: Any) -> int:
    return _complex_transform(x, dim) // 2


def _inverse_transform(_: Tensor, dim: Sequence[int], *__: Any, out_val: Tensor) -> int:
    return _complex_transform(out_val, dim) // 2


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._fft_c2c: _complex_transform,
    torch.ops.aten._fft_r2c: _forward_transform,
    torch.ops.aten._fft_c2r: _inverse_transform,
}


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that tensors made by the run occupied at one time."""
    gc.collect()
    with LiveBytes() as memory:
        result = run()
        del result
    return memory.peak


def seconds(run: Callable[[], Any]) -> Seconds:
    """Time of one run. What earlier ones left to Python's collector is collected before, not at their expense."""
    gc.collect()
    with _Clock() as clock:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Seconds(cpu, wall, cpu - clock.inside)


@contextlib.contextmanager
def region(inside: bool) -> Iterator[None]:
    """Say whether what runs here is network, operator or tape, where the wrappers of `seconds` cannot see it."""
    if _Clock.running is None:
        yield
    else:
        with _Clock.running.region(inside):
            yield


class _Clock:
    """Process time inside network, operator and tape, from wrappers around their functions while it runs.

    A linear solver works inside the backward pass: its time is outside again, but for its products.
    """

    running: _Clock | None = None

    def __init__(self) -> None:
        self.inside = 0.0
        self._stack, self._since = [False], 0.0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> _Clock:
        for owner, names in _functions().items():
            for name in names:
                self._wrap(owner, name, inside=not issubclass(owner, LinearSolver))
        for name in ("grad", "backward"):
            self._wrap(torch.autograd, name, inside=True)
        _Clock.running, self._since = self, time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        _Clock.running = None
        self._undo.close()

    @contextlib.contextmanager
    def region(self, inside: bool) -> Iterator[None]:
        self._switch()
        self._stack.append(inside)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def _switch(self) -> None:
        now = time.process_time()
        if self._stack[-1]:
            self.inside += now - self._since
        self._since = now

    def _wrap(self, owner: Any, name: str, inside: bool) -> None:
        function = vars(owner)[name]

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.region(inside):
                return function(*args, **kwargs)

        setattr(owner, name, timed)
        self._undo.callback(setattr, owner, name, function)


def _functions() -> dict[type, list[str]]:
    """The functions that a clock watches, in the classes that define them."""
    watched: dict[type, tuple[str, ...]] = {
        Regularizer: ("value", "grad", "value_and_grad"),
        LinearOperator: ("forward", "adjoint", "gram", "gram_resolvent"),
        LinearSolver: ("__call__",),
    }
    found = {}
    for base, names in watched.items():
        for owner in _descendants(base):
            found[owner] = [name for name in names if callable(vars(owner).get(name))]
    return found


def _descendants(base: type) -> list[type]:
    return [base, *(found for child in base.__subclasses__() for found in _descendants(child))]
