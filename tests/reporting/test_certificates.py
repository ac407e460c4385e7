"""Certificates on screen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from elder.reporting.certificates import CERTIFICATE_FIELDS, print_certificates


@pytest.mark.parametrize("width", [80, 100, 140])
def test_names_and_numbers_fit_in_a_terminal(width: int) -> None:
    names = ["volume.h5/0", "volume.h5/1"]
    numbers = {field: 1.234e-05 * (k + 1) for k, field in enumerate(CERTIFICATE_FIELDS)} | {"curvature": -1.234e-07}
    file = io.StringIO()
    print_certificates(dict.fromkeys(names, numbers), Console(file=file, width=width))
    rows = [line.split() for line in file.getvalue().splitlines() if "volume" in line]
    fields = "curvature", "curvature_error", "lipschitz", "sensitivity", "amplification", "asymmetry", "residual"
    assert "solved: 2 of 2; of these, with a curvature above its Ritz residual" in file.getvalue()
    assert rows == [[name, *(f"{numbers[field]:.3g}" for field in fields)] for name in names]


def test_what_was_not_solved_is_no_minimum() -> None:
    good = dict.fromkeys(CERTIFICATE_FIELDS, 0.1) | {"curvature": 0.5}
    file = io.StringIO()
    print_certificates({"a": good, "b": good | {"solved": 0.0}, "c": good | {"curvature": 0.01}}, Console(file=file))
    assert "solved: 2 of 3; of these" in file.getvalue() and file.getvalue().rstrip().endswith(": 1")
