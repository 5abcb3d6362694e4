"""The process that segments: its events, cancelling, and what is left when it dies."""

import os
import queue
import signal
import time

import numpy as np
import psutil
import pytest
from known_objects import objects, write_labels
from shapely.geometry import box, mapping

from workbench import Job, run
from workbench.candidates.store import CandidateStore
from workbench.errors import WorkbenchError
from workbench.raster.crs import to_lonlat
from workbench.runs.plan import open_scenes
from workbench.tuning import process
from workbench.tuning.process import Background, Finished, Planned, Stopped, TileDone, Work


@pytest.fixture
def events():
    return queue.Queue()


@pytest.fixture
def background(events):
    made = Background(events.put)
    yield made
    made.close()


def until(events, *kinds, seconds=120):
    """All events up to the first of some kinds."""
    seen = []
    while not seen or not isinstance(seen[-1], kinds):
        seen.append(events.get(timeout=seconds))
    return seen


@pytest.fixture
def job(raster, tmp_path):
    # the classic Segmenter: a fake one would have to be made in the other process, too
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "run"), model="classic", tile_size=128,
        min_area_px=20,
    )  # fmt: skip


def test_samples_are_computed_once_and_kept_for_the_run(background, events, job, tmp_path):
    wanted = frozenset({("scene", 0, 0), ("scene", 1, 2)})
    background.start(Work(job, wanted))
    first = until(events, Finished, Stopped)
    assert first[0] == Planned(2, 0)
    assert isinstance(first[-1], Finished)
    tiles = {event.record.index: event for event in first[1:-1]}
    assert set(tiles) == wanted
    assert not any(event.stored for event in tiles.values())
    assert not (tmp_path / "run" / "prelabels.gpkg").exists()

    background.start(Work(job, wanted | {("scene", 0, 1)}))
    second = until(events, Finished, Stopped)
    assert second[0] == Planned(3, 2)
    again = {event.record.index: event for event in second[1:-1]}
    assert {index for index, event in again.items() if event.stored} == wanted
    for index in wanted:
        assert again[index].candidates.table.equals(tiles[index].candidates.table)

    background.start(Work(job))
    third = until(events, Finished, Stopped)
    assert third[0].n_stored == 3
    assert third[-1] == Finished(tmp_path / "run")
    assert len(third) - 2 == third[0].n_tiles - 3
    assert (tmp_path / "run" / "prelabels.gpkg").exists()
    assert len(run(job).tiles) == third[0].n_tiles


def test_a_sample_outside_an_area_that_was_drawn_later_is_computed_too(background, events, job):
    (scene,) = open_scenes(job)
    left, bottom, right, top = scene.bounds
    lon, lat = to_lonlat(scene.crs, [left, left + (right - left) / 10], [bottom, top])
    aoi = mapping(box(lon[0], lat[0], lon[1], lat[1]))
    outside = ("scene", 0, 2)
    background.start(Work(job.changed(aoi=aoi), frozenset({outside})))
    planned, tile, finished = until(events, Finished, Stopped)
    assert planned == Planned(1, 0)
    assert tile.record.index == outside
    assert isinstance(finished, Finished)


def test_a_bad_job_is_a_sentence_and_the_next_one_runs(background, events, job):
    background.start(Work(job.changed(aoi={"type": "Point", "coordinates": [0, 0]})))
    (stopped,) = until(events, Finished, Stopped)
    assert "no polygons" in stopped.reason
    assert not background.busy
    background.start(Work(job, frozenset({("scene", 0, 0)})))
    with pytest.raises(WorkbenchError, match="being computed"):
        background.start(Work(job))
    assert isinstance(until(events, Finished, Stopped)[-1], Finished)


def test_a_model_that_is_loaded_ahead_shows_the_first_polygons_early(background, events, tmp_path):
    # crops make it last longer than it takes until the first look
    job = Job.create(
        out_dir=str(tmp_path / "tiny"), model="tiny", points_per_side=20, crop_n_layers=1
    )
    background.get_ready(job.changed(source="missing.tif"))  # says nothing, does no work
    background.get_ready(job)
    ahead = background._process
    background.start(Work(job, frozenset({("sample", 0, 0)})))
    planned, *seen, done, finished = until(events, Finished, Stopped)
    assert background._process is ahead
    assert planned == Planned(1, 0)
    assert isinstance(finished, Finished)
    shares = [event.share for event in seen]
    assert len(shares) >= 2
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
    early = [event for event in seen if event.candidates is not None]
    assert early
    assert {event.record.index for event in early} == {("sample", 0, 0)}
    # of the whole, what is there so far
    known = set(done.candidates.column("ordinal").tolist())
    assert len(early[0].candidates) < len(known)


@pytest.fixture
def long_job(tmp_path):
    labels = np.tile(objects((500, 500), 3, n=60), (3, 3))
    source = write_labels(tmp_path / "large.tif", labels)
    return Job.create(
        source=str(source), out_dir=str(tmp_path / "run"), model="classic", tile_size=256
    )


def test_cancelled_work_ends_early_and_goes_on_later(background, events, long_job, tmp_path):
    background.start(Work(long_job))
    seen = until(events, TileDone)
    background.cancel()
    seen += until(events, Finished, Stopped)
    assert seen[-1] == Stopped("")
    assert not background.busy
    known = CandidateStore(tmp_path / "run" / "candidates").ledger()
    background.start(Work(long_job, frozenset({("large", 0, 0), ("large", 0, 1)})))
    planned = until(events, Planned)[-1]
    assert planned.n_stored == len(known.keys() & {("large", 0, 0), ("large", 0, 1)})
    background.cancel()


def test_a_process_that_is_killed_says_so_and_is_replaced(background, events, long_job):
    background.start(Work(long_job))
    until(events, TileDone)
    os.kill(background._process.pid, signal.SIGKILL)
    assert "memory" in until(events, Finished, Stopped)[-1].reason
    background.start(Work(long_job, frozenset({("large", 0, 0)})))
    assert isinstance(until(events, Finished, Stopped)[-1], Finished)


def test_a_process_that_dies_says_where_the_reason_is_and_what_to_do():
    told = process._last_words(3)
    assert "exit code 3" in told
    assert "terminal of JupyterLab" in told
    assert "run the cell again" in told
    assert "tiles are kept" in told
    assert "smaller model or tile_size" in process._last_words(-signal.SIGKILL)


def test_closing_ends_the_process_and_says_nothing(background, events, long_job):
    background.start(Work(long_job))
    until(events, TileDone)
    running = background._process
    background.close()
    assert running.poll() is not None
    time.sleep(0.3)
    while not events.empty():
        assert not isinstance(events.get(), Stopped)


def test_a_kernel_that_restarts_need_not_wait_for_its_children(background, events, job):
    # it sends them SIGTERM until none is left
    before = set(psutil.Process().children())
    background.start(Work(job, frozenset({("scene", 0, 0)})))
    until(events, Finished)
    children = set(psutil.Process().children()) - before
    assert children
    for child in children:
        child.terminate()
    assert psutil.wait_procs(children, timeout=10)[1] == []
