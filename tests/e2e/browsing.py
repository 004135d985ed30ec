"""A headless Chromium and what every page that a test opens is watched for: errors in its console, requests to anyone else."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
#: A bound, not a pace, for all that is waited for.
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)
DESKTOP = {"width": 1280, "height": 850}
PHONE = {"width": 390, "height": 844}


def find_chromium() -> str | None:
    """Return the path of a Chromium, if this machine has one that runs: some have a name that only says where to get it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    return None


@contextmanager
def open_browser(executable: str) -> Iterator[Browser]:
    """Run a browser for the length of a block; root cannot have its sandbox."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Visits:
    """Opens contexts (each as a browser of its own) and pages of one site, and remembers what they did wrong."""

    def __init__(self, browser: Browser, site: str) -> None:
        self.browser = browser
        self.site = site
        self.wrong: list[str] = []
        #: What a test provokes: refusals and broken connections are in the console too.
        self.expected: list[str] = []
        self._contexts: list[BrowserContext] = []

    def open(self, **options: Any) -> Page:
        """Return a page in a fresh context."""
        context = self.browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **options})
        context.set_default_timeout(WAIT_MS)
        context.on("page", self._watch)
        self._contexts.append(context)
        return context.new_page()

    def _watch(self, page: Page) -> None:
        page.on(
            "console", lambda said: self._note(f"console: {said.text}") if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self._note(f"error: {error}"))
        page.on("request", lambda request: self._check(request.url))

    def _check(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != self.site:
            self._note(f"request to another origin: {address}")

    def _note(self, wrong: str) -> None:
        if not any(words in wrong for words in self.expected):
            self.wrong.append(wrong)

    def close(self) -> None:
        """Close what was opened."""
        for context in self._contexts:
            with suppress(Exception):
                context.close()


def wait_until(page: Page, condition: Callable[[], Any]) -> Any:
    """Wait until what a page's events were noted in fulfils a condition; return its value. Raises TimeoutError."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come within {WAIT_MS} ms")
        page.wait_for_timeout(10)  # the page's events are told meanwhile
    return found


def picture(page: Page, name: str) -> None:
    """Write a screenshot to the build's output."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")


def is_wider_than_its_window(page: Page) -> bool:
    """Say whether a reader would have to scroll sideways."""
    return bool(
        page.evaluate(
            """() => {
              const width = document.documentElement.clientWidth;
              if (document.documentElement.scrollWidth > width) return true;
              const isOut = (part) => {
                const box = part.getBoundingClientRect();
                const scrolls = part.closest("pre, .table-wrap, .nav, nav, .drawer:not(.open), .sr-only, .skip");
                return !scrolls && box.width > 0 && box.right > width + 1;
              };
              return [...document.querySelectorAll("body *")].some(isOut);
            }"""
        )
    )
