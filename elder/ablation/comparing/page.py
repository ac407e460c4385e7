"""`report.html`: a study on one page that needs nothing else, no network and no server."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from elder.ablation.comparing.formats import COSTS, HEADINGS, show, show_cost, show_interval, show_mean, show_p
from elder.ablation.comparing.gallery import draw_gallery
from elder.ablation.comparing.page_data import page_data, to_script
from elder.ablation.comparing.results import Comparison, Variant
from elder.ablation.comparing.tables import footnotes, in_words, known_costs
from elder.atomic import replace

__all__ = ["write_page"]

_HERE = Path(__file__).parent
_SECTIONS = {
    "results": "Results",
    "differences": "Differences",
    "effects": "Main effects",
    "cost": "Cost",
    "curves": "Curves",
    "gallery": "Reconstructions",
    "runs": "Runs",
    "method": "Method",
}
_METHOD = """
<p>A variant is compared with the baseline image by image and seed by seed. Images and seeds are crossed random factors:
one training run shifts all its images at once, so its luck must not be taken for a property of the method.</p>
<p>The interval adds the error of the seeds, from Student’s t with (seeds − 1) degrees of freedom, to that of the
images, from a studentised bootstrap (9,999 resamples of the images), which keeps their skewness. Its coverage in
simulations is 94 to 99 %, from five images on. p is the smallest 1 − level whose interval excludes zero, Holm-corrected
over all variants and metrics of the study. Wilcoxon’s signed-rank test over images, of differences averaged over
seeds, is given for reference in table.csv; it is blind to the spread of training runs and decides nothing.</p>
<p>A variant is called better, and printed bold, only if its corrected p is below 0.05 and its interval is clear of zero
on the better side. With one seed the interval is over images only and nothing is called better; nor with fewer than
five images, of which skewed ones make it too short. Intervals of main effects are not corrected for their number.</p>
"""


def write_page(comparison: Comparison, path: str | os.PathLike[str], date: str) -> Path:
    """Write the page; the same comparison and date give the same bytes.

    Args:
        comparison: The study.
        path: The file, replaced as a whole; its folder is made if it is missing.
        date: As it is to be printed.
    """
    path = Path(path)
    gallery = draw_gallery(comparison)
    parts = {
        "title": escape(comparison.name),
        "css": (_HERE / "page.css").read_text(encoding="utf-8"),
        "js": (_HERE / "page.js").read_text(encoding="utf-8") + (_HERE / "gallery.js").read_text(encoding="utf-8"),
        "lede": _lede(comparison),
        "facts": _facts(comparison, date),
        "nav": _navigation(),
        "notes": _notes(comparison.notes),
        "findings": "".join(f"<p>{escape(in_words(comparison, metric))}</p>" for metric in comparison.metrics),
        "table": _table(comparison),
        "explained": escape(footnotes(comparison)[0]),
        "gallery_notes": escape(" ".join(gallery.notes)),
        "runs_summary": f"{comparison.n_cells} cells, {comparison.n_done} with results",
        "runs": _runs(comparison),
        "method": _METHOD,
        "data": to_script(page_data(comparison, gallery)),
    }
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, text)
    return path


def _lede(comparison: Comparison) -> str:
    counts = (
        (len(comparison.variants), "variant"),
        (len(comparison.seeds), "seed"),
        (comparison.n_images, "test image"),
    )
    text = " × ".join(f"{n} {name}{'' if n == 1 else 's'}" for n, name in counts)
    baseline = ", ".join(f"{axis} {value}" for axis, value in comparison.baseline.items())
    return escape(f"{text}, against the baseline {baseline}" if baseline else text)


def _facts(comparison: Comparison, date: str) -> str:
    facts = {
        "Reported": date,
        "Cells with results": f"{comparison.n_done} of {comparison.n_cells}",
        "Seeds": ", ".join(map(str, comparison.seeds)),
        "Code": ", ".join(map(str, comparison.versions)) or "unknown",
        "Machines": ", ".join(comparison.hosts) or "unknown",
    }
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())


def _navigation() -> str:
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name in _SECTIONS.items())
    return f'<nav aria-label="Sections"><div>{links}</div></nav>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return (
        f'<aside class="warnings" role="note"><ul>{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul></aside>'
    )


def _table(comparison: Comparison) -> str:
    names = {metric: HEADINGS[metric].split(" (")[0] for metric in comparison.metrics}
    head = [_heading("variant", text=True)]
    for metric, way in comparison.metrics.items():
        downwards = way == "max"
        head.append(_heading(HEADINGS[metric], downwards=downwards))
        head += [_heading(f"Δ {names[metric]} [95 %]", downwards=downwards), _heading("p")]
    costs = known_costs(comparison)
    head += [_heading(COSTS[name][0]) for name in costs] + [_heading("seeds", downwards=True)]
    rows = []
    for i, variant in enumerate(comparison.variants):
        cells = [_variant_cell(i, variant)]
        for metric in comparison.metrics:
            summary, paired = comparison.summaries[metric][i], comparison.paired[metric][i]
            style = paired.verdict if paired and paired.verdict != "open" else ""
            cells.append(_cell(show_mean(metric, summary), summary.mean, style))
            cells.append(_interval_cell(metric, paired, style))
            cells.append(_cell(show_p(paired.p_holm), paired.p_holm) if paired else _cell("–", math.nan))
        cells += [_cell(show_cost(name, variant.cost(name)), variant.cost(name)) for name in costs]
        done = variant.missing if variant.missing and variant.n_done else f"{variant.n_done}"
        cells.append(_cell(done, variant.n_done, "missing" if variant.missing else ""))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    foot = []
    for reference in comparison.references:
        cells = [f"<td>{escape(reference.method)}</td>"]
        for metric in comparison.metrics:
            cells += [_cell(show(metric, reference.values[metric]), math.nan), "<td></td>", "<td></td>"]
        known = {"gradients": reference.gradients, "seconds": reference.seconds}
        cells += [_cell(show_cost(name, known[name]) if name in known else "", math.nan) for name in costs]
        foot.append(f"<tr>{''.join(cells)}<td></td></tr>")
    foot = f"<tfoot>{''.join(foot)}</tfoot>" if foot else ""
    return _wrapped("table", head, rows, foot)


def _runs(comparison: Comparison) -> str:
    titles = ("variant", "seed", "state", "run", "code", "machine", "message")
    head = [_heading(title, text=title != "seed") for title in titles]
    rows = []
    for variant in comparison.variants:
        for seed, outcome in variant.outcomes.items():
            code, hosts = "; ".join(map(str, sorted(outcome.versions))), "; ".join(sorted(outcome.hosts))
            texts = (outcome.hash, code, hosts, outcome.message)
            cells = [_text(variant.label), _cell(str(seed), seed)]
            cells.append(_text(outcome.text, "" if outcome.is_done else " missing"))
            cells += [_text(text, mono=k < 2) for k, text in enumerate(texts)]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    return _wrapped("runs-table", head, rows, "")


def _wrapped(name: str, head: Iterable[str], rows: Iterable[str], foot: str) -> str:
    body = "\n".join(rows)
    head = f"<thead><tr>{''.join(head)}</tr></thead>"
    return f'<table class="sortable" id="{name}">{head}<tbody>{body}</tbody>{foot}</table>'


def _heading(title: str, text: bool = False, downwards: bool = False) -> str:
    first = ' data-first="descending"' if downwards else ""
    return f'<th scope="col"{" class=text" if text else ""}{first}><button type="button">{escape(title)}</button></th>'


def _cell(text: str, value: float, style: str = "") -> str:
    number = repr(float(value)) if math.isfinite(value) else ""
    return f'<td data-value="{number}"{f" class={style}" if style else ""}>{escape(text)}</td>'


def _interval_cell(metric: str, paired: Any, style: str) -> str:
    text = show_interval(metric, paired)
    mean, _, interval = text.partition(" ")
    number = repr(paired.difference.mean) if paired else ""
    only = "" if paired is None or paired.difference.is_over_seeds else ' <span class="tag">images only</span>'
    interval = f'<span class="interval">{escape(interval)}</span>' if interval else ""
    return f'<td data-value="{number}"{f" class={style}" if style else ""}>{escape(mean)}{interval}{only}</td>'


def _variant_cell(i: int, variant: Variant) -> str:
    color = f"var(--c{1 + (i - 1) % 6 if i else 0})"
    tag = '<span class="tag">baseline</span>' if i == 0 and variant.label != "baseline" else ""
    if variant.missing and not variant.n_done:
        tag += f'<span class="tag missing">{escape(variant.missing)}</span>'
    swatch = f'<span class="swatch" style="background:{color}"></span>'
    return f'<td class="text" data-value="{escape(variant.label)}">{swatch}{escape(variant.label)}{tag}</td>'


def _text(text: str, style: str = "", mono: bool = False) -> str:
    shown = f"<code>{escape(text)}</code>" if mono and text else escape(text)
    return f'<td class="text{style}" data-value="{escape(text)}">{shown}</td>'
