"""A person at the page of the review, in a real browser, who knows what the tyres show."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tyre_lightning.errors import UserError

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

INSTALL = "apt-get install --no-install-recommends chromium chromium-driver"
_PATIENCE = 20  # seconds for a page to go on


def has_chromium() -> bool:
    """Whether Chromium and its driver are installed."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


def chromium(profile: str, *, logs: bool = False) -> Chrome:
    """Chromium without a window.

    Args:
        profile: a folder for what it keeps.
        logs: whether it keeps what pages log and ask for.
    """
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    if logs:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Chrome(options, ChromeService(shutil.which("chromedriver")))


class Person:
    """Chromium, without a window, and the truth.

    Use it as a context manager.

    Args:
        truth: the folder of files of what was drawn, see :func:`tyre_lightning.demo.days.write_day`.
        name: which the answers carry.
    """

    def __init__(self, truth: Path, name: str = "Ann") -> None:
        self._name = name
        self._shows: dict[str, str] = {}
        for path in truth.glob("*.json"):
            self._shows |= json.loads(path.read_text(encoding="utf-8"))

    @staticmethod
    def check() -> None:
        """See that there is a browser, before anything begins.

        Raises:
            UserError: there is none.
        """
        try:
            import selenium  # noqa: F401
        except ImportError as error:
            raise UserError("a person needs a browser: pip install 'tyre-lightning[dev]'") from error
        if not has_chromium():
            raise UserError(f"a person needs a browser: {INSTALL}")

    def __enter__(self) -> Person:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = chromium(self._profile.name)
        self._driver.set_window_size(1280, 800)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._driver.quit()
        self._profile.cleanup()

    def answer(self, address: str) -> int:
        """Answer all tyres of the page at an address by its keys; gives how many.

        Raises:
            UserError: the page does not go on.
        """
        self._driver.get(address)
        self._find("#given").send_keys(self._name + "\n")
        count = 0
        while (name := self._next()) is not None:
            self._say(self._shows[name.rpartition("/")[2]])
            self._until(lambda shown=name: self._shown() != shown, f"it stays at {name}")
            count += 1
        return count

    def _say(self, label: str) -> None:
        keys = {text.partition("\n")[2] or text[1:]: text[0] for text in self._texts("#answers button")}
        if label in keys:
            self._press(keys[label])
            return
        self._press("x")
        self._find("#called").send_keys(label + "\n")

    def _next(self) -> str | None:
        """The tyre that is shown, once its picture is; None: there is none left."""
        self._until(lambda: bool(self._shown()) or self._is_shown("#end"), "it shows no tyre")
        if self._is_shown("#end"):
            return None
        self._until(lambda: self._is_shown("#large") or self._is_shown("#fault"), "it shows no picture")
        return self._shown()

    def _shown(self) -> str:
        return self._text("#name") if self._is_shown("main") else ""

    def _until(self, holds: Any, what: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not holds():
            if time.monotonic() > end:
                raise UserError(f"the page does not go on: {what}; {self._text('#note')}")
            time.sleep(0.01)

    def _press(self, key: str) -> None:
        self._find("body").send_keys(key)

    def _find(self, place: str) -> Any:
        return self._driver.find_element("css selector", place)

    def _texts(self, place: str) -> list[str]:
        return [one.text for one in self._driver.find_elements("css selector", place)]

    def _text(self, place: str) -> str:
        return str(self._driver.execute_script("return document.querySelector(arguments[0]).textContent", place))

    def _is_shown(self, place: str) -> bool:
        return bool(self._driver.execute_script("return !document.querySelector(arguments[0]).hidden", place))
