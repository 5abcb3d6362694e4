import re
from contextlib import closing
from itertools import product

import geopandas as gpd
import numpy as np
import pytest
import rasterio.shutil
import shapely
from known_objects import TRANSFORM
from made_rasters import (
    GEOGRAPHIC,
    GRIDS,
    assert_rectangles_in_place,
    three_rectangles,
    whole,
    write,
)
from range_server import serve
from rasterio.errors import RasterioIOError
from rasterio.vrt import WarpedVRT

from workbench import Job, run
from workbench.errors import SceneError
from workbench.raster import sources
from workbench.raster.open import open_scene
from workbench.raster.sources import find_sources
from workbench.runs.plan import prepare


def test_sources_by_path_list_glob_and_directory(tmp_path):
    for name in ("b.tif", "a.tif", "c.TIF", "deep/d.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, np.zeros((3, 8, 8), np.uint8))
    for name in ("a.tif.msk", "a.tif.ovr", "a.tfw", "notes.txt", "quicklook.png", "all.vrt"):
        (tmp_path / name).touch()
    a, b, c = (str(tmp_path / name) for name in ("a.tif", "b.tif", "c.TIF"))
    assert find_sources(a) == [a]
    assert find_sources(tmp_path / "a.tif") == [a]
    assert find_sources([b, a, b]) == [b, a]
    assert find_sources(str(tmp_path)) == [a, b, c]
    assert find_sources(f"{tmp_path}/a.t*") == [a]
    assert find_sources(f"{tmp_path}/**/*.tif") == [a, b, str(tmp_path / "deep/d.tif")]
    assert find_sources([str(tmp_path / "deep"), a]) == [str(tmp_path / "deep/d.tif"), a]
    assert find_sources(f"{tmp_path}/all.vrt") == [f"{tmp_path}/all.vrt"]


def test_a_directory_shows_pictures_with_a_world_file_and_lone_vrts(tmp_path):
    (tmp_path / "map.jpg").touch()
    (tmp_path / "map.jgw").touch()
    (tmp_path / "photo.jpg").touch()
    assert find_sources(tmp_path) == [str(tmp_path / "map.jpg")]
    (tmp_path / "map.jpg").unlink()
    (tmp_path / "all.vrt").touch()
    assert find_sources(tmp_path) == [str(tmp_path / "all.vrt")]


def test_brackets_in_a_file_name_are_no_pattern(tmp_path):
    path = write(tmp_path / "scene [1] & <2>.tif", three_rectangles(), "EPSG:4326", GEOGRAPHIC)
    assert find_sources(str(path)) == [str(path)]
    assert_rectangles_in_place(open_scene(path), "EPSG:4326", GEOGRAPHIC)


def test_urls_and_gdal_names_stay_as_they_are():
    for name in ("https://example.org/a.tif", "s3://bucket/a*.tif", "/vsizip/a.zip/a.tif"):
        assert find_sources(name) == [name]


@pytest.mark.parametrize("pattern", ["*.tif", "missing.tif", ""])
def test_nothing_found_is_an_error_that_names_it(tmp_path, pattern):
    with pytest.raises(SceneError, match=re.escape(str(tmp_path / pattern))):
        find_sources(str(tmp_path / pattern))


def test_an_empty_list_of_sources_is_an_error():
    with pytest.raises(SceneError, match="empty"):
        find_sources([])


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served", tmp_path / "requests.log") as server:
        yield server


def test_a_raster_at_a_url(served, tmp_path):
    crs, transform = GRIDS["geographic"]
    path = write(tmp_path / "served" / "remote.tif", three_rectangles(), crs, transform)
    scene = open_scene(f"{served.url}/remote.tif")
    assert (scene.source, scene.name) == (f"{served.url}/remote.tif", "remote")
    assert (whole(scene)[0] == whole(open_scene(path))[0]).all()
    scene.close()
    # no listing, no sidecars
    assert {path for path, _ in served.requests} == {"/remote.tif"}
    with pytest.raises(SceneError, match="404"):
        open_scene(f"{served.url}/missing.tif")


def test_a_run_on_a_corner_of_a_remote_cog_fetches_its_blocks(served, tmp_path):
    noise = np.random.default_rng(1).integers(0, 255, (3, 3072, 3072), np.uint8)
    write(tmp_path / "noise.tif", noise, "EPSG:32633", TRANSFORM)
    cog = tmp_path / "served" / "cog.tif"
    rasterio.shutil.copy(tmp_path / "noise.tif", cog, driver="COG", blocksize=256)
    x, y = TRANSFORM @ (1536, 1536)
    aoi = tmp_path / "aoi.gpkg"
    gpd.GeoSeries([shapely.box(x, y - 100, x + 100, y)], crs=32633).to_file(aoi)
    job = Job.create(
        source=f"{served.url}/cog.tif", aoi=str(aoi), out_dir=str(tmp_path / "run"),
        model="classic", tile_size=256,
    )  # fmt: skip
    with closing(prepare(job)) as plan:
        (part,) = plan.scenes
        windows = [tile.window for tile in part.tiles]
    run(job)
    with rasterio.open(cog) as file:
        blocks = {
            block
            for window in windows
            for block in product(
                range(window.row_off // 256, (window.row_off + window.height - 1) // 256 + 1),
                range(window.col_off // 256, (window.col_off + window.width - 1) // 256 + 1),
            )
        }
        needed = sum(file.block_size(1, *block) for block in blocks)
    fetched = sum(n for _, n in served.requests)
    assert cog.stat().st_size > 15 * needed
    # the header and a sample for the fingerprint twice, and blocks again for the report's picture
    assert needed <= fetched <= 2 * needed
    assert {path for path, _ in served.requests} == {"/cog.tif"}


def test_overlapping_scenes_in_different_crss_become_one_layer(tmp_path):
    image = np.full((3, 200, 300), 60, np.uint8)
    boxes = [(20, 20, 80, 60), (100, 60, 190, 140), (220, 150, 290, 180)]
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        image[:, y0:y1, x0:x1] = 150 + 40 * number
    left = write(tmp_path / "left.tif", image[:, :, :200], "EPSG:32633", TRANSFORM)
    shifted = TRANSFORM @ TRANSFORM.translation(90, 0)
    write(tmp_path / "utm.tif", image[:, :, 90:], "EPSG:32633", shifted)
    with rasterio.open(tmp_path / "utm.tif") as utm, WarpedVRT(utm, crs="EPSG:3035") as warped:
        rasterio.shutil.copy(warped, tmp_path / "right.tif", driver="GTiff")
    job = Job.create(
        source=[str(left), str(tmp_path / "right.tif")], out_dir=str(tmp_path / "run"),
        model="classic", tile_size=128, min_area_px=200,
    )  # fmt: skip
    layer = run(job).layer
    assert layer.crs == "EPSG:32633"
    assert set(layer["source"]) == {"left", "right"}
    for x0, y0, x1, y1 in boxes:
        (west, north), (east, south) = TRANSFORM @ (x0, y0), TRANSFORM @ (x1, y1)
        box = shapely.box(west, south, east, north)
        iou = layer.intersection(box).area / layer.union(box).area
        assert (iou > 0.8).sum() == 1


@pytest.mark.parametrize(
    ("code", "tries"), [(408, 4), (429, 4), (503, 4), (400, 1), (403, 1), (404, 1), (410, 1)]
)
def test_only_what_may_pass_is_tried_again(monkeypatch, code, tries):
    calls = []

    def read():
        calls.append(code)
        raise RasterioIOError(f"HTTP response code: {code}")

    monkeypatch.setattr(sources, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(sources, "forget", lambda name: None)
    with pytest.raises(RasterioIOError):
        sources.patiently("https://example.org/a.tif", read)
    assert len(calls) == tries
