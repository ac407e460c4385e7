"""Ten thousand runs are planned, validated and shown in seconds of a processor's time, and in little memory."""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablation import measured, write_study


def test_ten_thousand_runs(tmp_path: Path) -> None:
    few, many = (
        measured(write_study(tmp_path / str(n), "model", n), tmp_path / str(n))
        for n in (1296, 10_000)
        if not (tmp_path / str(n)).mkdir()
    )
    assert (few["runs"], many["runs"]) == (1296, 10_000)
    assert many["imports"] + many["planning"] + many["saving"] < 20  # seconds of processor time, not of the clock
    assert many["peak"] < 500  # MB
    assert many["status"] < 3
    each = (many["planning"] - few["planning"]) / (many["runs"] - few["runs"])
    assert each < 2e-3, "a run costs what its change costs, however many there are"
