"""Tests with a real browser are left out where there is none."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import INSTALLED, Browser, browser

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # made-up runs


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Browser]:
    """A browser of its own."""
    if not INSTALLED:
        pytest.skip("chromium or chromedriver is not installed")
    (tmp_path / "browser").mkdir()
    with browser(tmp_path / "browser") as page:
        yield page
