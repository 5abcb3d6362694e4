"""Sheets of one mosaic give the objects of the mosaic; sheets of different grids are told."""

import json
from itertools import pairwise

import numpy as np
import pytest
from known_objects import TRANSFORM, objects, same_objects, write_labels
from known_runs import counted_calls, equal_layers, job_for
from made_rasters import three_rectangles, write

from workbench import run
from workbench.errors import RunFolderError
from workbench.raster.open import open_scene
from workbench.raster.sheets import with_neighbours
from workbench.runs.record import SceneRecord

pytestmark = pytest.mark.usefixtures("known_objects_only")


def cut(folder, labels, rows, columns, shared=0):
    """Sheets of a raster; neighbours share some pixels."""
    folder.mkdir()
    paths = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            place = TRANSFORM @ TRANSFORM.translation(left, top)
            part = labels[top : bottom + shared, left : right + shared]
            paths.append(write_labels(folder / f"{top}_{left}.tif", part, place))
    return paths


@pytest.mark.parametrize("shared", [0, 1, 7])
@pytest.mark.parametrize("seed", [1, 2, 5])
def test_sheets_that_touch_give_whole_objects(tmp_path, seed, shared):
    labels = objects((230, 330), seed)
    whole = run(job_for(write_labels(tmp_path / "whole.tif", labels), tmp_path / "w"))
    cut(tmp_path / "sheets", labels, (0, 110, 230), (0, 90, 250, 330), shared)
    sheets = run(job_for(tmp_path / "sheets", tmp_path / "s"))
    assert same_objects(sheets.layer, whole.layer)
    assert len(sheets.scenes) == 6
    # resumed, nothing is computed
    again = run(job_for(tmp_path / "sheets", tmp_path / "s"))
    assert equal_layers(again.layer, sheets.layer)


def test_a_resumed_run_computes_nothing_and_more_sheets_are_refused(tmp_path, monkeypatch):
    labels = objects((100, 300), 3)
    paths = cut(tmp_path / "sheets", labels, (0, 100), (0, 100, 200, 300))
    names = list(map(str, paths))
    run(job_for(names[:2], tmp_path / "run"))
    calls = counted_calls(monkeypatch)
    run(job_for(names[:2], tmp_path / "run"))
    assert calls == []
    with pytest.raises(RunFolderError, match="beside other sheets"):
        run(job_for(names, tmp_path / "run"))


def test_a_sheet_sees_a_strip_of_its_neighbours_and_nothing_else(tmp_path):
    labels = objects((100, 200), 3)
    left, right = map(open_scene, cut(tmp_path / "s", labels, (0, 100), (0, 100, 200)))
    wide, _ = with_neighbours([left, right], 24)
    assert (wide.width, wide.height, wide.transform) == (112, 100, left.transform)
    rgb, valid = wide.read(wide.window)
    assert valid.all()
    assert (rgb[:, 100:] == right.read(right.window)[0][:, :12]).all()
    assert (rgb[:, :100] == left.read(left.window)[0]).all()
    assert SceneRecord.model_validate(json.loads(json.dumps(wide.describe()))).scene() == wide
    assert wide.fingerprint != left.fingerprint
    # and at a coarser scale, too
    coarse, coarse_valid = wide.coarser(4).read(wide.coarser(4).window)
    assert coarse.shape == (25, 28, 3)
    assert coarse_valid.all()
    assert coarse[:, 25:].any()
    # enough in common already
    a, b = map(open_scene, cut(tmp_path / "t", labels, (0, 100), (0, 100, 200), shared=30))
    assert with_neighbours([a, b], 24) == [a, b]


def test_what_is_invalid_in_a_sheet_or_in_none_stays_invalid(tmp_path):
    image = three_rectangles()
    image[:, 40:60] = 0
    for kind, options in {"nodata": {"nodata": 0}, "mask": {}, "alpha": {}, "named": {}}.items():
        folder = tmp_path / kind
        folder.mkdir()
        mask = np.where((image == 0).all(axis=0), 0, 255).astype(np.uint8)
        scenes = []
        for columns, rows in (np.s_[:100], np.s_[:90]), (np.s_[100:], np.s_[30:]):
            part, colours, extra = image[:, rows, columns], None, {}
            if kind == "alpha":
                part = np.concatenate([part, mask[None, rows, columns]])
                colours = ("red", "green", "blue", "alpha")
            if kind == "mask":
                extra = {"mask": mask[rows, columns]}
            place = TRANSFORM @ TRANSFORM.translation(columns.start or 0, rows.start or 0)
            path = write(
                folder / f"{len(scenes)}.tif",
                part,
                "EPSG:32633",
                place,
                colours,
                **extra,
                **options,
            )
            scenes.append(open_scene(path, nodata=0 if kind == "named" else None))
        wide, other = with_neighbours(scenes, 40)
        rgb, valid = wide.read(wide.window)
        expected = np.zeros((90, 120), bool)
        expected[:, :100] = mask[:90, :100] > 0
        expected[30:, 100:] = mask[30:90, 100:120] > 0
        assert (valid == expected).all(), (kind, np.argwhere(valid != expected)[[0, -1]], scenes)
        assert (rgb[valid] == image[:, :90, :120].transpose(1, 2, 0)[valid]).all()
        assert other.read(other.window)[1][:60, :20].sum() == (mask[30:90, 80:100] > 0).sum()
        wide.close()
        other.close()


def test_sheets_of_different_grids_are_told(tmp_path, caplog):
    image = three_rectangles()
    a = write(tmp_path / "a.tif", image, "EPSG:32633", TRANSFORM)
    for name, place in {
        "moved": TRANSFORM @ TRANSFORM.translation(240, 0.4),
        "other size": TRANSFORM @ TRANSFORM.translation(240, 0) @ TRANSFORM.scale(1.5),
    }.items():
        b = write(tmp_path / f"{name}.tif", image, "EPSG:32633", place)
        scenes = [open_scene(a), open_scene(b)]
        caplog.clear()
        assert with_neighbours(scenes, 24) == scenes
        assert f"{a} and {b} touch, but are not of one grid" in caplog.text
    caplog.clear()
    apart = write(
        tmp_path / "c.tif", image, "EPSG:32633", TRANSFORM @ TRANSFORM.translation(250, 0)
    )
    corner = write(
        tmp_path / "d.tif", image, "EPSG:32633", TRANSFORM @ TRANSFORM.translation(240, 160)
    )
    for b in (apart, corner):
        scenes = [open_scene(a), open_scene(b)]
        assert with_neighbours(scenes, 24) == scenes
    assert caplog.text == ""
