"""The inverse problems, regularizers and strengths that everything is measured on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.nn import functional

import elder.models.regularizers  # noqa: F401 - the names that configurations use
from elder.datamodules.bundled import VOLUMES
from elder.models import tuning
from elder.models.evaluation import Evaluation
from elder.models.networks import DnCNN
from elder.models.objective import Objective
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Regularizer, Residual
from elder.models.weights import check_weights, read_prior
from elder.operators import (
    Acquisition,
    CartesianMRI,
    Deblurring,
    Denoising,
    Gaussian,
    GaussianKernel,
    Inpainting,
    InverseProblem,
    RandomMask,
    Scene,
)
from elder.solvers import BackwardRule, Solver

FOLDER = Path(__file__).parent

ACQUISITIONS: dict[str, Acquisition] = {
    "denoising": Denoising(Gaussian(0.1)),
    "deblurring": Deblurring(GaussianKernel(15, 1.6), Gaussian(0.01)),
    "mri": CartesianMRI(RandomMask([0.08], [4]), Gaussian(0.005)),
    "inpainting": Inpainting(0.5, Gaussian(0.02)),
}
REGULARIZERS = ("wcrr", "dncnn", "drunet")

#: λ of every problem and regularizer: the best PSNR on the validation slices, found by `python -m benchmarks tune`.
STRENGTHS: dict[str, dict[str, float]] = {
    "denoising": {"wcrr": 1.7, "dncnn": 1.3, "drunet": 1.9},
    "deblurring": {"wcrr": 0.014, "dncnn": 0.01, "drunet": 0.012},
    "mri": {"wcrr": 0.012, "dncnn": 0.0043, "drunet": 0.017},
    "inpainting": {"wcrr": 0.0066, "dncnn": 0.0025, "drunet": 0.0048},
}


@dataclass(frozen=True)
class Case:
    """One batch of inverse problems, its ground truth and a regularizer: what every method is given.

    Args:
        name: "problem/regularizer".
        acquisition: How the images are measured.
        images: Ground truth, (B, 1, H, W), in [0, 1].
        prior: R_θ.
        strength: λ.
        seed: Seed of operators and noise.
    """

    name: str
    acquisition: Acquisition
    images: Tensor
    prior: Regularizer
    strength: float
    seed: int = 0
    problem: InverseProblem = field(init=False)

    def __post_init__(self) -> None:
        generators = [torch.Generator().manual_seed(1000 * self.seed + i) for i in range(len(self.images))]
        object.__setattr__(self, "problem", self.acquisition(Scene(self.images), generators))

    @property
    def x0(self) -> Tensor:
        """The start of every solver, A.initialize(y)."""
        return self.problem.A.initialize(self.problem.y)

    def double(self) -> Case:
        """The same case in double precision, with a copy of the regularizer; operator and noise are the same draws."""
        return replace(self, images=self.images.double(), prior=copy.deepcopy(self.prior).double())

    def reconstruction(
        self, solver: Solver | None = None, rule: BackwardRule | None = None, evaluation: Evaluation | None = None
    ) -> Reconstruction:
        """The trainable reconstruction; it shares the regularizer."""
        made = Reconstruction(self.prior, solver, rule, strength=self.strength, evaluation=evaluation)
        return made.to(self.images.dtype)

    def objective(self) -> Objective:
        """f, with parameters detached from any graph but their own."""
        return self.reconstruction().objective(self.problem)

    def loss(self, x: Tensor) -> Tensor:
        """The mean squared error, as training has it."""
        return (x - self.images).square().mean()


def images(split: str, size: int = 64) -> Tensor:
    """Central crops of the bundled MRI slices, (N, 1, size, size), in units of their volume's maximum.

    Slices that are too small are mirrored at their borders first.
    """
    crops = []
    for name, *_, read in VOLUMES:
        if name == split:
            volume = read()
            margins = [max(0, size - n + 1) // 2 for n in volume.shape[-2:]]
            volume = functional.pad(volume[:, None], (margins[1],) * 2 + (margins[0],) * 2, mode="reflect")[:, 0]
            top, left = ((n - size) // 2 for n in volume.shape[-2:])
            crops.append((volume / volume.max())[:, None, top : top + size, left : left + size])
    return torch.cat(crops)


def regularizer(name: str) -> Regularizer:
    """The regularizer of benchmarks/configs/<name>.yaml with its weights in benchmarks/weights/<name>."""
    config = yaml.safe_load((FOLDER / "configs" / f"{name}.yaml").read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--regularizer", type=Regularizer)
    parsed = parser.parse_object({"regularizer": config["model"]["init_args"]["regularizer"]})
    prior = parser.instantiate_classes(parsed).regularizer
    path = FOLDER / "weights" / name / "regularizer.safetensors"
    weights = read_prior(path)
    check_weights(prior, weights, str(path))
    prior.load_state_dict(weights)
    return prior


def plain_value(prior: Regularizer, x: Tensor) -> Tensor:
    """R(x), (B,), by PyTorch's own functions: the library's networks have activations made for their pullback."""
    if isinstance(prior, Residual) and isinstance(prior.network, DnCNN):
        u = x
        for layer in prior.network.hidden:
            u = functional.elu(layer(u))
        return 0.5 * (x - prior.network.output(u)).square().flatten(1).sum(1)
    return prior.value(x)


def make_case(problem: str, prior: str, size: int, batch: int) -> Case:
    """The test images of one problem with one regularizer: `batch` of them, evenly spaced."""
    test = images("test", size)
    chosen = torch.linspace(0, len(test) - 1, batch).round().long()
    return Case(
        f"{problem}/{prior}", ACQUISITIONS[problem], test[chosen], regularizer(prior), STRENGTHS[problem][prior]
    )


def bed(gain: float = 1.0) -> Case:
    """The setting of published comparisons: untrained 6-layer DnCNN, blur of one pixel, λ = 0.3, four 64×64 images.

    Args:
        gain: Factor of all weights: the larger, the worse the problem is conditioned.
    """
    torch.manual_seed(0)
    test = images("test", 64)[:4]
    prior = Residual(DnCNN(channels=1, features=32, depth=5))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(gain)
    return Case("bed", Deblurring(GaussianKernel(9, 1.0), Gaussian(0.01)), test, prior, strength=0.3)


def tune(problems: Sequence[str], priors: Sequence[str], report: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """λ of the highest mean PSNR on the validation slices; the test slices are not looked at."""
    found: dict[str, dict[str, float]] = {}
    for problem in problems:
        for prior in priors:
            start = STRENGTHS[problem][prior]
            case = Case(f"{problem}/{prior}", ACQUISITIONS[problem], images("val"), regularizer(prior), start)
            best = tuning.tune(case.reconstruction(), [case.problem], tolerance=0.1)
            strength = best.values["strength"]
            found.setdefault(problem, {})[prior] = float(f"{strength:.2g}")
            report(f"{case.name}: λ = {strength:.2g}, {best.psnr:.2f} dB")
    return found
