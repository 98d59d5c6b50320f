"""A real Chromium without a screen, through chromedriver's HTTP interface (WebDriver): no package is needed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
INSTALLED = CHROMIUM is not None and DRIVER is not None
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
PATIENCE = 60.0
"""Seconds for a page, on a busy machine."""


class Browser:
    """One browser with one page."""

    def __init__(self, base: str) -> None:
        self._base = base

    def open(self, url: str) -> None:
        """Returns when the page has loaded."""
        self.ask("POST", "/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """The value of a function body in the page."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(args)})

    def wait(self, script: str) -> Any:
        """The value of a function body as soon as it is true there."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.1)
        return value

    def errors(self) -> list[str]:
        """What the console complained about since the last time."""
        return [each["message"] for each in self.ask("POST", "/se/log", {"type": "browser"})]

    def addresses(self) -> list[str]:
        """Whatever the page has fetched."""
        found: list[str] = self.run("return performance.getEntriesByType('resource').map(each => each.name)")
        return found

    def dark(self, dark: bool) -> None:
        """Say which colours its user prefers."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", {"features": features})

    def resize(self, width: int, height: int) -> None:
        """The page's size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", size)

    def picture(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One command of WebDriver."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error

    def _devtools(self, command: str, params: Any) -> None:
        self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})


@contextmanager
def browser(scratch: Path) -> Iterator[Browser]:
    """A browser that knows nobody and goes away again."""
    assert DRIVER is not None and CHROMIUM is not None
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert driver.stdout is not None
        started = next(line for line in driver.stdout if "started successfully on port" in line)
        base = f"http://127.0.0.1:{started.split()[-1].rstrip('.')}/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={scratch / 'profile'}"]}
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "WARNING"}}
        session = Browser(base).ask("POST", "", {"capabilities": {"alwaysMatch": always}})["sessionId"]
        page = Browser(f"{base}/{session}")
        try:
            yield page
        finally:
            page.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(10)
        driver.stdout.close()
