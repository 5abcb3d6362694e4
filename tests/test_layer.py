"""The layer's columns, and the files that it is written to and read from."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from workbench.errors import RunFolderError
from workbench.layer import files as layers
from workbench.layer.files import read_layer
from workbench.layer.schema import COLUMNS, TILE_COLUMNS, as_layer, as_tiles
from workbench.raster.crs import from_lonlat, ground_area_m2

UTM = pyproj.CRS.from_epsg(32636)
STYLES = {
    "prelabels": {"Confidence": "<qgis>labels</qgis>", "Class": "<qgis>classes</qgis>"},
    "tiles": {"Tiles": "<qgis>tiles</qgis>"},
}
X, Y = 452_000.0, 35_000.0
RING = shapely.Polygon(
    [(X, Y), (X + 30, Y), (X + 30, Y + 30), (X, Y + 30)],
    [[(X + 10, Y + 10), (X + 10, Y + 20), (X + 20, Y + 20), (X + 20, Y + 10)]],
)
PAIR = shapely.MultiPolygon(
    [shapely.box(X + 40, Y, X + 50, Y + 9), shapely.box(X + 52, Y, X + 60, Y + 9)]
)


def write_layer(
    layer: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame, folder: Path, **named: Any
) -> layers.LayerFiles:
    """Write a layer of two batches, with a layer of tiles that is known already."""
    half = len(layer) // 2
    return layers.write_layer([layer[:half], layer[half:]], lambda _: tiles, folder, **named)


def polygons(shapes: list[Any], crs: Any = UTM, **columns: Any) -> gpd.GeoDataFrame:
    rows = {
        "id": [f"2019/05/01/r0c0/{n}" for n in range(len(shapes))],
        "confidence": np.linspace(0.85, 0.97, len(shapes)),
        "stability": 0.95,
        "area_m2": shapely.area(shapes),
        "area_px": 800,
        "source_tile": "2019/05/01/r0c0",
        "source": "2019/05/01",  # a name that looks like a date is a name
        "n_tiles": 1,
        "at_edge": [n % 2 == 0 for n in range(len(shapes))],
    }
    return gpd.GeoDataFrame(rows | columns, geometry=shapes, crs=crs)


def sample(crs: Any = UTM) -> gpd.GeoDataFrame:
    return as_layer(
        polygons([RING, PAIR], crs, class_id=[2, None], status=["accepted", "unreviewed"])
    )


def nothing(crs: Any = UTM) -> gpd.GeoDataFrame:
    return as_layer(sample(crs).iloc[:0])


def tiles(crs: Any = UTM) -> gpd.GeoDataFrame:
    rows = {
        "tile": ["2019/05/01/r0c0", "2019/05/01/r0c1"],
        "source": "2019/05/01",
        "tile_row": 0,
        "tile_col": [0, 1],
        "status": ["ok", "failed"],
        "error": [None, "block 3: read error"],
        "n_candidates": [12, 0],
        "n_polygons": [2, 0],
        "seconds": [1.5, 0.1],
    }
    cores = [shapely.box(X, Y, X + 64, Y + 64), shapely.box(X + 64, Y, X + 99, Y + 64)]
    return gpd.GeoDataFrame(rows, geometry=cores, crs=crs)


def dtypes(frame: gpd.GeoDataFrame) -> list[Any]:
    return list(frame.dtypes[list(COLUMNS)])


# ----------------------------------------------------------------------------------- columns


def test_layer_has_its_columns_in_order_and_multipolygons_only() -> None:
    shuffled = polygons([RING, PAIR], seam=True).iloc[:, ::-1]
    layer = as_layer(shuffled.set_index(pd.Index([7, 3])))
    assert list(layer.columns) == [*COLUMNS, "geometry"]
    assert list(layer.index) == [0, 1]
    assert set(layer.geom_type) == {"MultiPolygon"}
    assert layer.geometry[0].equals(RING)
    assert layer.crs == UTM
    # what nobody has said
    assert list(layer["status"]) == ["unreviewed", "unreviewed"]
    assert layer["class_id"].isna().all()


def test_empty_layer_keeps_columns_dtypes_and_crs() -> None:
    assert dtypes(nothing()) == dtypes(sample())
    assert list(nothing().columns) == list(sample().columns)
    assert nothing().crs == UTM
    # and also when nothing is typed to begin with
    untyped = gpd.GeoDataFrame({name: [] for name in COLUMNS}, geometry=[], crs=UTM)
    assert dtypes(as_layer(untyped)) == dtypes(sample())


def test_layer_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="lack the columns confidence, source"):
        as_layer(polygons([RING]).drop(columns=["confidence", "source"]))
    with pytest.raises(ValueError, match="1 of 2 rows are not a MultiPolygon"):
        as_layer(polygons([RING, shapely.LineString([(0, 0), (1, 1)])]))
    with pytest.raises(ValueError, match="1 of 1 rows are not a MultiPolygon"):
        as_layer(polygons([None]))


def test_tiles_have_their_columns() -> None:
    ledger = as_tiles(tiles())
    assert list(ledger.columns) == [*TILE_COLUMNS, "geometry"]
    assert list(ledger["error"]) == ["", "block 3: read error"]


# ------------------------------------------------------------------------------------- files

WORKING = {
    "UTM": UTM,
    "web mercator": pyproj.CRS.from_epsg(3857),
    "nameless": pyproj.CRS.from_proj4("+proj=laea +lat_0=0.3 +lon_0=32.6 +datum=WGS84 +units=m"),
}


@pytest.mark.parametrize("crs", WORKING.values(), ids=WORKING.keys())
@pytest.mark.parametrize("build", [sample, nothing])
def test_what_is_written_is_read_again(tmp_path: Path, build: Any, crs: pyproj.CRS) -> None:
    layer = build(crs)
    files = write_layer(layer, tiles(crs), tmp_path, styles=lambda: STYLES)
    for path in (files.gpkg, files.parquet):
        again = read_layer(path)
        assert again.crs.equals(crs), path
        assert_geodataframe_equal(again, layer, check_crs=False)
    again = read_layer(files.geojson)
    assert dtypes(again) == dtypes(layer)
    if len(layer):
        assert again.crs.equals(crs)
        assert_frame_equal(pd.DataFrame(again[list(COLUMNS)]), pd.DataFrame(layer[list(COLUMNS)]))
        gaps = shapely.hausdorff_distance(again.geometry.array, layer.geometry.array)
        assert gaps.max() < 0.012  # 7 decimals of a degree
    assert not list(tmp_path.glob(".tmp*"))


def test_geopackage_is_as_qgis_wants_it(tmp_path: Path) -> None:
    for layer in (sample(), nothing()):
        gpkg = write_layer(layer, tiles(), tmp_path, styles=lambda: STYLES).gpkg
        assert [list(row) for row in pyogrio.list_layers(gpkg)] == [
            ["prelabels", "MultiPolygon"],
            ["tiles", "Polygon"],
            ["layer_styles", None],
        ]
        seen = pyogrio.read_info(gpkg, layer="prelabels")
        assert list(seen["fields"]) == list(COLUMNS)
        assert seen["geometry_name"] == "geom"
        assert (seen["features"], seen["crs"]) == (len(layer), "EPSG:32636")
        db = sqlite3.connect(gpkg)
        assert db.execute("PRAGMA user_version").fetchone() == (10200,)
        assert db.execute("SELECT count(*) FROM rtree_prelabels_geom").fetchone() == (len(layer),)
        stored = db.execute(
            "SELECT f_table_schema, f_table_name, f_geometry_column, styleName, styleQML, "
            "useAsDefault FROM layer_styles"
        ).fetchall()
        db.close()
        assert stored == [
            ("", "prelabels", "geom", "Confidence", "<qgis>labels</qgis>", 1),
            ("", "prelabels", "geom", "Class", "<qgis>classes</qgis>", 0),
            ("", "tiles", "geom", "Tiles", "<qgis>tiles</qgis>", 1),
        ]
    assert list(pyogrio.read_dataframe(gpkg, layer="tiles")["tile"]) == list(tiles()["tile"])


def waiting_in(gpkg: Path) -> dict[str, int | None]:
    with closing(sqlite3.connect(gpkg)) as db:
        return dict(db.execute("SELECT tile, n_unreviewed FROM tiles"))


def test_a_geopackage_counts_the_labels_that_wait_in_each_tile(tmp_path: Path) -> None:
    left, right, empty = (shapely.box(x, 0, x + 10, 10) for x in (0, 10, 20))
    cores = gpd.GeoDataFrame(
        {
            "tile": ["ortho/r0c0", "ortho/r0c1", "ortho/r0c2"], "source": "ortho", "tile_row": 0,
            "tile_col": [0, 1, 2], "status": "ok", "error": "", "n_candidates": 1, "n_polygons": 1,
            "seconds": 1.0,
        },
        geometry=[left, right, empty], crs=UTM,
    )  # fmt: skip
    shapes = [shapely.box(x, 2, x + 4, 6) for x in (1, 8.5, 9, 12)]
    layer = pd.concat([sample()[:1]] * 4, ignore_index=True).set_geometry(shapes, crs=UTM)
    # all are found in the left tile; the second reaches beyond it, the others lie in the right one
    layer = as_layer(layer.assign(status="unreviewed", source_tile="ortho/r0c0"))
    gpkg = write_layer(layer, cores, tmp_path, styles=lambda: STYLES).gpkg
    assert waiting_in(gpkg) == {"ortho/r0c0": 1, "ortho/r0c1": 3, "ortho/r0c2": None}
    # as QGIS saves: one that somebody has drawn, decisions, and a deleted one
    drawn = layer[:1].assign(id="drawn/1", status="edited", source_tile="ortho/r0c2")
    pyogrio.write_dataframe(drawn, gpkg, layer="prelabels", append=True)
    assert waiting_in(gpkg) == {"ortho/r0c0": 1, "ortho/r0c1": 3, "ortho/r0c2": 0}
    with closing(sqlite3.connect(gpkg)) as db, db:
        spatial = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'rtree%'"
        for (name,) in db.execute(spatial).fetchall():
            db.execute(f'DROP TRIGGER "{name}"')  # it calls functions that only GDAL has
        db.execute("UPDATE prelabels SET status = 'accepted' WHERE fid = 1")
        db.execute("UPDATE prelabels SET status = 'rejected' WHERE fid IN (2, 3)")
        db.execute("UPDATE prelabels SET status = 'rejected' WHERE fid = 2")  # nothing new
    assert waiting_in(gpkg) == {"ortho/r0c0": 0, "ortho/r0c1": 1, "ortho/r0c2": 0}
    with closing(sqlite3.connect(gpkg)) as db, db:
        db.execute("UPDATE prelabels SET status = 'unreviewed', class_id = 2 WHERE fid = 2")
    assert waiting_in(gpkg)["ortho/r0c1"] == 2
    with closing(sqlite3.connect(gpkg)) as db, db:
        db.execute("DELETE FROM prelabels WHERE fid = 4")
    assert waiting_in(gpkg) == {"ortho/r0c0": 0, "ortho/r0c1": 1, "ortho/r0c2": 0}
    assert [name for name, _ in pyogrio.list_layers(gpkg)][:2] == ["prelabels", "tiles"]


def test_geojson_follows_rfc_7946(tmp_path: Path) -> None:
    layer = sample().set_geometry(shapely.reverse(sample().geometry.array))
    layer.loc[1, "confidence"] = np.nan
    files = write_layer(layer, tiles(), tmp_path, styles=lambda: STYLES)
    written = json.loads(files.geojson.read_text("utf-8"), parse_constant=pytest.fail)
    assert "crs" not in written
    ring, pair = written["features"]
    assert list(ring["properties"]) == [*COLUMNS, "crs"]
    assert ring["properties"]["crs"] == "EPSG:32636"
    assert ring["properties"]["class_id"] == 2
    assert ring["properties"]["at_edge"] is True
    assert pair["properties"]["class_id"] is None
    assert pair["properties"]["confidence"] is None
    outer, hole = (shapely.LinearRing(line) for line in ring["geometry"]["coordinates"][0])
    assert outer.is_ccw
    assert not hole.is_ccw
    assert outer.centroid.distance(shapely.Point(32.56875, 0.31680)) < 1e-3
    assert all(round(value, 7) == value for value in np.ravel(outer.coords))


def test_empty_geojson_is_an_empty_collection(tmp_path: Path) -> None:
    files = write_layer(nothing(), tiles(), tmp_path, styles=lambda: STYLES)
    written = json.loads(files.geojson.read_text("utf-8"))
    assert (written["type"], written["features"]) == ("FeatureCollection", [])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rounding_never_breaks_a_geojson_polygon(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # stars of some centimetres: their necks are thinner than the 1 cm of the last decimal
    angles = np.sort(rng.uniform(0, 2 * np.pi, (50, 12)), axis=1)
    radius = rng.uniform(0.01, 0.3, (50, 12))
    xy = np.stack([np.cos(angles) * radius + X, np.sin(angles) * radius + Y], axis=-1)
    stars = np.array([shapely.MultiPolygon([shapely.Polygon(star)]) for star in xy])
    stars = stars[shapely.is_valid(stars)]
    written = layers._lonlat(gpd.GeoSeries(stars, crs=UTM))
    assert shapely.is_valid(written).all()
    assert set(shapely.get_type_id(written)) <= {shapely.GeometryType.MULTIPOLYGON}


def test_geojson_cuts_what_crosses_the_antimeridian(tmp_path: Path) -> None:
    fiji = pyproj.CRS.from_epsg(32760)
    x, y = pyproj.Transformer.from_crs(4326, fiji, always_xy=True).transform(180, -17)
    island = shapely.box(x - 1000, y - 500, x + 1000, y + 500)
    layer = as_layer(polygons([island], fiji))
    files = write_layer(layer, tiles(fiji), tmp_path, styles=lambda: STYLES)
    shape = pyogrio.read_dataframe(files.geojson).geometry[0]
    assert shape.is_valid
    west, east = sorted(shape.geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == -180
    assert east.bounds[2] == 180
    assert west.area == pytest.approx(east.area, rel=0.05)
    area = read_layer(files.geojson).area[0]
    assert area == pytest.approx(island.area, rel=1e-3)


@pytest.mark.parametrize("code", [3031, 3413, 32661, 6932])
def test_geojson_of_polygons_around_a_pole(tmp_path: Path, code: int) -> None:
    polar = pyproj.CRS.from_epsg(code)
    north = code in (3413, 32661)
    x, y = from_lonlat(polar, 0, 90 if north else -90)
    over = shapely.box(x - 3000, y - 2000, x + 900, y + 700)
    shapes = [
        over,
        shapely.Point(x, y).buffer(9000) - shapely.Point(x, y).buffer(5000),  # around it
        over.buffer(40_000) - over.buffer(30_000) - shapely.box(x + 5e4, y - 9, x + 6e4, y + 9),
        shapely.box(x - 2000, y - 1000, x + 2000, y - 500),  # beside it, over half of the meridians
        shapely.Polygon([(x, y + 100), (x + 100, y - 100), (x - 100, y - 100)]),
        shapely.box(x, y, x + 800, y + 800),  # with a corner on it
    ]
    layer = as_layer(polygons(shapes, polar))
    files = write_layer(layer, tiles(polar), tmp_path, styles=lambda: STYLES)
    written = pyogrio.read_dataframe(files.geojson).geometry
    assert written.is_valid.all()
    assert (np.abs(written.bounds.to_numpy()) <= [180, 90, 180, 90]).all()
    geod = pyproj.Geod(ellps="WGS84")
    for shape, made in zip(shapes, written, strict=True):
        true = ground_area_m2([shape], polar)[0]
        assert abs(geod.geometry_area_perimeter(made)[0]) == pytest.approx(true, rel=0.01)


def test_polygons_drawn_in_qgis_are_read(tmp_path: Path) -> None:
    gpkg = write_layer(sample(), tiles(), tmp_path, styles=lambda: STYLES).gpkg
    drawn = gpd.GeoDataFrame({"status": ["edited"]}, geometry=[PAIR], crs=UTM)
    pyogrio.write_dataframe(drawn, gpkg, layer="prelabels", append=True)
    again = read_layer(gpkg)
    assert dtypes(again) == dtypes(sample())
    assert list(again["status"]) == ["accepted", "unreviewed", "edited"]
    assert again["area_px"][2] == 0
    assert np.isnan(again["confidence"][2])


def test_equal_layers_give_equal_files(tmp_path: Path) -> None:
    first = write_layer(sample(), tiles(), tmp_path / "a", styles=lambda: STYLES)
    again = write_layer(sample(), tiles(), tmp_path / "b", styles=lambda: STYLES)
    assert first.gpkg.read_bytes() == again.gpkg.read_bytes()
    assert first.geojson.read_bytes() == again.geojson.read_bytes()
    assert first.parquet.read_bytes() == again.parquet.read_bytes()


def test_a_crash_leaves_the_old_files_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_layer(sample(), tiles(), tmp_path, styles=lambda: STYLES)
    old = before.gpkg.read_bytes()

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layers, "_add_styles", crash)
    with pytest.raises(KeyboardInterrupt):
        write_layer(nothing(), tiles(), tmp_path, styles=lambda: STYLES)
    assert before.gpkg.read_bytes() == old
    assert not list(tmp_path.glob(".tmp*"))


def test_a_geopackage_that_qgis_has_open_is_not_replaced(tmp_path: Path) -> None:
    gpkg = write_layer(sample(), tiles(), tmp_path, styles=lambda: STYLES).gpkg
    gpkg.with_name("prelabels.gpkg-wal").write_bytes(b"edits")
    with pytest.raises(RunFolderError, match=r"prelabels\.gpkg is open in another program"):
        write_layer(nothing(), tiles(), tmp_path, styles=lambda: STYLES)
    assert len(read_layer(tmp_path / "prelabels.parquet")) == 2


def test_layer_and_tiles_must_share_a_crs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one CRS"):
        write_layer(sample(), tiles(pyproj.CRS.from_epsg(32637)), tmp_path, styles=lambda: STYLES)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not '\.shp'"):
        read_layer(tmp_path / "labels.shp")


def test_a_layer_that_geopandas_has_written_is_read_in_batches(tmp_path: Path) -> None:
    sample().to_parquet(tmp_path / "prelabels.parquet", index=False)
    again = pd.concat(layers.read_batches(tmp_path / "prelabels.parquet"), ignore_index=True)
    assert_geodataframe_equal(gpd.GeoDataFrame(again), sample())


def test_the_least_certain_label_that_waits_is_found_by_an_index(tmp_path):
    gpkg = write_layer(sample(), tiles(), tmp_path, styles=lambda: STYLES).gpkg
    question = (
        "EXPLAIN QUERY PLAN SELECT coalesce(class_score, confidence), fid + 0 FROM prelabels "
        "WHERE status = 'unreviewed' ORDER BY coalesce(class_score, confidence), fid LIMIT 1"
    )
    with closing(sqlite3.connect(gpkg)) as db:
        plan = " ".join(row[-1] for row in db.execute(question))
    assert "INDEX prelabels_to_review" in plan
    assert "TEMP B-TREE" not in plan  # nothing is left to sort
