"""Shapes that a person has drawn in the tuner: they are labels of every run in their folder."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
from known_objects import TRANSFORM, write_labels
from known_runs import equal_layers, job_for
from test_learning_run import CLASSES, FIELD, ROOF, town

from workbench import run
from workbench.errors import ExamplesError, RunFolderError
from workbench.layer.files import read_layer
from workbench.layer.schema import DRAWN
from workbench.review.changes import changes
from workbench.review.job import ReviewJob
from workbench.review.read import read_review
from workbench.review.triage import Triage
from workbench.runs.by_hand import BY_HAND, ShapesByHand, read_by_hand
from workbench.runs.plan import prepare

pytestmark = pytest.mark.usefixtures("known_objects_only")

LEFT, TOP = TRANSFORM @ (0, 0)
TRIANGLE = shapely.MultiPolygon(
    [shapely.Polygon([(LEFT + 60.3, TOP - 40.2), (LEFT + 71, TOP - 41), (LEFT + 66, TOP - 52.7)])]
)


@pytest.fixture
def job(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", town())
    return job_for(raster, tmp_path / "run", classes=CLASSES)


@pytest.fixture
def plain(job):
    """The run without any shape by hand."""
    return run(job)


def by_hand(plain):
    """A triangle that no candidate shows, and a label with another outline, moved a bit."""
    label = plain.layer.iloc[7]
    moved = shapely.affinity.translate(label.geometry, 1.3, 0.9)
    shapes = ShapesByHand.none(plain.layer.crs).with_shape(TRIANGLE, FIELD)
    return shapes.with_shape(moved, ROOF, label["id"], label.geometry), label


def test_shapes_by_hand_are_read_as_they_were_written(plain, tmp_path):
    shapes, _ = by_hand(plain)
    shapes.write(tmp_path / BY_HAND)
    again = read_by_hand(tmp_path / BY_HAND, plain.layer.crs).frame
    assert again.drop(columns=["geometry", "outline"]).equals(
        shapes.frame.drop(columns=["geometry", "outline"])
    )
    for name in ("geometry", "outline"):
        assert again[name].geom_equals_exact(shapes.frame[name], 0).all()
    assert again["id"].str.startswith(DRAWN).all()
    assert again["id"].is_unique
    empty = ShapesByHand.none(plain.layer.crs)
    empty.write(tmp_path / BY_HAND)
    assert len(read_by_hand(tmp_path / BY_HAND, plain.layer.crs)) == 0
    plain.layer.drop(columns="class_id").to_parquet(tmp_path / BY_HAND)
    with pytest.raises(ExamplesError, match="holds no drawn shapes"):
        read_by_hand(tmp_path / BY_HAND, plain.layer.crs)


def test_the_smallest_shape_at_a_place_is_meant(plain):
    shapes, _ = by_hand(plain)
    middle = TRIANGLE.centroid
    around = shapes.with_shape(shapely.MultiPolygon([TRIANGLE.envelope.buffer(2)]), ROOF)
    assert around.at(middle.x, middle.y) == 0
    assert around.without(around.frame["id"][0]).at(middle.x, middle.y) == 1
    assert shapes.at(LEFT, TOP) == -1


def test_they_are_edited_labels_with_ids_of_their_own_and_nothing_doubles_them(job, plain):
    shapes, label = by_hand(plain)
    shapes.write(plain.folder / BY_HAND)
    layer = run(job).layer
    mine = layer.set_index("id").loc[shapes.frame["id"].tolist()]
    assert mine["status"].tolist() == ["edited", "edited"]
    assert mine["class_id"].tolist() == [FIELD, ROOF]
    assert mine.geometry.geom_equals_exact(shapes.frame.set_index("id").geometry, 0).all()
    assert mine["source_tile"].isin(plain.tiles["tile"]).all()
    np.testing.assert_allclose(mine["area_m2"], mine.geometry.area, rtol=1e-3)
    assert label["id"] not in set(layer["id"])  # the shape stands in its place
    rest = layer[~layer["id"].isin(mine.index)]
    before = plain.layer[plain.layer["id"] != label["id"]]
    assert equal_layers(rest.reset_index(drop=True), before.reset_index(drop=True))
    # a run again is no loss of a review, and gives the same
    assert equal_layers(run(job).layer, layer)
    assert equal_layers(read_layer(plain.folder / "prelabels.gpkg"), layer)


def test_what_lies_outside_of_the_area_is_left_out_like_any_label(job, plain):
    shapes, _ = by_hand(plain)
    shapes.write(plain.folder / BY_HAND)
    box = shapely.box(LEFT, TOP - 30, LEFT + 165, TOP)
    path = plain.folder.parent / "area.gpkg"
    gpd.GeoDataFrame(geometry=[box], crs=plain.layer.crs).to_file(path)
    ids = set(run(job.changed(aoi=str(path))).layer["id"])
    assert [id in ids for id in shapes.frame["id"]] == [
        box.contains(shape.representative_point()) for shape in shapes.frame.geometry
    ]


def test_a_class_that_is_not_there_is_refused(job, plain):
    ShapesByHand.none(plain.layer.crs).with_shape(TRIANGLE, 7).write(plain.folder / BY_HAND)
    with pytest.raises(RunFolderError, match="1 drawn shapes of class 7"):
        prepare(job)  # before long work


def test_a_review_takes_them_as_drawn_and_its_word_counts_in_the_next_run(job, plain):
    shapes, label = by_hand(plain)
    shapes.write(plain.folder / BY_HAND)
    result = run(job)
    review = ReviewJob.create(run_dir=str(result.folder))
    reviewed = read_review(review.gpkg, result)
    assert not [note for note in reviewed.notes if "edited" in note]
    told = changes(reviewed.labels, result.layer)
    assert told["change"].value_counts()["added"] == 2
    assert "deleted" not in set(told["change"])
    triage = Triage(review)
    ids = triage.labels["id"].tolist()
    first, second = (ids.index(id) for id in shapes.frame["id"])
    triage.decide([first], "rejected")
    stored, shape = triage.to_edit(second)
    triage.reshape(second, shapely.affinity.translate(shape, 4, 0), stored)
    run(job.changed(refresh=True))
    again = read_layer(review.gpkg).set_index("id")
    assert again.loc[ids[first], "status"] == "rejected"
    assert again.loc[ids[second], "geometry"].equals(triage.labels.geometry.iloc[second])
    assert sum(id.startswith(DRAWN) for id in again.index) == 2
    assert label["id"] not in again.index
