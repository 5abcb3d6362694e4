"""A run folder goes on where it fits, is refused where it does not, and loses nobody's work."""

import sqlite3
import subprocess
from contextlib import closing

import geopandas as gpd
import numpy as np
import pytest
import shapely
import yaml
from known_objects import TRANSFORM, KnownObjects, objects, same_objects, write_labels
from known_runs import counted_calls, equal_layers, files_in, job_for

from workbench import Job, run
from workbench._support.files import atomic_path
from workbench.candidates.table import Rules
from workbench.errors import CheckpointError, RunFolderError
from workbench.runs.finish import finish
from workbench.runs.folder import OUTPUTS
from workbench.runs.plan import open_scenes, prepare
from workbench.runs.record import read_record, resolve
from workbench.runs.segment import segment

pytestmark = pytest.mark.usefixtures("known_objects_only")

SEGMENTER = KnownObjects(Rules(96, 96))


def test_another_run_in_the_folder_is_refused_and_kept(raster, tmp_path):
    folder = tmp_path / "run"
    before = run(job_for(raster, folder))
    files = {p: p.read_bytes() for p in files_in(folder)}
    with pytest.raises(RunFolderError, match=r"(?s)another tiling.*overlap: 0.25 there, 0.1 here"):
        run(job_for(raster, folder, overlap=0.1))
    assert {p: p.read_bytes() for p in files_in(folder)} == files
    replaced = run(job_for(raster, folder, overlap=0.1, resume=False))
    assert len(replaced.tiles) != len(before.tiles)


def edit(gpkg, *statements):
    with closing(sqlite3.connect(gpkg)) as db, db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            db.execute(f'DROP TRIGGER "{trigger}"')  # they need the functions of GDAL
        for statement in statements:
            db.execute(statement)
        db.execute(
            "UPDATE gpkg_ogr_contents SET feature_count = (SELECT count(*) FROM prelabels) "
            "WHERE table_name = 'prelabels'"
        )
    db.close()


@pytest.mark.parametrize(
    ("statements", "n"),
    [
        (["UPDATE prelabels SET status = 'accepted' WHERE fid = 1"], 1),
        (["UPDATE prelabels SET class_id = 2 WHERE fid < 4"], 3),
        (["DELETE FROM prelabels WHERE fid = 2"], 1),
        (["UPDATE prelabels SET geom = (SELECT geom FROM prelabels WHERE fid = 2) WHERE fid=1"], 1),
        (
            [
                "INSERT INTO prelabels (geom) SELECT geom FROM prelabels WHERE fid = 1",
                "UPDATE prelabels SET status = NULL WHERE fid = 3",
                "DELETE FROM prelabels WHERE fid = 2",
            ],
            3,
        ),
    ],
)
def test_reviewed_labels_are_never_overwritten(raster, tmp_path, statements, n):
    run(job_for(raster, tmp_path / "run"))
    gpkg = tmp_path / "run" / "prelabels.gpkg"
    edit(gpkg, *statements)
    before = gpkg.read_bytes()
    for parameters in ({}, {"resume": False}):
        with pytest.raises(RunFolderError, match=f"holds {n} reviewed labels"):
            run(job_for(raster, tmp_path / "run", **parameters))
    assert gpkg.read_bytes() == before


def test_without_the_layer_as_written_the_status_tells_what_is_reviewed(raster, tmp_path):
    folder = tmp_path / "run"
    run(job_for(raster, folder))
    (folder / "prelabels.parquet").unlink()
    run(job_for(raster, folder))
    edit(folder / "prelabels.gpkg", "UPDATE prelabels SET status = 'edited' WHERE fid = 1")
    (folder / "prelabels.parquet").unlink()
    with pytest.raises(RunFolderError, match="holds 1 reviewed labels"):
        run(job_for(raster, folder))


def test_a_review_that_begins_during_a_run_is_kept(raster, tmp_path):
    job = job_for(raster, tmp_path / "run")
    run(job)
    plan = prepare(job)
    edit(tmp_path / "run" / "prelabels.gpkg", "DELETE FROM prelabels WHERE fid = 1")
    with pytest.raises(RunFolderError, match="holds 1 reviewed labels"):
        finish(plan)


def test_sample_tiles_of_a_reviewed_run_are_computed_and_the_review_stays(raster, tmp_path):
    folder = tmp_path / "run"
    job = job_for(raster, folder)
    left, bottom, right, top = open_scenes(job)[0].bounds
    half = shapely.box(left, bottom, (left + right) / 2, top)
    area = gpd.GeoSeries([half], crs=32633).to_crs(4326)[0]
    run(job.changed(aoi=shapely.geometry.mapping(area)))
    gpkg = folder / "prelabels.gpkg"
    edit(gpkg, "UPDATE prelabels SET status = 'accepted' WHERE fid = 1")
    before = {path: path.read_bytes() for path in (gpkg, folder / "job.yaml")}
    tile = ("scene", 1, 4)
    with closing(prepare(job, tiles=[tile])) as plan:
        assert [t.record.index for t in segment(plan)] == [tile]
        with pytest.raises(RunFolderError, match="holds 1 reviewed labels"):
            finish(plan)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(RunFolderError, match="holds 1 reviewed labels"):
        prepare(job.changed(resume=False), tiles=[tile])


def test_a_layer_that_is_not_ours_is_refused(raster, tmp_path):
    folder = tmp_path / "run"
    run(job_for(raster, folder))
    gpkg = folder / "prelabels.gpkg"
    others = gpd.GeoDataFrame({"a": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32633)
    for layer in ("prelabels", "mine"):
        gpkg.unlink()
        others.to_file(gpkg, layer=layer)
        with pytest.raises(RunFolderError, match="no layer of pre-labels"):
            run(job_for(raster, folder))
    gpkg.write_bytes(b"")
    with pytest.raises(RunFolderError, match="no layer of pre-labels"):
        run(job_for(raster, folder))


@pytest.mark.parametrize("name", [*OUTPUTS, "candidates/elections.parquet"])
@pytest.mark.parametrize("resume", [True, False])
def test_files_that_no_run_has_written_are_never_replaced(raster, tmp_path, name, resume):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(RunFolderError, match=f"holds {name.split('/')[0]}, .* no run.yaml"):
        run(job_for(raster, tmp_path / "run", resume=resume))
    assert path.read_text() == "mine"
    assert files_in(tmp_path / "run") == [path]


def test_other_files_in_the_folder_do_not_matter(raster, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    run(job_for(raster, folder))
    (folder / "candidates" / "elections.parquet").write_text("mine")
    run(job_for(raster, folder, resume=False))
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "candidates" / "elections.parquet").read_text() == "mine"


def spoilt(record, place, value):
    """A record in which one value, given by its place, is another one or missing."""
    *way, last = place
    for step in way:
        record = record[step]
    if value is None:
        del record[last]
    else:
        record[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["scenes", 0, "width"], "x", r"scenes\.0\.width: .*valid integer \(given: 'x'\)"),
        (["scenes", 0, "width"], "330", r"scenes\.0\.width: .*\(given: '330'\)"),
        (["scenes", 0, "height"], -1, r"scenes\.0\.height: .*greater than 0"),
        (["scenes", 0, "crs"], "EPSG:1", r"scenes\.0\.crs: .*not a CRS that PROJ knows"),
        (["scenes", 0, "transform"], [1.0], r"scenes\.0\.transform: .*at least 6"),
        (["scenes", 0, "transform"], [0.0] * 6, r"scenes\.0\.transform: .*no area"),
        (["scenes", 0, "bands"], [1, 2, 0], r"scenes\.0\.bands\.2: .*greater than 0"),
        (["scenes", 0, "stretch"], {"low": 1}, r"scenes\.0\.stretch\.low: "),
        (["scenes", 0, "name"], "../out", r"scenes\.0\.name: .*plain file name"),
        (["scenes", 0, "fingerprint"], None, r"scenes\.0\.fingerprint: Field required\."),
        (["scenes", 0, "colour"], "red", r"scenes\.0\.colour: "),
        (["scenes"], [], r"scenes: .*at least 1"),
        (["tiling"], {}, r"tiling\.tile_size: Field required\."),
        (["segmenter"], None, r"segmenter: Field required\."),
        (["segmenter", "threads"], "x", r"threads is not a number above 0, but 'x'"),
        (["versions"], ["x"], r"versions: "),
    ],
)
def test_a_run_yaml_that_was_edited_is_one_error(raster, tmp_path, place, value, message):
    folder, path = tmp_path / "run", tmp_path / "run" / "run.yaml"
    folder.mkdir()
    scene = open_scenes(job_for(raster, folder))[0]
    record = yaml.safe_load(resolve(job_for(raster, folder), [scene], SEGMENTER.key).to_yaml())
    path.write_text(yaml.safe_dump(record))
    assert read_record(folder).scenes[0].scene() == scene
    spoilt(record, place, value)
    path.write_text(yaml.safe_dump(record))
    with pytest.raises(RunFolderError, match=rf"run\.yaml was not written .*{message}.*Restore"):
        read_record(folder)


def test_two_scenes_of_one_name_in_run_yaml_are_an_error(raster, tmp_path):
    scene = open_scenes(job_for(raster, tmp_path))[0]
    record = yaml.safe_load(resolve(job_for(raster, tmp_path), [scene], SEGMENTER.key).to_yaml())
    record["scenes"] *= 2
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(RunFolderError, match="two scenes have the same name"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["- a", "segmenter: null", "{", "crs: x\nscenes: 1\ntiling: {}"])
def test_a_run_yaml_that_no_run_has_written_is_refused(raster, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(text)
    with pytest.raises(RunFolderError, match=r"run\.yaml"):
        run(job_for(raster, tmp_path / "run"))
    assert (tmp_path / "run" / "run.yaml").read_text() == text


def moved(path, folder):
    folder.mkdir()
    return path.rename(folder / path.name)


def test_candidates_outlive_a_moved_raster_another_order_and_new_rasters(tmp_path, monkeypatch):
    labels = objects((96, 96), 3)
    one, two, three = (
        write_labels(tmp_path / f"{i}.tif", labels, TRANSFORM @ TRANSFORM.translation(200 * i, 0))
        for i in range(3)
    )
    folder = tmp_path / "run"
    calls = counted_calls(monkeypatch)

    def again(*paths):
        return run(job_for([str(path) for path in paths], folder))

    first = again(one, two)
    assert len(calls) == 2
    assert same_objects(again(two, one).layer, first.layer)
    one = moved(one, tmp_path / "elsewhere")
    assert equal_layers(again(one, two).layer, first.layer)
    assert len(calls) == 2
    assert set(again(three, one, two).layer["source"]) == {"0", "1", "2"}
    assert len(calls) == 3
    assert set(again(two).layer["source"]) == {"1"}
    recorded = yaml.safe_load((folder / "run.yaml").read_text())
    assert {s["name"]: s["source"] for s in recorded["scenes"]} == {
        "0": str(one), "1": str(two), "2": str(three)
    }  # fmt: skip
    again(one, two, three)
    assert len(calls) == 3


def test_a_raster_that_has_changed_is_refused_and_told(raster, tmp_path):
    folder = tmp_path / "run"
    run(job_for(raster, folder))
    with pytest.raises(RunFolderError, match=r"(?s)with other settings.*bands.* 1 there, 3 here"):
        run(job_for(raster, folder, bands=[3, 2, 1]))
    write_labels(raster, objects((230, 330), 9))
    with pytest.raises(RunFolderError, match="when the raster had another content"):
        run(job_for(raster, folder))


def test_rasters_of_one_name_are_told_apart(tmp_path):
    labels, paths = np.zeros((96, 96), int), []
    labels[20:40, 20:40] = 1
    for i, name in enumerate(["d1/a.tif", "d2/a.tif", "d1/a-2.tif", "d0/a.tif"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shifted = TRANSFORM @ TRANSFORM.translation(200 * i, 0)
        paths.append(str(write_labels(tmp_path / name, labels, shifted)))
    result = run(job_for(paths[:3], tmp_path / "run"))
    assert [scene.name for scene in result.scenes] == ["a", "a-2", "a-2-2"]
    assert result.layer["id"].is_unique
    assert len(result.layer) == 3
    # each keeps its name when others come
    more = run(job_for(paths[::-1], tmp_path / "run"))
    assert [scene.name for scene in more.scenes] == ["a-3", "a-2-2", "a-2", "a"]
    assert len(more.layer) == 4


def test_an_interrupted_rethreshold_leaves_the_job_of_the_layer(raster, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run(job_for(raster, folder))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.runs.finish.merge_seams", interrupt)
    for folder_of in (folder, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            run(job_for(raster, folder_of, pred_iou_thresh=0.906))
    assert Job.from_yaml(folder / "job.yaml").thresholds.pred_iou_thresh == 0.85
    assert Job.from_yaml(tmp_path / "new" / "job.yaml").pred_iou_thresh == 0.906


def test_an_unwritable_folder_is_refused_before_the_model_is_loaded(raster, tmp_path, monkeypatch):
    monkeypatch.setattr(KnownObjects, "load", None)  # a call would fail
    (tmp_path / "file").write_text("in the way")
    for folder in ("file/run", "file", "x" * 300):
        with pytest.raises(RunFolderError, match="cannot be written"):
            run(job_for(raster, tmp_path / folder))


def test_a_model_that_cannot_be_loaded_leaves_no_folder(raster, tmp_path, monkeypatch):
    def load(_):
        raise CheckpointError("no weights")

    monkeypatch.setattr(KnownObjects, "load", load)
    (tmp_path / "there").mkdir()
    for folder in ("there/deep/run", "there"):
        with pytest.raises(CheckpointError):
            run(job_for(raster, tmp_path / folder))
    assert files_in(tmp_path / "there") == []
    assert not (tmp_path / "there" / "deep").exists()


def test_what_killed_runs_have_left_is_removed(raster, tmp_path):
    folder = tmp_path / "run"
    run(job_for(raster, folder))
    gone = subprocess.Popen(["true"])
    gone.wait()
    with atomic_path(folder / "report.html") as path:
        path.touch()
        host = path.name.split("-")[1]
    there = f"{int(host, 16) ^ 1:08x}"  # another machine, where 1 may be anybody
    for name in (
        f".tmp-{host}-{gone.pid}-prelabels.gpkg",
        f"candidates/.tmp-{host}-{gone.pid}-a.parquet",
        f"candidates/.tmp-{there}-1-a.parquet",
    ):
        (folder / name).touch()
    living = folder / f".tmp-{host}-1-report.html"
    living.touch()
    (folder / ".tmp-notes").touch()
    run(job_for(raster, folder))
    assert {path.name for path in folder.rglob(".tmp-*")} == {living.name, ".tmp-notes"}
