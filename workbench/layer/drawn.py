"""What a label is that somebody draws: the same in the notebook as the forms of QGIS make it."""

from __future__ import annotations

import uuid

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj import CRS

from workbench.layer.cores import home_in
from workbench.layer.schema import DRAWN, as_layer
from workbench.raster.crs import ground_area_m2

# what is known of a drawn label; its other columns are null in a GeoPackage
DRAWN_COLUMNS = ("id", "class_id", "status", "area_m2", "source_tile", "source")


def drawn_label(
    shape: shapely.MultiPolygon,
    class_id: int | None,
    tiles: gpd.GeoDataFrame,
    crs: CRS,
    id: str | None = None,
) -> gpd.GeoDataFrame:
    """Make a layer of one label that somebody has drawn: `edited`, with this `id` or a new one.

    Its tile and source are those of its middle, empty outside of all tiles.
    """
    drawn = gpd.GeoDataFrame(geometry=[shape], crs=crs)
    home = home_in(tiles, drawn)[0]
    tile, source = ("", "") if home < 0 else tiles[["tile", "source"]].iloc[home]
    values = {
        "id": id or f"{DRAWN}{uuid.uuid4()}",
        "class_id": pd.array([class_id], "Int64"),
        "status": "edited",
        "confidence": np.nan,
        "stability": np.nan,
        "area_m2": ground_area_m2([shape], crs),
        "area_px": 0,
        "source_tile": tile,
        "source": source,
        "n_tiles": 0,
        "at_edge": False,
    }
    return as_layer(drawn.assign(**values))
