"""The trained models by name: cards in `weights/index.yaml`, files, and the hashes these must have. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from elder.atomic import replacing

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "Card", "Catalogue", "sha256", "shipped"]

INDEX = "index.yaml"
WEIGHTS = "regularizer.safetensors"  # in the folder of a model as in that of a run
CONFIG = "config.yaml"
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Card:
    """What is known of one model.

    Args:
        name: By which it is loaded.
        title: A line for people.
        task: "denoising" or "reconstruction".
        regularizer: Classes of R, from the outside in.
        problem: The acquisition that it was trained with.
        noise: Least and greatest noise level of its training, in the units of y; None: not Gaussian.
        channels: Real channels of its images (a complex one counts as two); None: any.
        parameters: How many numbers R has.
        seed: Of its training.
        data: Where its training and test images come from.
        command: That trains it.
        code: Commit that it was trained with, where the run has recorded it.
        results: By method, of its test: number of images, and of measurements where these are more, mean and standard
            deviation over images of the PSNR in dB, SSIM, evaluations of ∇R and seconds per measurement.
        bytes: Size of the weights.
        sha256: By file. Empty for weights that do not ship, which `command` makes.
    """

    name: str
    title: str
    task: str
    regularizer: str
    problem: str
    parameters: int
    seed: int
    data: str
    command: str
    noise: tuple[float, float] | None = None
    channels: int | None = None
    code: str | None = None
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    bytes: int | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def ships(self) -> bool:
        """Whether its weights are part of the package."""
        return bool(self.sha256)


class Catalogue(Mapping[str, Card]):
    """The cards of a folder of models, by name.

    Args:
        folder: Holds `index.yaml`, and the files of each model in a folder of its name.

    Without an index there are none.

    Raises:
        ValueError: If the index holds what is no card.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / INDEX
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._cards = {name: _card(name, entry, path) for name, entry in content.items()}

    def __getitem__(self, name: str) -> Card:
        return self._cards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def files(self, name: str) -> Path:
        """The folder of a model, whose files are what the index says.

        Raises:
            ValueError: If the name is unknown, or a file was damaged or altered.
            FileNotFoundError: If a file is missing, as before a model that does not ship has been trained.
        """
        if name not in self:
            raise ValueError(self.unknown(name))
        card, folder = self[name], self.folder / name
        for file in (WEIGHTS, CONFIG):
            path = folder / file
            if not path.is_file():
                advice = "install again" if card.ships else f"its weights do not ship; make them with `{card.command}`"
                raise FileNotFoundError(f"{path}: expected a file of the model {name}, found none; {advice}")
            expected, found = card.sha256.get(file), sha256(path)
            if expected is not None and found != expected:
                raise ValueError(
                    f"{path}: expected the SHA-256 {expected[:16]}…, got {found[:16]}…: the file was damaged or "
                    "altered since it was measured; restore it, or add the model again"
                )
        return folder

    def unknown(self, name: str) -> str:
        """What to tell who asks for a model that there is not."""
        similar = get_close_matches(name, self, n=1)
        guess = f"did you mean {similar[0]}? There are" if similar else "there are"
        known = ", ".join(self) or f"none in {self.folder}"
        return f"expected the name of a trained model or a path, got {name}; {guess} {known}"

    def locate(self, path: str) -> Path:
        """The weights of a model by its name; anything else is a path."""
        return self.folder / path / WEIGHTS if path in self else Path(path)

    def save(self, card: Card) -> None:
        """Write one card into the index, in place of one of that name."""
        entries = {**self._cards, card.name: card}
        header = "# The trained models, written by `python main.py zoo add RUN NAME`; docs/zoo.md explains them.\n"
        content = {name: _entry(entries[name]) for name in sorted(entries)}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        with replacing(self.folder / INDEX) as part:
            part.write_text(header + text, encoding="utf-8")
        self._cards = {name: entries[name] for name in sorted(entries)}


@cache
def shipped() -> Catalogue:
    """The models of this installation: inside the package where that was built, beside it in the repository."""
    inside, beside = _PACKAGE / "weights", _PACKAGE.parent / "weights"
    return Catalogue(inside if (inside / INDEX).is_file() else beside)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(name: str, entry: Any, path: Path) -> Card:
    known = {one.name for one in fields(Card)} - {"name"}
    if not isinstance(entry, dict) or (wrong := entry.keys() - known):
        found = ", ".join(map(str, wrong)) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{path}: {name}: expected {', '.join(sorted(known))}, got {found}; correct the index")
    try:
        card = Card(name, **entry)
    except TypeError as error:
        raise ValueError(f"{path}: {name}: {error}; complete the index") from None
    return card if card.noise is None else replace(card, noise=tuple(card.noise))


def _entry(card: Card) -> dict[str, Any]:
    """A card as plain values, without its name and without what it does not have."""
    found = {key: value for key, value in asdict(card).items() if key != "name" and value not in (None, {})}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
