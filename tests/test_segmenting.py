"""Tiles through the threads: order, errors, how many are in work, and how they stop."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
from known_objects import KnownObjects

from workbench.candidates.table import Rules
from workbench.raster.open import open_scene
from workbench.raster.tiles import TileGrid, tiles_over
from workbench.runs import tile_stream as segmenting
from workbench.runs.tile_stream import ScenePlan, segment_tiles

RULES = Rules(96, 96)


@pytest.fixture
def part(raster) -> ScenePlan:
    scene = open_scene(str(raster))
    grid = TileGrid(scene.width, scene.height, 96, 0.25)
    return ScenePlan(scene, grid, tuple(tiles_over(scene, grid, None)))


class Steps(KnownObjects):
    """Known objects that take three steps, which may be watched, slow or fail."""

    def __init__(self, step=lambda: None):
        super().__init__(RULES)
        object.__setattr__(self, "step", step)

    def propose(self, image, watch=None):
        found = super().propose(image)
        for i in range(3):
            self.step()
            if watch is not None:
                watch(i / 3, lambda: found)
        return found


class InTwo(KnownObjects):
    """Known objects whose last step is for the host alone."""

    def __init__(self, rest):
        super().__init__(RULES)
        object.__setattr__(self, "rest", rest)
        object.__setattr__(self, "begun", [])

    def begin(self, image, watch=None):
        self.begun.append(threading.current_thread().name)
        number = len(self.begun) - 1

        def rest():
            self.rest(number)
            return self.propose(image)

        return rest


def tables(tiles):
    return [(tile.tile, tile.record.status, tile.candidates.table) for tile in tiles]


def test_tiles_come_in_their_order_whatever_their_time(part):
    rng = np.random.default_rng(0)
    plain = tables(segment_tiles(part, part.tiles, KnownObjects(RULES)))
    uneven = Steps(lambda: time.sleep(rng.uniform(0, 0.01)))
    assert [tile for tile, _, _ in plain] == list(part.tiles)
    assert tables(segment_tiles(part, part.tiles, uneven)) == plain
    backward = tables(segment_tiles(part, part.tiles[::-1], uneven))
    assert backward == plain[::-1]


def test_a_tile_is_yielded_while_the_next_is_still_computed(part):
    """The first polygons must not wait for a second tile."""
    seen, steps = threading.Event(), []

    def step() -> None:
        steps.append(1)
        if len(steps) > 3:
            assert seen.wait(30)

    with closing(segment_tiles(part, part.tiles[:3], Steps(step))) as tiles:
        next(tiles)
        seen.set()
        assert [tile.record.status for tile in tiles] == ["ok", "ok"]


def test_no_more_tiles_are_begun_than_are_in_work(part):
    begun = []

    def counted():
        for tile in part.tiles:
            begun.append(tile)
            yield tile

    for n, _ in enumerate(segment_tiles(part, counted(), KnownObjects(RULES))):
        assert len(begun) <= n + segmenting.TILES_IN_WORK


def test_C6_an_error_is_in_the_record_of_its_tile(part):
    calls = []

    def fails() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise OSError("no such luck")

    tiles = list(segment_tiles(part, part.tiles, Steps(fails)))
    assert [tile.tile for tile in tiles] == list(part.tiles)
    (failed,) = [tile for tile in tiles if tile.record.status == "failed"]
    assert failed.tile == part.tiles[1]
    assert failed.record.error == "OSError: no such luck"
    assert len(failed.candidates) == 0


def test_C6_a_tile_that_cannot_be_read_is_in_its_record(part, raster):
    raster.unlink()
    first, *_ = segment_tiles(part, part.tiles[:2], KnownObjects(RULES))
    assert first.record.status == "failed"
    assert "scene.tif" in first.record.error


def test_closing_stops_the_computation_after_its_step_and_does_not_wait(part):
    at_step, go_on, steps = threading.Event(), threading.Event(), []

    def step() -> None:
        steps.append(1)
        if len(steps) == 5:
            at_step.set()
            assert go_on.wait(30)

    tiles = segment_tiles(part, part.tiles, Steps(step))
    next(tiles)
    assert at_step.wait(30)
    before = set(threading.enumerate())
    tiles.close()
    go_on.set()
    for thread in before - {threading.main_thread()}:
        if thread.name.startswith("compute"):
            thread.join(30)
    assert len(steps) == 5


def test_who_watches_is_told_in_his_own_thread(part):
    told = []

    def watch(share, so_far):
        assert threading.current_thread() is threading.main_thread()
        told.append((share, so_far()))

    tiles = list(segment_tiles(part, part.tiles[:4], Steps(lambda: time.sleep(0.02)), watch))
    assert {share for share, _ in told} <= {0, 1 / 3, 2 / 3}
    of_first = [tile for _, tile in told if tile.tile == part.tiles[0]]
    assert of_first
    assert of_first[0].candidates.table == tiles[0].candidates.table
    assert of_first[0].record.seconds <= tiles[0].record.seconds
    assert not of_first[0].whole
    assert tiles[0].whole


def test_seconds_are_those_of_the_tile_alone(part):
    tiles = list(segment_tiles(part, part.tiles[:6], Steps(lambda: time.sleep(0.02))))
    assert all(tile.record.seconds >= 0.06 for tile in tiles)
    assert min(tile.record.seconds for tile in tiles) < 0.12  # not the wait for those before it


def test_a_tile_is_finished_while_the_next_is_computed(part):
    """The network must not wait for what the host alone has to do."""
    second = threading.Event()

    def rest(number):
        if number == 0:
            assert second.wait(30)

    class Late(InTwo):
        def begin(self, image, watch=None):
            if len(self.begun) == 1:
                second.set()
            return super().begin(image)

    segmenter = Late(rest)
    found = tables(segment_tiles(part, part.tiles, segmenter))
    assert found == tables(segment_tiles(part, part.tiles, KnownObjects(RULES)))
    assert {name.split("_")[0] for name in segmenter.begun} == {"compute"}


def test_the_network_is_not_far_ahead_of_what_is_finished(part):
    """What it leaves for the host is held in memory."""
    ahead = []
    segmenter = InTwo(lambda number: ahead.append(len(segmenter.begun) - number))
    assert len(list(segment_tiles(part, part.tiles, segmenter))) == len(part.tiles)
    assert max(ahead) <= segmenting.TILES_IN_WORK


def test_C6_an_error_after_the_network_is_in_the_record_of_its_tile(part):
    def rest(number):
        if number == 1:
            raise OSError("no such luck")

    tiles = list(segment_tiles(part, part.tiles, InTwo(rest)))
    assert [tile.tile for tile in tiles] == list(part.tiles)
    (failed,) = [tile for tile in tiles if tile.record.status == "failed"]
    assert (failed.tile, failed.record.error) == (part.tiles[1], "OSError: no such luck")


def test_no_tiles_are_no_work(part):
    assert list(segment_tiles(part, (), KnownObjects(RULES))) == []
