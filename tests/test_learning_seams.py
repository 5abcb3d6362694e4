"""Seams where polygons have classes: only what has the same class is one object."""

import numpy as np
import pandas as pd
import shapely
from known_objects import KnownObjects, paint, scene_of

from workbench.candidates.offer import Offer
from workbench.candidates.table import Rules
from workbench.polygons import seams
from workbench.polygons.build import to_polygons
from workbench.raster.tiles import TileGrid, tile_names, tile_windows
from workbench.runs.by_hand import ShapesByHand, give_way


def as_seen(*, classes, scores=(0.9, 0.9), width=(20, 150)):
    """One object across two tiles, as each saw it, with a class for each half; and the windows."""
    labels = np.zeros((96, 168), int)
    labels[10:80, width[0] : width[1]] = 1
    scene, grid = scene_of(168, 96), TileGrid(168, 96, 96, 0.25)
    seen = []
    for tile, class_id, score in zip(grid, classes, scores, strict=True):
        x = tile.window.col_off
        candidates = KnownObjects(Rules(96, 96)).propose(paint(labels[:, x : x + 96]))
        traced = to_polygons(candidates.at_tile(tile.row, tile.col), scene, grid, {})
        seen.append(traced.assign(class_id=class_id, class_score=score))
    return seen, tile_windows(scene, list(grid))


def merge(seen, windows):
    merged = seams.merge_seams(seen, windows, offer=Offer(overlaps="all"))
    return pd.concat(merged, ignore_index=True)


def halves(**how):
    return merge(*as_seen(**how))


def test_halves_of_one_class_are_one_object():
    merged = halves(classes=(2, 2))
    assert merged["class_id"].tolist() == [2]
    assert merged["area_px"].tolist() == [70 * 130]
    assert merged["n_tiles"].tolist() == [2]


def test_halves_of_two_classes_stay_two():
    merged = halves(classes=(1, 2))
    assert sorted(merged["class_id"]) == [1, 2]
    assert (merged["n_tiles"] == 1).all()


def test_the_better_class_score_gives_the_merged_one_its_score():
    merged = halves(classes=(1, 1), scores=(0.6, 0.8))
    assert merged["class_score"].tolist() == [0.8]
    assert merged["tile_col"].tolist() == [1]


def test_what_two_tiles_see_whole_is_there_once_whatever_its_class():
    merged = halves(classes=(1, 2), scores=(0.6, 0.8), width=(76, 92))
    assert len(merged) == 1


def test_a_shape_in_place_of_one_half_leaves_the_other_half_that_was_judged():
    seen, windows = as_seen(classes=(2, 2))
    seen = [half.assign(accepted_iou=1.0) for half in seen]
    second = seen[1].iloc[0]
    label = f"{tile_names(seen[1])[0]}/{second['ordinal']}"
    none = ShapesByHand.none(windows.crs)
    shapes = none.with_shape(second.geometry, 2, label, second.geometry).frame
    merged = merge([give_way(half, shapes) for half in seen], windows)
    assert merged["tile_col"].tolist() == [0]
    assert merged.geometry[0].equals(seen[0].geometry[0])
    assert merged["accepted_iou"].tolist() == [1]
    # another model may give its candidates the same names
    moved = shapely.affinity.translate(second.geometry, 9, 0)
    other = none.with_shape(second.geometry, 2, label, moved).frame
    assert merge([give_way(half, other) for half in seen], windows)["n_tiles"].tolist() == [2]
