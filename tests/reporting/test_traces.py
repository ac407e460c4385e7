"""Traces for people: nothing that is not known is shown as a number, and rises of f are counted."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from elder.models.tracing import Trace
from elder.reporting.traces import TRACE_FIELDS, _curve, draw_traces, print_traces, write_traces

NAN = math.nan
EXPLICIT = {
    "a": Trace([1, 3], [2.0, 1.0], [1.0, 0.1], [NAN, 0.5], [20.0, 21.5], 0, 4, True),
    "b": Trace([1, 2, 3], [5.0, 4.0, 4.5], [1.0, 0.5, 0.2], [NAN, 1.0, 0.25], [10.0, 11.0, 12.25], 1, 3, False),
}
IMPLICIT = {"a": Trace([1, 2], [NAN, NAN], [1.0, 0.01], [NAN, NAN], [NAN, NAN], 0, 2, True)}
TRACES = {"LBFGS": EXPLICIT, "Picard": IMPLICIT}


def test_a_line_for_each_iterate(tmp_path: Path) -> None:
    write_traces(tmp_path / "trace.csv", TRACES)
    with (tmp_path / "trace.csv").open() as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == TRACE_FIELDS and len(lines) == 7
    assert lines[1] == ["a", "LBFGS", "1", "3", "1.0", "0.1", "0.5", "21.5"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]


def test_the_table_says_what_each_image_came_to() -> None:
    console = Console(width=80, file=io.StringIO())
    print_traces(TRACES, console)
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]
    assert ["a", "1", "1.0e-01", "0.5", "0.5", "4", "21.50", "0"] in lines
    assert ["b", "4.5", "2.0e-01*", "0.25", "0.25", "3", "12.25", "1"] in lines
    assert ["a", "–", "1.0e-02", "–", "–", "2", "–", "–"] in lines
    assert ["LBFGS:", "f", "rose", "beyond", "rounding", "in", "1", "of", "3", "steps"] in lines
    assert sum("rose" in line for line in lines) == 1 and sum("short" in line for line in lines) == 1


def test_curves_are_of_the_excess_over_the_lowest_value_found(tmp_path: Path) -> None:
    other = {"a": Trace([1, 2], [2.0, 0.5], [1.0, 0.1], [NAN, 1.0], [20.0, 22.0], 0, 2, True)}
    traces = {"LBFGS": EXPLICIT, "FISTA": other, "Picard": IMPLICIT}
    gradients, values = _curve("objective", "a", EXPLICIT["a"], traces)
    np.testing.assert_array_equal(gradients, [1, 3])
    np.testing.assert_allclose(values, [1.5, 0.5])
    np.testing.assert_allclose(_curve("objective", "a", other["a"], traces)[1], [1.5, NAN])  # its logarithm is none
    assert np.isnan(_curve("objective", "a", IMPLICIT["a"], traces)[1]).all()
    for some in (traces, {"Picard": IMPLICIT}):
        draw_traces(tmp_path / "trace.svg", some)
        assert ("unknown" in (tmp_path / "trace.svg").read_text()) == (len(some) == 1) or pytest.fail("drawn as known")
