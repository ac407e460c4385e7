"""Tables hold the numbers in full, say what is missing, and are bold for winners alone."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from elder.ablation.comparing.formats import show, show_mean, show_p
from elder.ablation.comparing.results import Comparison, collect
from elder.ablation.comparing.statistics import Summary
from elder.ablation.comparing.tables import in_words, latex, markdown, write_tables
from tests.ablation.comparisons import make_plan, write_failure, write_status, write_study


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Three variants of three seeds: one is better, one has failed altogether, one with one seed."""
    root = tmp_path_factory.mktemp("study")
    plan = write_study(root, make_plan({"rule_&_%": ["a#", "better", "gone", "part|ly"]}), {"better": 0.8})
    for k in (6, 7, 8, 10):
        write_failure(root / "store" / plan.cells[k].final)
    write_status(root / "store" / plan.cells[5].final, code="beef" * 4)
    return collect(plan, root)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_all_numbers_in_full(comparison: Comparison, tmp_path: Path) -> None:
    names = [path.name for path in write_tables(comparison, tmp_path / "report")]
    assert names == ["table.csv", "table.md", "table.tex", "runs.csv"]
    rows = read(tmp_path / "report/table.csv")
    assert [row["rule_&_%"] for row in rows] == ["a#", "better", "gone", "part|ly"]
    paired = comparison.paired["psnr"][1]
    assert paired is not None
    assert float(rows[1]["psnr_mean"]) == comparison.summaries["psnr"][1].mean
    assert float(rows[1]["psnr_lo"]) == paired.difference.lo
    assert float(rows[1]["psnr_p_wilcoxon"]) == paired.p_wilcoxon
    assert [row["psnr_winner"] for row in rows] == ["", "1", "", "0"]
    assert [row["psnr_difference"] == "" for row in rows] == [True, False, True, False]
    assert (rows[2]["missing"], rows[2]["n_seeds"], rows[2]["psnr_mean"]) == ("failed (divergence)", "0", "")
    assert (rows[3]["missing"], rows[3]["done"]) == ("2 of 3 seeds: failed (divergence)", "2")


def test_a_row_per_run(comparison: Comparison, tmp_path: Path) -> None:
    write_tables(comparison, tmp_path)
    rows = read(tmp_path / "runs.csv")
    assert len(rows) == 12
    assert (rows[6]["state"], rows[6]["reason"], rows[6]["message"], rows[6]["psnr"]) == (
        "failed",
        "divergence",
        "Reconstruction: NaN at step 3",
        "",
    )
    assert rows[5]["code"] == "beefbeef (commit 5e6f7a8b)"
    assert float(rows[4]["psnr"]) == pytest.approx(comparison.values["psnr"][1, 1].mean())


def test_markdown_has_equally_many_cells_in_every_row(comparison: Comparison) -> None:
    lines = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert r"rule\_&\_%=part\|ly" in lines[5]
    assert [line.count("**") for line in lines] == [0, 0, 0, 8, 0, 0, 0, 0]
    assert "| failed (divergence) |" in lines[4]
    assert "| 2 of 3 seeds: failed (divergence) |" in lines[5]


def test_what_is_worse_is_never_bold(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"backward": ["implicit", "jfb"]}), {"jfb": -2.0})
    comparison = collect(plan, tmp_path)
    assert [paired.verdict for paired in comparison.paired["psnr"] if paired] == ["worse"]
    assert "**" not in markdown(comparison)
    assert r"\textbf" not in latex(comparison)


def test_notes_stand_below(comparison: Comparison) -> None:
    for text in (markdown(comparison), latex(comparison)):
        assert "4 of 12 cells have no results" in text
        assert "beefbeef (commit 5e6f7a8b): 1 cell" in text
        assert "Holm-corrected" in text


def test_latex_is_well_formed(comparison: Comparison) -> None:
    text = latex(comparison)
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    n_columns = len(re.findall(r"(?<!\\)&", rows[0])) + 1
    assert rf"\begin{{tabular}}{{l{'r' * (n_columns - 1)}}}" in body
    assert r"rule\_\&\_\%=part\textbar{}ly" in body
    assert not re.search(r"(?<!\\)[_#]", body)
    assert [row.count(r"\textbf") for row in rows] == [0, 0, 4, 0, 0, 0, 0]
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert re.sub(r"[\x00-\x7f]", "", text) == "", "only characters that any engine sets"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX: no pdflatex")
def test_latex_compiles(comparison: Comparison, tmp_path: Path) -> None:
    packages = r"\usepackage{booktabs}"
    (tmp_path / "t.tex").write_text(
        rf"\documentclass{{article}}{packages}\begin{{document}}{latex(comparison)}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_words(comparison: Comparison) -> None:
    assert in_words(comparison, "psnr") == "PSNR — better than the baseline: rule_&_%=better · undecided: 1 of 2."


def test_one_seed_is_marked_and_never_bold(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"a": ["0", "1"]}, seeds=1), {"1": 3.0})
    comparison = collect(plan, tmp_path)
    assert "**" not in markdown(comparison)
    assert r"\textbf" not in latex(comparison)
    assert "training spread is unknown" in markdown(comparison) and "\n1 seed, 6 images" in markdown(comparison)


def test_an_empty_study_has_tables(tmp_path: Path) -> None:
    comparison = collect(make_plan(), tmp_path)
    write_tables(comparison, tmp_path)
    assert "not run" in (tmp_path / "table.md").read_text()
    assert in_words(comparison, "psnr") == "PSNR: nothing to compare yet."


def test_digits() -> None:
    assert show_mean("psnr", Summary(34.1234, 0.0456, 3, 6)) == "34.12 ± 0.05"
    assert show_mean("ssim", Summary(0.91234, float("nan"), 1, 6)) == "0.9123"
    assert (show("psnr", -0.123, "+"), show("psnr", float("inf")), show("psnr", float("nan"))) == ("−0.12", "∞", "–")
    assert (show_p(0.0004), show_p(0.0321), show_p(float("nan"))) == ("<0.001", "0.032", "–")
