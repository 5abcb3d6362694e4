"""A reviewed layer made anew: what a person has touched stays, and nothing is offered twice."""

import shutil
import sqlite3
from contextlib import closing

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from known_objects import KnownObjects, objects_apart, write_labels
from known_runs import equal_layers, files_in, job_for, left_over
from reviews import drawn, save_reviewed, with_rows

from workbench import Job, read_run, run
from workbench.candidates.table import Candidates
from workbench.errors import ReviewError, RunFolderError
from workbench.layer.files import read_layer
from workbench.layer.schema import COLUMNS, as_layer
from workbench.layer.touched import read_touched
from workbench.review.changes import changes
from workbench.review.decisions import advise_by_decisions
from workbench.review.job import ReviewJob
from workbench.review.read import read_review
from workbench.review.workflow import review
from workbench.runs import refresh
from workbench.runs.plan import prepare

pytestmark = pytest.mark.usefixtures("known_objects_only")

STRICT = 0.93  # of the scores, which are 0.9 and more


@pytest.fixture(scope="module")
def raster(tmp_path_factory):
    """Objects that do not touch: each is found, and none stands in another one's way."""
    labels = objects_apart((230, 330), 1, 60, largest=0.5)
    return write_labels(tmp_path_factory.mktemp("rasters") / "scene.tif", labels)


def job(raster, folder, **parameters):
    return job_for(raster, folder, default_class=1, classes={1: "roof", 2: "tree"}, **parameters)


def review_of(folder, *, notes=True):
    """Judge a layer as a person does: one label of each kind; returns it as it was saved."""
    gpkg = folder / "prelabels.gpkg"
    labels = read_layer(gpkg)
    assert len(labels) >= 8
    labels.loc[0, "status"] = "accepted"
    labels.loc[1, "status"] = "rejected"
    labels.loc[2, "status"] = "edited"
    labels.loc[2, "geometry"] = labels.geometry[2].envelope.buffer(1, join_style="mitre")
    labels.loc[3, "class_id"] = 2
    corner = shapely.box(*labels.total_bounds[:2] - 20, *labels.total_bounds[:2] - 10)
    new = drawn(shapely.MultiPolygon([corner]), labels, source="scene")
    labels = with_rows(labels.drop(index=4), new)
    if notes:
        labels["note"] = None
        labels.loc[4, "note"] = "shadow?"
        labels["length"] = 2.5
    gpkg.unlink()
    save_reviewed(labels, gpkg)
    return labels


def touched_ids(labels):
    """The ids of the six labels that `review_of` leaves touched."""
    return labels["id"].iloc[[0, 1, 2, 3, 4, -1]].tolist()


def rows_of(gpkg, ids):
    """Labels of a file by id, with the columns that a person added."""
    frame = pyogrio.read_dataframe(gpkg, layer="prelabels").set_index("id").loc[ids].reset_index()
    more = [name for name in ("note", "length") if name in frame]
    return as_layer(frame), frame[more]


def test_without_refresh_a_review_is_refused_by_a_sentence_that_names_it(raster, tmp_path):
    run(job(raster, tmp_path / "run"))
    review_of(tmp_path / "run")
    with pytest.raises(RunFolderError, match="refresh=true to keep them"):
        run(job(raster, tmp_path / "run", pred_iou_thresh=STRICT))


def test_a_refresh_without_a_review_is_a_run(raster, tmp_path):
    plain = run(job(raster, tmp_path / "plain"))
    for _ in range(2):
        again = run(job(raster, tmp_path / "run", refresh=True))
    assert equal_layers(plain.layer, again.layer)
    assert {p.name for p in files_in(again.folder)} == {p.name for p in files_in(plain.folder)}


@pytest.mark.parametrize("thresholds", [{}, {"pred_iou_thresh": STRICT}])
def test_what_a_person_touched_stays_and_the_rest_is_that_of_the_new_job(
    raster, tmp_path, thresholds
):
    folder = tmp_path / "run"
    before = run(job(raster, folder)).layer
    saved = review_of(folder)
    old, ids = (folder / "prelabels.gpkg").read_bytes(), touched_ids(saved)
    was = rows_of(folder / "prelabels.gpkg", ids)
    made = run(job(raster, folder, refresh=True, **thresholds))
    now = pyogrio.read_dataframe(folder / "prelabels.gpkg", layer="prelabels")
    labels, more = rows_of(folder / "prelabels.gpkg", ids)
    assert equal_layers(labels, was[0])
    assert more.equals(was[1])
    assert now["length"].notna().sum() == len(ids)

    fresh = run(job(raster, tmp_path / "fresh", **thresholds)).layer
    others = fresh[~fresh["id"].isin(before["id"][:6])]  # one of these six was deleted
    new = now[~now["id"].isin(ids)]
    assert set(new["id"]) == set(others["id"])
    assert (new["status"] == "unreviewed").all()
    assert now["id"].is_unique
    assert len(now) == len(made.tally.numbers) == len(ids) + len(others)

    (backup,) = folder.glob("prelabels-before-*.gpkg")
    assert backup.read_bytes() == old
    assert equal_layers(read_layer(backup.with_suffix(".parquet")), before)
    assert left_over(folder) == []


def test_every_file_of_the_folder_tells_of_the_same_layer(raster, tmp_path):
    folder = tmp_path / "run"
    run(job(raster, folder))
    review_of(folder)
    formats = {"formats": ["flatgeobuf", "pmtiles"]}
    run(job(raster, folder, refresh=True, pred_iou_thresh=STRICT, **formats))
    layer = read_layer(folder / "prelabels.gpkg")
    geojson = read_layer(folder / "prelabels.geojson")
    assert layer.drop(columns="geometry").equals(geojson.drop(columns="geometry"))
    flatgeobuf = pyogrio.read_dataframe(folder / "prelabels.fgb")
    assert set(flatgeobuf["id"]) == set(layer["id"])
    assert set(flatgeobuf.columns) == {*COLUMNS, "geometry"}
    assert (folder / "prelabels.pmtiles").exists()

    tiles = pyogrio.read_dataframe(folder / "prelabels.gpkg", layer="tiles")
    ledger = gpd.read_parquet(folder / "tiles.parquet")
    counts = layer["source_tile"].value_counts()
    for frame in (tiles, ledger):
        assert frame["n_polygons"].tolist() == [counts.get(tile, 0) for tile in frame["tile"]]
    assert Job.from_yaml(folder / "job.yaml").thresholds.pred_iou_thresh == STRICT
    report = (folder / "report.html").read_text(encoding="utf-8")
    for said in ("kept, accepted", "kept as deleted", "prelabels-before-"):
        assert said in report


def test_a_review_goes_on_after_a_refresh_and_through_a_second_one(raster, tmp_path):
    folder = tmp_path / "run"
    run(job(raster, folder))
    review_of(folder)
    counted = []
    for threshold in (STRICT, 0.9):
        run(job(raster, folder, refresh=True, pred_iou_thresh=threshold))
        finished = read_run(folder)
        came = read_review(folder / "prelabels.gpkg", finished)
        told = changes(came.labels, finished.layer)["change"].value_counts()
        counted.append({name: told.get(name, 0) for name in told.index if name != "unreviewed"})
        assert came.notes == ()
        with pytest.raises(RunFolderError, match="holds 6 reviewed labels"):
            run(job(raster, folder))
    # the class and the note leave their labels unreviewed
    assert counted == [
        {"accepted": 1, "rejected": 1, "edited": 1, "added": 1, "deleted": 1}
    ] * 2  # fmt: skip
    assert len(list(folder.glob("prelabels-before-*.gpkg"))) == 2
    found = review(ReviewJob(run_dir=str(folder), chip_size=64, val=0, test=0))
    assert "No examples" not in found.classes.text
    assert "No data set" not in found.dataset.text


def test_texts_that_the_run_itself_has_written_are_no_notes(raster, tmp_path):
    folder = tmp_path / "run"
    made = run(job(raster, folder))
    gpkg = folder / "prelabels.gpkg"
    labels = made.layer.assign(asked="a point")
    gpkg.unlink()
    save_reviewed(labels, gpkg)
    labels.to_parquet(gpkg.with_suffix(".parquet"))
    assert not read_touched(gpkg, labels.crs).ids
    labels.loc[0, "status"] = "accepted"
    gpkg.unlink()
    save_reviewed(labels, gpkg)
    run(job(raster, folder, refresh=True))
    now = pyogrio.read_dataframe(gpkg, layer="prelabels").set_index("id")
    assert now["asked"][labels["id"][0]] == "a point"
    assert now["asked"].notna().sum() == 1


class Shifted(KnownObjects):
    """Another model: it sees every object a little to the right, and numbers them alike."""

    @property
    def key(self):
        return {"model": "shifted objects"}

    def propose(self, image, watch=None):
        found = super().propose(np.roll(image, 1, axis=1), watch)
        columns = found.table.to_pydict()
        columns["pred_iou"] = [score - 0.005 for score in columns["pred_iou"]]
        return Candidates.from_columns(found.rules, columns)


def use(monkeypatch, segmenter):
    monkeypatch.setattr(
        "workbench.runs.choose.segmenter_for", lambda job, before: segmenter(job.rules)
    )


def test_another_model_doubles_nothing_that_was_kept_or_rejected(raster, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run(job(raster, folder))
    saved = review_of(folder)
    use(monkeypatch, Shifted)
    parameters = {"refresh": True, "duplicate_iou": 0.5, "overlaps": "nested"}
    with pytest.raises(RunFolderError, match=r"another segmenter.*resume=false"):
        run(job(raster, folder, **parameters))
    run(job(raster, folder, resume=False, **parameters))
    now = read_layer(folder / "prelabels.gpkg")
    assert now["id"].is_unique
    ids = touched_ids(saved)
    old, new = now[now["id"].isin(ids)], now[~now["id"].isin(ids)]
    assert len(old) == 6
    pairs = gpd.sjoin(new[["geometry"]], old[["geometry"]])
    one = new.geometry.loc[pairs.index].to_numpy()
    other = old.geometry.loc[pairs["index_right"]].to_numpy()
    common = shapely.area(shapely.intersection(one, other))
    union = shapely.area(shapely.union(one, other))
    assert (common <= 0.5 * union).all()
    alone = run(job(raster, tmp_path / "alone", **parameters)).layer
    assert 0 < len(new) < len(alone)

    again = run(job(raster, folder, **parameters))  # its own candidates are known by their scores
    assert equal_layers(
        read_layer(folder / "prelabels.gpkg").sort_values("id", ignore_index=True),
        now.sort_values("id", ignore_index=True),
    )
    found = review(ReviewJob(run_dir=str(again.folder), chip_size=64))
    assert found.thresholds.text
    # the verdicts are on candidates of the first model, which are no longer stored
    labels = read_review(folder / "prelabels.gpkg", read_run(folder)).labels
    with pytest.raises(ReviewError):
        advise_by_decisions(read_run(folder), labels)


def test_an_id_that_another_candidate_had_is_given_a_number(raster, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    before = run(job(raster, folder)).layer
    gpkg = folder / "prelabels.gpkg"
    moved = before.assign(geometry=before.geometry.translate(5000))
    moved.loc[0, "status"] = "accepted"
    moved.loc[0, "confidence"] = 0.5  # of another model
    gpkg.unlink()
    save_reviewed(moved.iloc[:1], gpkg)
    moved.iloc[:1].assign(status="unreviewed").to_parquet(gpkg.with_suffix(".parquet"))
    run(job(raster, folder, refresh=True))
    label = before["id"][0]
    assert {label, f"{label}/2"} <= set(read_layer(gpkg)["id"])
    gpkg_labels = read_layer(gpkg)
    gpkg_labels.loc[gpkg_labels["id"] == f"{label}/2", "status"] = "accepted"
    gpkg.unlink()
    save_reviewed(gpkg_labels, gpkg)
    run(job(raster, folder, refresh=True))
    assert sorted(read_layer(gpkg)["id"]) == sorted(gpkg_labels["id"])


@pytest.mark.parametrize("step", ["staged", "backup", "commit", "moving"])
def test_a_refresh_that_is_killed_has_happened_or_not(raster, tmp_path, monkeypatch, step):
    folder = tmp_path / "run"
    run(job(raster, folder))
    saved = review_of(folder)
    gpkg, parquet = folder / "prelabels.gpkg", folder / "prelabels.parquet"
    old = gpkg.read_bytes(), parquet.read_bytes()
    whole = shutil.copytree(folder, tmp_path / "whole")
    run(job(raster, whole, refresh=True, pred_iou_thresh=STRICT))

    class Killed(BaseException):
        pass

    replace, keep, n_moved = refresh.os.replace, refresh._keep_beside, 0

    def killed_at(source, target):
        nonlocal n_moved
        at = {"commit": target == gpkg, "moving": source.parent.name == ".refresh"}
        n_moved += bool(at["moving"])
        if at.get(step) and n_moved == (1 if step == "commit" else 2):
            raise Killed
        replace(source, target)

    def no_backup(path):
        if step == "backup":
            raise Killed
        return keep(path)

    def not_discarded(stage):
        """A killed process cleans nothing up."""

    with monkeypatch.context() as patch:
        patch.setattr(refresh.os, "replace", killed_at)
        patch.setattr(refresh, "_keep_beside", no_backup)
        patch.setattr(refresh, "_discard", lambda stage: None)
        if step == "staged":
            patch.setattr(refresh, "state_of", lambda path: (_ for _ in ()).throw(Killed()))
            patch.setattr(refresh, "read_touched", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(job(raster, folder, refresh=True, pred_iou_thresh=STRICT))
    done = step == "moving"
    if not done:
        assert (gpkg.read_bytes(), parquet.read_bytes()) == old
    # whoever opens the folder next finds one layer, whole
    assert equal_layers(
        read_run(folder).layer, read_run(whole if done else shutil.copytree(
            folder, tmp_path / "copy")).layer,
    )  # fmt: skip
    ids = touched_ids(saved)
    assert set(ids) <= set(read_layer(gpkg)["id"])
    run(job(raster, folder, refresh=True, pred_iou_thresh=STRICT))
    assert equal_layers(read_layer(gpkg), read_layer(whole / "prelabels.gpkg"))
    assert equal_layers(read_run(folder).layer, read_run(whole).layer)
    assert left_over(folder) == []


def test_a_layer_that_was_saved_during_the_run_is_not_replaced(raster, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run(job(raster, folder))
    review_of(folder)
    gpkg, found = folder / "prelabels.gpkg", refresh.Refresh.staged

    def saved_meanwhile(self):
        with closing(sqlite3.connect(gpkg)) as db, db:
            db.execute("CREATE TABLE more (word TEXT)")
        return found(self)

    monkeypatch.setattr(refresh.Refresh, "staged", saved_meanwhile)
    with pytest.raises(RunFolderError, match=r"has been changed while the run was made"):
        run(job(raster, folder, refresh=True))
    assert "more" in pyogrio.list_layers(gpkg)[:, 0]
    assert left_over(folder) == []


def test_a_layer_that_is_open_in_qgis_is_refused(raster, tmp_path):
    folder = tmp_path / "run"
    run(job(raster, folder))
    review_of(folder)
    with closing(sqlite3.connect(folder / "prelabels.gpkg")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE more (word TEXT)")
        db.commit()
        with pytest.raises(RunFolderError, match="is open in another program, probably QGIS"):
            run(job(raster, folder, refresh=True))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"classes": {1: "roof"}}, r"holds 1 reviewed labels of class 2, .*Add it there"),
        ({"crs": "EPSG:32634", "resume": False}, r"is in EPSG:32633.*Set crs to EPSG:32633"),
    ],
)
def test_what_cannot_stay_as_it_is_is_refused_before_any_work(
    raster, tmp_path, parameters, message
):
    folder = tmp_path / "run"
    run(job(raster, folder))
    review_of(folder)
    before = {path: path.read_bytes() for path in files_in(folder)}
    given = {"classes": {1: "roof", 2: "tree"}} | parameters
    with pytest.raises(RunFolderError, match=message):
        prepare(job_for(raster, folder, refresh=True, default_class=1, **given))
    assert {path: path.read_bytes() for path in files_in(folder)} == before


def test_in_a_planar_layer_new_labels_are_cut_where_kept_ones_are(raster, tmp_path):
    folder = tmp_path / "run"
    planar = {"planar": True, "overlaps": "all"}
    before = run(job(raster, folder, **planar)).layer
    gpkg = folder / "prelabels.gpkg"
    labels = read_layer(gpkg)
    labels.loc[0, "status"] = "edited"
    # a person makes it larger, into a neighbour
    left, bottom, right, top = labels.geometry[1].bounds
    part = shapely.box(left, bottom, left + 0.2 * (right - left), top)
    labels.loc[0, "geometry"] = shapely.MultiPolygon([*labels.geometry[0].geoms, part])
    gpkg.unlink()
    save_reviewed(labels, gpkg)
    run(job(raster, folder, refresh=True, **planar))
    now = read_layer(gpkg)
    kept = now[now["id"] == labels["id"][0]].geometry.iloc[0]
    rest = now[now["id"] != labels["id"][0]]
    assert len(rest) == len(before) - 1
    assert shapely.area(shapely.intersection(rest.geometry.to_numpy(), kept)).max() < 1e-6


def test_a_label_that_is_broken_or_empty_ends_no_run(raster, tmp_path):
    folder = tmp_path / "run"
    run(job(raster, folder))
    gpkg = folder / "prelabels.gpkg"
    labels = read_layer(gpkg)
    tie = shapely.Polygon(
        [(500000, 5299990), (500010, 5299980), (500010, 5299990), (500000, 5299980)]
    )
    labels.loc[0, ["status", "geometry"]] = ["edited", shapely.MultiPolygon([tie])]
    labels.loc[1, ["status", "geometry"]] = ["edited", shapely.MultiPolygon()]
    gpkg.unlink()
    save_reviewed(labels, gpkg)
    run(job(raster, folder, refresh=True, formats=["flatgeobuf"]))
    now = read_layer(gpkg)
    assert shapely.equals_identical(now.geometry[now["id"] == labels["id"][0]].iloc[0],
                                    labels.geometry[0])  # fmt: skip
    assert labels["id"][1] not in set(now["id"])
    told = changes(now, read_run(folder).layer).set_index("id")["change"]
    assert told[labels["id"][1]] == "deleted"
