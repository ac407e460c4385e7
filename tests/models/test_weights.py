"""Weights survive a file; what is damaged, foreign or hostile is refused in one line, and nothing is run."""

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors
import torch

from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Regularizer, Residual, Ridge, Scaled, TotalVariation
from elder.models.weights import check_weights, read_prior, warn_of_scalars, write_prior

PRIORS = {
    "ridge": Ridge,
    "residual": lambda: Residual(DnCNN(1, 4, 2, noise_map=True)),
    "scaled": lambda: Scaled(Residual(DnCNN(2, 4, 1)), 2.0),
    "total-variation": TotalVariation,
}


def checkpoint(path: Path, prior: Regularizer, prefix: str = "reconstruction.prior.", **more: object) -> Path:
    state = {f"{prefix}{name}": tensor for name, tensor in prior.state_dict().items()}
    torch.save({"state_dict": {**state, "reconstruction.log_strength": torch.zeros(())}, **more}, path)
    return path


@pytest.mark.parametrize("prior", PRIORS)
def test_safetensors_round_trip(tmp_path, prior):
    written, read, path = PRIORS[prior](), PRIORS[prior](), tmp_path / "prior.safetensors"
    write_prior(path, written, {"psnr": 31.4, "config": Path("a.yaml")})
    weights = read_prior(path)
    check_weights(read, weights, "test")
    read.load_state_dict(weights, strict=True)
    assert read.state_dict().keys() == written.state_dict().keys()
    assert all(torch.equal(read.state_dict()[k], v) for k, v in written.state_dict().items())
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["about"]) == {"psnr": 31.4, "config": "a.yaml"}
    assert os.listdir(tmp_path) == ["prior.safetensors"], "no half-written file is left"  # noqa: PTH208


@pytest.mark.parametrize("prefix", ["denoiser.regularizer.", "reconstruction.prior."])
def test_checkpoint_of_either_module_holds_the_prior(tmp_path, prefix):
    prior = PRIORS["residual"]()
    weights = read_prior(checkpoint(tmp_path / "a.ckpt", prior, prefix, epoch=3))
    assert weights.keys() == prior.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in prior.state_dict().items())


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["archive", "legacy", "pickle"])
def test_pickle_that_would_run_code_is_refused_without_running_it(tmp_path, form):
    path, trace = tmp_path / "hostile.ckpt", tmp_path / "trace"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": _Hostile(trace)}, protocol=2))
    else:
        content = {"state_dict": PRIORS["ridge"]().state_dict(), "extra": _Hostile(trace)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    with pytest.raises(ValueError, match="could run code; none was run") as error:
        read_prior(path)
    assert not trace.exists()
    assert str(path) in str(error.value) and "\n" not in str(error.value) and "weights_only" not in str(error.value)
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists(), "the trap works"


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused_in_one_line(tmp_path, suffix, fraction):
    path = tmp_path / f"prior{suffix}"
    checkpoint(path, Ridge()) if suffix == ".ckpt" else write_prior(path, Ridge(), {})
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match="damaged") as error:
        read_prior(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.ckpt", "missing.safetensors", "."])
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"expected weights of a prior .*, found no file"):
        read_prior(tmp_path / name)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"model": {}, "epoch": 1}, "found dict of model, epoch"),
        (torch.ones(3), "found Tensor"),
        ({"state_dict": 3}, "found dict of state_dict"),
        ({"state_dict": {"reconstruction.prior.a": "no tensor"}}, "expected .* tensors in its state_dict"),
        ({"state_dict": {}}, r"expected a prior under .*, found no tensors"),
        ({"state_dict": {"net.weight": torch.ones(1)}}, r"expected a prior under .*, found net\.weight"),
    ],
)
def test_foreign_checkpoint_is_refused_in_words(tmp_path, content, found):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=found):
        read_prior(tmp_path / "a.ckpt")


def test_other_architecture_is_refused_by_its_first_differing_tensor():
    narrow, wide, deep = (Residual(DnCNN(1, *size)) for size in ((4, 2), (6, 2), (4, 3)))
    check_weights(narrow, Residual(DnCNN(1, 4, 2)).state_dict(), "run.ckpt")
    expected = (
        r"run\.ckpt: .* configured Residual: expected network\.hidden\.0\.bias \(4,\), found \(6,\); use the config"
    )
    with pytest.raises(ValueError, match=expected):
        check_weights(narrow, wide.state_dict(), "run.ckpt")
    with pytest.raises(ValueError, match=r"expected network\.hidden\.2\.bias absent, found \(4,\)"):
        check_weights(narrow, deep.state_dict(), "run.ckpt")
    with pytest.raises(ValueError, match=r"expected network\.hidden\.2\.bias \(4,\), found absent"):
        check_weights(deep, narrow.state_dict(), "run.ckpt")


def test_weights_that_were_learned_with_another_strength_are_warned_of(tmp_path, recwarn):
    path, prior = tmp_path / "regularizer.safetensors", Ridge()
    write_prior(path, prior, {"strength": 3.55, "sigma_factor": 0.5})
    message = (
        r"regularizer.safetensors: these weights were learned with strength 3.55, sigma_factor 0.5; .* has strength "
        r"0.1, sigma_factor 0.5, and keeps it. .*: --model.reconstruction.strength 3.55 --model.reconstruction.sigma_f"
    )
    with pytest.warns(UserWarning, match=message):
        warn_of_scalars(Reconstruction(prior, sigma_factor=0.5), path)
    warn_of_scalars(Reconstruction(prior, strength=3.55, sigma_factor=0.5), path)
    write_prior(path, prior, {"noise": [0.0, 0.2]})  # of a denoiser, which has neither
    warn_of_scalars(Reconstruction(prior), path)
    warn_of_scalars(Reconstruction(prior), checkpoint(tmp_path / "last.ckpt", prior))
    assert not recwarn
