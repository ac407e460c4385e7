"""A study as tables: CSV in full precision, Markdown and LaTeX (booktabs) to read."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from elder.ablation.comparing.formats import (
    COSTS,
    HEADINGS,
    UNKNOWN,
    escape_latex,
    escape_markdown,
    show,
    show_cost,
    show_interval,
    show_mean,
    show_p,
)
from elder.ablation.comparing.results import Comparison, Variant
from elder.ablation.comparing.statistics import Paired

__all__ = [
    "count_images",
    "footnotes",
    "in_words",
    "known_costs",
    "latex",
    "markdown",
    "runs_csv",
    "table_csv",
    "write_tables",
]


def write_tables(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """Write table.csv, table.md, table.tex (a row per variant) and runs.csv (a row per cell).

    Args:
        comparison: The study.
        folder: Made if it is missing.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writers = {"table.csv": table_csv, "table.md": markdown, "table.tex": latex, "runs.csv": runs_csv}
    for name, writer in writers.items():
        (folder / name).write_text(writer(comparison), encoding="utf-8")
    return [folder / name for name in writers]


def table_csv(comparison: Comparison) -> str:
    """A row per variant, unrounded; what is unknown is empty."""
    axes = _axes(comparison)
    header = ["variant", *axes, "n_seeds", "n_images"]
    for metric in comparison.metrics:
        columns = "mean sd difference lo hi p p_holm p_wilcoxon p_wilcoxon_holm verdict winner"
        header += [f"{metric}_{column}" for column in columns.split()]
    header += [*COSTS, "done", "planned", "missing"]
    rows = []
    for i, variant in enumerate(comparison.variants):
        row: list[object] = [variant.label, *(variant.coordinates.get(axis, "") for axis in axes)]
        row += [variant.n_done, comparison.n_images if variant.n_done else 0]
        for metric in comparison.metrics:
            summary, paired = comparison.summaries[metric][i], comparison.paired[metric][i]
            row += [summary.mean, summary.sd, *_comparison_cells(paired)]
        row += [variant.cost(name) for name in COSTS]
        rows.append([*row, variant.n_done, len(variant.outcomes), variant.missing])
    return _csv(header, rows)


def runs_csv(comparison: Comparison) -> str:
    """A row per cell: what became of it, its means over the common images, its costs, and the code it ran with."""
    axes = _axes(comparison)
    header = ["hash", "variant", *axes, "seed", "state", "reason", "message", *comparison.metrics, *COSTS]
    rows = []
    for i, variant in enumerate(comparison.variants):
        for seed, outcome in variant.outcomes.items():
            blocks = [comparison.whole[metric][i, comparison.seeds.index(seed)] for metric in comparison.metrics]
            blocks = [block[comparison.measured[i]] for block in blocks]
            rows.append(
                [
                    outcome.hash,
                    variant.label,
                    *(variant.coordinates.get(axis, "") for axis in axes),
                    seed,
                    outcome.state,
                    outcome.reason,
                    outcome.message,
                    *(float(block.mean()) if block.size else math.nan for block in blocks),
                    *(getattr(outcome.cost, name) for name in COSTS),
                    "; ".join(map(str, sorted(outcome.versions))),
                    "; ".join(sorted(outcome.hosts)),
                ]
            )
    return _csv([*header, "code", "hosts"], rows)


def markdown(comparison: Comparison) -> str:
    """A table for READMEs; winners are bold."""
    header = _header(comparison, "Δ {} [95 %]", "p")
    lines = [_line(map(escape_markdown, header)), _line(["---", *["---:"] * (len(header) - 1)])]
    for variant, cells in _rows(comparison):
        bold = [f"**{text}**" if winner else text for text, winner in cells]
        lines.append(_line([escape_markdown(variant.label), *bold]))
    notes = "".join(f"\n{escape_markdown(note)}\n" for note in footnotes(comparison))
    return "\n".join(lines) + "\n" + notes


def latex(comparison: Comparison) -> str:
    r"""A `tabular` with booktabs rules and notes below it; winners are bold. Needs `\usepackage{booktabs}`."""
    header = _header(comparison, "Δ {} [95 %]", "p")
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(escape_latex, header)) + r" \\",
        r"\midrule",
    ]
    for variant, cells in _rows(comparison):
        texts = [rf"\textbf{{{escape_latex(text)}}}" if winner else escape_latex(text) for text, winner in cells]
        lines.append(" & ".join([escape_latex(variant.label), *texts]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip{{\footnotesize {escape_latex(note)}\par}}" for note in footnotes(comparison)]
    return "\n".join(lines) + "\n"


def footnotes(comparison: Comparison) -> list[str]:
    """What the numbers are, and what must be known about them."""
    n = len(comparison.seeds)
    kinds = "mean ± s.d. over seeds" if n > 1 else "mean"
    explained = (
        f"{n} seed{'s' * (n != 1)}, {count_images(comparison)}; {kinds} of the mean over images. "
        "Δ: paired difference from the baseline with its 95 % bootstrap interval over images and seeds "
        "(images only where one seed is common); p: Holm-corrected over variants and metrics. "
        "Bold: better than the baseline, p < 0.05 and the interval clear of zero."
    )
    named = ", ".join(f"{axis}={value}" for axis, value in comparison.baseline.items())
    names = [f"Baseline: {named}; other rows are named by what differs from it."] if named else []
    return [explained, *names, *comparison.notes]


def count_images(comparison: Comparison) -> str:
    """As "50 images", or "50 images (250 measurements)" where each is measured with several settings."""
    n, measured = comparison.n_images, comparison.measured.sum(axis=1)
    if n == len(comparison.images):
        return f"{n} images"
    counts = sorted({int(m) for m in measured if m})
    return f"{n} images ({' to '.join(map(str, [counts[0], *counts[1:][-1:]]))} measurements)"


def in_words(comparison: Comparison, metric: str) -> str:
    """The outcome for one metric in a sentence."""
    compared = [(v.label, p) for v, p in zip(comparison.variants, comparison.paired[metric], strict=True) if p]
    name = HEADINGS[metric].split(" (")[0]
    if not compared:
        return f"{name}: nothing to compare yet."
    better = [label for label, paired in compared if paired.verdict == "better"]
    worse = [label for label, paired in compared if paired.verdict == "worse"]
    parts = [
        f"{word} than the baseline: {'; '.join(labels)}"
        for word, labels in (("better", better), ("worse", worse))
        if labels
    ]
    n_open = len(compared) - len(better) - len(worse)
    if n_open:
        parts.append(f"undecided: {n_open} of {len(compared)}")
    return f"{name} — {' · '.join(parts)}."


def known_costs(comparison: Comparison) -> list[str]:
    """Costs that at least one variant tells."""
    return [name for name in COSTS if any(not math.isnan(variant.cost(name)) for variant in comparison.variants)]


def _rows(comparison: Comparison) -> Iterable[tuple[Variant, list[tuple[str, bool]]]]:
    """Texts of every variant, and whether they are bold."""
    costs = known_costs(comparison)
    for i, variant in enumerate(comparison.variants):
        cells = []
        for metric in comparison.metrics:
            summary, paired = comparison.summaries[metric][i], comparison.paired[metric][i]
            bold = paired is not None and paired.is_winner
            cells += [(show_mean(metric, summary), bold), (show_interval(metric, paired), bold)]
            cells.append((show_p(paired.p_holm if paired else math.nan), False))
        cells += [(show_cost(name, variant.cost(name)), False) for name in costs]
        if not variant.n_done:
            cells[0] = (variant.missing, False)
        yield variant, [*cells, ((variant.n_done and variant.missing) or f"{variant.n_done}", False)]
    for reference in comparison.references:
        cells = [
            x for m in comparison.metrics for x in ((show(m, reference.values[m]), False), *[(UNKNOWN, False)] * 2)
        ]
        known = {"gradients": reference.gradients, "seconds": reference.seconds}
        cells += [(show_cost(name, known.get(name, math.nan)), False) for name in costs]
        yield Variant(f"({reference.method})", {}, {}), [*cells, (UNKNOWN, False)]


def _header(comparison: Comparison, difference: str, p: str) -> list[str]:
    names = [HEADINGS[metric] for metric in comparison.metrics]
    columns = [column for name in names for column in (name, difference.format(name.split(" (")[0]), p)]
    return ["variant", *columns, *(COSTS[name][0] for name in known_costs(comparison)), "seeds"]


def _axes(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(axis for variant in comparison.variants for axis in variant.coordinates))


def _comparison_cells(paired: Paired | None) -> list[object]:
    if paired is None:
        return [*[math.nan] * 7, "", ""]
    d = paired.difference
    p = d.p if d.is_over_seeds else math.nan  # of one seed it would speak of images alone
    numbers = [d.mean, d.lo, d.hi, p, paired.p_holm, paired.p_wilcoxon, paired.p_wilcoxon_holm]
    return [*numbers, paired.verdict, int(paired.is_winner)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if isinstance(x, float) and math.isnan(x) else x for x in row] for row in rows])
    return file.getvalue()


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
