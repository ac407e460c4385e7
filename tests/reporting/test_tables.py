"""Rows survive a file unchanged, and their summary is the textbook's."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from elder.reporting.tables import RESULT_FIELDS, Result, print_table, read_results, summarize, write_results

ROWS = [
    Result("ELDER", "a.png", 30.1, 0.9, 1e-4, 40, 0.5, 21.5),
    Result("Zero-filled", "a.png", 25.0, 0.7, math.nan, 0, 0.001),
    Result("ELDER", 'odd, "name"\nµ.png', 32.3, 0.8, 3e-4, 61, 1.5),
    Result("ELDER", "c.png", 1 / 3 + 33, 0.85, 2e-4, 50, 1.0),
]


def text(rows: list[Result], width: int = 80) -> str:
    file = io.StringIO()
    print_table(summarize(rows), Console(file=file, width=width))
    return file.getvalue()


def test_rows_survive_the_file_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    write_results(path, ROWS)
    assert (
        path.read_text().splitlines()[0]
        == ",".join(RESULT_FIELDS)
        == "method,image,psnr,ssim,residual,n_gradients,seconds,snr"
    )
    assert str(read_results(path)) == str(ROWS)  # as strings, since NaN differs from itself


def test_tensors_become_numbers(tmp_path: Path) -> None:
    row = Result("m", "i", torch.tensor(30.5), np.float64(0.5), torch.tensor(1.0), torch.tensor(40.0), 1)
    write_results(tmp_path / "r.csv", [row])
    assert (tmp_path / "r.csv").read_text().splitlines()[1] == "m,i,30.5,0.5,1.0,40,1.0,nan"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_results(path, ROWS[:1])

    def rows():
        yield ROWS[1]
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_results(path, rows())
    assert read_results(path) == ROWS[:1]
    write_results(path, [])
    assert read_results(path) == []


def test_another_header_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("image,psnr\na,30\n")
    with pytest.raises(ValueError, match=r"expected the columns method,.*got image,psnr"):
        read_results(tmp_path / "r.csv")


def test_a_file_without_snr_is_read_and_a_torn_row_is_not(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("method,image,psnr,ssim,residual,n_gradients,seconds\nm,i,30.5,0.5,1.0,40,1.0\n")
    (row,) = read_results(path)
    assert row[:-1] == ("m", "i", 30.5, 0.5, 1.0, 40, 1.0) and math.isnan(row.snr)
    write_results(path, ROWS)
    path.write_text(path.read_text().rstrip("\n").rpartition(",")[0] + "\n")
    with pytest.raises(ValueError, match="zip"):
        read_results(path)


def test_summary_is_mean_and_sample_deviation() -> None:
    summaries = summarize(ROWS)
    assert list(summaries) == ["ELDER", "Zero-filled"]
    elder, zero = summaries.values()
    assert elder.n_images == 3
    assert elder.psnr == pytest.approx((np.mean([30.1, 32.3, 100 / 3]), np.std([30.1, 32.3, 100 / 3], ddof=1)))
    assert elder.ssim == pytest.approx((0.85, 0.05))
    assert (elder.n_gradients, elder.seconds, elder.worst_residual) == pytest.approx((151 / 3, 1.0, 3e-4))
    assert zero.psnr.mean == 25.0
    assert math.isnan(zero.psnr.sd)
    assert math.isnan(zero.worst_residual)


def test_an_image_that_is_measured_with_several_settings_counts_once() -> None:
    psnr = np.array([[20.0, 30.0], [22.0, 32.0], [27.0, 37.0]])
    rows = [
        Result("m", f"{i}.png/{k}", psnr[i, k], 0.5, 1e-3 * (i + k), 10 * (k + 1), 1.0)
        for k in (0, 1)
        for i in range(3)
    ]
    (summary,) = summarize(rows).values()
    assert (summary.n_images, summary.n_measurements, summary.count) == (3, 6, "3 (6)")
    assert summary.psnr == pytest.approx((psnr.mean(), psnr.mean(axis=1).std(ddof=1)))
    assert (summary.n_gradients, summary.worst_residual) == (15, 3e-3)
    lines = text(rows).splitlines()
    assert "m 3 (6) 28.00 ± 3.61 0.500 ± 0.000 15.0 1.000 3.0e-03" in [" ".join(line.split()) for line in lines]
    assert "n images (measurements)" in lines[-1] + lines[-2] and max(map(len, lines)) <= 80
    (alone,) = summarize([row._replace(image=f"heads.h5/{i}") for i, row in enumerate(rows)]).values()
    assert alone.count == "6" and alone.psnr.sd == pytest.approx(psnr.std(ddof=1))


def test_an_exact_reconstruction_has_infinite_psnr() -> None:
    rows = [Result("m", name, math.inf, 1.0, 0.0, 1, 1.0) for name in "ab"]
    assert summarize(rows)["m"].psnr.mean == math.inf


def test_an_image_counts_once() -> None:
    with pytest.raises(ValueError, match=r"got two of ELDER for a\.png"):
        summarize([*ROWS, ROWS[0]])


def test_table_holds_the_numbers_in_80_columns() -> None:
    lines = text(ROWS).splitlines()
    (elder,) = (line for line in lines if "ELDER" in line)
    (zero,) = (line for line in lines if "Zero-filled" in line)
    assert " ".join(elder.split()) == "ELDER 3 31.91 ± 1.65 0.850 ± 0.050 50.3 1.000 3.0e-04"
    assert " ".join(zero.split()) == "Zero-filled 1 25.00 0.700 0.0 0.001 –"
    assert max(map(len, lines)) <= 80


def test_a_long_name_is_folded_not_cut() -> None:
    name = "implicit-residual-drunet-anderson-jacobian-free"
    table = text([row._replace(method=name) for row in ROWS if row.method == "ELDER"])
    assert max(map(len, table.splitlines())) <= 80
    assert "31.91 ± 1.65" in table
    assert "3.0e-04" in table
    body = table[table.rindex("─") + 1 : table.index("mean ±")].splitlines()
    assert "".join(line.split("  ")[0].strip() for line in body) == name
