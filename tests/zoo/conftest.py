"""What tests of models share."""

from pathlib import Path

import pytest

from elder.models.catalogue import Catalogue


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "weights")
