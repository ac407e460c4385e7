"""How a regularizer is evaluated inside a forward solve, where no graph is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from elder.models.regularizers import Prior, Regularizer

Mode = Literal["default", "reduce-overhead", "max-autotune"]
LowDtype = Literal["bfloat16", "float16"]
_CUDNN: Any = torch.backends.cudnn  # whose settings are made at run time
VARIANTS = 256  # of one function, one for each shape and precision, before compiling stops being worth it


@dataclass(frozen=True)
class Evaluation:
    """How R and ∇R are evaluated inside a forward solve; derivatives of the solution are always eager.

    Args:
        compile: Mode of `torch.compile`; "reduce-overhead" captures CUDA graphs. The batch then shrinks to powers of
            two only, so that few variants are compiled. None: eager.
        dtype: To what autocast lowers the network, until the relative residual has fallen to `switch`; iterates and
            physics stay in full precision, and so does the rest of the solve, which therefore meets its tolerance.
            None: full precision throughout.
        switch: Relative residual down to which the lowered network is trusted.

    Raises:
        ValueError: If switch is not positive, or a name is unknown.
    """

    compile: Mode | None = None
    dtype: LowDtype | None = None
    switch: float = 0.05

    def __post_init__(self) -> None:
        for name, value, choices in (("compile", self.compile, Mode), ("dtype", self.dtype, LowDtype)):
            if value is not None and value not in get_args(choices):
                raise ValueError(f"Evaluation: expected {name} to be one of {get_args(choices)} or None, got {value!r}")
        if self.switch <= 0:
            raise ValueError(f"Evaluation: expected switch > 0, got {self.switch}")


EAGER = Evaluation()


@contextlib.contextmanager
def ieee_convolutions() -> Iterator[None]:
    """Convolutions of float32 images in IEEE float32.

    By default torch lets cuDNN round their inputs to TF32, 10 bits of mantissa, and a solve cannot fall below the error
    that a gradient has by that. It changes nothing on a CPU.
    """
    before = _CUDNN.conv.fp32_precision, _CUDNN.rnn.fp32_precision
    _set_precision(False, "ieee", "ieee")
    try:
        yield
    finally:
        _set_precision("tf32" in before, *before)


def _set_precision(tf32: bool, conv: str, rnn: str) -> None:
    """In both of the ways that torch has for it, which it wants to agree."""
    _CUDNN.allow_tf32 = tf32
    _CUDNN.conv.fp32_precision, _CUDNN.rnn.fp32_precision = conv, rnn


class Evaluator:
    """A prior, evaluated as an `Evaluation` says; compiled when it is first needed.

    Args:
        prior: R.
        evaluation: How.
    """

    def __init__(self, prior: Prior, evaluation: Evaluation) -> None:
        self.prior, self.evaluation, self.mode = prior, evaluation, evaluation.compile
        self._function = prior.value_and_grad if isinstance(prior, Regularizer) else prior.grad
        if self.mode is not None:
            self._function = torch.compile(self._function, mode=self.mode, fullgraph=True, dynamic=False)

    def __call__(self, x: Tensor, sigma: Tensor | None, dtype: torch.dtype | None) -> Any:
        """(R(x), ∇R(x)), or the field alone where there is no R, the network in dtype (None: in the ambient one)."""
        lower = contextlib.nullcontext() if dtype is None else torch.autocast(x.device.type, dtype)
        captured = x.is_cuda and self.mode in ("reduce-overhead", "max-autotune")
        if captured:
            torch.compiler.cudagraph_mark_step_begin()
        with lower, self._limits(), ieee_convolutions():
            result = self._function(x, sigma)
        if not captured:
            return result
        # the next replay of the graph writes where this one has written
        return tuple(u.clone() for u in result) if isinstance(result, tuple) else result.clone()

    def _limits(self) -> contextlib.AbstractContextManager[Any]:
        if self.mode is None:  # which would take longer to set than a small network takes
            return contextlib.nullcontext()
        return torch._dynamo.config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=VARIANTS)
