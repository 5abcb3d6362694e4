"""Contract C7 with a Segmenter that returns known objects: tiled equals untiled, exactly."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from known_objects import (
    KnownObjects,
    candidates_of,
    objects,
    objects_apart,
    paint,
    same_objects,
    scene_of,
)

from workbench.candidates.offer import Offer
from workbench.candidates.select import Thresholds, select
from workbench.candidates.table import Rules
from workbench.polygons import seams
from workbench.polygons.build import to_polygons
from workbench.raster.tiles import TileGrid, tile_windows

FREELY = Offer(None, None, "all")


def merge_seams(polygons, windows, offer=FREELY):
    """All batches as one."""
    return pd.concat(seams.merge_seams([polygons], windows, offer=offer), ignore_index=True)


def segmented(labels, size, overlap=0.25, box_nms_thresh=1.0, **options):
    """Polygons of every tile of a label image, and the windows."""
    height, width = labels.shape
    scene, grid = scene_of(width, height), TileGrid(width, height, size, overlap)
    segmenter = KnownObjects(Rules(size, size, box_nms_thresh=box_nms_thresh), **options)
    polygons = []
    for tile in grid:
        window = np.zeros((tile.window.height, tile.window.width), int)
        y, x = tile.window.row_off, tile.window.col_off
        seen = labels[y : y + window.shape[0], x : x + window.shape[1]]
        window[: seen.shape[0], : seen.shape[1]] = seen
        candidates = segmenter.propose(paint(window)).at_tile(tile.row, tile.col)
        chosen = select(candidates, Thresholds())
        polygons.append(to_polygons(chosen, scene, grid, {}))
    return pd.concat(polygons, ignore_index=True), tile_windows(scene, list(grid))


def segmented_masks(masks, size, overlap=0.25):
    """The same for `(h, w)` masks that may overlap each other."""
    height, width = masks[0].shape
    scene, grid = scene_of(width, height), TileGrid(width, height, size, overlap)
    polygons = []
    for tile in grid:
        y, x = tile.window.row_off, tile.window.col_off
        tall, wide = tile.window.height, tile.window.width
        windows = [np.zeros((tall, wide), bool) for _ in masks]
        for window, mask in zip(windows, masks, strict=True):
            part = mask[y : y + tall, x : x + wide]
            window[: part.shape[0], : part.shape[1]] = part
        seen = [(w, 0.9 + i / 100) for i, w in enumerate(windows) if w.any()]
        candidates = candidates_of([w for w, _ in seen], [s for _, s in seen], Rules(tall, wide))
        polygons.append(to_polygons(candidates.at_tile(tile.row, tile.col), scene, grid, {}))
    return pd.concat(polygons, ignore_index=True), tile_windows(scene, list(grid))


@pytest.mark.parametrize("split", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("seed", range(12))
def test_c7_a_tiled_run_finds_what_one_large_tile_finds(seed, split):
    labels = objects((230, 330), seed)
    merged = merge_seams(*segmented(labels, 96, split=split))
    truth, _ = segmented(labels, 330)
    assert same_objects(merged, truth)
    assert merged["area_px"].sum() == truth["area_px"].sum()


@pytest.mark.parametrize("seed", range(6))
def test_c7_holds_with_box_suppression_where_boxes_lie_apart(seed):
    labels = objects_apart((230, 330), seed, n=60)
    merged = merge_seams(*segmented(labels, 96, box_nms_thresh=0.7))
    truth, _ = segmented(labels, 330, box_nms_thresh=0.7)
    assert len(truth) > 12
    assert same_objects(merged, truth)


def test_a_piece_that_box_suppression_takes_leaves_an_edge():
    labels = np.zeros((96, 168), int)
    labels[10:20, 20:160] = labels[10:80, 152:160] = 1  # an angle around a block
    labels[22:78, 60:150] = 2  # in the right tile, their boxes are nearly the same
    merged = merge_seams(*segmented(labels, 96, box_nms_thresh=0.7))
    assert merged["area_px"].tolist() == [10 * 76, 56 * 90]
    assert merged["at_edge"].tolist() == [True, False]
    assert len(segmented(labels, 168, box_nms_thresh=0.7)[0]) == 2


def test_an_object_larger_than_nine_tiles_is_one_polygon():
    labels = np.zeros((300, 300), int)
    labels[20:280, 30:290] = 1
    labels[100:140, 100:200] = 2
    merged = merge_seams(*segmented(labels, 96))
    truth, _ = segmented(labels, 300)
    assert same_objects(merged, truth)
    assert merged.loc[merged.area.idxmax(), "n_tiles"] == 16


@pytest.mark.parametrize("shift", range(-8, 9, 4))
def test_neighbours_that_touch_stay_apart(shift):
    labels = np.zeros((96, 168), int)
    labels[10:80, 20 : 84 + shift] = 1
    labels[10:80, 84 + shift : 150] = 2
    merged = merge_seams(*segmented(labels, 96))
    assert same_objects(merged, segmented(labels, 168)[0])


@pytest.mark.parametrize("seed", range(4))
def test_a_whole_and_its_parts_are_neither_mixed_nor_lost(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((96, 240), int)
    labels[10:86, 30:220] = 1
    x = int(rng.integers(60, 100))
    labels[20:70, x : x + 90] = 2  # a part that crosses both seams, and one that crosses one
    labels[75:83, x : x + 25] = 3
    contains = {1: (2, 3)}
    merged = merge_seams(*segmented(labels, 96, contains=contains))
    truth, _ = segmented(labels, 240, contains=contains)
    assert same_objects(merged, truth)


@st.composite
def shapes(draw, height, width):
    """What `mask_of` takes: a box, U or ring anywhere and of any size."""
    w, h = draw(st.integers(8, int(width * 0.9))), draw(st.integers(8, int(height * 0.9)))
    kind = draw(st.sampled_from(["box", "U", "ring"]))
    return kind, draw(st.integers(0, width - w)), draw(st.integers(0, height - h)), w, h


def mask_of(shape, kind, x, y, w, h):
    mask = np.zeros(shape, bool)
    mask[y : y + h, x : x + w] = True
    if kind == "U":
        mask[y : y + h - h // 4, x + w // 4 : x + w - w // 4] = False
    elif kind == "ring":
        mask[y + h // 4 : y + h - h // 4, x + w // 4 : x + w - w // 4] = False
    return mask


@pytest.mark.parametrize("shape", [(168, 168), (168, 240), (96, 240)], ids=str)
@given(data=st.data())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_c7_shapes_that_overlap_are_told_apart(shape, data):
    drawn = data.draw(st.lists(shapes(*shape), min_size=1, max_size=2))
    frames = [shapely.box(x, y, x + w, y + h) for _, x, y, w, h in drawn]
    common = frames[0].intersection(frames[-1]).area
    assume(len(drawn) == 1 or common <= 0.5 * frames[0].union(frames[1]).area)  # else suppressed
    masks = [mask_of(shape, *spec) for spec in drawn]
    merged = merge_seams(*segmented_masks(masks, 96))
    assert same_objects(merged, segmented_masks(masks, max(shape))[0])


def test_the_order_of_rows_does_not_matter():
    labels = objects((230, 330), 3)
    polygons, windows = segmented(labels, 96, contains={5: (2,), 9: (3,)})
    merged = merge_seams(polygons, windows)
    for seed in range(3):
        shuffled = polygons.sample(frac=1, random_state=seed)
        again = merge_seams(shuffled, windows.sample(frac=1, random_state=seed))
        assert merged.drop(columns="geometry").equals(again.drop(columns="geometry"))
        assert merged.geometry.geom_equals_exact(again.geometry, 0).all()


def test_c2_polygons_clear_of_the_overlaps_are_not_touched():
    labels = objects((230, 330), 5, n=40, largest=0.4)
    polygons, windows = segmented(labels, 96)
    merged = merge_seams(polygons, windows)
    clear = polygons[~polygons["seam"]]
    assert len(clear) > 5
    key = ["source", "tile_row", "tile_col", "ordinal"]
    both = clear.merge(merged, on=key, suffixes=("", "_merged"))
    assert len(both) == len(clear)
    assert all(both["geometry"] == both["geometry_merged"])
    assert (both["n_tiles"] == 1).all()


def pieces(*rows, width=168, height=96):
    """Polygons by hand: tile, score, and x0, y0, x1, y1 in pixels of a scene.

    The tile is its column, or row and column.
    """
    scene = scene_of(width, height)
    grid = TileGrid(width, height, 96, 0.25)
    rows = [((0, tile) if isinstance(tile, int) else tile, *more) for tile, *more in rows]
    boxes = [shapely.box(*box) for _, _, box in rows]
    on_map = shapely.transform(
        np.array([shapely.MultiPolygon([b]) for b in boxes]),
        lambda xy: xy * [0.5, -0.5] + [500_000, 5_300_000],
    )
    frame = gpd.GeoDataFrame(
        {
            "source": "s",
            "tile_row": [tile[0] for tile, _, _ in rows],
            "tile_col": [tile[1] for tile, _, _ in rows],
            "ordinal": range(len(rows)),
            "confidence": [score for _, score, _ in rows],
            "stability": 0.95,
            "area_px": [int(b.area) for b in boxes],
            "at_edge": False,
            "seam": True,
        },
        geometry=on_map,
        crs=scene.crs,
    )
    return frame, tile_windows(scene, list(grid))


def test_of_two_duplicates_the_better_stays():
    # windows are x 0..96 and 72..168
    merged = merge_seams(*pieces((0, 0.90, (76, 20, 90, 40)), (1, 0.95, (77, 20, 91, 40))))
    assert merged["confidence"].tolist() == [0.95]
    assert merged["n_tiles"].tolist() == [2]


def test_an_imprecise_piece_goes_if_the_neighbour_sees_the_whole():
    merged = merge_seams(*pieces((0, 0.99, (76, 20, 96, 41)), (1, 0.90, (75, 20, 110, 40))))
    assert merged["confidence"].tolist() == [0.90]
    assert merged["area_px"].tolist() == [35 * 20]


def test_a_piece_without_a_partner_stays():
    merged = merge_seams(*pieces((0, 0.9, (50, 20, 96, 40)), (1, 0.9, (100, 60, 120, 80))))
    assert merged["at_edge"].tolist() == [True, False]  # a reviewer should look at it


def test_a_double_of_what_two_tiles_saw_goes_where_the_iou_says_so():
    # the left tile has seen two alternatives; the better one of the right tile replaces one
    seen = pieces(
        (0, 0.90, (76, 20, 90, 40)), (0, 0.91, (76, 20, 90, 30)), (1, 0.95, (76, 20, 90, 35))
    )
    assert len(merge_seams(*seen)) == 2  # IoU 0.67 of the two, 0.75 of the rest
    assert len(merge_seams(*seen, Offer(duplicate_iou=0.8, overlaps="all"))) == 2
    merged = merge_seams(*seen, Offer(duplicate_iou=0.6, overlaps="all"))
    assert merged["confidence"].tolist() == [0.95]


def test_overlaps_of_what_different_tiles_saw_follow_the_same_rule_as_in_a_tile():
    seen = pieces((0, 0.95, (40, 20, 90, 40)), (1, 0.90, (80, 20, 130, 60)))
    assert len(merge_seams(*seen)) == 2
    assert merge_seams(*seen, Offer(overlaps="nested"))["confidence"].tolist() == [0.95, 0.9]
    # a fifth of the smaller one is shared above; here it is half
    half = pieces((0, 0.95, (70, 20, 90, 40)), (1, 0.90, (80, 20, 105, 30)))
    assert len(merge_seams(*half)) == 2
    for overlaps in ("nested", "one"):
        assert merge_seams(*half, Offer(overlaps=overlaps))["confidence"].tolist() == [0.95]


def test_a_whole_whose_rest_belongs_to_its_part_is_no_label():
    # windows are x 0..96, 72..168 and 144..240; the right one shows the rest of a part alone
    whole = [(0, 0.9, (80, 20, 96, 60)), (1, 0.9, (80, 20, 168, 60))]
    part = [(1, 0.95, (120, 22, 168, 58)), (2, 0.95, (144, 22, 200, 58))]
    merged = merge_seams(*pieces(*whole, *part, width=240))
    assert merged["area_px"].tolist() == [36 * 80]
    beyond = (2, 0.9, (144, 20, 220, 60))
    assert sorted(merge_seams(*pieces(*whole, *part, beyond, width=240))["area_px"]) == [
        36 * 80,
        40 * 140,
    ]


def test_two_ends_that_meet_are_one_object_though_a_third_tile_shows_a_whole_and_a_part():
    # windows are 0..96 and 72..168 in both directions; a yard lies around the middle
    upper, lower = ((0, 1), 0.9, (72, 40, 130, 96)), ((1, 1), 0.9, (72, 72, 150, 130))
    left, part = ((1, 0), 0.9, (40, 72, 96, 140)), ((1, 0), 0.9, (62, 72, 96, 125))
    corner = ((1, 1), 0.8, (72, 72, 102, 110))  # so that no match of the two ends is a sure one
    merged = merge_seams(*pieces(upper, lower, left, part, corner, width=168, height=168))
    assert merged["n_tiles"].tolist() == [3]
    crossing = ((1, 0), 0.9, (62, 60, 96, 125))  # not a part: half of it lies beside the other
    apart = ((1, 0), 0.9, (40, 100, 96, 140))
    assert (
        len(merge_seams(*pieces(upper, lower, crossing, apart, corner, width=168, height=168))) > 1
    )


def test_an_object_is_not_open_at_a_corner_where_the_tile_beside_it_continues_it():
    upper, lower = ((0, 1), 0.9, (80, 40, 160, 96)), ((1, 1), 0.9, (80, 72, 160, 150))
    # what the upper left tile shows at the corner belongs to a part of the upper piece
    corner, part = ((0, 0), 0.9, (80, 66, 96, 96)), ((0, 1), 0.9, (80, 66, 100, 96))
    rest = ((1, 1), 0.9, (78, 72, 100, 110))
    merged = merge_seams(*pieces(upper, lower, corner, part, rest, width=168, height=168))
    assert 80 * 110 in merged["area_px"].tolist()


def accepted(polygons, *iou):
    return polygons.assign(accepted_iou=[float(one) for one in iou])


def test_what_a_person_accepted_stays_whatever_the_neighbours_say():
    polygons, windows = pieces((0, 0.9, (85, 20, 93, 40)))  # the right tile shows nothing there
    assert merge_seams(polygons, windows).empty
    assert merge_seams(accepted(polygons, True), windows)["accepted_iou"].tolist() == [1]
    polygons, windows = pieces((0, 0.90, (76, 20, 90, 40)), (1, 0.95, (77, 20, 91, 40)))
    merged = merge_seams(accepted(polygons, True, False), windows)
    assert merged["confidence"].tolist() == [0.9]
    # one that its tile's edge has cut is united with the whole
    polygons, windows = pieces((0, 0.99, (76, 20, 96, 40)), (1, 0.90, (80, 20, 110, 40)))
    merged = merge_seams(accepted(polygons, True, False), windows)
    assert merged["area_px"].tolist() == [34 * 20]
    assert merged["accepted_iou"].tolist() == [1]
    # a double that no tile has compared, and what spans its tile
    polygons, windows = pieces((0, 0.9, (0, 0, 96, 60)), (0, 0.95, (20, 70, 40, 90)))
    assert len(merge_seams(accepted(polygons, True, False), windows, Offer())) == 2
    open_end = pieces((0, 0.9, (30, 20, 96, 60)), (0, 0.8, (60, 22, 96, 58)),
                      (1, 0.9, (72, 20, 140, 60)))  # fmt: skip
    polygons, windows = open_end
    assert len(merge_seams(polygons, windows)) == 1
    assert len(merge_seams(accepted(polygons, False, True, False), windows)) == 2


@pytest.mark.parametrize("tile", [0, 1])
def test_the_shape_that_a_person_saw_stands_for_both_tiles(tile):
    # both tiles see the object whole, and the other one is surer of less of it
    polygons, windows = pieces((tile, 0.9, (76, 20, 91, 40)), (1 - tile, 0.99, (78, 20, 90, 34)))
    seen = polygons["confidence"] == 0.9
    merged = merge_seams(accepted(polygons, *np.where(seen, 1, 0.65)), windows)
    assert merged["n_tiles"].tolist() == [2]
    assert merged["accepted_iou"].tolist() == [1]
    assert merged.geometry.tolist() == polygons.geometry[seen].tolist()


def test_a_shape_that_was_seen_cut_keeps_what_was_seen_and_goes_on():
    polygons, windows = pieces((0, 0.99, (76, 20, 96, 40)), (1, 0.90, (80, 20, 110, 40)))
    (merged,) = merge_seams(accepted(polygons, 1, 0.65), windows).geometry
    assert merged.equals(polygons.union_all())


def test_nothing_is_cut_off_what_a_person_accepted():
    # the right tile goes on with a part of it alone: the rest would be a stub at the left's edge
    polygons, windows = pieces((0, 0.99, (76, 20, 96, 40)), (1, 0.90, (80, 20, 110, 34)))
    (merged,) = merge_seams(accepted(polygons, True, False), windows).geometry
    assert merged.covers(polygons.geometry[0])
    assert merged.equals(polygons.union_all())


def test_what_spans_its_tile_and_is_not_continued_goes():
    across = (0, 0.9, (0, 0, 96, 60))  # along three edges of the left tile
    inside = (0, 0.9, (20, 70, 40, 90))
    offer = Offer(duplicate_iou=None, overlaps="all")
    assert merge_seams(*pieces(across, inside), offer)["area_px"].tolist() == [20 * 20]
    assert len(merge_seams(*pieces(across, inside))) == 2
    continued = pieces(across, inside, (1, 0.9, (72, 0, 140, 60)))
    assert merge_seams(*continued, offer)["area_px"].tolist() == [140 * 60, 20 * 20]
    two_edges = pieces((0, 0.9, (0, 20, 96, 60)))
    assert len(merge_seams(*two_edges, offer)) == 1


def test_what_a_neighbour_sees_whole_is_the_neighbours_to_decide():
    # the right window sees a piece whole, which it has not proposed; the left one is cut or far
    cut = pieces((0, 0.9, (80, 20, 96, 40)), (1, 0.9, (100, 60, 120, 80)))
    assert merge_seams(*cut)["tile_col"].tolist() == [1]
    nearer_the_right = pieces((0, 0.9, (85, 20, 93, 40)))
    assert merge_seams(*nearer_the_right).empty
    nearer_the_left = pieces((0, 0.9, (75, 20, 83, 40)))
    assert len(merge_seams(*nearer_the_left)) == 1
    polygons, windows = nearer_the_right
    assert len(merge_seams(polygons, windows.iloc[:1])) == 1  # nobody else has looked


def test_what_invalid_pixels_clip_gives_way_to_the_whole():
    polygons, windows = pieces((0, 0.99, (76, 20, 90, 34)), (1, 0.90, (76, 20, 90, 40)))
    polygons["at_edge"] = [True, False]
    merged = merge_seams(polygons, windows)
    assert merged["area_px"].tolist() == [14 * 20]
    assert merged["at_edge"].tolist() == [False]


def test_the_end_of_all_windows_is_an_edge():
    polygons, windows = pieces((0, 0.9, (20, 20, 96, 40)), (1, 0.9, (72, 20, 130, 40)))
    assert merge_seams(polygons, windows)["at_edge"].tolist() == [False]
    assert merge_seams(polygons.iloc[:1], windows.iloc[:1])["at_edge"].tolist() == [True]


def test_a_house_and_a_house_with_a_drive_are_two():
    house, drive = shapely.box(75, 20, 85, 30), shapely.box(85, 22, 93, 24)
    polygons, windows = pieces((0, 0.9, (75, 20, 85, 30)), (1, 0.91, (75, 20, 85, 30)))
    both = shapely.transform(
        shapely.MultiPolygon([house.union(drive)]),
        lambda xy: xy * [0.5, -0.5] + [500_000, 5_300_000],
    )
    polygons = pd.concat([polygons, polygons.assign(geometry=[both, both], ordinal=[7, 8])])
    polygons["area_px"] = [100, 100, 116, 116]
    merged = merge_seams(polygons.reset_index(drop=True), windows)
    assert sorted(merged["area_px"]) == [100, 116]


def test_pieces_that_disagree_stay_apart():
    merged = merge_seams(*pieces((0, 0.9, (40, 20, 96, 40)), (1, 0.9, (72, 34, 130, 60))))
    assert len(merged) == 2


def test_no_polygons_and_no_neighbours_are_fine():
    polygons, windows = pieces((0, 0.9, (76, 20, 90, 40)))
    assert merge_seams(polygons.iloc[:0], windows).empty
    assert "n_tiles" in merge_seams(polygons.iloc[:0], windows)
    assert len(merge_seams(polygons, windows.iloc[:1])) == 1
