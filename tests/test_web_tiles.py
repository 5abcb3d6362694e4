"""Web tiles as a source: in their place, only those that are needed, each once."""

import math
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import wms_server
from affine import Affine
from known_objects import objects, paint, write_labels
from known_runs import job_for
from PIL import Image
from range_server import serve
from rasterio.windows import Window

from workbench import Job, run
from workbench.errors import SceneError
from workbench.raster import sources
from workbench.raster.attribution import attribution_of
from workbench.raster.open import open_scene
from workbench.runs.plan import open_scenes
from workbench.runs.result import read_run

ZOOM, LEFT, TOP = 19, 280_008, 180_008  # of the first tile; a multiple of 8
SIZE = 2 * 20037508.342789244 / 2**ZOOM
ORIGIN = LEFT * SIZE - 20037508.342789244, 20037508.342789244 - TOP * SIZE
PIXEL = SIZE / 256


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    """A server of 3 × 2 tiles of known objects; the tiles around are missing."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("SAM_WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "RETRY_SECONDS", ())
    image = paint(objects((512, 768), 4, largest=0.5))
    for row in range(2):
        for column in range(3):
            path = tmp_path / f"served/{ZOOM}/{LEFT + column}/{TOP + row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            part = image[256 * row : 256 * row + 256, 256 * column : 256 * column + 256]
            Image.fromarray(part).save(path)
    with serve(tmp_path / "served", tmp_path / "requests.log") as server:
        yield server


def area(tmp_path, columns=3):
    x, y = ORIGIN
    box = shapely.box(x + 5, y - 2 * SIZE + 5, x + columns * SIZE - 5, y - 5)
    gpd.GeoSeries([box], crs=3857).to_file(tmp_path / "aoi.gpkg")
    return str(tmp_path / "aoi.gpkg")


def description_of(made):
    """What the metadata of a layer say of it."""
    with closing(sqlite3.connect(made.folder / "prelabels.gpkg")) as gpkg:
        (text,) = gpkg.execute(
            "SELECT description FROM gpkg_contents WHERE table_name = 'prelabels'"
        ).fetchone()
    return text


@pytest.mark.usefixtures("known_objects_only")
def test_tiles_give_the_objects_of_the_raster_that_they_are_cut_from(tiles, tmp_path):
    transform = Affine(PIXEL, 0, ORIGIN[0], 0, -PIXEL, ORIGIN[1])
    raster = write_labels(tmp_path / "a.tif", objects((512, 768), 4, largest=0.5), transform)
    with rasterio.open(raster, "r+") as file:
        file.crs = "EPSG:3857"
    whole = run(job_for(raster, tmp_path / "whole", aoi=area(tmp_path)))
    source = f"{tiles.url}/{{z}}/{{x}}/{{y}}.png|zoom={ZOOM}|attribution=© somebody"
    made = run(job_for(source, tmp_path / "run", aoi=area(tmp_path)))
    pairs = zip(
        *(sorted(run.layer.geometry, key=lambda g: g.bounds) for run in (made, whole)), strict=True
    )
    assert all(a.symmetric_difference(b).area < 1e-4 * a.area for a, b in pairs)
    assert len(made.layer) > 5
    assert made.layer["source"].unique().tolist() == ["127.0.0.1"]
    # only tiles of the area and around it, each once
    asked = [path for path, _ in tiles.requests if path.startswith(f"/{ZOOM}/")]
    there = {path for path in asked if (tmp_path / "served" / path[1:]).exists()}
    assert len(there) == 6
    assert all(asked.count(path) == 1 for path in there)
    assert max(int(path.split("/")[2]) for path in asked) < LEFT + 8
    # the attribution is kept with the layer, and a reloaded run opens the same
    assert description_of(made) == "Imagery: © somebody"
    assert read_run(made.folder).scenes[0].problem() is None
    assert (made.folder / "review.qgz").exists()
    assert "Not made" not in (made.folder / "report.html").read_text()


def test_the_zoom_follows_the_resolution(tiles, tmp_path):
    url, aoi = f"{tiles.url}/{{z}}/{{x}}/{{y}}.png", area(tmp_path)
    lat = math.radians(gpd.read_file(aoi).to_crs(4326).total_bounds[1])
    ground = PIXEL * math.cos(lat)
    (scene,) = open_scenes(Job.create(source=url, aoi=aoi, resolution_m=ground * 1.01))
    assert f"|zoom={ZOOM}|" in scene.source
    assert scene.pixel_m == pytest.approx(ground * 1.01, rel=0.01)
    rgb, valid = open_scene(scene.source).read(scene.window)
    assert valid.mean() == pytest.approx(6 / 64, abs=0.01)  # the missing tiles are invalid
    assert rgb.any()
    with pytest.raises(SceneError, match=r"at which zoom\? .*\|zoom=19"):
        open_scenes(Job.create(source=url, aoi=aoi))
    with pytest.raises(SceneError, match="set aoi to the part"):
        open_scenes(Job.create(source=f"{url}|zoom=19"))
    for service in ("WMTS:https://h/w.xml,layer=a", "WMS:https://h/?LAYERS=a"):
        with pytest.raises(SceneError, match="set aoi to the part"):
            open_scenes(Job.create(source=service))
    with pytest.raises(SceneError, match="not an address of web tiles"):
        open_scenes(Job.create(source=url.replace("{y}", "{-y}"), aoi=aoi, resolution_m=1))


def capabilities(url):
    """What a WMTS says of the same tiles, at all zooms of the world."""
    matrices = "".join(
        f"<TileMatrix><ows:Identifier>{z}</ows:Identifier>"
        f"<ScaleDenominator>{559082264.0287178 / 2**z}</ScaleDenominator>"
        "<TopLeftCorner>-20037508.342789244 20037508.342789244</TopLeftCorner>"
        "<TileWidth>256</TileWidth><TileHeight>256</TileHeight>"
        f"<MatrixWidth>{2**z}</MatrixWidth><MatrixHeight>{2**z}</MatrixHeight></TileMatrix>"
        for z in range(ZOOM + 1)
    )
    return f"""<?xml version="1.0"?><Capabilities xmlns="http://www.opengis.net/wmts/1.0"
    xmlns:ows="http://www.opengis.net/ows/1.1" version="1.0.0">
    <ows:ServiceIdentification><ows:AccessConstraints>NONE</ows:AccessConstraints>
    </ows:ServiceIdentification><ows:ServiceProvider><ows:ProviderName>Land survey
    </ows:ProviderName></ows:ServiceProvider><Contents>
    <Layer><ows:Title>Ortho</ows:Title><ows:Identifier>ortho 2025</ows:Identifier>
    <Style isDefault="true"><ows:Identifier>default</ows:Identifier></Style>
    <Format>image/png</Format>
    <TileMatrixSetLink><TileMatrixSet>web</TileMatrixSet></TileMatrixSetLink>
    <ResourceURL format="image/png" resourceType="tile"
    template="{url}/{{TileMatrix}}/{{TileCol}}/{{TileRow}}.png"/></Layer>
    <TileMatrixSet><ows:Identifier>web</ows:Identifier>
    <ows:SupportedCRS>urn:ogc:def:crs:EPSG::3857</ows:SupportedCRS>{matrices}</TileMatrixSet>
    </Contents></Capabilities>"""


@pytest.mark.usefixtures("known_objects_only")
def test_a_wmts_gives_the_objects_of_its_tiles(tiles, tmp_path):
    (tmp_path / "served" / "wmts.xml").write_text(capabilities(tiles.url))
    aoi = area(tmp_path)
    source = f"WMTS:{tiles.url}/wmts.xml,layer=ortho 2025"
    begun = time.process_time()
    made = run(job_for(source, tmp_path / "wmts", aoi=aoi))
    assert time.process_time() - begun < 30  # of the world, only the area is looked at
    tms = f"{tiles.url}/{{z}}/{{x}}/{{y}}.png|zoom={ZOOM}"
    whole = run(job_for(tms, tmp_path / "tms", aoi=aoi))
    one, other = (
        sorted(each.layer.geometry, key=lambda g: g.centroid.coords[0]) for each in (made, whole)
    )
    assert len(one) == len(other) > 5
    assert all(
        a.symmetric_difference(b).area < 0.05 * b.area for a, b in zip(one, other, strict=True)
    )
    assert made.layer["source"].unique().tolist() == ["ortho_2025"]
    assert description_of(made) == "Imagery: Land survey"  # as the capabilities say
    asked = [path for path, _ in tiles.requests if path.startswith(f"/{ZOOM}/")]
    assert {int(path.split("/")[2]) for path in asked} <= set(range(LEFT - 2, LEFT + 8))
    assert "Not made" not in (made.folder / "report.html").read_text()


@pytest.mark.usefixtures("known_objects_only")
def test_the_attribution_of_a_wmts_can_be_given_by_hand_or_missing(tiles, tmp_path):
    path = tmp_path / "served" / "wmts.xml"
    path.write_text(capabilities(tiles.url))
    source = f"WMTS:{tiles.url}/wmts.xml,layer=ortho 2025"
    job = job_for(f"{source}|attribution=© me", tmp_path / "run", aoi=area(tmp_path))
    made = run(job)
    assert made.layer["source"].unique().tolist() == ["ortho_2025"]
    assert description_of(made) == "Imagery: © me"
    path.write_text("gone")
    with pytest.raises(ElementTree.ParseError):
        attribution_of(source)
    assert attribution_of("https://h/a.tif") == ""


def test_a_key_of_a_tile_server_is_in_no_name(tiles, tmp_path, monkeypatch):
    aoi = area(tmp_path)
    url = f"{tiles.url}/{{z}}/{{x}}/{{y}}.png"
    (tmp_path / "requests.signature").write_text("s3cret")
    (scene,) = open_scenes(Job.create(source=f"{url}?apikey=s3cret|zoom={ZOOM}", aoi=aoi))
    assert "s3cret" not in scene.source
    window = Window(0, 0, 64, 64)
    assert scene.read(window)[1].all()
    monkeypatch.setenv(sources.SIGNED_URLS, f"{tiles.url}/?apikey=s3cret")
    again = open_scene(scene.source)
    assert np.array_equal(again.read(window)[0], scene.read(window)[0])


@pytest.mark.usefixtures("known_objects_only")
def test_a_wms_gives_the_objects_of_its_image(tiles, tmp_path):
    Image.fromarray(paint(objects((512, 768), 4, largest=0.5))).save(tmp_path / "all.png")
    place = [str(value) for value in (*ORIGIN, PIXEL)]
    server = subprocess.Popen(
        [sys.executable, wms_server.__file__, tmp_path / "all.png", *place],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/"
        half = 20037508.342789244
        source = (
            f"WMS:{url}?SERVICE=WMS&VERSION=1.1.1&REQUEST=GetMap&LAYERS=town&SRS=EPSG:3857"
            f"&BBOX=-{half},-{half},{half},{half}&FORMAT=image/png&MINRESOLUTION={PIXEL}"
        )
        made = run(job_for(source, tmp_path / "wms", aoi=area(tmp_path)))
        assert description_of(made) == "Imagery: Land survey; CC BY 4.0"  # of the layer above
        assert attribution_of(source.replace("town", "other")) == "Somebody; CC BY 4.0"
        assert attribution_of(source.replace("town", "third")) == "Town hall; CC BY 4.0"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    tms = f"{tiles.url}/{{z}}/{{x}}/{{y}}.png|zoom={ZOOM}"
    whole = run(job_for(tms, tmp_path / "tms", aoi=area(tmp_path)))
    assert made.layer["source"].unique().tolist() == ["town"]
    assert made.scenes[0].transform.a == pytest.approx(PIXEL)
    for shape in whole.layer.geometry:
        assert made.layer.intersection(shape).area.max() > 0.9 * shape.area
    assert len(made.layer) == len(whole.layer)
