"""What is not as it was measured is refused, and so is a call that does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import elder
from elder.models.catalogue import CONFIG, INDEX, WEIGHTS, Catalogue
from elder.models.weights import find_weights
from elder.operators import ComplexImage, Identity, Mask, RealSampling, single_coil
from elder.zoo.adding import add
from elder.zoo.loading import load
from tests.zoo.runs import denoiser_run, reconstruction_run, tiny


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_an_altered_file_is_refused(tmp_path: Path, catalogue: Catalogue, file: str) -> None:
    add(denoiser_run(tmp_path / "run"), "mine", None, catalogue)
    path = catalogue.folder / "mine" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # a bit of the last weight
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}: expected the SHA-256 .*…, got .*damaged or altered"):
        load("mine", catalogue)
    with pytest.raises(ValueError, match="damaged or altered"):
        load(path.parent, catalogue)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}: expected a file of the model mine, .*; install again"):
        load("mine", catalogue)


def test_code_that_has_drifted_away_from_a_model_is_noticed(tmp_path: Path) -> None:
    run = denoiser_run(tmp_path / "run")
    config = yaml.safe_load((run / CONFIG).read_text())
    network = config["model"]["init_args"]["regularizer"]["init_args"]["network"]["init_args"]
    for change, message in (
        ({"features": 5}, r"another architecture than the configured Residual: expected network\..* \(5,"),
        ({"colour": 1}, r"expected what this version of elder understands, got .*colour.*use the version that wrote"),
    ):
        network.update(change)
        (run / CONFIG).write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=message):
            load(run)
    (run / CONFIG).write_text("model: 3")
    with pytest.raises(ValueError, match="expected the configuration of a reconstruction or a denoiser, found neither"):
        load(run)


def test_weights_without_their_strength_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the strength that was learned with the weights, found nothing"):
        load(reconstruction_run(tmp_path / "run"))


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"or a path, got mri_wccr; did you mean mri_wcrr\? There are .*mri_wcrr, "):
        elder.load("mri_wccr")
    with pytest.raises(ValueError, match="got mri_wcc; did you mean"):
        find_weights("mri_wcc")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"heading": "a"}, "mine: expected .*title.*, got heading"),
        (3, "mine: expected .*, got int"),
        ({"title": "a"}, "mine: .*missing .*required .*complete the index"),
    ],
)
def test_a_mistake_in_the_index_is_named(tmp_path: Path, entry: object, message: str) -> None:
    (tmp_path / INDEX).write_text(yaml.safe_dump({"mine": entry}))
    with pytest.raises(ValueError, match=message):
        Catalogue(tmp_path)


def test_a_denoiser_denoises(tmp_path: Path) -> None:
    model, y = load(denoiser_run(tmp_path / "run")), tiny(1)
    assert model.card.task == "denoising" and model.card.channels == 1 and model.card.noise == (0.01, 0.1)
    expected = y - model.prior.grad(y, torch.tensor([0.05]))
    assert torch.equal(model(y, sigma=0.05), expected) and torch.equal(model.denoiser(y, torch.tensor(0.05)), expected)
    with pytest.raises(ValueError, match="run is a denoiser: expected a call with noisy images alone, got an"):
        model(y, Identity())


def test_noise_beyond_that_of_training_is_said_once(tmp_path: Path) -> None:
    model = load(denoiser_run(tmp_path / "run"))
    with pytest.warns(UserWarning, match="run: trained for noise levels 0.01 to 0.1, given 0.2") as caught:
        model(tiny(1), sigma=0.2)
    assert len(caught) == 1
    model(tiny(1), sigma=0.1)  # in single precision, as above: the end of the range is inside
    with pytest.warns(UserWarning, match="given 0.001"):
        model(tiny(1), sigma=torch.tensor([0.001]))


@pytest.mark.parametrize(
    ("y", "A", "error", "message"),
    [
        (tiny(1), None, TypeError, "mri_wcrr reconstructs: .*got no A; call it with"),
        (tiny(1), torch.nn.Identity(), TypeError, "got Identity; call it with"),
        (tiny(1).numpy(), Identity(), TypeError, r"expected a torch.Tensor \(B, …\), got ndarray; torch.as_tensor"),
        (tiny(1)[:0], Identity(), ValueError, r"expected at least one sample, .*got none: \(0, 1, 16, 16\)"),
        (tiny(3), Identity(), ValueError, r"with 1 real channels, .*got \(1, 3, 16, 16\) torch.float32; take a model"),
        (tiny(2), Identity(), ValueError, r"got \(1, 1, 16, 16\) torch.complex64; make its images real with A @ Comp"),
        (tiny(1)[0], Identity(), ValueError, r"expected images \(B, C, H, W\)"),
        (tiny(1) * torch.nan, Identity(), ValueError, "expected finite measurements, got NaN or infinity"),
        (tiny(1).double(), Identity(), ValueError, "expected images of the precision of the model, torch.float32, got"),
        (tiny(1), single_coil(torch.ones(1, 1, 1, 9) > 0) @ ComplexImage(), ValueError, r"Mask: expected .*9"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_words(y, A, error, message) -> None:
    with pytest.raises(error, match=message):
        elder.load("mri_wcrr")(y, A)


def test_a_solve_that_falls_short_is_told() -> None:
    model = elder.load("mri_wcrr")
    model.reconstruction.solver = replace(model.reconstruction.solver, max_steps=2)  # type: ignore[union-attr]
    y, missing = torch.rand(2, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    A = Mask(missing < 0.5)
    with pytest.warns(UserWarning, match=r"mri_wcrr: 2 of 2 solves fell short of their tolerance 1\.0e-03: residual"):
        model(A(y), A, sigma=0.005)
    assert not model.solve(A(y), A, sigma=0.005).converged.any()


def test_a_mask_without_zero_frequency_is_warned_of() -> None:
    """Of one sample, when the operator is made, and when a model is given it; and any other that loses the mean."""
    mask = torch.ones(2, 1, 16, 16) > 0
    mask[1, :, 8, 8] = False
    model = elder.load("mri_wcrr")
    model.reconstruction.solver = replace(model.reconstruction.solver, max_steps=1, tol=0.0)  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match=r"single_coil: the mask \(2, 1, 16, 16\) leaves out zero frequency, at"):
        A = RealSampling(mask)
    y = A(tiny(1).expand(2, -1, -1, -1))
    with pytest.warns(UserWarning, match=r"mri_wcrr: A makes nothing of a constant image, .* measure it .*\(H // 2"):
        model(y, A)
    with pytest.warns(UserWarning, match="mri_wcrr: A makes nothing of a constant image"):
        model(tiny(1), Mask(torch.zeros(1, 1, 16, 16)))


def test_an_image_of_another_scale_is_warned_of() -> None:
    y = 255 * tiny(1)
    with pytest.warns(UserWarning, match=r"mri_wcrr_denoiser: learned from images in \[0, 1\], .* up to 2\d\d; divide"):
        elder.load("mri_wcrr_denoiser")(y, sigma=0.03)
    with pytest.warns(UserWarning, match=r"mri_wcrr: learned from images in \[0, 1\]"):
        elder.load("mri_wcrr").solve(y, Identity())


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (tiny(1).numpy(), TypeError, r"got ndarray; torch.as_tensor"),
        (tiny(1)[:0], ValueError, r"expected at least one sample"),
    ],
)
def test_a_denoiser_wants_a_batch_of_images(y, error, message) -> None:
    with pytest.raises(error, match=f"mri_wcrr_denoiser: .*{message}"):
        elder.load("mri_wcrr_denoiser")(y, sigma=0.03)


def test_noise_levels_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected sigma to be one number, or one for each of 2 samples, got \(3,\)"):
        elder.load("mri_wcrr_denoiser")(torch.zeros(2, 1, 8, 8), sigma=torch.ones(3))


def test_a_model_that_is_told_the_noise_level_asks_for_it() -> None:
    with pytest.raises(ValueError, match=r"gray_wcrr_small is told the noise level of y: .* got none; call model\(y"):
        elder.load("gray_wcrr_small")(tiny(1), Identity())
    with pytest.raises(ValueError, match=r"expected a noise level .* call the denoiser with \(y, sigma=…\)"):
        elder.load("gray_wcrr_small_denoiser")(tiny(1))


def test_a_negative_noise_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mri_wcrr_denoiser: expected sigma >= 0, in the units of y, got \[-0\.1"):
        elder.load("mri_wcrr_denoiser")(torch.zeros(1, 1, 8, 8), sigma=-0.1)
