"""The run as a whole, with a Segmenter that knows its objects: contracts C2, C3, C5, C6, C7."""

import json
import signal
import sqlite3
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from known_objects import TRANSFORM, KnownObjects, write_labels
from test_seams import objects, same_objects

from workbench import Job, run
from workbench import pipeline as running
from workbench.candidates import CandidateStore, Rules, select
from workbench.errors import (
    AOIError,
    CheckpointError,
    RunFailedError,
    RunFolderError,
    SceneError,
    WorkbenchError,
)
from workbench.layer import COLUMNS, read_layer
from workbench.polygons import clean, to_polygons
from workbench.tiles import tile_windows

FILES = [
    "job.yaml", "prelabels.geojson", "prelabels.gpkg", "prelabels.parquet", "prelabels.qml",
    "report.html", "review.qgz", "run.yaml", "tiles.parquet",
]  # fmt: skip
EXACT = {"tile_size": 96, "overlap": 0.25, "min_area_px": 0, "simplify_m": None}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Jobs in this file use known objects, whatever `model` says."""

    def segmenter(job, before):
        rules = Rules(job.tile_size, job.tile_size, job.pred_iou_floor, job.stability_floor)
        return KnownObjects(rules)

    monkeypatch.setattr(running, "_segmenter", segmenter)


@pytest.fixture
def raster(tmp_path):
    return write_labels(tmp_path / "scene.tif", objects((230, 330), 1))


def job_for(raster, folder, **parameters):
    source = raster if isinstance(raster, list) else str(raster)
    return Job.create(source=source, out_dir=str(folder), **{**EXACT, **parameters})


def equal_layers(one, other):
    return one.drop(columns="geometry").equals(other.drop(columns="geometry")) and bool(
        one.geometry.geom_equals_exact(other.geometry, 0).all()
    )


def test_c7_a_tiled_run_equals_one_large_tile(raster, tmp_path):
    tiled = run(job_for(raster, tmp_path / "tiled"))
    whole = run(job_for(raster, tmp_path / "whole", tile_size=330))
    assert len(tiled.tiles) > 10
    assert same_objects(tiled.layer, whole.layer)


def test_the_run_folder_is_complete_and_consistent(raster, tmp_path):
    folder = tmp_path / "run"
    result = run(job_for(raster, folder, classes={1: "roof"}, default_class=1))
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "candidates"])
    assert list(result.layer.columns) == [*COLUMNS, "geometry"]
    assert result.layer["id"].is_unique
    assert set(result.layer["class_id"]) == {1}
    for name in ("prelabels.gpkg", "prelabels.parquet"):
        assert equal_layers(read_layer(folder / name), result.layer)
    on_earth = gpd.read_file(folder / "prelabels.geojson")
    assert on_earth.crs == "EPSG:4326"
    assert len(on_earth) == len(result.layer)
    ledger = pd.read_parquet(folder / "tiles.parquet")
    assert set(ledger["status"]) <= {"ok", "empty"}
    assert ledger["n_polygons"].sum() == len(result.layer)
    assert zipfile.ZipFile(folder / "review.qgz").testzip() is None
    assert Job.from_yaml(folder / "job.yaml").parameters() == result.job.parameters()
    assert yaml.safe_load((folder / "run.yaml").read_text())["scenes"][0]["name"] == "scene"


def test_c2_what_you_tune_is_what_you_get(raster, tmp_path):
    job = job_for(raster, tmp_path / "run", simplify_m=0.5, fill_holes_m2=20)
    result = run(job)
    plan = running.prepare(job)
    (part,) = plan.scenes
    segmenter = running._segmenter(job, {})
    layer = result.layer.set_index("id")
    n = 0
    for tile in part.tiles:
        image, _ = part.scene.read(tile.window)
        candidates = segmenter.propose(image).at_tile(tile.row, tile.col)
        chosen = select(candidates, job.thresholds)
        preview = clean(to_polygons(chosen, part.scene, part.grid, {}), job.cleaning)
        for row in preview[~preview["seam"]].itertuples():
            assert (
                layer.loc[f"scene/r{tile.row}c{tile.col}/{row.ordinal}", "geometry"] == row.geometry
            )
            n += 1
    assert n >= 3


def test_c5_rethresholding_equals_a_fresh_run_and_needs_no_network(raster, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    before = run(job_for(raster, folder))
    stricter = {"pred_iou_thresh": 0.906}
    fresh = run(job_for(raster, tmp_path / "fresh", **stricter))
    monkeypatch.setattr(KnownObjects, "propose", None)  # a call would fail
    again = run(job_for(raster, folder, **stricter))
    assert equal_layers(again.layer, fresh.layer)
    assert 0 < len(again.layer) < len(before.layer)
    assert yaml.safe_load((folder / "job.yaml").read_text())["pred_iou_thresh"] == 0.906


def test_c3_the_order_of_tiles_does_not_matter(raster, tmp_path, monkeypatch):
    straight = run(job_for(raster, tmp_path / "straight"))
    original = running.tiles_over
    monkeypatch.setattr(running, "tiles_over", lambda *a: original(*a)[::-1])
    monkeypatch.setattr(running, "FLUSH_TILES", 3)
    backward = run(job_for(raster, tmp_path / "backward"))
    assert equal_layers(straight.layer, backward.layer)


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from workbench import pipeline as running
    from workbench import Job
    from workbench.candidates import Rules
    from known_objects import KnownObjects

    class Mortal(KnownObjects):
        calls = 0

        def propose(self, image):
            Mortal.calls += 1
            if Mortal.calls == {survives}:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().propose(image)

    running.FLUSH_TILES = 2
    running._segmenter = lambda job, before: Mortal(Rules(96, 96))
    running.run(Job.from_yaml({job!r}))
"""


def test_c3_a_killed_run_goes_on_where_it_was(raster, tmp_path):
    undisturbed = run(job_for(raster, tmp_path / "undisturbed"))
    folder = tmp_path / "killed"
    job = job_for(raster, folder)
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml(), encoding="utf-8")
    script = textwrap.dedent(KILLED).format(
        tests=str(Path(__file__).parent), survives=6, job=str(path)
    )
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert not (folder / "prelabels.gpkg").exists()
    stored = CandidateStore(folder / "candidates").ledger()
    assert len(stored) == 8  # twice two pairs of tiles
    resumed = run(job)
    assert equal_layers(resumed.layer, undisturbed.layer)
    assert not list(folder.rglob(".tmp-*"))


def test_c6_a_failing_tile_is_in_the_ledger_and_the_run_fails_loudly(raster, tmp_path, monkeypatch):
    good = run(job_for(raster, tmp_path / "good"))
    propose = KnownObjects.propose
    calls = []

    def fifth_fails(segmenter, image):
        calls.append(image)
        if len(calls) == 5:
            raise OSError("no such luck")
        return propose(segmenter, image)

    monkeypatch.setattr(KnownObjects, "propose", fifth_fails)
    folder = tmp_path / "run"
    with pytest.raises(RunFailedError, match=r"1 of 15 tiles failed.*r0c4.*no such luck"):
        run(job_for(raster, folder))
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "candidates"])
    ledger = pd.read_parquet(folder / "tiles.parquet").set_index("tile")
    assert (ledger["status"] == "failed").sum() == 1
    assert ledger.loc["scene/r0c4", "error"] == "OSError: no such luck"
    assert len(read_layer(folder / "prelabels.gpkg")) > 0
    assert len(calls) == 15
    again = run(job_for(raster, folder))
    assert len(calls) == 16  # the failed tile only
    assert equal_layers(again.layer, good.layer)


def test_tiles_without_valid_pixels_are_skipped_and_say_so(tmp_path):
    labels = objects((230, 330), 2)
    path = write_labels(tmp_path / "scene.tif", labels)
    with rasterio.open(path, "r+") as file:
        file.write_mask(np.where(np.arange(330) < 180, 255, 0)[None].repeat(230, 0).astype("u1"))
    result = run(job_for(path, tmp_path / "run"))
    status = result.tiles.set_index("tile")["status"]
    assert status["scene/r0c3"] == "nodata"
    assert status["scene/r0c0"] in ("ok", "empty")
    left = 500_000 + 180 * 0.5
    assert (result.layer.bounds["maxx"] <= left).all()
    cut = result.layer[result.layer.bounds["maxx"] == left]
    assert cut["at_edge"].all()
    assert len(cut)


def test_zero_polygons_still_make_every_file(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", np.zeros((100, 100), int))
    result = run(job_for(raster, tmp_path / "run"))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted([*FILES, "candidates"])
    assert len(result.layer) == 0
    assert list(read_layer(tmp_path / "run" / "prelabels.gpkg").columns) == [*COLUMNS, "geometry"]
    collection = json.loads((tmp_path / "run" / "prelabels.geojson").read_text())
    assert collection["features"] == []
    assert set(result.tiles["status"]) == {"empty"}


def test_an_aoi_selects_tiles_and_polygons(raster, tmp_path):
    whole = run(job_for(raster, tmp_path / "whole"))
    area = shapely.box(500_000, 5_300_000 - 60, 500_000 + 60, 5_300_000)
    gpd.GeoSeries([area], crs=32633).to_file(tmp_path / "aoi.gpkg")
    part = run(job_for(raster, tmp_path / "part", aoi=str(tmp_path / "aoi.gpkg")))
    assert 0 < len(part.tiles) < len(whole.tiles)
    assert part.layer.representative_point().within(area).all()
    inside = whole.layer[whole.layer.representative_point().within(area)]
    assert set(part.layer["id"]) == set(inside["id"])
    # a wider AOI computes only the new tiles, and no AOI all the rest
    again = run(job_for(raster, tmp_path / "part"))
    assert equal_layers(again.layer, whole.layer)
    wgs = gpd.GeoSeries([area], crs=32633).to_crs(4326).iloc[0]
    geojson = run(job_for(raster, tmp_path / "g", aoi=shapely.geometry.mapping(wgs)))
    assert equal_layers(geojson.layer, part.layer)


def test_many_scenes_become_one_layer(tmp_path):
    labels = objects((230, 330), 4)
    (tmp_path / "tiles").mkdir()
    write_labels(tmp_path / "tiles" / "left.tif", labels[:, :200])
    shifted = TRANSFORM @ TRANSFORM.translation(150, 0)
    write_labels(tmp_path / "tiles" / "right.tif", labels[:, 150:], shifted)
    write_labels(tmp_path / "all.tif", labels)
    both = run(job_for(tmp_path / "tiles" / "*.tif", tmp_path / "both"))
    whole = run(job_for(tmp_path / "all.tif", tmp_path / "whole"))
    assert set(both.layer["source"]) == {"left", "right"}
    assert same_objects(both.layer, whole.layer)


def left_behind(folder):
    return [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []


def test_bad_aois_are_refused_before_anything_is_written(raster, tmp_path):
    far = gpd.GeoSeries([shapely.box(0, 0, 1, 1)], crs=4326)
    far.to_file(tmp_path / "far.gpkg")
    with pytest.warns(UserWarning, match="crs"):
        gpd.GeoSeries([shapely.box(500_000, 5_299_900, 500_100, 5_300_000)]).to_file(
            tmp_path / "nocrs.shp"
        )
    gpd.GeoSeries([shapely.Point(15, 47.8)], crs=4326).to_file(tmp_path / "point.gpkg")
    metres = {"type": "Polygon", "coordinates": [[[5e5, 5.2e6], [5.1e5, 5.2e6], [5e5, 5.3e6]] * 2]}
    (tmp_path / "broken.geojson").write_text("{")
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    gpd.GeoSeries([shapely.box(0, 0, 9, 9)], crs=local).to_file(tmp_path / "local.gpkg")
    not_a_number = {
        "type": "Polygon",
        "coordinates": [[[15, 47], [16, np.inf], [16, 48], [15, 47]]],
    }
    for aoi, message in [
        (str(tmp_path / "far.gpkg"), r"does not intersect scene.tif: AOI bounds .* raster bounds"),
        (str(tmp_path / "nocrs.shp"), "has no CRS"),
        (str(tmp_path / "point.gpkg"), r"no polygons \(Point\)"),
        (str(tmp_path / "missing.gpkg"), "no such file"),
        (str(tmp_path / "broken.geojson"), "cannot be read"),
        (metres, "are not degrees"),
        ({"type": "Nonsense"}, "not a GeoJSON geometry"),
        (str(tmp_path / "local.gpkg"), "local CRS"),
        (not_a_number, "not finite"),
    ]:
        with pytest.raises(AOIError, match=message):
            run(job_for(raster, tmp_path / "run", aoi=aoi))
    assert left_behind(tmp_path / "run") == []


def test_missing_rasters_and_empty_globs_are_refused(tmp_path):
    for source in ("missing.tif", "none/*.tif"):
        with pytest.raises(SceneError, match=source.split("/")[0]):
            run(job_for(tmp_path / source, tmp_path / "run"))
    assert left_behind(tmp_path / "run") == []


def test_another_run_in_the_folder_is_refused_and_kept(raster, tmp_path):
    folder = tmp_path / "run"
    before = run(job_for(raster, folder))
    files = {p: p.read_bytes() for p in left_behind(folder)}
    with pytest.raises(RunFolderError, match=r"(?s)another tiling.*overlap: 0.25 there, 0.1 here"):
        run(job_for(raster, folder, overlap=0.1))
    assert {p: p.read_bytes() for p in left_behind(folder)} == files
    replaced = run(job_for(raster, folder, overlap=0.1, resume=False))
    assert len(replaced.tiles) != len(before.tiles)


def edit(gpkg, *statements):
    with sqlite3.connect(gpkg) as db:
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
    plan = running.prepare(job)
    edit(tmp_path / "run" / "prelabels.gpkg", "DELETE FROM prelabels WHERE fid = 1")
    with pytest.raises(RunFolderError, match="holds 1 reviewed labels"):
        running.finish(plan)


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


@pytest.mark.parametrize("name", [*running.OUTPUTS, "candidates/elections.parquet"])
@pytest.mark.parametrize("resume", [True, False])
def test_files_that_no_run_has_written_are_never_replaced(raster, tmp_path, name, resume):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(RunFolderError, match=f"holds {name.split('/')[0]}, .* no run.yaml"):
        run(job_for(raster, tmp_path / "run", resume=resume))
    assert path.read_text() == "mine"
    assert left_behind(tmp_path / "run") == [path]


def test_other_files_in_the_folder_do_not_matter(raster, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    run(job_for(raster, folder))
    (folder / "candidates" / "elections.parquet").write_text("mine")
    run(job_for(raster, folder, resume=False))
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "candidates" / "elections.parquet").read_text() == "mine"


@pytest.mark.parametrize("text", ["- a", "segmenter: null", "{", "crs: x\nscenes: 1\ntiling: {}"])
def test_a_run_yaml_that_no_run_has_written_is_refused(raster, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(text)
    with pytest.raises(RunFolderError, match=r"run\.yaml"):
        run(job_for(raster, tmp_path / "run"))
    assert (tmp_path / "run" / "run.yaml").read_text() == text


def test_damaged_candidates_are_computed_again(raster, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "FLUSH_TILES", 4)
    before = run(job_for(raster, tmp_path / "run"))
    flipped, cut, *sound = sorted((tmp_path / "run" / "candidates").iterdir())
    assert sound
    content = bytearray(flipped.read_bytes())
    for i in range(8):
        content[content.index(b"\x28\xb5\x2f\xfd") + 8 + i] ^= 0xFF
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-100])
    calls = counted_calls(monkeypatch)
    again = run(job_for(raster, tmp_path / "run"))
    assert len(calls) == 8
    assert equal_layers(again.layer, before.layer)
    run(job_for(raster, tmp_path / "run"))
    assert len(calls) == 8


def counted_calls(monkeypatch):
    calls, propose = [], KnownObjects.propose
    monkeypatch.setattr(KnownObjects, "propose", lambda *args: calls.append(1) or propose(*args))
    return calls


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
    with pytest.raises(RunFolderError, match=r"(?s)otherwise.*bands.* 1 there, 3 here"):
        run(job_for(raster, folder, bands=[3, 2, 1]))
    write_labels(raster, objects((230, 330), 9))
    with pytest.raises(RunFolderError, match="another content of the raster"):
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

    monkeypatch.setattr(running, "gather", interrupt)
    for folder_of in (folder, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            run(job_for(raster, folder_of, pred_iou_thresh=0.906))
    assert Job.from_yaml(folder / "job.yaml").pred_iou_thresh == 0.85
    assert Job.from_yaml(tmp_path / "new" / "job.yaml").pred_iou_thresh == 0.906


def test_an_interrupt_keeps_the_finished_tiles(raster, tmp_path, monkeypatch):
    propose, calls = KnownObjects.propose, []

    def interrupted(segmenter, image):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return propose(segmenter, image)

    monkeypatch.setattr(KnownObjects, "propose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(job_for(raster, tmp_path / "run"))
    assert len(CandidateStore(tmp_path / "run" / "candidates").ledger()) == 3
    run(job_for(raster, tmp_path / "run"))
    assert len(calls) == 4 + 12


def test_an_unwritable_folder_is_refused_before_the_model_is_loaded(raster, tmp_path, monkeypatch):
    monkeypatch.setattr(KnownObjects, "load", None)  # a call would fail
    (tmp_path / "file").write_text("in the way")
    for folder in ("file/run", "file", "x" * 300, "nul\0"):
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
    assert list((tmp_path / "there").iterdir()) == []


def test_what_killed_runs_have_left_is_removed(raster, tmp_path):
    folder = tmp_path / "run"
    run(job_for(raster, folder))
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f".tmp-{gone.pid}-prelabels.gpkg", f"candidates/.tmp-{gone.pid}-a.parquet"):
        (folder / name).touch()
    living = folder / ".tmp-1-report.html"
    living.touch()
    (folder / ".tmp-notes").touch()
    run(job_for(raster, folder))
    assert {path.name for path in folder.rglob(".tmp-*")} == {living.name, ".tmp-notes"}


def test_raster_names_as_long_as_a_file_system_allows(tmp_path):
    labels = objects((96, 96), 3)
    raster = write_labels(tmp_path / ("x" * 240 + ".tif"), labels)
    assert len(run(job_for(raster, tmp_path / "run")).layer)


@pytest.mark.parametrize(
    ("west", "south", "east", "north"),
    [(-180, -90, 180, 90), (-170, -80, 170, 80), (-60, -80, 90, 80), (0, 0, 360, 60)],
)
def test_a_generous_aoi_takes_the_whole_raster(raster, tmp_path, west, south, east, north):
    aoi = shapely.geometry.mapping(shapely.box(west, south, east, north))
    whole = run(job_for(raster, tmp_path / "whole"))
    assert equal_layers(run(job_for(raster, tmp_path / "run", aoi=aoi)).layer, whole.layer)


@pytest.mark.parametrize(
    ("corner", "crs", "aoi"),
    [
        ((833_900, 0), 32660, (178, -1, 182, 1)),  # across the antimeridian, in both ways to say it
        ((833_900, 0), 32660, (-181, -1, -179, 1)),
        ((-500, 500), 3031, (-180, -90, 180, -80)),  # around the pole
    ],
)
def test_an_aoi_around_the_ends_of_the_map(tmp_path, corner, crs, aoi):
    transform = Affine(10, 0, corner[0], 0, -10, corner[1])
    raster = write_labels(tmp_path / "a.tif", objects((100, 100), 3), transform)
    with rasterio.open(raster, "r+") as file:
        file.crs = f"EPSG:{crs}"
    area = shapely.geometry.mapping(shapely.box(*aoi))
    plan = running.prepare(job_for(raster, tmp_path / "run", aoi=area))
    (part,) = plan.scenes
    assert len(part.tiles) == len(part.grid)
    assert plan.aoi.area == pytest.approx(1e6, rel=1e-4)


def test_the_aoi_is_on_the_map(raster, tmp_path):
    area = shapely.box(500_020, 5_299_900, 500_100, 5_299_980)
    gpd.GeoSeries([area], crs=32633).to_file(tmp_path / "aoi.gpkg")
    result = run(job_for(raster, tmp_path / "run", aoi=str(tmp_path / "aoi.gpkg")))
    assert result.aoi.symmetric_difference(area).area < 1e-6
    assert result.picture() != replace(result, aoi=None).picture()


def test_empty_tiles_are_stored_under_the_rules_of_the_job(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", np.zeros((100, 100), int))
    with rasterio.open(raster, "r+") as file:
        file.write_mask(np.zeros((100, 100), "u1"))
    rules = {"box_nms_thresh": 0.3, "crop_nms_thresh": 0.4, "crop_n_layers": 1}
    run(job_for(raster, tmp_path / "run", **rules))
    store = CandidateStore(tmp_path / "run" / "candidates")
    for candidates, _ in store.read(store.ledger()):
        assert candidates.rules == Rules(96, 96, **rules)


def test_all_user_errors_are_one_kind():
    for error in (AOIError, CheckpointError, RunFailedError, RunFolderError, SceneError):
        assert issubclass(error, WorkbenchError)


def test_windows_of_a_scene_match_its_tiles(raster, tmp_path):
    plan = running.prepare(job_for(raster, tmp_path / "run"))
    (part,) = plan.scenes
    windows = tile_windows(part.scene, part.grid, list(part.tiles))
    assert windows.union_all().equals(part.scene.window_polygon(part.scene.window))
    assert plan.folder.is_absolute()
