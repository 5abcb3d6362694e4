import json
import math
import os
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pytest
from benchmark_modules import benchmark_module
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from workbench.candidates.rle import encode_masks
from workbench.candidates.select import Thresholds, select
from workbench.candidates.table import Candidates, Rules
from workbench.errors import WorkbenchError
from workbench.evaluation.matching import about, boxes, match, of_cores
from workbench.evaluation.metrics import Quality, average_recall, calibration, compare
from workbench.evaluation.thresholds import best_thresholds, pool_planes, threshold_plane
from workbench.polygons.areas import with_area
from workbench.samples.demo import make_sample, write_sample

UTM = "EPSG:32636"


def layer(*geometry, crs=UTM):
    return gpd.GeoDataFrame(geometry=list(geometry), crs=crs)


def square(x, y=0, side=10):
    return box(x, y, x + side, y + side)


def test_figures_of_three_squares():
    reference = layer(square(0), square(100), square(200), square(300))
    predicted = layer(square(0), box(100, 0, 106, 10), square(207), square(500), square(600))

    quality = compare(predicted, reference)

    assert (quality.n_predicted, quality.n_reference) == (5, 4)
    assert quality.recall(0.5) == 2 / 4
    assert quality.precision(0.5) == 2 / 5
    assert quality.f1(0.5) == 4 / 9
    assert quality.recall(0.75) == 1 / 4
    assert quality.precision(0.75) == 1 / 5
    assert quality.mean_best_iou == pytest.approx((1 + 0.6 + 30 / 170 + 0) / 4)
    assert quality.table().to_dict("list") == {
        "iou_thresh": [0.5, 0.75],
        "recall": [0.5, 0.25],
        "precision": [0.4, 0.2],
        "f1": [4 / 9, 2 / 9],
    }


def test_an_iou_equal_to_the_threshold_counts():
    assert compare(layer(box(0, 0, 5, 10)), layer(square(0))).recall(0.5) == 1


def test_a_reference_found_twice_counts_once():
    quality = compare(layer(square(0), square(0), square(1)), layer(square(0)))
    assert quality.recall(0.5) == 1
    assert quality.precision(0.5) == 1 / 3


def test_a_prediction_serves_one_reference_only():
    quality = compare(layer(square(0)), layer(square(0), box(0, 0, 10, 9)))
    assert quality.recall(0.5) == 1 / 2
    assert quality.mean_best_iou == pytest.approx(0.95)


def test_one_to_one_finds_as_many_matches_as_possible():
    # the best pair by IoU is (8 high, 9 high); taking it would leave 12 high with 6 high
    reference = layer(box(0, 0, 10, 9), box(0, 0, 10, 6))
    predicted = layer(box(0, 0, 10, 8), box(0, 0, 10, 12))
    assert compare(predicted, reference, iou_threshs=[0.7]).recall(0.7) == 1


def test_holes_count():
    with_hole = Polygon(square(0).exterior, [box(2, 2, 8, 8).exterior])
    quality = compare(layer(square(0)), layer(with_hole))
    assert quality.mean_best_iou == pytest.approx(0.64)


def test_touching_is_not_overlapping():
    assert len(match(layer(square(0)), layer(square(10), square(0, 10))).iou) == 0


def test_other_crs_is_reprojected():
    reference = layer(square(500_000, 36_000, 30), square(500_100, 36_000, 30))
    predicted = reference.to_crs("EPSG:4326")
    for pair in ((predicted, reference), (reference, predicted)):
        quality = compare(*pair)
        assert quality.recall(0.75) == quality.precision(0.75) == 1
        assert quality.mean_best_iou > 0.999


@pytest.mark.parametrize("nameless", ["predicted", "reference", "within"])
def test_missing_crs_is_an_error(nameless):
    layers = {name: layer(square(0)) for name in ("predicted", "reference", "within")}
    layers[nameless] = layer(square(0), crs=None)
    name = {"within": "labelled area"}.get(nameless, nameless)
    with pytest.raises(WorkbenchError, match=f"{name}.* no CRS"):
        compare(**layers)


def test_invalid_polygons_are_mended():
    bow_tie = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    halves = MultiPolygon(
        [Polygon([(0, 0), (5, 5), (0, 10)]), Polygon([(10, 0), (10, 10), (5, 5)])]
    )
    assert compare(layer(halves), layer(bow_tie)).mean_best_iou == pytest.approx(1)
    assert compare(layer(bow_tie), layer(halves)).mean_best_iou == pytest.approx(1)


def test_only_polygons_count():
    mixed = GeometryCollection([square(0), LineString([(50, 0), (60, 0)]), Point(70, 0)])
    reference = layer(Point(0, 0), mixed, None, Polygon(), LineString([(0, 0), (9, 9)]))
    quality = compare(layer(square(0)), reference)
    assert (quality.n_reference, quality.mean_best_iou) == (1, 1)


def test_without_predictions_recall_is_zero_and_precision_unknown():
    quality = compare(layer(), layer(square(0)))
    assert (quality.n_predicted, quality.n_reference) == (0, 1)
    assert (quality.recall(0.5), quality.f1(0.5), quality.mean_best_iou) == (0, 0, 0)
    assert math.isnan(quality.precision(0.5))


def test_without_references_precision_is_zero_and_recall_unknown():
    quality = compare(layer(square(0)), layer())
    assert (quality.precision(0.5), quality.f1(0.5)) == (0, 0)
    assert math.isnan(quality.recall(0.5))
    assert math.isnan(quality.mean_best_iou)


def test_predictions_outside_the_labelled_area_are_left_out():
    predicted = layer(square(0), square(100), square(200))
    quality = compare(predicted, layer(square(0)), within=layer(box(-5, -5, 120, 20)))
    assert (quality.n_predicted, quality.precision(0.5)) == (2, 0.5)


squares = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 8)), min_size=1, max_size=12
)


@given(squares)
@settings(deadline=None)
def test_a_layer_agrees_with_itself(corners):
    same = layer(*(square(*corner) for corner in corners))
    n = len(same)
    assert compare(same, same) == Quality(n, n, (0.5, 0.75), (n, n), 1.0)


@given(squares, squares, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_rows_does_not_matter(ours, theirs, random):
    def quality():
        return compare(
            layer(*(square(*corner) for corner in ours)),
            layer(*(square(*corner) for corner in theirs)),
            iou_threshs=[0.1, 0.3, 0.5],
        )

    ordered = quality()
    random.shuffle(ours)
    random.shuffle(theirs)
    shuffled = quality()
    assert shuffled.n_matched == ordered.n_matched
    assert shuffled.mean_best_iou == pytest.approx(ordered.mean_best_iou)


# --------------------------------------------------------------------- parts, proposals, scores


def test_one_row_is_one_object_however_many_parts_it_has():
    two_roofs = MultiPolygon([square(0), square(100)])
    quality = compare(layer(two_roofs, square(200)), layer(two_roofs, square(300)))
    assert (quality.n_predicted, quality.n_reference, quality.n_matched) == (2, 2, (1, 1))
    halves = match(layer(square(0), square(100)), layer(two_roofs))
    assert halves.iou.tolist() == [0.5, 0.5]
    assert halves.n_matched(0.5) == 1  # the object is found once, and one half is left over
    assert match(layer(two_roofs), layer(square(0), square(100))).n_matched(0.5) == 1


def test_rows_of_pairs_are_rows_of_with_area():
    bow_tie = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    mixed = gpd.GeoDataFrame(
        {"confidence": [0.9, 0.8, 0.7, 0.6]},
        geometry=[Point(0, 0), bow_tie, None, square(100)],
        crs=UTM,
    )
    solid = with_area(mixed)
    assert solid["confidence"].tolist() == [0.8, 0.6]
    assert solid.is_valid.all()
    pairs = match(mixed, layer(square(100)))
    assert pairs.n_predicted == len(solid)
    assert pairs.true_iou().tolist() == [0, 1]
    assert len(with_area(layer(Point(0, 0), None))) == 0


def test_true_iou_is_the_best_of_each_prediction():
    pairs = match(layer(box(0, 0, 20, 10), square(500)), layer(square(0), box(5, 0, 20, 10)))
    assert pairs.true_iou().tolist() == [0.75, 0]


def test_only_closes_the_rows_up():
    pairs = match(layer(square(0), square(100), square(200)), layer(square(200), square(0)))
    left = pairs.only(np.array([False, True, True]))
    assert (left.n_predicted, left.n_reference) == (2, 2)
    assert (left.predicted.tolist(), left.reference.tolist()) == ([1], [0])


# four references; the best proposal finds one well, the next one half, the last two the others
REFERENCE = layer(square(0), square(100), square(200), square(300))
PROPOSALS = layer(square(300), square(200), box(100, 0, 106, 10), square(0))
SCORES = [0.5, 0.5, 0.7, 0.9]


def test_recall_of_the_best_proposals_per_megapixel():
    recall = average_recall(
        match(PROPOSALS, REFERENCE), SCORES, 0.02, per_megapixel=(50, 100, 150, 1000)
    )
    assert recall.to_dict("list") == {
        "per_megapixel": [50, 100, 150, 1000],
        "n_proposals": [1, 2, 3, 4],
        "n_reference": [4, 4, 4, 4],
        "recall_0.5": [0.25, 0.5, 0.75, 1],
        "recall_0.75": [0.25, 0.25, 0.5, 0.75],
        # IoU 0.6 is enough at 0.5, 0.55 and 0.6: 3 of 10 thresholds
        "average_recall": pytest.approx([0.25, 0.325, 0.575, 0.825]),
    }


def test_equal_scores_rank_by_row_and_unknown_ones_last():
    pairs = match(PROPOSALS, REFERENCE)
    for scores, first in (([0.5, 0.5, 0.5, 0.5], 3), ([math.nan, 0.1, 0.1, 0.1], 2)):
        best = average_recall(pairs, scores, 1, per_megapixel=[1], iou_threshs=[0.9])
        alone = match(PROPOSALS.iloc[[3 - first]], REFERENCE)
        assert best["recall_0.9"].item() == (alone.best_iou() >= 0.9).mean()
        assert pairs.reference[np.flatnonzero(pairs.predicted == 3 - first)] == first


def test_one_proposal_may_find_several_references():
    twins = layer(box(0, 0, 10, 9), box(0, 1, 10, 10))
    recall = average_recall(match(layer(square(0)), twins), [1], 1)
    assert recall["recall_0.75"].tolist() == [1, 1, 1]


def test_default_budgets():
    recall = average_recall(match(layer(), REFERENCE), [], 1)
    assert recall["per_megapixel"].tolist() == [100, 300, 1000]
    assert recall["n_proposals"].tolist() == [0, 0, 0]
    assert recall["average_recall"].tolist() == [0, 0, 0]
    assert average_recall(match(PROPOSALS, layer()), SCORES, 1)["recall_0.5"].isna().all()


def test_scores_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="with_area"):
        average_recall(match(PROPOSALS, REFERENCE), [0.5], 1)


def test_calibration_of_four_proposals():
    result = calibration([0.15, 0.19, 0.55, 1.2], np.array([0.1, 0.3, 0.2, 0.9]), n_bins=5)
    assert result.n == 4
    assert result.spearman == pytest.approx(0.8)
    assert result.bins["n"].tolist() == [2, 0, 1, 0, 1]
    assert result.bins["score_to"].tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert result.bins["mean_score"].dropna().tolist() == pytest.approx([0.17, 0.55, 1.2])
    assert result.bins["mean_true_iou"].dropna().tolist() == pytest.approx([0.2, 0.2, 0.9])
    assert result.mean_gap == pytest.approx((2 * 0.03 + 0.35 + 0.3) / 4)


def test_calibration_of_nothing_and_of_equal_scores():
    nothing = calibration([], np.array([]))
    assert (nothing.n, len(nothing.bins)) == (0, 10)
    assert math.isnan(nothing.spearman)
    assert math.isnan(nothing.mean_gap)
    equal = calibration([0.5, 0.5, math.nan], np.array([0.5, 0.7, 1]))
    assert math.isnan(equal.spearman)
    assert (equal.n, equal.mean_gap) == (2, pytest.approx(0.1))


def test_a_calibration_of_partly_labelled_scenes_counts_what_is_about_a_label():
    # a roof of two parts, around a court; a garden that nobody has labelled
    roof = layer(MultiPolygon([box(0, 0, 10, 4), box(0, 6, 10, 10)]))
    points = gpd.GeoSeries([Point(5, 1), Point(5, 5), Point(5, 8), Point(50, 50)], crs=UTM)
    assert about(points, roof).tolist() == [True, False, True, False]
    assert about(points, roof.to_crs(4326)).tolist() == [True, False, True, False]
    assert not about(points, layer()).any()
    with pytest.raises(WorkbenchError, match="no CRS"):
        about(points.set_crs(None, allow_override=True), roof)


def test_boxes_are_matched_with_boxes():
    crown = Point(5, 5).buffer(5)
    labels = layer(square(0), MultiPolygon([square(100, 0, 4), square(106, 6, 4)]))
    crowns = layer(crown, square(100))
    assert match(crowns, labels).n_matched(0.8) == 0
    assert match(boxes(crowns), boxes(labels)).n_matched(0.99) == 2
    assert boxes(labels).crs == labels.crs
    assert len(boxes(layer())) == 0


def test_what_two_tiles_saw_is_kept_once():
    tiles = gpd.GeoDataFrame(
        {"source": "a", "tile_row": 0, "tile_col": [0, 1]},
        geometry=[box(0, 0, 50, 50), box(50, 0, 100, 50)],
        crs=UTM,
    )
    seen = gpd.GeoDataFrame(
        {"source": "a", "tile_row": 0, "tile_col": [0, 1, 0, 1]},
        geometry=[square(42), square(42), square(48), square(48)],
        crs=UTM,
    )
    kept = of_cores(seen, tiles)
    assert kept.index.tolist() == [0, 3]
    assert len(of_cores(seen[:0], tiles)) == 0


# ---------------------------------------------------------------------------------- thresholds


def candidates(boxes_px, pred_iou, stability, **rules):
    """Boxes (XYXY, tile pixels, last pixel inclusive) in one tile of 40 × 40, and as polygons."""
    n = len(boxes_px)
    masks = np.zeros((n, 40, 40), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes_px, strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    x0, y0, x1, y1 = np.array(boxes_px).reshape(-1, 4).T
    columns = {
        "tile_row": [0] * n, "tile_col": [0] * n, "ordinal": range(n),
        "pred_iou": pred_iou, "stability_score": stability,
        "x0": x0, "y0": y0, "x1": x1, "y1": y1, "area_px": masks.sum((1, 2)),
        "point_x": [0.0] * n, "point_y": [0.0] * n,
        "crop_x0": [0] * n, "crop_y0": [0] * n, "crop_x1": [40] * n, "crop_y1": [40] * n,
        "rle": encode_masks(masks),
    }  # fmt: skip
    table = Candidates.from_columns(
        Rules(40, 40, pred_iou_floor=0, stability_floor=0, **rules), columns
    )
    polygons = gpd.GeoDataFrame(
        {"tile_row": 0, "tile_col": 0, "ordinal": range(n)},
        geometry=[box(x0, y0, x1 + 1, y1 + 1) for x0, y0, x1, y1 in boxes_px],
        crs=UTM,
        index=range(n),
    )
    return table, polygons


def test_a_higher_stability_threshold_brings_a_suppressed_mask_back():
    # the first suppresses the second, which is the reference; the third is something else
    table, polygons = candidates(
        [(0, 0, 11, 9), (0, 0, 9, 9), (20, 20, 29, 29)], [0.9, 0.8, 0.7], [0.5, 0.9, 0.3]
    )
    plane = threshold_plane(
        table,
        polygons,
        layer(square(0), square(0, 25)),
        iou_thresh=0.9,
        pred_iou_threshs=[0, 0.75, 0.85],
        stability_score_threshs=[0, 0.4, 0.6],
    )
    assert list(plane) == [
        "pred_iou_thresh", "stability_score_thresh", "n_predicted", "n_matched", "n_reference",
        "precision", "recall", "f1",
    ]  # fmt: skip
    counts = plane.set_index(["pred_iou_thresh", "stability_score_thresh"])
    assert counts["n_predicted"].tolist() == [2, 1, 1, 1, 1, 1, 1, 1, 0]
    assert counts["n_matched"].tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0]
    assert (plane["n_reference"] == 2).all()
    best = best_thresholds(plane)
    assert (best["pred_iou_thresh"], best["stability_score_thresh"]) == (0.75, 0.6)
    assert (best["precision"], best["recall"], best["f1"]) == (1, 0.5, pytest.approx(2 / 3))


def test_what_does_not_count_still_suppresses():
    table, polygons = candidates([(0, 0, 11, 9), (0, 0, 9, 9)], [0.9, 0.8], [0.5, 0.9])
    plane = threshold_plane(
        table,
        polygons[1:],
        layer(square(0)),
        pred_iou_threshs=[0],
        stability_score_threshs=[0, 0.6],
    )
    assert plane["n_predicted"].tolist() == [0, 1]
    assert plane["n_matched"].tolist() == [0, 1]


def test_planes_of_scenes_add_up():
    table, polygons = candidates([(0, 0, 9, 9), (20, 20, 29, 29)], [0.9, 0.6], [0.9, 0.9])
    grid = {"pred_iou_threshs": [0.5, 0.8], "stability_score_threshs": [0.5]}
    planes = [threshold_plane(table, polygons, layer(square(x)), **grid) for x in (0, 200)]
    pooled = pool_planes(planes)
    assert pooled["n_predicted"].tolist() == [4, 2]
    assert pooled["n_matched"].tolist() == [1, 1]
    assert pooled["f1"].tolist() == [pytest.approx(2 / 6), pytest.approx(2 / 4)]
    assert best_thresholds(pooled)["pred_iou_thresh"] == 0.8


def test_thresholds_below_the_floors_are_not_tried():
    table, polygons = candidates([(0, 0, 9, 9)], [0.9], [0.9])
    table = replace(table, rules=replace(table.rules, pred_iou_floor=0.5, stability_floor=0.9))
    plane = threshold_plane(table, polygons, layer(square(0)))
    assert plane["pred_iou_thresh"].min() == 0.5
    assert plane["stability_score_thresh"].min() == 0.9
    assert plane["f1"].max() == 1
    defaults = Thresholds()
    assert defaults.pred_iou_thresh in set(plane["pred_iou_thresh"])
    assert defaults.stability_score_thresh in set(plane["stability_score_thresh"])


def test_the_plane_of_nothing():
    table, polygons = candidates(np.empty((0, 4), int), [], [])
    plane = threshold_plane(table, polygons, layer(square(0)), pred_iou_threshs=[0, 0.5])
    assert plane["n_predicted"].sum() == plane["f1"].sum() == 0
    empty = threshold_plane(table, polygons, layer(), pred_iou_threshs=[0, 0.5])
    assert math.isnan(best_thresholds(empty)["f1"])


scored = st.lists(
    st.tuples(
        st.integers(0, 25), st.integers(0, 25), st.integers(1, 9),
        st.floats(0, 1, width=32), st.floats(0, 1, width=32),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(scored)
@settings(max_examples=20, deadline=None)
def test_each_point_of_the_plane_is_a_selection_of_its_own(masks):
    corners = [(x, y, x + side, y + side) for x, y, side, _, _ in masks]
    table, polygons = candidates(corners, [m[3] for m in masks], [m[4] for m in masks])
    reference = layer(square(3, 3), square(20, 20))
    steps = [0, 0.3, 0.7]
    plane = threshold_plane(
        table,
        polygons.sample(frac=1, random_state=1),
        reference,
        iou_thresh=0.3,
        pred_iou_threshs=steps,
        stability_score_threshs=steps,
    )
    for row in plane.itertuples():
        chosen = select(table, Thresholds(row.pred_iou_thresh, row.stability_score_thresh))
        quality = compare(polygons.loc[chosen.column("ordinal")], reference, iou_threshs=[0.3])
        assert (row.n_predicted, row.n_matched) == (quality.n_predicted, quality.n_matched[0])


# ----------------------------------------------------------------------------------- benchmark


@pytest.fixture(scope="module")
def benchmark():
    """`benchmarks/quality.py`."""
    with benchmark_module("quality") as module:
        yield module


def test_the_benchmark_scores_a_layer(tmp_path, benchmark, capsys):
    layer(square(0), square(100)).to_file(tmp_path / "layer.gpkg")
    layer(square(0)).to_file(tmp_path / "reference.gpkg")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    layer(square(0), square(100)).to_parquet(run_folder / "prelabels.parquet")

    outputs = []
    for source in (tmp_path / "layer.gpkg", run_folder):
        benchmark.main(["--layer", str(source), str(tmp_path / "reference.gpkg")])
        outputs.append(capsys.readouterr().out)

    assert outputs[0] == outputs[1]
    assert np.array(outputs[0].split()[-4:], float).tolist() == [0.75, 1, 0.5, 0.67]


def test_the_benchmark_sets_models_side_by_side(tmp_path, benchmark, capsys):
    pairs = []
    for seed in (1, 2):
        raster = write_sample(make_sample(256, seed), tmp_path / "samples" / str(seed))
        raster = raster.rename(tmp_path / "samples" / f"{seed}.tif")
        pairs.append(f"{raster}={raster.parent / str(seed) / 'sample_objects.gpkg'}")
    results = tmp_path / "results.json"

    benchmark.main(
        [*pairs, "--boxes", pairs[0], "--models", "classic", "felzenszwalb"]
        + ["--set", "min_area_px=50", "--json", str(results)]
    )

    lines = capsys.readouterr().out.splitlines()
    assert f"{os.cpu_count()} cores" in lines[0]
    tables = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    names = [[cell.strip() for cell in row[:2]] for row in tables]
    assert names == [
        ["raster", "model"],
        ["1", "classic"], ["1", "felzenszwalb"],
        ["2", "classic"], ["2", "felzenszwalb"],
        ["samples (2 rasters)", "classic"], ["samples (2 rasters)", "felzenszwalb"],
        ["raster", "model"],
        ["1", "classic"], ["1", "felzenszwalb"],
    ]  # fmt: skip
    first, _, second, _, both, _, _, _ = json.loads(results.read_text())
    for name in ("n_predicted", "n_reference"):
        assert both["job"][name] == first["job"][name] + second["job"][name] > 0
    assert both["n_proposals"] == first["n_proposals"] + second["n_proposals"] > 0
    assert both["calibration"]["n"] == first["calibration"]["n"] + second["calibration"]["n"] > 0
    parts, whole = [row["recall"][-1] for row in (first, second)], both["recall"][-1]
    found = sum(part["recall_0.5"] * part["n_reference"] for part in parts)
    assert whole["recall_0.5"] == pytest.approx(found / whole["n_reference"])
    assert 0.1 < whole["recall_0.75"] < whole["recall_0.5"] < 1
    # the default thresholds are a point of the plane, where a sample has no seams
    (at_default,) = [rate["f1"] for rate in first["job"]["rates"] if rate["iou_thresh"] == 0.5]
    assert first["best"]["f1"] >= at_default > 0
