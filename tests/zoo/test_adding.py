"""A run becomes a model of the zoo that is the run, without what belongs to one machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml

from elder.metrics import LEARNED
from elder.models.catalogue import CONFIG, WEIGHTS, Catalogue, sha256
from elder.models.regularizers import Ridge
from elder.models.weights import read_about, write_prior
from elder.operators import Identity, Mask
from elder.reporting.metrics_file import STEPS_KEPT, read_lines
from elder.reporting.tables import Result, write_results
from elder.zoo.adding import SIZE_LIMIT, add
from elder.zoo.document import table
from elder.zoo.loading import load
from tests.zoo.runs import WIDTHS, denoiser_run, reconstruction_run, tiny


def test_a_run_becomes_a_model_that_is_the_run(tmp_path: Path, catalogue: Catalogue) -> None:
    run = reconstruction_run(tmp_path / "run", strength=0.02)
    card = add(run, "mine", "A title", catalogue)
    a, b = load(run), load("mine", Catalogue(catalogue.folder))
    y, A = tiny(1), Identity()
    assert torch.equal(a(y, A), b(y, A))
    assert b.reconstruction is not None and b.reconstruction.strength.item() == pytest.approx(0.02)  # not the start
    assert (card.title, card.task, card.seed, card.parameters) == ("A title", "reconstruction", 3, a.card.parameters)
    assert card.noise == (0.01, 0.1) and card.channels is None and card.data == "Images(train=data/x)"
    assert card.results["noisy"]["psnr"] == 21 and card.results[LEARNED] == {
        **{"images": 3, "psnr": 31.0, "psnr_sd": 1.0, "ssim": 0.5, "gradients": 10.0, "seconds": 0.1}
    }
    assert card.sha256 == {file: sha256(catalogue.folder / "mine" / file) for file in (WEIGHTS, CONFIG)}
    assert Catalogue(catalogue.folder)["mine"] == card
    written = "".join(
        path.read_text() for path in (catalogue.folder / "mine").iterdir() if path.suffix != ".safetensors"
    )
    assert not any(secret in written for secret in ("wandb", "/a/b", "/secret", str(tmp_path)))
    log = read_lines(catalogue.folder / "mine" / "metrics.jsonl")
    assert sum("train/loss" in line for line in log) == STEPS_KEPT and log[-1] == {"step": 600, "val/psnr": 30.0}
    assert add(run, "mine", None, catalogue).title == "A title"  # kept when it is added again
    assert len(catalogue) == 1


def test_an_image_that_is_measured_with_several_settings_counts_once(tmp_path: Path, catalogue: Catalogue) -> None:
    run = denoiser_run(tmp_path / "run")
    psnr = {"a.png/0": 20.0, "a.png/1": 30.0, "b.png/0": 22.0, "b.png/1": 32.0}
    write_results(run / "results.csv", [Result(LEARNED, name, x, 0.5, 1e-3, 10, 0.1) for name, x in psnr.items()])
    results = add(run, "mine", None, catalogue).results[LEARNED]
    assert [results[key] for key in ("images", "measurements", "psnr", "psnr_sd")] == [2, 4, 26.0, 1.41]
    assert "| 2 (4) | 26.00 ± 1.41 |" in table(catalogue)


def test_the_solution_is_that_of_the_reconstruction_and_differentiable_on_request(tmp_path: Path) -> None:
    model = load(reconstruction_run(tmp_path / "run", strength=0.02))
    y, A = tiny(1), Mask(tiny(1) < 0.8)
    solution = model.solve(A(y), A)
    assert solution.converged.all() and (solution.residual <= 1e-3).all()
    model.requires_grad_()
    model(A(y), A).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_was_tuned_after_training_is_what_is_loaded(tmp_path: Path, catalogue: Catalogue) -> None:
    run = reconstruction_run(tmp_path / "run", strength=0.02)
    other = Ridge(**WIDTHS)  # as after a tuning of the scale
    write_prior(run / "tuned.safetensors", other, {})
    arguments = {"pretrained": str(run / "tuned.safetensors"), "reconstruction": {"strength": 0.07}}
    (run / "tuned.yaml").write_text(yaml.safe_dump({"model": {"init_args": arguments}}))
    os.utime(run / "tuned.yaml", (1, 1))  # before the test
    add(run, "mine", None, catalogue)
    for model in (load(run), load("mine", catalogue)):
        assert model.reconstruction is not None and model.reconstruction.strength.item() == pytest.approx(0.07)
        assert all(torch.equal(a, b) for a, b in zip(model.prior.parameters(), other.parameters(), strict=True))
    assert read_about(catalogue.folder / "mine" / WEIGHTS)["strength"] == pytest.approx(0.07)
    (run / "tuned.yaml").touch()
    later = (run / "results.csv").stat().st_mtime + 5
    os.utime(run / "tuned.yaml", (later, later))
    with pytest.raises(ValueError, match="expected results of these weights, got older ones; test the run again"):
        add(run, "mine", None, catalogue)


def test_a_reconstruction_starts_from_weights_that_have_a_name(
    tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, first = (reconstruction_run(tmp_path / name, strength=1.0) for name in ("other", "first"))
    second = reconstruction_run(tmp_path / "second", str(first / WEIGHTS), strength=1.0)
    add(other, "other", None, catalogue)
    with pytest.raises(ValueError, match=r"expected a run that starts from weights of the zoo, .*add those first"):
        add(second, "second", None, catalogue)
    assert set(catalogue) == {"other"} and not (catalogue.folder / "second").exists()
    add(first, "first", None, catalogue)
    add(second, "second", None, catalogue)
    config = yaml.safe_load((catalogue.folder / "second" / CONFIG).read_text())
    assert config["model"]["init_args"]["pretrained"] == "first"


def test_paths_become_those_of_the_repository_or_are_refused(
    tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, far = tmp_path / "repository", tmp_path / "far"
    here.mkdir()
    (far / "bsd").mkdir(parents=True)
    (here / "data").symlink_to(far)
    monkeypatch.chdir(here)
    run = reconstruction_run(here / "run", strength=1.0)
    config = yaml.safe_load((run / CONFIG).read_text())
    for given, expected in ((far / "bsd", "data/bsd"), (here / "x" / "y", "x/y"), (here / "data" / "bsd", "data/bsd")):
        config["data"]["init_args"]["train"] = str(given)
        (run / CONFIG).write_text(yaml.safe_dump(config))
        add(run, "mine", None, catalogue)
        written = yaml.safe_load((catalogue.folder / "mine" / CONFIG).read_text())
        assert written["data"]["init_args"]["train"] == expected
    config["data"]["init_args"]["train"] = "/elsewhere"
    (run / CONFIG).write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"expected paths below .*, got /elsewhere; train from a link there"):
        add(run, "mine", None, catalogue)


def test_large_weights_stay_out_and_say_how_they_are_made(
    tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elder.zoo.adding.SIZE_LIMIT", 100)
    assert SIZE_LIMIT == 5 << 20
    card = add(denoiser_run(tmp_path / "run"), "large", None, catalogue)
    assert not card.ships and (catalogue.folder / "large" / ".gitignore").read_text() == f"{WEIGHTS}\n"
    assert load("large", catalogue).card == card  # on the machine where it was made
    (catalogue.folder / "large" / WEIGHTS).unlink()
    command = "python main.py fit --config weights/large/config.yaml --run_dir weights/large"
    with pytest.raises(FileNotFoundError, match=f"its weights do not ship; make them with `{command}`"):
        load("large", catalogue)
    assert f"not shipped, made by `{command}`" in table(catalogue)


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG, "metrics.jsonl", "results.csv"])
def test_an_unfinished_run_is_refused(tmp_path: Path, catalogue: Catalogue, file: str) -> None:
    run = denoiser_run(tmp_path / "run")
    (run / file).unlink()
    advice = "test" if file == "results.csv" else "train"
    with pytest.raises(FileNotFoundError, match=rf"{file}: .*found none; {advice} the run first"):
        add(run, "mine", None, catalogue)
    assert not catalogue.folder.exists()


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "a.b", "_a"])
def test_a_name_is_a_word(tmp_path: Path, catalogue: Catalogue, name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of lower-case letters"):
        add(tmp_path, name, None, catalogue)
