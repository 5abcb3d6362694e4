"""Inputs of the kinds that people reported, against what is right about them."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from rasterio.features import shapes

from workbench import Job, run
from workbench.errors import AOIError, SceneError
from workbench.raster.aoi import load_aoi
from workbench.raster.open import open_scene


@pytest.fixture(scope="session")
def field(data_dir: Path) -> Path:
    if not (data_dir / "field").is_dir():
        pytest.skip("WORKBENCH_TEST_DATA has no folder `field`")
    return data_dir / "field"


def found(layer: gpd.GeoDataFrame, truth: gpd.GeoDataFrame, least: float = 0.9) -> int:
    """How many true objects have a label with a higher IoU."""
    truth = truth.to_crs(layer.crs)
    true, made = layer.sindex.query(truth.geometry, "intersects")
    a, b = truth.geometry.to_numpy()[true], layer.geometry.to_numpy()[made]
    iou = shapely.area(shapely.intersection(a, b)) / shapely.area(shapely.union(a, b))
    return len(set(true[iou > least].tolist()))


def whole_ones(truth: gpd.GeoDataFrame, raster: Path) -> gpd.GeoDataFrame:
    """The true objects without an invalid pixel."""
    scene = open_scene(raster)
    _, valid = scene.read(scene.window)
    invalid = [
        shapely.geometry.shape(shape)
        for shape, _ in shapes((~valid).astype(np.uint8), ~valid, transform=scene.transform)
    ]
    return truth[~truth.intersects(shapely.union_all(invalid))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("base.tif", 25),
        ("float_nodata_3.4e38.tif", 20),  # the others are hidden, in part at least
        ("float_fill_undeclared.tif", 24),
        ("nbits4.tif", 25),
    ],
)
def test_every_object_of_the_plain_scene_is_found(field, tmp_path, name, whole):
    truth = whole_ones(gpd.read_file(field / "truth_base.gpkg"), field / name)
    assert len(truth) == whole
    made = run(Job.create(source=str(field / name), out_dir=str(tmp_path / "run")))
    assert found(made.layer, truth) == whole


def test_the_rasters_of_a_geopackage_are_listed_and_read(field):
    with pytest.raises(SceneError, match="holds several rasters") as caught:
        open_scene(field / "two_tables.gpkg")
    sources = [line.split()[0] for line in str(caught.value).splitlines()[1:]]
    assert sources == [f"GPKG:{field}/two_tables.gpkg:{table}" for table in "ab"]
    scenes = [open_scene(source) for source in sources]
    assert [scene.name for scene in scenes] == ["two_tables_a", "two_tables_b"]
    for scene in scenes:
        rgb, valid = scene.read(scene.window)
        assert valid.all()
        assert rgb.std() > 20


def test_the_polygon_in_a_collection_is_part_of_the_area(field, caplog):
    assert load_aoi(str(field / "aoi_collection.gpkg")).union_all().area == pytest.approx(19_000)
    assert "1 × LineString" in caplog.text


def test_the_second_layer_can_be_the_area(field):
    path = field / "aoi_two_layers.gpkg"
    with pytest.raises(AOIError, match=r"has 2 layers of polygons") as caught:
        load_aoi(str(path))
    assert f"{path}|layername=aoi" in str(caught.value)
    assert load_aoi(f"{path}|layername=aoi").union_all().area == pytest.approx(15_000)
    assert load_aoi(f"{path}|layername=parcels").union_all().area == pytest.approx(4_000)


@pytest.mark.slow
def test_a_mosaic_with_the_pole_in_it_runs_to_its_end(field, tmp_path):
    """Its objects have the pixels of the plain scene."""
    made = run(
        Job.create(
            source=str(field / "pole_inside_3031.tif"),
            out_dir=str(tmp_path / "run"),
            simplify_m=0,
            min_area_px=20,
        )
    )
    truth = gpd.read_file(field / "truth_base.gpkg")
    scene = made.scenes[0]
    assert scene.pixel_m == pytest.approx(514, abs=1)
    to_pole = (scene.transform @ ~open_scene(field / "base.tif").transform).to_shapely()
    moved = truth.set_geometry(truth.affine_transform(to_pole), crs=None).set_crs(
        scene.crs, allow_override=True
    )
    assert found(made.layer, moved) == 25
    written = gpd.read_file(tmp_path / "run" / "prelabels.geojson")
    assert len(written) == len(made.layer)
    assert written.is_valid.all()
    for name in ("report.html", "review.qgz", "tiles.parquet"):
        assert (tmp_path / "run" / name).exists()


@pytest.mark.slow
def test_two_sheets_side_by_side_give_whole_objects(field, tmp_path):
    truth = gpd.read_file(field / "truth_sheets.gpkg")
    made = run(Job.create(source=str(field / "sheets"), out_dir=str(tmp_path / "run")))
    assert found(made.layer, truth) == 16


@pytest.mark.slow
def test_every_plant_of_a_drone_scene_is_found(field, tmp_path):
    truth = gpd.read_file(field / "truth_drone_1cm.gpkg")
    made = run(Job.create(source=str(field / "drone_1cm.tif"), out_dir=str(tmp_path / "run")))
    assert found(made.layer, truth) == 400


def test_the_table_of_odd_inputs_is_complete(field):
    here = Path(__file__).read_text(encoding="utf-8")
    names = {path.relative_to(field).parts[0] for path in field.rglob("*.*")}
    assert [name for name in names - {"MANIFEST.md"} if f'"{name}"' not in here] == []
