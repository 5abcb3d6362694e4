"""The layer in formats for maps on the web."""

import geopandas as gpd
import pyogrio
import pytest
from known_runs import job_for

from workbench import run
from workbench.layer.schema import COLUMNS

pytestmark = pytest.mark.usefixtures("known_objects_only")


def test_flatgeobuf_and_pmtiles_have_the_layer(raster, tmp_path):
    made = run(job_for(raster, tmp_path / "run", formats="flatgeobuf,pmtiles", default_class=1))
    flat = gpd.read_file(made.folder / "prelabels.fgb")
    assert list(flat.columns[:-1]) == list(COLUMNS)
    assert flat.crs == made.layer.crs
    flat = flat.set_index("id").loc[made.layer["id"]].reset_index()
    assert flat.geometry.geom_equals(made.layer.geometry).all()
    for name in ("confidence", "area_m2", "status", "at_edge", "class_id", "n_tiles"):
        assert (flat[name] == made.layer[name].to_numpy()).all(), name
    info = pyogrio.read_info(made.folder / "prelabels.pmtiles")
    assert set(COLUMNS) <= set(info["fields"])
    tiles = gpd.read_file(made.folder / "prelabels.pmtiles").to_crs(made.layer.crs)
    assert set(tiles["id"]) == set(made.layer["id"])
    # each to its place, to half a pixel
    one = made.layer.loc[made.layer.area.idxmax()]
    shown = tiles[tiles["id"] == one["id"]].union_all()
    assert shown.symmetric_difference(one.geometry).area < 0.05 * one.geometry.area
    assert "prelabels.pmtiles" in (made.folder / "report.html").read_text()
    # without them, none of an earlier run is left
    again = run(job_for(raster, tmp_path / "run", formats="pmtiles", pred_iou_thresh=0.905))
    assert not (made.folder / "prelabels.fgb").exists()
    assert set(gpd.read_file(made.folder / "prelabels.pmtiles")["id"]) == set(again.layer["id"])


def test_a_layer_without_polygons_has_all_files(raster, tmp_path):
    made = run(
        job_for(raster, tmp_path / "run", formats=["flatgeobuf", "pmtiles"], max_area_m2=0.01)
    )
    assert len(made.layer) == 0
    assert len(gpd.read_file(made.folder / "prelabels.fgb")) == 0
