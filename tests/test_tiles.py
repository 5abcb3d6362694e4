import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from known_objects import scene_of

from workbench.raster.tiles import (
    TileGrid,
    tile_name,
    tile_named,
    tile_names,
    tile_windows,
    tiles_over,
)

SIZES = st.integers(1, 700)


@given(SIZES, SIZES, st.integers(64, 200), st.floats(0, 0.5))
def test_cores_partition_the_scene_and_lie_in_their_windows(width, height, size, overlap):
    grid = TileGrid(width, height, size, overlap)
    seen = np.zeros((height, width), int)
    for tile in grid:
        core, window = tile.core, tile.window
        seen[
            core.row_off : core.row_off + core.height, core.col_off : core.col_off + core.width
        ] += 1
        assert (window.width, window.height) == (grid.window_width, grid.window_height)
        assert window.width <= int(1.1 * size)
        assert window.col_off <= core.col_off
        assert core.col_off + core.width <= window.col_off + window.width
        assert window.row_off <= core.row_off
        assert core.row_off + core.height <= window.row_off + window.height
        # beyond the scene only where it is small
        assert window.col_off + window.width <= max(width, size)
        assert window.row_off + window.height <= max(height, size)
    assert (seen == 1).all()
    assert len(list(grid)) == len(grid)


@given(st.integers(1, 20_000), st.integers(64, 2000), st.floats(0, 0.5))
def test_windows_are_spread_evenly_and_never_share_more_than_they_should(length, size, overlap):
    grid = TileGrid(length, 1, size, overlap)
    starts = np.array([tile.window.col_off for tile in grid])
    steps = np.diff(starts)
    assert np.ptp(steps) <= 1 if len(steps) else True
    shared = grid.window_width - steps
    assert (shared >= round(overlap * size) * grid.window_width // size - 2).all()
    assert (shared <= max(0.35, overlap) * grid.window_width + 2).all()
    assert starts[0] == 0
    assert starts[-1] + grid.window_width == max(length, size)


def test_default_tiles_of_a_long_scene():
    grid = TileGrid(5000, 1000)
    starts = [tile.window.col_off for tile in grid]
    assert starts == [0, 795, 1590, 2385, 3180, 3976]
    assert [tile.core.col_off for tile in grid] == [0, 909, 1704, 2499, 3294, 4090]
    assert grid.window_width == grid.window_height == 1024


def test_a_scene_a_little_larger_than_a_tile_is_one_tile():
    (tile,) = TileGrid(1060, 1057)  # 1024 px in degrees, in UTM
    assert (tile.window.width, tile.window.height) == (1060, 1057)
    assert tile.core == tile.window
    (small,) = TileGrid(400, 300)
    assert (small.window.width, small.window.height) == (1024, 1024)
    assert len(TileGrid(1127, 1000)) == 2


def test_an_aoi_selects_the_tiles_whose_core_it_meets():
    scene, grid = scene_of(400, 400), TileGrid(400, 400, 128, 0.25)
    everywhere = tiles_over(scene, grid, None)
    assert len(everywhere) == len(grid) == 16
    left, _, _, top = scene.bounds
    corner = shapely.box(left + 1, top - 20, left + 20, top - 1)
    assert [(tile.row, tile.col) for tile in tiles_over(scene, grid, corner)] == [(0, 0)]
    ring = scene.window_polygon(scene.window).boundary.buffer(1)
    assert len(tiles_over(scene, grid, ring)) == 12  # all but the four in the middle


def test_windows_on_the_map_stay_inside_the_scene():
    scene, grid = scene_of(100, 300), TileGrid(100, 300, 128, 0.25)
    windows = tile_windows(scene, list(grid))
    assert windows.geometry.within(scene.window_polygon(scene.window)).all()
    assert windows.crs == scene.crs
    assert windows["pixel"].to_numpy() == pytest.approx(0.5)
    assert tile_windows(scene, []).empty


def test_the_names_of_rows_are_those_of_their_tiles():
    rows = [("ortho", 0, 0), ("ortho", 12, 3), ("b/c.d", 7, 100)]
    frame = pd.DataFrame(rows, columns=["source", "tile_row", "tile_col"])
    assert tile_names(frame).tolist() == [tile_name(*row) for row in rows]
    assert tile_name("ortho", 12, 3) == "ortho/r12c3"
    assert [tile_named(tile_name(*row)) for row in rows] == rows
