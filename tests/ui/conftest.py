"""The browser of the tests."""

import pytest
from lab import CHROMIUM, FLAGS


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium of the system."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
