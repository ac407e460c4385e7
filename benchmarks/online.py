"""`python -m benchmarks.online`: what looking at a few views at a time saves, and what it costs in accuracy.

Tomography of phantoms of ellipses, on one core; tables and a plot go into docs/oder.md.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from jsonargparse import auto_cli
from matplotlib import pyplot
from matplotlib.ticker import NullFormatter
from rich.console import Console
from torch import Tensor

from benchmarks.__main__ import RESULTS, machine
from benchmarks.costs import peak_bytes, seconds
from benchmarks.reference import parameter_gradient
from benchmarks.report import Grid, fill, machine_line, markdown
from elder.cli import keep_memory
from elder.datamodules import Ellipses
from elder.linalg import norm
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Regularizer, Residual, Ridge
from elder.models.regularizers.potentials import Convex
from elder.operators import InverseProblem, RelativeGaussian, Scene, Tomography, radon
from elder.solvers import LBFGS, MINRES, Implicit, OnlineGradientDescent, OnlineImplicit

DOCUMENT = Path(__file__).parent.parent / "docs" / "oder.md"
SHARES = 1, 2, 3, 6  # all views, a half, a third, a sixth
SEEDS = 40  # of the sets of views, for the mean distance to the solution
STEP = 0.5  # of Tomography, whose operator has ‖A‖ of about 1


def main(size: int = 512, n_views: int = 90, repeats: int = 3, small: int = 32, document: bool = True) -> None:
    """Measure, and write benchmarks/results/online.json.

    Args:
        size: Side of the image whose data term is timed, pixels.
        n_views: Of its scan.
        repeats: Timed runs, of which the median counts.
        small: Side of the image on which accuracy is measured, in double precision.
        document: Write docs/oder.md and its plot too.
    """
    torch.set_num_threads(1)
    keep_memory()
    console = Console()
    results: dict[str, Any] = {"machine": machine(1), "size": size, "n_views": n_views}
    results["cost"] = measure_cost(size, n_views, repeats, console.print)
    results["accuracy"] = measure_accuracy(small, console.print)
    (RESULTS / "online.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if document:
        write(results)


def tomography(size: int, n_views: int, number: int = 1, dtype: torch.dtype = torch.float32) -> InverseProblem:
    """Phantoms, seen from evenly spaced directions with noise of 40 dB."""
    x = torch.stack([Ellipses(number, size).read(i, color=False) for i in range(number)]).to(dtype)
    acquisition = Tomography(n_views=n_views, noise=RelativeGaussian(snr=40.0))
    scene, generators = Scene(x), [torch.Generator().manual_seed(i) for i in range(number)]
    return acquisition(scene, generators)


def measure_cost(size: int, n_views: int, repeats: int, tell: Callable[[str], None]) -> list[dict[str, float]]:
    """Of one step of the forward iteration, and one of the adjoint: the data term's share by views looked at."""
    problem = tomography(size, n_views)
    torch.manual_seed(0)
    prior = Residual(DnCNN(channels=1, features=16, depth=6))
    model = Reconstruction(prior, OnlineGradientDescent(2, 0, n_views=1), strength=0.05)
    objective, x = model.objective(problem), problem.A.initialize(problem.y)
    u = torch.ones_like(x)
    recorded = x.clone().requires_grad_()
    field = prior.grad(recorded)

    def prior_step() -> None:
        with torch.no_grad():
            prior.grad(x)
        torch.autograd.grad(field, recorded, u, retain_graph=True)

    rows = []
    whole = [seconds(prior_step).cpu for _ in range(repeats)]
    for share in SHARES:

        def data_step(n: int = math.ceil(n_views / share)) -> None:
            with torch.no_grad():
                objective.draw(n).data_grad(x)
                objective.draw(n).data_product(x, u)

        data = statistics.median(seconds(data_step).cpu for _ in range(repeats))
        rest = statistics.median(whole)
        row = {"share": share, "seconds": data, "bytes": peak_bytes(data_step), "of_step": data / (data + rest)}
        with mock.patch.object(radon, "_AT_ONCE", 1 << 62):
            row["unbounded_bytes"] = peak_bytes(data_step)
        rows.append(row | {"step_seconds": data + rest})
        tell(f"1/{share} of {n_views} views at {size} × {size}: {data:.2f} s, {row['of_step']:.0%} of a step")
    return rows


class _StronglyConvex(Regularizer):
    """A ridge regularizer with ½‖x‖² of its own, so that there is one solution, and a rate at which it is reached."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ridge = Ridge(channels=1, widths=[4, 8, 16], kernel_size=3, potential=Convex())

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        return 0.5 * norm(x).square() + self.ridge.value(x, sigma)


def measure_accuracy(size: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Distance to the solution of all views by step size, and the angle of the parameters' gradient by views."""
    n_views = 24
    problem = tomography(size, n_views, number=2, dtype=torch.float64)
    assert problem.x is not None
    strength, third = 0.2, n_views // 3

    def model(solver: Any, backward: Any) -> Reconstruction:
        return Reconstruction(_StronglyConvex(), solver, backward, strength=strength).double()

    def gradient(solver: Any, backward: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
        reconstruction = model(solver, backward)
        x = reconstruction(problem, seed=seed).x
        return x.detach(), parameter_gradient((x - problem.x).square().mean(), reconstruction.prior)

    exact, exact_gradient = gradient(LBFGS(2000, 1e-10), Implicit(MINRES(2000, 1e-10)))
    distances = []
    for halvings in range(6):
        gamma = STEP / 2**halvings
        n_steps = round(12 / (gamma * strength))  # the start is forgotten to e⁻¹²
        solver = OnlineGradientDescent(n_steps, 0, n_views=third, step_size=gamma)
        found = [model(solver, None)(problem, seed=seed).x.detach() for seed in range(SEEDS)]
        off = [float((norm(x - exact) / norm(exact)).mean()) for x in found]
        distances.append((gamma, statistics.mean(off)))
        tell(f"step size {gamma:.4f}: {distances[-1][1]:.2e} from the solution")
    angles = []
    for share in SHARES:
        n = math.ceil(n_views / share)
        for shared in (False, True):
            common = {"n_views": n, "step_size": STEP, "momentum": 0.8, "average": 20}
            solver = OnlineGradientDescent(100, 0, **common)
            rule = OnlineImplicit(max_steps=60, shared=shared, tol=1.0, **common)
            found = [gradient(solver, rule, seed) for seed in range(5)]
            cosines = [float(torch.cosine_similarity(g, exact_gradient, dim=0)) for _, g in found]
            lengths = [float(g.norm() / exact_gradient.norm()) for _, g in found]
            off = [float((norm(x - exact) / norm(exact)).mean()) for x, _ in found]
            row = {"share": share, "shared": shared, "distance": statistics.mean(off)}
            row |= {"cosine": statistics.mean(cosines), "least": min(cosines), "length": statistics.mean(lengths)}
            angles.append(row)
            tell(f"1/{share} of the views, {'shared' if shared else 'fresh'} sets: cosine {row['cosine']:.4f}")
    return {"distances": distances, "slope": slope(distances[1:]), "angles": angles}


def slope(points: list[tuple[float, float]]) -> float:
    """Of log y against log x, by least squares."""
    x, y = (torch.tensor(column, dtype=torch.float64).log() for column in zip(*points, strict=True))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def write(results: dict[str, Any]) -> None:
    """Tables between the marks of docs/oder.md, and the plot beside it."""
    first = results["cost"][0]
    cost = [
        [
            _views(row["share"]),
            f"{row['seconds']:.2f}",
            f"{first['seconds'] / row['seconds']:.2f}",
            f"{row['bytes'] / 2**20:.0f}",
            f"{first['bytes'] / row['bytes']:.2f}",
            f"{row['unbounded_bytes'] / 2**20:.0f}",
            f"{first['unbounded_bytes'] / row['unbounded_bytes']:.2f}",
            f"{row['of_step']:.0%}",
            f"{first['step_seconds'] / row['step_seconds']:.2f}",
        ]
        for row in results["cost"]
    ]
    columns = ["views of a step", "data term, s", "times less", "peak, MiB", "times less", "unbounded, MiB"]
    columns += ["times less", "share of the step", "step, times less"]
    title = f"{results['size']} × {results['size']}, {results['n_views']} views: ∇g(x), and ∇²g(x)u of the adjoint"
    angles = [
        [
            _views(row["share"]),
            "one for all steps" if row["shared"] else "fresh",
            f"{row['distance']:.1e}",
            f"{row['cosine']:.4f}",
            f"{row['least']:.4f}",
            f"{row['length']:.3f}",
        ]
        for row in results["accuracy"]["angles"]
    ]
    names = ["views of a step", "backward sets", "‖x̂ − x*‖ / ‖x*‖", "cosine, mean", "least of 5", "length / exact"]
    parts = {
        "machine": machine_line(results["machine"]),
        "cost": markdown(Grid(title, columns, cost)),
        "accuracy": markdown(Grid("dMSE/dθ against that of all views, solved to 1e-10", names, angles)),
    }
    fill(DOCUMENT, parts)
    _plot(results["accuracy"])


def _views(share: int) -> str:
    return "all" if share == 1 else f"1/{share}"


def _plot(accuracy: dict[str, Any]) -> None:
    sizes, distances = zip(*accuracy["distances"], strict=True)
    figure, axes = pyplot.subplots(figsize=(4.6, 3.6))
    axes.loglog(sizes, distances, "o-", label=f"measured, {SEEDS} seeds")
    middle = len(sizes) // 2
    theory = [distances[middle] * (gamma / sizes[middle]) ** 0.5 for gamma in sizes]
    axes.loglog(sizes, theory, "--", color="0.5", label="slope ½")
    axes.set(xlabel="step size γ", ylabel="‖x̂ − x*‖ / ‖x*‖", title=f"fitted slope {accuracy['slope']:.2f}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.legend()
    folder = DOCUMENT.parent / "performance"
    figure.savefig(folder / "online.png", dpi=110, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
