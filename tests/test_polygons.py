import sys

import cv2
import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from known_objects import UTM, KnownObjects, paint, scene_of

from workbench.candidates.rle import decode_runs, encode_masks
from workbench.candidates.table import Rules
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import Cleaning, clean
from workbench.polygons.trace import trace
from workbench.raster.crs import ground_area_m2
from workbench.raster.tiles import TileGrid

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5)).flatmap(
    lambda s: arrays(bool, (s[2], s[0], s[1]))
)
NOTHING = Cleaning(min_area_px=0, simplify_m=0)


def traced(masks):
    """The outlines of `(n, h, w)` masks as MultiPolygons, one for each that is not empty."""
    found = trace(decode_runs(encode_masks(masks), *masks.shape[1:]))
    sizes = (found.ring_sizes, found.rings_per_part, found.parts_per_mask)
    offsets = tuple(np.concatenate(([0], np.cumsum(n))) for n in sizes)
    kind = shapely.GeometryType.MULTIPOLYGON
    return shapely.from_ragged_array(kind, found.corners.astype(float), offsets)


@given(MASKS)
@settings(max_examples=500)
def test_tracing_is_exact_and_valid(masks):
    outlines = traced(masks)
    assert len(outlines) == len(masks)
    for mask, outline in zip(masks, outlines, strict=True):
        assert outline.is_valid, shapely.is_valid_reason(outline)
        assert outline.area == mask.sum()
        ys, xs = np.mgrid[: mask.shape[0], : mask.shape[1]]
        if not outline.is_empty:
            assert (shapely.contains_xy(outline, xs + 0.5, ys + 0.5) == mask).all()
        parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
        assert len(outline.geoms) == parts


@given(MASKS)
@settings(max_examples=200)
def test_runs_are_those_of_the_masks(masks):
    runs = decode_runs(encode_masks(masks), *masks.shape[1:])
    again = np.zeros_like(masks)
    for mask, x, y0, y1 in zip(runs.mask, runs.x, runs.y0, runs.y1, strict=True):
        again[mask, y0:y1, x] = True
    assert (again == masks).all()
    assert runs.areas().tolist() == masks.sum(axis=(1, 2)).tolist()
    for mask, (x0, y0, x1, y1) in zip(masks, runs.bounds(), strict=True):
        ys, xs = np.nonzero(mask)
        if len(ys):
            assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_large_masks_of_many_parts_and_holes_are_exact():
    rng = np.random.default_rng(1)
    masks = cv2.GaussianBlur(rng.normal(size=(700, 900, 3)), (0, 0), 6).transpose(2, 0, 1) > 0.005
    for mask, outline in zip(masks, traced(masks), strict=True):
        assert outline.is_valid
        assert outline.area == mask.sum()


def test_rings_have_corners_only():
    mask = np.zeros((70, 80), bool)
    mask[5:55, 10:70] = True
    mask[20:30, 20:30] = False
    (outline,) = traced(mask[None])
    (polygon,) = outline.geoms
    assert len(polygon.exterior.coords) == len(polygon.interiors[0].coords) == 5
    assert outline.area == 2900


def candidates_of(labels, **options):
    rules = Rules(*labels.shape)
    return KnownObjects(rules, **options).propose(paint(labels))


def labels_of(shape, *boxes):
    labels = np.zeros(shape, int)
    for number, (y0, x0, y1, x1) in enumerate(boxes, 1):
        labels[y0:y1, x0:x1] = number
    return labels


@given(arrays(np.int64, (12, 12), elements=st.integers(0, 3)), arrays(bool, (12, 12)))
@settings(max_examples=100)
def test_c4_area_is_valid_mask_pixels_times_pixel_area(labels, valid):
    scene, grid = scene_of(12, 12), TileGrid(12, 12, 12)
    polygons = to_polygons(candidates_of(labels), scene, grid, {(0, 0): valid})
    seen = [v for v in (1, 2, 3) if ((labels == v) & valid).any()]
    pixels = [((labels == v) & valid).sum() for v in seen]
    assert polygons["area_px"].tolist() == pixels
    assert polygons.area.to_numpy() == pytest.approx(np.array(pixels) * 0.25, rel=1e-6)
    assert polygons.is_valid.all()
    rows, cols = np.mgrid[:12, :12]
    x, y = scene.transform @ (cols + 0.5, rows + 0.5)
    for v, geometry in zip(seen, polygons.geometry, strict=True):
        assert (shapely.contains_xy(geometry, x, y) == ((labels == v) & valid)).all()


def test_polygons_say_whether_they_touch_an_edge_or_a_neighbour():
    scene, grid = scene_of(200, 100), TileGrid(200, 100, 128, 0.25)
    boxes = [(10, 10, 20, 20), (40, 0, 50, 10), (60, 60, 70, 120), (80, 30, 90, 40)]
    labels = np.zeros((128, 128), int)
    labels[:100] = labels_of((100, 128), *boxes)
    valid = np.ones((128, 128), bool)
    valid[80:90, 40:45] = False
    polygons = to_polygons(candidates_of(labels), scene, grid, {(0, 0): valid})
    assert polygons["at_edge"].tolist() == [False, True, False, True]
    assert polygons["seam"].tolist() == [False, False, True, False]


def test_no_candidates_give_an_empty_frame_with_all_columns():
    scene, grid = scene_of(64, 64), TileGrid(64, 64, 64)
    nothing = to_polygons(candidates_of(np.zeros((64, 64), int)), scene, grid, {})
    something = to_polygons(candidates_of(np.ones((64, 64), int)), scene, grid, {})
    assert len(nothing) == 0
    assert list(nothing.columns) == list(something.columns)
    assert nothing.crs == something.crs
    for cleaning in (Cleaning(), Cleaning(planar=True, fill_holes_m2=3, min_solidity=0.5)):
        assert len(clean(nothing, cleaning)) == 0
        assert "area_m2" in clean(nothing, cleaning)


def frame(*geometry, pixel=0.25):
    shapes = [g if g.geom_type == "MultiPolygon" else shapely.MultiPolygon([g]) for g in geometry]
    shifted = shapely.transform(np.array(shapes), lambda xy: xy + [500_000, 5_300_000])
    area = [round(g.area / pixel) for g in geometry]
    return gpd.GeoDataFrame({"area_px": area}, geometry=shifted, crs=UTM)


def box(x, y, width, height):
    return shapely.box(x, y, x + width, y + height)


def test_parts_below_the_pixel_limit_go_and_masks_without_parts_go():
    two = shapely.MultiPolygon([box(0, 0, 20, 20), box(40, 0, 3, 3)])
    cleaned = clean(frame(two, box(60, 0, 4, 4)), Cleaning(min_area_px=100, simplify_m=0))
    assert len(cleaned) == 1
    assert cleaned.area.tolist() == [400]
    assert cleaned["area_px"].tolist() == [1600]
    assert cleaned["area_m2"].iloc[0] == pytest.approx(400, rel=1e-3)


def test_default_pixel_limit_keeps_exactly_500():
    assert len(clean(frame(box(0, 0, 5, 25)), Cleaning())) == 1
    assert len(clean(frame(box(0, 0, 5, 24.75)), Cleaning())) == 0


def test_area_limits_count_ground_metres_in_web_mercator():
    # at 60° north a map unit of EPSG:3857 is half a metre on the ground
    y = 8_399_737.9
    shape = shapely.MultiPolygon([shapely.box(0, y, 100, y + 100)])
    square = gpd.GeoDataFrame({"area_px": [10_000]}, geometry=[shape], crs=3857)
    kept = clean(square, Cleaning(min_area_m2=2490, max_area_m2=2515, simplify_m=0))
    assert kept["area_m2"].iloc[0] == pytest.approx(2500, rel=5e-3)
    assert clean(square, Cleaning(min_area_m2=2515)).empty
    assert clean(square, Cleaning(max_area_m2=2490)).empty
    assert kept["area_m2"].to_numpy() == pytest.approx(ground_area_m2(kept.geometry, kept.crs))


def test_holes_are_filled_by_size_and_islands_in_them_are_swallowed():
    ring = box(0, 0, 40, 40) - box(5, 5, 10, 10) - box(20, 20, 3, 3)
    with_island = shapely.MultiPolygon([ring, box(8, 8, 4, 4)])
    some = clean(frame(with_island), Cleaning(0, fill_holes_m2=50, simplify_m=0))
    assert some.area.iloc[0] == pytest.approx(1600 - 100 + 16)
    every = clean(frame(with_island), Cleaning(0, fill_holes_m2=200, simplify_m=0))
    assert every.area.iloc[0] == pytest.approx(1600)
    assert every.is_valid.all()


def test_solidity_drops_what_is_not_convex():
    star = box(0, 0, 40, 40) - box(5, 5, 40, 40)
    kept = clean(frame(star, box(100, 0, 10, 10)), Cleaning(0, min_solidity=0.7, simplify_m=0))
    assert kept.area.tolist() == [100]


def blob(shape, seed):
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 4) > 0.5


@pytest.mark.parametrize("simplify_m", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(4))
def test_simplification_stays_valid_and_near(seed, simplify_m):
    scene, grid = scene_of(128, 128), TileGrid(128, 128, 128)
    labels = blob((128, 128), seed).astype(int)
    exact = to_polygons(candidates_of(labels), scene, grid, {})
    simple = clean(exact, Cleaning(min_area_px=0, simplify_m=simplify_m))
    assert simple.is_valid.all()
    points = shapely.get_num_coordinates(simple.geometry.to_numpy()).sum()
    assert points < shapely.get_num_coordinates(exact.geometry.to_numpy()).sum() * 0.8
    distance = shapely.hausdorff_distance(
        simple.geometry.iloc[0].boundary, exact.geometry.iloc[0].boundary
    )
    assert distance <= simplify_m * 1.01 + 0.75  # simplify_m on the ground, and a pixel's diagonal


@pytest.mark.parametrize(("pixel_m", "metres"), [(0.07, 0.07), (0.5, 0.5), (5.0, 1.0)])
def test_the_usual_tolerance_is_a_pixel_but_at_most_a_metre(pixel_m, metres):
    scene = scene_of(128, 128, Affine(pixel_m, 0, 500_000, 0, -pixel_m, 5_300_000))
    labels = blob((128, 128), 1).astype(int)
    exact = to_polygons(candidates_of(labels), scene, TileGrid(128, 128, 128), {})
    usual = clean(exact, Cleaning(min_area_px=0))
    ground = metres if metres < pixel_m else float(f"{scene.pixel_m:.4g}")
    as_told = clean(exact, Cleaning(min_area_px=0, simplify_m=ground))
    assert usual.geometry.geom_equals_exact(as_told.geometry, 0.01 * pixel_m).all()


@pytest.mark.parametrize("simplify_m", [0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_planar_layers_have_no_overlap_and_share_their_edges(seed, simplify_m):
    scene, grid = scene_of(160, 160), TileGrid(160, 160, 160)
    frames = [
        to_polygons(candidates_of(blob((160, 160), 10 * seed + i).astype(int)), scene, grid, {})
        for i in range(3)
    ]
    stacked = gpd.GeoDataFrame(
        np.concatenate([f.drop(columns="geometry").to_numpy() for f in frames]),
        columns=frames[0].columns.drop("geometry"),
        geometry=np.concatenate([f.geometry.to_numpy() for f in frames]),
        crs=UTM,
    ).astype({"area_px": int})
    stacked["seam"] = stacked["seam"].astype(bool)
    stacked = stacked.explode(ignore_index=True)
    stacked["area_px"] = (stacked.area / 0.25).round().astype(int)
    flat = clean(stacked, Cleaning(min_area_px=0, simplify_m=simplify_m, planar=True))
    assert shapely.coverage_is_valid(flat.geometry.to_numpy())
    assert flat.is_valid.all()
    if simplify_m == 0:
        assert flat.area.sum() == pytest.approx(stacked.union_all().area)


def test_planar_keeps_the_smaller_polygon_on_top():
    flat = clean(
        frame(box(0, 0, 40, 40), box(10, 10, 5, 5), box(35, 0, 10, 10)),
        Cleaning(min_area_px=0, simplify_m=0, planar=True),
    )
    assert flat.area.tolist() == [1600 - 25 - 50, 25, 100]


def test_pixel_corners_are_on_the_grid_to_the_bit():
    transform = Affine(0.1, 0, 123_456.7, 0, -0.1, 5_432_109.3)
    scene, grid = scene_of(300, 100, transform), TileGrid(300, 100, 128, 0.25)
    left = candidates_of(labels_of((128, 128), (10, 100, 90, 120)))
    right = candidates_of(labels_of((128, 128), (10, 14, 90, 34))).at_tile(0, 1)
    one = to_polygons(left, scene, grid, {}).geometry.iloc[0]
    same = to_polygons(right, scene, grid, {}).geometry.iloc[0]
    assert shapely.equals_exact(shapely.normalize(one), shapely.normalize(same), 0)


def test_planar_drops_what_lies_wholly_under_others_and_what_becomes_too_small():
    hidden = frame(box(0, 0, 10, 10), box(0, 0, 10, 5), box(0, 5, 10, 5))
    for simplify_m in (0, 1.0):
        flat = clean(hidden, Cleaning(min_area_px=20, simplify_m=simplify_m, planar=True))
        assert flat.area.tolist() == [50, 50]
    cut = frame(box(0, 0, 10, 10), box(0, 0, 10, 6))
    flat = clean(cut, Cleaning(min_area_px=0, min_area_m2=50, simplify_m=0, planar=True))
    assert flat.area.tolist() == [60]


def test_planar_marks_what_a_merge_at_a_seam_may_move():
    polygons = frame(box(0, 0, 10, 10), box(5, 0, 10, 10), box(15, 0, 5, 5), box(30, 0, 5, 5))
    polygons["seam"] = [True, False, False, False]
    cleaned = clean(polygons, Cleaning(min_area_px=0, simplify_m=0, planar=True))
    assert cleaned["seam"].tolist() == [True, True, False, False]
    untouched = clean(polygons, Cleaning(min_area_px=0, simplify_m=0))
    assert untouched["seam"].tolist() == [True, False, False, False]


def test_many_holes_are_filled_at_once(monkeypatch):
    holes = [box(3 * i, 3 * j, 1, 1) for i in range(1, 70) for j in range(1, 70)]
    sieve = shapely.box(0, 0, 300, 300) - shapely.union_all(holes)
    module, measured = sys.modules[clean.__module__], []
    areas = module.ground_area_m2
    monkeypatch.setattr(
        module, "ground_area_m2", lambda of, crs: measured.append(len(of)) or areas(of, crs)
    )
    filled = clean(frame(sieve), Cleaning(min_area_px=0, fill_holes_m2=2, simplify_m=0))
    assert filled.area.tolist() == [90_000]
    assert measured[0] == len(holes) + 1
    assert len(measured) < 4  # else its time would grow with the square of the holes
