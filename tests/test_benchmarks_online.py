"""The benchmark of online solvers: what it times is the data term, and its slope is that of the points."""

from __future__ import annotations

import json

import pytest

from benchmarks import online


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
