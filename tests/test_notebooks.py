"""Every notebook runs on what a run leaves behind."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

from elder.reporting.metrics_log import MetricsLog

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_draws_a_run(notebook, tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    for step in range(4):
        log.log_metrics({"train/psnr": 30.0 + step, "forward/residual": 1e-3, "forward/gradients": 40.0}, step)
    log.log_metrics({"val/psnr": 31.0}, 3)
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    found = runpy.run_path(str(notebook))
    assert found["series"]("train/psnr") == ([0, 1, 2, 3], [30.0, 31.0, 32.0, 33.0])
    with Image.open(tmp_path / "training.png") as picture:
        assert picture.size == (1200, 720)
        assert len(picture.convert("L").getcolors()) > 10
