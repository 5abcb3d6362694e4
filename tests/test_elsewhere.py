"""What a file names is not asked for over a network, and none of its code is run."""

import gzip
import json
import zipfile

import pytest
from known_objects import objects, write_labels
from range_server import serve

from workbench.errors import AOIError, SceneError
from workbench.raster.aoi import load_aoi
from workbench.raster.open import open_scene

SQUARE = {"type": "Polygon", "coordinates": [[[15, 47], [15, 48], [16, 48], [16, 47], [15, 47]]]}
VRT = """<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>{crs}</SRS>
<GeoTransform>500000, 0.5, 0, 5300000, 0, -0.5</GeoTransform>{band}
<SimpleSource><SourceFilename relativeToVRT="1">plain.tif</SourceFilename>
<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""
BAND = '<VRTRasterBand dataType="Byte" band="1">'
PYTHON = """<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">
<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>
<PixelFunctionCode>
def f(*a, **k): open("{}", "w")
</PixelFunctionCode>"""
TILES = """<GDAL_WMS><Service name="TMS">
<ServerUrl>{}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>
<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>10</UpperLeftY><LowerRightX>10</LowerRightX>
<LowerRightY>0</LowerRightY><SizeX>64</SizeX><SizeY>64</SizeY></DataWindow>
<Projection>EPSG:3857</Projection></GDAL_WMS>"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "crs").write_text("EPSG:32633")
    with serve(tmp_path / "served", tmp_path / "requests.log") as served:
        yield served


@pytest.mark.parametrize("crs", [
    '{"type": "link", "properties": {"href": "URL/crs"}}',
    '{"type": "LINK", "properties": {"href": "URL/crs", "type": "proj4"}}',
    '{"type": "url", "properties": {"url": "URL/crs"}}',
    '{"\\u0074ype": "\\u006cink", "properties": {"href": "URL/crs"}}',
])  # fmt: skip
def test_an_area_does_not_fetch_its_crs(server, tmp_path, crs):
    path = tmp_path / "area.geojson"
    feature = json.dumps([{"type": "Feature", "properties": {}, "geometry": SQUARE}])
    crs = crs.replace("URL", server.url)
    path.write_text(f'{{"type": "FeatureCollection", "crs": {crs}, "features": {feature}}}')
    with pytest.raises(AOIError, match="has its CRS at an address, which is not asked"):
        load_aoi(str(path))
    topology = {
        "type": "Topology", "objects": {"a": {"type": "Polygon", "arcs": [[0]]}},
        "arcs": SQUARE["coordinates"],
    }  # fmt: skip
    path.write_text(f'{json.dumps(topology)[:-1]}, "crs": {crs}}}')
    with pytest.raises(AOIError, match="has its CRS at an address"):
        load_aoi(str(path))
    assert server.requests == []


def test_a_shape_of_an_area_does_not_fetch_its_crs(server, tmp_path):
    path = tmp_path / "area.geojson"
    crs = {"TYPE": "link", "Properties": {"href": f"{server.url}/crs"}}
    feature = {"type": "Feature", "properties": {}, "geometry": SQUARE | {"CRS": crs}}
    for text in (
        json.dumps({"type": "FeatureCollection", "features": [feature]}),
        f"{json.dumps(feature)}\n{json.dumps(feature)}\n",
    ):
        path.write_text(text)
        with pytest.raises(AOIError, match="has its CRS at an address"):
            load_aoi(str(path))
    assert server.requests == []


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A server of areas that are not asked for by path but by address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "hostile").mkdir()
    with serve(tmp_path / "hostile", tmp_path / "hostile.log") as served:
        yield served


def linked(address):
    """A GeoJSON, a TopoJSON and lines of JSON whose CRS is at an address, by file name."""
    crs = {"type": "link", "properties": {"href": f"{address}/crs"}}
    feature = {"type": "Feature", "properties": {}, "geometry": SQUARE}
    topology = {
        "type": "Topology", "objects": {"a": {"type": "Polygon", "arcs": [[0]]}},
        "arcs": SQUARE["coordinates"], "crs": crs,
    }  # fmt: skip
    line = json.dumps(feature | {"geometry": SQUARE | {"crs": crs}})
    return {
        "a.geojson": json.dumps(
            {"type": "FeatureCollection", "crs": crs, "features": [feature] * 500}
        ),
        "b.json": json.dumps(topology),
        "c.geojsonl": f"{line}\n{line}\n",
        "d.gpkg": f"{line}\n",  # GDAL goes by the content
    }


def test_an_area_at_an_address_does_not_fetch_its_crs_elsewhere(server, hostile, tmp_path):
    for name, text in linked(server.url).items():
        (tmp_path / "hostile" / name).write_text(text)
        for address in (f"{hostile.url}/{name}", f"/vsicurl/{hostile.url}/{name}?sig=s3cret"):
            with pytest.raises(AOIError, match="has its CRS at an address, which is not") as error:
                load_aoi(address)
            assert "s3cret" not in str(error.value)
    assert server.requests == []


def test_an_area_in_an_archive_does_not_fetch_its_crs(server, hostile, tmp_path):
    folder = tmp_path / "hostile"
    text = linked(server.url)["a.geojson"]
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.geojson", text)
    (folder / "a.geojson.gz").write_bytes(gzip.compress(text.encode()))
    for name in (
        folder / "a.zip", f"/vsizip/{folder}/a.zip/a.geojson", f"/vsigzip/{folder}/a.geojson.gz",
        f"/vsizip//vsicurl/{hostile.url}/a.zip/a.geojson", f"zip://{folder}/a.zip",
        f"GeoJSON:/vsizip/{folder}/a.zip/a.geojson",
    ):  # fmt: skip
        with pytest.raises(AOIError, match="has its CRS at an address, which is not asked"):
            load_aoi(str(name))
    assert server.requests == []


def test_a_text_at_an_address_is_fetched_once(hostile, tmp_path):
    feature = {"type": "Feature", "properties": {}, "geometry": SQUARE}
    text = json.dumps({"type": "FeatureCollection", "features": [feature] * 2000})
    (tmp_path / "hostile" / "a.geojson").write_text(text)
    assert load_aoi(f"{hostile.url}/a.geojson|layername=a").union_all().area == 1
    assert sum(n for _, n in hostile.requests) < 1.1 * len(text)


def test_lines_of_json_with_a_type_of_link_are_read(tmp_path):
    path = tmp_path / "area.geojsonl"
    feature = {"type": "Feature", "properties": {"type": "link"}, "geometry": SQUARE}
    path.write_text(f"{json.dumps(feature)}\n{json.dumps(feature)}\n")
    assert load_aoi(str(path)).union_all().area == 1


def test_an_attribute_that_is_an_address_is_no_reference(server, tmp_path):
    path = tmp_path / "area.geojson"
    feature = {"type": "Feature", "properties": {"type": "link", "url": server.url}}
    crs = {"type": "name", "properties": {"name": "EPSG:4326"}}
    path.write_text(json.dumps({
        "type": "FeatureCollection", "crs": crs, "features": [feature | {"geometry": SQUARE}],
        "links": [{"rel": "next", "href": server.url}], "next": server.url,
    }))  # fmt: skip
    assert load_aoi(str(path)).union_all().area == 1
    assert server.requests == []


def test_a_description_of_features_elsewhere_is_no_area(server, hostile, tmp_path):
    (tmp_path / "served" / "a.geojson").write_text(json.dumps(SQUARE))
    remote = f"/vsicurl/{server.url}/a.geojson"
    for name, text in {
        "a.gml": f"<OGRWFSDataSource><URL>{server.url}/wfs?</URL></OGRWFSDataSource>",
        "b.geojson": f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{remote}'
        "</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>",
        "c.json": json.dumps({
            "type": "gdal_streamed_alg",
            "command_line": f"gdal vector pipeline ! read {remote} ! reproject --dst-crs EPSG:3857",
        }),
    }.items():  # fmt: skip
        path = tmp_path / "hostile" / name
        path.write_text(text)
        for place in (str(path), f"{hostile.url}/{name}"):
            with pytest.raises(AOIError, match="describes features elsewhere and holds none"):
                load_aoi(place)
    assert server.requests == []


def test_a_virtual_layer_of_your_own_is_an_area(tmp_path):
    (tmp_path / "a.geojson").write_text(json.dumps(SQUARE))
    (tmp_path / "a.vrt").write_text(
        '<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource relativeToVRT="1">a.geojson'
        "</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
    )
    assert load_aoi(str(tmp_path / "a.vrt")).union_all().area == 1


def test_a_raster_is_no_description_of_others(server, tmp_path):
    write_labels(tmp_path / "plain.tif", objects((64, 64), 1))
    catalogue = json.dumps({"type": "FeatureCollection", "features": [{"stac_version": "1.0.0"}]})
    remote = VRT.format(crs="EPSG:32633", band=BAND).replace(
        '"1">plain', f'"0">/vsicurl/{server.url}/plain'
    )
    for number, text in enumerate((TILES.format(server.url), remote, catalogue)):
        path = tmp_path / f"{number}.tif"
        path.write_text(text)
        with pytest.raises(SceneError, match=r"is a text that describes rasters elsewhere"):
            open_scene(path)
    assert server.requests == []


def test_a_raster_at_an_address_is_no_description_of_others(server, hostile, tmp_path):
    write_labels(tmp_path / "served" / "plain.tif", objects((64, 64), 1))
    remote = VRT.format(crs="EPSG:32633", band=BAND).replace(
        '"1">plain', f'"0">/vsicurl/{server.url}/plain'
    )
    for number, text in enumerate((TILES.format(server.url), remote)):
        (tmp_path / "hostile" / f"{number}.tif").write_text(text)
        with zipfile.ZipFile(tmp_path / "hostile" / f"{number}.zip", "w") as archive:
            archive.writestr("a.tif", text)
        for place in (
            f"{hostile.url}/{number}.tif?id=7",
            f"/vsizip/{tmp_path}/hostile/{number}.zip/a.tif",
        ):
            with pytest.raises(SceneError, match=r"is a text that describes rasters elsewhere"):
                open_scene(place)
    assert server.requests == []


def test_a_virtual_raster_runs_no_python_and_does_not_fetch_its_crs(server, tmp_path):
    write_labels(tmp_path / "plain.tif", objects((64, 64), 1))
    path, sprung = tmp_path / "a.vrt", tmp_path / "sprung"
    path.write_text(VRT.format(crs="EPSG:32633", band=PYTHON.format(sprung)))
    scene = open_scene(path)
    with pytest.raises(SceneError, match="Python code needs to be executed"):
        scene.read(scene.window)
    assert not sprung.exists()
    path.write_text(VRT.format(crs=f"{server.url}/crs", band=BAND))
    with pytest.raises(SceneError, match="has no CRS"):
        open_scene(path)
    assert server.requests == []
