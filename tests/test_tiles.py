import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from known_objects import scene_of

from workbench.raster.tiles import TileGrid, tile_windows, tiles_over

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
        assert (window.width, window.height) == (size, size)
        assert window.col_off <= core.col_off
        assert core.col_off + core.width <= window.col_off + size
        assert window.row_off <= core.row_off
        assert core.row_off + core.height <= window.row_off + size
        assert window.col_off + size <= max(width, size)  # beyond the scene only where it is small
        assert window.row_off + size <= max(height, size)
    assert (seen == 1).all()
    assert len(list(grid)) == len(grid)


def test_default_tiles_overlap_by_192_pixels():
    grid = TileGrid(3000, 1000)
    starts = [tile.window.col_off for tile in grid]
    assert starts == [0, 832, 1664, 1976]
    assert [tile.core.col_off for tile in grid] == [0, 928, 1760, 2332]


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
