"""In which area a polygon lies, decided by a point in it; and polygons that have an area."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from workbench.errors import WorkbenchError
from workbench.polygons.clean import only_polygons


def with_area(layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the rows that have an area, repaired, so that `match` gives their row numbers."""
    geometry, row = only_polygonal(layer.geometry)
    return layer.iloc[row].set_geometry(geometry, crs=layer.crs)


def middle_of(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """The representative point of each polygon `(n,)`, which always lies inside it."""
    return np.asarray(shapely.point_on_surface(geometry), object)


def lies_in(
    geometry: NDArray[np.object_], area: shapely.Geometry | NDArray[np.object_]
) -> NDArray[np.bool_]:
    """Whether the representative point of each polygon `(n,)` lies in an area, or in its own area.

    `area` is one geometry or one for each polygon, `(n,)`; all are in one CRS. This decides whether
    a polygon belongs to an AOI, a labelled area or the core of a tile. It is then kept unclipped.
    """
    return np.asarray(shapely.intersects(area, middle_of(geometry)), bool)


def inside(layer: gpd.GeoDataFrame, area: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the rows whose representative point lies in an area, for example the labelled one."""
    require_crs(layer, "predicted layer")
    return layer[lies_in(layer.geometry.to_numpy(), area_of(area, layer.crs))]


def area_of(within: gpd.GeoDataFrame, crs: CRS) -> shapely.Geometry:
    """Return a labelled area as one geometry in a CRS, repaired and without lines and points.

    Raises `WorkbenchError` if its CRS is missing.
    """
    require_crs(within, "labelled area")
    return shapely.union_all(only_polygonal(within.geometry.to_crs(crs))[0])


def require_crs(layer: gpd.GeoDataFrame, name: str) -> None:
    """Refuse a layer without CRS; `name` says which layer."""
    if layer.crs is None:
        raise WorkbenchError(
            f"the {name} has no CRS, so it cannot be compared: set it with layer.set_crs(...)"
        )


def only_polygonal(geometry: gpd.GeoSeries) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the polygons that have an area, repaired and without lines and points, and their rows.

    Parts of one row stay together, as one object.
    """
    mended = only_polygons(geometry.to_numpy())
    broken = ~shapely.is_valid(mended)  # takes a tenth of the time of a repair
    mended[broken] = shapely.make_valid(mended[broken], method="structure", keep_collapsed=False)
    rows = np.flatnonzero(shapely.area(mended) > 0)
    return mended[rows], rows
