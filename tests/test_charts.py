"""Charts and checks of the report, against what was put in."""

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from test_report import labels, tiles

from workbench.layer.report.charts import distributions, tile_maps
from workbench.layer.report.map import figure_png
from workbench.layer.report.tally import Topology, seams


def topology(*batches):
    with Topology() as found:
        for batch in batches:
            found.add(batch)
        return found.table()


def test_tile_maps_show_each_tile():
    figures = tile_maps(tiles("ok", "failed", "nodata", "empty"))
    assert list(figures) == ["Status", "Candidates", "Seconds"]
    for figure in figures.values():
        assert len(figure.axes[0].collections[0].get_paths()) == 4
    texts = [text.get_text() for text in figures["Status"].axes[0].get_legend().get_texts()]
    assert texts == ["ok (1)", "empty (1)", "nodata (1)", "failed (1)"]


def test_distributions_count_every_polygon():
    boxes = [shapely.box(0, 0, side, side) for side in (1, 10, 100)]
    figures = distributions(labels(boxes, [0.7, 0.8, np.nan]), 0.6, 0.9)
    heights = {name: sum(p.get_height() for p in f.axes[0].patches) for name, f in figures.items()}
    assert heights == {"Confidence (predicted IoU)": 2, "Stability": 3, "Area": 3}


def test_an_empty_layer_has_charts_and_tables_too():
    nothing = labels([], [])
    for figure in distributions(nothing, 0.85, 0.92).values():
        assert figure_png(figure, dpi=30)
    assert seams(nothing) == {}
    assert topology(nothing)["overlapping pairs"] == "0"


def test_seams_and_topology_are_counted():
    bow = shapely.MultiPolygon([shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])])
    two = [shapely.box(10, 0, 12, 2), shapely.box(11, 0, 13, 2)]
    layer = gpd.GeoDataFrame(
        {"n_tiles": [1, 1, 4]}, geometry=[bow, *two], crs=pyproj.CRS.from_epsg(32636)
    )
    assert seams(layer) == {"seen by 1 tile": 2, "seen by 4 tiles": 1}
    assert topology(layer) == {
        "invalid polygons": "1", "empty polygons": "0", "overlapping pairs": "1",
    }  # fmt: skip
