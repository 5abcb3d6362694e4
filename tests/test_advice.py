"""Threshold advice: scenes whose best thresholds are known, and honesty about few labels."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from known_objects import write_labels
from known_runs import run_known_objects

from workbench.candidates.select import Thresholds
from workbench.errors import ReviewError
from workbench.evaluation.advice import advise
from workbench.evaluation.thresholds import pool_planes
from workbench.review.tile_planes import tile_planes


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A run whose true objects score 0.961 to 0.975, what else is proposed 0.905 to 0.935.

    Objects of both kinds lie everywhere, some across the seams of the tiles.
    """
    rng = np.random.default_rng(5)
    labels = np.zeros((400, 400), int)
    for row in range(16):
        for col in range(16):
            score = rng.integers(61, 76) if rng.random() < 0.5 else rng.integers(5, 36)
            value = 97 * (1 + row * 16 + col) + score  # any two objects have their own
            y, x = row * 25 + rng.integers(0, 8), col * 25 + rng.integers(0, 8)
            labels[y : y + 14, x : x + 14] = value
    folder = tmp_path_factory.mktemp("advice")
    raster = write_labels(folder / "scene.tif", labels)
    return run_known_objects(raster, folder / "run")


@pytest.fixture(scope="module")
def truth(scene):
    return scene.layer[scene.layer["confidence"] > 0.95]


def f1_of(scene, truth, thresholds, tiles):
    plane = pool_planes(list(tile_planes(scene, truth, tiles).values()))
    at = plane.set_index(["pred_iou_thresh", "stability_score_thresh"])["f1"]
    return at[thresholds.pred_iou_thresh, thresholds.stability_score_thresh]


def test_labels_of_a_third_of_the_tiles_find_the_best_thresholds(scene, truth):
    tiles = scene.tiles["tile"].tolist()
    labelled, others = tiles[::3], [name for i, name in enumerate(tiles) if i % 3]
    planes = tile_planes(scene, truth, labelled)
    assert sorted(planes) == sorted(labelled)
    advice = advise(list(planes.values()), scene.job.thresholds)
    # of thresholds that part the two alike, the highest steps
    assert advice.advised == Thresholds(0.96, 0.94)
    assert advice.is_change
    assert advice.held_out.f1 == advice.held_out.low == 1
    assert advice.at_current.f1 < 0.8
    assert 0 < advice.gain.low < advice.gain.f1 < advice.gain.high
    good = advice.plane[advice.plane["as_good"]]
    assert set(good["pred_iou_thresh"]) == {0.94, 0.96}
    assert f1_of(scene, truth, advice.advised, others) == 1
    assert f1_of(scene, truth, advice.current, others) < 0.8
    assert advice.at(Thresholds(0.961, 0.93))["f1"] == 1


def test_every_object_counts_once_also_on_seams(scene, truth):
    planes = tile_planes(scene, truth, scene.tiles["tile"])
    at = pool_planes(list(planes.values())).set_index(["pred_iou_thresh", "stability_score_thresh"])
    assert at["n_reference"].unique().tolist() == [len(truth)]
    assert at.loc[(0.5, 0.5), "n_predicted"] == len(scene.layer)
    assert at.loc[(0.96, 0.94), ["n_predicted", "n_matched"]].tolist() == [len(truth)] * 2


def test_only_what_lies_in_the_labelled_area_counts(scene, truth):
    left, bottom, right, top = scene.layer.total_bounds
    half = gpd.GeoDataFrame(
        geometry=[shapely.box(left, bottom, (left + right) / 2, top)], crs=truth.crs
    )
    planes = tile_planes(scene, truth, scene.tiles["tile"], within=half.to_crs(4326))
    plane = pool_planes(list(planes.values())).iloc[0]
    inside = truth.representative_point().within(half.geometry[0])
    assert 0 < plane["n_reference"] == inside.sum() < len(truth)
    assert plane["n_predicted"] < 0.6 * len(scene.layer)


def test_nothing_is_advised_where_nothing_is_gained(scene):
    advice = advise(
        list(tile_planes(scene, scene.layer, scene.tiles["tile"]).values()), scene.job.thresholds
    )
    assert not advice.is_change
    assert advice.advised == advice.current == scene.job.thresholds
    assert advice.at_current.f1 == 1


def test_luck_is_no_advice():
    # what is right has nothing to do with scores: a handful of tiles still has a best point
    rng = np.random.default_rng(0)
    told = []
    for seed in range(20):
        planes = []
        for _ in range(4):
            n = np.array([5, 4, 3, 2, 1])
            planes.append(
                pd.DataFrame(
                    {
                        "pred_iou_thresh": [0.5, 0.6, 0.7, 0.8, 0.9],
                        "stability_score_thresh": 0.9,
                        "n_predicted": n,
                        "n_matched": rng.binomial(n, 0.5),
                        "n_reference": 4,
                    }
                )
            )
        advice = advise(planes, Thresholds(0.5, 0.9), seed=seed)
        best = advice.plane["f1"].max()
        told.append((best, advice.held_out.f1, advice.gain.high - advice.gain.low))
        assert advice.is_change == (advice.gain.f1 > 0)
    best, held_out, width = np.mean(told, axis=0)
    assert held_out < best - 0.03  # the best of the labels themselves is no promise
    assert width > 0.1


def test_equal_calls_give_equal_advice(scene, truth):
    planes = list(tile_planes(scene, truth, scene.tiles["tile"][:6]).values())
    one, other = (advise(planes, scene.job.thresholds) for _ in range(2))
    assert (one.held_out, one.gain) == (other.held_out, other.gain)
    assert one.plane.equals(other.plane)


def test_too_few_labels_are_refused(scene, truth):
    one_tile = list(tile_planes(scene, truth, scene.tiles["tile"][:1]).values())
    with pytest.raises(ReviewError, match="at least two tiles"):
        advise(one_tile, scene.job.thresholds)
    nothing = list(tile_planes(scene, truth[:0], scene.tiles["tile"]).values())
    with pytest.raises(ReviewError, match="0 labels in"):
        advise(nothing, scene.job.thresholds)
