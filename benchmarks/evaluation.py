"""What one evaluation of a regularizer costs, in each of the ways it can be evaluated."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.costs import seconds
from benchmarks.problems import make_case, plain_value
from elder.models.evaluation import Evaluation, Evaluator
from elder.models.regularizers import Regularizer

Call = Callable[[], Any]


def measure_evaluation(priors: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    """CPU time of (R, ∇R), of a Hessian product and of a θ-gradient, by hand and by automatic differentiation."""
    rows = []
    for name in priors:
        case = make_case("denoising", name, size=64, batch=4)
        calls = _gradients(case.prior, case.x0) | _derivatives(case.prior, case.x0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Inductor's remarks on complex numbers
            for call in calls.values():  # compilation, first allocations
                call()
                call()
        times: dict[str, list[float]] = {what: [] for what in calls}
        for _ in range(max(5, 3 * repeats)):
            for what, call in calls.items():
                times[what].append(seconds(call).cpu)
        medians = {what: statistics.median(record) for what, record in times.items()}
        rows.append({"regularizer": name, "cpu_seconds": medians})
    return rows


def _gradients(prior: Regularizer, x: Tensor) -> dict[str, Call]:
    """(R, ∇R) without a graph."""

    def automatic() -> Any:
        u = x.clone().requires_grad_()
        return torch.autograd.grad(plain_value(prior, u).sum(), u)

    def evaluator(**options: Any) -> Call:
        evaluate = Evaluator(prior, Evaluation(**options))
        dtype = torch.bfloat16 if "dtype" in options else None
        return torch.no_grad()(lambda: evaluate(x, None, dtype))

    return {
        "∇R, automatic": automatic,
        "∇R": evaluator(),
        "∇R, bfloat16": evaluator(dtype="bfloat16"),
        "∇R, compiled": evaluator(compile="default"),
        "∇R, compiled, bfloat16": evaluator(compile="default", dtype="bfloat16"),
    }


def _derivatives(prior: Regularizer, x: Tensor) -> dict[str, Call]:
    """Products with the Hessian, and gradients in θ, on tapes that are recorded once."""
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    parameters = list(prior.parameters())
    calls: dict[str, Call] = {}
    for how in ("automatic", "by hand"):
        u = x.clone().requires_grad_()
        if how == "automatic":
            (grad,) = torch.autograd.grad(plain_value(prior, u).sum(), u, create_graph=True)
        else:
            grad = prior.grad(u)
        for what, leaves in (("product", [u]), ("θ-gradient", parameters)):
            label = what if how == "by hand" else f"{what}, automatic"
            calls[label] = lambda g=grad, at=leaves: torch.autograd.grad(g, at, v, retain_graph=True, allow_unused=True)
    return calls
