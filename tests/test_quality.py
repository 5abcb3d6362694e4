import math
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from workbench.errors import WorkbenchError
from workbench.quality import Quality, compare, match

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
def test_a_layer_agrees_with_itself(corners):
    same = layer(*(square(*corner) for corner in corners))
    n = len(same)
    assert compare(same, same) == Quality(n, n, (0.5, 0.75), (n, n), 1.0)


@given(squares, squares, st.randoms(use_true_random=False))
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


def test_the_script_prints_the_table(tmp_path):
    layer(square(0), square(100)).to_file(tmp_path / "layer.gpkg")
    layer(square(0)).to_file(tmp_path / "reference.gpkg")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    layer(square(0), square(100)).to_parquet(run_folder / "prelabels.parquet")
    script = Path(__file__).parents[1] / "benchmarks" / "quality.py"

    outputs = [
        subprocess.run(
            [sys.executable, script, source, tmp_path / "reference.gpkg"],
            check=True, capture_output=True, text=True,
        ).stdout
        for source in (tmp_path / "layer.gpkg", run_folder)
    ]  # fmt: skip

    assert outputs[0] == outputs[1]
    assert np.array(outputs[0].split()[-4:], float).tolist() == [0.75, 1, 0.5, 0.67]
