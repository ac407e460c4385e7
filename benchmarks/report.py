"""Results as tables on screen, tables in docs/performance.md, and plots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table

from benchmarks.bed import PUBLISHED
from benchmarks.solving import BASELINE
from benchmarks.training import ACCURACY, LIMIT

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
PICTURES = DOCUMENT.parent / "performance"


class Grid(NamedTuple):
    """A table: title, names of the columns, cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def show(results: dict[str, Any], console: Console) -> None:
    """All tables of the results."""
    for grid in grids(results):
        table = Table(title=grid.title, title_justify="left")
        for k, column in enumerate(grid.columns):
            table.add_column(column, justify="left" if k == 0 else "right")
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)


def document(results: dict[str, Any]) -> None:
    """Write tables between the marks of docs/performance.md, and the plots beside it."""
    parts = {"machine": machine_line(results["machine"])}
    for section in ("evaluation", "training", "bed", "overhead", "reconstruction"):
        if section in results:
            parts[section] = "\n\n".join(markdown(grid) for grid in grids({section: results[section]}))
    fill(DOCUMENT, parts)
    plot(results, PICTURES)


def fill(document: Path, parts: Mapping[str, str]) -> None:
    """Write contents between the marks of a document that bear their names."""
    text = document.read_text()
    for name, content in parts.items():
        pattern = re.compile(f"(<!-- begin {name} -->).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(
                f"{document}: expected the marks <!-- begin {name} --> and <!-- end {name} -->, found none"
            )
        text = pattern.sub(lambda match, content=content: f"{match[1]}\n{content}\n{match[2]}", text)
    document.write_text(text)


def grids(results: dict[str, Any]) -> Iterator[Grid]:
    """The tables of all sections that were run."""
    if "evaluation" in results:
        yield _evaluation(results["evaluation"])
    if "training" in results:
        yield _summary(results["training"])
        for case in results["training"]:
            yield _training(case)
    if "bed" in results:
        yield from map(_bed, results["bed"])
    if "overhead" in results:
        yield _overhead(results["overhead"])
    for case in results.get("reconstruction", ()):
        yield _reconstruction(case)


def plot(results: dict[str, Any], folder: Path) -> None:
    """Gradient error against cost, and residual against evaluations, one panel per case."""
    folder.mkdir(parents=True, exist_ok=True)
    if results.get("training"):
        figure, panels = _panels(len(results["training"]))
        for panel, case in zip(panels, results["training"], strict=False):
            for method in case["methods"]:
                points = sorted((t["equivalents"], t["gradient_error"]) for t in method["trials"])
                if points:
                    own = method["source"] == "elder"
                    style = {"marker": "o" if own else "x", "linestyle": "-" if own else "--", "markersize": 3}
                    panel.loglog(*zip(*points, strict=True), label=f"{method['source']}: {method['method']}", **style)
            panel.axhline(ACCURACY, color="0.7", linewidth=0.8)
            panel.set(title=case["case"], xlabel="cost of the step / one ∇R", ylabel="relative gradient error")
        _save(figure, panels, folder / "training.png")
    if results.get("reconstruction"):
        figure, panels = _panels(len(results["reconstruction"]))
        for panel, case in zip(panels, results["reconstruction"], strict=False):
            for row in case["solvers"]:
                panel.semilogy(range(1, len(row["curve"]) + 1), row["curve"], label=row["solver"], linewidth=1)
            panel.set(title=case["case"], xlabel="evaluations of ∇R", ylabel="‖∇f(x)‖ / ‖∇f(x⁰)‖", xscale="log")
        _save(figure, panels, folder / "reconstruction.png")


def _panels(n: int) -> tuple[Any, list[Any]]:
    columns = min(n, 3)
    rows = -(-n // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False)
    for unused in axes.flat[n:]:
        unused.set_axis_off()
    return figure, list(axes.flat)


def _save(figure: Any, panels: list[Any], path: Path) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


FIXED = "L-BFGS, CG→MINRES"  # the library's defaults


def _summary(cases: list[dict[str, Any]]) -> Grid:
    """The cheapest accurate step of the library against the cheapest of anything else, by either measure of cost."""
    rows = []
    for case in cases:
        groups = [
            [m for m in case["methods"] if m["source"] == "elder" and m["method"] == FIXED],
            [m for m in case["methods"] if m["source"] == "elder"],
            [m for m in case["methods"] if m["source"] != "elder"],
        ]
        row = [case["case"]]
        for key, form in (("equivalents", "{:.1f}"), ("cpu_seconds", "{:.2f}")):
            fixed, own, other = (_cheapest(methods, key) for methods in groups)
            row += ["–" if m is None else f"{form.format(m['best'][key])} ({m['method']})" for m in (own, other)]
            row += [
                "–" if other is None or m is None else f"{other['best'][key] / m['best'][key]:.2f}"
                for m in (own, fixed)
            ]
        rows.append(row)
    title = f"Cheapest step, gradient right to {ACCURACY:.0%} (–: none within 300 steps and {LIMIT} times the cheapest)"
    columns = ["case", "∇R: elder", "others", "ratio", "ratio to the defaults"]
    columns += ["CPU s: elder", "others", "ratio", "ratio to the defaults"]
    return Grid(title, columns, rows)


def _cheapest(methods: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    reaching = [m for m in methods if m["best"] is not None]
    return min(reaching, key=lambda m: m["best"][key], default=None)


def _training(case: dict[str, Any]) -> Grid:
    """Every method, at its default and at its cheapest accurate setting."""
    columns = ["method", "setting", "∇R", "R", "products", "cost/∇R", "CPU s", "wall s", "outside", "memory/∇R"]
    columns += ["x̂ error", "gradient error", "cosine"]
    rows = []
    for method in case["methods"]:
        name = f"{method['source']}: {method['method']}"
        for which, trial in (("default", method["default"]), ("cheapest", method["best"])):
            if trial is None:
                least = min((t["gradient_error"] for t in method["trials"]), default=None)
                told = "diverges" if which == "default" or least is None else f"no better than {least:.1%}"
                rows.append([name, f"{which}: {told}", *["–"] * (len(columns) - 2)])
                continue
            dials = "" if which == "default" else f" {trial['forward']:g}, {trial['adjoint']:g}"
            mark = " (another stationary point)" if trial["elsewhere"] else ""
            rows.append(
                [
                    name,
                    which + dials,
                    *(f"{trial[key]:.1f}" for key in ("n_gradients", "n_values", "n_products", "equivalents")),
                    *(f"{trial[key]:.2f}" for key in ("cpu_seconds", "wall_seconds")),
                    f"{trial['outside_share']:.0%}",
                    f"{trial['peak_relative']:.1f}",
                    f"{trial['x_error']:.1e}{mark}",
                    f"{trial['gradient_error']:.2%}",
                    f"{trial['cosine']:.4f}",
                ]
            )
    about = f"λ = {case['strength']:g}, L = {case['lipschitz']:.3g}, smallest eigenvalue {case['curvature']:.2g}"
    if max(case["reference_residual"], case["reference_adjoint_residual"]) > 1.01e-9:
        about += f"; REFERENCE ONLY TO {max(case['reference_residual'], case['reference_adjoint_residual']):.1e}"
    return Grid(f"{case['case']} ({about})", columns, rows)


def _bed(bed: dict[str, Any]) -> Grid:
    rows = []
    for row in bed["methods"]:
        result = row["result"]
        cells = [f"{result['cpu_seconds']:.2f}", f"{row['relative_time']:.2f}", f"{row['relative_memory']:.2f}"]
        counts = [f"{result[key]:.1f}" for key in ("n_gradients", "n_values", "n_products")]
        rows.append(
            [row["method"], *counts, *cells, f"{result['outside_share']:.0%}", f"{result['gradient_error']:.1%}"]
        )
    for name, (relative, memory, error) in PUBLISHED.items() if bed["gain"] != 1 else ():
        cells = [f"{relative:.2f}", f"{memory:.2f}", "", f"{error:.0%}"]
        rows.append([f"on record, other weights and images: {name}", "", "", "", "", *cells])
    columns = [
        "method",
        "∇R",
        "R",
        "products",
        "CPU s",
        "time/unrolled",
        "memory/unrolled",
        "outside",
        "gradient error",
    ]
    about = f"weights × {bed['gain']:g}, L = {bed['lipschitz']:.3g}, smallest eigenvalue {bed['curvature']:.2g}"
    return Grid(f"Untrained DnCNN, blur, λ = 0.3 ({about}): relative to unrolling 20 steps", columns, rows)


def _evaluation(rows: list[dict[str, Any]]) -> Grid:
    names = list(rows[0]["cpu_seconds"])
    cells = [[row["regularizer"], *(f"{1e3 * row['cpu_seconds'][name]:.1f}" for name in names)] for row in rows]
    return Grid("CPU milliseconds of one evaluation, four images of 64 × 64", ["regularizer", *names], cells)


def _overhead(rows: list[dict[str, Any]]) -> Grid:
    cells = [
        [
            row["regularizer"],
            *(f"{row[key]:.1f}" for key in ("n_gradients", "n_products")),
            *(f"{row[key]:.2f}" for key in ("cpu_seconds", "wall_seconds")),
            f"{row['outside_share']:.1%}",
        ]
        for row in rows
    ]
    columns = ["regularizer", "∇R", "products", "CPU s", "wall s", "outside network and operator"]
    return Grid("Denoising, four images of 128 × 128, L-BFGS and CG→MINRES", columns, cells)


def _reconstruction(case: dict[str, Any]) -> Grid:
    base = next((row for row in case["solvers"] if row["solver"] == BASELINE), None)
    rows = []
    for row in case["solvers"]:
        ratios = [f"{row[k] / base[k]:.2f}" if base else "–" for k in ("n_gradients", "cpu_seconds")]
        rows.append(
            [
                row["solver"] + ("" if row["converged"] else " (not converged)"),
                f"{row['n_gradients']:.1f}",
                f"{row['cpu_seconds']:.2f}",
                *ratios,
                f"{row['x_error']:.1e}" + (" (another stationary point)" if row["elsewhere"] else ""),
            ]
        )
    columns = ["solver", "∇R", "CPU s", f"∇R/{BASELINE}", f"CPU/{BASELINE}", "x̂ error"]
    return Grid(f"{case['case']}: to ‖∇f‖ ≤ {case['tolerance']:g} ‖∇f(x⁰)‖", columns, rows)


def machine_line(machine: dict[str, Any]) -> str:
    """What the numbers of a document were measured on."""
    return (
        f"Measured on {machine['date']} at commit {machine['commit']}: {machine['cpu']}, "
        f"{machine['threads']} thread(s), PyTorch {machine['torch']}, seed {machine['seed']}."
    )


def markdown(grid: Grid) -> str:
    """A table under its title."""
    lines = [f"**{grid.title}**", "", f"| {' | '.join(grid.columns)} |"]
    lines.append(f"|{'|'.join(['---'] + ['--:'] * (len(grid.columns) - 1))}|")
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in grid.rows)])
