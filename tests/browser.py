"""A real browser for pages that longgen writes: Chromium without a window, if the machine has one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Opened(NamedTuple):
    """An open page. requests: the addresses it asked for beside its own file. complaints: its console's errors and warnings."""

    page: Page
    requests: list[str]
    complaints: list[str]


@contextmanager
def started() -> Iterator[Browser]:
    """A browser to open several pages in. Skips the test, with the reason, where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here: install the system's package `chromium`")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: install longgen with its extra `test`")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(ARGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, file: Path, width: int = 900, dark: bool = False) -> Iterator[Opened]:
    """The local page `file`, loaded, `width` pixels wide."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.resolve().as_uri())
    requests.remove(file.resolve().as_uri())
    try:
        yield Opened(page, requests, complaints)
    finally:
        context.close()
