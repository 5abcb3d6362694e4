"""The run as a whole, with a Segmenter that knows its objects: contracts C2, C3, C5, C6, C7."""

import json
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from known_objects import TRANSFORM, KnownObjects, objects, same_objects, write_labels
from known_runs import counted_calls, equal_layers, files_in, job_for

from workbench import Job, run
from workbench.candidates.select import select
from workbench.candidates.store import CandidateStore
from workbench.candidates.table import Rules
from workbench.errors import (
    AOIError,
    CheckpointError,
    RunFailedError,
    RunFolderError,
    SceneError,
    WorkbenchError,
)
from workbench.layer.files import read_layer
from workbench.layer.schema import COLUMNS
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import clean
from workbench.raster.tiles import tile_windows
from workbench.runs import choose
from workbench.runs.plan import prepare, tiles_over

FILES = [
    ".lock", "job.yaml", "prelabels.geojson", "prelabels.gpkg", "prelabels.parquet",
    "prelabels.qml", "report.html", "review.qgz", "run.yaml", "tiles.parquet",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("known_objects_only")


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
    plan = prepare(job)
    (part,) = plan.scenes
    segmenter = choose.segmenter_for(job, {})
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
    assert n >= 2


def test_c5_rethresholding_equals_a_fresh_run_and_needs_no_network(raster, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    before = len(run(job_for(raster, folder)).layer)
    stricter = {"pred_iou_thresh": 0.906}
    fresh = run(job_for(raster, tmp_path / "fresh", **stricter))
    monkeypatch.setattr(KnownObjects, "propose", None)  # a call would fail
    again = run(job_for(raster, folder, **stricter))
    assert equal_layers(again.layer, fresh.layer)
    assert 0 < len(again.layer) < before
    assert yaml.safe_load((folder / "job.yaml").read_text())["pred_iou_thresh"] == 0.906


def test_c3_the_order_of_tiles_does_not_matter(raster, tmp_path, monkeypatch):
    straight = run(job_for(raster, tmp_path / "straight"))
    original = tiles_over
    monkeypatch.setattr("workbench.runs.plan.tiles_over", lambda *a: original(*a)[::-1])
    monkeypatch.setattr("workbench.runs.segment.FLUSH_TILES", 3)
    backward = run(job_for(raster, tmp_path / "backward"))
    assert equal_layers(straight.layer, backward.layer)


KILLED = """
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from workbench import Job, run
    from workbench.candidates.table import Rules
    from workbench.runs import choose, segment
    from workbench.runs.folder import store_in
    from known_objects import KnownObjects

    class Mortal(KnownObjects):
        calls = 0

        def propose(self, image, watch=None):
            Mortal.calls += 1
            if Mortal.calls == {survives}:
                while len(store.ledger()) < {stored}:  # it is computed while others are stored
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().propose(image)

    segment.FLUSH_TILES = 2
    choose.segmenter_for = lambda job, before: Mortal(Rules(96, 96))
    job = Job.from_yaml({job!r})
    store = store_in(Path(job.out_dir))
    run(job)
"""


def test_c3_a_killed_run_goes_on_where_it_was(raster, tmp_path):
    undisturbed = run(job_for(raster, tmp_path / "undisturbed"))
    folder = tmp_path / "killed"
    job = job_for(raster, folder)
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml(), encoding="utf-8")
    for stored in (4, 8):
        script = textwrap.dedent(KILLED).format(
            tests=str(Path(__file__).parent), survives=6, stored=stored, job=str(path)
        )
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

    def fifth_fails(segmenter, image, watch):
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
        file.write_mask(np.where(np.arange(330) < 170, 255, 0)[None].repeat(230, 0).astype("u1"))
    result = run(job_for(path, tmp_path / "run"))
    status = result.tiles.set_index("tile")["status"]
    assert status["scene/r0c4"] == "nodata"
    assert status["scene/r0c0"] in ("ok", "empty")
    left = 500_000 + 170 * 0.5
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
    by_folder = run(job_for(tmp_path / "tiles", tmp_path / "folder"))
    names = [str(tmp_path / "tiles" / name) for name in ("right.tif", "left.tif")]
    by_list = run(job_for(names, tmp_path / "list"))
    assert equal_layers(by_folder.layer, both.layer)
    assert equal_layers(by_list.layer, both.layer)


def test_missing_rasters_and_empty_globs_are_refused(tmp_path):
    for source in ("missing.tif", "none/*.tif"):
        with pytest.raises(SceneError, match=source.split("/")[0]):
            run(job_for(tmp_path / source, tmp_path / "run"))
    assert files_in(tmp_path / "run") == []


def test_damaged_candidates_are_computed_again(raster, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.runs.segment.FLUSH_TILES", 4)
    before = run(job_for(raster, tmp_path / "run")).layer
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
    assert equal_layers(again.layer, before)
    run(job_for(raster, tmp_path / "run"))
    assert len(calls) == 8


def test_an_interrupt_keeps_the_finished_tiles(raster, tmp_path, monkeypatch):
    propose, calls = KnownObjects.propose, []

    def interrupted(segmenter, image, watch):
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


def test_raster_names_as_long_as_a_file_system_allows(tmp_path):
    labels = objects((96, 96), 3)
    raster = write_labels(tmp_path / ("x" * 240 + ".tif"), labels)
    assert len(run(job_for(raster, tmp_path / "run")).layer)


def test_empty_tiles_are_stored_under_the_rules_of_the_job(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", np.zeros((100, 100), int))
    with rasterio.open(raster, "r+") as file:
        file.write_mask(np.zeros((100, 100), "u1"))
    rules = {"box_nms_thresh": 0.3, "crop_nms_thresh": 0.4, "crop_n_layers": 1}
    run(job_for(raster, tmp_path / "run", **rules))
    store = CandidateStore(tmp_path / "run" / "candidates")
    for candidates, _ in store.read(store.ledger()):
        assert candidates.rules == Rules(100, 100, **rules)  # one tile of its own size


def test_all_user_errors_are_one_kind():
    for error in (AOIError, CheckpointError, RunFailedError, RunFolderError, SceneError):
        assert issubclass(error, WorkbenchError)


def test_windows_of_a_scene_match_its_tiles(raster, tmp_path):
    plan = prepare(job_for(raster, tmp_path / "run"))
    (part,) = plan.scenes
    windows = tile_windows(part.scene, list(part.tiles))
    assert windows.union_all().equals(part.scene.window_polygon(part.scene.window))
    assert plan.folder.is_absolute()


def test_rasters_too_far_apart_for_one_crs_are_refused(tmp_path):
    near = write_labels(tmp_path / "a.tif", np.ones((20, 20), int))
    far = tmp_path / "b.tif"
    with rasterio.open(near) as source:
        profile, values = source.profile | {"crs": "EPSG:32645"}, source.read()
    with rasterio.open(far, "w", **profile) as target:
        target.write(values)
    with pytest.raises(SceneError, match=r"b\.tif lies too far from .*a\.tif for one working CRS"):
        run(job_for([str(near), str(far)], tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_c6_a_run_of_which_every_tile_fails_still_writes_every_file(raster, tmp_path, monkeypatch):
    def fails(segmenter, image, watch):
        raise OSError("no such luck")

    monkeypatch.setattr(KnownObjects, "propose", fails)
    with pytest.raises(RunFailedError, match="15 of 15 tiles failed"):
        run(job_for(raster, tmp_path / "run"))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted([*FILES, "candidates"])
    assert len(read_layer(tmp_path / "run" / "prelabels.gpkg")) == 0
