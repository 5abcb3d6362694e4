"""The area that polygons along pixel edges share, counted and intersected."""

import numpy as np
import pandas as pd
import shapely
from hypothesis import given
from hypothesis import strategies as st
from known_objects import candidates_of, scene_of

from workbench.candidates.table import Rules
from workbench.polygons import pixel_area
from workbench.polygons.build import to_polygons
from workbench.polygons.overlap import common_area
from workbench.polygons.pixel_area import Lattice, Lattices, common_pixel_area
from workbench.raster.tiles import TileGrid, tile_windows

SCENE, GRID = scene_of(40, 30), TileGrid(40, 30, 40)
(LATTICE,) = [Lattices(tile_windows(SCENE, list(GRID)))[0]]


def outlines(masks):
    """The polygons of masks of 30 × 40 pixels."""
    padded = np.pad(masks, ((0, 0), (0, 10), (0, 0)))
    found = candidates_of(list(padded), [0.9] * len(masks), Rules(40, 40))
    return to_polygons(found, SCENE, GRID, {}).geometry.to_numpy()


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.integers(1, 12))
def test_counted_is_intersected_whatever_the_shapes(seed, share, grain):
    rng = np.random.default_rng(seed)
    masks = rng.random((6, 30 // grain + 1, 40 // grain + 1)) < share
    masks = masks.repeat(grain, axis=1).repeat(grain, axis=2)[:, :30, :40]
    masks[:, 5, 5] = True  # none is empty
    one, other = np.split(outlines(masks), 2)
    counted = common_pixel_area(one, other, LATTICE)
    assert np.allclose(counted, shapely.area(shapely.intersection(one, other)), rtol=0, atol=1e-6)
    assert (counted / LATTICE.pixel**2 == (masks[:3] & masks[3:]).sum(axis=(1, 2))).all()


def test_many_are_counted_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    one, other = np.split(outlines(rng.random((40, 30, 40)) < 0.5), 2)
    expected = common_pixel_area(one, other, LATTICE)
    monkeypatch.setattr(pixel_area, "AT_ONCE", 1)
    assert (common_pixel_area(one, other, LATTICE) == expected).all()
    assert len(common_pixel_area(one[:0], other[:0], LATTICE)) == 0


def test_what_lies_beside_the_pixels_is_intersected():
    square = shapely.box(500_000, 5_299_990, 500_010, 5_300_000)
    moved = shapely.box(500_005.1, 5_299_990, 500_020, 5_300_000)
    for beside in (moved, square.centroid.buffer(3)):
        one, other = np.array([square], object), np.array([beside], object)
        assert common_pixel_area(one, other, LATTICE) is None
        area = common_area(one, other, LATTICE)
        assert np.allclose(area, square.intersection(beside).area)


def test_windows_of_one_source_share_a_lattice():
    windows = pd.concat(
        [tile_windows(scene_of(200, 90, name=name), list(TileGrid(200, 90, 96))) for name in "ab"],
        ignore_index=True,
    )
    lattices = Lattices(windows)
    assert (np.unique(lattices.source, return_counts=True)[1] == len(windows) // 2).all()
    offset = (lattices[1].x - lattices[0].x) / lattices[0].pixel
    assert offset == round(offset) > 0
    assert isinstance(lattices[0], Lattice)
