"""The benchmark of certificates: a model's own problem, solved precisely; its table counts strict minima."""

from __future__ import annotations

import torch
from PIL import Image
from skimage.data import camera

from benchmarks import certificates

MACHINE = {"cpu": "a", "threads": 1, "torch": "b", "date": "c", "seed": 0, "commit": "d"}


def test_a_shipped_model_is_certified_on_test_images_of_its_problem(tmp_path, monkeypatch) -> None:
    for k in range(3):
        Image.fromarray(camera()[64 * k : 64 * k + 32, 100:132]).save(tmp_path / f"{k}.png")
    data = dict(certificates.config("gray_crr_small")["data"])
    folder = {"train": str(tmp_path), "val": str(tmp_path), "test": str(tmp_path)}
    data["init_args"] = {**data["init_args"], **folder, "patch_size": 16}
    monkeypatch.setattr(certificates, "SIZE", 16)
    problem = certificates.test_problem(data)
    assert problem.x is not None and problem.x.shape == (3, 1, 16, 16) and problem.y.dtype == torch.float64
    assert 0.01 < float((problem.y - problem.x).std()) < 0.25  # its own noise

    tripled = certificates.test_problem({**data, "init_args": {**data["init_args"], "eval_multiple": 3}})
    assert tripled.x is not None and tripled.x.shape == (3, 1, 15, 15)

    monkeypatch.setattr(certificates, "config", lambda name: {"data": data})
    found = certificates.certificates("gray_crr_small")
    assert max(found["residual"]) <= certificates.TOLERANCE and max(found["asymmetry"]) < 1e-12
    assert min(found["curvature"]) > 0.9  # a convex functional: the data term alone has 1
    assert max(found["sensitivity"]) <= 1 + 1e-6  # and denoising with one does not expand


def test_every_reconstruction_that_ships_is_certified() -> None:
    names = certificates.reconstructions()
    assert "gray_wcrr" in names and "mri_wcrr" in names and "gray_wcrr_denoiser" not in names


def test_the_table_counts_images_that_are_solved_and_whose_curvature_exceeds_its_error(tmp_path, monkeypatch) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- begin certificates -->\n<!-- end certificates -->")
    monkeypatch.setattr(certificates, "DOCUMENT", document)
    found = {"curvature": [0.5, -0.25, 0.01, 9], "curvature_error": [0.1] * 4, "sensitivity": [1.0, 2.0, 6.0, 3.0]}
    found |= {"amplification": [1.0, 1.5, 0.5, 0.0], "asymmetry": [0.0, 0.1, 0.0, 0.0]}
    found |= {"residual": [1e-7, 1e-6, 1e-7, 1e-3], "solved": [1.0, 1.0, 1.0, 0.0]}
    certificates.write({"machine": MACHINE, "models": {"a": found}})
    assert "| `a` | -0.25 | 1 of 4 | 3 | 6 | 1.5 | 0.1 | 1e-03 |" in document.read_text()
