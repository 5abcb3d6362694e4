"""Fixtures shared by all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from known_objects import objects, write_labels
from known_runs import use_known_objects

# their tests start kernels, browsers, clusters or QGIS; other slow tests are marked one by one
SLOW = {
    *("faults", "qgis_gui", "ui"),
    *("test_cluster.py", "test_docs_commands.py", "test_lesson.py", "test_notebooks.py"),
    *("test_qgis.py", "test_real.py", "test_training.py"),
}

if shutil.which("nvidia-smi") is None:
    # no GPU: its kernels run in Triton's interpreter, which must be known before triton is imported
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files and folders as `slow`."""
    here = Path(__file__).parent
    for item in items:
        if SLOW.intersection(item.path.relative_to(here).parts):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real rasters; the tests that need it are skipped where it is not named."""
    name = os.environ.get("WORKBENCH_TEST_DATA")
    if not name:
        pytest.skip("WORKBENCH_TEST_DATA is not set: no real imagery to test with")
    return Path(name).resolve()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a second thread, and lose much on a busy machine."""
    import torch  # takes seconds, which the other tests are spared

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def known_objects_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs use known objects, whatever `model` says."""
    use_known_objects(monkeypatch)


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    """A raster of known objects, large enough for 15 small tiles."""
    return write_labels(tmp_path / "scene.tif", objects((230, 330), 1))
