"""Labels that are drawn, and others that get another shape, in the notebook's review."""

import shutil
import sqlite3
from contextlib import closing

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from known_objects import objects, write_labels
from known_runs import job_for, use_known_objects
from test_triage import fid, rows_of

from workbench import Job, run
from workbench.errors import ReviewError
from workbench.layer.gpkg_shape import add_shape_functions, blob_of, shape_of
from workbench.layer.schema import DRAWN
from workbench.layer.touched import read_touched
from workbench.review.changes import changes
from workbench.review.job import ReviewJob
from workbench.review.read import read_reviewed
from workbench.review.triage import Triage


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of known objects in 15 tiles."""
    folder = tmp_path_factory.mktemp("redraw")
    raster = write_labels(folder / "scene.tif", objects((230, 330), 1))
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        return run(job_for(raster, folder / "run", classes={1: "roof", 2: "tree"})).folder


@pytest.fixture
def job(run_folder, tmp_path):
    """A review of a copy of the run."""
    return ReviewJob.create(run_dir=str(shutil.copytree(run_folder, tmp_path / "run")))


@pytest.fixture
def triage(job):
    return Triage(job)


EVERYTHING = (
    "id, class_id, status, confidence, stability, area_m2, area_px, source_tile, source, n_tiles, "
    "at_edge, geom"
)


def free_square(triage, side=6.0):
    """A square in the scene, at a place inside of a tile."""
    x0, y0, x1, y1 = triage.run.tiles.geometry.iloc[4].bounds
    return shapely.box((x0 + x1) / 2, (y0 + y1) / 2, (x0 + x1) / 2 + side, (y0 + y1) / 2 + side)


def tables(gpkg):
    """What tells of the layer as a whole: its extent, and how many labels wait in each tile."""
    with closing(sqlite3.connect(gpkg)) as db:
        counts = db.execute("SELECT tile, coalesce(n_unreviewed, 0) FROM tiles").fetchall()
        extent = db.execute(
            "SELECT min_x, min_y, max_x, max_y FROM gpkg_contents WHERE table_name = 'prelabels'"
        ).fetchone()
    return dict(counts), extent


def test_a_drawn_label_is_as_the_forms_of_qgis_make_it(job, triage):
    before, (waiting, extent) = rows_of(job.gpkg, EVERYTHING), tables(job.gpkg)
    triage.go()
    triage.answer("accepted", 2)
    shape = free_square(triage)
    row = triage.draw(shape)
    number = fid(triage, row)
    after = rows_of(job.gpkg, EVERYTHING)
    assert set(after) - set(before) == {number}
    label, class_id, status, *scores = after[number][:5]
    area_m2, area_px, tile, source, n_tiles, edge = after[number][5:-1]
    assert label.startswith(DRAWN)
    assert (class_id, status) == (2, "edited")
    assert scores == [None, None]
    assert area_m2 == pytest.approx(shape.area, rel=1e-3)
    assert (area_px, n_tiles, edge) == (None, None, None)
    assert tile == triage.run.tiles["tile"].iloc[4]
    assert source == triage.run.tiles["source"].iloc[4]
    assert triage.row == row == len(triage) - 1
    assert triage.at(*shape.centroid.coords[0])[0] == row
    assert (triage.status[row], triage.class_of(row)) == ("edited", 2)
    # as other programs find it: with a spatial index, and counted
    info = pyogrio.read_info(job.gpkg, layer="prelabels", force_feature_count=True)
    assert info["features"] == len(before) + 1
    found = pyogrio.read_dataframe(job.gpkg, layer="prelabels", bbox=shape.bounds)
    assert label in found["id"].tolist()
    assert sum(tables(job.gpkg)[0].values()) == sum(waiting.values()) - 1
    assert tables(job.gpkg)[1] == extent
    # as the cells below, and a later run, take it
    labels = read_reviewed(job.gpkg, triage.run)
    told = changes(labels, triage.run.layer)
    assert told["change"].value_counts()["added"] == 1
    assert label in read_touched(job.gpkg, triage.run.layer.crs).now["id"].tolist()


def test_undo_takes_a_drawn_label_away_and_redo_brings_it_back(job, triage):
    before = rows_of(job.gpkg, EVERYTHING)
    triage.go()
    row = triage.draw(free_square(triage))
    drawn = rows_of(job.gpkg, EVERYTHING)
    triage.undo()
    assert rows_of(job.gpkg, EVERYTHING) == before
    assert len(triage) == len(triage.labels) == len(before)
    assert triage.order.progress()[1] > 0
    assert 0 <= triage.row < len(triage)
    triage.redo()
    assert rows_of(job.gpkg, EVERYTHING) == drawn
    assert triage.row == row
    second = triage.draw(shapely.affinity.translate(free_square(triage), 20, 0))
    triage.decide([row], "rejected")
    assert triage.status[row] == "rejected"
    for _ in range(3):
        triage.undo()
    assert rows_of(job.gpkg, EVERYTHING) == before
    assert len(triage) == second - 1


def test_scores_that_were_learned_before_a_label_was_drawn_still_count(triage):
    score = np.linspace(0, 1, len(triage))
    triage.draw(free_square(triage))
    triage.rank(score)
    assert len(triage.score) == len(triage)
    triage.undo()
    triage.rank(score)
    np.testing.assert_allclose(triage.score, score)


def test_an_edited_label_has_its_new_shape_and_undo_restores_both(job, triage):
    everything = rows_of(job.gpkg, EVERYTHING)
    row = triage.go()
    number = fid(triage, row)
    stored, shape = triage.to_edit(row)
    assert shape.equals(triage.labels.geometry.iloc[row])
    grown = shape.buffer(2)
    triage.reshape(row, grown, stored)
    now = rows_of(job.gpkg, EVERYTHING)
    assert {key for key in now if now[key] != everything[key]} == {number}
    assert now[number][2] == triage.status[row] == "edited"
    assert now[number][0] == everything[number][0]  # its id
    assert now[number][5] == pytest.approx(triage.labels["area_m2"].iloc[row])
    assert now[number][5] > everything[number][5]
    # somebody who opens the file finds it by its new place
    outside = shapely.difference(grown, shape).representative_point().buffer(0.01)
    found = pyogrio.read_dataframe(job.gpkg, layer="prelabels", bbox=outside.bounds)
    assert everything[number][0] in found["id"].tolist()
    assert Triage(job).labels.geometry.iloc[row].equals(triage.labels.geometry.iloc[row])
    triage.undo()
    assert rows_of(job.gpkg, EVERYTHING) == everything
    assert triage.status[row] == "unreviewed"
    assert triage.labels.geometry.iloc[row].equals(shape)
    triage.redo()
    assert rows_of(job.gpkg, EVERYTHING) == now


def test_an_outline_that_crosses_itself_is_refused_in_one_sentence(job, triage):
    before = rows_of(job.gpkg, EVERYTHING)
    x, y = free_square(triage).centroid.coords[0]
    bow = shapely.Polygon([(x, y), (x + 9, y + 9), (x + 9, y), (x, y + 9)])
    with pytest.raises(ReviewError, match="crosses itself"):
        triage.draw(bow)
    row = triage.go()
    with pytest.raises(ReviewError, match="crosses itself"):
        triage.reshape(row, bow, triage.to_edit(row)[0])
    with pytest.raises(ReviewError, match="has no area"):
        triage.draw(shapely.Polygon([(x, y), (x + 9, y + 9), (x, y)]))
    assert rows_of(job.gpkg, EVERYTHING) == before
    assert not triage.past


def test_nothing_is_drawn_while_qgis_has_the_file_open_or_after_it_was_changed(job, triage):
    row = triage.go()
    stored, shape = triage.to_edit(row)
    log = job.gpkg.with_name(f"{job.gpkg.name}-wal")
    log.touch()
    before = rows_of(job.gpkg, EVERYTHING)
    with pytest.raises(ReviewError, match="open in another program"):
        triage.draw(free_square(triage))
    with pytest.raises(ReviewError, match="open in another program"):
        triage.reshape(row, shape.buffer(1), stored)
    log.unlink()
    with closing(sqlite3.connect(job.gpkg)) as db, db:
        add_shape_functions(db)
        db.execute("UPDATE prelabels SET status = 'rejected' WHERE fid = ?", (fid(triage, row),))
    with pytest.raises(ReviewError, match="changed by another program"):
        triage.reshape(row, shape.buffer(1), stored)
    assert len(rows_of(job.gpkg)) == len(before) == len(triage)
    assert not triage.past


def test_a_run_keeps_what_was_drawn_and_edited(job, triage, monkeypatch):
    use_known_objects(monkeypatch)
    row = triage.go()
    stored, shape = triage.to_edit(row)
    triage.reshape(row, shape.buffer(2), stored)
    number, drawn = fid(triage, row), fid(triage, triage.draw(free_square(triage)))
    before = rows_of(job.gpkg, "id, status, class_id, geom")
    was = Job.from_yaml(triage.run.folder / "job.yaml")
    again = run(was.changed(refresh=True, out_dir=job.run_dir))
    labels = read_reviewed(job.gpkg, again).set_index("id")
    for key in (number, drawn):
        name, status, *_ = before[key]
        assert labels.loc[name, "status"] == status == "edited"
        assert shapely.to_wkb(labels.loc[name, "geometry"]) in before[key][-1]
        inside = labels.geometry.intersection(labels.loc[name, "geometry"]).area
        iou = inside / (labels.area + labels.loc[name, "geometry"].area - inside)
        assert (iou > 0.7).sum() == 1  # nothing doubles it


def test_shapes_are_stored_byte_by_byte_as_gdal_stores_them(job):
    blobs = [blob for (blob,) in rows_of(job.gpkg, "geom").values()]
    assert len(blobs) > 10
    for blob in blobs:
        assert blob_of(shape_of(blob), 32633) == blob


def test_an_export_in_another_crs_gets_shapes_in_its_own(job, triage, tmp_path):
    path = tmp_path / "export.gpkg"
    labels = triage.labels[["id", "class_id", "status", "geometry"]].to_crs(4326)
    pyogrio.write_dataframe(labels, path, layer="prelabels", geometry_type="MultiPolygon")
    export = Triage(ReviewJob.create(run_dir=job.run_dir, reviewed=str(path)))
    shape = free_square(triage)
    row = export.draw(shape)
    stored, was = export.to_edit(0)
    export.reshape(0, was.buffer(1), stored)
    now = pyogrio.read_dataframe(path)
    there = gpd.GeoSeries([shape], crs=triage.labels.crs).to_crs(4326).iloc[0]
    assert now.geometry.iloc[-1].hausdorff_distance(there) < 1e-9
    assert now["status"].iloc[[0, -1]].tolist() == ["edited", "edited"]
    again = Triage(ReviewJob.create(run_dir=job.run_dir, reviewed=str(path)))
    assert again.labels.geometry.iloc[row].hausdorff_distance(shape) < 1e-3
    assert again.labels["id"].iloc[row].startswith(DRAWN)
    export.undo()
    export.undo()
    after = pyogrio.read_dataframe(path)
    assert after["status"].tolist() == labels["status"].tolist()
    assert shapely.equals_identical(after.geometry, labels.geometry).all()
