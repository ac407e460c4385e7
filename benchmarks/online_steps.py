"""`python -m benchmarks.online_steps`: what a step of training and a reconstruction cost, batch and online.

The rows of the three studies `configs/ablations/online_*.yaml` that train, as their training begins: time and memory of
one validation image on one core, x̂ and the gradient of two. Tables go into docs/results.md.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, auto_cli
from pytorch_lightning.strategies import SingleDeviceStrategy
from rich.console import Console

from benchmarks.__main__ import RESULTS, machine
from benchmarks.costs import peak_bytes, seconds
from benchmarks.reference import parameter_gradient
from benchmarks.report import Grid, fill, machine_line, markdown
from elder.ablation.planning.plan import make_plan
from elder.ablation.planning.study import read_study
from elder.cli import keep_memory
from elder.datamodules.base import ImagingDataModule
from elder.linalg import doubled, norm
from elder.models.reconstruction import Reconstruction
from elder.models.weights import restore_prior
from elder.operators import InverseProblem
from elder.solvers import LBFGS, MINRES, Implicit
from elder.zoo.configuration import make, model_arguments

DOCUMENT = Path(__file__).parent.parent / "docs" / "results.md"
STUDIES = {"online_ct": "Tomography", "online_idt": "Diffraction tomography", "online_parallel_mri": "Parallel MRI"}
TOLERANCE = 1e-8  # of the solution and the gradient that all are compared with


def main(studies: list[str] | None = None, repeats: int = 3, document: bool = True) -> None:
    """Measure, and write benchmarks/results/online_steps.json.

    Args:
        studies: Names; null: all of `STUDIES`, otherwise what was measured of the others is kept.
        repeats: Timed runs, of which the median counts, and seeds of the sets of views.
        document: Write docs/results.md too.
    """
    torch.set_num_threads(1)
    keep_memory()
    file = RESULTS / "online_steps.json"
    results = json.loads(file.read_text()) if studies and file.is_file() else {}
    for name in studies or STUDIES:
        results[name] = {"machine": machine(1), "rows": measure(name, repeats, Console(highlight=False).print)}
        file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if document:
        write(results)


def measure(name: str, repeats: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each variant that trains, the batch model first."""
    plan = make_plan(read_study(f"configs/ablations/{name}.yaml", quick=True))
    runs = {cell.label: plan.runs[cell.final] for cell in plan.cells}
    trained = {label: run.config for label, run in runs.items() if "fit" in run.commands}
    pair = first_images(next(iter(trained.values()))["data"], 2)
    problem = InverseProblem(pair.A.select(torch.tensor([0])), pair.y[:1], None if pair.x is None else pair.x[:1])
    rows: list[dict[str, Any]] = []
    precise, exact = in_double_precision(pair), None
    for label, config in trained.items():
        if exact is None:
            exact = gradient(_converged(reconstruction(config)), precise)
        row = {"variant": label.removeprefix("solved by="), **cost(reconstruction(config), problem, repeats)}
        found = [gradient(reconstruction(config).double(), precise, seed) for seed in range(repeats)]
        row["distance"] = statistics.mean(float((norm(x - exact[0]) / norm(exact[0])).mean()) for x, _ in found)
        row["cosine"] = statistics.mean(float(torch.cosine_similarity(g, exact[1], dim=0)) for _, g in found)
        row["length"] = statistics.mean(float(g.norm() / exact[1].norm()) for _, g in found)
        rows.append(row)
        tell(f"{name}, {row['variant']}: {row['step_seconds']:.2f} s a step, cosine {row['cosine']:.4f}")
    return rows


def reconstruction(config: Mapping[str, Any]) -> Reconstruction:
    """What a run of a study begins to train."""
    made, arguments = make(config, Path("planned")), model_arguments(config)
    assert isinstance(made, Reconstruction)
    restore_prior(made.prior, arguments["pretrained"])
    return made


def first_images(data: Mapping[str, Any], number: int) -> InverseProblem:
    """The measurements of the first validation images that a configuration's section describes."""
    parser = ArgumentParser()
    parser.add_argument("--data", type=ImagingDataModule)
    together = {**data, "init_args": {**data["init_args"], "eval_batch_size": number}}
    module: ImagingDataModule = parser.instantiate(parser.parse_object({"data": together})).data
    module.prepare_data()
    return module.validation_problems(SingleDeviceStrategy("cpu"))[0]


def in_double_precision(problem: InverseProblem) -> InverseProblem:
    """The same problem, its noise too."""
    assert problem.x is not None
    return InverseProblem(copy.deepcopy(problem.A).double(), doubled(problem.y), doubled(problem.x))


def cost(model: Reconstruction, problem: InverseProblem, repeats: int) -> dict[str, float]:
    """Of one step of training, forward and backward, and of one reconstruction."""

    def step() -> None:
        gradient(model, problem)

    def reconstruct() -> None:
        with torch.no_grad():
            model(problem, seed=0)

    runs: dict[str, Callable[[], None]] = {"step": step, "reconstruction": reconstruct}
    found = {f"{n}_seconds": statistics.median(seconds(run).cpu for _ in range(repeats)) for n, run in runs.items()}
    return found | {f"{n}_bytes": peak_bytes(run) for n, run in runs.items()}


def gradient(model: Reconstruction, problem: InverseProblem, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x̂, and that of the mean squared error in θ; those in λ and σ, which are great, would hide it."""
    x = model(problem, seed=seed).x
    assert problem.x is not None
    return x.detach(), parameter_gradient((x - problem.x).abs().square().mean(), model.prior)


def _converged(model: Reconstruction) -> Reconstruction:
    """In double precision, both systems solved to `TOLERANCE`."""
    model.solver, model.backward = LBFGS(5000, TOLERANCE, memory=30), Implicit(MINRES(5000, TOLERANCE))
    return model.double()


def write(results: Mapping[str, Any]) -> None:
    """Tables between the marks of docs/results.md."""
    columns = ["solved by", "step, s", "times less", "step, MiB", "times less", "reconstruction, s", "times less"]
    columns += ["reconstruction, MiB", "times less", "‖x̂ − x*‖ / ‖x*‖", "cosine", "length / exact"]
    parts = {}
    for name, found in results.items():
        batch, rows = found["rows"][1], []  # gradient descent with all views
        for row in found["rows"]:
            cells = [row["variant"].replace("baseline", "all at once: L-BFGS, MINRES")]
            for what in ("step", "reconstruction"):
                for unit, factor, digits in (("seconds", 1, 2), ("bytes", 2**20, 1)):
                    value, reference = (one[f"{what}_{unit}"] for one in (row, batch))
                    cells += [f"{value / factor:.{digits}f}", f"{reference / value:.2f}"]
            rows.append([*cells, f"{row['distance']:.1e}", f"{row['cosine']:.4f}", f"{row['length']:.3f}"])
        grid = Grid(f"{STUDIES[name]}: one image, and what is reached of x* and dMSE/dθ of two", columns, rows)
        parts[f"{name}-steps"] = f"{markdown(grid)}\n\n{machine_line(found['machine'])}"
    fill(DOCUMENT, parts)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
