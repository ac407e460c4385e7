"""From a scene to an inverse problem: image ↦ (A, y = Ax + n), every draw from an explicit generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from elder.operators.base import LinearOperator
from elder.operators.noise import Generators, Noise


class InverseProblem(NamedTuple):
    """A batch of problems y = Ax + n; a named tuple, so that Lightning can move it between devices."""

    A: LinearOperator
    y: Tensor  # (B, …)
    x: Tensor | None = None  # ground truth (B, C, H, W), where known
    sigma: Tensor | None = None  # standard deviation of the noise that was added, (B,), in the units of y


class Scene(NamedTuple):
    """What a data set knows of one object, or of a batch of them.

    Simulated measurements need the image alone; measured ones come with their k-space. Shapes are those of a
    batch; a data set's single scene lacks the leading axis.
    """

    image: Tensor | None  # ground truth, (B, C, H, W), real or complex
    kspace: Tensor | None = None  # measured k-space, (B, coils, H, W) complex, DC in the centre
    maps: Tensor | None = None  # coil sensitivities, (B, coils, H, W) complex, Σ|S|² = 1 where there is signal
    mask: Tensor | None = None  # sampling already applied to kspace, (B, 1, 1, W) bool
    volume: tuple[str, ...] | None = None  # file name of each sample's volume, where masks may be fixed by it


class Acquisition(ABC):
    """Samples an operator and noise: scene ↦ (A, y = Ax + n).

    Randomness is an argument: one CPU generator per sample, and each sample is measured alone. A measurement is
    therefore the same, to the last bit, for any batch size, order, worker and number of processes (between devices,
    to rounding). What A does not measure is exactly zero in y, noise included.
    """

    noise: Noise

    @abstractmethod
    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        """Draw A for every sample."""

    def measure(self, A: LinearOperator, scene: Scene) -> Tensor:
        """Noise-free measurements: simulated from the image, unless the acquisition takes them from the scene."""
        image = self._image(scene)
        # One by one: vectorised arithmetic rounds by position, so the last bit would depend on the batch.
        samples = torch.arange(len(image), device=image.device).split(1)
        return torch.cat([A.select(i)(image[i]) for i in samples])

    def __call__(self, scene: Scene, generators: Generators) -> InverseProblem:
        """Draw A, then the noise, each sample from its own generator.

        Args:
            scene: A batch of B scenes.
            generators: B CPU generators.
        """
        A = self.operator(scene, generators)
        y, sigma = self.noise(self.measure(A, scene), generators)
        return InverseProblem(A, A.restrict(y), scene.image, sigma)

    def _image(self, scene: Scene) -> Tensor:
        if scene.image is None:
            raise ValueError(
                f"{type(self).__name__}: expected a scene with an image to simulate from, got one without; "
                "use data with ground truth, or an acquisition that takes measured data"
            )
        return scene.image
