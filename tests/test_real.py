"""Real rasters through the whole run: valid layers, in the right place, without seam duplicates."""

from itertools import product

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window

from workbench import Job, run
from workbench.errors import AOIError, RunFailedError, SceneError
from workbench.evaluation.matching import match
from workbench.evaluation.metrics import compare
from workbench.layer.files import read_layer

# one of each layout; small tiles, so that there are seams
RASTERS = [
    "kampala/kampala_z19_a.tif",
    "naip_fields/naip_fields_41.1864_-88.1872.tif",
    "nl_rd/test_tiled.tif",
    "oam_tcd/5b90f92da0d7280005fab355_4310.tif",
    "spacenet_atlanta/atlanta_pan_u16.tif",
    "trees_neon/OSBS_029.tif",
    "unlabelled/hro_colorado_extmask.tif",
    "unlabelled/naip_airport_chip.tif",
    "unlabelled/pix4d_alpha_nodata.tif",
    "unlabelled/swissimage_lv95.tif",
    "urban_trees/long_beach_2020_10.tif",
    "edge/kampala_rot30.tif",
    "edge/kampala_12bit.tif",
]
REFERENCES = {
    "kampala/kampala_z19_a.tif": ("kampala/kampala_a_buildings.geojson", 0.25, 15.0),
    "naip_fields/naip_fields_41.1864_-88.1872.tif": (
        "naip_fields/naip_fields_41.1864_-88.1872.geojson",
        0.5,
        250.0,
    ),
}


def run_on(raster, folder, **parameters):
    defaults = {"tile_size": 384, "min_area_px": 50}
    return run(Job.create(source=str(raster), out_dir=str(folder), **{**defaults, **parameters}))


def repeated_across_tiles(layer):
    """Pairs of polygons of different tiles with IoU above 0.5, as a share of all polygons.

    A whole and a large part of it may be such a pair in one tile, too: some are in order.
    """
    geometry, tile = layer.geometry.to_numpy(), layer["source_tile"].to_numpy()
    i, j = shapely.STRtree(geometry).query(geometry, predicate="intersects")
    pair = (i < j) & (tile[i] != tile[j])
    i, j = i[pair], j[pair]
    common = shapely.area(shapely.intersection(geometry[i], geometry[j]))
    union = shapely.area(geometry[i]) + shapely.area(geometry[j]) - common
    return (common > 0.5 * union).sum() / max(1, len(layer))


@pytest.mark.parametrize("name", RASTERS)
def test_layers_of_real_rasters(name, data_dir, tmp_path):
    aoi = None
    if "oam_tcd" in name:  # large: a corner of it will do, black collar included
        with rasterio.open(data_dir / name) as raster:
            left, bottom, right, top = raster.bounds
        corner = shapely.box(left, bottom, (2 * left + right) / 3, (2 * bottom + top) / 3)
        gpd.GeoSeries([corner], crs=3395).to_file(tmp_path / "aoi.gpkg")
        aoi = str(tmp_path / "aoi.gpkg")
    # small tiles cut many objects, so their scores are lower
    chosen = {"aoi": aoi, "simplify_m": 0.2, "pred_iou_thresh": 0.5}
    result = run_on(data_dir / name, tmp_path / "run", **chosen)
    layer = read_layer(result.folder / "prelabels.gpkg")
    scene = result.scenes[0]
    assert len(layer) >= 2
    assert layer.is_valid.all()
    assert set(layer.geom_type) == {"MultiPolygon"}
    assert layer.crs == scene.crs
    frame = scene.window_polygon(scene.window).buffer(1e-6)
    assert layer.within(frame).all()
    assert repeated_across_tiles(layer) < 0.05
    assert (layer["area_m2"] > 0).all()
    if name in REFERENCES:
        path, least, far = REFERENCES[name]
        reference = gpd.read_file(data_dir / path).to_crs(layer.crs)
        recall = compare(layer, reference).recall(0.5)
        moved = reference.set_geometry(reference.translate(far, far))
        assert recall >= least
        assert compare(layer, moved).recall(0.5) < recall / 2  # it is the place that matters


BROKEN = {
    "edge/empty.tif": "empty",
    "edge/header_only.tif": "header_only.tif",
    "edge/lfs_pointer.tif": "git lfs pull",
    "edge/kampala_nocrs.tif": "CRS",
    "edge/rotated.tif": "CRS",
    "edge/cog_hirise_mars.tif": "Earth",
    "edge/sar_complex64_rotated.tif": "complex",
    "edge/no_such_file.tif": "no_such_file.tif",
    "edge/none*.tif": r"none\*.tif",
}


@pytest.mark.parametrize("name", BROKEN)
def test_unusable_rasters_end_at_once_and_leave_nothing(name, data_dir, tmp_path):
    with pytest.raises(SceneError, match=BROKEN[name]):
        run_on(data_dir / name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_band_numbers_that_do_not_exist_are_named(data_dir, tmp_path):
    with pytest.raises(SceneError, match="7"):
        run_on(data_dir / "kampala/kampala_z19_a.tif", tmp_path / "run", bands=[1, 2, 7])
    assert not (tmp_path / "run").exists()


def test_an_aoi_in_metres_without_its_crs_is_noticed(data_dir, tmp_path):
    aoi = data_dir / "edge/labels_wrong_crs.geojson"
    with pytest.raises(AOIError, match="are not degrees"):
        run_on(data_dir / "kampala/kampala_z19_a.tif", tmp_path / "run", aoi=str(aoi))
    assert not (tmp_path / "run").exists()


def test_tiles_that_were_cut_before_are_merged_as_those_of_one_scene(data_dir, tmp_path):
    scene = data_dir / "kampala/kampala_z19_a.tif"  # 768 × 512 px
    (tmp_path / "tiles").mkdir()
    with rasterio.open(scene) as whole:
        for x, y in product((0, 224, 448), (0, 192)):
            window = Window(x, y, 320, 320)
            profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": whole.crs}
            profile |= {
                "width": 320,
                "height": 320,
                "transform": whole.transform @ Affine.translation(x, y),
            }
            with rasterio.open(tmp_path / f"tiles/{x}_{y}.tif", "w", **profile) as tile:
                tile.write(whole.read(window=window))
    # what spans a raster is no label, but may span a tile of a larger one
    every = {"model": "classic", "tile_size": 320, "max_area_share": None, "overlaps": "all"}
    uncut = run_on(scene, tmp_path / "uncut", overlap=0.3, **every).layer
    cut = run_on(tmp_path / "tiles", tmp_path / "cut", **every).layer
    assert cut["source"].nunique() == 6
    # its tiles are the uncut scene's; a piece at its raster's edge may yield to another one
    assert len(uncut) > 40
    assert abs(len(cut) - len(uncut)) <= 0.03 * len(uncut)
    # within one scene a cut piece is also continued by what the next tile has stored
    assert (match(cut, uncut).best_iou() > 0.9).mean() > 0.9
    assert repeated_across_tiles(uncut) == 0
    assert repeated_across_tiles(cut) < 0.01


@pytest.mark.parametrize("name", ["edge/corrupt.tif", "edge/truncated.tif"])
def test_c6_blocks_that_cannot_be_decoded_cost_only_their_tiles(name, data_dir, tmp_path):
    with pytest.raises(RunFailedError, match=r"\d+ of \d+ tiles failed"):
        run_on(data_dir / name, tmp_path / "run")
    layer = read_layer(tmp_path / "run" / "prelabels.gpkg")
    ledger = gpd.read_parquet(tmp_path / "run" / "tiles.parquet")
    status = ledger["status"].value_counts()
    assert 0 < status["failed"] < len(ledger)
    assert len(layer) > 10
    assert (tmp_path / "run" / "report.html").exists()
    assert ledger.loc[ledger["status"] == "failed", "error"].str.contains(name.split("/")[1]).all()


def test_what_is_all_nodata_gives_an_empty_layer(data_dir, tmp_path):
    result = run_on(data_dir / "edge/all-nodata.tif", tmp_path / "run")
    assert len(result.layer) == 0
    assert set(result.tiles["status"]) == {"nodata"}
    assert np.isnan(read_layer(tmp_path / "run" / "prelabels.gpkg")["confidence"]).sum() == 0
