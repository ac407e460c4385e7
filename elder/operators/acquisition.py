"""From a scene to an inverse problem: image ↦ (A, y = Ax + n), every draw from an explicit generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, TypeVar, final

import torch
from torch import Tensor

from elder.operators.base import LinearOperator
from elder.operators.noise import Generators, Noise

T = TypeVar("T")


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
    setting: Tensor | tuple[int, ...] | int | None = None  # which kernel, mask, noise level of each sample, not drawn


class Acquisition(ABC):
    """Samples an operator and noise: scene ↦ (A, y = Ax + n).

    Randomness is an argument: one CPU generator per sample, and each sample is measured alone. A measurement is
    therefore the same, to the last bit, for any batch size, order, worker and number of processes (between devices,
    to rounding). What A does not measure is exactly zero in y, noise included.
    """

    noise: Noise

    @property
    def n_operators(self) -> int:
        """Of how many kernels, masks, … one is drawn for each scene."""
        return 1

    @final
    @property
    def n_settings(self) -> int:
        """How many pairs of an operator and a noise level there are; `Scene.setting` picks one instead of a draw.

        The levels vary fastest: setting i has operator i // n_levels and level i % n_levels.
        """
        return self.n_operators * self.noise.n_levels

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
        levels = None
        if scene.setting is not None:
            settings = self._settings(scene, len(generators))
            levels = [i % self.noise.n_levels for i in settings]
            scene = scene._replace(setting=tuple(i // self.noise.n_levels for i in settings))
        A = self.operator(scene, generators)
        y, sigma = self.noise(self.measure(A, scene), generators, levels)
        return InverseProblem(A, A.restrict(y), scene.image, sigma)

    def _choose(self, choices: Tensor, scene: Scene, generators: Generators) -> Tensor:
        """Each sample's entry of choices (n_operators, …): (B, …), or all of (1, …), which takes no draw."""
        n = len(choices)
        if n == 1:
            return choices
        if scene.setting is not None:
            return choices[torch.as_tensor(scene.setting)]
        return choices[[int(torch.randint(n, (), generator=g)) for g in generators]]

    def _settings(self, scene: Scene, n_samples: int) -> list[int]:
        settings = torch.as_tensor(scene.setting).expand(n_samples).tolist()
        if not all(0 <= i < self.n_settings for i in settings):
            raise ValueError(
                f"{type(self).__name__}: expected settings from 0 to {self.n_settings - 1}, got {settings}"
            )
        return settings

    def _image(self, scene: Scene) -> Tensor:
        if scene.image is None:
            raise ValueError(
                f"{type(self).__name__}: expected a scene with an image to simulate from, got one without; "
                "use data with ground truth, or an acquisition that takes measured data"
            )
        return scene.image


def listed(name: str, choice: T | list[T]) -> list[T]:
    """What was chosen, one or several, as a list.

    Args:
        name: What is chosen, for the error.
        choice: One, or a list.

    Raises:
        ValueError: If there is none.
    """
    choices = choice if isinstance(choice, list) else [choice]
    if not choices:
        raise ValueError(f"{name}: expected one or a list of at least one, got an empty list")
    return choices
