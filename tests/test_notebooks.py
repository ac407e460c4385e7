"""Every notebook runs, and finds what it says."""

import runpy
from pathlib import Path

from PIL import Image

from elder.reporting.metrics_log import MetricsLog

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == {
        "training_run",
        "trained_models",
        "bilevel_vs_deq",
        "real_coils",
    }


def test_a_run_is_drawn(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    for step in range(4):
        log.log_metrics({"train/psnr": 30.0 + step, "forward/residual": 1e-3, "forward/gradients": 40.0}, step)
    log.log_metrics({"val/psnr": 31.0}, 3)
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    found = runpy.run_path(str(NOTEBOOKS / "training_run.py"))
    assert found["series"]("train/psnr") == ([0, 1, 2, 3], [30.0, 31.0, 32.0, 33.0])
    with Image.open(tmp_path / "training.png") as picture:
        assert picture.size == (1200, 720)
        assert len(picture.convert("L").getcolors()) > 10


def test_trained_models_are_compared(tmp_path, monkeypatch):
    """On a small detail, every functional is solved, and better than total variation."""
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SIZE", "48")
    found = runpy.run_path(str(NOTEBOOKS / "trained_models.py"))
    functionals = found["MODELS"].keys() - {"Implicit field"}
    assert len(functionals) == 7 and all(found["solutions"][label].converged.all() for label in functionals)
    assert min(found["quality"][label] for label in functionals) > found["quality"]["Total variation"]
    with Image.open(tmp_path / "trained_models.png") as picture:
        assert picture.width == 2400
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 1000


def test_bilevel_and_equilibrium_are_compared(tmp_path, monkeypatch):
    """A few steps already tell the models apart: one field is a gradient, the other no longer."""
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    monkeypatch.setenv("STEPS", "8")
    monkeypatch.setenv("SEEDS", "1")
    monkeypatch.setenv("RESULTS", str(NOTEBOOKS.parent / "docs" / "results"))
    found = runpy.run_path(str(NOTEBOOKS / "bilevel_vs_deq.py"))
    assert found["agreement"].keys() == {"Anderson", "plain iteration"} and max(found["agreement"].values()) < 1e-8
    measured = found["measured"]
    assert measured["tied"][0]["asymmetry"] < 1e-5 < 1e-3 < measured["untied"][0]["asymmetry"]
    assert found["rises"]["tied"] == [0]
    assert all(curve[0] != curve[-1] for (curve,) in found["curves"].values())
    with Image.open(tmp_path / "bilevel_vs_deq.png") as picture:
        assert picture.size == (1320, 770)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
    problems = found["by_problem"]
    assert len(problems) == 5 and all(lines.keys() == {"tied", "untied"} for lines in problems.values())
    for line in (lines["tied"] for lines in problems.values()):
        noisy = [psnr for noise, psnr in line.items() if noise != "0"]
        assert len(noisy) == 4 and noisy == sorted(noisy, reverse=True)
    with Image.open(tmp_path / "bilevel_by_noise.png") as picture:
        assert picture.size == (1540, 374)


def test_real_coils_are_reconstructed(tmp_path, monkeypatch, real_data):
    """Near the reference where it can be told from the measurements, and no worse than these where the head wraps."""
    monkeypatch.setenv("DATA", str(real_data("mri/multicoil")))
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    found = runpy.run_path(str(NOTEBOOKS / "real_coils.py"))
    before, after = found["differences"]["bart_pics_brain"]
    assert after < 0.065 < 0.2 < before and found["noise_free"] < 0.04
    before, after = found["differences"]["brain_alias_8ch"]
    assert after < 0.12 < before
    for measured, x, maps in found["found"].values():
        assert measured.isfinite().all() and x.isfinite().all()
        length = maps.abs().square().sum(0)
        assert ((length < 1e-6) | ((length - 1).abs() < 1e-4)).all()
    assert (tmp_path / "real_coils.png").is_file()
