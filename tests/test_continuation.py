"""A cut piece is continued by what the neighbour stored but did not select."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from known_objects import TRANSFORM, AtOnce, candidates_of, scene_of, write_labels
from pycocotools import mask as coco

from workbench import Job, run
from workbench.candidates.offer import Offer, TileMasks
from workbench.candidates.rle import cropped, encode_masks
from workbench.candidates.table import Candidates, Rules
from workbench.polygons.build import to_polygons
from workbench.polygons.continuation import Continuations
from workbench.polygons.seams import merge_seams
from workbench.raster.tiles import TileGrid, tile_windows
from workbench.runs import choose

# windows are x 0..96 and 72..168
GRID = TileGrid(168, 96, 96, 0.25)
RULES = Rules(96, 96)


def mask(x0, y0, x1, y1):
    """Of the scene; the tile sees what lies in its window."""
    whole = np.zeros((96, 168), bool)
    whole[y0:y1, x0:x1] = True
    return whole


def seen(tile, masks, scores):
    x = GRID.tile(0, tile).window.col_off
    windows = [whole[:, x : x + 96] for whole in masks]
    return candidates_of(windows, scores, RULES).at_tile(0, tile)


def continued(left, right, stored, offer=Offer()):  # noqa: B008
    """Rows of what the right tile stored that continue something, beside what it selected."""
    cut = Continuations(GRID)
    one, other = GRID.tile(0, 0), GRID.tile(0, 1)
    cut.see(other, seen(1, right, [0.9] * len(right)))
    cut.see(one, seen(0, left, [0.95] * len(left)))
    everything = seen(1, [*right, *stored], [0.9] * len(right) + [0.6] * len(stored))
    masks = TileMasks(everything, other, GRID, None)
    assert set(cut.turn()) <= {(0, 0), (0, 1)}
    return cut.found(other, everything, np.arange(len(right)), masks, offer).continues.tolist()


FIELD = mask(30, 20, 140, 60)


def test_a_cut_piece_is_continued_by_a_mask_below_the_thresholds():
    assert continued([FIELD], [], [FIELD]) == [0]
    assert continued([FIELD], [], [mask(72, 70, 140, 90)]) == []  # does not agree


def test_of_several_the_one_that_agrees_best_continues_it():
    near = mask(30, 22, 140, 64)
    assert continued([FIELD], [], [near, FIELD, near]) == [1]


def test_what_the_neighbour_has_selected_needs_no_other():
    assert continued([FIELD], [mask(30, 21, 140, 60)], [FIELD]) == []


def test_what_is_not_cut_is_not_continued():
    assert continued([mask(30, 20, 80, 60)], [], [mask(72, 20, 140, 60)]) == []
    # the neighbour sees all of it, and has not proposed it
    assert continued([mask(76, 20, 96, 60)], [], [FIELD]) == []


@pytest.mark.parametrize("score", [0.95, 0.8])
def test_it_competes_with_what_it_overlaps_by_the_score_of_the_piece(score):
    other = mask(100, 10, 160, 60)
    assert continued([FIELD], [other], [FIELD]) == [1]
    scene = scene_of(168, 96)
    selected = [seen(0, [FIELD], [0.9]), seen(1, [other], [score])]
    more = seen(1, [FIELD], [0.6]).with_column("ordinal", [1])
    frames = [to_polygons(c, scene, GRID, {}).assign(continues=False) for c in selected]
    frames.append(to_polygons(more, scene, GRID, {}).assign(continues=True))
    merged = pd.concat(merge_seams(frames, tile_windows(scene, list(GRID))))
    assert merged["area_px"].tolist() == [60 * 50 if score > 0.9 else 110 * 40]


def test_a_stub_that_the_neighbour_does_not_show_is_no_part_of_the_object():
    scene = scene_of(168, 96)
    windows = tile_windows(scene, list(GRID))
    with_stub = FIELD | mask(90, 20, 96, 80)  # up to the edge of the left window, 96
    one, other = seen(0, [with_stub], [0.95]), seen(1, [FIELD], [0.95])
    polygons = [to_polygons(c, scene, GRID, {}) for c in (one, other)]
    (merged,) = pd.concat(merge_seams(polygons, windows)).geometry
    (x0, y0), (x1, y1) = TRANSFORM @ (30, 20), TRANSFORM @ (140, 60)
    assert shapely.equals(merged, shapely.box(x0, y1, x1, y0))


def test_of_two_that_the_same_mask_continues_the_other_is_no_label():
    scene = scene_of(168, 96)
    part = mask(60, 22, 140, 58)
    polygons = [
        to_polygons(c, scene, GRID, {})
        for c in (seen(0, [FIELD, part], [0.95, 0.9]), seen(1, [FIELD], [0.95]))
    ]
    merged = pd.concat(merge_seams(polygons, tile_windows(scene, list(GRID))))
    assert merged["area_px"].tolist() == [110 * 40]


def test_what_fills_its_tile_continues_nothing_on_one_side():
    background = mask(30, 0, 168, 95)
    one, other = seen(0, [background], [0.95]), seen(1, [background], [0.6])
    cut, (left, right) = Continuations(GRID), GRID
    cut.see(left, one)
    cut.see(right, Candidates.empty(RULES))
    assert cut.turn() == [(0, 1)]
    masks = TileMasks(other, right, GRID, None)
    found = cut.found(right, other, np.empty(0, np.int64), masks, Offer())
    assert (found.continues.tolist(), found.too_large.tolist()) == ([], [0])
    assert continued([mask(30, 0, 168, 95)], [], [mask(30, 0, 168, 95)]) == []  # all of its tile


boxes = st.tuples(*[st.integers(0, 30)] * 4)


@given(st.integers(0, 2**32 - 1), boxes)
def test_cropping_is_exact(seed, box):
    masks = np.random.default_rng(seed).random((3, 31, 37)) < 0.5
    x0, y0 = box[:2]
    x1, y1 = min(x0 + 1 + box[2], 37), min(y0 + 1 + box[3], 31)
    parts = cropped(encode_masks(masks), 31, 37, (x0, y0, x1, y1))
    for part, whole in zip(parts, masks, strict=True):
        assert (coco.decode(part).view(bool) == whole[y0:y1, x0:x1]).all()


def test_what_continues_a_piece_is_continued_itself():
    grid = TileGrid(240, 96, 96, 0.25)  # windows are x 0..96, 72..168 and 144..240
    tiles = list(grid)
    field = np.zeros((96, 240), bool)
    field[20:60, 30:220] = True

    def stored(tile, score):
        x = tile.window.col_off
        return candidates_of([field[:, x : x + 96]], [score], RULES).at_tile(0, tile.col)

    cut = Continuations(grid)
    cut.see(tiles[0], stored(tiles[0], 0.95))
    for tile in tiles[1:]:
        cut.see(tile, Candidates.empty(RULES))
    rounds = []
    while wanted := cut.turn():
        rounds.append(wanted)
        for row, col in wanted:
            there = stored(grid.tile(row, col), 0.6)
            masks = TileMasks(there, grid.tile(row, col), grid, None)
            chosen = np.zeros(1 if col == 0 else 0, np.int64)
            more = cut.found(grid.tile(row, col), there, chosen, masks, Offer())
            assert more.continues.tolist() == ([0] if len(rounds) == col else [])
    assert rounds[:2] == [[(0, 1)], [(0, 0), (0, 2)]]


def test_what_continues_nothing_is_no_label():
    scene = scene_of(168, 96)
    polygons = to_polygons(seen(1, [mask(100, 20, 150, 60)], [0.6]), scene, GRID, {})
    windows = tile_windows(scene, list(GRID))
    for continues in (True, False):
        merged = pd.concat(merge_seams([polygons.assign(continues=continues)], windows))
        assert len(merged) == (not continues)
        assert "continues" not in merged


def layer_of(segmenter, labels, folder, monkeypatch):
    """Run a raster whose pixels are `labels`, in tiles of 96 px."""
    raster = write_labels(folder / "scene.tif", labels)
    monkeypatch.setattr(choose, "segmenter_for", lambda job, before: segmenter)
    job = Job.create(
        source=str(raster), out_dir=str(folder / "run"), tile_size=96, overlap=0.25,
        min_area_px=0, simplify_m=0,
    )  # fmt: skip
    return run(job).layer


class Unsure(AtOnce):
    """Sees one field, and is less sure of it where it sees less of it."""

    def propose(self, image, watch=None):
        there = image[..., 0] == 1
        score = 0.95 if there.mean() > 0.3 else 0.6
        rules = Rules(*there.shape)
        return candidates_of([there] if there.any() else [], [score], rules)


def test_a_run_leaves_no_straight_cut_where_the_rest_is_stored(tmp_path: Path, monkeypatch):
    labels = np.zeros((96, 168), int)
    labels[20:70, 30:110] = 1
    layer = layer_of(Unsure(), labels, tmp_path, monkeypatch)
    assert layer["area_px"].tolist() == [50 * 80]
    assert layer["n_tiles"].tolist() == [2]
    assert not layer["at_edge"].any()


class Sure(AtOnce):
    """Sees one lake, as surely in every tile."""

    def propose(self, image, watch=None):
        there = image[..., 0] == 1
        return candidates_of([there] if there.any() else [], [0.95], Rules(*there.shape))


@pytest.mark.parametrize(("width", "n_tiles"), [(240, 9), (312, 12)])
def test_a_lake_keeps_the_tiles_that_lie_in_it(tmp_path: Path, monkeypatch, width, n_tiles):
    labels = np.zeros((240, width), int)
    labels[40:200, 40 : width - 40] = 1  # the window of the middle tile is 72..168
    layer = layer_of(Sure(), labels, tmp_path, monkeypatch)
    assert layer["area_px"].tolist() == [160 * (width - 80)]
    assert layer["n_tiles"].tolist() == [n_tiles]


def test_a_tile_full_of_background_stays_out(tmp_path: Path, monkeypatch):
    labels = np.zeros((240, 240), int)
    labels[72:, 40:200] = 1  # of the middle tile, only two neighbours have a piece
    # nor does what is beside it: it would end in straight lines where that tile begins
    assert layer_of(Sure(), labels, tmp_path, monkeypatch).empty
