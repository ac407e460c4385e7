"""Pages in headless Chromium, cut off from the network, with its console and its requests at hand."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
_QUIET = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --force-device-scale-factor=1"
)


@contextlib.contextmanager
def chromium(width: int = 1240, height: int = 1000, dark: bool = False) -> Iterator[WebDriver]:
    """A browser with a fresh profile; skips the test where there is none."""
    missing = [path.name for path in (CHROMIUM, DRIVER) if not path.exists()]
    if missing:
        pytest.skip(f"needs a browser: no {', '.join(missing)} in /usr/bin")
    logging.getLogger("selenium").setLevel(logging.WARNING)
    profile = tempfile.mkdtemp(prefix="chromium-")
    options = Options()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in [*_QUIET.split(), f"--window-size={width},{height}", f"--user-data-dir={profile}"]:
        options.add_argument(argument)
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    try:
        driver.get("about:blank")
        requests(driver)  # those of the page that the browser begins with
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": _features(dark)})
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def console(driver: WebDriver) -> list[str]:
    """What the page has written to the console since the last time."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: WebDriver) -> list[str]:
    """The addresses that the page has asked for since the last time."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [message["params"]["request"]["url"] for message in sent]


def screenshot(page: Path, picture: Path, section: str = "", width: int = 1240, dark: bool = False) -> None:
    """A PNG of a page, all of it or one of its sections.

    Args:
        page: `report.html`.
        picture: The file to write.
        section: Its id; empty for the page.
        width: Of the window, in pixels.
        dark: With the colours for a dark room.
    """
    with chromium(width, 900, dark) as driver:
        driver.get(page.resolve().as_uri())
        driver.execute_script("document.querySelector('nav').style.position = 'static'")
        box = driver.execute_script(
            "const b = (arguments[0] ? document.getElementById(arguments[0]) : document.body).getBoundingClientRect();"
            "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height, scale: 1};",
            section,
        )
        shot = driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "clip": box, "captureBeyondViewport": True}
        )
    picture.write_bytes(base64.b64decode(shot["data"]))


def _features(dark: bool) -> list[dict[str, str]]:
    """The colours that are asked for, and no animated scrolling, which would move what is to be clicked."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    return [scheme, {"name": "prefers-reduced-motion", "value": "reduce"}]
