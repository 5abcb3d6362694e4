"""A remote raster on a bad network: patience first, then a failed tile like any other."""

from itertools import pairwise

import pytest
from bad_server import bad_server, write_cloud_raster
from known_objects import objects
from known_runs import counted_calls, equal_layers, job_for

from workbench import run
from workbench.errors import RunFailedError, SceneError
from workbench.raster import sources

pytestmark = pytest.mark.usefixtures("known_objects_only")


@pytest.fixture
def server(tmp_path, monkeypatch):
    write_cloud_raster(tmp_path / "scene.tif", objects((400, 500), 1))
    monkeypatch.setattr(sources, "RETRY_SECONDS", (0.05, 0.1, 0.2))
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.05")
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    with bad_server(tmp_path) as server:
        yield server


@pytest.fixture
def expected(server, tmp_path):
    return run(job_for(tmp_path / "scene.tif", tmp_path / "undisturbed"))


@pytest.mark.parametrize("fault", ["close", "half", "reset", "stall", "503"])
def test_a_network_that_fails_now_and_then_costs_nothing(server, expected, tmp_path, fault):
    server.fail_now_and_then(fault)
    result = run(job_for(f"{server.url}/scene.tif", tmp_path / "run"))
    assert equal_layers(result.layer, expected.layer)
    assert sum(failed is not None for _, _, failed in server.asked) > 0


def test_a_part_that_stays_away_is_failed_tiles_and_only_they_are_tried_again(
    server, expected, tmp_path, monkeypatch
):
    size = (tmp_path / "scene.tif").stat().st_size
    server.fail_within(size - 60_000, size, "close")
    job = job_for(f"{server.url}/scene.tif", tmp_path / "run")
    calls = counted_calls(monkeypatch)
    with pytest.raises(RunFailedError, match=r"tiles failed.*(?s:.*)run again when they are back"):
        run(job)
    n = len(calls)
    assert 0 < n < len(expected.tiles)
    times = [at for at, first, failed in server.asked if failed]
    gaps = [later - at for at, later in pairwise(times)]
    assert max(gaps) > 0.2  # it waited, ever longer
    server.fault = lambda first, last: None
    again = run(job)
    assert len(calls) == len(expected.tiles)
    assert equal_layers(again.layer, expected.layer)


def test_a_server_that_is_away_is_one_sentence_and_another_try_finds_it_back(server, tmp_path):
    job = job_for(f"{server.url}/scene.tif", tmp_path / "run")
    server.fail_within(0, 10**9, "close")
    with pytest.raises(SceneError, match=r"cannot be read as a raster.*Check the address"):
        run(job)
    assert not (tmp_path / "run").exists()
    server.fault = lambda first, last: None
    assert len(run(job).layer)


def test_a_wrong_address_is_told_at_once(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(sources, "RETRY_SECONDS", (60.0,))
    monkeypatch.setattr(sources.time, "sleep", waits.append)
    with pytest.raises(SceneError, match=r"404\. Check the address"):
        run(job_for(f"{server.url}/scenes.tif", tmp_path / "run"))
    assert 60.0 not in waits
