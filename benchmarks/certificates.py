"""`python -m benchmarks.certificates`: certificates of every reconstruction that ships, for a table in docs/bilevel.md.

Three test images of each model's own problem, their central 64 × 64 pixels (63 × 63 for super-resolution by 3), solved
in double precision to 1e-6.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console

from benchmarks.__main__ import RESULTS, machine
from benchmarks.online_steps import first_images, in_double_precision
from benchmarks.report import Grid, fill, machine_line, markdown
from elder.cli import keep_memory
from elder.models.catalogue import CONFIG, shipped
from elder.models.regularizers import Regularizer
from elder.models.stability import certify
from elder.operators import InverseProblem
from elder.solvers import GMRES
from elder.zoo.configuration import read_config
from elder.zoo.loading import load

DOCUMENT = Path(__file__).parent.parent / "docs" / "bilevel.md"
FILE = RESULTS / "certificates.json"
IMAGES, SIZE = 3, 64  # number, pixels
TOLERANCE, MAX_STEPS = 1e-6, 10_000
# Of a field; some of its solutions were not found with 10 000 steps either
FIELD_STEPS, FIELD = 2_000, {"n_ascent": 3, "linear": GMRES(500, 1e-6)}
PERTURBATION = 0.01  # ‖δ‖/‖y‖
N_LANCZOS = 300  # products for the ends of the spectrum: where data are missing the lower one is small


def main(models: list[str] | None = None, document: bool = True) -> None:
    """Certify, and write benchmarks/results/certificates.json after every model.

    Args:
        models: Names; null: all that were trained as reconstructions. What was found of the others is kept.
        document: Write docs/bilevel.md too.
    """
    torch.set_num_threads(1)
    keep_memory()
    console = Console(highlight=False)
    results = json.loads(FILE.read_text()) if FILE.is_file() else {"models": {}}
    results["machine"] = machine(1)
    for name in models or reconstructions():
        started = time.perf_counter()
        results["models"][name] = certificates(name)
        FILE.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        console.print(f"{name}: {time.perf_counter() - started:.0f} s")
    if document:
        write(results)


def reconstructions() -> list[str]:
    """Names of the models that ship and were trained as reconstructions."""
    return [name for name in shipped() if "reconstruction" in config(name)["model"]["init_args"]]


def config(name: str) -> Mapping[str, Any]:
    """What a model was trained with."""
    return read_config(shipped().files(name) / CONFIG)


def certificates(name: str) -> dict[str, list[float]]:
    """Each certificate of `IMAGES` images."""
    model = load(name).reconstruction
    assert model is not None
    is_field = not isinstance(model.prior, Regularizer)
    model.solver = replace(model.solver, tol=TOLERANCE, max_steps=FIELD_STEPS if is_field else MAX_STEPS)
    options = FIELD if is_field else {}
    found = certify(model.double(), test_problem(config(name)["data"]), PERTURBATION, N_LANCZOS, **options)
    return {field: column.tolist() for field, column in found._asdict().items()}


def test_problem(data: Mapping[str, Any]) -> InverseProblem:
    """The first `IMAGES` test images, in double precision; of a module with fixed images those of validation."""
    arguments = data["init_args"]
    if "test" in arguments:
        size = SIZE - SIZE % arguments.get("eval_multiple", 1)
        arguments = {**arguments, "val": arguments["test"], "eval_size": size, "every_setting": False}
    problem = first_images({**data, "init_args": arguments}, IMAGES)
    sigma = None if problem.sigma is None else problem.sigma.double()
    return in_double_precision(problem)._replace(sigma=sigma)


def write(results: Mapping[str, Any]) -> None:
    """A table between the marks of docs/bilevel.md."""
    columns = ["model", "smallest curvature", "positive", "mean ‖∂x̂/∂y‖", "largest", f"worst of {PERTURBATION:.0%}"]
    columns += ["asymmetry", "residual"]
    rows = []
    for name, found in sorted(results["models"].items()):
        curvature, error = found["curvature"], found["curvature_error"]
        positive = sum(c > e and solved == 1 for solved, c, e in zip(found["solved"], curvature, error, strict=True))
        cells = [f"`{name}`", f"{min(curvature):.2g}", f"{positive} of {len(curvature)}"]
        cells += [f"{statistics.mean(found['sensitivity']):.3g}", f"{max(found['sensitivity']):.3g}"]
        cells += [f"{max(found['amplification']):.3g}", f"{max(found['asymmetry']):.1g}"]
        rows.append([*cells, f"{max(found['residual']):.0e}"])
    grid = Grid("What ships, on three images of its problem", columns, rows)
    fill(DOCUMENT, {"certificates": f"{markdown(grid)}\n\n{machine_line(results['machine'])}"})


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
