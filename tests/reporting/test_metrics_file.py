"""What is read of a metrics file, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from elder.reporting.metrics_file import append_line, last_values


def test_the_latest_value_of_each_metric(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_values(path) == {}
    append_line(path, {"hyperparameters": {"a": 1}, "time": 0.5})
    append_line(path, {"step": 0, "epoch": 0, "time": 1.0, "loss": 2.0, "val/psnr": 30.0})
    append_line(path, {"step": 1, "epoch": 0, "time": 2.0, "loss": "nan"})
    values = last_values(path)
    assert values.pop("loss") != 0
    assert values == {"step": 1, "epoch": 0, "time": 2.0, "val/psnr": 30.0}


def test_torn_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 3, "loss": 1.0})
    with path.open("ab") as file:
        file.write(b'{"step": 4, "lo')
    assert last_values(path) == {"step": 3, "loss": 1.0}
    append_line(path, {"step": 4, "loss": 0.5})
    with path.open("ab") as file:
        file.write(b"\xff\x00[1, 2]\n")
    assert last_values(path) == {"step": 4, "loss": 0.5}


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 0, "early": 1.0}, *({"step": i, "loss": float(i)} for i in range(20_000))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert path.stat().st_size > 1 << 18
    assert last_values(path) == {"step": 19_999, "loss": 19_999.0}


def test_it_needs_no_torch() -> None:
    code = "import sys, elder.reporting.metrics_file, elder.training.signals; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
