"""What comes back from review: read as it is, refused with a sentence, compared with the run."""

import shutil
import sqlite3
from contextlib import closing

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from known_runs import equal_layers, run_of_15_tiles
from reviews import drawn, leave_unclosed, save_reviewed, with_rows
from shapely.affinity import translate

from workbench import run
from workbench.errors import ReviewError, RunFolderError
from workbench.review.changes import changes, iou_of_pairs
from workbench.review.read import read_review, read_reviewed
from workbench.runs.result import read_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of known objects, as `run` has returned it."""
    return run_of_15_tiles(tmp_path_factory.mktemp("review"))


@pytest.fixture
def reviewed(finished, tmp_path):
    """A copy of the run's GeoPackage, to review."""
    return shutil.copy(finished.folder / "prelabels.gpkg", tmp_path / "reviewed.gpkg")


def files(path):
    return {p.name: p.read_bytes() for p in path.parent.iterdir()}


# ------------------------------------------------------------------------------- the run folder


def test_a_run_is_read_back_as_it_was(finished):
    again = read_run(finished.folder)
    assert equal_layers(again.layer, finished.layer)
    assert again.tiles.equals(finished.tiles)
    assert again.scenes == finished.scenes
    assert again.job.parameters() == finished.job.parameters()
    assert again.aoi is None


def test_the_raster_is_not_needed(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    (folder / "job.yaml").write_text(
        (folder / "job.yaml").read_text().replace("scene.tif", "gone.tif")
    )
    assert equal_layers(read_run(folder).layer, finished.layer)


def test_an_aoi_is_part_of_the_run(finished, tmp_path, known_objects_only):
    corner = gpd.GeoSeries([shapely.box(*finished.layer.total_bounds)], crs=finished.layer.crs)
    corner.scale(0.5, 0.5).to_file(tmp_path / "aoi.gpkg")
    job = finished.job.changed(aoi=str(tmp_path / "aoi.gpkg"), out_dir=str(tmp_path / "run"))
    assert read_run(run(job).folder).aoi.equals(corner.scale(0.5, 0.5)[0])


@pytest.mark.parametrize("name", ["run.yaml", "job.yaml", "prelabels.parquet", "tiles.parquet"])
def test_a_folder_without_a_finished_run_is_refused(name, finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(RunFolderError, match=f"no finished run: {name} missing"):
        read_run(folder)


def test_a_layer_cut_short_is_told_at_once_and_other_damage_when_it_is_read(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    path, whole = folder / "prelabels.parquet", (finished.folder / "prelabels.parquet").read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(RunFolderError, match="layer or its ledger is damaged"):
        read_run(folder)
    gpd.read_parquet(finished.folder / "prelabels.parquet").drop(columns="n_tiles").to_parquet(path)
    with pytest.raises(RunFolderError, match="n_tiles"):
        read_run(folder)
    path.write_bytes(whole[:4] + bytes(400) + whole[404:])  # its footer is whole
    run = read_run(folder)  # a large layer is not read for this
    with pytest.raises(RunFolderError, match="layer or its ledger is damaged"):
        _ = run.layer
    with pytest.raises(RunFolderError, match="layer or its ledger is damaged"):
        list(run.batches())


# ------------------------------------------------------------------------------------- reading


def test_what_nobody_has_touched_comes_back_as_it_went(finished, reviewed):
    before = files(reviewed)
    labels = read_reviewed(reviewed, finished)
    assert files(reviewed) == before
    assert equal_layers(labels.drop(columns=["fid", "unclosed"]), finished.layer)
    assert labels["fid"].tolist() == list(range(1, len(labels) + 1))
    assert not labels["unclosed"].any()
    assert set(changes(labels, finished.layer)["change"]) == {"unreviewed"}


def test_rings_that_are_not_closed_in_the_file_are_told(finished, reviewed):
    square = finished.layer.geometry[0].envelope
    save_reviewed(finished.layer.set_geometry([square] * len(finished.layer)), reviewed)
    leave_unclosed(reviewed, 2)
    labels = read_reviewed(reviewed, finished)
    assert labels["fid"][labels["unclosed"]].tolist() == [2]
    assert labels.geometry[1].equals(square)


def test_a_file_with_edits_in_its_log_is_refused(finished, reviewed):
    # a real log: an edit that another connection has not yet put into the file
    with closing(sqlite3.connect(reviewed)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE note (text)")
        db.commit()
        with pytest.raises(ReviewError, match="gpkg-wal beside it holds edits"):
            read_reviewed(reviewed, finished)
    with closing(sqlite3.connect(reviewed)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    reviewed.with_name("reviewed.gpkg-wal").write_bytes(b"")  # what an idle QGIS leaves
    assert len(read_reviewed(reviewed, finished)) == len(finished.layer)


def test_of_a_collection_the_polygons_stay(finished, reviewed):
    shapes = finished.layer.geometry.to_list()
    collection = shapely.GeometryCollection([shapes[0], shapely.LineString([(0, 0), (1, 1)])])
    layer = finished.layer.set_geometry([collection, *shapes[1:]], crs=finished.layer.crs)
    reviewed.unlink()
    save_reviewed(layer, reviewed, geometry_type="Unknown")
    labels = read_reviewed(reviewed, finished)
    assert labels.geometry[0].equals(shapes[0])
    assert (labels.geom_type == "MultiPolygon").all()


@pytest.mark.parametrize(
    "crs",
    [
        "+proj=utm +zone=33 +datum=WGS84 +units=m +no_defs",
        "ESRI:102100",
        "+proj=laea +lat_0=52 +lon_0=10 +x_0=4321000 +y_0=3210000 +ellps=GRS80 +units=m",
    ],
)
def test_a_crs_by_another_name_comes_back(crs, finished, tmp_path, known_objects_only):
    made = run(finished.job.changed(crs=crs, out_dir=str(tmp_path / "run"), resume=False))
    labels = read_reviewed(made.folder / "prelabels.gpkg", read_run(made.folder))
    assert len(labels) == len(made.layer) > 0
    assert labels.crs == made.layer.crs


def other_layer(path, finished):
    finished.layer[["source", "geometry"]].to_file(path, layer="export")


def two_layers(path, finished):
    finished.layer.to_file(path, layer="one")
    finished.layer.to_file(path, layer="two")


def unknown_class(path, finished):
    save_reviewed(finished.layer.assign(class_id="barn"), path)


def one_unknown_class(path, finished):
    class_id = ["1", "barn", *["1"] * (len(finished.layer) - 2)]
    save_reviewed(finished.layer.assign(class_id=class_id), path)


def fewer_columns(path, finished):
    save_reviewed(finished.layer.drop(columns=["status", "n_tiles"]), path)


def other_run(path, finished):
    save_reviewed(finished.layer.assign(id="x" + finished.layer["id"]), path)


def other_status(path, finished):
    save_reviewed(finished.layer.assign(status="done"), path)


def no_geopackage(path, finished):
    path.write_text("{}")


def cut_off(path, finished):
    path.write_bytes(path.read_bytes()[:60_000])


def nothing_there(path, finished):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_layer, "no layer `prelabels` .it has export"),
        (two_layers, "2 layers could be it: one, two"),
        (unknown_class, "'barn' is no class of the run; 14 labels .* has fid 1"),
        (one_unknown_class, "'barn' is no class of the run; 1 labels .* has fid 2"),
        (fewer_columns, "lack the columns status"),
        (other_run, "review of another run"),
        (other_status, "'done' is no status; 14 labels .* has fid 1"),
        (no_geopackage, "is no GeoPackage"),
        (cut_off, "is damaged"),
        (nothing_there, "no such file"),
    ],
)
def test_what_is_no_review_of_this_run_is_refused(spoil, message, finished, reviewed):
    if spoil is not nothing_there and spoil is not cut_off:
        reviewed.unlink()
    spoil(reviewed, finished)
    with pytest.raises(ReviewError, match=message):
        read_reviewed(reviewed, finished)


# ------------------------------------------------------------------- read as it is meant


def judged(finished):
    """The first accepted, the second rejected, the third reshaped."""
    labels = finished.layer.assign(class_id=pd.array([1] * len(finished.layer), dtype="Int64"))
    labels.loc[:1, "status"] = ["accepted", "rejected"]
    labels.loc[2, "geometry"] = labels.geometry[2].buffer(3)
    return labels


def save_as(labels, path, **how):
    path.unlink(missing_ok=True)
    pyogrio.write_dataframe(labels, path, **how)
    return path


def without_crs(path):
    path.with_suffix(".prj").unlink()
    return path


EXPORTS = {
    "a layer of another name": (
        lambda labels, folder: save_as(labels, folder / "a.gpkg", layer="my labels"),
        "in the layer `my labels`",
    ),
    "another CRS": (
        lambda labels, folder: save_reviewed(labels.to_crs(3857), folder / "a.gpkg"),
        "It is in EPSG:3857",
    ),
    "GeoJSON": (
        lambda labels, folder: save_as(labels.to_crs(4326), folder / "a.geojson"),
        "is an export",
    ),
    "Shapefile": (
        lambda labels, folder: save_as(labels, folder / "a.shp", promote_to_multi=False),
        "is an export",
    ),
    "Shapefile without a CRS": (
        lambda labels, folder: without_crs(save_as(labels, folder / "a.shp")),
        "has no CRS",
    ),
    "class as a number in text": (
        lambda labels, folder: save_reviewed(labels.assign(class_id="1"), folder / "a.gpkg"),
        "classes are text",
    ),
    "class as its name": (
        lambda labels, folder: save_reviewed(labels.assign(class_id=" Object"), folder / "a.gpkg"),
        "classes are text",
    ),
    "class as the form shows it": (
        lambda labels, folder: save_reviewed(
            labels.assign(class_id="1 – object"), folder / "a.gpkg"
        ),
        "classes are text",
    ),
    "few columns": (
        lambda labels, folder: save_reviewed(
            labels[["id", "class_id", "status", "geometry"]], folder / "a.gpkg"
        ),
        "It lacks confidence, stability",
    ),
    "status in capitals": (
        lambda labels, folder: save_reviewed(
            labels.assign(status=labels["status"].str.title()), folder / "a.gpkg"
        ),
        "",
    ),
}


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.filterwarnings("ignore:.*truncated:UserWarning", "ignore::RuntimeWarning")
def test_what_was_meant_is_read_and_said(export, finished, tmp_path):
    write, said = EXPORTS[export]
    labels = judged(finished)
    reviewed = read_review(write(labels, tmp_path), finished)
    assert said in " ".join(reviewed.notes)
    told = changes(reviewed.labels, finished.layer)
    ids = labels["id"].tolist()
    assert told["id"].tolist() == ids
    assert told["change"].tolist() == ["accepted", "rejected", "edited"] + ["unreviewed"] * 11
    assert reviewed.labels["class_id"].tolist() == [1] * 14
    assert reviewed.labels["status"].tolist() == told["change"].tolist()
    untouched = [0, 1, *range(3, 14)]
    here, there = reviewed.labels.geometry.iloc[untouched], finished.layer.geometry.iloc[untouched]
    assert all(here.geom_equals(there))
    assert reviewed.labels["confidence"].to_numpy() == pytest.approx(finished.layer["confidence"])
    assert reviewed.labels.crs == finished.layer.crs


def test_labels_called_edited_with_the_shape_of_the_run_are_told(finished, reviewed):
    labels = finished.layer.assign(status="edited")
    labels.loc[0, "geometry"] = labels.geometry[0].buffer(3)
    save_reviewed(labels, reviewed.with_name("bulk.gpkg"))
    (note,) = read_review(reviewed.with_name("bulk.gpkg"), finished).notes
    assert note.startswith("13 labels are marked `edited`, but nobody has changed their shape")
    assert "fid 2" in note
    assert read_review(reviewed, finished).notes == ()


# ------------------------------------------------------------------------------------- changes


def test_every_kind_of_work_is_told(finished, reviewed):
    layer = finished.layer
    assert len(layer) >= 8
    edited = layer.assign(class_id=pd.array([1] * len(layer), dtype="Int64"))
    edited.loc[0, "status"] = "accepted"
    edited.loc[1, "status"] = "rejected"
    edited.loc[2, ["status", "class_id"]] = ["accepted", 2]  # from null: no change of class
    moved = translate(layer.geometry[3], layer.geometry[3].bounds[2] - layer.geometry[3].bounds[0])
    edited.loc[3, "geometry"] = moved  # away from where it was, and not marked by hand
    edited.loc[4, "status"] = "edited"
    edited = edited.drop(index=5)
    x, y = layer.total_bounds[:2]
    new = drawn(shapely.box(x, y, x + 9, y + 9), layer, status=None)
    gone_again = drawn(shapely.box(x, y, x + 5, y + 5), layer, id="drawn/2", status="rejected")
    save_reviewed(with_rows(edited, new, gone_again), reviewed)

    labels = read_reviewed(reviewed, finished)
    told = changes(labels, layer).set_index("id")

    ids = layer["id"]
    assert told["change"].to_dict() == {
        ids[0]: "accepted", ids[1]: "rejected", ids[2]: "accepted", ids[3]: "edited",
        ids[4]: "edited", ids[5]: "deleted", "drawn/1": "added",
        **dict.fromkeys(ids[6:], "unreviewed"),
    }  # fmt: skip
    assert told["reshaped"][told["reshaped"]].index.tolist() == [ids[3]]
    assert told["iou"][ids[3]] == 0
    assert told["iou"][ids[4]] == 1
    assert told["iou"][["drawn/1", ids[5]]].isna().all()
    assert (
        told["confidence"]
        .drop("drawn/1")
        .equals(layer.set_index("id")["confidence"][told.index.drop("drawn/1")])
    )
    assert told["class_id"][ids[2]] == 2
    assert not told["reclassified"].any()
    assert (labels["id"].iloc[told["row"].drop(ids[5])] == told.index.drop(ids[5])).all()


def test_another_class_is_told_and_is_no_edit(finished):
    before = finished.layer.assign(class_id=pd.array([1] * len(finished.layer), dtype="Int64"))
    after = before.assign(status="accepted")
    after.loc[0, "class_id"] = 2
    after.loc[1, ["class_id", "status"]] = [2, "rejected"]
    told = changes(after, before)
    assert told["change"].tolist()[:3] == ["accepted", "rejected", "accepted"]
    assert told["reclassified"].tolist()[:3] == [True, True, False]


def test_of_a_label_that_was_split_the_rest_is_added(finished):
    before = finished.layer
    left, bottom, right, top = before.geometry[0].bounds
    cut = shapely.box(left, bottom, left + (right - left) / 4, top)
    pieces = [shapely.intersection(before.geometry[0], cut), before.geometry[0].difference(cut)]
    two = before.loc[[0, 0]].assign(status="edited").set_geometry(pieces, crs=before.crs)
    after = pd.concat([two, before[1:]], ignore_index=True)
    told = changes(after, before)
    assert told["change"].tolist()[:3] == ["added", "edited", "unreviewed"]
    assert told["iou"][1] == pytest.approx(pieces[1].area / before.geometry[0].area)


def test_a_vertex_more_on_an_edge_is_no_new_shape(finished):
    after = finished.layer.set_geometry(finished.layer.geometry.segmentize(2).reverse())
    assert not changes(after, finished.layer)["reshaped"].any()


def test_a_review_of_nothing(finished):
    nothing = finished.layer[:0]
    assert len(changes(nothing, nothing)) == 0
    assert changes(nothing, finished.layer)["change"].unique().tolist() == ["deleted"]


def test_iou_of_pairs_mends_and_takes_nothing_for_nothing():
    square, bow_tie = shapely.box(0, 0, 2, 2), shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    one = np.array([square, square, shapely.Polygon()], object)
    other = np.array([shapely.box(1, 0, 2, 2), bow_tie, shapely.Polygon()], object)
    assert iou_of_pairs(one, other).tolist() == [0.5, 0.5, 0]
