"""The benchmarks of online solvers: what they time and compare it with; a slope is that of the points."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import online, online_steps
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Residual, Scaled
from elder.solvers import OnlineGradientDescent, OnlineImplicit


def test_slope_is_the_exponent() -> None:
    assert online.slope([(x, 3 * x**0.5) for x in (0.01, 0.2, 1.0, 7.0)]) == pytest.approx(0.5)


def test_fewer_views_take_less_memory_and_the_tables_say_so(tmp_path, monkeypatch) -> None:
    told: list[str] = []
    cost = online.measure_cost(size=48, n_views=12, repeats=1, tell=told.append)
    assert [row["share"] for row in cost] == [1, 2, 3, 6] and len(told) == 4
    whole, third = cost[0], cost[2]
    assert 2.5 < whole["bytes"] / third["bytes"] < 3.5 and whole["bytes"] == whole["unbounded_bytes"]
    assert all(0 < row["of_step"] < 1 and row["step_seconds"] > row["seconds"] > 0 for row in cost)
    machine = {"cpu": "a", "threads": 1, "torch": "b", "date": "c", "seed": 0, "commit": "d"}
    angle = {"share": 3, "shared": True, "distance": 0.01, "cosine": 0.99, "least": 0.98, "length": 1.1}
    accuracy = {"distances": [(0.5, 0.1), (0.25, 0.07)], "slope": 0.5, "angles": [angle]}
    document = tmp_path / "page.md"
    document.write_text("\n".join(f"<!-- begin {n} -->\n<!-- end {n} -->" for n in ("machine", "cost", "accuracy")))
    (tmp_path / "performance").mkdir()
    monkeypatch.setattr(online, "DOCUMENT", document)
    results = {"machine": machine, "size": 48, "n_views": 12, "cost": cost, "accuracy": accuracy}
    online.write(json.loads(json.dumps(results)))
    text = document.read_text()
    assert "| 1/3 | one for all steps | 1.0e-02 | 0.9900 | 0.9800 | 1.100 |" in text
    assert f"{whole['bytes'] / third['bytes']:.2f}" in text and (tmp_path / "performance/online.png").is_file()


def test_a_step_costs_what_it_makes_and_its_table_compares_with_gradient_descent(tmp_path, monkeypatch) -> None:
    problem = online.tomography(16, 6)
    torch.manual_seed(0)
    prior = Scaled(Residual(DnCNN(features=4, depth=2)))
    model = Reconstruction(
        prior, OnlineGradientDescent(6, 0, n_views=3, step_size=0.5), OnlineImplicit(n_views=3, max_steps=4, tol=1.0)
    )
    cost = online_steps.cost(model, problem, repeats=1)
    assert cost["step_seconds"] > 0 and cost["reconstruction_seconds"] > 0
    assert cost["step_bytes"] > cost["reconstruction_bytes"] > problem.y.nbytes
    precise = online_steps.in_double_precision(problem)
    assert (problem.y.dtype, precise.y.dtype) == (torch.float32, torch.float64)
    x, g = online_steps.gradient(model.double(), precise)
    assert x.dtype == torch.float64 and g.numel() == sum(p.numel() for p in model.prior.parameters()) and g.norm() > 0

    rows = [
        {"variant": name, "distance": 0.01, "cosine": 0.9, "length": 1.1}
        | {f"{what}_{unit}": factor * base for what in ("step", "reconstruction") for unit, base in units.items()}
        for name, factor in (("baseline", 4), ("6 views at a time", 2), ("3 views at a time", 1))
        for units in ({"seconds": 0.5, "bytes": 2**20},)
    ]
    machine = {"cpu": "a", "threads": 1, "torch": "b", "date": "c", "seed": 0, "commit": "d"}
    document = tmp_path / "page.md"
    document.write_text("<!-- begin online_ct-steps -->\n<!-- end online_ct-steps -->")
    monkeypatch.setattr(online_steps, "DOCUMENT", document)
    online_steps.write({"online_ct": {"machine": machine, "rows": rows}})
    text = document.read_text()
    assert "| all at once: L-BFGS, MINRES | 2.00 | 0.50 | 4.0 | 0.50 |" in text
    assert (
        "| 3 views at a time | 0.50 | 2.00 | 1.0 | 2.00 | 0.50 | 2.00 | 1.0 | 2.00 | 1.0e-02 | 0.9000 | 1.100 |" in text
    )
