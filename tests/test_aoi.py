"""An area of interest chooses tiles and polygons, and a bad one is refused."""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from known_objects import objects, write_labels
from known_runs import equal_layers, files_in, job_for

from workbench import run
from workbench.errors import AOIError
from workbench.layer.report import map as map_module
from workbench.runs import plan as running

pytestmark = pytest.mark.usefixtures("known_objects_only")


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
    assert files_in(tmp_path / "run") == []


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
    assert plan.area.aoi.area == pytest.approx(1e6, rel=1e-4)


def test_the_aoi_is_on_the_map(raster, tmp_path):
    area = shapely.box(500_020, 5_299_900, 500_100, 5_299_980)
    gpd.GeoSeries([area], crs=32633).to_file(tmp_path / "aoi.gpkg")
    result = run(job_for(raster, tmp_path / "run", aoi=str(tmp_path / "aoi.gpkg")))
    assert result.aoi.symmetric_difference(area).area < 1e-6
    assert result.picture() != replace(result, aoi=None).picture()


def test_of_a_large_raster_the_picture_shows_the_aoi(raster, tmp_path, monkeypatch):
    area = shapely.box(500_020, 5_299_900, 500_060, 5_299_980)
    gpd.GeoSeries([area], crs=32633).to_file(tmp_path / "aoi.gpkg")
    result = run(job_for(raster, tmp_path / "run", aoi=str(tmp_path / "aoi.gpkg")))
    shown = []
    draw = map_module.draw_map
    monkeypatch.setattr(
        map_module,
        "draw_map",
        lambda *args, **named: shown.append(draw(*args, **named)) or shown[0],
    )
    result.picture()
    (axes, *_) = shown[0].axes
    # a tenth of its longer side around it
    assert axes.get_xlim() == (500_012, 500_068)
    assert axes.get_ylim() == (5_299_892, 5_299_988)
