"""Areas from any vector file: which layer, which parts, and what is said of the rest."""

import logging
import zipfile

import geopandas as gpd
import pytest
import shapely
from range_server import serve
from shapely import GeometryCollection, LineString, MultiPolygon, Point, box

from workbench import Job
from workbench.errors import AOIError, ExamplesError
from workbench.raster.aoi import load_aoi
from workbench.raster.vectors import read_vectors

AREA = box(0, 0, 100, 150)
OTHER = box(200, 0, 240, 100)


def save(path, shapes, layer=None, **options):
    gpd.GeoDataFrame({"name": ["x"] * len(shapes)}, geometry=shapes, crs=32633).to_file(
        path, **({"layer": layer} if layer else {}), **options
    )
    return path


def test_polygons_in_collections_count_and_the_rest_is_counted(tmp_path, caplog):
    endless = GeometryCollection([GeometryCollection([]), box(0, 0, 1, 1)])
    assert load_aoi(shapely.geometry.mapping(endless)).union_all().area == 1
    nested = GeometryCollection(
        [GeometryCollection([OTHER, Point(1, 1)]), LineString([(0, 0), (1, 1)])]
    )
    mixed = GeometryCollection([AREA, LineString([(0, 0), (9, 9)])])
    lonely = GeometryCollection([MultiPolygon([box(300, 0, 301, 1), box(302, 0, 303, 1)])])
    path = save(tmp_path / "a.gpkg", [mixed, nested, lonely, LineString([(0, 0), (1, 0)]), None])
    with caplog.at_level(logging.WARNING):
        area = load_aoi(str(path))
    assert area.union_all().area == AREA.area + OTHER.area + 2
    assert "3 × LineString" in caplog.text
    assert "1 × Point" in caplog.text
    assert "1 × feature without geometry" in caplog.text
    assert str(path) in caplog.text
    caplog.clear()
    geojson = load_aoi(shapely.geometry.mapping(GeometryCollection([box(0, 0, 1, 1), Point(0, 0)])))
    assert geojson.union_all().area == 1
    assert "1 × Point" in caplog.text
    caplog.clear()
    load_aoi(str(save(tmp_path / "b.gpkg", [AREA])))
    assert caplog.text == ""


def test_a_layer_can_be_named_as_qgis_names_it(tmp_path):
    path = save(tmp_path / "a.gpkg", [OTHER], "parcels")
    save(path, [AREA], "aoi")
    for options, area in {
        "layername=aoi": AREA,
        "layername=parcels": OTHER,
        "layerid=1": AREA,
        "layername=aoi|subset=name = 'x'": AREA,
        "layerid=0|subset=name = 'x'": OTHER,
    }.items():
        assert load_aoi(f"{path}|{options}").union_all().equals(area)
    with pytest.raises(AOIError, match="has no layer roads") as caught:
        load_aoi(f"{path}|layername=roads")
    assert f"  {path}|layername=aoi" in str(caught.value)
    # and a job keeps it, absolute
    assert Job.create(aoi=f"{path}|layername=aoi").parameters()["aoi"] == f"{path}|layername=aoi"


def test_of_several_layers_of_polygons_one_must_be_named(tmp_path):
    path = save(tmp_path / "a.gpkg", [OTHER], "parcels")
    save(path, [LineString([(0, 0), (1, 1)])], "roads")
    assert load_aoi(str(path)).union_all().equals(OTHER)  # the only polygons
    save(path, [AREA], "aoi")
    with pytest.raises(AOIError) as caught:
        load_aoi(str(path))
    first, *lines = str(caught.value).splitlines()
    assert "has 2 layers of polygons. Name one of them" in first
    assert lines == [f"  {path}|layername=parcels", f"  {path}|layername=aoi"]


def test_the_first_layer_may_be_lines(tmp_path):
    path = save(tmp_path / "a.gpkg", [LineString([(0, 0), (1, 1)])], "roads")
    save(path, [AREA], "aoi")
    assert load_aoi(str(path)).union_all().equals(AREA)


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.geoparquet", "a.geojson", "a.fgb", "a.shp", "a.gpkg"]
)
def test_each_format_is_read(tmp_path, name):
    frame = gpd.GeoDataFrame(geometry=[AREA, OTHER], crs=32633)
    if "parquet" in name:
        frame.to_parquet(tmp_path / name)
    else:
        frame.to_crs(4326 if "json" in name else 32633).to_file(tmp_path / name)
    area = load_aoi(str(tmp_path / name)).to_crs(32633).union_all()
    assert area.symmetric_difference(AREA.union(OTHER)).area < 0.1


def test_a_parquet_file_without_geometry_is_refused(tmp_path):
    gpd.pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(AOIError, match="cannot be read as a vector file"):
        load_aoi(str(tmp_path / "a.parquet"))


def test_a_file_in_an_archive_and_at_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    frame = gpd.GeoDataFrame(geometry=[AREA], crs=32633)
    frame.to_file(folder / "a.shp")
    frame.to_parquet(folder / "a.parquet")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in folder.glob("a.*"):
            archive.write(path, f"inner/{path.name}")
    frame.to_file(folder / "a.geojson")
    (tmp_path / "z.zip").rename(folder / "z.zip")
    monkeypatch.chdir(folder)
    for name in (f"/vsizip/{folder}/z.zip/inner/a.shp", "/vsizip/z.zip/inner/a.shp"):
        assert load_aoi(name).union_all().equals(AREA)
    with serve(folder, tmp_path / "log") as server:
        for name in ("a.geojson", "a.parquet"):
            assert (
                load_aoi(f"{server.url}/{name}").to_crs(32633).union_all().equals_exact(AREA, 0.1)
            )
        for name in ("missing.geojson", "missing.parquet"):
            with pytest.raises(AOIError, match="cannot be read as a vector file"):
                load_aoi(f"{server.url}/{name}?sig=s3cret")
        (tmp_path / "log").with_suffix(".signature").write_text("s3cret")
        for name in ("a.geojson", "a.parquet"):
            assert len(load_aoi(f"{server.url}/{name}?sig=s3cret"))


@pytest.mark.parametrize("name", ["a.gpkg", "a.parquet"])
def test_wanted_columns_come_with_the_geometry(tmp_path, name):
    frame = gpd.GeoDataFrame({"b": [1, 2], "a": ["x", "y"]}, geometry=[AREA, OTHER], crs=32633)
    frame = frame.rename_geometry("shape")
    frame.to_parquet(tmp_path / name) if "parquet" in name else frame.to_file(tmp_path / name)

    def read(columns):
        return read_vectors(str(tmp_path / name), "labels", ExamplesError, columns=columns)

    assert list(read(None)) == ["b", "a", "geometry"]
    assert list(read(["a", "unknown"])) == ["a", "geometry"]
    assert list(read([])) == ["geometry"]
    if name == "a.gpkg":
        assert read([]).index.tolist() == [1, 2]


def test_a_damaged_geopackage_is_told_without_the_query_that_failed(tmp_path):
    head = b"SQLite format 3\0" + b"x" * 44 + (10300).to_bytes(4, "big") + b"xxxx" + b"GPKG"
    (tmp_path / "a.gpkg").write_bytes(head + b"x" * 500)
    told = r"a\.gpkg cannot be read as a vector file: file is not a database\. Open it in QGIS"
    with pytest.raises(AOIError, match=told):
        load_aoi(str(tmp_path / "a.gpkg"))


def test_the_caller_says_what_an_error_is(tmp_path):
    save(tmp_path / "a.gpkg", [AREA], "one")
    save(tmp_path / "a.gpkg", [AREA], "two")
    (tmp_path / "b.gpkg").write_text("no database")
    gpd.pd.DataFrame({"a": [1]}).to_csv(tmp_path / "c.csv")
    for name, problem in {
        "none.gpkg": "labels: no such file",
        "a.gpkg": "labels has 2 layers of polygons",
        "b.gpkg": "labels cannot be read as a vector file",
        "c.csv": "labels has no geometry",
    }.items():
        with pytest.raises(ExamplesError, match=problem):
            read_vectors(str(tmp_path / name), "labels", ExamplesError)


def test_the_layer_that_a_run_has_written_is_an_area(tmp_path):
    """Its GeoPackage has two layers of polygons."""
    path = save(tmp_path / "prelabels.gpkg", [AREA], "prelabels")
    save(path, [OTHER], "tiles")
    with pytest.raises(AOIError, match="layername=tiles"):
        load_aoi(str(path))
    assert load_aoi(f"{path}|layername=tiles").union_all().equals(OTHER)
