"""`report.html` in a real browser: it sorts, compares and magnifies, says nothing to the console, and asks nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.select import Select

from elder.ablation.comparing.gallery import LARGEST_SIDE, draw_gallery
from elder.ablation.comparing.page import write_page
from elder.ablation.comparing.results import Comparison, collect
from tests.ablation.browser import chromium, console, requests, screenshot
from tests.ablation.comparisons import IMAGES, make_plan, phantom, write_failure, write_images, write_study

HOSTILE = "</script><script>document.title='owned'</script><b>&\"'"
WHEEL = "new WheelEvent('wheel', {deltaY: -300, clientX: 9, bubbles: true, cancelable: true})"
TRUTHS = {name: phantom(k) for k, name in enumerate(IMAGES)}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two axes, one of them with a value out of a nightmare; one variant has failed, another one in part."""
    root = tmp_path_factory.mktemp("study")
    axes = {"backward": ["implicit", "jfb", "unrolled"], "strength": ["0.01", HOSTILE]}
    plan = write_study(root, make_plan(axes, name=f"backward {HOSTILE}"), {"jfb": -0.6, "unrolled": 1.5}, TRUTHS)
    for k in (6, 7, 8, 17):
        write_failure(root / "store" / plan.cells[k].final)
    return collect(plan, root)


@pytest.fixture(scope="module")
def page(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(comparison, tmp_path_factory.mktemp("report") / "report" / "report.html", "2026-01-31")


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def opened(browser: WebDriver, page: Path) -> Iterator[WebDriver]:
    """The page, which must leave the console empty and the network alone."""
    browser.get(page.as_uri())
    yield browser
    assert console(browser) == []
    asked = requests(browser)
    assert asked[0] == page.as_uri()
    assert all(url.startswith("data:") for url in asked[1:])


def column(driver: WebDriver, k: int) -> list[str]:
    return [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, f"#table tbody td:nth-child({k})")]


def heading(driver: WebDriver, k: int):
    return driver.find_element(By.CSS_SELECTOR, f"#table thead th:nth-child({k})")


def numbers(texts: list[str]) -> list[float]:
    return [float(text.split()[0].replace("−", "-")) for text in texts if text != "–"]


def transforms(driver: WebDriver) -> list[str]:
    return [image.get_attribute("style") or "" for image in driver.find_elements(By.CSS_SELECTOR, ".view img")]


def test_the_table_sorts_by_any_column(opened: WebDriver) -> None:
    before = column(opened, 2)
    assert (heading(opened, 2).text, before[2]) == ("PSNR (dB)", "–")
    button = heading(opened, 2).find_element(By.TAG_NAME, "button")
    button.click()
    assert heading(opened, 2).get_attribute("aria-sort") == "descending"  # best first
    assert numbers(column(opened, 2)) == sorted(numbers(before), reverse=True)
    assert column(opened, 2)[-1] == "–"
    button.send_keys(Keys.ENTER)
    assert heading(opened, 2).get_attribute("aria-sort") == "ascending"
    assert numbers(column(opened, 2)) == sorted(numbers(before))
    assert column(opened, 2)[-1] == "–", "what has no number stays last"
    heading(opened, 1).find_element(By.TAG_NAME, "button").click()
    assert heading(opened, 2).get_attribute("aria-sort") is None
    assert column(opened, 1)[0].startswith("backward=jfb")


def test_missing_and_winning_variants_are_marked(opened: WebDriver, comparison: Comparison) -> None:
    rows = {row.text.split("\n")[0]: row for row in opened.find_elements(By.CSS_SELECTOR, "#table tbody tr")}
    (failed,) = (row for name, row in rows.items() if name.startswith("backward=jfb") and "failed" in row.text)
    assert failed.find_element(By.CLASS_NAME, "missing").text == "failed (divergence)"
    better = opened.find_elements(By.CSS_SELECTOR, "#table td.better")
    winners = [paired for column in comparison.paired.values() for paired in column if paired and paired.is_winner]
    assert len(better) == 2 * len(winners) > 0  # mean and difference
    assert all(int(cell.value_of_css_property("font-weight")) >= 700 for cell in better)
    assert "4 of 18 cells have no results" in opened.find_element(By.CLASS_NAME, "warnings").text


def test_the_gallery_compares_two_variants(opened: WebDriver, comparison: Comparison) -> None:
    left, right = (Select(opened.find_element(By.ID, side)) for side in ("left", "right"))
    labels = [option.text for option in left.options]
    assert labels[0] == "baseline" and labels[-2:] == ["zero-filled", "total variation"]
    assert len(labels) == 5 + 2
    Select(opened.find_element(By.ID, "image")).select_by_visible_text("head.h5/2")
    right.select_by_visible_text("backward=unrolled")
    captions = [caption.text for caption in opened.find_elements(By.CSS_SELECTOR, ".panel figcaption")]
    for text, variant in zip(captions, ("baseline", "backward=unrolled"), strict=False):
        (row,) = (v.outcomes[0].results["head.h5/2"] for v in comparison.variants if v.label == variant)
        assert f"{row.psnr:.2f} dB" in text and f"SSIM {row.ssim:.4f}" in text
    images = opened.find_elements(By.CSS_SELECTOR, ".view img")
    reconstructions = [image.get_attribute("src") for image in images]
    assert len(set(reconstructions)) == 3
    opened.find_element(By.CSS_SELECTOR, "#mode button[data-value=error]").click()
    errors = [image.get_attribute("src") for image in images]
    assert errors[2] == reconstructions[2], "the ground truth has no error"
    assert len({*reconstructions, *errors}) == 5
    assert re.search(r"error 0\s+≥ [\d.]+ % of max\.", opened.find_element(By.ID, "bar").text)
    assert all(opened.execute_script("return arguments[0].naturalWidth", image) == 48 for image in images)
    Select(opened.find_element(By.ID, "image")).select_by_visible_text("head.h5/4")
    assert right.first_selected_option.text == "backward=unrolled", "the choice outlives the image"


def test_all_panels_zoom_and_pan_together(opened: WebDriver) -> None:
    fitted = transforms(opened)
    opened.find_element(By.ID, "zoom-in").click()
    zoomed = transforms(opened)
    assert zoomed != fitted and len(set(zoomed)) == 1 and "scale(1.5)" in zoomed[0]
    assert opened.find_element(By.ID, "zoom-level").text == "150 %"
    view = opened.find_elements(By.CSS_SELECTOR, ".view")[1]
    view.send_keys(Keys.ARROW_RIGHT)
    panned = transforms(opened)
    assert panned != zoomed and len(set(panned)) == 1
    opened.execute_script(f"arguments[0].dispatchEvent({WHEEL})", view)
    assert "scale(3.1" in transforms(opened)[0]
    view.send_keys("0")
    assert transforms(opened) == fitted
    view.send_keys("e")
    assert "Error of" in (view.get_attribute("aria-label") or "")


def test_the_wheel_scrolls_the_page_until_a_panel_is_clicked(opened: WebDriver) -> None:
    prevented = f"return !document.querySelector('.view').dispatchEvent({WHEEL})"
    assert opened.execute_script(prevented) is False
    opened.find_element(By.CSS_SELECTOR, ".view").click()
    assert opened.execute_script(prevented) is True


def test_plots_are_drawn_and_change(opened: WebDriver) -> None:
    def drawn(name: str) -> str:
        return opened.find_element(By.ID, name).get_attribute("innerHTML") or ""

    for name in ("forest", "effects-plot", "scatter", "lines"):
        assert drawn(name).startswith("<svg") and "NaN" not in drawn(name)
    assert drawn("forest").count("<circle") == 4
    assert "failed (divergence)" in drawn("forest")
    before = drawn("forest")
    opened.find_element(By.CSS_SELECTOR, "[data-choice=forest] button[data-value=ssim]").click()
    assert drawn("forest") != before and "Δ SSIM" in drawn("forest")
    before = drawn("scatter")
    Select(opened.find_element(By.ID, "cost-of")).select_by_value("memory")
    assert drawn("scatter") != before and "memory (GiB)" in drawn("scatter")
    assert "total variation" not in drawn("scatter")
    Select(opened.find_element(By.ID, "cost-of")).select_by_value("gradients")
    opened.find_element(By.ID, "with-references").click()
    assert "total variation" in drawn("scatter")
    before = drawn("lines").count("<path")
    opened.find_element(By.CSS_SELECTOR, "#legend button").click()
    assert drawn("lines").count("<path") == before - 2  # a line and its band
    Select(opened.find_element(By.ID, "curve-of")).select_by_value("backward/residual")
    assert "backward/residual" in drawn("lines")


def test_strings_of_a_user_are_text(opened: WebDriver, page: Path) -> None:
    assert opened.title == f"backward {HOSTILE}"
    assert HOSTILE in opened.find_element(By.TAG_NAME, "h1").text
    assert len(opened.find_elements(By.TAG_NAME, "script")) == 2
    assert HOSTILE not in page.read_text()


def test_the_page_names_no_address(page: Path) -> None:
    text = page.read_text()
    assert {*re.findall(r"https?://[^\s\"'<>]+", text)} == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)


def test_the_same_comparison_gives_the_same_bytes(comparison: Comparison, page: Path, tmp_path: Path) -> None:
    assert write_page(comparison, tmp_path / "again.html", "2026-01-31").read_bytes() == page.read_bytes()
    assert write_page(comparison, tmp_path / "later.html", "2026-02-01").read_bytes() != page.read_bytes()


def test_a_study_that_has_not_begun_has_a_page(browser: WebDriver, tmp_path: Path) -> None:
    path = write_page(collect(make_plan(), tmp_path), tmp_path / "report.html", "2026-01-31")
    browser.get(path.as_uri())
    shown = [s.get_attribute("id") for s in browser.find_elements(By.TAG_NAME, "section") if s.is_displayed()]
    assert shown == ["results", "runs", "method"]
    assert console(browser) == []
    assert column(browser, 1)[0] == "baselinenot run"


def test_one_seed_is_marked(browser: WebDriver, tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"a": ["0", "1"]}, seeds=1), {"1": 3.0})
    browser.get(write_page(collect(plan, tmp_path), tmp_path / "report.html", "2026-01-31").as_uri())
    assert "images only" in column(browser, 3)[1]
    assert browser.find_elements(By.CSS_SELECTOR, ".better") == []
    assert 'stroke-dasharray="4 4"' in (browser.find_element(By.ID, "forest").get_attribute("innerHTML") or "")
    assert console(browser) == []


def test_a_screenshot_shows_a_section(page: Path, tmp_path: Path, browser: WebDriver) -> None:
    screenshot(page, tmp_path / "gallery.png", "gallery")
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")


def gallery_study(root: Path, truths: dict[str, np.ndarray]) -> Comparison:
    plan = make_plan({"a": ["0", "1"]}, seeds=1)
    return collect(write_study(root, plan, {"1": 1.0}, truths, list(truths)), root)


def test_galleries_are_bounded(tmp_path: Path) -> None:
    truths = {f"volume/{k:02d}": phantom(k, 400) for k in range(9)}
    comparison = gallery_study(tmp_path, truths)
    gallery = draw_gallery(comparison)
    assert [panel.name for panel in gallery.panels] == [f"volume/{k:02d}" for k in range(8)]
    assert {(panel.width, panel.height) for panel in gallery.panels} == {(LARGEST_SIDE, LARGEST_SIDE)}
    assert any("first 8 of 9" in note for note in gallery.notes) and any("320 pixels" in n for n in gallery.notes)
    small = draw_gallery(comparison, 1_000_000)
    used = sum(len(p.truth) + sum(len(q.image) + len(q.error) for q in p.pictures) for p in small.panels)
    assert 500_000 < used <= 1_000_000
    assert any("left out to keep this page below 1 MB" in note for note in small.notes)


def test_error_maps_have_one_scale_per_image_in_percent_of_the_largest_value(tmp_path: Path) -> None:
    truth = 4 * phantom(0)
    comparison = gallery_study(tmp_path, {"a": truth})
    for variant, size in zip(comparison.variants, (0.2, 0.4), strict=True):
        with h5py.File(variant.outcomes[0].folder / "images.h5", "a") as file:
            for method in ("learned", "zero-filled", "total variation"):
                file[f"{method}/a"][...] = truth + size  # pyright: ignore
    (panel,) = draw_gallery(comparison).panels
    assert panel.scale == pytest.approx(10)  # 0.4 of 4
    assert [picture.method for picture in panel.pictures] == ["baseline", "a=1", "zero-filled", "total variation"]
    assert panel.pictures[0].error != panel.pictures[1].error


def test_color_images_and_damaged_files(tmp_path: Path) -> None:
    color = np.stack([phantom(k) for k in range(3)])
    comparison = gallery_study(tmp_path, {"a": color, "b": color[::-1]})
    assert len(draw_gallery(comparison).panels) == 2
    (comparison.variants[1].outcomes[0].folder / "images.h5").write_bytes(b"\x89HDF\r\n\x1a\n torn")
    gallery = draw_gallery(comparison)
    assert [p.method for p in gallery.panels[0].pictures] == ["baseline", "zero-filled", "total variation"]
    assert gallery.notes[0] == "Without images: a=1."
    write_images(comparison.variants[1].outcomes[0].folder, 30, {"a": phantom(0)}, np.random.default_rng(0))
    (panel,) = draw_gallery(comparison).panels
    assert [p.method for p in panel.pictures] == ["baseline", "zero-filled", "total variation"], "another shape"


def test_of_a_volume_the_middle_slice_is_drawn(tmp_path: Path) -> None:
    truths = {"a": np.stack([phantom(k) for k in range(5)])}
    (panel,) = draw_gallery(gallery_study(tmp_path / "all", truths)).panels
    (middle,) = draw_gallery(gallery_study(tmp_path / "middle", {"a": truths["a"][2]})).panels
    assert panel.truth == middle.truth and len(panel.pictures) == 4
