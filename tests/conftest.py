"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
from known_objects import objects, write_labels
from known_runs import use_known_objects


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real rasters; the tests that need it are skipped where it is not named."""
    name = os.environ.get("WORKBENCH_TEST_DATA")
    if not name:
        pytest.skip("WORKBENCH_TEST_DATA is not set: no real imagery to test with")
    return Path(name).resolve()


@pytest.fixture
def known_objects_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs use known objects, whatever `model` says."""
    use_known_objects(monkeypatch)


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    """A raster of known objects, large enough for 15 small tiles."""
    return write_labels(tmp_path / "scene.tif", objects((230, 330), 1))
