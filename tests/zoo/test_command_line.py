"""Models by name in configurations, on the command line, and in the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elder.models.catalogue import WEIGHTS, Catalogue, shipped
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import Ridge
from elder.models.weights import find_weights
from elder.zoo.adding import add
from elder.zoo.command_line import main
from elder.zoo.document import BEGIN, END, update
from tests.zoo.runs import WIDTHS, denoiser_run, reconstruction_run

PRESENT = [name for name, card in shipped().items() if card.ships]


def test_training_starts_from_a_name_a_run_or_a_file(tmp_path: Path) -> None:
    run = reconstruction_run(tmp_path / "run", strength=1.0)
    for given in (run, run / WEIGHTS, str(run)):
        module = ReconstructionModule(Reconstruction(Ridge(**WIDTHS), strength=1.0), pretrained=given)
        expected = load_file(run / WEIGHTS)
        assert all(torch.equal(expected[k], v) for k, v in module.reconstruction.prior.state_dict().items())
    assert find_weights(Path("mri_wcrr")) == shipped().folder / "mri_wcrr" / WEIGHTS
    assert find_weights("no/such/file") == Path("no/such/file")  # whoever reads it says that it is missing


def test_the_command_line_lists_and_checks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(shipped())
    assert main(["check"]) == 0
    assert capsys.readouterr().out.count("weights and configuration that were measured") == len(PRESENT)
    assert main(["add", str(tmp_path), "mine"]) == 1
    assert capsys.readouterr().err.startswith("error: ") and "mine" not in shipped()


def test_the_document_is_updated_between_its_marks(tmp_path: Path, catalogue: Catalogue) -> None:
    path = tmp_path / "zoo.md"
    path.write_text(f"before\n\n{BEGIN}\n{END}\n\nafter\n")
    add(denoiser_run(tmp_path / "run"), "mine", "A title", catalogue)
    update(path, catalogue)
    update(path, catalogue)
    text = path.read_text()
    assert text.startswith("before\n\n<!--") and text.endswith("-->\n\nafter\n")
    assert text.count("| `mine` | A title | 112 | 0.01 to 0.1 | 3 | 31.00 ± 1.00 | noisy 21.00 |") == 1
    path.write_text("no marks")
    with pytest.raises(ValueError, match="expected the marks"):
        update(path, catalogue)
    assert json.loads(json.dumps(path.read_text())) == "no marks"
