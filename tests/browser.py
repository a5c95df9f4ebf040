"""Chromium, for tests of pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.support.wait import WebDriverWait

from tyre_lightning.demo import person

browser_tests = [pytest.mark.browser, pytest.mark.skipif(not person.has_chromium(), reason=person.INSTALL)]


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Chromium without a window, which keeps what pages log and ask for."""
    driver = person.chromium(str(profile), logs=True)
    driver.get("about:blank")  # so that no page of Chromium's own is still loading
    yield driver
    driver.quit()


def open_page(driver: Any, address: str) -> None:
    """Open a page, and wait until its scripts have run: a driver may come back while a large one is still read."""
    driver.get(address)
    loaded = "return document.readyState === 'complete' && location.href === arguments[0]"
    WebDriverWait(driver, 60).until(lambda driver: driver.execute_script(loaded, address))


def resize(driver: Any, width: int, height: int = 800) -> None:
    """A window of some size; a narrow one is a telephone's."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def asked(driver: Any) -> list[str]:
    """The addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
