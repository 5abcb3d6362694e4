"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real rasters; the tests that need it are skipped where it is not named."""
    name = os.environ.get("WORKBENCH_TEST_DATA")
    if not name:
        pytest.skip("WORKBENCH_TEST_DATA is not set: no real imagery to test with")
    return Path(name).resolve()
